//! Amounts of processor time and memory as users write them: `0.5`, `64m`, and as they are shown.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

/// Decimals of a processor that count.
const CPU_DECIMALS: usize = 9;

/// Processors (`2`, `0.5`) as billionths.
pub(super) fn nano_cpus(text: &str) -> Result<u64, String> {
    let read = || {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > CPU_DECIMALS {
            return None;
        }
        let part: u64 = format!("{part:0<CPU_DECIMALS$}").parse().ok()?;
        whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(part)
    };
    read().ok_or_else(|| format!("invalid number of processors {text:?}: write it like 2 or 0.5"))
}

/// Bytes (`1048576`, `64m`, `2g`, `1gib`): the letters count in 1024s, as Docker's.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let read = || {
        let letters = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(letters)?;
        let shift = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    read().ok_or_else(|| format!("invalid number of bytes {text:?}: write it like 64m or 2g"))
}

/// Billionths of a processor as processors, without trailing zeros.
pub(super) fn cpus_text(nano_cpus: u64) -> String {
    let text = format!("{}.{:09}", nano_cpus / 1_000_000_000, nano_cpus % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes in the largest unit of 1024s that they reach.
pub(super) fn bytes_text(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.2}{unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_and_shown() {
        for (text, nano) in [("2", 2_000_000_000), ("0.5", 500_000_000), ("1.000000001", 1_000_000_001), ("0", 0)] {
            assert_eq!(nano_cpus(text), Ok(nano), "{text}");
            assert_eq!(cpus_text(nano), text);
        }
        for text in ["", ".5", "1.", "-1", "1e3", "0.0000000001", "99999999999999999999", "18446744074"] {
            assert!(nano_cpus(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn bytes_are_read_and_shown() {
        for (text, number) in
            [("1048576", 1 << 20), ("64m", 64 << 20), ("2G", 2 << 30), ("1gib", 1 << 30), ("5kb", 5 << 10), ("7b", 7)]
        {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for text in ["", "m", "-1m", "1.5g", "1x", "99999999999999999999", "18446744073709551615k"] {
            assert!(bytes(text).unwrap_err().contains(text), "{text}");
        }
        for (number, text) in [(0, "0B"), (1536, "1.50KiB"), (8 << 30, "8.00GiB"), (5 << 20, "5.00MiB")] {
            assert_eq!(bytes_text(number), text);
        }
    }
}
