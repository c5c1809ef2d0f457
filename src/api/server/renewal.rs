//! How a service's tasks are replaced, as the API writes it. Pure. Times are rounded up to seconds.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::error::ApiError;
use super::time;
use crate::api::types as api;
use crate::cluster::{Rollout, RolloutPhase};
use crate::types::{FailureAction, Renewal, RestartCondition, RestartPolicy, UpdatePolicy};

const NANOSECONDS: u64 = 1_000_000_000;
const WHOLE_PPM: f64 = 1e6;

/// What is wanted; Docker's defaults where nothing is said.
pub(super) fn wanted(spec: &api::ServiceSpec) -> Result<Renewal, ApiError> {
    let rollback = update_policy(spec.rollback_config.as_ref())?;
    if rollback.failure_action == FailureAction::RollBack {
        return Err(ApiError::bad_request("invalid failure action of a rollback: it must be pause or continue"));
    }
    Ok(Renewal {
        restart: restart_policy(spec.task_template.restart_policy.as_ref())?,
        update: update_policy(spec.update_config.as_ref())?,
        rollback,
        force: spec.task_template.force_update,
    })
}

fn restart_policy(wanted: Option<&api::RestartPolicy>) -> Result<RestartPolicy, ApiError> {
    let default = RestartPolicy::default();
    let Some(wanted) = wanted else { return Ok(default) };
    let condition = match wanted.condition.as_str() {
        "" | "any" => RestartCondition::Any,
        "on-failure" => RestartCondition::OnFailure,
        "none" => RestartCondition::Never,
        other => {
            let text = format!("invalid restart condition {other:?}: it must be none, on-failure or any");
            return Err(ApiError::bad_request(text));
        }
    };
    Ok(RestartPolicy {
        condition,
        delay_secs: wanted.delay.map_or(default.delay_secs, seconds),
        max_attempts: wanted.max_attempts.unwrap_or(default.max_attempts),
        window_secs: wanted.window.map_or(default.window_secs, seconds),
    })
}

fn update_policy(wanted: Option<&api::UpdateConfig>) -> Result<UpdatePolicy, ApiError> {
    let default = UpdatePolicy::default();
    let Some(wanted) = wanted else { return Ok(default) };
    let failure_action = match wanted.failure_action.as_str() {
        "" | "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        "rollback" => FailureAction::RollBack,
        other => {
            let text = format!("invalid failure action {other:?}: it must be pause, continue or rollback");
            return Err(ApiError::bad_request(text));
        }
    };
    if !(0.0..=1.0).contains(&wanted.max_failure_ratio) {
        return Err(ApiError::bad_request("update-maxfailureratio cannot be less than 0 or bigger than 1"));
    }
    Ok(UpdatePolicy {
        parallelism: wanted.parallelism,
        delay_secs: seconds(wanted.delay),
        monitor_secs: if wanted.monitor == 0 { default.monitor_secs } else { seconds(wanted.monitor) },
        // Between 0 and a million, as just checked.
        max_failure_ppm: (wanted.max_failure_ratio * WHOLE_PPM).round() as u32,
        failure_action,
    })
}

fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(NANOSECONDS)
}

/// A replacement of tasks in Docker's words.
pub(super) fn describe(rollout: &Rollout) -> api::UpdateStatus {
    let state = match rollout.phase {
        RolloutPhase::Updating => "updating",
        RolloutPhase::Paused => "paused",
        RolloutPhase::Completed => "completed",
        RolloutPhase::RollingBack => "rollback_started",
        RolloutPhase::RollbackPaused => "rollback_paused",
        RolloutPhase::RolledBack => "rollback_completed",
    };
    api::UpdateStatus {
        state: state.into(),
        started_at: time::rfc3339(rollout.started_at),
        completed_at: rollout.completed_at.map(time::rfc3339),
        message: rollout.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_dockers_default() {
        assert_eq!(wanted(&api::ServiceSpec::default()), Ok(Renewal::default()));
        let spec = api::ServiceSpec {
            update_config: Some(api::UpdateConfig { parallelism: 1, ..api::UpdateConfig::default() }),
            task_template: api::TaskSpec {
                restart_policy: Some(api::RestartPolicy::default()),
                ..api::TaskSpec::default()
            },
            ..api::ServiceSpec::default()
        };
        assert_eq!(wanted(&spec), Ok(Renewal::default()));
    }

    #[test]
    fn times_are_rounded_up() {
        for (nanoseconds, rounded) in
            [(0, 0), (1, 1), (NANOSECONDS, 1), (NANOSECONDS + 1, 2), (u64::MAX, 18_446_744_074)]
        {
            assert_eq!(seconds(nanoseconds), rounded);
        }
    }
}
