//! Several managers: who leads in which term, where the key ring stands, whether all of them show the same, and whether
//! the hosts run what they show.

use crate::host::Host;
use crate::swarm::{SETTLE, Swarm, list, text};
use crate::wait::{so, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;

/// What every manager has to show alike.
const SHOWN: [&str; 5] = ["/swarm", "/nodes", "/networks", "/services", "/tasks"];

/// Where the managers' key ring stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// The epoch that is sent with.
    pub current: u64,
    /// The epoch that is handed out.
    pub next: Option<u64>,
    /// A rotation was asked for and has not happened yet.
    pub requested: bool,
    /// Who is waited for, and why.
    pub late: Vec<String>,
}

impl Ring {
    /// As a host's manager shows it.
    pub fn of(host: &Host) -> Result<Ring, String> {
        let ring = host.try_get("/formic/keys")?;
        let epochs = list(ring["epochs"].clone());
        let of_phase = |phase: &str| epochs.iter().find(|epoch| epoch["phase"] == phase)?["epoch"].as_u64();
        let late = list(ring["late"].clone());
        Ok(Ring {
            current: of_phase("current").ok_or("no current epoch")?,
            next: of_phase("next"),
            requested: !ring["requested_secs_ago"].is_null(),
            late: late.iter().map(|node| format!("{}: {}", text(&node["hostname"]), text(&node["reason"]))).collect(),
        })
    }

    /// The current epoch, once a next one is handed out and nobody is waited for.
    pub fn settled(&self) -> Result<u64, String> {
        so(self.next.is_some() && !self.requested && self.late.is_empty(), || format!("{self:?}"))?;
        Ok(self.current)
    }
}

/// The newest term that a host's manager has told of in the log.
pub fn term(host: &Host) -> u64 {
    let log = host.log();
    let mut told = log.lines().filter_map(|line| line.split_once("lead term=")?.1.split(' ').next()?.parse().ok());
    told.next_back().unwrap_or(0)
}

impl Swarm {
    /// Waits until these managers all show the same.
    #[track_caller]
    pub fn wait_same(&self, managers: &[usize]) {
        wait_until("the same of all managers", SETTLE, || {
            let views: Vec<_> = managers.iter().map(|index| shown(self.host(*index))).collect::<Result<_, _>>()?;
            so(views.windows(2).all(|pair| pair[0] == pair[1]), || format!("{views:#?}"))
        });
    }

    /// Waits until every task that runs in the managers' view runs on its host, nothing else runs on any host, and no two
    /// tasks have an address in common.
    #[track_caller]
    pub fn wait_nothing_doubled(&self) {
        wait_until("each task on one host, each address at one task", SETTLE, || {
            let tasks = self.try_tasks_that(|task| task["Status"]["State"] == "running")?;
            let wanted: BTreeSet<_> = tasks.iter().map(|task| (task.host, task.id.clone())).collect();
            let mut running = BTreeSet::new();
            for host in &self.net.hosts {
                let status = host.try_get("/formic/status")?;
                let here = list(status["tasks"].clone()).into_iter().filter(|task| task[2] == "running");
                running.extend(here.map(|task| (host.index(), text(&task[0]))));
            }
            so(running == wanted, || format!("wanted {wanted:?}, running {running:?}"))?;
            let addresses: Vec<_> = tasks.iter().flat_map(|task| task.addresses.clone()).collect();
            let distinct: BTreeSet<_> = addresses.iter().collect();
            so(distinct.len() == addresses.len(), || format!("an address twice: {tasks:#?}"))
        });
    }
}

fn shown(host: &Host) -> Result<(Ring, Vec<Value>), String> {
    let mut values: Vec<Value> = SHOWN.iter().map(|path| host.try_get(path)).collect::<Result<_, _>>()?;
    // Each host shows its own containers of a network.
    for thing in values.iter_mut().filter_map(Value::as_array_mut).flatten() {
        thing["Containers"].take();
    }
    Ok((Ring::of(host)?, values))
}
