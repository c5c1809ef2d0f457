//! `formic doctor`: is this host fit for an overlay, and does everything reach everything?
//!
//! - `machine`: what can be told without a daemon: kernel, devices, namespaces, capabilities, ports, offloads, cipher.
//! - `swarm`: judges what the daemon found when it asked its peers and managers for an answer (pure).
//!
//! Each [`Finding`] is one sentence that says what is wrong and where, so that an operator can act on it. What could not
//! be examined is a note, never well.

mod machine;
mod swarm;

#[cfg(test)]
mod tests;

pub use machine::machine;
pub use swarm::swarm;

use serde::Serialize;

/// How it is with one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It works.
    Ok,
    /// Something to know; nothing fails by it.
    Note,
    /// It does not work.
    Wrong,
}

/// One thing that was examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was examined: `tun`, `ports`, `clock`, `gossip`, `esp` and so on.
    pub part: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// In words.
    pub text: String,
}

impl Finding {
    /// It works.
    pub fn ok(part: &'static str, text: impl Into<String>) -> Finding {
        Finding { part, verdict: Verdict::Ok, text: text.into() }
    }

    /// Something to know.
    pub fn note(part: &'static str, text: impl Into<String>) -> Finding {
        Finding { part, verdict: Verdict::Note, text: text.into() }
    }

    /// It does not work.
    pub fn wrong(part: &'static str, text: impl Into<String>) -> Finding {
        Finding { part, verdict: Verdict::Wrong, text: text.into() }
    }

    /// Of an offload, of which the data plane says how it is with it. Without it everything works, only slower.
    fn of_offload(name: &str, how: &str) -> Finding {
        let verdict = if how == "on" { Verdict::Ok } else { Verdict::Note };
        Finding { part: "offloads", verdict, text: format!("{name}: {how}") }
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing is wrong.
    pub well: bool,
    /// In the order in which it was examined.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Of these findings.
    pub fn new(findings: Vec<Finding>) -> Report {
        Report { well: findings.iter().all(|finding| finding.verdict != Verdict::Wrong), findings }
    }

    /// For people: a line for each finding, and the sum of them.
    pub fn describe(&self) -> String {
        let line = |finding: &Finding| {
            let word = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Wrong => "WRONG",
            };
            format!("{word:<6} {:<12} {}", finding.part, finding.text)
        };
        let wrong = self.findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
        let sum = match wrong {
            0 => "Nothing is wrong.".to_owned(),
            1 => "1 thing is wrong.".to_owned(),
            _ => format!("{wrong} things are wrong."),
        };
        self.findings.iter().map(line).chain([String::new(), sum]).collect::<Vec<_>>().join("\n")
    }
}
