//! Parses labels. Their text is untrusted: long values are not parsed, and warnings quote and cut the text.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use toml::Spanned;

use super::{FROM, LIMIT, MAX_FROM, complaints::Complaints, sources::merged};
use crate::{
    Admitted, Budgets, KernelTick, Policy, Source, check, file,
    untrusted::{self, quoted},
};

/// The longest value that is parsed: room for [`MAX_FROM`] IPv6 prefixes in full length.
const LONGEST_VALUE: usize = 16 << 10;

/// The most prefixes that are merged to test whether [`MAX_FROM`] or fewer are left.
const MOST_MERGED: usize = 16 * MAX_FROM;

/// The most characters shown of a label's key and value, and the most unknown labels shown.
const SHOWN_KEY: usize = 48;
const SHOWN_VALUE: usize = 64;
const SHOWN_KEYS: usize = 3;

/// The labels of a container, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LabelRequest {
    pub from: Option<Wish>,
    pub limit: Budgets,
}

/// The sources in a container's `guard.from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Any,
    /// Merged prefixes. There are more than [`MAX_FROM`] only if the label names a single source of the policy.
    Admitted(Rc<[Admitted]>),
    /// More than [`MAX_FROM`] prefixes.
    TooMany,
}

/// Parses the labels of containers, one container at a time.
pub struct LabelReader<'a> {
    clock: KernelTick,
    sources: HashMap<&'a str, &'a Source>,
    /// The merged prefixes of sources that labels have named already.
    merged: HashMap<&'a str, Rc<[Admitted]>>,
}

impl<'a> LabelReader<'a> {
    pub fn new(policy: &'a Policy, clock: KernelTick) -> Self {
        let sources = policy.sources.iter();
        Self {
            clock,
            sources: sources
                .map(|source| (source.name.as_str(), source))
                .collect(),
            merged: HashMap::new(),
        }
    }

    /// Parses the labels of a container. A label that cannot be parsed has no effect but a warning.
    pub fn read(
        &mut self,
        labels: &BTreeMap<String, String>,
        complaints: &mut Complaints,
    ) -> LabelRequest {
        let mut asked = LabelRequest::default();
        let mut unknown = Vec::new();
        for (key, value) in labels {
            let read = match key.strip_prefix(LIMIT) {
                _ if key == FROM => self.read_from(value).map(|from| asked.from = Some(from)),
                Some(kind @ ("packets" | "bytes" | "connections")) => {
                    read_limit(kind, value, self.clock)
                        .map(|limit| asked.limit = limit.or(asked.limit))
                }
                _ => {
                    unknown.push(key);
                    continue;
                }
            };
            if let Err(problem) = read {
                complaints.add(format!(
                    "the label {key}={} is ignored: {}",
                    quoted(value, SHOWN_VALUE),
                    untrusted::one_line(&problem, 2 * SHOWN_VALUE)
                ));
            }
        }
        if asked.from == Some(Wish::TooMany) {
            complaints.add(format!(
                "its ports are closed to every source: the label {FROM} names more than {MAX_FROM} prefixes, \
                 even after they are merged"
            ));
        }
        if !unknown.is_empty() {
            let keys = unknown.iter().map(|key| untrusted::name(key, SHOWN_KEY));
            complaints.add(format!(
                "unknown label: {}; write {FROM}, {LIMIT}packets, {LIMIT}bytes or {LIMIT}connections",
                untrusted::listed(keys, SHOWN_KEYS)
            ));
        }
        asked
    }

    /// Parses `any`, CIDRs and names of sources, separated by commas.
    fn read_from(&mut self, value: &str) -> Result<Wish, String> {
        if value.len() > LONGEST_VALUE {
            return Ok(Wish::TooMany);
        }
        let words = value.split(',').map(str::trim);
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Err("write \"any\", CIDRs, or names of sources".to_owned());
        }
        if words.contains(&"any") {
            return Ok(Wish::Any);
        }
        if let [word] = words.as_slice()
            && let Some(list) = self.source(word)
        {
            return Ok(Wish::Admitted(list));
        }
        let mut admitted = Vec::new();
        let mut is_too_many = false;
        for word in words {
            match self.source(word) {
                Some(list) if admitted.len() + list.len() > MOST_MERGED => is_too_many = true,
                Some(list) => admitted.extend_from_slice(&list),
                None => admitted.push(Admitted {
                    prefix: check::parse_from(word, || self.sources.keys().copied())?,
                    expires: None,
                }),
            }
        }
        let admitted = merged(&admitted);
        Ok(if is_too_many || admitted.len() > MAX_FROM {
            Wish::TooMany
        } else {
            Wish::Admitted(admitted.into())
        })
    }

    /// The merged prefixes of a source of the policy.
    fn source(&mut self, name: &str) -> Option<Rc<[Admitted]>> {
        let source: &'a Source = self.sources.get(name)?;
        let list = self.merged.entry(&source.name).or_insert_with(|| {
            let cidrs = source.cidrs.iter().map(|prefix| Admitted {
                prefix: *prefix,
                expires: source.expires,
            });
            merged(&cidrs.collect::<Vec<_>>()).into()
        });
        Some(Rc::clone(list))
    }
}

/// Parses a budget as a policy writes it: `500/s`, or `{ rate = "50/s", burst = 200 }`.
fn read_limit(kind: &str, value: &str, clock: KernelTick) -> Result<Budgets, String> {
    let value = value.trim();
    if value.len() > LONGEST_VALUE || value.contains('\n') {
        return Err("write a rate on one line, such as 500/s".to_owned());
    }
    let limit: file::LimitToml = if value.starts_with('{') {
        let text = format!("{kind} = {value}");
        toml::from_str(&text).map_err(|error: toml::de::Error| error.message().to_owned())?
    } else {
        let budget = Some(Spanned::new(
            0..0,
            file::BudgetToml {
                rate: value.to_owned(),
                burst: None,
            },
        ));
        let mut limit = file::LimitToml::default();
        match kind {
            "packets" => limit.packets = budget,
            "bytes" => limit.bytes = budget,
            _ => limit.connections = budget,
        }
        limit
    };
    let limit = check::check_limit(&limit, clock).map_err(|problem| problem.text)?;
    Ok(limit.budgets)
}
