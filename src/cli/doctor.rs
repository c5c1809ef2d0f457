//! `formic doctor`.

use super::session::{Failure, Session};
use crate::api::client::{ClientError, Target};
use crate::api::types::Examination;
use crate::doctor::{self, Finding, Report};
use argh::{ArgsInfo, FromArgs};

/// Examines this host and its way to all other hosts of the swarm, and says in plain words what is wrong: kernel,
/// devices, capabilities, ports, clock, MTU, cipher, and which port is blocked in which direction. Takes up to 10
/// seconds. Works without a daemon too. Exit code 1 if something is wrong.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "doctor")]
pub(super) struct Doctor {
    /// show JSON
    #[argh(switch)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self, session: &mut Session) -> Result<u8, Failure> {
        let report = Report::new(examine(session)?);
        if self.json {
            session.print_json(&report)?
        } else {
            session.print(report.describe())?
        }
        Ok(u8::from(!report.well))
    }
}

fn examine(session: &Session) -> Result<Vec<Finding>, Failure> {
    let asked = smol::block_on(session.client.post::<Examination>(&Target::new(&["formic", "examination"]), &()));
    match asked {
        Ok(found) => Ok([doctor::machine(true), doctor::swarm(&found)].concat()),
        Err(ClientError::Unreachable { socket, source }) => {
            let text = format!("none answers at {} ({source}): only this host is examined", socket.display());
            Ok([doctor::machine(false), vec![Finding::note("daemon", text)]].concat())
        }
        Err(error) => Err(error.into()),
    }
}
