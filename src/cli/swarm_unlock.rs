//! `formic swarm unlock` and `unlock-key`: managers whose files need a key. It is never an argument: those are seen by
//! every user of the host.

use super::session::{Failure, Outcome, Session};
use super::swarm_join::read_bounded;
use crate::api::client::Target;
use crate::api::types::{Swarm as SwarmInfo, UnlockKey as Key};
use argh::{ArgsInfo, FromArgs};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal as _, Read};
use std::os::fd::AsFd;
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
    let text = read_hidden(&input);
    session.print("")?;
    text.map_err(failed)
}

/// One line of a terminal that does not show what is typed. A signal from the keyboard would end this process and leave
/// the terminal so: they are read as the characters that they are.
fn read_hidden<T: AsFd>(terminal: &T) -> std::io::Result<Zeroizing<String>>
where
    for<'a> &'a T: Read,
{
    let _hidden = Hidden::new(terminal)?;
    // Longer than any line that is taken: growing would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE_BYTES));
    let (mut reader, mut byte) = (terminal, [0]);
    while reader.read(&mut byte)? == 1 {
        match byte[0] {
            INTERRUPT | QUIT => return Err(std::io::Error::other("interrupted")),
            b'\n' | b'\r' | END => break,
            BACKSPACE | DELETE => drop(line.pop()),
            _ if line.len() == MAX_LINE_BYTES => return Err(std::io::Error::other("the line is too long")),
            byte => line.push(byte),
        }
    }
    let text = std::str::from_utf8(&line).map_err(|_| std::io::Error::other("it is no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Bytes of a line that is typed.
const MAX_LINE_BYTES: usize = 1024;
/// Ctrl-C.
const INTERRUPT: u8 = 3;
/// Ctrl-D.
const END: u8 = 4;
const BACKSPACE: u8 = 8;
/// Ctrl-\.
const QUIT: u8 = 28;
const DELETE: u8 = 127;

/// A terminal that gives each byte as it is typed and shows nothing, until this is dropped.
struct Hidden<'a, T: AsFd> {
    terminal: &'a T,
    before: Termios,
}

impl<T: AsFd> Hidden<'_, T> {
    fn new(terminal: &T) -> std::io::Result<Hidden<'_, T>> {
        let failed = |error: nix::Error| {
            std::io::Error::other(format!("cannot hide what is typed: {error}; give the key on standard input"))
        };
        let before = tcgetattr(terminal).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        hidden.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        hidden.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(terminal, SetArg::TCSAFLUSH, &hidden).map_err(failed)?;
        Ok(Hidden { terminal, before })
    }
}

impl<T: AsFd> Drop for Hidden<'_, T> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    /// What is read when this is typed, and whether the terminal is then as it was.
    fn typed(keys: &[u8]) -> (Result<String, String>, bool) {
        let pty = nix::pty::openpty(None, None).unwrap();
        let (mut keyboard, terminal) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&terminal).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ECHO | LocalFlags::ISIG));
        let line = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_hidden(&terminal));
            // What was typed before it is hidden is thrown away.
            let end = Instant::now() + Duration::from_secs(30);
            while tcgetattr(&terminal).unwrap().local_flags.contains(LocalFlags::ECHO) {
                assert!(Instant::now() < end, "it is not hidden");
                std::thread::yield_now();
            }
            keyboard.write_all(keys).unwrap();
            reader.join().unwrap()
        });
        let line = line.map(|line| line.to_string()).map_err(|error| error.to_string());
        (line, tcgetattr(&terminal).unwrap() == before)
    }

    #[test]
    fn a_line_is_read_without_showing_it_and_ctrl_c_leaves_the_terminal_as_it_was() {
        assert_eq!(typed(b"SWMKEY-1-ab\x7fc\n"), (Ok("SWMKEY-1-ac".to_owned()), true));
        assert_eq!(typed(b"SWM\x03"), (Err("interrupted".to_owned()), true));
        assert_eq!(typed(b"\x04"), (Ok(String::new()), true));
        assert_eq!(typed(&[b'x'; 1100]), (Err("the line is too long".to_owned()), true));
    }
}
