//! `formic swarm`: init, leave, tokens, keys, settings. Joining is in `swarm_join`, the root certificate in `swarm_ca`,
//! locked managers in `swarm_unlock`.

use super::session::{Failure, Outcome, Session};
use super::swarm_ca::Ca;
use super::swarm_join::Join;
use super::swarm_unlock::{Unlock, UnlockKey, show_unlock_key};
use super::{duration, table};
use crate::api::client::Target;
use crate::api::types::{
    CaConfig, Dispatcher, EncryptionConfig, FormicSwarmSpec, KeyEpoch, KeyRing, LateNode, Node, Orchestration,
    Swarm as SwarmInfo, SwarmInit, SwarmSpec,
};
use argh::{ArgsInfo, FromArgs};
use std::time::{Duration, Instant};

/// Manages the swarm that this host is part of.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "swarm")]
pub(super) struct Swarm {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Verb {
    Init(Init),
    Join(Join),
    Leave(Leave),
    JoinToken(JoinToken),
    RotateKeys(RotateKeys),
    Keys(Keys),
    Update(Update),
    Ca(Ca),
    Unlock(Unlock),
    UnlockKey(UnlockKey),
}

impl Swarm {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match self.verb {
            Verb::Init(verb) => verb.run(session),
            Verb::Join(verb) => verb.run(session),
            Verb::Leave(verb) => verb.run(session),
            Verb::JoinToken(verb) => verb.run(session),
            Verb::RotateKeys(verb) => verb.run(session),
            Verb::Keys(verb) => verb.run(session),
            Verb::Update(verb) => verb.run(session),
            Verb::Ca(verb) => verb.run(session),
            Verb::Unlock(verb) => verb.run(session),
            Verb::UnlockKey(verb) => verb.run(session),
        }
    }
}

/// Makes a swarm with this host as its manager.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "init")]
struct Init {
    /// address that other hosts are told: IP, IP:PORT or an interface
    #[argh(option, arg_name = "address", default = "String::new()")]
    advertise_addr: String,
    /// where to listen for the control protocol (default: 0.0.0.0:2377)
    #[argh(option, arg_name = "address", default = "String::from(\"0.0.0.0:2377\")")]
    listen_addr: String,
    /// address or interface of the data path, if another
    #[argh(option, arg_name = "address", default = "String::new()")]
    data_path_addr: String,
    /// UDP port of the data path (default: 4500)
    #[argh(option, arg_name = "port", default = "0")]
    data_path_port: u16,
    /// whether tasks are placed on this host: active, pause or drain
    #[argh(option, arg_name = "word", default = "String::new()")]
    availability: String,
    /// interval of heartbeats (default: 5s); a host is down after three missed
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    dispatcher_heartbeat: Option<Duration>,
    /// interval of key rotations (default: 12h)
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    key_rotation_interval: Option<Duration>,
    /// life of node certificates (default: 90d)
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    cert_expiry: Option<Duration>,
    /// ended tasks that are kept to be looked at, for each replica (default: 5)
    #[argh(option, arg_name = "count")]
    task_history_limit: Option<u32>,
    /// offloads that no node may use, with commas between them: tso, uso, udp-gso, udp-gro, join-tcp, join-udp
    #[argh(option, arg_name = "list")]
    disable_offload: Option<String>,
    /// pool that networks are cut from (default: 10.0.0.0/8)
    #[argh(option, arg_name = "subnet")]
    default_addr_pool: Vec<String>,
    /// prefix length of networks cut from the pool (default: 24)
    #[argh(option, arg_name = "length", default = "0")]
    default_addr_pool_mask_length: u8,
    /// lock the managers: after a start of its daemon each needs the unlock key
    #[argh(switch)]
    autolock: bool,
    /// on a manager whose swarm has lost the majority of its managers: go on with this one alone
    #[argh(switch)]
    force_new_cluster: bool,
}

impl Init {
    fn run(self, session: &mut Session) -> Outcome {
        let spec = Settings {
            heartbeat: self.dispatcher_heartbeat,
            rotation: self.key_rotation_interval,
            certificate: self.cert_expiry,
            task_history: self.task_history_limit,
            disabled_offloads: self.disable_offload,
            autolock: self.autolock.then_some(true),
        };
        let spec = spec.to_spec()?;
        let request = SwarmInit {
            listen_addr: self.listen_addr,
            advertise_addr: self.advertise_addr,
            data_path_addr: self.data_path_addr,
            data_path_port: u32::from(self.data_path_port),
            default_addr_pool: self.default_addr_pool,
            subnet_size: u32::from(self.default_addr_pool_mask_length),
            availability: self.availability,
            spec,
            auto_lock_managers: self.autolock,
            force_new_cluster: self.force_new_cluster,
        };
        let id: String = session.post(&Target::new(&["swarm", "init"]), &request)?;
        session.print(format!("Swarm initialized: current node ({id}) is now a manager.\n"))?;
        print_join_command(session, "worker")?;
        session.print(
            "To add a manager to this swarm, run 'formic swarm join-token manager' and follow the instructions.",
        )?;
        if self.autolock {
            session.print("")?;
            show_unlock_key(session)?;
        }
        Ok(())
    }
}

/// The settings that a command line can make; what is not given stays as it is.
#[derive(PartialEq, Eq)]
struct Settings {
    heartbeat: Option<Duration>,
    rotation: Option<Duration>,
    certificate: Option<Duration>,
    task_history: Option<u32>,
    /// Names with commas between them.
    disabled_offloads: Option<String>,
    autolock: Option<bool>,
}

impl Settings {
    const NONE: Settings = Settings {
        heartbeat: None,
        rotation: None,
        certificate: None,
        task_history: None,
        disabled_offloads: None,
        autolock: None,
    };

    /// As the API takes them: zero leaves a duration as it is.
    fn to_spec(&self) -> Result<SwarmSpec, Failure> {
        if [self.heartbeat, self.rotation, self.certificate].contains(&Some(Duration::ZERO)) {
            return Err(Failure::new("an interval must not be zero"));
        }
        let rotation = self.rotation.unwrap_or_default();
        if rotation.subsec_nanos() != 0 {
            return Err(Failure::new("the key rotation interval must be whole seconds"));
        }
        let nanoseconds =
            |duration: Option<Duration>| u64::try_from(duration.unwrap_or_default().as_nanos()).map_err(Failure::new);
        Ok(SwarmSpec {
            orchestration: Orchestration { task_history_retention_limit: self.task_history.map(i64::from) },
            dispatcher: Dispatcher { heartbeat_period: nanoseconds(self.heartbeat)? },
            ca_config: CaConfig { node_cert_expiry: nanoseconds(self.certificate)?, ..CaConfig::default() },
            encryption_config: EncryptionConfig { auto_lock_managers: self.autolock },
            formic: FormicSwarmSpec {
                key_rotation_seconds: rotation.as_secs(),
                disabled_offloads: self
                    .disabled_offloads
                    .as_ref()
                    .map(|list| list.split(',').map(str::to_owned).collect()),
            },
            ..SwarmSpec::default()
        })
    }
}

fn print_join_command(session: &mut Session, role: &str) -> Outcome {
    let swarm: SwarmInfo = session.get(&Target::new(&["swarm"]))?;
    let address = manager_address(session)?;
    let token = if role == "manager" { swarm.join_tokens.manager } else { swarm.join_tokens.worker };
    session.print(format!(
        "To add a {role} to this swarm, run the following command:\n\n    formic swarm join --token {token} {address}\n"
    ))
}

fn manager_address(session: &Session) -> Result<String, Failure> {
    let info = session.info()?;
    let node: Node = session.get(&Target::new(&["nodes", &info.swarm.node_id]))?;
    Ok(node.manager_status.map_or(info.swarm.node_addr, |status| status.addr))
}

/// Leaves the swarm: the tasks here end, keys and state are erased.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "leave")]
struct Leave {
    /// leave even if this host is the manager, which ends the swarm
    #[argh(switch, short = 'f')]
    force: bool,
}

impl Leave {
    fn run(self, session: &mut Session) -> Outcome {
        session.post_only(&forced(&["swarm", "leave"], self.force), &serde_json::json!({}))?;
        session.print("Node left the swarm.")
    }
}

fn forced(path: &[&str], force: bool) -> Target {
    let target = Target::new(path);
    if force { target.with("force", "1") } else { target }
}

/// Shows the token that a host needs to join.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "join-token")]
struct JoinToken {
    /// show the token only
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// replace the token by a new one
    #[argh(switch)]
    rotate: bool,
    /// worker or manager
    #[argh(positional)]
    role: String,
}

impl JoinToken {
    fn run(self, session: &mut Session) -> Outcome {
        let role = self.role.as_str();
        let parameter = match role {
            "worker" => "rotateWorkerToken",
            "manager" => "rotateManagerToken",
            _ => return Err(Failure::new(format!("unknown role {role:?}: it must be worker or manager"))),
        };
        if self.rotate {
            let swarm: SwarmInfo = session.get(&Target::new(&["swarm"]))?;
            let version = swarm.cluster.version.index.to_string();
            let target = Target::new(&["swarm", "update"]).with("version", &version).with(parameter, "true");
            session.post_only(&target, &swarm.cluster.spec)?;
        }
        if !self.quiet {
            return print_join_command(session, role);
        }
        let swarm: SwarmInfo = session.get(&Target::new(&["swarm"]))?;
        session.print(if role == "manager" { swarm.join_tokens.manager } else { swarm.join_tokens.worker })
    }
}

/// Rotates the managers' keys now, beside the timer. Nothing is lost meanwhile.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "rotate-keys")]
struct RotateKeys {
    /// go on without the hosts that are late
    #[argh(switch)]
    force: bool,
    /// wait until all send with the new epoch
    #[argh(switch)]
    wait: bool,
}

/// How long `--wait` waits: as long as the managers wait for late hosts, and a little more.
const ROTATION_DEADLINE: Duration = Duration::from_secs(660);

/// How often `--wait` looks.
const ROTATION_POLL: Duration = Duration::from_millis(200);

impl RotateKeys {
    fn run(self, session: &mut Session) -> Outcome {
        let before = current(&keys(session)?).map_or(0, |epoch| epoch.epoch);
        session.post_only(&forced(&["formic", "rotate-keys"], self.force), &serde_json::json!({}))?;
        if !self.wait {
            return session.print(format!(
                "Key rotation requested: epoch {before} is the current one (see 'formic swarm keys')."
            ));
        }
        let deadline = Instant::now() + ROTATION_DEADLINE;
        loop {
            let ring = keys(session)?;
            let done = current(&ring).filter(|epoch| epoch.epoch > before && epoch.sending >= epoch.participants);
            if let Some(epoch) = done {
                return session.print(format!("Keys rotated: epoch {before} -> {}.", epoch.epoch));
            }
            if Instant::now() >= deadline {
                let late: Vec<String> = ring.late.iter().map(describe_late).collect();
                return Err(Failure::new(format!("the rotation is not through: {}", late.join("; "))));
            }
            std::thread::sleep(ROTATION_POLL);
        }
    }
}

fn keys(session: &Session) -> Result<KeyRing, Failure> {
    session.get(&Target::new(&["formic", "keys"]))
}

fn current(ring: &KeyRing) -> Option<&KeyEpoch> {
    ring.epochs.iter().find(|epoch| epoch.phase == "current")
}

/// Shows the key ring's epochs, their ages and phases, and which hosts are waited for. Never a key.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "keys")]
struct Keys {
    /// show JSON
    #[argh(switch)]
    json: bool,
}

impl Keys {
    fn run(self, session: &mut Session) -> Outcome {
        let ring = keys(session)?;
        if self.json {
            return session.print_json(&ring);
        }
        session.print(describe(&ring))
    }
}

/// The ring as a table.
pub(super) fn describe(ring: &KeyRing) -> String {
    let rows: Vec<[String; 6]> = ring.epochs.iter().map(row).collect();
    let table = table::render(["EPOCH", "PHASE", "AGE", "CURRENT SINCE", "READY", "SENDING"], &rows);
    let mut notes = format!("Rotation every {}", duration::short(ring.rotation_secs));
    if let Some(ago) = ring.requested_secs_ago {
        notes.push_str(&format!("; one was requested {} ago", duration::short(ago)));
    } else if let Some(age) = current(ring).and_then(|epoch| epoch.activated_secs_ago) {
        notes.push_str(&format!("; the next in {}", duration::short(ring.rotation_secs.saturating_sub(age))));
    }
    let late: String = ring.late.iter().map(|late| format!("\nWaiting: {}.", describe_late(late))).collect();
    format!("{table}\n\n{notes}.{late}")
}

fn describe_late(late: &LateNode) -> String {
    let name = if late.hostname.is_empty() { &late.node } else { &late.hostname };
    format!("{name} {}", late.reason)
}

fn row(epoch: &KeyEpoch) -> [String; 6] {
    [
        epoch.epoch.to_string(),
        epoch.phase.clone(),
        duration::short(epoch.handed_out_secs_ago),
        epoch.activated_secs_ago.map(duration::short).unwrap_or_default(),
        format!("{}/{}", epoch.ready, epoch.participants),
        format!("{}/{}", epoch.sending, epoch.participants),
    ]
}

/// Changes settings of the swarm.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "update")]
struct Update {
    /// interval of heartbeats; a host is down after three missed
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    dispatcher_heartbeat: Option<Duration>,
    /// interval of key rotations
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    key_rotation_interval: Option<Duration>,
    /// life of node certificates; each node's next one has it
    #[argh(option, arg_name = "duration", from_str_fn(duration::parse))]
    cert_expiry: Option<Duration>,
    /// ended tasks that are kept to be looked at, for each replica
    #[argh(option, arg_name = "count")]
    task_history_limit: Option<u32>,
    /// offloads that no node may use from now on, with commas between them, or none
    #[argh(option, arg_name = "list")]
    disable_offload: Option<String>,
    /// lock the managers: after a start of its daemon each needs the unlock key
    #[argh(option, arg_name = "true|false")]
    autolock: Option<bool>,
}

impl Update {
    fn run(self, session: &mut Session) -> Outcome {
        let settings = Settings {
            heartbeat: self.dispatcher_heartbeat,
            rotation: self.key_rotation_interval,
            certificate: self.cert_expiry,
            task_history: self.task_history_limit,
            disabled_offloads: self.disable_offload,
            autolock: self.autolock,
        };
        if settings == Settings::NONE {
            return Err(Failure::new("nothing to update: see 'formic swarm update --help' for what can be changed"));
        }
        let spec = settings.to_spec()?;
        let swarm: SwarmInfo = session.get(&Target::new(&["swarm"]))?;
        let version = swarm.cluster.version.index.to_string();
        session.post_only(&Target::new(&["swarm", "update"]).with("version", &version), &spec)?;
        session.print("Swarm updated.")?;
        // Also when it was on: the managers are locked once the key was shown, and it may never have been.
        if self.autolock == Some(true) { show_unlock_key(session) } else { Ok(()) }
    }
}
