//! How many tasks of a service there are, and which nodes suit them.

use super::NodeId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    /// So many, wherever they suit.
    Replicated {
        /// The number.
        replicas: u64,
    },
    /// One on each node that suits.
    Global,
}

/// Processor time and memory: what a node has, or what a task is to have for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Billionths of a processor.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Resources {
    /// Both together; what does not fit a number is its largest.
    pub fn plus(self, other: Resources) -> Resources {
        Resources {
            nano_cpus: self.nano_cpus.saturating_add(other.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    /// What is left of these; never less than nothing.
    pub fn minus(self, other: Resources) -> Resources {
        Resources {
            nano_cpus: self.nano_cpus.saturating_sub(other.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    /// Whether there is no less of anything in `room`.
    pub fn fits(self, room: Resources) -> bool {
        self.nano_cpus <= room.nano_cpus && self.memory_bytes <= room.memory_bytes
    }
}

/// What a node's host is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system: `linux`.
    pub os: String,
    /// Instruction set, as the kernel names it: `x86_64`.
    pub architecture: String,
    /// What it has.
    pub resources: Resources,
}

/// Which nodes suit the tasks of a service, and how they spread over these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// All must be met.
    pub constraints: Vec<Constraint>,
    /// Node labels over whose values the tasks spread evenly, the most important one first.
    pub spread: Vec<String>,
    /// Tasks of the service on one node at most; 0 is no limit.
    pub max_per_node: u64,
}

/// What a constraint asks a node for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Attribute {
    /// `node.id`.
    Id,
    /// `node.hostname`.
    Hostname,
    /// `node.role`: `manager` or `worker`.
    Role,
    /// `node.platform.os`.
    Os,
    /// `node.platform.arch`.
    Architecture,
    /// `node.labels.NAME`; a node without the label has the empty value.
    Label(String),
}

/// A condition that a node meets or not: `node.labels.zone==a`, `node.role!=manager`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// What is compared.
    pub attribute: Attribute,
    /// `==`, or `!=`.
    pub equal: bool,
    /// With what. Case does not count, as in Docker.
    pub value: String,
}

/// A text that is no constraint. It says which and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid constraint {text:?}: {why}")]
pub struct ConstraintError {
    text: String,
    why: &'static str,
}

const OPERATORS: &str = "it must be an attribute, == or !=, and a value";
const ATTRIBUTES: &str =
    "a node has node.id, node.hostname, node.role, node.platform.os, node.platform.arch and node.labels.NAME";
const ROLES: &str = "a node's role is manager or worker";
const NODE_ID: &str = "a node's id has 25 letters and digits";

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Constraint, ConstraintError> {
        let wrong = |why| ConstraintError { text: text.to_owned(), why };
        let at = text.find(['=', '!']).ok_or_else(|| wrong(OPERATORS))?;
        let (key, rest) = text.split_at(at);
        let (equal, value) = match (rest.strip_prefix("=="), rest.strip_prefix("!=")) {
            (Some(value), _) => (true, value),
            (_, Some(value)) => (false, value),
            _ => return Err(wrong(OPERATORS)),
        };
        let (key, value) = (key.trim(), value.trim());
        if value.is_empty() || value.starts_with('=') || value.chars().any(char::is_control) {
            return Err(wrong(OPERATORS));
        }
        let attribute = Attribute::named(key).ok_or_else(|| wrong(ATTRIBUTES))?;
        match attribute {
            Attribute::Role if !matches!(value, "manager" | "worker") => Err(wrong(ROLES)),
            Attribute::Id if value.parse::<NodeId>().is_err() => Err(wrong(NODE_ID)),
            _ => Ok(Constraint { attribute, equal, value: value.to_owned() }),
        }
    }
}

impl Attribute {
    fn named(key: &str) -> Option<Attribute> {
        Some(match key {
            "node.id" => Attribute::Id,
            "node.hostname" => Attribute::Hostname,
            "node.role" => Attribute::Role,
            "node.platform.os" => Attribute::Os,
            "node.platform.arch" => Attribute::Architecture,
            _ => Attribute::Label(key.strip_prefix("node.labels.").filter(|label| !label.is_empty())?.to_owned()),
        })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.equal { "==" } else { "!=" };
        match &self.attribute {
            Attribute::Id => write!(f, "node.id{operator}{}", self.value),
            Attribute::Hostname => write!(f, "node.hostname{operator}{}", self.value),
            Attribute::Role => write!(f, "node.role{operator}{}", self.value),
            Attribute::Os => write!(f, "node.platform.os{operator}{}", self.value),
            Attribute::Architecture => write!(f, "node.platform.arch{operator}{}", self.value),
            Attribute::Label(label) => write!(f, "node.labels.{label}{operator}{}", self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_read_and_written() {
        for text in [
            "node.id==dt0zvqn0saezzinc8a5g4worx",
            "node.hostname!=ant-1",
            "node.role==manager",
            "node.platform.os==linux",
            "node.platform.arch!=x86_64",
            "node.labels.zone==a b",
            "node.labels.com.example.zone==east",
        ] {
            assert_eq!(text.parse::<Constraint>().unwrap().to_string(), text);
        }
        let spaced: Constraint = "node.labels.zone == a".parse().unwrap();
        assert_eq!(spaced.to_string(), "node.labels.zone==a");
    }

    #[test]
    fn what_is_no_constraint_is_told() {
        for (text, why) in [
            ("", OPERATORS),
            ("node.role", OPERATORS),
            ("node.role=manager", OPERATORS),
            ("node.role===manager", OPERATORS),
            ("node.role==", OPERATORS),
            ("node.role!manager", OPERATORS),
            ("node.role==captain", ROLES),
            ("node.id==ant-1", NODE_ID),
            ("node.labels.==a", ATTRIBUTES),
            ("node.ip==10.0.0.1", ATTRIBUTES),
            ("engine.labels.a==b", ATTRIBUTES),
            ("==a", ATTRIBUTES),
            ("node.labels.a==b\nc", OPERATORS),
        ] {
            let error = text.parse::<Constraint>().unwrap_err();
            assert_eq!(error, ConstraintError { text: text.to_owned(), why });
        }
    }

    #[test]
    fn resources_neither_overflow_nor_fit_by_halves() {
        let most = Resources { nano_cpus: u64::MAX, memory_bytes: 1 };
        assert_eq!(most.plus(most), Resources { nano_cpus: u64::MAX, memory_bytes: 2 });
        assert!(most.fits(most) && !most.fits(Resources { memory_bytes: 0, ..most }));
    }
}
