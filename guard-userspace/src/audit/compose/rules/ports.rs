//! What a service publishes: one finding for a port, the gravest.

use super::super::{
    port::{Address, Port},
    rule::{
        Finding,
        Rule::{Base60Port, DangerousPort, EveryAddress, PublishedBesideProxy},
        Severity,
    },
    service::{Project, Service, WEB},
};
use crate::audit::dangers::{Danger, Login, danger_at};
use guard_common::layout::PortProtocol;

/// A longer range was hardly published for one number in it.
const LONGEST_NAMED: usize = 16;

/// Ports whose protocols an HTTP proxy does not carry.
const NOT_WEB: [u16; 12] = [21, 22, 25, 53, 110, 143, 465, 587, 853, 993, 995, 25565];

pub fn judge(project: &Project<'_>, service: &Service<'_>) -> Vec<Finding> {
    let ports = project.published(service).iter();
    ports
        .flat_map(|port| {
            let exposed = exposed(project, service, port);
            exposed.into_iter().chain(base_60(service, port))
        })
        .collect()
}

fn exposed(project: &Project<'_>, service: &Service<'_>, port: &Port) -> Option<Finding> {
    if port.address.is_loopback() {
        return None;
    }
    let on = on(port);
    let (rule, severity, why) = if let Some(danger) = danger(port) {
        let why = format!(
            "{port} is published on {on}: {} is the port of {}, {}. An intruder gets {}",
            danger.port,
            danger.service,
            login(danger.login),
            danger.gain,
        );
        let severity = match danger.login {
            Login::Open => Severity::Critical,
            Login::Varies | Login::Asked => Severity::High,
        };
        (DangerousPort, severity, why)
    } else if let Some(proxy) = project.proxy_of(service).filter(|_| is_web(port)) {
        let why = format!(
            "{port} is published on {on} beside the proxy {proxy}: who asks this port goes round \
             the proxy, with its TLS, logins and limits"
        );
        (PublishedBesideProxy, Severity::High, why)
    } else if port.address == Address::Every {
        let is_front = port.host_ports().is_some_and(|ports| {
            let is_one = ports.start() == ports.end();
            is_one && WEB.contains(ports.start())
        });
        if is_front && project.is_proxy(service) {
            return None;
        }
        let severity = if is_front {
            Severity::Low
        } else {
            Severity::Medium
        };
        let why = format!(
            "{port} is published on {on}: Docker lets it past the INPUT rules of ufw and firewalld"
        );
        (EveryAddress, severity, why)
    } else {
        return None;
    };
    let severity = match port.address {
        Address::Every => severity,
        Address::One(_) => severity.milder(),
    };
    let fix = port.fix.clone();
    Some(Finding::new(rule, severity, service, &port.place, why, fix))
}

fn on(port: &Port) -> String {
    let address = port.address;
    match port.unset.as_slice() {
        [] => address.to_string(),
        unset => format!("{address} while {} is not set", unset.join(", ")),
    }
}

fn login(login: Login) -> &'static str {
    match login {
        Login::Asked => "which its own login alone protects",
        Login::Varies => "which in some versions and set-ups asks for no login",
        Login::Open => "which asks for no login unless it is told to",
    }
}

/// By the container's port, which says what listens, or else by the host's. The most open one of a range.
fn danger(port: &Port) -> Option<&'static Danger> {
    let worst = |ports: &std::ops::RangeInclusive<u16>| {
        let few = ports.clone().take(LONGEST_NAMED + 1).count() <= LONGEST_NAMED;
        let ports = few.then(|| ports.clone()).into_iter().flatten();
        ports
            .filter_map(|number| danger_at(port.protocol, number))
            .max_by_key(|danger| danger.login)
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
