//! The options of `service create` and `service update` about how tasks are replaced.

use crate::api::types as api;

/// `--restart-*`. Times in nanoseconds.
#[derive(Default, PartialEq)]
pub(super) struct RestartFlags {
    pub(super) condition: Option<String>,
    pub(super) delay: Option<u64>,
    pub(super) max_attempts: Option<u64>,
    pub(super) window: Option<u64>,
}

impl RestartFlags {
    /// Changes what is given.
    pub(super) fn apply(self, policy: &mut Option<api::RestartPolicy>) {
        if self == RestartFlags::default() {
            return;
        }
        let policy = policy.get_or_insert_default();
        if let Some(condition) = self.condition {
            policy.condition = condition;
        }
        policy.delay = self.delay.or(policy.delay);
        policy.max_attempts = self.max_attempts.or(policy.max_attempts);
        policy.window = self.window.or(policy.window);
    }
}

/// `--update-*` or `--rollback-*`. Times in nanoseconds.
#[derive(Default, PartialEq)]
pub(super) struct UpdateFlags {
    pub(super) parallelism: Option<u64>,
    pub(super) delay: Option<u64>,
    pub(super) monitor: Option<u64>,
    pub(super) failure_action: Option<String>,
    pub(super) max_failure_ratio: Option<f64>,
}

impl UpdateFlags {
    /// Changes what is given.
    pub(super) fn apply(self, config: &mut Option<api::UpdateConfig>) {
        if self == UpdateFlags::default() {
            return;
        }
        // One at a time is the default, and 0 is all.
        let config = config.get_or_insert_with(|| api::UpdateConfig { parallelism: 1, ..api::UpdateConfig::default() });
        config.parallelism = self.parallelism.unwrap_or(config.parallelism);
        config.delay = self.delay.unwrap_or(config.delay);
        config.monitor = self.monitor.unwrap_or(config.monitor);
        config.max_failure_ratio = self.max_failure_ratio.unwrap_or(config.max_failure_ratio);
        if let Some(action) = self.failure_action {
            config.failure_action = action;
        }
    }
}
