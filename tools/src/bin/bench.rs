//! Measures Formic against its peers; see `tools::bench`. Run by `scripts/bench`, which brings what it needs.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tools::bench::lanes::{Bed, FORMIC, Lane, UNPACED, Underlay, numbered};
use tools::bench::measure::{Kind, wait_for_lane};
use tools::bench::options::{Formic, Options};
use tools::bench::stats::Samples;
use tools::bench::{chart, idle, micro, report};

fn main() -> Result<()> {
    let options = argh::from_env::<Options>().completed()?;
    std::fs::create_dir_all(&options.output).with_context(|| options.output.display().to_string())?;
    match (options.micro, options.idle) {
        (true, _) => run_micro(&options),
        (_, true) => run_idle(&options),
        _ => run_lanes(&options),
    }
}

fn run_micro(options: &Options) -> Result<()> {
    let costs = micro::run(Duration::from_secs_f64(options.seconds))?;
    print!("{}", report::micro_table(&costs));
    write(options, "micro.json", &report::micro_json(&costs))
}

fn run_idle(options: &Options) -> Result<()> {
    let period = Duration::from_secs_f64(options.seconds).max(IDLE_PERIOD);
    let mut found = Vec::new();
    for binary in &options.formic {
        let idle = idle::run(binary, options.rounds, period)?;
        println!("{binary}\n{}", report::idle_text(&idle));
        found.push(report::idle_json(&idle, binary));
    }
    write(options, "idle.json", &found.into())
}

/// Long against a clock tick of 10 ms, a heartbeat and a round of gossip.
const IDLE_PERIOD: Duration = Duration::from_secs(20);

fn run_lanes(options: &Options) -> Result<()> {
    for (number, binary) in (1..).zip(&options.formic) {
        println!("{}: {binary}", numbered(FORMIC, number));
    }
    let mut run = Run { options, samples: Samples::default(), failures: Vec::new() };
    if options.add {
        let path = options.output.join(REPORT);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        report::read_json(&text, &mut run.samples).with_context(|| format!("{}: no report", path.display()))?;
    }
    for underlay in options.underlays() {
        run.underlay(underlay)?;
    }
    run.finish()
}

fn write(options: &Options, name: &str, value: &Value) -> Result<()> {
    let path = options.output.join(name);
    std::fs::write(&path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}

/// The file with all values.
const REPORT: &str = "bench.json";

struct Run<'a> {
    options: &'a Options,
    samples: Samples,
    failures: Vec<String>,
}

impl Run<'_> {
    fn underlay(&mut self, underlay: Underlay) -> Result<()> {
        println!("\n{}: {}", underlay.name(), underlay.title());
        let bed = Bed::new(underlay, self.options)?;
        bed.lanes.iter().try_for_each(wait_for_lane)?;
        for round in 1..=self.options.rounds {
            println!("round {round} of {}", self.options.rounds);
            for kind in self.options.kinds(underlay) {
                bed.lanes.iter().for_each(|lane| self.measure(underlay, kind, lane));
            }
            self.write()?;
        }
        print!("\n{}", report::table(&self.samples, underlay, &self.samples.lanes()));
        Ok(())
    }

    /// A lane that fails once does not take the others' results along.
    fn measure(&mut self, underlay: Underlay, kind: Kind, lane: &Lane) {
        match kind.measure(lane, Duration::from_secs_f64(self.options.seconds)) {
            Ok(found) => {
                for (metric, value) in found {
                    if !value.is_finite() || value < 0.0 {
                        self.failures.push(format!("{} {}: {} {value}", underlay.name(), lane.name, metric.name()));
                    }
                    self.samples.add(underlay.name(), &lane.name, metric, value);
                }
            }
            Err(error) => {
                let failure = format!("{} {} {}: {error:#}", underlay.name(), kind.name(), lane.name);
                println!("FAILED: {failure}");
                self.failures.push(failure);
            }
        }
    }

    fn write(&self) -> Result<()> {
        write(self.options, REPORT, &report::json(&self.samples, self.settings()))?;
        let chart = chart::svg(&self.samples, &self.samples.lanes());
        std::fs::write(self.options.output.join("bench.svg"), chart).context("bench.svg")
    }

    fn settings(&self) -> Value {
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let begins_with = if self.options.machine_congestion {
            std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default()
        } else {
            UNPACED.to_owned()
        };
        let binaries: Vec<String> = self.options.formic.iter().map(Formic::to_string).collect();
        json!({
            "rounds": self.options.rounds, "seconds": self.options.seconds, "formic": binaries,
            "connections_begin_with": begins_with.trim(), "processors": processors, "kernel": kernel.trim(),
        })
    }

    fn finish(&self) -> Result<()> {
        let goals = report::goals(&self.samples);
        if !self.options.smoke && !goals.is_empty() {
            print!("\n{goals}");
        }
        println!("\n{0}/bench.json, {0}/bench.svg", self.options.output.display());
        ensure!(self.failures.is_empty(), "{} measurements failed:\n{}", self.failures.len(), self.failures.join("\n"));
        Ok(())
    }
}
