use super::*;
use crate::cluster::ring::{self, Clock};
use proptest::prelude::*;
use std::time::Duration;

/// Four bytes choose a step: what, and with which of a few nodes, networks, services and tasks.
type Choice = [u8; 4];

/// A random swarm with the leader's clock of its keys.
struct Walk {
    swarm: Swarm,
    clock: Clock,
    monotonic: Time,
    boots: u64,
    created: u64,
}

impl Walk {
    fn new() -> Walk {
        let mut swarm = Swarm::with_workers(2);
        swarm.ok(create_network(1, Some("10.3.0.0/29")));
        swarm.ok(create_service(1, &[1], 3));
        swarm.schedule();
        let clock = Clock::new(&swarm.state, Time(0), swarm.now);
        Walk { swarm, clock, monotonic: Time(0), boots: 10, created: 10 }
    }

    fn pass(&mut self, secs: u64) {
        self.swarm.pass(secs);
        self.monotonic = self.monotonic + Duration::from_secs(secs);
    }

    fn step(&mut self, [what, a, b, c]: Choice) {
        let number = u64::from(a % 5) + 1;
        match what % 21 {
            0 => self.pass(u64::from(a)),
            1 => self.pass(u64::from(a) * 600),
            2..=4 => drop(self.swarm.schedule()),
            5 | 6 => self.lead(),
            7 => self.swarm.propose(add_node(number, if b % 4 == 0 { Role::Manager } else { Role::Worker })),
            8 => {
                self.boots += u64::from(b % 2);
                let mut open = open_session(number, self.boots);
                if let Command::OpenSession { machine, .. } = &mut open {
                    machine.resources.nano_cpus = u64::from(c % 4 + 1) * 1_000_000_000;
                }
                self.swarm.propose(open);
            }
            9 => self.swarm.propose(set_state(number, if b % 2 == 0 { NodeState::Down } else { NodeState::Ready })),
            10 => self.swarm.propose(Command::RemoveNode { node: node(number), force: b % 2 == 0, master: key(c) }),
            11 => self.create(b, c),
            12 => self.swarm.propose(Command::RemoveNetwork { id: self.any_network(a) }),
            13 => self.swarm.propose(Command::RemoveService { id: self.any_service(a) }),
            14..=16 => self.word_of_a_node(a, b, c),
            17 => self.word_on_keys(number, b, c),
            18 => self.drain(number, b),
            19 => self.change(a, b, c),
            _ => self.nonsense(a, b, c),
        }
    }

    fn create(&mut self, b: u8, c: u8) {
        self.created += 1;
        let number = self.created;
        if b.is_multiple_of(2) {
            let subnet = format!("10.3.0.{}/29", c & 0xf8);
            let subnet = b.is_multiple_of(4).then_some(subnet.as_str());
            let spec = NetworkSpec { attachable: c.is_multiple_of(2), ..network_spec(&format!("net{number}"), subnet) };
            self.swarm.propose(Command::CreateNetwork { id: network(number), spec });
        } else if b.is_multiple_of(3) {
            let (node, network) = (node(u64::from(c % 5) + 1), self.any_network(c));
            let (name, image, aliases) = ("box".to_owned(), "netns:box".to_owned(), vec![]);
            let request = AttachRequest { name, image, network, address: None, aliases };
            let boot = self.swarm.boot_of(node);
            // A hostile node takes the id of a service or another task.
            let id = match c / 5 % 4 {
                0 => TaskId(self.any_service(c).0),
                1 => pick(self.swarm.state.tasks.keys().copied(), c).unwrap_or(TaskId(id(5000 + number))),
                _ => TaskId(id(5000 + number)),
            };
            self.swarm.propose(Command::Attach { node, boot, id, request });
        } else {
            let id = self.any_network(c);
            let mut spec = service_spec(&format!("svc{number}"), &[], u64::from(c % 5));
            spec.networks = vec![(id, vec![])];
            place(&mut spec, c / 5);
            let of_task = pick(self.swarm.state.tasks.keys().copied(), b).filter(|_| c.is_multiple_of(7));
            let id = of_task.map_or(service(number), |task| ServiceId(task.0));
            self.swarm.propose(Command::CreateService { id, spec });
        }
    }

    fn change(&mut self, a: u8, b: u8, c: u8) {
        let id = self.any_service(a);
        let Some(service) = self.swarm.state.services.get(&id) else { return };
        let (version, mut spec) = (service.version, service.spec.clone());
        if b.is_multiple_of(4) {
            return self.swarm.propose(Command::RollBackService { id, version });
        }
        if let ServiceMode::Replicated { replicas } = &mut spec.mode {
            *replicas = u64::from(c % 5);
        }
        spec.container.args = vec![(c / 5 % 3).to_string()];
        if b % 4 == 1 {
            spec.networks = vec![(self.any_network(c), vec![])];
        }
        renew(&mut spec.renewal, b / 4);
        self.swarm.propose(Command::UpdateService { id, version, spec });
    }

    fn any_network(&self, choice: u8) -> NetworkId {
        pick(self.swarm.state.networks.keys().copied(), choice).unwrap_or(network(1))
    }

    fn any_service(&self, choice: u8) -> ServiceId {
        pick(self.swarm.state.services.keys().copied(), choice).unwrap_or(service(1))
    }

    fn word_of_a_node(&mut self, a: u8, b: u8, c: u8) {
        let Some(id) = pick(self.swarm.state.tasks.keys().copied(), a) else { return };
        let node = if c.is_multiple_of(16) { node(2) } else { self.swarm.task(id).node.unwrap_or(node(1)) };
        let boot = self.swarm.boot_of(node);
        if b.is_multiple_of(3) {
            self.swarm.propose(Command::ConfirmTaskGone { node, boot, id });
        } else {
            let state = STATES[usize::from(b) % STATES.len()];
            self.swarm.propose(Command::ReportTasks { node, boot, statuses: vec![(id, said(state))] });
        }
    }

    fn word_on_keys(&mut self, number: u64, b: u8, c: u8) {
        let Some(epoch) = pick(self.swarm.state.ring.epochs.iter().map(|epoch| epoch.epoch), b) else { return };
        let node = node(number);
        let boot = self.swarm.boot_of(node);
        self.swarm.propose(match c % 5 {
            0 => Command::SetReady { node, boot, epoch },
            1 => Command::SetSending { node, boot, epoch },
            2 => Command::SetPublic { node, boot, epoch, public: PublicKey([c; 32]) },
            3 => Command::RequestRotation { force: b.is_multiple_of(2) },
            _ => Command::RequestEarlyRotation { node },
        });
    }

    fn drain(&mut self, number: u64, b: u8) {
        let Some(node) = self.swarm.state.nodes.get(&node(number)) else { return };
        let (node, version, role) = (node.id, node.version, node.role);
        let availability = [Availability::Active, Availability::Pause, Availability::Drain][usize::from(b % 3)];
        let labels = BTreeMap::from([("zone".to_owned(), ["a", "b"][usize::from(b / 3 % 2)].to_owned())]);
        self.swarm.ok(Command::UpdateNode { node, version, role, availability, labels });
    }

    /// Commands that a leader would not send.
    fn nonsense(&mut self, a: u8, b: u8, c: u8) {
        let id = pick(self.swarm.state.tasks.keys().copied(), a).unwrap_or(TaskId(id(5)));
        let epoch = Epoch(u32::from(a));
        let service = self.any_service(c);
        self.swarm.propose(match b % 8 {
            0 => Command::CreateTask {
                id: TaskId(super::id(90_000 + u64::from(a))),
                service,
                slot: u64::from(c),
                bound_to: None,
            },
            1 => Command::PlaceTask { id, node: node(u64::from(c % 4)) },
            2 => Command::SetPending { id, reason: "nonsense".into() },
            3 => Command::ShutDownTask { id, remove: c.is_multiple_of(2) },
            4 => Command::Activate { epoch, late: true },
            5 => Command::Retire { epoch },
            6 => Command::DrawNext { master: key(c) },
            _ => Command::UpdateCluster {
                version: u64::from(a),
                spec: ClusterSpec::default(),
                tokens: NewTokens::default(),
                root: None,
            },
        });
    }

    /// The steps that the keys ask for; after a few nothing is asked for any more.
    fn lead(&mut self) {
        for _ in 0..4 {
            let steps = ring::plan(&self.swarm.state, self.clock.read(&self.swarm.state, self.monotonic));
            if steps.is_empty() {
                return;
            }
            for step in steps {
                super::keys::apply(&mut self.swarm, step);
            }
        }
        panic!("the key life does not come to rest");
    }
}

/// Every kind of wish for nodes.
fn place(spec: &mut ServiceSpec, choice: u8) {
    match choice % 8 {
        0 | 1 => spec.mode = ServiceMode::Global,
        2 => spec.placement.max_per_node = 1,
        3 => spec.placement.spread = vec!["zone".into()],
        4 => spec.placement.constraints = vec!["node.labels.zone==a".parse().unwrap()],
        _ => {}
    }
    spec.reservations.nano_cpus = u64::from(choice % 3) * 700_000_000;
}

/// Every kind of wish for replacements.
fn renew(renewal: &mut Renewal, choice: u8) {
    use RestartCondition::{Any, Never, OnFailure};
    renewal.update.parallelism = u64::from(choice % 3);
    renewal.update.failure_action =
        [FailureAction::Pause, FailureAction::Continue, FailureAction::RollBack][usize::from(choice / 3 % 3)];
    renewal.restart.condition = [Any, Any, OnFailure, Never][usize::from(choice / 9 % 4)];
    renewal.restart.max_attempts = u64::from(choice % 2) * 3;
}

const STATES: [TaskState; 7] = [
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Shutdown,
];

fn pick<T>(all: impl ExactSizeIterator<Item = T>, choice: u8) -> Option<T> {
    let count = all.len();
    all.enumerate().find(|(index, _)| *index == usize::from(choice) % count.max(1)).map(|(_, item)| item)
}

/// The state that a log gives.
fn replay(log: &[Vec<u8>]) -> State {
    let mut entries = log.iter().map(|bytes| postcard::from_bytes::<Entry>(bytes).unwrap());
    let mut state = State::init(&entries.next().unwrap()).unwrap();
    for entry in entries {
        drop(state.apply(&entry));
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Every step checks the invariants; here also that the same log gives the same bytes, and that in the end the
    /// wishes can be met.
    #[test]
    fn random_commands_keep_the_invariants(choices in prop::collection::vec(any::<Choice>(), 1..100)) {
        let mut walk = Walk::new();
        for choice in choices {
            walk.step(choice);
        }
        let bytes = walk.swarm.state.to_bytes().unwrap();
        prop_assert_eq!(&*replay(&walk.swarm.log).to_bytes().unwrap(), &*bytes);
        prop_assert_eq!(&*State::from_bytes(&bytes).unwrap().to_bytes().unwrap(), &*bytes);
        let mut swarm = walk.swarm;
        let tasks: Vec<(TaskId, Option<NodeId>)> = swarm.state.tasks.values().map(|task| (task.id, task.node)).collect();
        for service in swarm.state.services.keys().copied().collect::<Vec<_>>() {
            swarm.propose(Command::RemoveService { id: service });
        }
        for (id, node) in tasks {
            if let Some(node) = node {
                swarm.ok(Command::ConfirmTaskGone { node, boot: swarm.boot_of(node), id });
            }
        }
        prop_assert!(swarm.state.services.is_empty() && swarm.state.tasks.is_empty());
        prop_assert!(swarm.state.networks.values().all(|network| network.addresses.is_empty()), "leaked addresses");
    }

    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(State::from_bytes(&bytes).is_err());
    }

    #[test]
    fn damaged_states_do_not_panic(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = Walk::new().swarm.state.to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Damage of a text or a number is still a state; the store's seal finds it.
        drop(State::from_bytes(&bytes));
        prop_assert!(State::from_bytes(&bytes[..at]).is_err());
    }
}

#[test]
fn a_state_with_bytes_too_many_is_refused() {
    let mut bytes = Swarm::new().state.to_bytes().unwrap().to_vec();
    bytes.push(0);
    let text = State::from_bytes(&bytes).err().unwrap().to_string();
    assert_eq!(text, "the stored state is unreadable: 1 bytes too many");
}

#[test]
fn churn_of_ten_subnets_leaks_nothing() {
    let mut swarm = Swarm::with_workers(3);
    swarm.ok(create_network(1, Some("10.3.0.0/27")));
    swarm.ok(create_service(1, &[1], 20));
    let mut given = 0;
    for round in 0..35 {
        swarm.plan().into_iter().for_each(|command| swarm.quick(command));
        for id in swarm.live(service(1)).into_values().skip(round % 3).step_by(2) {
            let node = swarm.task(id).node.unwrap();
            let boot = swarm.boot_of(node);
            swarm.quick(Command::ReportTasks { node, boot, statuses: vec![(id, said(TaskState::Failed))] });
            // Some nodes take their time to confirm.
            if given % 7 != 0 {
                swarm.quick(Command::ConfirmTaskGone { node, boot, id });
            }
            given += 1;
        }
        let late: Vec<TaskId> = swarm.state.tasks.values().filter(|task| !task.is_live()).map(|task| task.id).collect();
        for id in late.into_iter().skip(round % 2) {
            let node = swarm.task(id).node.unwrap();
            swarm.quick(Command::ConfirmTaskGone { node, boot: swarm.boot_of(node), id });
        }
        swarm.check();
        swarm.pass(5);
    }
    assert!(given >= 10 * 29, "{given}");
    swarm.schedule();
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 20);
}
