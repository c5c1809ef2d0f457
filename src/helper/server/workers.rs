//! Work on files that takes long, done by forked children so that the loop goes on: copying an image, removing
//! directories. A worker tells its result in one message and ends.

use super::{Server, leftovers};
use crate::helper::verbs::{Answer, ErrorKind, Event, ImageName, MAX_MESSAGE_BYTES, VerbError, decode, encode};
use crate::sys::process::{self, Fork};
use crate::sys::seqpacket::SeqPacket;
use crate::types::TaskId;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// What is done when a worker has ended.
#[derive(Debug)]
pub(super) enum Then {
    /// The copied directory becomes an image.
    Install { request: u64, name: ImageName, copy: PathBuf },
    /// The task is gone.
    ForgetTask(TaskId),
    /// Answer.
    Reply(u64),
    /// Nothing; a failure is worth a warning.
    Nothing,
}

/// A forked child at work.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) then: Then,
    result: SeqPacket,
}

impl Server<'_> {
    /// Forks a worker.
    pub(super) fn delegate(
        &mut self,
        then: Then,
        work: impl FnOnce() -> Result<Answer, VerbError>,
    ) -> Result<(), VerbError> {
        let (ours, theirs) = SeqPacket::pair()?;
        match process::fork()? {
            Fork::Parent(pid) => {
                self.workers.insert(pid, Worker { then, result: ours });
                Ok(())
            }
            Fork::Child => {
                // Nothing of the helper's stays open here should the helper die first.
                let prepared = process::die_with_parent().and_then(|()| process::close_inherited(&[theirs.as_fd()]));
                let result = prepared.map_err(VerbError::from).and_then(|()| work());
                let sent = encode(&result).map_err(|_| ()).and_then(|bytes| theirs.send(&bytes, &[]).map_err(|_| ()));
                process::exit_now(i32::from(sent.is_err()))
            }
        }
    }

    /// Removes a directory in a worker.
    pub(super) fn delegate_removal(&mut self, then: Then, path: PathBuf) -> Result<(), VerbError> {
        self.delegate(then, move || {
            leftovers::remove_tree(&path)?;
            Ok(Answer::Done)
        })
    }

    pub(super) fn worker_ended(&mut self, worker: Worker) -> io::Result<()> {
        let result = worker.result();
        match worker.then {
            Then::Install { request, name, copy } => {
                let result = match result {
                    Ok(answer) => self.install_image(&name, &copy).map(|()| answer),
                    Err(error) => Err(error),
                };
                if result.is_err() {
                    // What cannot be removed now is removed at the next start.
                    let _ = self.delegate_removal(Then::Nothing, copy);
                }
                self.reply(request, result)
            }
            Then::ForgetTask(task) => self.forget_task(task, result.map(drop)),
            Then::Reply(request) => self.reply(request, result),
            Then::Nothing => match result {
                Ok(_) => Ok(()),
                Err(error) => self.tell(Event::Warning(error.text)),
            },
        }
    }
}

impl Worker {
    fn result(&self) -> Result<Answer, VerbError> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        self.result.set_nonblocking()?;
        match self.result.receive(&mut buffer) {
            Ok(Some(received)) => decode(buffer.get(..received.length).unwrap_or_default())?,
            _ => Err(VerbError::new(ErrorKind::System, "the worker process ended before its work")),
        }
    }
}
