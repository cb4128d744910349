//! `guard check`: reads a policy and says what it means, without applying it.

mod live;

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use self::live::Live;
use super::{DEFAULT_POLICY, Failure, Output, print, print_json, read_policy};
use crate::policy::{Budget, Budgets, From, Policy, Ports, Service};

#[derive(Debug, Args)]
pub struct Check {
    /// The policy file
    #[arg(value_name = "FILE", default_value = DEFAULT_POLICY)]
    file: PathBuf,
    /// Hold it against the sessions that are open into this host, your own SSH session first; exit
    /// with 1 if it would cut any
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    output: Output,
}

/// What `guard check --json` prints.
#[derive(Serialize)]
struct Checked {
    file: String,
    sha256: String,
    mode: &'static str,
    scope: &'static str,
    /// `null`: those of the default routes.
    interfaces: Option<Vec<String>>,
    services: Vec<CheckedService>,
    /// Only with `--live`.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

#[derive(Serialize)]
struct CheckedService {
    name: String,
    ports: Vec<String>,
    from: Vec<String>,
    /// As it applies, which is never stricter than the host's.
    mode: &'static str,
    limits: Limits,
    totals: Limits,
}

/// Budgets as a policy writes them.
#[derive(Serialize)]
struct Limits {
    packets: Option<String>,
    bytes: Option<String>,
    connections: Option<String>,
}

impl Check {
    pub async fn run(self) -> Result<(), Failure> {
        let Self {
            file,
            live,
            output: Output { json },
        } = self;
        let policy = read_policy(&file)?;
        let mut checked = Checked::new(file.display().to_string(), &policy);
        if live {
            checked.live = Some(Live::ask(&policy).await?);
        }
        if json {
            print_json(&checked)?;
        } else {
            print(&checked.describe().map_err(anyhow::Error::from)?)?;
        }
        match checked.live.as_ref().and_then(Live::complaint) {
            Some(complaint) => Err(anyhow::Error::msg(complaint).into()),
            None => Ok(()),
        }
    }
}

impl Checked {
    fn new(file: String, policy: &Policy) -> Self {
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
            services: services
                .map(|service| CheckedService::new(service, policy))
                .collect(),
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
            services,
            live,
        } = self;
        let interfaces = match interfaces {
            Some(names) => names.join(", "),
            None => "those of the default routes".to_owned(),
        };
        writeln!(
            text,
            "{file} is a policy: mode {mode}, scope {scope}, interfaces {interfaces}"
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
            let limits = limits.describe("per source");
            let totals = totals.describe("in all");
            let budgets = match (limits.as_str(), totals.as_str()) {
                ("", "") => "no limit".to_owned(),
                (limits, "") => limits.to_owned(),
                ("", totals) => totals.to_owned(),
                (limits, totals) => format!("{limits}, {totals}"),
            };
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
        if let Some(live) = live {
            text.push_str(&live.describe()?);
        }
        Ok(text)
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
            .filter_map(|(budget, what)| Some(format!("{what} {} {whose}", budget.as_ref()?)))
            .collect();
        limited.join(", ")
    }
}
