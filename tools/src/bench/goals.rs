//! What Formic has to reach, and what it aims at.

use super::lanes::{FORMIC, FORMIC_LOCAL, FORMIC_PLAIN, VETH, VXLAN, WIREGUARD_GO};
use super::metric::Metric;
use super::stats::Samples;

/// A bound on a ratio, or on a number itself.
pub struct Goal {
    /// For people.
    pub what: &'static str,
    /// Name of the underlay.
    pub underlay: &'static str,
    /// The lane that is judged.
    pub lane: &'static str,
    /// What of it.
    pub metric: Metric,
    /// The lane by whose value it is divided.
    pub against: Option<&'static str>,
    /// Whether larger is better.
    pub larger: bool,
    /// What it must reach.
    pub must: f64,
    /// What it aims at.
    pub aim: f64,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The aim is reached.
    Aim,
    /// What must be is reached.
    Must,
    /// Not even that.
    Missed,
}

const fn ratio(what: &'static str, lane: &'static str, metric: Metric, against: &'static str) -> Goal {
    Goal { what, underlay: "gso", lane, metric, against: Some(against), larger: true, must: 1.0, aim: 1.0 }
}

impl Goal {
    const fn reach(self, must: f64, aim: f64) -> Goal {
        Goal { must, aim, ..self }
    }

    const fn below(self, must: f64, aim: f64) -> Goal {
        Goal { must, aim, larger: false, ..self }
    }

    const fn on_wire(self) -> Goal {
        Goal { underlay: "wire", ..self }
    }

    /// The ratio of the medians, or the median. `None` when it was not measured.
    pub fn value(&self, samples: &Samples) -> Option<f64> {
        let value = samples.median(self.underlay, self.lane, self.metric)?;
        match self.against {
            None => Some(value),
            Some(other) => Some(value / samples.median(self.underlay, other, self.metric)?),
        }
    }

    /// How far a value comes.
    pub fn verdict(&self, value: f64) -> Verdict {
        let reaches = |bound: f64| if self.larger { value >= bound } else { value <= bound };
        match (reaches(self.aim), reaches(self.must)) {
            (true, _) => Verdict::Aim,
            (false, true) => Verdict::Must,
            (false, false) => Verdict::Missed,
        }
    }
}

/// Share of a core that a daemon at rest stays below, in percent.
pub const IDLE_PERCENT: f64 = 0.5;

/// Resident megabytes that it stays below, helper included.
pub const IDLE_MEGABYTES: f64 = 50.0;

/// All of the lanes, in the order of the report.
pub const GOALS: [Goal; 14] = [
    ratio("one TCP flow / wireguard-go", FORMIC, Metric::Tcp, WIREGUARD_GO).reach(3.0, 4.0),
    ratio("one TCP flow / wireguard-go", FORMIC, Metric::Tcp, WIREGUARD_GO).reach(2.0, 4.0).on_wire(),
    ratio("one TCP flow / VXLAN in clear", FORMIC, Metric::Tcp, VXLAN).reach(0.5, 1.0),
    ratio("one TCP flow / VXLAN in clear", FORMIC, Metric::Tcp, VXLAN).reach(0.8, 0.8).on_wire(),
    ratio("four TCP flows / VXLAN in clear", FORMIC, Metric::Tcp4, VXLAN).reach(0.35, 0.6),
    Goal { against: None, ..ratio("CPU s per GB, both daemons", FORMIC, Metric::TunnelCpu, FORMIC) }.below(1.2, 0.9),
    ratio("UDP 1400, packets/s / wireguard-go", FORMIC, Metric::UdpReceived, WIREGUARD_GO).reach(2.0, 4.0),
    ratio("round trip idle, p50 / wireguard-go", FORMIC, Metric::IdleP50, WIREGUARD_GO).below(1.0, 0.5),
    ratio("round trip idle, p99 / wireguard-go", FORMIC, Metric::IdleP99, WIREGUARD_GO).below(1.0, 0.5),
    ratio("round trip loaded, p99 / wireguard-go", FORMIC, Metric::LoadP99, WIREGUARD_GO).below(1.0, 0.5),
    ratio("same host, one TCP flow / veth pair", FORMIC_LOCAL, Metric::Tcp, VETH).reach(0.9, 1.0),
    ratio("same host, four TCP flows / veth pair", FORMIC_LOCAL, Metric::Tcp4, VETH).reach(0.9, 1.0),
    ratio("plain network / encrypted, one flow", FORMIC_PLAIN, Metric::Tcp, FORMIC).reach(1.0, 1.0),
    ratio("plain network / encrypted, one flow", FORMIC_PLAIN, Metric::Tcp, FORMIC).reach(1.0, 1.0).on_wire(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let more = ratio("", FORMIC, Metric::Tcp, VXLAN).reach(2.0, 4.0);
        assert_eq!(
            [1.9, 2.0, 3.9, 4.0].map(|v| more.verdict(v)),
            [Verdict::Missed, Verdict::Must, Verdict::Must, Verdict::Aim]
        );
        let less = ratio("", FORMIC, Metric::IdleP50, VXLAN).below(1.0, 0.5);
        assert_eq!([1.1, 1.0, 0.5].map(|v| less.verdict(v)), [Verdict::Missed, Verdict::Must, Verdict::Aim]);
        assert_eq!(more.verdict(f64::NAN), Verdict::Missed);
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        let goal = ratio("", FORMIC, Metric::Tcp, VXLAN);
        let mut samples = Samples::default();
        samples.add("gso", FORMIC, Metric::Tcp, 6.0);
        assert_eq!(goal.value(&samples), None);
        samples.add("gso", VXLAN, Metric::Tcp, 12.0);
        assert_eq!(goal.value(&samples), Some(0.5));
        assert_eq!(Goal { against: None, ..goal }.value(&samples), Some(6.0));
    }

    #[test]
    fn an_aim_is_never_below_what_must_be() {
        for goal in GOALS {
            assert_ne!(goal.verdict(goal.aim), Verdict::Missed, "{}", goal.what);
            assert_eq!(goal.verdict(goal.aim), Verdict::Aim, "{}", goal.what);
        }
    }
}
