//! Durations as users write them: `90s`, `12h`, `1h30m`, `500ms`.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

/// Reads one; the error names it.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    read(text).ok_or_else(|| format!("invalid duration {text:?}: write it like 90s, 12h or 1h30m"))
}

/// Reads one; the API counts in nanoseconds.
pub(super) fn nanoseconds(text: &str) -> Result<u64, String> {
    u64::try_from(parse(text)?.as_nanos()).map_err(|_| format!("the duration {text:?} is too long"))
}

fn read(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(letters)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let millis = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
        total = total.checked_add(Duration::from_millis(millis))?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

/// Seconds as a short duration: `45s`, `3m20s`, `11h59m`, `2d4h`.
pub(super) fn short(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(minutes, "m", seconds % 60, "s"),
        3600..86_400 => two(hours, "h", minutes, "m"),
        _ => two(days, "d", hours, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("90s", 90), ("12h", 43_200), ("1h30m", 5400), ("2d", 172_800), ("1000ms", 1)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "s", "1y", "-1s", "1.5h", "99999999999999999999s", "99999999999999999d", "1hs"] {
            assert!(parse(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn short_ones_are_short() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (200, "3m20s"), (43_140, "11h59m"), (187_200, "2d4h")]
        {
            assert_eq!(short(seconds), text);
        }
    }
}
