//! The measured rows: a number each, and its bar.

use serde::Serialize;

use crate::spread::Spread;

#[derive(Serialize)]
pub struct Packets {
    /// The time of a packet in the empty program, in nanoseconds.
    pub empty: Spread,
    /// The number of quiet rounds.
    pub rounds: u32,
    /// The share of measurements that do not count, because the empty program beside them was disturbed.
    pub disturbed: f64,
    /// The cases with too few quiet rounds: all of their rounds count.
    pub unquiet: Vec<String>,
}

#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub group: &'static str,
    pub about: String,
    pub unit: RowUnit,
    /// The median and the quartiles.
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// The bar for the median.
    pub bar: Option<Bar>,
    /// `None` without a bar and without a fault.
    pub within: Option<bool>,
    /// Why the number is not valid.
    pub fault: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    pub fn written(self, unit: RowUnit) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", unit.written(most)),
            Self::AtLeast(least) => format!("≥ {}", unit.written(least)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RowUnit {
    /// Nanoseconds above the empty program.
    #[serde(rename = "ns")]
    Nanoseconds,
    #[serde(rename = "ratio")]
    Ratio,
    #[serde(rename = "ms")]
    Milliseconds,
    /// Per cent of one core.
    #[serde(rename = "%")]
    Percent,
    #[serde(rename = "MB")]
    Megabytes,
}

impl RowUnit {
    pub fn written(self, value: f64) -> String {
        match self {
            Self::Nanoseconds => format!("{value:.1} ns"),
            Self::Ratio => format!("{value:.3}"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Percent => format!("{value:.2} %"),
            Self::Megabytes => format!("{value:.1} MB"),
        }
    }
}

impl Row {
    pub fn new(
        (name, group, about): (&str, &'static str, &str),
        unit: RowUnit,
        spread: Spread,
        bar: Option<Bar>,
        fault: Option<String>,
    ) -> Self {
        let Spread { median, low, high } = spread;
        let within = match (&fault, bar) {
            (Some(_), _) => Some(false),
            (None, bar) => bar.map(|bar| bar.holds(median)),
        };
        Self {
            name: name.to_owned(),
            group,
            about: about.to_owned(),
            unit,
            value: median,
            low,
            high,
            bar,
            within,
            fault,
        }
    }
}

impl Row {
    /// A row in place of those that could not be measured.
    pub fn failed(group: &'static str, error: &anyhow::Error) -> Self {
        let none = Spread {
            median: f64::NAN,
            low: f64::NAN,
            high: f64::NAN,
        };
        let about = (group, group, "could not be measured");
        Self::new(
            about,
            RowUnit::Ratio,
            none,
            None,
            Some(format!("{error:#}")),
        )
    }

    pub fn judgement(&self) -> &'static str {
        match (&self.fault, self.within) {
            (Some(_), _) => "WRONG PATH",
            (None, Some(true)) => "within",
            (None, Some(false)) => "MISSED",
            (None, None) => "",
        }
    }
}
