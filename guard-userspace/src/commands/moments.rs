//! Times for people: how long ago or how long until, and the time of day in the host's time zone.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// `3 min ago (09:45:01)`.
pub fn ago(at: Timestamp) -> String {
    ago_from(at, Timestamp::now(), &TimeZone::system())
}

/// `4:32`, `1:04:32`, `3 d`: the time that is left.
pub fn left(until: Timestamp) -> String {
    left_from(until, Timestamp::now())
}

/// `09:45:01` today, `2026-11-29 09:45` on another day.
pub fn clock(at: Timestamp) -> String {
    clock_from(at, Timestamp::now(), &TimeZone::system())
}

fn ago_from(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let clock = clock_from(at, now, zone);
    let seconds = now.duration_since(at).as_secs();
    if seconds < 0 {
        // The clock was set back.
        return format!("at {clock}");
    }
    let passed = match seconds {
        0 => return format!("just now ({clock})"),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    };
    format!("{passed} ago ({clock})")
}

fn left_from(until: Timestamp, now: Timestamp) -> String {
    let left = until
        .duration_since(now)
        .max(SignedDuration::ZERO)
        .as_secs();
    let (hours, minutes, seconds) = (left / 3_600, left / 60 % 60, left % 60);
    match left {
        0..3_600 => format!("{minutes}:{seconds:02}"),
        3_600..172_800 => format!("{hours}:{minutes:02}:{seconds:02}"),
        _ => format!("{} d", left / 86_400),
    }
}

fn clock_from(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let [at, now] = [at, now].map(|moment| moment.to_zoned(zone.clone()));
    if at.date() == now.date() {
        at.strftime("%H:%M:%S").to_string()
    } else {
        at.strftime("%Y-%m-%d %H:%M").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_says_how_long_ago_it_was_and_the_time_of_day() {
        let now: Timestamp = "2026-11-30T09:48:10Z".parse().unwrap();
        for (at, text) in [
            ("2026-11-30T09:48:10Z", "just now (09:48:10)"),
            ("2026-11-30T09:45:01.123456789Z", "3 min ago (09:45:01)"),
            ("2026-11-30T00:00:00Z", "9 h ago (00:00:00)"),
            ("2026-11-29T09:45:01Z", "24 h ago (2026-11-29 09:45)"),
            ("2026-11-20T09:45:01Z", "10 d ago (2026-11-20 09:45)"),
            // The clock was set back.
            ("2026-11-30T10:00:00Z", "at 10:00:00"),
        ] {
            assert_eq!(ago_from(at.parse().unwrap(), now, &TimeZone::UTC), text);
        }
        let berlin = TimeZone::fixed(jiff::tz::offset(1));
        let at = "2026-11-30T09:45:01Z".parse().unwrap();
        assert_eq!(ago_from(at, now, &berlin), "3 min ago (10:45:01)");
    }

    #[test]
    fn the_time_left_counts_down_to_zero() {
        let now: Timestamp = "2026-11-30T09:48:10Z".parse().unwrap();
        for (seconds, text) in [
            (-5, "0:00"),
            (0, "0:00"),
            (272, "4:32"),
            (3_872, "1:04:32"),
            (300_000, "3 d"),
        ] {
            let until = now + SignedDuration::from_secs(seconds);
            assert_eq!(left_from(until, now), text);
        }
    }
}
