//! Writes a first policy for this host: it lists the reverse proxy, SSH and ping where they are found, closes all other
//! ports, and has mode observe.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

use guard_common::layout::{MAX_NAME, PortProtocol};

use crate::{
    audit::host::{
        DockerQuery, Endpoint, Level, Owner, Role, Survey, columns, danger, describe_owner, joined,
    },
    operator::SshSession,
    policy::DEFAULT_DOCKER_SOCKET,
};

/// A service of the policy.
struct DraftService {
    name: String,
    /// The comment lines above the service.
    why: Vec<String>,
    /// The elements of `ports`.
    ports: Vec<String>,
    /// The other lines of the service, with comments.
    rest: &'static [&'static str],
}

const OF_PROXY: &[&str] = &[
    "[service.limit]            # for each source: an IPv4 address or an IPv6 /64",
    "packets = \"2k/s\"           # more than a browser sends, less than a flood",
];

const OF_SSH: &[&str] = &[
    "# from = [\"198.51.100.0/24\"]   # better: only from your own networks",
    "[service.limit]            # for each source",
    "connections = { rate = \"1/s\", burst = 50 }   # slows down password guessing",
];

const OF_PING: &[&str] = &[
    "[service.limit]            # for each source",
    "packets = \"100/s\"          # enough for monitoring",
];

const OF_CLOSED: &[&str] =
    &["from = [\"198.51.100.0/24\"]   # the sources that need it; \"any\" is every source"];

/// The text of the policy. `session` is the operator's own way in.
pub fn write(survey: &Survey, session: Option<SshSession>) -> Result<String, fmt::Error> {
    let mut text = String::new();
    write_head(&mut text, &survey.docker)?;
    let mut names = BTreeSet::new();
    for service in [ssh(survey, session), proxy(survey, session), Ok(ping())] {
        match service {
            Ok(service) => service.write(&mut text, "", &mut names)?,
            Err(missing) => writeln!(text, "\n# {missing}")?,
        }
    }
    let closed = closed(survey, session);
    if closed.is_empty() {
        writeln!(text, "\n# Nothing else was found that others can reach.")?;
    } else {
        writeln!(
            text,
            "\n# These ports can be reached now, and will be closed in mode \"enforce\". To keep a port open, remove\n\
             # the `# ` before the lines of its service, and write the sources that need it into `from`."
        )?;
    }
    for service in closed {
        service.write(&mut text, "# ", &mut names)?;
    }
    Ok(text)
}

fn write_head(text: &mut String, docker: &DockerQuery) -> fmt::Result {
    let DockerQuery {
        socket,
        answered,
        error,
        running: _,
    } = docker;
    let (socket, why) = match (socket, error) {
        (Some(socket), None) if *answered => (
            socket.as_str(),
            "guard reads the published ports of containers here".to_owned(),
        ),
        (Some(socket), error) => {
            let error = error.as_deref().unwrap_or_default();
            (
                socket.as_str(),
                format!("PUBLISHED PORTS NOT KNOWN YET: {}", one_line(error)),
            )
        }
        (None, _) => (
            "",
            format!("no Docker was found; its usual socket is \"{DEFAULT_DOCKER_SOCKET}\""),
        ),
    };
    let socket = toml::Value::from(socket);
    write!(
        text,
        "# A first policy, from the services that `guard init` has found on this host. Read it. `guard check`\n\
         # describes it, `guard audit` lists the open ports, and guard.toml(5) explains every key.\n\
         \n\
         # Nothing is dropped yet: guard counts the packets that it would drop (`guard counters`). When none of\n\
         # them are packets that you want, write \"enforce\", and test it with `guard try FILE --for 5m`.\n\
         mode = \"observe\"\n\
         \n\
         # Every port that no service lists is closed. Scope \"containers\" closes only the ports that containers\n\
         # publish, and leaves the host's own ports to your firewall.\n\
         scope = \"host\"\n\
         \n\
         # The interfaces on which packets come in from outside. Left out: those of the default routes.\n\
         # interfaces = [\"eth0\"]\n\
         \n\
         [docker]\n\
         # {why}\n\
         socket = {socket}\n"
    )
}

/// The ports of SSH: those of its servers, and the port of the operator's own way in.
fn ssh(survey: &Survey, session: Option<SshSession>) -> Result<DraftService, &'static str> {
    let listening = with_role(survey, Role::Ssh);
    let mut ports: BTreeSet<u16> = listening
        .iter()
        .map(|endpoint| *endpoint.ports.start())
        .collect();
    let mut why: Vec<String> = listening.iter().map(|endpoint| found(endpoint)).collect();
    if let Some(session) = session {
        let port = session.server.port();
        why.push(format!(
            "tcp/{port}: you came in here, from {}",
            session.client.ip()
        ));
        ports.insert(port);
    }
    if ports.is_empty() {
        return Err("No SSH server was found that others can reach.");
    }
    why.insert(0, "The way in for operators.".to_owned());
    Ok(DraftService {
        name: "ssh".to_owned(),
        why,
        ports: ports
            .into_iter()
            .map(|port| format!("tcp/{port}"))
            .collect(),
        rest: OF_SSH,
    })
}

/// The ports of the reverse proxies.
fn proxy(survey: &Survey, session: Option<SshSession>) -> Result<DraftService, &'static str> {
    let mut proxies = with_role(survey, Role::Proxy);
    proxies.retain(|endpoint| !is_way_in(endpoint, session));
    if proxies.is_empty() {
        return Err(
            "No reverse proxy was recognised (Traefik, nginx, Caddy, HAProxy and the like).",
        );
    }
    let mut why = vec![
        "The reverse proxy: clients reach the web services through its TLS and its logins."
            .to_owned(),
    ];
    why.extend(proxies.iter().map(|endpoint| found(endpoint)));
    let ports: BTreeSet<(PortProtocol, u16)> = proxies
        .iter()
        .map(|endpoint| (endpoint.protocol, *endpoint.ports.start()))
        .collect();
    Ok(DraftService {
        name: "proxy".to_owned(),
        why,
        ports: ports
            .into_iter()
            .map(|(protocol, port)| format!("{}/{port}", protocol.name()))
            .collect(),
        rest: OF_PROXY,
    })
}

fn ping() -> DraftService {
    DraftService {
        name: "ping".to_owned(),
        why: vec!["Pings of monitors, and the answers to this host's own pings.".to_owned()],
        ports: vec!["icmp".to_owned(), "icmpv6".to_owned()],
        rest: OF_PING,
    }
}

fn with_role(survey: &Survey, role: Role) -> Vec<&Endpoint> {
    let endpoints = survey.endpoints.iter();
    let reachable = endpoints.filter(|endpoint| endpoint.level <= Level::Network);
    reachable
        .filter(|endpoint| endpoint.role == Some(role))
        .collect()
}

/// Whether the operator's own way in uses this port.
fn is_way_in(endpoint: &Endpoint, session: Option<SshSession>) -> bool {
    endpoint.protocol == PortProtocol::Tcp
        && session.is_some_and(|session| endpoint.ports.contains(&session.server.port()))
}

/// The ports that other hosts can reach and that the policy leaves closed, by owner.
fn closed(survey: &Survey, session: Option<SshSession>) -> Vec<DraftService> {
    let is_left = |endpoint: &&Endpoint| {
        let is_kept = endpoint.role.is_some() || is_way_in(endpoint, session);
        // A UDP port without a process is the kernel's, such as WireGuard's: it serves others, and is no client's.
        let is_client = endpoint.may_be_client && !endpoint.owner.processes.is_empty();
        // An endpoint on a container's own address is left out: it needs a service with that address.
        endpoint.level <= Level::Network && !is_client && !is_kept && !endpoint.own_address
    };
    let continues = |before: &Endpoint, next: &Endpoint| {
        before.continues(next) && danger(before).is_none() && danger(next).is_none()
    };
    let left = survey.endpoints.iter().filter(is_left).cloned();
    let mut by_owner: BTreeMap<String, Vec<Endpoint>> = BTreeMap::new();
    for endpoint in joined(left, continues, |endpoint| &mut endpoint.ports) {
        let name = name_of(&endpoint.owner);
        by_owner.entry(name).or_default().push(endpoint);
    }
    by_owner
        .into_iter()
        .map(|(name, endpoints)| left_closed(name, &endpoints))
        .collect()
}

fn left_closed(name: String, endpoints: &[Endpoint]) -> DraftService {
    let mut why: Vec<String> = Vec::new();
    let mut ports = Vec::new();
    for endpoint in endpoints {
        let is_known = |place: &String| *place == endpoint.place();
        why.push(found(endpoint));
        why.extend(danger(endpoint).map(|danger| format!("WARNING: {danger}")));
        if !ports.iter().any(is_known) {
            ports.push(endpoint.place());
        }
    }
    DraftService {
        name,
        why,
        ports,
        rest: OF_CLOSED,
    }
}

/// `tcp/8000: published by invoices of shop, container shop-invoices-1`.
fn found(endpoint: &Endpoint) -> String {
    let relation = if endpoint.owner.rewrite.is_some() {
        "not listening, but"
    } else if endpoint.inside.is_some() {
        "published by"
    } else {
        "listening:"
    };
    format!(
        "{}: {relation} {}",
        endpoint.place(),
        describe_owner(&endpoint.owner)
    )
}

fn name_of(owner: &Owner) -> String {
    let Owner {
        container,
        project,
        service,
        processes,
        ..
    } = owner;
    match (project, service, container, processes.iter().next()) {
        (Some(project), Some(service), ..) => format!("{project}-{service}"),
        (_, _, Some(container), _) => container.clone(),
        (.., Some(process)) => process.clone(),
        (_, Some(service), ..) => service.clone(),
        _ => owner.kind.to_owned(),
    }
}

impl DraftService {
    /// Writes the service. `before` is written before each line that is not a comment: empty, or `# `.
    fn write(&self, text: &mut String, before: &str, names: &mut BTreeSet<String>) -> fmt::Result {
        let Self {
            name,
            why,
            ports,
            rest,
        } = self;
        writeln!(text)?;
        for why in why {
            writeln!(
                text,
                "{}",
                columns([["#".to_owned(), one_line(why)]], 1).replace("\n ", "\n#")
            )?;
        }
        let name = free_name(name, names);
        let ports: Vec<String> = ports.iter().map(|port| format!("\"{port}\"")).collect();
        writeln!(text, "{before}[[service]]")?;
        writeln!(text, "{before}name = \"{name}\"")?;
        writeln!(text, "{before}ports = [{}]", ports.join(", "))?;
        for line in *rest {
            writeln!(text, "{before}{line}")?;
        }
        Ok(())
    }
}

/// A valid name that no other service has.
fn free_name(name: &str, names: &mut BTreeSet<String>) -> String {
    const ROOM: usize = 4;
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(allowed).take(MAX_NAME - ROOM).collect();
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    let mut all = std::iter::once(name.clone())
        .filter(|name| !name.is_empty())
        .chain(numbered);
    let free = all.find(|name| !names.contains(name)).unwrap_or_default();
    names.insert(free.clone());
    free
}

/// Replaces control characters: a process name may contain them, and a line break would end the comment.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::Host, policy::Containers};

    #[test]
    fn a_port_of_the_kernel_is_listed_and_a_port_of_a_client_is_not() {
        let endpoint = |port: u16, processes: &[&str]| {
            let addresses = BTreeSet::from(["0.0.0.0".parse().unwrap()]);
            let owner = Owner {
                kind: "unknown",
                processes: processes.iter().map(|name| (*name).to_owned()).collect(),
                ..Owner::default()
            };
            Endpoint {
                may_be_client: true,
                ..Endpoint::new(PortProtocol::Udp, port, addresses, Level::World, owner)
            }
        };
        let survey = Survey {
            endpoints: vec![endpoint(40_123, &["resolver"]), endpoint(51_820, &[])],
            containers: Containers::default(),
            docker: DockerQuery::default(),
            daemon: None,
            own_addresses: BTreeSet::new(),
            container_addresses: BTreeSet::new(),
            host: Host::unread(4_000_000),
            notes: Vec::new(),
        };
        let text = write(&survey, None).unwrap();
        assert!(text.contains("# ports = [\"udp/51820\"]"), "{text}");
        assert!(!text.contains("40123"), "{text}");
    }

    #[test]
    fn service_names_are_valid_and_unique() {
        let mut names = BTreeSet::new();
        let mut free = |name: &str| free_name(name, &mut names);
        assert_eq!(free("shop-web"), "shop-web");
        assert_eq!(free("shop-web"), "shop-web-2");
        assert_eq!(free("a b/c\n\"ü"), "a-b-c---");
        let long = "x".repeat(200);
        assert_eq!(free(&long).len(), MAX_NAME - 4);
        assert_eq!(free(&long).len(), MAX_NAME - 2);
        assert_eq!(free(""), "-2");
    }
}
