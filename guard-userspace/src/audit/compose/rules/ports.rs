//! What a service publishes: one finding for a port, the gravest.

use super::super::{
    port::Port,
    rule::{
        Finding,
        Rule::{self, Base60Port, DangerousPort, EveryAddress, PublishedBesideProxy},
        Severity,
    },
    service::{Project, Service},
};
use crate::audit::{
    dangers::{Danger, Harm, Login, danger_at},
    proxies::WEB,
};
use guard_common::layout::PortProtocol;

/// A longer range was hardly published for one number in it.
const LONGEST_NAMED: usize = 16;

/// Ports whose protocols an HTTP proxy does not carry.
const NOT_WEB: [u16; 12] = [21, 22, 25, 53, 110, 143, 465, 587, 853, 993, 995, 25565];

pub fn judge(project: &Project<'_>, service: &Service<'_>) -> Vec<Finding> {
    let is_proxy = project.is_proxy(service);
    let proxy = project.proxy_of(service);
    let ports = project.published(service).iter();
    ports
        .flat_map(|port| {
            let reasons = [
                on_every_address(is_proxy, port),
                beside_proxy(proxy.as_deref(), port),
                dangerous(port),
            ];
            let exposed = exposed(service, port, reasons);
            exposed.into_iter().chain(base_60(service, port))
        })
        .collect()
}

/// What makes a port worth a finding, and how grave it is on every address.
type Reason = (Rule, Severity, String);

fn exposed(service: &Service<'_>, port: &Port, reasons: [Option<Reason>; 3]) -> Option<Finding> {
    if port.address.is_loopback() {
        return None;
    }
    // Of two that are as grave, the later says more.
    let gravest = reasons.into_iter().flatten().max_by_key(|reason| reason.1);
    let (rule, severity, what) = gravest?;
    let severity = match port.address.is_one() {
        false => severity,
        true => severity.milder(),
    };
    let why = format!("{port} is published on {}{what}", on(port));
    let fix = port.fix.clone();
    Some(Finding::new(rule, severity, service, &port.place, why, fix))
}

fn dangerous(port: &Port) -> Option<Reason> {
    let danger = danger(port)?;
    let what = format!(": {danger}");
    let severity = match (danger.harm, danger.login) {
        (Harm::Breach, Login::Open) => Severity::Critical,
        (Harm::Breach, Login::Varies | Login::Asked) => Severity::High,
        (Harm::Leak, _) => Severity::Medium,
    };
    Some((DangerousPort, severity, what))
}

fn beside_proxy(proxy: Option<&str>, port: &Port) -> Option<Reason> {
    let proxy = proxy.filter(|_| is_web(port))?;
    let what = format!(
        " beside the proxy {proxy}: who asks this port goes round the proxy, with its TLS, logins and \
         limits"
    );
    Some((PublishedBesideProxy, Severity::High, what))
}

fn on_every_address(is_proxy: bool, port: &Port) -> Option<Reason> {
    if port.address.is_one() {
        return None;
    }
    let is_front = port.host_ports().is_some_and(|ports| {
        let is_one = ports.start() == ports.end();
        is_one && WEB.contains(ports.start())
    });
    let severity = match is_front {
        true if is_proxy => return None,
        true => Severity::Low,
        false => Severity::Medium,
    };
    let what = ": Docker lets it past the INPUT rules of ufw and firewalld".to_owned();
    Some((EveryAddress, severity, what))
}

fn on(port: &Port) -> String {
    let address = port.address;
    match port.unset.as_slice() {
        [] => address.to_string(),
        unset => format!("{address} while {} is not set", unset.join(", ")),
    }
}

/// By the container's port, which says what listens, or else by the host's. The worst one of a range.
fn danger(port: &Port) -> Option<&'static Danger> {
    let worst = |ports: &std::ops::RangeInclusive<u16>| {
        let few = ports.clone().take(LONGEST_NAMED + 1).count() <= LONGEST_NAMED;
        let ports = few.then(|| ports.clone()).into_iter().flatten();
        ports
            .filter_map(|number| danger_at(port.protocol, number))
            .max_by_key(|danger| (danger.harm, danger.login))
    };
    worst(&port.container).or_else(|| worst(port.host_ports()?))
}

fn is_web(port: &Port) -> bool {
    let is_other = |number: &u16| port.container.contains(number);
    port.protocol == PortProtocol::Tcp && !NOT_WEB.iter().any(is_other)
}

fn base_60(service: &Service<'_>, port: &Port) -> Option<Finding> {
    let fix = port.quoted.clone()?;
    let why = "readers of YAML 1.1, such as docker-compose 1, take this port for a number in base 60: \
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
