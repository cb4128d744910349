//! Finds the change of the policy that keeps the operator's own way in open.

use guard_common::{layout::PortProtocol, reason::Reason};

use super::CloseCause;
use crate::{
    policy::{Policy, Ports},
    sessions::Session,
};

pub fn keep_open(policy: &Policy, session: &Session, finding: &CloseCause) -> String {
    let client = session.peer.ip();
    let place = match finding.line {
        Some(line) => format!(" (line {line})"),
        None => String::new(),
    };
    match (finding.outcome.reason, &finding.service, finding.entry) {
        (Reason::SourceNotAllowed, Some(service), _) => {
            format!("add \"{client}\" to `from` of service \"{service}\"{place}")
        }
        (Reason::DeniedSource, _, Some(id)) => format!("end entry {id}: `guard revoke {id}`"),
        (Reason::DeniedSource, _, None) => {
            format!("deny no prefix that contains {client}{place}")
        }
        (reason, _, _) => service_for(policy, session, reason == Reason::ContainerAddress),
    }
}

/// A service that lists the port, for the operator's address alone.
fn service_for(policy: &Policy, session: &Session, addressed: bool) -> String {
    let Session { local, peer } = session;
    let ports = Ports::Range {
        protocol: PortProtocol::Tcp,
        ports: local.port()..=local.port(),
    };
    // A port that another service lists on one address must not be listed on all addresses.
    let place = *ports.indices().start();
    let mut listed = policy.services.iter().flat_map(|service| &service.ports);
    let addressed = addressed || listed.any(|ports| ports.indices().contains(&place));
    let address = if addressed {
        format!("address = \"{}\"\n", local.ip())
    } else {
        String::new()
    };
    format!(
        "[[service]]\nname = \"{}\"\nports = [\"{ports}\"]\n{address}from = [\"{}\"]\n",
        free_name(policy),
        peer.ip()
    )
}

fn free_name(policy: &Policy) -> String {
    let is_free = |name: &String| policy.services.iter().all(|service| service.name != *name);
    let numbered = (2..).map(|n| format!("ssh-{n}"));
    let mut names = std::iter::once("ssh".to_owned()).chain(numbered);
    names.find(is_free).unwrap_or_default()
}
