//! The results as text for people and as JSON for programs.

use super::goals::{GOALS, Goal, IDLE_MEGABYTES, IDLE_PERCENT, Verdict};
use super::idle::{ENDPOINTS, Idle, PEERS};
use super::lanes::Underlay;
use super::metric::Metric;
use super::micro::Cost;
use super::options::Formic;
use super::stats::{Samples, median};
use serde_json::{Value, json};
use std::fmt::Write;

/// Medians of one underlay: a row for each lane, a column for each metric that was measured. Below them the lanes of
/// further binaries, divided by those of the first.
pub fn table(samples: &Samples, underlay: Underlay, lanes: &[String]) -> String {
    let median = |lane: &str, metric| samples.median(underlay.name(), lane, metric);
    let measured = |metric: &Metric| lanes.iter().any(|lane| median(lane, *metric).is_some());
    let metrics: Vec<Metric> = Metric::ALL.into_iter().filter(measured).collect();
    let head = |cells: fn(Metric) -> &'static str| -> Vec<String> {
        std::iter::once("").chain(metrics.iter().map(|metric| cells(*metric))).map(str::to_owned).collect()
    };
    let mut rows = vec![head(Metric::head), head(Metric::unit)];
    rows.extend(lanes.iter().map(|lane| row(lane, &metrics, |metric| median(lane, metric))));
    for (lane, first) in lanes.iter().filter_map(|lane| Some((lane, lane.split_once('.')?.0))) {
        let ratio = |metric| Some(median(lane, metric)? / median(first, metric)?);
        rows.push(row(&format!("{lane} / 1"), &metrics, ratio));
    }
    align(&rows)
}

fn row(name: &str, metrics: &[Metric], value: impl Fn(Metric) -> Option<f64>) -> Vec<String> {
    let cells = metrics.iter().map(|metric| value(*metric).map(number).unwrap_or_default());
    std::iter::once(name.to_owned()).chain(cells).collect()
}

/// The goals that can be judged, and how far the first binary comes.
pub fn goals(samples: &Samples) -> String {
    let mut rows = vec![["goal", "underlay", "measured", "must", "aim", ""].map(str::to_owned).to_vec()];
    for goal in &GOALS {
        let Some(value) = goal.value(samples) else { continue };
        let sign = if goal.larger { ">=" } else { "<=" };
        rows.push(vec![
            goal.what.to_owned(),
            goal.underlay.to_owned(),
            number(value),
            format!("{sign} {}", goal.must),
            format!("{sign} {}", goal.aim),
            verdict(goal, value).to_owned(),
        ]);
    }
    if rows.len() == 1 { String::new() } else { align(&rows) }
}

fn verdict(goal: &Goal, value: f64) -> &'static str {
    match goal.verdict(value) {
        Verdict::Aim => "aim reached",
        Verdict::Must => "reached",
        Verdict::Missed => "MISSED",
    }
}

/// Everything, values of all rounds included.
pub fn json(samples: &Samples, settings: Value) -> Value {
    let samples_json: Vec<Value> = samples
        .iter()
        .map(|(key, values)| {
            json!({
                "underlay": key.underlay, "lane": key.lane, "metric": key.metric.name(), "unit": key.metric.unit(),
                "values": values, "median": median(values),
            })
        })
        .collect();
    let goals_json: Vec<Value> = GOALS
        .iter()
        .filter_map(|goal| {
            let value = goal.value(samples)?;
            Some(json!({
                "goal": goal.what, "underlay": goal.underlay, "value": value, "must": goal.must, "aim": goal.aim,
                "larger_is_better": goal.larger, "verdict": verdict(goal, value),
            }))
        })
        .collect();
    json!({ "settings": settings, "samples": samples_json, "goals": goals_json })
}

/// Adds the values of what [`json()`] made.
pub fn read_json(text: &str, samples: &mut Samples) -> Option<()> {
    let report: Value = serde_json::from_str(text).ok()?;
    for sample in report["samples"].as_array()? {
        let metric = Metric::ALL.into_iter().find(|metric| sample["metric"] == metric.name())?;
        for value in sample["values"].as_array()? {
            samples.add(sample["underlay"].as_str()?, sample["lane"].as_str()?, metric, value.as_f64()?);
        }
    }
    Some(())
}

/// Nanoseconds of single functions.
pub fn micro_table(costs: &[Cost]) -> String {
    let mut rows = vec![["function", "protection", "octets", "ns", "GB/s"].map(str::to_owned).to_vec()];
    for cost in costs {
        let gigabytes_per_sec = cost.inner_len as f64 / cost.nanos;
        rows.push(vec![
            cost.function.to_owned(),
            cost.transform.to_owned(),
            cost.inner_len.to_string(),
            number(cost.nanos),
            number(gigabytes_per_sec),
        ]);
    }
    align(&rows)
}

/// The same for programs.
pub fn micro_json(costs: &[Cost]) -> Value {
    let json = |cost: &Cost| {
        json!({
            "function": cost.function, "protection": cost.transform, "octets": cost.inner_len, "nanoseconds": cost.nanos,
        })
    };
    costs.iter().map(json).collect()
}

/// A daemon at rest.
pub fn idle_text(idle: &Idle) -> String {
    let values: Vec<String> = idle.cpu_percent.iter().map(|value| format!("{value:.2}")).collect();
    format!(
        "{ENDPOINTS} endpoints, {PEERS} peers: {:.2} % of a core (periods: {}; must: below {IDLE_PERCENT} %),\n\
         {:.1} MB resident (daemon {:.1}, helper {:.1}; must: below {IDLE_MEGABYTES})",
        median(&idle.cpu_percent).unwrap_or_default(),
        values.join(", "),
        megabytes(idle.daemon_bytes + idle.helper_bytes),
        megabytes(idle.daemon_bytes),
        megabytes(idle.helper_bytes),
    )
}

/// The same for programs.
pub fn idle_json(idle: &Idle, binary: &Formic) -> Value {
    json!({
        "formic": binary.to_string(),
        "endpoints": ENDPOINTS, "peers": PEERS, "cpu_percent": idle.cpu_percent,
        "cpu_percent_median": median(&idle.cpu_percent), "cpu_percent_must_be_below": IDLE_PERCENT,
        "daemon_bytes": idle.daemon_bytes, "helper_bytes": idle.helper_bytes,
        "megabytes_must_be_below": IDLE_MEGABYTES,
    })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Three significant digits: more would be noise.
pub fn number(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

/// The first column to the left, the others to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 { write!(line, "{cell:width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut samples = Samples::default();
        for (lane, values) in [("vxlan", [14.0, 16.0, 15.0]), ("formic", [9.0, 3.0, 7.5])] {
            values.into_iter().for_each(|value| samples.add("gso", lane, Metric::Tcp, value));
        }
        samples.add("gso", "formic", Metric::TunnelCpu, 1.234);
        samples
    }

    #[test]
    fn a_table_has_what_was_measured() {
        let lanes = ["vxlan", "formic"].map(str::to_owned);
        let expected = "           TCP  CPU tunnel\n\
                        \x20       Gbit/s        s/GB\n\
                        vxlan     15.0\n\
                        formic    7.50        1.23\n";
        assert_eq!(table(&samples(), Underlay::Gso, &lanes), expected);
    }

    #[test]
    fn further_binaries_are_divided_by_the_first() {
        let mut samples = samples();
        samples.add("gso", "formic.2", Metric::Tcp, 15.0);
        let lanes = ["vxlan", "formic", "formic.2"].map(str::to_owned);
        let text = table(&samples, Underlay::Gso, &lanes);
        assert_eq!(text.lines().last(), Some("formic.2 / 1    2.00"), "{text}");
        assert_eq!(text.lines().count(), 2 + 3 + 1, "{text}");
    }

    #[test]
    fn goals_that_can_be_judged() {
        let text = goals(&samples());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with("one TCP flow / VXLAN in clear"), "{text}");
        assert!(lines[1].contains("0.50") && lines[1].ends_with(" reached"), "{text}");
        assert!(lines[2].contains("1.23") && lines[2].ends_with("MISSED"), "{text}");
        assert_eq!(goals(&Samples::default()), "");
    }

    #[test]
    fn json_has_all_values() {
        let value = json(&samples(), json!({"rounds": 3}));
        assert_eq!(value["settings"]["rounds"], 3);
        let formic = &value["samples"][0];
        assert_eq!((formic["lane"].as_str(), formic["metric"].as_str()), (Some("formic"), Some("tcp")));
        assert_eq!((&formic["values"], &formic["median"]), (&json!([9.0, 3.0, 7.5]), &json!(7.5)));
        assert_eq!(value["goals"][0]["verdict"], "reached");
        let mut again = Samples::default();
        assert_eq!(read_json(&value.to_string(), &mut again), Some(()));
        assert!(again.iter().eq(samples().iter()));
        assert_eq!(read_json("{}", &mut again), None);
    }

    #[test]
    fn a_row_for_each_function() {
        let costs = [Cost { function: "seal", transform: "AES-256-GCM", inner_len: 1438, nanos: 200.0 }];
        let text = micro_table(&costs);
        assert_eq!(text.lines().last(), Some("seal      AES-256-GCM    1438  200  7.19"), "{text}");
        assert_eq!(micro_json(&costs)[0]["nanoseconds"], 200.0);
    }

    #[test]
    fn a_daemon_at_rest() {
        let idle = Idle { cpu_percent: vec![0.1, 0.9, 0.3], daemon_bytes: 20_000_000, helper_bytes: 5_000_000 };
        let text = idle_text(&idle);
        assert!(text.contains("0.30 % of a core") && text.contains("25.0 MB"), "{text}");
        assert_eq!(idle_json(&idle, &"/x/formic".parse().unwrap())["cpu_percent_median"], 0.3);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.0125, 1.2345, 12.345, 123.45].map(number), ["0.01", "1.23", "12.3", "123"]);
    }
}
