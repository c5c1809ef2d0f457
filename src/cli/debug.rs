//! `formic debug`.

use super::session::{Failure, Outcome, Session};
use argh::{ArgsInfo, FromArgs};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// The mode of a file with keys: its owner's.
const KEY_FILE_MODE: u32 = 0o600;

/// For the search of faults. Nothing here is needed to run a swarm.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "debug")]
pub(super) struct Debug {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Verb {
    EspKeys(EspKeys),
}

impl Debug {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match self.verb {
            Verb::EspKeys(verb) => verb.run(session),
        }
    }
}

/// Shows the keys of this node's ESP on an encrypted network, as the table (esp_sa) by which Wireshark decrypts a
/// recording. Whoever has them reads what this node sends and receives on that network until its keys rotate, recordings
/// since the last rotation but one included. Root only, and only if the daemon runs with --allow-key-export, which logs it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "esp-keys")]
struct EspKeys {
    /// yes, show keys
    #[argh(switch)]
    expose_keys: bool,
    /// write a new file that only its owner reads, instead of standard output
    #[argh(option, short = 'o', arg_name = "file")]
    output: Option<PathBuf>,
    /// network: its name or id
    #[argh(positional)]
    network: String,
}

impl EspKeys {
    fn run(self, session: &mut Session) -> Outcome {
        if !self.expose_keys {
            return Err(Failure::new(
                "this shows keys: whoever has them reads the network's packets until its keys rotate; say --expose-keys if that is meant",
            ));
        }
        // Made first, so that no key is asked for that has nowhere to go.
        let file = self.output.map(|path| {
            let options = OpenOptions::new().write(true).create_new(true).mode(KEY_FILE_MODE).clone();
            let opened =
                options.open(&path).map_err(|error| Failure::new(format!("cannot make {}: {error}", path.display())));
            opened.map(|file| (file, path))
        });
        let file = file.transpose()?;
        let table = smol::block_on(session.client.esp_keys(&self.network));
        let (table, (mut file, path)) = match (table, file) {
            (Ok(table), Some(file)) => (table, file),
            (Ok(table), None) => {
                session.out.write_all(&table)?;
                return Ok(session.out.flush()?);
            }
            (Err(error), file) => {
                if let Some((_, path)) = file {
                    // It is empty, and was made here.
                    let _ = std::fs::remove_file(path);
                }
                return Err(error.into());
            }
        };
        file.write_all(&table).and_then(|()| file.sync_all()).map_err(|error| {
            Failure::new(format!("cannot write {}: {error}; what is there may be part of the keys", path.display()))
        })
    }
}
