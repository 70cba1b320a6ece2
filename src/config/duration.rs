//! Durations as Go reads them: `5m`, `1h30m`, `1.5h`, `300ms`, with a sign or without.

use std::time::Duration;

/// Reads a duration; below zero is an error of its own, so that the caller can be lenient.
///
/// # Errors
/// [`DurationError`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let (negative, mut rest) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Malformed);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::Malformed);
        }
        let length = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(DurationError::NoUnit),
            _ => return Err(DurationError::Malformed),
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| DurationError::TooLong)? };
        total += u128::from(whole) * unit;
        // More digits than these can't change a nanosecond.
        let fraction = &fraction[..fraction.len().min(18)];
        if let Ok(parts) = fraction.parse::<u64>() {
            total += u128::from(parts) * unit / 10_u128.pow(u32::try_from(fraction.len()).expect("at most 18"));
        }
        if total > u128::from(i64::MAX.unsigned_abs()) + u128::from(negative) {
            return Err(DurationError::TooLong);
        }
        rest = after;
    }
    if negative && total > 0 {
        return Err(DurationError::Negative);
    }
    Ok(Duration::from_nanos(u64::try_from(total).expect("it is no more than i64 holds")))
}

/// Why text is no duration that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// It is none.
    Malformed,
    /// A number has no unit.
    NoUnit,
    /// It is more than 292 years.
    TooLong,
    /// It is below zero.
    Negative,
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_in_go() {
        for (text, seconds) in [("5m", 300.0), ("1h30m", 5_400.0), ("1.5h30m", 7_200.0), (".5s", 0.5), ("+0", 0.0)] {
            assert_eq!(parse(text).map(|duration| duration.as_secs_f64()), Ok(seconds), "{text}");
        }
        for (text, error) in [
            ("", DurationError::Malformed),
            ("5 m", DurationError::Malformed),
            ("1d", DurationError::Malformed),
            ("PT5M", DurationError::Malformed),
            (".s", DurationError::Malformed),
            ("5", DurationError::NoUnit),
            ("99999999999999999h", DurationError::TooLong),
            ("2562047h47m16.854775808s", DurationError::TooLong),
            ("-1ns", DurationError::Negative),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
