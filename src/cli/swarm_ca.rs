//! `formic swarm ca`: the root certificate, and its replacement.

use super::duration;
use super::session::{Failure, Outcome, Session};
use crate::api::client::Target;
use crate::api::types::Swarm as SwarmInfo;
use argh::{ArgsInfo, FromArgs};
use std::time::{Duration, Instant};

/// Shows the swarm's root certificate, or replaces it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ca")]
pub(super) struct Ca {
    /// replace it: all hosts renew their certificates, and join tokens are new
    #[argh(switch)]
    rotate: bool,
    /// with --rotate: life of node certificates from now on
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    cert_expiry: Option<Duration>,
    /// with --rotate: do not wait until all hosts have renewed
    #[argh(switch, short = 'd')]
    detach: bool,
    /// with --rotate: show no progress
    #[argh(switch, short = 'q')]
    quiet: bool,
}

/// How long to wait for the hosts; the replacement goes on after that.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often to look.
const POLL: Duration = Duration::from_millis(200);

impl Ca {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let swarm = swarm(session)?;
        if !self.rotate {
            if self.cert_expiry.is_some() || self.detach || self.quiet {
                return Err(Failure::new("--cert-expiry, --detach and --quiet need --rotate"));
            }
            return session.print(swarm.cluster.tls_info.trust_root.trim_end());
        }
        let mut spec = swarm.cluster.spec;
        spec.ca_config.force_rotate += 1;
        if let Some(life) = self.cert_expiry {
            if life.is_zero() {
                return Err(Failure::new("an interval must not be zero"));
            }
            spec.ca_config.node_cert_expiry = u64::try_from(life.as_nanos()).map_err(Failure::new)?;
        }
        let version = swarm.cluster.version.index.to_string();
        session.post_only(&Target::new(&["swarm", "update"]).with("version", &version), &spec)?;
        if self.detach {
            return Ok(());
        }
        wait(session, self.quiet)
    }
}

fn swarm(session: &Session) -> Result<SwarmInfo, Failure> {
    session.get(&Target::new(&["swarm"]))
}

fn wait(session: &mut Session, quiet: bool) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    let mut shown = String::new();
    loop {
        let swarm = swarm(session)?.cluster;
        let nodes = session.nodes()?;
        let behind: Vec<&str> = nodes
            .iter()
            .map(|node| &node.description)
            .filter(|node| node.tls_info.trust_root != swarm.tls_info.trust_root)
            .map(|node| node.hostname.as_str())
            .collect();
        if !swarm.root_rotation_in_progress && behind.is_empty() {
            return session.print(swarm.tls_info.trust_root.trim_end());
        }
        let line = match behind.as_slice() {
            [] => "all certificates renewed".to_owned(),
            names => {
                format!("waiting for new certificates of {} of {}: {}", names.len(), nodes.len(), names.join(", "))
            }
        };
        if Instant::now() >= deadline {
            let text = format!("{line}; the former root stays trusted until they have renewed or are removed");
            return Err(Failure::new(text));
        }
        if !quiet && line != shown {
            session.complain(&line);
            shown = line;
        }
        std::thread::sleep(POLL);
    }
}
