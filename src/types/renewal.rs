//! How a service's tasks are replaced: after they end, and when its specification changes.

use super::UnixTime;
use serde::{Deserialize, Serialize};

/// After which ends of a task its place is filled again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    /// After none: what was placed once is not placed again.
    Never,
    /// Unless it ended with exit code 0.
    OnFailure,
    /// After each.
    #[default]
    Any,
}

/// What happens when a task has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Whether it is replaced.
    pub condition: RestartCondition,
    /// Seconds between its end and its replacement.
    pub delay_secs: u64,
    /// Replacements of a place at most, or of those within the window; 0 is no limit.
    pub max_attempts: u64,
    /// Seconds that count for `max_attempts`; 0: all the time since the specification last changed.
    pub window_secs: u64,
}

impl Default for RestartPolicy {
    /// Docker's.
    fn default() -> RestartPolicy {
        RestartPolicy { condition: RestartCondition::Any, delay_secs: 5, max_attempts: 0, window_secs: 0 }
    }
}

/// How often the task of a place was replaced after it ended by itself, since the specification last changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// All of them.
    pub count: u64,
    /// When, oldest first: those within the window of a policy that has one, at most its `max_attempts`.
    pub times: Vec<UnixTime>,
}

impl Restarts {
    /// These and one more.
    pub fn and_one(&self, policy: &RestartPolicy, at: UnixTime) -> Restarts {
        let mut times = self.within(policy, at);
        if policy.max_attempts > 0 && policy.window_secs > 0 {
            times.push(at);
        }
        let most = usize::try_from(policy.max_attempts).unwrap_or(usize::MAX);
        times.drain(..times.len().saturating_sub(most));
        Restarts { count: self.count.saturating_add(1), times }
    }

    /// Whether the policy allows one more for a task that ended then.
    pub fn allow_another(&self, policy: &RestartPolicy, ended_at: UnixTime) -> bool {
        let counted = if policy.window_secs > 0 { self.within(policy, ended_at).len() as u64 } else { self.count };
        policy.max_attempts == 0 || counted < policy.max_attempts
    }

    fn within(&self, policy: &RestartPolicy, at: UnixTime) -> Vec<UnixTime> {
        self.times.iter().copied().filter(|time| time.0.saturating_add(policy.window_secs) > at.0).collect()
    }
}

/// What to do when too many tasks of an update fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    /// Replace no more tasks until somebody changes the service again.
    Pause,
    /// Go on.
    Continue,
    /// Go back to the specification before.
    RollBack,
}

/// How the tasks of a service are replaced when what they run changes. The old task of a place is stopped first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePolicy {
    /// Tasks at a time; 0 is all of them.
    pub parallelism: u64,
    /// Seconds that a new task runs before the next is replaced.
    pub delay_secs: u64,
    /// Seconds for which a new task that ends counts as failed.
    pub monitor_secs: u64,
    /// Millionths of the replaced tasks that may fail.
    pub max_failure_ppm: u32,
    /// What happens when more do.
    pub failure_action: FailureAction,
}

impl Default for UpdatePolicy {
    /// Docker's.
    fn default() -> UpdatePolicy {
        UpdatePolicy {
            parallelism: 1,
            delay_secs: 0,
            monitor_secs: 5,
            max_failure_ppm: 0,
            failure_action: FailureAction::Pause,
        }
    }
}

/// How a service's tasks are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// After they end.
    pub restart: RestartPolicy,
    /// When the specification changes.
    pub update: UpdatePolicy,
    /// When the service goes back to the specification before.
    pub rollback: UpdatePolicy,
    /// Raised to have all tasks replaced although nothing else changes.
    pub force: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_attempts: u64, window_secs: u64) -> RestartPolicy {
        RestartPolicy { max_attempts, window_secs, ..RestartPolicy::default() }
    }

    /// Restarts as often as the policy allows, with so many seconds from one end to the next.
    fn restarts(policy: &RestartPolicy, every_secs: u64, most: u64) -> u64 {
        let (mut restarts, mut at) = (Restarts::default(), UnixTime(1000));
        while restarts.count < most && restarts.allow_another(policy, at) {
            restarts = restarts.and_one(policy, at);
            assert!(restarts.times.len() as u64 <= policy.max_attempts);
            at = UnixTime(at.0 + every_secs);
        }
        restarts.count
    }

    #[test]
    fn attempts_are_counted() {
        assert_eq!(restarts(&policy(0, 0), 1, 50), 50);
        assert_eq!(restarts(&policy(3, 0), 1_000_000, 50), 3);
        assert_eq!(restarts(&policy(3, 60), 19, 50), 3);
        assert_eq!(restarts(&policy(3, 60), 20, 50), 50, "never four within a minute");
    }
}
