//! The policy file as it is written: its keys and their types, with the position of every value that a check may
//! refuse. An unknown key is an error.

use std::fmt;

use guard_common::{exposure::Scope, reason::Mode};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::{Spanned, de::DeTable};

use super::{Labels, OnExit, diagnose::first_problem, place::Problem, syntax};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    pub mode: RawMode,
    pub interfaces: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    pub scope: RawScope,
    #[serde(default)]
    pub docker: DockerToml,
    #[serde(default)]
    pub web: Web,
    pub cells: Option<Spanned<i64>>,
    #[serde(default)]
    pub on_exit: RawOnExit,
    #[serde(default)]
    pub limits: LimitsToml,
    #[serde(default)]
    pub service: Vec<ServiceToml>,
    #[serde(default)]
    pub source: Vec<SourceToml>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct DockerToml {
    pub socket: Option<Spanned<String>>,
    #[serde(default)]
    pub labels: RawLabels,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Web {
    pub listen: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct ServiceToml {
    pub name: Spanned<String>,
    pub ports: Spanned<Vec<Spanned<String>>>,
    pub address: Option<Spanned<String>>,
    pub from: Option<Spanned<Vec<Spanned<String>>>>,
    pub mode: Option<RawMode>,
    #[serde(default)]
    pub limit: LimitToml,
    #[serde(default)]
    pub total: Total,
    #[serde(default)]
    pub flood: FloodToml,
}

/// How floods of requests for TCP connections are met.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct FloodToml {
    pub protect: Option<RawProtection>,
    pub attempts: Option<Spanned<BudgetToml>>,
    pub lane: Option<Spanned<BudgetToml>>,
    pub replies: Option<Spanned<BudgetToml>>,
    pub level2: Option<Spanned<i64>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawProtection {
    Auto,
    #[default]
    Off,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct SourceToml {
    pub name: Spanned<String>,
    pub cidrs: Spanned<Vec<Spanned<String>>>,
    pub factor: Option<Spanned<i64>>,
    #[serde(default)]
    pub exempt: bool,
    #[serde(default)]
    pub deny: bool,
    pub owner: Option<String>,
    pub reason: Option<String>,
    pub expires: Option<Spanned<toml::value::Datetime>>,
}

/// Budgets of each source.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct LimitToml {
    pub packets: Option<Spanned<BudgetToml>>,
    pub bytes: Option<Spanned<BudgetToml>>,
    pub connections: Option<Spanned<BudgetToml>>,
    #[serde(default)]
    pub per: PerToml,
}

/// Budgets of packets that reach no service: of each source, and of all sources together.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct LimitsToml {
    pub packets: Option<Spanned<BudgetToml>>,
    pub bytes: Option<Spanned<BudgetToml>>,
    pub connections: Option<Spanned<BudgetToml>>,
    #[serde(default)]
    pub per: PerToml,
    #[serde(default)]
    pub total: Total,
}

/// Budgets of all sources together.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Total {
    pub packets: Option<Spanned<BudgetToml>>,
    pub bytes: Option<Spanned<BudgetToml>>,
    pub connections: Option<Spanned<BudgetToml>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct PerToml {
    pub ipv4: Option<Spanned<i64>>,
    pub ipv6: Option<Spanned<i64>>,
}

/// `"50/s"` or `{ rate = "50/s", burst = 200 }`.
pub struct BudgetToml {
    pub rate: String,
    pub burst: Option<Count>,
}

/// `200` or `"4k"`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a count such as 200 or \"4k\"")]
pub enum Count {
    Number(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for BudgetToml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BudgetVisitor)
    }
}

struct BudgetVisitor;

impl<'de> Visitor<'de> for BudgetVisitor {
    type Value = BudgetToml;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(r#"a rate such as "2k/s", or { rate = "50/s", burst = 200 }"#)
    }

    fn visit_str<E>(self, rate: &str) -> Result<BudgetToml, E> {
        Ok(BudgetToml {
            rate: rate.to_owned(),
            burst: None,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BudgetToml, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            rate: String,
            burst: Option<Count>,
        }
        let Table { rate, burst } = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(BudgetToml { rate, burst })
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawMode {
    Off,
    #[default]
    Observe,
    Enforce,
}

impl From<RawMode> for Mode {
    fn from(raw: RawMode) -> Self {
        match raw {
            RawMode::Off => Self::Off,
            RawMode::Observe => Self::Observe,
            RawMode::Enforce => Self::Enforce,
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawOnExit {
    #[default]
    Keep,
    Detach,
}

impl From<RawOnExit> for OnExit {
    fn from(raw: RawOnExit) -> Self {
        match raw {
            RawOnExit::Keep => Self::Keep,
            RawOnExit::Detach => Self::Detach,
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawLabels {
    #[default]
    Narrow,
    Off,
    Full,
}

impl From<RawLabels> for Labels {
    fn from(raw: RawLabels) -> Self {
        match raw {
            RawLabels::Narrow => Self::Narrow,
            RawLabels::Off => Self::Off,
            RawLabels::Full => Self::Full,
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawScope {
    #[default]
    Containers,
    Host,
}

impl From<RawScope> for Scope {
    fn from(raw: RawScope) -> Self {
        match raw {
            RawScope::Containers => Self::Containers,
            RawScope::Host => Self::Host,
        }
    }
}

/// Parses keys and types; [`super::check`] checks the values.
pub fn parse(text: &str) -> Result<File, Problem> {
    toml::from_str(text).map_err(|error| {
        // The error of the types names the types of this program. What the file says is looked at again instead.
        match DeTable::parse(text) {
            Err(error) => {
                let offset = offset(&error);
                Problem {
                    text: syntax::explain(text, error.message(), offset),
                    offset,
                }
            }
            Ok(table) => first_problem(&table).unwrap_or_else(|| Problem {
                text: error.message().replace('\n', "; "),
                offset: offset(&error),
            }),
        }
    })
}

fn offset(error: &toml::de::Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeySection, Kind, TOP, budget};

    /// The keys that the types accept below `path`, from the error about a key that does not exist.
    fn accepted(path: &[&str]) -> Vec<String> {
        let mut text = "no_such_key = 1".to_owned();
        for part in path.iter().rev() {
            text = format!("{part} = {{ {text} }}");
            if matches!(*part, "service" | "source") {
                text = text.replacen("= {", "= [{", 1) + "]";
            }
        }
        let error = toml::from_str::<File>(&text).map(|_| ()).unwrap_err();
        let (_, names) = error.message().split_once("expected ").unwrap();
        let names = names.split('`').skip(1).step_by(2);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    fn compare(section: &KeySection, path: &mut Vec<&'static str>) {
        let mut names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
        names.sort_unstable();
        assert_eq!(names, accepted(path), "{path:?}");
        for key in section.keys {
            path.push(key.name);
            match key.kind {
                Kind::Table(section) | Kind::Tables(section) => compare(section, path),
                Kind::Budget(unit) => compare(budget(unit), path),
                _ => {}
            }
            path.pop();
        }
    }

    #[test]
    fn the_keys_of_errors_are_those_that_the_file_may_have() {
        compare(&TOP, &mut Vec::new());
    }

    #[test]
    fn every_value_that_an_error_offers_for_a_key_is_accepted() {
        for section in [&TOP] {
            for key in section.keys {
                if let Kind::Choice(choices) = key.kind {
                    for choice in choices {
                        let text = format!("{} = {choice:?}", key.name);
                        assert!(toml::from_str::<File>(&text).is_ok(), "{text}");
                    }
                }
            }
        }
        for labels in ["narrow", "off", "full"] {
            let text = format!("docker.labels = {labels:?}");
            assert!(toml::from_str::<File>(&text).is_ok(), "{text}");
        }
    }
}
