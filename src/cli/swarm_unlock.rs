//! `formic swarm unlock` and `unlock-key`: managers whose files need a key. It is never an argument: those are seen by
//! every user of the host.

use super::session::{Failure, Outcome, Session};
use super::swarm_join::read_bounded;
use crate::api::client::Target;
use crate::api::types::{Swarm as SwarmInfo, UnlockKey as Key};
use argh::{ArgsInfo, FromArgs};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::io::{BufRead as _, IsTerminal as _, Stdin};
use zeroize::Zeroizing;

/// Unlocks this manager after a start of its daemon. The key is read from the terminal or from standard input.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "unlock")]
pub(super) struct Unlock {}

impl Unlock {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match session.info()?.swarm.local_node_state.as_str() {
            "locked" => {}
            "inactive" => return Err(Failure::new("Error: This node is not part of a swarm")),
            _ => return Err(Failure::new("Error: swarm is not locked")),
        }
        let text = read_key(session)?;
        let request = Key { unlock_key: text.trim().to_owned() };
        session.post_only(&Target::new(&["swarm", "unlock"]), &request)
    }
}

/// The key's text: one line, which a terminal does not show.
fn read_key(session: &mut Session) -> Result<Zeroizing<String>, Failure> {
    let input = std::io::stdin();
    let failed = |error: std::io::Error| Failure::new(format!("cannot read the key: {error}"));
    if !input.is_terminal() {
        return read_bounded(input).map(Zeroizing::new).map_err(failed);
    }
    write!(session.out, "Enter unlock key: ").and_then(|()| session.out.flush())?;
    let mut text = Zeroizing::new(String::new());
    {
        let _hidden = Hidden::new(&input)?;
        input.lock().read_line(&mut text).map_err(failed)?;
    }
    session.print("")?;
    Ok(text)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden<'a> {
    terminal: &'a Stdin,
    before: Termios,
}

impl Hidden<'_> {
    fn new(terminal: &Stdin) -> Result<Hidden<'_>, Failure> {
        let failed =
            |error| Failure::new(format!("cannot hide what is typed: {error}; give the key on standard input"));
        let before = tcgetattr(terminal).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &hidden).map_err(failed)?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // The terminal is gone, or it takes this as it took the other.
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

/// Shows the key that unlocks managers, or replaces it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "unlock-key")]
pub(super) struct UnlockKey {
    /// show the key only
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// replace the key by a new one
    #[argh(switch)]
    rotate: bool,
}

impl UnlockKey {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        if self.rotate {
            let swarm: SwarmInfo = session.get(&Target::new(&["swarm"]))?;
            if swarm.cluster.spec.encryption_config.auto_lock_managers != Some(true) {
                return Err(Failure::new("cannot rotate because autolock is not turned on"));
            }
            let version = swarm.cluster.version.index.to_string();
            let target = Target::new(&["swarm", "update"]).with("version", &version);
            session.post_only(&target.with("rotateManagerUnlockKey", "true"), &swarm.cluster.spec)?;
            if !self.quiet {
                session.print("Successfully rotated manager unlock key.\n")?;
            }
        }
        let key = unlock_key(session)?;
        if self.quiet { session.print(key.as_str()) } else { print_unlock_command(session, &key) }
    }
}

fn unlock_key(session: &Session) -> Result<Zeroizing<String>, Failure> {
    let answer: Key = session.get(&Target::new(&["swarm", "unlockkey"]))?;
    if answer.unlock_key.is_empty() {
        return Err(Failure::new("no unlock key is set"));
    }
    Ok(Zeroizing::new(answer.unlock_key))
}

fn print_unlock_command(session: &mut Session, key: &str) -> Outcome {
    session.print(format!(
        "To unlock a swarm manager after it restarts, run the `formic swarm unlock`\ncommand and provide the following key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able to restart the manager."
    ))
}

/// What follows when autolock was turned on.
pub(super) fn show_unlock_key(session: &mut Session) -> Outcome {
    let key = unlock_key(session)?;
    print_unlock_command(session, &key)
}
