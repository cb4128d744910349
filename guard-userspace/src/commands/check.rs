//! `guard check`: reads a policy and says what it means, without applying it.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use super::{DEFAULT_POLICY, Failure, Output, print, print_json, read_policy};
use crate::policy::{From, Policy, Ports, Service};

#[derive(Debug, Args)]
pub struct Check {
    /// The policy file
    #[arg(value_name = "FILE", default_value = DEFAULT_POLICY)]
    file: PathBuf,
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
}

#[derive(Serialize)]
struct CheckedService {
    name: String,
    ports: Vec<String>,
    from: Vec<String>,
    /// As it applies, which is never stricter than the host's.
    mode: &'static str,
    packets: Option<String>,
}

impl Check {
    pub fn run(self) -> Result<(), Failure> {
        let Self {
            file,
            output: Output { json },
        } = self;
        let policy = read_policy(&file)?;
        let checked = Checked::new(file.display().to_string(), &policy);
        if json {
            print_json(&checked)?;
        } else {
            print(&checked.describe().map_err(anyhow::Error::from)?)?;
        }
        Ok(())
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
            packets,
        } in services
        {
            let packets = match packets {
                Some(packets) => format!("{packets} packets per source"),
                None => "no limit".to_owned(),
            };
            writeln!(
                text,
                "  {name}: {} from {}, {packets}, {mode}",
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
                From::Prefixes(prefixes) => prefixes.iter().map(ToString::to_string).collect(),
            },
            mode: service.mode.min(policy.mode).name(),
            packets: service.packets.map(|packets| packets.to_string()),
        }
    }
}
