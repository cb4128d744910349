//! `guard check`: reads a policy and describes it, without applying it.

mod live;

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use self::live::LiveCheck;
use super::{
    AgentLocation, DEFAULT_POLICY, Failure, Output, print, print_json, print_warning,
    read_policy_and_text,
};
use crate::{
    agent::{
        Loaded,
        plan::{chosen_by, refusal_here},
    },
    host::Host,
    policy::{Budget, Budgets, From, Policy, Ports, Service, Source, Treatment, Warning},
};

#[derive(Debug, Args)]
pub struct Check {
    /// The policy file
    #[arg(value_name = "FILE", default_value = DEFAULT_POLICY)]
    file: PathBuf,
    /// Compare it with the sessions that are open into this host, your own SSH session first; exit
    /// with 1 if it would cut any
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    output: Output,
}

/// The output of `guard check --json`.
#[derive(Serialize)]
struct Checked {
    file: String,
    sha256: String,
    mode: &'static str,
    scope: &'static str,
    /// `null`: the interfaces of the default routes.
    interfaces: Option<Vec<String>>,
    limits: Limits,
    limits_total: Limits,
    services: Vec<CheckedService>,
    sources: Vec<CheckedSource>,
    /// Values that are valid, but probably a mistake.
    warnings: Vec<Warning>,
    /// Why `guard run` would refuse the policy on this host; `null` if it would not.
    refused_here: Option<String>,
    /// Only with `--live`.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<LiveCheck>,
}

#[derive(Serialize)]
struct CheckedService {
    name: String,
    ports: Vec<String>,
    from: Vec<String>,
    /// The mode in force: the service's or the host's, whichever is less strict.
    mode: &'static str,
    limits: Limits,
    totals: Limits,
}

#[derive(Serialize)]
struct CheckedSource {
    name: String,
    cidrs: Vec<String>,
    factor: Option<u32>,
    exempt: bool,
    deny: bool,
    owner: Option<String>,
    reason: Option<String>,
    expires: Option<Timestamp>,
}

/// Budgets per source and for all sources together. `None`: there are none.
fn describe_both(limits: &Limits, totals: &Limits) -> Option<String> {
    let described = [limits.describe("per source"), totals.describe("in all")];
    let described: Vec<String> = described
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect();
    (!described.is_empty()).then(|| described.join(", "))
}

/// Budgets as they are written in a policy.
#[derive(Serialize)]
struct Limits {
    packets: Option<String>,
    bytes: Option<String>,
    connections: Option<String>,
}

impl Check {
    pub(super) async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self {
            file,
            live,
            output: Output { json },
        } = self;
        let (policy, text) = read_policy_and_text(&file)?;
        let host = Host::read_once().ok();
        let warnings = warnings(&policy, host.as_ref());
        let loaded = Loaded::new(policy.clone(), text.into(), &file);
        let file = file.display().to_string();
        let mut checked = Checked {
            refused_here: host.and_then(|host| refusal_here(&host, loaded)),
            ..Checked::new(file.clone(), &policy, warnings)
        };
        // Warnings go to standard error: standard output holds the description of the policy.
        for warning in &checked.warnings {
            print_warning(&warning.display(&file));
        }
        if live {
            checked.live =
                Some(LiveCheck::read(&policy, &location.client()?, &location.pins).await?);
        }
        if json {
            print_json(&checked)?;
        } else {
            print(&checked.describe().map_err(anyhow::Error::from)?)?;
        }
        match checked.live.as_ref().and_then(LiveCheck::complaint) {
            Some(complaint) => Err(anyhow::Error::msg(complaint).into()),
            None => Ok(()),
        }
    }
}

/// The warnings of a policy, also about the interfaces that it would guard on this host: missing ones, and their MTU.
fn warnings(policy: &Policy, host: Option<&Host>) -> Vec<Warning> {
    let mut warnings = policy.warnings(Timestamp::now());
    if let Some(host) = host {
        let named = policy.interfaces.iter().flatten();
        let missing = named.filter(|interface| host.link_named(&interface.name).is_none());
        warnings.extend(missing.map(|interface| Warning {
            line: Some(interface.line),
            problem: format!("interface {} does not exist on this host", interface.name),
        }));
        let chosen = chosen_by(host, policy);
        if policy.interfaces.is_none() && chosen.is_empty() {
            warnings.push(Warning {
                line: None,
                problem: "`interfaces` is not set, and this host has no default route: no interface would be guarded"
                    .to_owned(),
            });
        }
        let chosen = chosen.into_iter();
        for link in chosen.filter_map(|index| host.link(index)) {
            warnings.extend(policy.frame_warnings(&link.name, link.mtu));
        }
    }
    warnings
}

impl Checked {
    fn new(file: String, policy: &Policy, warnings: Vec<Warning>) -> Self {
        let services = policy.services.iter();
        Self {
            file,
            sha256: policy.sha256.clone(),
            mode: policy.mode.name(),
            scope: policy.scope.name(),
            interfaces: policy.interfaces.as_ref().map(|interfaces| {
                let names = interfaces.iter().map(|interface| interface.name.clone());
                names.collect()
            }),
            limits: Limits::new(&policy.limits.budgets),
            limits_total: Limits::new(&policy.limits_total),
            services: services
                .map(|service| CheckedService::new(service, policy))
                .collect(),
            sources: policy.sources.iter().map(CheckedSource::new).collect(),
            warnings,
            refused_here: None,
            live: None,
        }
    }

    fn describe(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let Self {
            file,
            sha256: _,
            mode,
            scope,
            interfaces,
            limits,
            limits_total,
            services,
            sources,
            warnings: _,
            refused_here,
            live,
        } = self;
        let interfaces = match interfaces {
            Some(names) => names.join(", "),
            None => "of the default routes".to_owned(),
        };
        let elsewhere = match refused_here {
            Some(refusal) => {
                writeln!(
                    text,
                    "NOT FOR THIS HOST: `guard run` would refuse {refusal}"
                )?;
                " elsewhere"
            }
            None => "",
        };
        writeln!(
            text,
            "{file} is valid{elsewhere}: mode {mode}, scope {scope}, interfaces {interfaces}"
        )?;
        for CheckedService {
            name,
            ports,
            from,
            mode,
            limits,
            totals,
        } in services
        {
            let budgets = describe_both(limits, totals).unwrap_or_else(|| "no limit".to_owned());
            writeln!(
                text,
                "  {name}: {} from {}, {budgets}, {mode}",
                ports.join(", "),
                from.join(", ")
            )?;
        }
        if services.is_empty() {
            writeln!(
                text,
                "  no service is listed: every port in the scope is closed"
            )?;
        }
        if let Some(limits) = describe_both(limits, limits_total) {
            writeln!(text, "  packets that match no service: {limits}")?;
        }
        for source in sources {
            writeln!(text, "  source {source}")?;
        }
        if let Some(live) = live {
            text.push_str(&live.describe()?);
        }
        Ok(text)
    }
}

impl CheckedSource {
    fn new(source: &Source) -> Self {
        let Source {
            name,
            line: _,
            cidrs,
            treatment,
            owner,
            reason,
            expires,
        } = source;
        Self {
            name: name.clone(),
            cidrs: cidrs.iter().map(ToString::to_string).collect(),
            factor: match treatment {
                Treatment::Factor(factor) => Some(*factor),
                Treatment::Named | Treatment::Exempt | Treatment::Denied => None,
            },
            exempt: *treatment == Treatment::Exempt,
            deny: *treatment == Treatment::Denied,
            owner: owner.clone(),
            reason: reason.clone(),
            expires: *expires,
        }
    }
}

impl fmt::Display for CheckedSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            cidrs,
            factor,
            exempt,
            deny,
            owner,
            reason,
            expires,
        } = self;
        // A source from a threat feed has thousands of prefixes.
        const SHOWN: usize = 8;
        let shown: Vec<&str> = cidrs.iter().take(SHOWN).map(String::as_str).collect();
        write!(formatter, "{name}: {}", shown.join(", "))?;
        if let Some(more) = cidrs.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            write!(formatter, " and {more} more")?;
        }
        if let Some(factor) = factor {
            write!(formatter, ", {factor} times every budget per source")?;
        }
        if *exempt {
            write!(formatter, ", never limited")?;
        }
        if *deny {
            write!(formatter, ", denied")?;
        }
        if let Some(owner) = owner {
            write!(formatter, ", owned by {owner}")?;
        }
        if let Some(reason) = reason {
            write!(formatter, ", because: {reason}")?;
        }
        if let Some(expires) = expires {
            write!(formatter, ", until {expires}")?;
        }
        Ok(())
    }
}

impl CheckedService {
    fn new(service: &Service, policy: &Policy) -> Self {
        Self {
            name: service.name.clone(),
            ports: service.ports.iter().map(Ports::to_string).collect(),
            from: match &service.from {
                From::Any => vec!["any".to_owned()],
                From::Admitted(admitted) => {
                    let prefixes = admitted.iter().map(|entry| entry.prefix.to_string());
                    prefixes.collect()
                }
            },
            mode: service.mode.min(policy.mode).name(),
            limits: Limits::new(&service.limit.budgets),
            totals: Limits::new(&service.total),
        }
    }
}

impl Limits {
    fn new(budgets: &Budgets) -> Self {
        let Budgets {
            packets,
            bytes,
            connections,
        } = budgets;
        let describe = |budget: &Option<Budget>| budget.map(|budget| budget.to_string());
        Self {
            packets: describe(packets),
            bytes: describe(bytes),
            connections: describe(connections),
        }
    }

    fn describe(&self, whose: &str) -> String {
        let Self {
            packets,
            bytes,
            connections,
        } = self;
        let budgets = [
            (packets, "packets"),
            (bytes, "bytes"),
            (connections, "connections"),
        ];
        let limited: Vec<String> = budgets
            .into_iter()
            .filter_map(|(budget, key)| Some(format!("{key} {} {whose}", budget.as_ref()?)))
            .collect();
        limited.join(", ")
    }
}
