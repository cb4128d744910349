//! Rules about published ports: one finding for a port, the most severe.

use super::super::{
    finding::Finding,
    not_web,
    port::{BindAddress, Port},
    project::Project,
    rule::{
        Rule::{
            self, Base60Port, DangerousPort, EveryAddress, PublicAddress, PublishedBesideProxy,
        },
        Severity,
    },
    service::{ACCEPT, ComposeService},
};
use crate::{
    dangers::{DANGERS, Danger, Harm, Login, ORDINARY, danger_at, panels_of},
    proxies::WEB,
};
use guard_common::layout::PortProtocol;

/// The most services of a port range that a finding names.
const MOST_NAMED: usize = 10;

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let is_proxy = project.is_proxy(service);
    let proxy = project.proxy_of(service);
    let ports = project.published(service).iter();
    ports
        .flat_map(|port| {
            let reasons = [
                open_to_all(is_proxy, port),
                beside_proxy(proxy.as_deref(), port),
                dangerous(service, is_proxy, port),
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
    let accept = accept(service, port, rule);
    let finding = Finding::new(rule, severity, service, &port.place, why, fix);
    Some(Finding { accept, ..finding })
}

/// The line that accepts the finding, if the port may be meant for everybody and a proxy cannot carry it.
fn accept(service: &ComposeService<'_>, port: &Port, rule: Rule) -> Option<String> {
    let (protocol, number) = (port.protocol, *port.container.start());
    let is_offered = match rule {
        DangerousPort => not_web::serves_everybody_all_the_same(protocol, number),
        _ => not_web::serves_everybody(protocol, number, service.image()),
    };
    let rules = service.accepted.iter().chain([&rule]);
    let rules: Vec<&str> = rules.map(|rule| rule.name()).collect();
    is_offered.then(|| format!("{ACCEPT}: [{}]", rules.join(", ")))
}

fn dangerous(service: &ComposeService<'_>, is_proxy: bool, port: &Port) -> Option<PortRisk> {
    let mut dangers = dangers(service, is_proxy, port);
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

/// The dangers of a port. The image with the container's port identifies the service, then the container's port alone.
/// If neither is known, the host's port decides, one step less severe: it is often just a free number.
fn dangers(
    service: &ComposeService<'_>,
    is_proxy: bool,
    port: &Port,
) -> Vec<(Severity, &'static Danger)> {
    let image = service.text("image").unwrap_or_default();
    // A proxy serves the web on the port of its panel, if it is told so.
    let is_web = is_proxy && (is_front(port) || is_entry_point(service, port));
    let of_image = || {
        let panels = panels_of(image);
        panels.filter(|danger| !is_web && danger.protocol == port.protocol)
    };
    let is_of_image = |number: u16| of_image().any(|danger| danger.port == number);
    let panels = of_image().filter(|danger| port.container.contains(&danger.port));
    let of_protocol = DANGERS
        .iter()
        .filter(|danger| danger.protocol == port.protocol);
    let by_port = of_protocol.filter_map(|danger| {
        if port.container.contains(&danger.port) {
            return (!is_of_image(danger.port)).then(|| (severity(danger), danger));
        }
        let inside = port.inside(danger.port)?;
        let says = ORDINARY.contains(&inside)
            || is_of_image(inside)
            || danger_at(port.protocol, inside).is_some();
        (!says).then(|| (severity(danger).lower(), danger))
    });
    panels
        .map(|danger| (severity(danger), danger))
        .chain(by_port)
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
    let severity = match is_front(port) {
        true if is_proxy => return None,
        true => Severity::Low,
        false => Severity::Medium,
    };
    let what =
        ": it bypasses the INPUT rules of ufw and firewalld, as Docker forwards it".to_owned();
    Some((rule, severity, what))
}

/// Whether the host's port is that of the web.
fn is_front(port: &Port) -> bool {
    port.host_ports().is_some_and(|ports| {
        let is_one = ports.start() == ports.end();
        is_one && WEB.contains(ports.start())
    })
}

/// Whether Traefik's arguments put an entry point for the web on the container's port.
fn is_entry_point(service: &ComposeService<'_>, port: &Port) -> bool {
    let address = format!(".address=:{}", port.container.start());
    service.command().iter().any(|word| {
        let word = word.text.to_ascii_lowercase();
        let name = word.strip_prefix("--entrypoints.");
        name.is_some_and(|name| !name.starts_with("traefik.") && name.ends_with(&address))
    })
}

fn on(port: &Port) -> String {
    let address = port.address;
    match port.unset.as_slice() {
        [] => address.to_string(),
        unset => format!("{address} while {} is not set", unset.join(", ")),
    }
}

fn is_web(port: &Port) -> bool {
    port.protocol == PortProtocol::Tcp && !port.container.clone().any(not_web::is_known)
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
