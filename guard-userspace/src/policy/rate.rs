//! Rates and bursts as a policy writes them, and what they cost in the units of the packet path.

use std::fmt;

use guard_common::gcra::{self, MAX_BURST, UNITS_PER_NANOSECOND};

/// How many in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u64,
    pub period: Period,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    Second,
    Minute,
    Hour,
}

impl Period {
    const fn nanoseconds(self) -> u64 {
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

/// A rate and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub rate: Rate,
    pub burst: u64,
}

/// A packet costs at least a nanosecond, so that its cost is exact within 1.6 per cent.
const MAX_PER_SECOND: u64 = 1_000_000_000;

impl Budget {
    /// Checks a rate and its burst against the clock that the packet path has.
    pub fn new(rate: Rate, burst: Option<u64>, tick_ns: u64) -> Result<Self, String> {
        let Rate { count, period } = rate;
        if count == 0 {
            return Err(format!(
                "a rate of 0 would let nobody through: to close the port, leave the service out; \
                 the least is 1{}",
                Period::Hour.suffix()
            ));
        }
        if count > MAX_PER_SECOND.saturating_mul(period.nanoseconds() / 1_000_000_000) {
            return Err(format!(
                "{rate} is more than can be counted: the most is 1G/s; leave the budget out for no \
                 limit"
            ));
        }
        let burst = burst.unwrap_or_else(|| rate.default_burst());
        if burst == 0 {
            return Err("a burst of 0 would let nobody through: the least is 1".to_owned());
        }
        let budget = Self { rate, burst };
        let burst_units = budget.units().map(|units| units.burst);
        let Some(burst_ns) = burst_units.map(|units| units / UNITS_PER_NANOSECOND) else {
            return Err(format!(
                "a burst of {burst} at {rate} lasts longer than 208 days: the most is {}",
                MAX_BURST / rate.cost()
            ));
        };
        // Within a tick the clock stands still and nothing refills: a shorter burst would keep the
        // source below its rate.
        if burst_ns < tick_ns {
            let least = (u128::from(tick_ns) * u128::from(count))
                .div_ceil(u128::from(period.nanoseconds()));
            return Err(format!(
                "a burst of {burst} at {rate} lasts {burst_ns} ns, shorter than this kernel's tick \
                 of {tick_ns} ns: the least is {least}"
            ));
        }
        Ok(budget)
    }

    /// The budget as the packet path keeps it. A cost is rounded down, in the source's favour.
    /// `None` if the burst is too long for it.
    fn units(self) -> Option<gcra::Budget> {
        let cost = self.rate.cost();
        let burst = cost.checked_mul(self.burst)?;
        (burst <= MAX_BURST).then_some(gcra::Budget { cost, burst })
    }

    /// The budget as the packet path keeps it.
    pub fn to_units(self) -> gcra::Budget {
        // `new` has refused what does not fit.
        self.units().unwrap_or(gcra::Budget::UNLIMITED)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} with a burst of {}", self.rate, self.burst)
    }
}

impl Rate {
    /// What it allows in one second; for minutes and hours a tenth of the period's count.
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

    /// Units of time that one packet takes.
    const fn cost(self) -> u64 {
        self.period.nanoseconds() * UNITS_PER_NANOSECOND / self.count
    }

    /// Parses `2k/s`, `50/s`, `1.5M/min`, `20/h`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no rate: write a number, k, M or G if you like, and /s, /min or /h, such as \"2k/s\""
            )
        };
        let (count, period) = text.rsplit_once('/').ok_or_else(wrong)?;
        let period = match period {
            "s" => Period::Second,
            "min" => Period::Minute,
            "h" => Period::Hour,
            _ => return Err(wrong()),
        };
        let count = parse_count(count).ok_or_else(wrong)?;
        Ok(Self { count, period })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, period } = *self;
        let (count, multiple) = match count {
            count if count >= 1_000_000_000 && count % 1_000_000_000 == 0 => {
                (count / 1_000_000_000, "G")
            }
            count if count >= 1_000_000 && count % 1_000_000 == 0 => (count / 1_000_000, "M"),
            count if count >= 1_000 && count % 1_000 == 0 => (count / 1_000, "k"),
            count => (count, ""),
        };
        write!(formatter, "{count}{multiple}{}", period.suffix())
    }
}

/// Parses `200`, `4k`, `1.5M`: decimal multiples, and nothing that is not a whole number in the end.
pub fn parse_count(text: &str) -> Option<u64> {
    let (number, multiple) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1u64),
    };
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
        Budget::new(Rate::parse(rate)?, burst, TICK)
    }

    #[test]
    fn rates_read_as_they_are_written() {
        for text in ["2k/s", "50/s", "1500/min", "20/h", "1M/s", "1G/s"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Rate::parse("1.5k/s").unwrap().count, 1_500);
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "/",
            "/s",
            "2k",
            "2k/",
            "2k/d",
            "2 k/s",
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
        ] {
            assert!(Rate::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bursts_left_out_are_a_second_or_a_tenth_of_the_period() {
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
    fn a_burst_shorter_than_a_tick_is_refused_with_the_number_that_would_do() {
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
    fn a_budget_costs_what_its_rate_says() {
        let gcra::Budget { cost, burst } = budget("2k/s", None).unwrap().to_units();
        assert_eq!(cost, 500_000 * UNITS_PER_NANOSECOND);
        assert_eq!(burst, 1_000_000_000 * UNITS_PER_NANOSECOND);
    }
}
