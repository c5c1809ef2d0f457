//! The only way to change the state: [`State::init`] for the first entry of a log, [`State::apply`] for every other.
//!
//! Each command's function checks everything first and then changes the state without a way to fail, so a refused
//! command changes nothing but the index. While a command is applied, `State::index` is already its own.

use super::nodes::{Admission, Session};
use super::{Command, Effect, Entry, Manager, Refusal, Reply, State};
use crate::types::{NodeId, UnixTime};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// What a command's function answers.
pub(super) type Outcome = Result<(Reply, Vec<Effect>), Refusal>;

/// Done, and nothing for the shell to do.
pub(super) fn done() -> Outcome {
    Ok((Reply::Done, Vec::new()))
}

/// Why bytes are not a state, or a state could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored state is unreadable: {0}")]
pub struct StateError(String);

impl State {
    /// Applies the entry with log index `self.index + 1`. A refused one changes nothing but the index.
    pub fn apply(&mut self, entry: &Entry) -> (Result<Reply, Refusal>, Vec<Effect>) {
        self.index = self.index.saturating_add(1);
        match self.dispatch(&entry.command, entry.at) {
            Ok((reply, effects)) => {
                self.at = entry.at;
                (Ok(reply), effects)
            }
            Err(refusal) => (Err(refusal), Vec::new()),
        }
    }

    /// Passes the entry with log index `self.index + 1`, which is no command: a leader's term began.
    pub fn pass(&mut self) {
        self.index = self.index.saturating_add(1);
    }

    /// Applies the entry with log index `self.index + 1`, which says who takes part in the managers' consensus.
    pub fn set_managers(&mut self, managers: BTreeMap<NodeId, Manager>) {
        self.pass();
        self.note_former_managers(&managers);
        self.managers = managers;
    }

    fn dispatch(&mut self, command: &Command, at: UnixTime) -> Outcome {
        match command {
            Command::Init { .. } => Err(Refusal::Invalid("the swarm is initialised already".into())),
            Command::UpdateCluster { version, spec, tokens, root } => {
                self.update_cluster(*version, spec, tokens, root.as_ref(), at)
            }
            Command::FinishRootRotation => self.finish_root_rotation(at),
            Command::UnlockKeySeen { key } => self.unlock_key_seen(key),
            Command::ReplaceMasters { master } => self.replace_masters(master, at),
            Command::ReplaceAuthority { tokens, root } => self.replace_authority(tokens, root, at),

            Command::AddNode { id, role, hostname, software, addresses, availability, certificate_expires, root } => {
                let (certificate_expires, root) = (*certificate_expires, *root);
                let (role, availability) = (*role, *availability);
                self.add_node(
                    Admission { id: *id, role, hostname, software, addresses, availability, certificate_expires, root },
                    at,
                )
            }
            Command::OpenSession { node, boot, hostname, software, addresses, machine, queues } => {
                let (node, boot, queues) = (*node, *boot, *queues);
                self.open_session(Session { node, boot, hostname, software, addresses, machine, queues }, at)
            }
            Command::SetNodeState { node, state, message } => self.set_node_state(*node, *state, message, at),
            Command::UpdateNode { node, version, role, availability, labels } => {
                self.update_node(*node, *version, (*role, *availability), labels, at)
            }
            Command::RemoveNode { node, force, master } => self.remove_node(*node, *force, master, at),
            Command::SetCertificateExpiry { node, expires, root } => {
                self.set_certificate_expiry(*node, *expires, *root)
            }
            Command::SetCertificateRoot { node, root } => self.set_certificate_root(*node, *root),

            Command::SetPublic { node, boot, epoch, public } => self.set_public(*node, *boot, *epoch, *public),
            Command::SetReady { node, boot, epoch } => self.set_ready(*node, *boot, *epoch),
            Command::SetSending { node, boot, epoch } => self.set_sending(*node, *boot, *epoch),
            Command::DrawNext { master } => self.draw_next(master, at),
            Command::Activate { epoch, late } => self.activate(*epoch, *late, at),
            Command::Retire { epoch } => self.retire(*epoch),
            Command::RequestRotation { force } => self.request_rotation(*force, at),
            Command::RequestEarlyRotation { node } => self.request_early_rotation(*node, at),

            Command::CreateNetwork { id, spec } => self.create_network(*id, spec, at),
            Command::RemoveNetwork { id } => self.remove_network(*id),
            Command::CreateService { id, spec } => self.create_service(*id, spec, at),
            Command::UpdateService { id, version, spec } => self.update_service(*id, *version, spec, at),
            Command::RollBackService { id, version } => self.roll_back_service(*id, *version, at),
            Command::FinishRollout { id, template } => self.finish_rollout(*id, *template, at),
            Command::RemoveService { id } => self.remove_service(*id, at),

            Command::CreateTask { id, service, slot, bound_to } => {
                self.create_task(*id, *service, *slot, *bound_to, at)
            }
            Command::PlaceTask { id, node } => self.place_task(*id, *node, at),
            Command::SetPending { id, reason } => self.set_pending(*id, reason, at),
            Command::ShutDownTask { id, remove } => self.shut_down_task(*id, *remove, at),
            Command::ReportTasks { node, boot, statuses } => self.report_tasks(*node, *boot, statuses, at),
            Command::ConfirmTaskGone { node, boot, id } => self.confirm_task_gone(*node, *boot, *id, at),
            Command::Attach { node, boot, id, request } => self.attach(*node, *boot, *id, request, at),
        }
    }

    /// A second copy, made on purpose: what readers hold while the next entry is applied.
    pub fn duplicate(&self) -> Result<State, StateError> {
        State::from_bytes(&self.to_bytes()?)
    }

    /// The bytes to be sealed and stored. The same state gives the same bytes.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, StateError> {
        let failed = |error: postcard::Error| StateError(error.to_string());
        // Sized first: a vector that grows leaves copies of the keys behind in freed memory.
        let size = postcard::experimental::serialized_size(self).map_err(failed)?;
        let mut bytes = Zeroizing::new(vec![0; size]);
        postcard::to_slice(self, bytes.as_mut_slice()).map_err(failed)?;
        Ok(bytes)
    }

    /// Reads what [`State::to_bytes`] wrote, all of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<State, StateError> {
        match postcard::take_from_bytes(bytes) {
            Ok((state, [])) => Ok(state),
            Ok((_, rest)) => Err(StateError(format!("{} bytes too many", rest.len()))),
            Err(error) => Err(StateError(error.to_string())),
        }
    }
}
