//! What has been measured: a row for each number, and what it is held to.

use serde::Serialize;

use crate::spread::Spread;

#[derive(Serialize)]
pub struct Packets {
    /// What a packet costs that gets the empty program, in nanoseconds.
    pub empty: Spread,
    /// In which nothing disturbed.
    pub rounds: u32,
    /// How much of what was measured does not count, because the empty program beside it was slowed down.
    pub disturbed: f64,
    /// Cases with hardly a quiet round: all of theirs count.
    pub unquiet: Vec<String>,
}

#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub group: &'static str,
    pub about: String,
    pub unit: RowUnit,
    /// The median, and the quartiles around it.
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// What the median is held to.
    pub bar: Option<Bar>,
    /// `None`: there is no bar, and nothing wrong.
    pub within: Option<bool>,
    /// Why the number means nothing.
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
    /// Nanoseconds more than the empty program.
    #[serde(rename = "ns")]
    Nanoseconds,
    #[serde(rename = "ratio")]
    Ratio,
    #[serde(rename = "ms")]
    Milliseconds,
    /// Of one core.
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
    /// Instead of rows that could not be measured.
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
