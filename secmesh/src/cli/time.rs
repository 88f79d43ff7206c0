//! Times, durations and amounts as people read them.

use std::time::{Duration, UNIX_EPOCH};

/// Seconds of the year 10000, which RFC 3339 cannot write.
const END_OF_TIME_S: u64 = 253_402_300_800;

/// A time in UTC by RFC 3339, to the millisecond; `-` for times after the year 9999.
pub fn rfc3339(unix_us: u64) -> String {
    written(unix_us, |time| {
        humantime::format_rfc3339_millis(time).to_string()
    })
}

/// As [`rfc3339`], to the microsecond.
pub fn rfc3339_us(unix_us: u64) -> String {
    written(unix_us, |time| {
        humantime::format_rfc3339_micros(time).to_string()
    })
}

fn written(unix_us: u64, write: impl Fn(std::time::SystemTime) -> String) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_micros(unix_us)) {
        Some(time) if unix_us / 1_000_000 < END_OF_TIME_S => write(time),
        _ => "-".to_owned(),
    }
}

/// A length of time in its one or two largest units: `250 ms`, `14 min`, `1 h 30 min`, `3 d 4 h`.
pub fn span(us: u64) -> String {
    let s = us / 1_000_000;
    let two = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {smaller}"),
    };
    match s {
        0 if us == 0 => "0 s".to_owned(),
        0 if us < 1_000 => format!("{us} µs"),
        0 => format!("{} ms", us / 1_000),
        1..60 => format!("{s} s"),
        60..600 => two(s / 60, "min", s % 60, "s"),
        600..3_600 => format!("{} min", s / 60),
        3_600..86_400 => two(s / 3_600, "h", s / 60 % 60, "min"),
        _ => two(s / 86_400, "d", s / 3_600 % 24, "h"),
    }
}

/// How long ago something was, or how long until it is.
pub fn relative(unix_us: u64, now_us: u64) -> String {
    match (now_us.checked_sub(unix_us), unix_us.checked_sub(now_us)) {
        // What happened in this second and clocks that differ by less need no figures.
        (Some(0..1_000_000), _) | (_, Some(0..1_000_000)) => "now".to_owned(),
        (Some(ago), _) => format!("{} ago", span(ago)),
        (None, Some(until)) => format!("in {}", span(until)),
        (None, None) => String::new(),
    }
}

/// A time with how long ago it was.
pub fn at(unix_us: u64, now_us: u64) -> String {
    format!("{} ({})", rfc3339(unix_us), relative(unix_us, now_us))
}

/// When a block ends, or ended.
pub fn end(expires_unix_us: u64, now_us: u64) -> String {
    match expires_unix_us.checked_sub(now_us) {
        Some(left) if left > 0 => format!("ends in {}", span(left)),
        _ => format!("ended {}", relative(expires_unix_us, now_us)),
    }
}

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && at % 3 == first {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the largest unit that leaves at least one: `999 B`, `1.5 MB` (powers of ten).
pub fn bytes(number: u64) -> String {
    let mut value = number as f64;
    let mut units = ["kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    let mut unit = "B";
    while value >= 999.95
        && let Some(next) = units.next()
    {
        value /= 1_000.0;
        unit = next;
    }
    if unit == "B" {
        format!("{number} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A measured figure without needless digits.
pub fn figure(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

/// `1 vote`, `2 votes`.
pub fn count(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_none_of_them_panics() {
        assert_eq!(rfc3339(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
        assert_eq!(
            rfc3339_us(1_700_000_000_123_456),
            "2023-11-14T22:13:20.123456Z"
        );
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(END_OF_TIME_S * 1_000_000), "-");
        assert_eq!(rfc3339(u64::MAX), "-");
        assert_eq!(
            rfc3339(END_OF_TIME_S * 1_000_000 - 1),
            "9999-12-31T23:59:59.999Z"
        );
    }

    #[test]
    fn spans_use_at_most_two_units() {
        for (us, text) in [
            (0, "0 s"),
            (999, "999 µs"),
            (250_000, "250 ms"),
            (59_999_999, "59 s"),
            (90_000_000, "1 min 30 s"),
            (120_000_000, "2 min"),
            (899_000_000, "14 min"),
            (5_400_000_000, "1 h 30 min"),
            (86_400_000_000, "1 d"),
            (90_000_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(us), text);
        }
    }

    #[test]
    fn relative_times_know_before_and_after() {
        let s = 1_000_000;
        assert_eq!(relative(10 * s, 12 * s), "2 s ago");
        assert_eq!(relative(12 * s, 10 * s), "in 2 s");
        assert_eq!(relative(10 * s, 10 * s + 5), "now");
        assert_eq!(relative(10 * s + 5, 10 * s), "now");
        assert_eq!(end(900 * s, 0), "ends in 15 min");
        assert_eq!(end(5 * s, 10 * s), "ended 5 s ago");
    }

    #[test]
    fn numbers_are_grouped_and_shortened() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345, "12,345"),
            (123_456_789, "123,456,789"),
        ] {
            assert_eq!(grouped(number), text);
        }
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_500, "1.5 kB"),
            (999_960, "1.0 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        for (value, text) in [(0.0, "0"), (200.0, "200"), (0.125, "0.125"), (1.5, "1.5")] {
            assert_eq!(figure(value), text);
        }
    }
}
