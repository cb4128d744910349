//! Rules about published ports: one finding for a port, the most severe.

use super::super::{
    finding::Finding,
    port::{BindAddress, Port},
    project::Project,
    rule::{
        Rule::{
            self, Base60Port, DangerousPort, EveryAddress, PublicAddress, PublishedBesideProxy,
        },
        Severity,
    },
    service::ComposeService,
};
use crate::{
    dangers::{DANGERS, Danger, Harm, Login, ORDINARY, danger_at},
    proxies::WEB,
};
use guard_common::layout::PortProtocol;

/// The most services of a port range that a finding names.
const MOST_NAMED: usize = 10;

/// Ports whose protocols an HTTP proxy does not carry: SSH, mail, DNS, streams, chat, databases, games.
#[rustfmt::skip]
const NOT_WEB: [u16; 24] = [
    21, 22, 25, 53, 110, 143, 465, 554, 587, 853, 993, 995, 1935, 4190, 5222, 5269, 6543, 6881, 8554, 8883,
    22000, 25565, 51413, 64738,
];

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let is_proxy = project.is_proxy(service);
    let proxy = project.proxy_of(service);
    let ports = project.published(service).iter();
    ports
        .flat_map(|port| {
            let reasons = [
                open_to_all(is_proxy, port),
                beside_proxy(proxy.as_deref(), port),
                dangerous(port),
            ];
            let is_accepted = |finding: &Finding| service.accepted.contains(&finding.rule);
            let exposed = exposed(service, port, reasons);
            // One fix of the line settles both.
            exposed
                .filter(|finding| !is_accepted(finding))
                .or_else(|| base_60(service, port))
        })
        .collect()
}

/// A rule, its severity for a port on every address, and the reason.
type PortRisk = (Rule, Severity, String);

fn exposed(
    service: &ComposeService<'_>,
    port: &Port,
    reasons: [Option<PortRisk>; 3],
) -> Option<Finding> {
    if port.address.is_loopback() {
        return None;
    }
    // Of two reasons with the same severity, the later gives more detail: `max_by_key` returns the last.
    let gravest = reasons.into_iter().flatten().max_by_key(|reason| reason.1);
    let (rule, severity, what) = gravest?;
    let severity = match port.address.is_private() {
        false => severity,
        true => severity.lower(),
    };
    let why = format!("{port} is published on {}{what}", on(port));
    let fix = port.fix.clone();
    Some(Finding::new(rule, severity, service, &port.place, why, fix))
}

fn dangerous(port: &Port) -> Option<PortRisk> {
    let mut dangers = dangers(port);
    let gravest = dangers
        .iter()
        .enumerate()
        .max_by_key(|(_, (severity, danger))| (*severity, danger.harm, danger.login));
    let (gravest, _) = gravest?;
    let (severity, danger) = dangers.remove(gravest);
    let others = dangers
        .iter()
        .map(|(_, Danger { port, service, .. })| format!("{port} ({service})"));
    let named: Vec<String> = others.take(MOST_NAMED).collect();
    let others = match (named.as_slice(), dangers.len().saturating_sub(MOST_NAMED)) {
        ([], _) => String::new(),
        (named, 0) => format!(". Also known: {}", named.join(", ")),
        (named, more) => format!(". Also known: {} and {more} more", named.join(", ")),
    };
    Some((DangerousPort, severity, format!(": {danger}{others}")))
}

/// The dangers of a port. The container's port identifies the service. If it is not known, the host's port decides, one
/// step less severe: it is often just a free number.
fn dangers(port: &Port) -> Vec<(Severity, &'static Danger)> {
    let of_protocol = DANGERS
        .iter()
        .filter(|danger| danger.protocol == port.protocol);
    of_protocol
        .filter_map(|danger| {
            if port.container.contains(&danger.port) {
                Some((severity(danger), danger))
            } else {
                let inside = port.inside(danger.port)?;
                let says = ORDINARY.contains(&inside) || danger_at(port.protocol, inside).is_some();
                (!says).then(|| (severity(danger).lower(), danger))
            }
        })
        .collect()
}

fn severity(danger: &Danger) -> Severity {
    match (danger.harm, danger.login) {
        (Harm::Breach, Login::Open) => Severity::Critical,
        (Harm::Breach, Login::Varies | Login::Asked) => Severity::High,
        (Harm::Leak, _) => Severity::Medium,
    }
}

fn beside_proxy(proxy: Option<&str>, port: &Port) -> Option<PortRisk> {
    let proxy = proxy.filter(|_| is_web(port))?;
    let what = format!(
        " beside the proxy {proxy}: clients of this port bypass the proxy, with its TLS, logins and \
         limits"
    );
    Some((PublishedBesideProxy, Severity::High, what))
}

fn open_to_all(is_proxy: bool, port: &Port) -> Option<PortRisk> {
    let rule = match port.address {
        address if address.is_private() => return None,
        BindAddress::One(_) => PublicAddress,
        BindAddress::Every | BindAddress::EveryIpv4 | BindAddress::EveryIpv6 => EveryAddress,
    };
    let is_front = port.host_ports().is_some_and(|ports| {
        let is_one = ports.start() == ports.end();
        is_one && WEB.contains(ports.start())
    });
    let severity = match is_front {
        true if is_proxy => return None,
        true => Severity::Low,
        false => Severity::Medium,
    };
    let what =
        ": it bypasses the INPUT rules of ufw and firewalld, as Docker forwards it".to_owned();
    Some((rule, severity, what))
}

fn on(port: &Port) -> String {
    let address = port.address;
    match port.unset.as_slice() {
        [] => address.to_string(),
        unset => format!("{address} while {} is not set", unset.join(", ")),
    }
}

fn is_web(port: &Port) -> bool {
    let is_other = |number: &u16| port.container.contains(number);
    port.protocol == PortProtocol::Tcp && !NOT_WEB.iter().any(is_other)
}

fn base_60(service: &ComposeService<'_>, port: &Port) -> Option<Finding> {
    let fix = port.quoted.clone()?;
    let why = "YAML 1.1 parsers, such as that of docker-compose 1, read this port as a number in base 60: \
               put it in quotes";
    let fix = Some(fix);
    Some(Finding::new(
        Base60Port,
        Severity::Low,
        service,
        &port.place,
        why,
        fix,
    ))
}
