use super::*;

fn public(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

fn remove(number: u64, force: bool) -> Command {
    Command::RemoveNode { node: node(number), force, master: key(40) }
}

#[test]
fn a_boot_keeps_its_index_and_an_older_one_cannot_come_back() {
    let mut swarm = Swarm::new();
    swarm.ok(add_node(1, Role::Worker));
    assert_eq!(swarm.state.nodes[&node(1)].state, NodeState::Unknown);
    assert!(swarm.refused(set_state(1, NodeState::Ready)).contains("has not opened a session yet"));
    assert_eq!(swarm.apply(open_session(1, 1)).0, Ok(Reply::BootIndex(4)));
    swarm.ok(set_state(1, NodeState::Down));
    assert_eq!(swarm.apply(open_session(1, 1)).0, Ok(Reply::BootIndex(4)));
    assert_eq!(swarm.state.nodes[&node(1)].state, NodeState::Ready);
    assert_eq!(swarm.apply(open_session(1, 2)).0, Ok(Reply::BootIndex(7)));
    let text = format!("boot 0000000000000001 of node {} is over: a newer one has opened a session", node(1));
    assert_eq!(swarm.refused(open_session(1, 1)), text);
    for number in 3..40 {
        swarm.ok(open_session(1, number));
    }
    assert!(swarm.refused(open_session(1, 38)).contains("is over"));
    assert!(swarm.refused(open_session(2, 1)).contains("not found"));
}

#[test]
fn a_boot_keeps_its_number_of_queues() {
    let mut swarm = Swarm::with_workers(1);
    let open = |boot, count| {
        let mut command = open_session(1, boot);
        if let Command::OpenSession { queues, .. } = &mut command {
            *queues = Queues::try_from(count).unwrap();
        }
        command
    };
    swarm.ok(open(70, 4));
    assert_eq!(swarm.state.nodes[&node(1)].queues.count(), 4);
    swarm.ok(open(70, 4));
    assert!(swarm.refused(open(70, 2)).contains("sends with 4 queues, not 2"));
    swarm.ok(open(71, 2));
    assert_eq!(swarm.state.nodes[&node(1)].queues.count(), 2);
    assert_eq!(swarm.state.nodes[&node(1)].record_index, swarm.state.index);
}

#[test]
fn a_new_boot_starts_without_publics_and_progress() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(Command::Activate { epoch: Epoch(2), late: true });
    swarm.ok(Command::DrawNext { master: key(9) });
    let told =
        |epoch, boot_number, public| Command::SetPublic { node: node(1), boot: boot(boot_number), epoch, public };
    swarm.ok(told(Epoch(2), 1, public(1)));
    swarm.ok(told(Epoch(3), 1, public(2)));
    let record = swarm.state.nodes[&node(1)].record_index;
    assert_eq!(record, swarm.state.index);
    swarm.ok(told(Epoch(3), 1, public(2)));
    swarm.ok(told(Epoch(7), 1, public(3)));
    assert_eq!(swarm.state.nodes[&node(1)].record_index, record);
    let text = swarm.refused(told(Epoch(3), 1, public(4)));
    assert!(text.contains("told a second public for epoch 3"), "{text}");
    assert!(swarm.refused(told(Epoch(3), 9, public(2))).contains("is not the newest"));
    swarm.ok(Command::SetReady { node: node(1), boot: boot(1), epoch: Epoch(3) });
    swarm.ok(Command::SetSending { node: node(1), boot: boot(1), epoch: Epoch(2) });
    let progress = |swarm: &Swarm| {
        let epochs = &swarm.state.ring.epochs;
        epochs.iter().any(|epoch| epoch.ready.contains(&node(1)) || epoch.sending.contains(&node(1)))
    };
    assert!(progress(&swarm));
    swarm.ok(open_session(1, 50));
    assert!(!progress(&swarm) && swarm.state.nodes[&node(1)].publics.is_empty());
    swarm.ok(told(Epoch(3), 50, public(4)));
}

/// What was under way when the node restarted is refused: it would count as the new boot's readiness, or free the
/// address of a task that the new boot runs.
#[test]
fn the_late_word_of_a_former_boot_is_not_counted_for_the_new_one() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(Command::Activate { epoch: Epoch(2), late: true });
    swarm.ok(Command::DrawNext { master: key(9) });
    swarm.ok(create_network(1, None));
    swarm.ok(create_service(1, &[1], 2));
    swarm.schedule();
    let of_node = |task: &&Task| task.node == Some(node(1));
    let task = swarm.state.tasks.values().find(of_node).unwrap().id;
    swarm.ok(open_session(1, 50));
    let late = |number| {
        let (node, boot) = (node(1), boot(number));
        [
            Command::SetReady { node, boot, epoch: Epoch(3) },
            Command::SetSending { node, boot, epoch: Epoch(2) },
            Command::ReportTasks { node, boot, statuses: vec![(task, said(TaskState::Failed))] },
            Command::ConfirmTaskGone { node, boot, id: task },
        ]
    };
    for command in late(1) {
        let text = swarm.refused(command);
        assert_eq!(text, format!("boot {} is not the newest of node {}", boot(1), node(1)));
    }
    assert!(swarm.task(task).is_live() && !swarm.task(task).attachments.is_empty());
    late(50).into_iter().for_each(|command| drop(swarm.ok(command)));
}

#[test]
fn an_epochs_publics_leave_the_record_with_it() {
    let mut swarm = Swarm::with_workers(1);
    let told = |epoch| Command::SetPublic { node: node(1), boot: boot(1), epoch, public: public(1) };
    swarm.ok(told(Epoch(1)));
    swarm.ok(told(Epoch(2)));
    swarm.ok(Command::Activate { epoch: Epoch(2), late: true });
    assert_eq!(swarm.state.nodes[&node(1)].publics.len(), 2);
    assert_eq!(swarm.ok(Command::Retire { epoch: Epoch(1) }), [Effect::Compact]);
    assert_eq!(swarm.state.nodes[&node(1)].publics.len(), 1);
    assert_eq!(swarm.state.nodes[&node(1)].record_index, swarm.state.index);
}

#[test]
fn removal_needs_a_node_that_is_down_or_force_and_leaves_a_manager() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(add_node(9, Role::Manager));
    assert!(swarm.refused(remove(9, true)).contains("is the last manager of the swarm and can't be removed"));
    assert_eq!(swarm.refused(remove(1, false)), format!("node {} is not down and can't be removed", node(1)));
    swarm.ok(set_state(1, NodeState::Down));
    assert_eq!(swarm.ok(remove(1, false)), [Effect::EndSession(node(1)), Effect::Compact]);
    assert_eq!(swarm.ok(remove(2, true)), [Effect::EndSession(node(2)), Effect::Compact]);
    assert_eq!(swarm.refused(remove(2, true)), format!("node {} not found", node(2)));
    swarm.ok(add_node(8, Role::Manager));
    assert!(swarm.refused(remove(9, true)).contains("must be demoted to worker before removal"));
    swarm.ok(set_role(&swarm.state, 9, Role::Worker));
    swarm.ok(remove(9, false));
}

fn set_role(state: &State, number: u64, role: Role) -> Command {
    let Node { id, version, availability, labels, .. } = &state.nodes[&node(number)];
    let (version, availability) = (*version, *availability);
    Command::UpdateNode { node: *id, version, role, availability, labels: labels.clone() }
}

#[test]
fn a_seat_is_never_taken_twice_and_one_manager_stays() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(add_node(9, Role::Manager));
    let first = swarm.state.nodes[&node(9)].seat;
    assert_eq!((first, swarm.state.nodes[&node(1)].seat), (swarm.state.index, 0));
    let last = "attempting to demote the last manager of the swarm";
    assert_eq!(swarm.refused(set_role(&swarm.state, 9, Role::Worker)), last);
    swarm.ok(set_role(&swarm.state, 1, Role::Manager));
    swarm.ok(set_role(&swarm.state, 9, Role::Worker));
    swarm.ok(set_role(&swarm.state, 9, Role::Manager));
    assert!(swarm.state.nodes[&node(9)].seat > first);
    // A demoted one is a manager as long as the consensus counts on it.
    swarm.ok(set_role(&swarm.state, 9, Role::Worker));
    let there = Manager { seat: first, voter: true, address: "10.0.0.9:2377".parse().unwrap() };
    swarm.state.set_managers(BTreeMap::from([(node(9), there)]));
    assert!(swarm.refused(remove(9, true)).contains("must be demoted to worker before removal"));
    let seat = |swarm: &Swarm| {
        let views = swarm.state.manager_views();
        assert_eq!(views.len(), 2);
        views.iter().find(|view| view.node == node(9)).map(|view| view.seat)
    };
    assert_eq!(seat(&swarm), Some(first));
    // Promoted again, it keeps the former seat as long as that counts for a majority, and takes the new one then.
    swarm.ok(set_role(&swarm.state, 9, Role::Manager));
    assert_eq!(seat(&swarm), Some(first));
    swarm.state.set_managers(BTreeMap::new());
    assert_eq!(seat(&swarm), Some(swarm.state.nodes[&node(9)].seat));
    swarm.ok(set_role(&swarm.state, 9, Role::Worker));
    for number in 20..26 {
        swarm.ok(add_node(number, Role::Manager));
    }
    assert!(swarm.refused(set_role(&swarm.state, 9, Role::Manager)).contains("limit of 7 managers"));
}

#[test]
fn removal_throws_next_away_and_shuts_the_node_out() {
    let mut swarm = Swarm::with_workers(3);
    swarm.ok(create_network(1, None));
    swarm.ok(create_service(1, &[1], 3));
    swarm.schedule();
    let generation = swarm.state.ring.generation;
    swarm.ok(remove(1, true));
    let next = swarm.state.ring.phase(EpochPhase::Next).unwrap();
    assert_eq!(next.epoch, Epoch(3));
    assert_eq!(*next.master.expose(), [40; 32]);
    assert_eq!(next.participants, BTreeSet::from([node(2), node(3)]));
    assert_eq!(swarm.state.ring.request, Some(RotationRequest { at: swarm.now, deadline_secs: 30 }));
    assert!(swarm.state.ring.generation > generation);
    let note = &swarm.state.gone[&node(1)];
    assert_eq!(note.generation, swarm.state.ring.generation);
    assert_eq!(note.until, UnixTime(START + 90 * 86_400 + 600));
    assert!(swarm.state.tasks.values().all(|task| task.node != Some(node(1))));
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 2);
    assert!(swarm.refused(add_node(1, Role::Worker)).contains("already exists"));
    swarm.schedule();
    assert_eq!(swarm.live(service(1)).len(), 3);
    // Epoch 2 is never used again, also by a second removal.
    swarm.ok(remove(2, true));
    swarm.ok(Command::Activate { epoch: Epoch(4), late: true });
    assert_eq!(swarm.state.ring.keep_previous_secs, 30);
    swarm.ok(Command::Retire { epoch: Epoch(1) });
    swarm.ok(Command::DrawNext { master: key(41) });
    assert_eq!(swarm.state.ring.phase(EpochPhase::Next).unwrap().epoch, Epoch(5));
    // The notes go when the certificates have expired.
    swarm.pass(91 * 86_400);
    swarm.ok(Command::Activate { epoch: Epoch(5), late: true });
    assert!(swarm.state.gone.is_empty());
}

#[test]
fn updates_are_in_sequence() {
    let mut swarm = Swarm::with_workers(1);
    let version = swarm.state.nodes[&node(1)].version;
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let update = |version, labels: &BTreeMap<String, String>| Command::UpdateNode {
        node: node(1),
        version,
        role: Role::Worker,
        availability: Availability::Drain,
        labels: labels.clone(),
    };
    swarm.ok(update(version, &labels));
    assert_eq!(swarm.refused(update(version, &labels)), "update out of sequence");
    assert_eq!(swarm.state.nodes[&node(1)].labels, labels);
    let version = swarm.state.nodes[&node(1)].version;
    let long = BTreeMap::from([("a".to_owned(), "b".repeat(limits::LABEL_BYTES))]);
    assert!(swarm.refused(update(version, &long)).contains("16384 are allowed"));
    let spec = || ClusterSpec { heartbeat_secs: 7, ..ClusterSpec::default() };
    swarm.ok(Command::UpdateCluster { version: 1, spec: spec(), tokens: NewTokens::default(), root: None });
    assert_eq!(
        swarm.refused(Command::UpdateCluster { version: 1, spec: spec(), tokens: NewTokens::default(), root: None }),
        "update out of sequence"
    );
    assert_eq!(swarm.state.cluster.spec.heartbeat_secs, 7);
}

#[test]
fn settings_out_of_range_are_refused_at_the_start_and_later() {
    let base = ClusterSpec::default;
    let pool = |pool: &str, subnet_prefix| ClusterSpec { address_pool: pool.parse().unwrap(), subnet_prefix, ..base() };
    for (spec, text) in [
        (ClusterSpec { heartbeat_secs: 0, ..base() }, "heartbeat period of 0 s is out of range: 1 to 300 s"),
        (
            ClusterSpec { key_rotation_secs: 59, ..base() },
            "key rotation interval of 59 s is out of range: 60 to 2592000 s",
        ),
        (
            ClusterSpec { certificate_secs: 60, ..base() },
            "certificate life of 60 s is out of range: 3600 to 315360000 s",
        ),
        (ClusterSpec { data_path_port: 0, ..base() }, "data path port must not be 0"),
        (pool("fd00::/48", 64), "address pool fd00::/48: IPv6 is not supported yet"),
        (pool("10.1.2.3/8", 24), "address pool 10.1.2.3/8 has host bits set: did you mean 10.0.0.0/8?"),
        (
            pool("10.0.0.0/24", 24),
            "subnet size /24 does not fit: it must be narrower than the pool 10.0.0.0/24 and at most /30",
        ),
        (
            pool("10.0.0.0/8", 31),
            "subnet size /31 does not fit: it must be narrower than the pool 10.0.0.0/8 and at most /30",
        ),
    ] {
        let entry = Entry { at: UnixTime(START), command: init_command(spec.clone()) };
        assert_eq!(State::init(&entry).err().unwrap().to_string(), text);
        assert_eq!(
            Swarm::new().refused(Command::UpdateCluster { version: 1, spec, tokens: NewTokens::default(), root: None }),
            text
        );
    }
}

#[test]
fn a_log_starts_with_init_and_has_one() {
    let entry = Entry { at: UnixTime(START), command: add_node(1, Role::Manager) };
    assert!(State::init(&entry).is_err());
    let mut swarm = Swarm::new();
    assert_eq!(swarm.state.index, 1);
    assert_eq!(swarm.refused(init_command(ClusterSpec::default())), "the swarm is initialised already");
}

#[test]
fn new_join_tokens_take_the_place_of_the_old_ones() {
    let mut swarm = Swarm::new();
    let tokens = NewTokens { worker: Some(Zeroizing::new([7; 16])), ..NewTokens::default() };
    swarm.ok(Command::UpdateCluster { version: 1, spec: ClusterSpec::default(), tokens, root: None });
    assert_eq!((*swarm.state.cluster.worker_secret, *swarm.state.cluster.manager_secret), ([7; 16], [2; 16]));
}
