//! Rates and bursts as a policy writes them, converted to the units of the packet path.

use std::fmt;

use guard_common::gcra::{self, BYTE_COST_SHIFT, MAX_BURST, MAX_BYTE_COST, UNITS_PER_NANOSECOND};

/// A count in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u64,
    pub period: Period,
}

/// The time that a rate counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    Second,
    Minute,
    Hour,
}

impl Period {
    pub(super) const fn nanoseconds(self) -> u64 {
        let seconds = match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
        };
        seconds * 1_000_000_000
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Second => "/s",
            Self::Minute => "/min",
            Self::Hour => "/h",
        }
    }
}

/// The unit that a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Packets,
    Connections,
    Bytes,
}

impl Unit {
    /// The suffix of a number of this unit.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Packets | Self::Connections => "",
            Self::Bytes => "B",
        }
    }

    /// The highest rate in a second. At this rate the rounded cost of one unit is still exact within 1.6 per cent.
    const fn max_per_second(self) -> u64 {
        match self {
            Self::Packets | Self::Connections => 1_000_000_000,
            Self::Bytes => 100_000_000_000,
        }
    }

    /// The smallest burst that lets a packet through. For bytes, a full-sized frame with two VLAN tags.
    const fn least_burst(self) -> u64 {
        match self {
            Self::Packets | Self::Connections => 1,
            Self::Bytes => 1_522,
        }
    }
}

/// A rate, and the burst that may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub rate: Rate,
    pub burst: u64,
    pub unit: Unit,
}

impl Budget {
    /// Checks a rate and its burst against the kernel's tick, the resolution of the packet path's clock.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn new(rate: Rate, burst: Option<u64>, unit: Unit, tick_ns: u64) -> Result<Self, String> {
        let Rate { count, period } = rate;
        let display = rate.display(unit);
        if count == 0 {
            return Err(
                "a rate of 0 would let nothing through: to close the port, leave the \
                        service out"
                    .to_owned(),
            );
        }
        let seconds = period.nanoseconds() / 1_000_000_000;
        let most = unit.max_per_second();
        if count > most.saturating_mul(seconds) {
            return Err(format!(
                "{display} is too high: the highest rate is {}; leave the budget out for no limit",
                Rate {
                    count: most,
                    period: Period::Second
                }
                .display(unit)
            ));
        }
        let burst = burst.unwrap_or_else(|| rate.default_burst());
        let suffix = unit.suffix();
        let least = unit.least_burst();
        if burst < least {
            return Err(format!(
                "a burst of {burst}{suffix} at {display} would let no full-sized packet through: the \
                 least is {least}{suffix}, as in {{ rate = \"{display}\", burst = \"{least}{suffix}\" }}"
            ));
        }
        let budget = Self { rate, burst, unit };
        let Some(gcra::GcraBudget { burst: units, .. }) = budget.units() else {
            return Err(format!(
                "a burst of {burst}{suffix} at {display} refills too slowly: write a smaller burst or a \
                 higher rate"
            ));
        };
        // Within a tick the clock does not advance and nothing refills: a shorter burst would keep the source below
        // its rate.
        let burst_ns = units / UNITS_PER_NANOSECOND;
        let least =
            (u128::from(tick_ns) * u128::from(count)).div_ceil(u128::from(period.nanoseconds()));
        if u128::from(burst) < least {
            return Err(format!(
                "a burst of {burst}{suffix} at {display} refills in {burst_ns} ns, less than this \
                 kernel's tick of {tick_ns} ns: the least is {least}{suffix}"
            ));
        }
        Ok(budget)
    }

    /// A budget with this many times the rate and the burst, to display: it is not checked against the kernel's tick.
    pub fn times(self, factor: u32) -> Self {
        let times = |count: u64| count.saturating_mul(factor.into());
        Self {
            rate: Rate {
                count: times(self.rate.count),
                ..self.rate
            },
            burst: times(self.burst),
            ..self
        }
    }

    /// A budget that a policy leaves out, with the burst of a second.
    pub(super) const fn by_default(rate: Rate, unit: Unit) -> Self {
        Self {
            rate,
            burst: rate.count,
            unit,
        }
    }

    /// The budget in units of the packet path; `None` if it does not fit. Costs are rounded down, in the source's
    /// favour.
    fn units(self) -> Option<gcra::GcraBudget> {
        let Self { rate, burst, unit } = self;
        let (shift, dearest) = match unit {
            Unit::Packets | Unit::Connections => (0, u64::MAX),
            Unit::Bytes => (BYTE_COST_SHIFT, MAX_BYTE_COST),
        };
        let period = u128::from(rate.period.nanoseconds() * UNITS_PER_NANOSECOND);
        let cost = (period << shift) / u128::from(rate.count);
        let burst = (cost * u128::from(burst)) >> shift;
        let fits = cost <= u128::from(dearest) && burst <= u128::from(MAX_BURST);
        fits.then_some(gcra::GcraBudget {
            cost: u64::try_from(cost).ok()?,
            burst: u64::try_from(burst).ok()?,
        })
    }

    /// The budget in units of the packet path.
    pub fn to_units(self) -> gcra::GcraBudget {
        // `new` refuses budgets that do not fit.
        self.units().unwrap_or(gcra::GcraBudget::UNLIMITED)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, burst, unit } = self;
        let (display, suffix) = (rate.display(*unit), unit.suffix());
        write!(formatter, "{display} with a burst of {burst}{suffix}")
    }
}

impl Rate {
    /// The count of one second; for minutes and hours, a tenth of the period's count and at least 1.
    const fn default_burst(self) -> u64 {
        match self.period {
            Period::Second => self.count,
            Period::Minute | Period::Hour => {
                if self.count < 10 {
                    1
                } else {
                    self.count / 10
                }
            }
        }
    }

    /// Parses `2k/s`, `50/s`, `1.5M/min`, `20/h`, `10/5s`; for bytes, `20MB/s`. Spaces between number, unit and period
    /// are ignored, and `K`, `/sec`, `/second`, `/m`, `/minute` and `/hour` are accepted as well.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn parse(text: &str, unit: Unit) -> Result<Self, String> {
        let example = match unit {
            Unit::Packets | Unit::Connections => "2k/s",
            Unit::Bytes => "20MB/s",
        };
        let wrong = || {
            let letter = match unit {
                Unit::Packets | Unit::Connections => "",
                Unit::Bytes => " B for bytes,",
            };
            format!(
                "{text:?} is not a rate: write a number, optionally k, M or G,{letter} and /s, /min or /h, \
                 such as \"{example}\""
            )
        };
        let (count, period) = match text.rsplit_once('/') {
            Some(parts) => parts,
            None if is_of_bits(text) => (text, "s"),
            None => return Err(wrong()),
        };
        let (times, period) = parse_period(period).ok_or_else(wrong)?;
        let count = match parse_count_of(count, unit) {
            Some(count) => count,
            None => {
                let bytes = other_unit(count).filter(|_| unit == Unit::Bytes);
                let bytes = bytes.ok_or_else(wrong)?;
                let right = Self::per(bytes, times, period).ok_or_else(wrong)?;
                return Err(format!(
                    "{text:?} uses bits or binary multiples: write {:?}, in bytes",
                    right.display(unit)
                ));
            }
        };
        Self::per(count, times, period).ok_or_else(|| {
            format!(
                "{text:?} is not a whole number in a second, a minute or an hour: write a rate for one of \
                 these, such as \"{example}\""
            )
        })
    }

    /// The rate of `count` in `times` periods, per second, minute or hour: the shortest of these in which the count is
    /// a whole number.
    fn per(count: u64, times: u64, period: Period) -> Option<Self> {
        if times == 1 {
            return Some(Self { count, period });
        }
        let length = times.checked_mul(period.nanoseconds())?;
        let mut periods = [Period::Second, Period::Minute, Period::Hour].into_iter();
        periods.find_map(|period| {
            let scaled = u128::from(count) * u128::from(period.nanoseconds());
            let count = u64::try_from(scaled / u128::from(length)).ok()?;
            scaled
                .is_multiple_of(u128::from(length))
                .then_some(Self { count, period })
        })
    }

    /// The rate as a policy writes it.
    pub fn display(self, unit: Unit) -> String {
        let Self { count, period } = self;
        let (count, multiple) = match count {
            count if count >= 1_000_000_000 && count % 1_000_000_000 == 0 => {
                (count / 1_000_000_000, "G")
            }
            count if count >= 1_000_000 && count % 1_000_000 == 0 => (count / 1_000_000, "M"),
            count if count >= 1_000 && count % 1_000 == 0 => (count / 1_000, "k"),
            count => (count, ""),
        };
        format!("{count}{multiple}{}{}", unit.suffix(), period.suffix())
    }
}

/// Parses a burst: `200`, `4k`; for bytes, `40MB`.
///
/// # Errors
/// The burst to write instead, if `text` is in bits or binary multiples.
pub fn parse_burst(text: &str, unit: Unit) -> Result<u64, Option<String>> {
    parse_count_of(text, unit).ok_or_else(|| {
        let bytes = other_unit(text).filter(|_| unit == Unit::Bytes)?;
        Some(format!("{bytes}B"))
    })
}

/// Parses `s`, `5s` or `minute`: a number of periods.
fn parse_period(text: &str) -> Option<(u64, Period)> {
    let text = text.trim();
    let name = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let times = match text.strip_suffix(name)? {
        "" => 1,
        digits => digits.parse().ok().filter(|times| *times > 0)?,
    };
    let period = match name.trim_start() {
        "s" | "sec" | "secs" | "second" | "seconds" => Period::Second,
        "m" | "min" | "mins" | "minute" | "minutes" => Period::Minute,
        "h" | "hour" | "hours" => Period::Hour,
        _ => return None,
    };
    Some((times, period))
}

fn parse_count_of(text: &str, unit: Unit) -> Option<u64> {
    parse_count(text.trim().strip_suffix(unit.suffix())?)
}

/// The ends of numbers in bits, as they are often written, the longest first. They are compared without case, but for the
/// last: `B` is bytes.
const BITS: [&str; 3] = ["bits", "bit", "bps"];

/// Removes an end in any case.
fn strip_end<'a>(text: &'a str, end: &str) -> Option<&'a str> {
    let place = text.len().checked_sub(end.len())?;
    let (rest, last) = text.split_at_checked(place)?;
    last.eq_ignore_ascii_case(end).then_some(rest)
}

/// Whether a rate is in bits without a period: `20Mbps`, `100Mbit`.
fn is_of_bits(text: &str) -> bool {
    BITS.iter().any(|end| strip_end(text.trim(), end).is_some())
}

/// Converts `20Mbit`, `20Mbps` and `1.5MiB`, which are in bits or binary multiples, to bytes, rounded down.
fn other_unit(text: &str) -> Option<u64> {
    let text = text.trim();
    let bits = BITS.iter().find_map(|end| strip_end(text, end));
    if let Some(number) = bits.or_else(|| text.strip_suffix('b')) {
        return parse_scaled(number, 1_000).map(|bits| bits / 8);
    }
    parse_scaled(strip_end(text, "iB")?, 1_024)
}

/// Parses a number with a multiple, `1.5M`, whose powers are those of `base`. The product is rounded down.
fn parse_scaled(text: &str, base: u128) -> Option<u64> {
    let text = text.trim_end();
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let power = match text.strip_prefix(number)? {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        _ => return None,
    };
    let number = number.trim_end();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{whole}{decimals}").parse().ok()?;
    let divisor = 10u128.checked_pow(decimals.len().try_into().ok()?)?;
    let product = digits.checked_mul(base.pow(power))? / divisor;
    u64::try_from(product).ok()
}

/// Parses `200`, `4k`, `1.5M`: a number with a decimal multiple, whose product is a whole number.
fn parse_count(text: &str) -> Option<u64> {
    let text = text.trim_end();
    let (number, multiple) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1u64),
    };
    let number = number.trim_end();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) {
        return None;
    }
    let scale = 10u64.checked_pow(decimals.len().try_into().ok()?)?;
    let decimals = decimals.parse::<u64>().ok()?.checked_mul(multiple)?;
    if decimals % scale != 0 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(multiple)?;
    whole.checked_add(decimals / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 4_000_000;

    fn budget(rate: &str, burst: Option<u64>) -> Result<Budget, String> {
        Budget::new(
            Rate::parse(rate, Unit::Packets)?,
            burst,
            Unit::Packets,
            TICK,
        )
    }

    fn bytes(rate: &str, burst: Option<u64>) -> Result<Budget, String> {
        Budget::new(Rate::parse(rate, Unit::Bytes)?, burst, Unit::Bytes, TICK)
    }

    #[test]
    fn rates_are_displayed_as_a_policy_writes_them() {
        let read = |text, unit| Rate::parse(text, unit).unwrap().display(unit);
        for text in ["2k/s", "50/s", "1500/min", "20/h", "1M/s", "1G/s"] {
            assert_eq!(read(text, Unit::Packets), text);
        }
        for text in ["20MB/s", "1500B/min", "100GB/s"] {
            assert_eq!(read(text, Unit::Bytes), text);
        }
        assert_eq!(read("1.5k/s", Unit::Packets), "1500/s");
        for (text, written) in [
            ("2 k/s", "2k/s"),
            ("2K/s", "2k/s"),
            ("50/sec", "50/s"),
            ("50/second", "50/s"),
            ("50 / m", "50/min"),
            ("50/minute", "50/min"),
            ("5/hour", "5/h"),
            ("10/5s", "2/s"),
            ("1/5s", "12/min"),
        ] {
            assert_eq!(read(text, Unit::Packets), written, "{text}");
        }
        for (text, written) in [
            ("1 MB/s", "1MB/s"),
            ("64KB/s", "64kB/s"),
            ("1.5 GB / min", "1500MB/min"),
            ("100MB/10s", "10MB/s"),
        ] {
            assert_eq!(read(text, Unit::Bytes), written, "{text}");
        }
    }

    #[test]
    fn invalid_rates_are_refused() {
        for text in [
            "",
            "/",
            "/s",
            "2k",
            "2k/",
            "2k/d",
            "-2/s",
            "k/s",
            "2kk/s",
            "1.0005k/s",
            "2m/s",
            "99999999999G/s",
            "0x10/s",
            "1e3/s",
            "1./s",
            ".5k/s",
            "2k/s/s",
            "٢/s",
            "2kB/s",
            "2é/s",
        ] {
            assert!(Rate::parse(text, Unit::Packets).is_err(), "{text}");
        }
        for (text, right) in [
            ("20Mbit/s", "2500kB/s"),
            ("100Mbit", "12500kB/s"),
            ("10mbps", "1250kB/s"),
            ("1MBit/s", "125kB/s"),
            ("1mb/s", "125kB/s"),
            ("1.5MiB/s", "1572864B/s"),
            ("1TiB/h", "1099511627776B/h"),
            ("20 Mbps", "2500kB/s"),
            ("8Mb/s", "1MB/s"),
            ("20MiB/s", "20971520B/s"),
            ("1KiB/min", "1024B/min"),
        ] {
            let error = Rate::parse(text, Unit::Bytes).unwrap_err();
            assert!(
                error.contains(&format!("write {right:?}")),
                "{text}: {error}"
            );
        }
        for text in ["10/0s", "10/7s", "10/s5", "/5s", "1/18446744073709551615h"] {
            assert!(Rate::parse(text, Unit::Packets).is_err(), "{text}");
        }
        for text in ["20M/s", "20MB", "B/s", "20BM/s", "20mb/s"] {
            assert!(Rate::parse(text, Unit::Bytes).is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_burst_is_one_second_or_a_tenth_of_the_period() {
        for (rate, burst) in [
            ("2k/s", 2_000),
            ("600/min", 60),
            ("5/min", 1),
            ("3600/h", 360),
            ("1/h", 1),
        ] {
            assert_eq!(budget(rate, None).unwrap().burst, burst, "{rate}");
        }
    }

    #[test]
    fn a_burst_shorter_than_a_tick_is_refused_with_the_least_that_is_not() {
        let error = budget("10k/s", Some(10)).unwrap_err();
        assert!(error.contains("the least is 40"), "{error}");
        assert!(budget("10k/s", Some(40)).is_ok());
        assert!(budget("10k/s", Some(39)).is_err());
    }

    #[test]
    fn impossible_budgets_are_refused() {
        for (rate, burst) in [
            ("0/s", None),
            ("2G/s", None),
            ("10/s", Some(0)),
            ("1/h", Some(u64::MAX)),
            ("1/h", Some(10_000)),
        ] {
            assert!(budget(rate, burst).is_err(), "{rate} {burst:?}");
        }
    }

    #[test]
    fn a_burst_of_bytes_holds_a_full_frame() {
        assert!(bytes("1kB/s", None).unwrap_err().contains("1522B"));
        assert!(bytes("1kB/s", Some(1_522)).is_ok());
        assert!(
            bytes("1B/h", Some(1_522)).is_err(),
            "less than a byte a second"
        );
    }

    #[test]
    fn the_cost_of_bytes_matches_their_rate_up_to_100_gb_a_second() {
        for (rate, per_second) in [("20MB/s", 20e6), ("1GB/s", 1e9), ("100GB/s", 100e9)] {
            let price = bytes(rate, None).unwrap().to_units().price_of_bytes(1_500);
            let exact = 1_500.0 / per_second * 1e9 * UNITS_PER_NANOSECOND as f64;
            let error = (price.cost as f64 - exact).abs() / exact;
            assert!(error < 0.01, "{rate}: {error}");
        }
    }

    #[test]
    fn the_cost_of_a_packet_matches_its_rate() {
        let gcra::GcraBudget { cost, burst } = budget("2k/s", None).unwrap().to_units();
        assert_eq!(cost, 500_000 * UNITS_PER_NANOSECOND);
        assert_eq!(burst, 1_000_000_000 * UNITS_PER_NANOSECOND);
    }
}
