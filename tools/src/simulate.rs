//! Many simulated swarms, as many at once as there are cores. Each core has a process of its own that runs seed after
//! seed: one that panics (with `panic = "abort"` it dies) costs its seed only, and the rest goes on in another one.

use anyhow::{Context, Result, ensure};
use argh::FromArgs;
use formic::sim::swarm::{self, Planted};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Failed seeds after which no more are run: by then there is enough to look at.
const FAILURES_MAX: usize = 20;

/// Between two rotations in the long days, as by default.
const INTERVAL: Duration = Duration::from_secs(12 * 3600);

/// Simulate whole swarms (managers, agents, keys, gossip) under faults, one for each seed.
#[derive(Debug, FromArgs)]
pub struct Options {
    /// how many seeds to run (default 1)
    #[argh(option, default = "1")]
    pub seeds: u64,
    /// the first seed (default 0)
    #[argh(option, default = "0")]
    pub start: u64,
    /// nodes at the start, 1 to 200 (default: by the seed, mostly 5 to 9, each 500th has 100)
    #[argh(option)]
    pub nodes: Option<usize>,
    /// managers among them, 1 to 7 (default: by the seed, 3 or 5)
    #[argh(option)]
    pub managers: Option<usize>,
    /// seconds of faults in each, in virtual time (default: by the seed, 30 or 80, or 15 with 100 nodes)
    #[argh(option)]
    pub secs: Option<u64>,
    /// a fault that has to be found: none, skip-acknowledgement, reset-timer, ring-difference (default none)
    #[argh(option, default = "Planted::Nothing", from_str_fn(planted))]
    pub plant: Planted,
    /// the two long days instead of chaos: a restless leader, then no manager at all
    #[argh(switch)]
    pub days: bool,
    /// processes at once (default: one for each core)
    #[argh(option, default = "cores()")]
    pub jobs: usize,
    /// run the seeds that come by standard input, for the process that started this one
    #[argh(switch, hidden_help)]
    pub worker: bool,
}

fn planted(text: &str) -> Result<Planted, String> {
    match text {
        "none" => Ok(Planted::Nothing),
        "skip-acknowledgement" => Ok(Planted::SkipAcknowledgement),
        "reset-timer" => Ok(Planted::ResetTimerAtElection),
        "ring-difference" => Ok(Planted::RingAsDifference),
        _ => Err(format!("{text:?} is no fault that can be planted")),
    }
}

fn name(planted: Planted) -> &'static str {
    match planted {
        Planted::Nothing => "none",
        Planted::SkipAcknowledgement => "skip-acknowledgement",
        Planted::ResetTimerAtElection => "reset-timer",
        Planted::RingAsDifference => "ring-difference",
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Options {
    fn scenario(&self, seed: u64) -> swarm::Options {
        let usual = swarm::Options::of_seed(seed);
        swarm::Options {
            nodes: self.nodes.unwrap_or(usual.nodes),
            managers: self.managers.unwrap_or(usual.managers),
            wishes: usual.wishes,
            duration: self.secs.map_or(usual.duration, Duration::from_secs),
            planted: self.plant,
        }
    }

    /// What runs a seed again, but for `--seeds` and `--start`.
    fn arguments(&self) -> Vec<String> {
        let Options { nodes, managers, secs, plant, days, .. } = self;
        let option = |name: &str, value: Option<String>| value.map(|value| [format!("--{name}"), value]);
        let options = [
            option("nodes", nodes.map(|it| it.to_string())),
            option("managers", managers.map(|it| it.to_string())),
            option("secs", secs.map(|it| it.to_string())),
            option("plant", (*plant != Planted::Nothing).then(|| name(*plant).to_owned())),
        ];
        let days = days.then(|| "--days".to_owned());
        options.into_iter().flatten().flatten().chain(days).collect()
    }
}

/// Runs the seeds that come line by line; says `done` and what happened after each.
pub fn work(options: &Options) -> Result<ExitCode> {
    for line in std::io::stdin().lines() {
        let seed: u64 = line?.trim().parse().context("a seed")?;
        let report = if options.days {
            swarm::day(seed, INTERVAL, options.plant)
        } else {
            swarm::run(seed, &options.scenario(seed))
        };
        let done = report.done;
        let counts: Vec<String> = done.iter().map(|(what, count)| format!("{what}={count}")).collect();
        println!("{}", counts.join(";"));
        std::io::stdout().flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What came of the seeds so far.
#[derive(Default)]
struct Results {
    todo: VecDeque<u64>,
    run: u64,
    failed: Vec<u64>,
    seen: BTreeMap<String, u64>,
}

/// Runs all seeds; exit code 1 if one failed. With a planted fault: until it is found; exit code 1 if it is not.
pub fn run(options: &Options) -> Result<ExitCode> {
    let todo: VecDeque<u64> = (options.start..options.start.saturating_add(options.seeds)).collect();
    for scenario in todo.iter().map(|seed| options.scenario(*seed)) {
        ensure!((1..=200).contains(&scenario.nodes), "--nodes: 1 to 200");
        ensure!((1..=scenario.nodes.min(7)).contains(&scenario.managers), "--managers: 1 to 7, of the nodes");
    }
    let started = Instant::now();
    let results = Mutex::new(Results { todo, ..Results::default() });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(|| feed(options, &results))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    let results = results.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    let (seconds, count) = (started.elapsed().as_secs_f64(), results.run);
    for (what, total) in &results.seen {
        println!("{total:>12} {what}");
    }
    for seed in &results.failed {
        let again = [vec![format!("--start {seed}")], options.arguments()].concat().join(" ");
        let what = if options.plant == Planted::Nothing { "FAILED" } else { "finds it" };
        println!("seed {seed} {what}; again: cargo run --release -p tools --bin simulate -- {again}");
    }
    println!("{count} seeds, {} failed, {seconds:.1} s", results.failed.len());
    let wanted = options.plant == Planted::Nothing;
    Ok(if results.failed.is_empty() == wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Feeds one worker process, and the next one when it dies.
fn feed(options: &Options, results: &Mutex<Results>) -> Result<()> {
    let most = if options.plant == Planted::Nothing { FAILURES_MAX } else { 1 };
    let next = || {
        let mut results = results.lock().ok()?;
        if results.failed.len() < most { results.todo.pop_front() } else { None }
    };
    let mut seed = next();
    while seed.is_some() {
        let mut worker = Command::new(std::env::current_exe()?)
            .args(options.arguments())
            .arg("--worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a worker")?;
        let mut input = worker.stdin.take().context("its input")?;
        let mut output = BufReader::new(worker.stdout.take().context("its output")?);
        while let Some(number) = seed {
            let told = writeln!(input, "{number}").and_then(|()| input.flush());
            let mut line = String::new();
            let answered = told.is_ok() && output.read_line(&mut line)? > 0;
            let mut results = results.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            results.run += 1;
            if !answered {
                results.failed.push(number);
            }
            for (what, count) in line.trim().split(';').filter_map(|pair| pair.split_once('=')) {
                *results.seen.entry(what.to_owned()).or_default() += count.parse::<u64>().unwrap_or(0);
            }
            drop(results);
            seed = next();
            if !answered {
                break;
            }
        }
        drop(input);
        worker.wait()?;
    }
    Ok(())
}
