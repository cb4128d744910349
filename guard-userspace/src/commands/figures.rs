//! Numbers for people: three digits and a unit.

const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// `17`, `1.2k`, `3.4M`.
pub fn count(value: f64) -> String {
    let (number, unit) = scaled(value);
    format!("{number}{unit}")
}

/// `12,345`: all digits.
pub fn whole(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.2 GB`.
pub fn bytes(value: f64) -> String {
    let (number, unit) = scaled(value);
    format!("{number} {unit}B")
}

/// `3.4 Gbit/s`, from bytes per second.
pub fn bits(bytes_per_second: f64) -> String {
    let (number, unit) = scaled(bytes_per_second * 8.0);
    format!("{number} {unit}bit/s")
}

fn scaled(value: f64) -> (String, &'static str) {
    // The smallest value that three digits would round to 1000.
    const NEXT_UNIT: f64 = 999.5;
    // The sum of an empty iterator of f64 is -0.0, which would print as "-0".
    let mut value = value + 0.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= NEXT_UNIT
        && let Some(next) = units.next()
    {
        value /= 1000.0;
        unit = next;
    }
    let is_whole = unit.is_empty() && value.fract() == 0.0;
    let number = match value {
        _ if is_whole || value >= 99.95 => format!("{value:.0}"),
        _ if value < 0.05 => "<0.1".to_owned(),
        _ => format!("{value:.1}"),
    };
    (number, unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (6_048, "6,048"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(whole(value), text);
        }
    }

    #[test]
    fn numbers_have_at_most_three_digits_and_never_round_to_a_thousand() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (0.01, "<0.1"),
            (0.25, "0.2"),
            (7.0, "7"),
            (12.34, "12.3"),
            (99.96, "100"),
            (999.0, "999"),
            (999.5, "1.0k"),
            (1_240.0, "1.2k"),
            (99_960.0, "100k"),
            (999_499.0, "999k"),
            (999_500.0, "1.0M"),
            (1.8e19, "18.0E"),
            (1e22, "10000E"),
        ] {
            assert_eq!(count(value), text, "{value}");
        }
        assert_eq!(bytes(1_500.0), "1.5 kB");
        assert_eq!(bits(425e6), "3.4 Gbit/s");
    }
}
