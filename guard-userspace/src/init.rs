//! Writes a first policy for this host: it lists the web, SSH and ping where they are found, closes all other ports of
//! the scope that fits, and has mode observe.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
};

use guard_common::{
    exposure::Scope,
    layout::{MAX_NAME, PortProtocol},
};
use guard_text::all_of;

use crate::{
    audit::compose::{address::is_link_local, proxies::WEB},
    audit::host::{
        DockerQuery, Endpoint, Level, Owner, Role, Survey, columns, danger, describe_owner, joined,
    },
    host::{Firewalls, Host, Link},
    operator::SshSession,
    policy::DEFAULT_DOCKER_SOCKET,
};

/// The facts that a first policy is made of.
pub struct Findings<'a> {
    pub survey: &'a Survey,
    /// The operator's own way in.
    pub session: Option<SshSession>,
    pub firewalls: &'a Firewalls,
}

/// A first policy, and what an operator should know about it.
pub struct FirstPolicy {
    pub text: String,
    pub advice: ScopeAdvice,
    pub interfaces: FirstInterfaces,
    /// The services that it lists, such as `ssh (tcp/22)`.
    pub listed: Vec<String>,
    /// The services that it has as comments.
    pub closed: Vec<String>,
}

/// The interfaces on which packets come in from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstInterfaces {
    /// Those of the default routes.
    Routed,
    /// There is no default route: those with an address that others can reach.
    Named(Vec<String>),
    /// There is neither: an operator has to name one.
    Missing,
}

impl FirstInterfaces {
    fn new(host: &Host) -> Self {
        // Routes that cannot be read may lead to an interface.
        let routed = host.default_route_links();
        let leads_in = |index: &u32| host.link(*index).is_none_or(Link::is_ethernet);
        if routed.is_none_or(|routed| routed.iter().any(leads_in)) {
            return Self::Routed;
        }
        let none = BTreeSet::new();
        let has_address = |link: &&Link| {
            let mut addresses = host.addresses.known().into_iter().flatten();
            addresses.any(|own| own.link == link.index && !is_link_local(own.address))
        };
        let links = host.all_links().filter(|link| {
            let is_guardable = link.is_ethernet() && !link.is_loopback();
            is_guardable && !host.is_container_bridge(&link.name, &none)
        });
        let names: Vec<String> = links
            .filter(has_address)
            .map(|link| link.name.clone())
            .collect();
        match names.is_empty() {
            true => Self::Missing,
            false => Self::Named(names),
        }
    }

    /// The lines of the policy.
    fn describe(&self) -> String {
        let what = "# The interfaces on which packets come in from outside.";
        match self {
            Self::Routed => format!(
                "{what} Left out: those of the default routes.\n# interfaces = [\"eth0\"]\n"
            ),
            Self::Named(names) => format!(
                "{what} This host has no default route, and these have\n\
                 # addresses that others can reach.\ninterfaces = {}\n",
                toml::Value::from(names.clone())
            ),
            Self::Missing => format!(
                "{what} This host has no default route, and none with an\n\
                 # address was found: `guard run` refuses the policy until you name one.\n\
                 # interfaces = [\"eth0\"]\n"
            ),
        }
    }
}

/// The scope that fits a host, and why.
pub struct ScopeAdvice {
    pub scope: Scope,
    pub why: String,
}

/// What each scope closes, a line each.
pub const SCOPES: [&str; 2] = [
    "scope \"containers\" closes the ports that containers publish, and leaves the host's own ports to your firewall",
    "scope \"host\" closes every port that no service lists, of containers and of the host's own programs",
];

impl ScopeAdvice {
    /// Docker bypasses other firewalls, so guard closes what they cannot. Without one, nothing else closes the ports of
    /// the host.
    fn new(docker: &DockerQuery, firewalls: &Firewalls) -> Self {
        let names: Vec<&str> = firewalls.names.iter().map(String::as_str).collect();
        let names = all_of(&names);
        let (scope, why) = match (&docker.socket, firewalls) {
            (None, _) => (
                Scope::Host,
                "no Docker or Podman was found, so scope \"containers\" would close nothing"
                    .to_owned(),
            ),
            (Some(_), found) if !found.names.is_empty() => (
                Scope::Containers,
                format!(
                    "{names} filters the host's own ports already, and what containers publish bypasses it"
                ),
            ),
            (
                Some(_),
                Firewalls {
                    error: Some(error), ..
                },
            ) => (
                Scope::Containers,
                format!(
                    "another firewall may filter the host's own ports ({error}), and what containers publish bypasses it"
                ),
            ),
            (Some(_), _) => (
                Scope::Host,
                "no other firewall closes ports of this host (ufw, firewalld, nftables, iptables)"
                    .to_owned(),
            ),
        };
        Self { scope, why }
    }
}

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

/// Writes the policy.
pub fn write(findings: &Findings<'_>) -> Result<FirstPolicy, fmt::Error> {
    let Findings {
        survey,
        session,
        firewalls,
    } = findings;
    let advice = ScopeAdvice::new(&survey.docker, firewalls);
    let mut text = String::new();
    let interfaces = FirstInterfaces::new(&survey.host);
    write_head(&mut text, &survey.docker, &advice, &interfaces)?;
    let mut names = BTreeSet::new();
    let mut listed = Vec::new();
    let web = web(survey, *session);
    let proxy = match proxy(survey, *session) {
        // One remark about the web is enough, also if no known proxy serves it.
        Err(_) if web.is_some() => None,
        proxy => Some(proxy),
    };
    let services = [
        Some(ssh(survey, *session)),
        proxy,
        web.map(Ok),
        Some(Ok(ping())),
    ];
    for service in services.into_iter().flatten() {
        match service {
            Ok(service) => {
                let name = service.write(&mut text, "", &mut names)?;
                listed.push(format!("{name} ({})", service.ports.join(", ")));
            }
            Err(missing) => writeln!(text, "\n# {missing}")?,
        }
    }
    let closed = closed(survey, *session, advice.scope);
    let mut left = Vec::new();
    if closed.is_empty() {
        let what = match (advice.scope, survey.docker.answered) {
            (Scope::Host, _) => "Nothing else was found that others can reach.",
            (Scope::Containers, true) => "No other port was found that a container publishes.",
            (Scope::Containers, false) => {
                "What containers publish is not known yet: run `guard init` again when Docker answers."
            }
        };
        writeln!(text, "\n# {what}")?;
    } else {
        writeln!(
            text,
            "\n# These ports can be reached now, and will be closed in mode \"enforce\". To keep a port open, remove\n\
             # the `# ` before the lines of its service, and write the sources that need it into `from`."
        )?;
    }
    for service in closed {
        let name = service.write(&mut text, "# ", &mut names)?;
        left.push(format!("{name} ({})", service.ports.join(", ")));
    }
    Ok(FirstPolicy {
        text,
        advice,
        interfaces,
        listed,
        closed: left,
    })
}

fn write_head(
    text: &mut String,
    docker: &DockerQuery,
    advice: &ScopeAdvice,
    interfaces: &FirstInterfaces,
) -> fmt::Result {
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
    let [containers, host] = SCOPES.map(capital);
    let fits = format!(
        "On this host \"{}\" fits: {}.",
        advice.scope.name(),
        one_line(&advice.why)
    );
    let scopes = [format!("{containers}."), format!("{host}."), fits];
    write!(
        text,
        "# A first policy, from the services that `guard init` has found on this host. Read it. `guard check`\n\
         # describes it, `guard audit` lists the open ports, and guard.toml(5) explains every key.\n\
         \n\
         # In this mode nothing is dropped: guard counts the packets that it would drop (`guard counters`). When\n\
         # none of them are packets that you want, write \"enforce\", and test it with `guard try FILE --for 5m`.\n\
         mode = \"observe\"\n\
         \n\
         {}\
         scope = \"{}\"\n\
         \n\
         {}\
         \n\
         [docker]\n\
         # {why}\n\
         socket = {socket}\n",
        comments(&scopes),
        advice.scope.name(),
        interfaces.describe(),
    )
}

/// Comment lines, wrapped.
fn comments(texts: &[String]) -> String {
    let lines = texts.iter().map(|text| comment(text) + "\n");
    lines.collect()
}

fn comment(text: &str) -> String {
    columns([["#".to_owned(), one_line(text)]], 1).replace("\n ", "\n#")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase());
    first.into_iter().flatten().chain(letters).collect()
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

/// The ports of the web that something else than a known proxy serves: another web server, or an application itself.
fn web(survey: &Survey, session: Option<SshSession>) -> Option<DraftService> {
    let endpoints = survey.endpoints.iter();
    let found_here: Vec<&Endpoint> = endpoints
        .filter(|endpoint| is_other_web(endpoint) && !is_way_in(endpoint, session))
        .collect();
    if found_here.is_empty() {
        return None;
    }
    let mut why = vec![
        "The web. What serves it is no reverse proxy that guard knows, but it is on a port of HTTP or HTTPS. Remove \
         the service if others should not reach it."
            .to_owned(),
    ];
    why.extend(found_here.iter().map(|endpoint| found(endpoint)));
    let mut ports: Vec<String> = found_here.iter().map(|endpoint| endpoint.place()).collect();
    ports.dedup();
    Some(DraftService {
        name: "web".to_owned(),
        why,
        ports,
        rest: OF_PROXY,
    })
}

/// Whether the endpoint is on a port of the web that the world can reach, and nothing known serves it.
fn is_other_web(endpoint: &Endpoint) -> bool {
    let is_web = endpoint.protocol != PortProtocol::Sctp
        && endpoint.ports.clone().count() == 1
        && WEB.contains(endpoint.ports.start());
    is_web
        && endpoint.level == Level::World
        && endpoint.role.is_none()
        && !endpoint.may_be_client
        && !endpoint.own_address
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
fn closed(survey: &Survey, session: Option<SshSession>, scope: Scope) -> Vec<DraftService> {
    // Scope `containers` leaves the others to the firewall of the host.
    let is_published = |endpoint: &Endpoint| {
        let mut published = survey.containers.published.iter();
        published
            .any(|port| port.protocol == endpoint.protocol && endpoint.ports.contains(&port.port))
    };
    let is_left = |endpoint: &&Endpoint| {
        let is_open = scope == Scope::Containers && !is_published(endpoint);
        let is_kept = endpoint.role.is_some()
            || is_other_web(endpoint)
            || is_way_in(endpoint, session)
            || is_open;
        // A UDP port without a process is the kernel's, such as WireGuard's: it serves others, and is no client's.
        let is_client = endpoint.may_be_client && !endpoint.owner.processes.is_empty();
        // An endpoint on a container's own address is left out: it needs a service with that address.
        endpoint.level <= Level::Network && !is_client && !is_kept && !endpoint.own_address
    };
    let continues = |before: &Endpoint, next: &Endpoint| {
        before.continues(next) && danger(before).is_none() && danger(next).is_none()
    };
    let left = survey.endpoints.iter().filter(is_left).cloned();
    let mut by_owner: Vec<(String, Vec<Endpoint>)> = Vec::new();
    for endpoint in joined(left, continues, |endpoint| &mut endpoint.ports) {
        let name = name_of(&endpoint);
        let mut known = by_owner.iter_mut();
        let known = known.find(|(known, of_owner)| {
            *known == name && of_owner.iter().any(|other| is_of_same(other, &endpoint))
        });
        match known {
            Some((_, of_owner)) => of_owner.push(endpoint),
            None => by_owner.push((name, vec![endpoint])),
        }
    }
    by_owner.sort_by(|(name, _), (other, _)| name.cmp(other));
    by_owner
        .into_iter()
        .map(|(name, endpoints)| left_closed(name, &endpoints))
        .collect()
}

/// Whether two endpoints of the same name are one program: two programs of one interpreter have other processes.
fn is_of_same(one: &Endpoint, other: &Endpoint) -> bool {
    let [one, other] = [&one.owner, &other.owner];
    let is_process = |owner: &Owner| owner.container.is_none() && !owner.pids.is_empty();
    !is_process(one) || !is_process(other) || !one.pids.is_disjoint(&other.pids)
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

fn name_of(endpoint: &Endpoint) -> String {
    let Owner {
        container,
        project,
        service,
        processes,
        ..
    } = &endpoint.owner;
    match (project, service, container, processes.iter().next()) {
        (Some(project), Some(service), ..) => format!("{project}-{service}"),
        (_, _, Some(container), _) => container.clone(),
        (.., Some(process)) => process.clone(),
        (_, Some(service), ..) => service.clone(),
        // Its process is not known, or it is the kernel's.
        _ => endpoint.place().replace('/', "-"),
    }
}

impl DraftService {
    /// Writes the service, and returns its name. `before` is written before each line that is not a comment: empty, or
    /// `# `.
    fn write(
        &self,
        text: &mut String,
        before: &str,
        names: &mut BTreeSet<String>,
    ) -> Result<String, fmt::Error> {
        let Self {
            name,
            why,
            ports,
            rest,
        } = self;
        writeln!(text)?;
        for why in why {
            writeln!(text, "{}", comment(why))?;
        }
        let name = free_name(name, names);
        let ports: Vec<String> = ports.iter().map(|port| format!("\"{port}\"")).collect();
        writeln!(text, "{before}[[service]]")?;
        writeln!(text, "{before}name = \"{name}\"")?;
        writeln!(text, "{before}ports = [{}]", ports.join(", "))?;
        for line in *rest {
            writeln!(text, "{before}{line}")?;
        }
        Ok(name)
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
    use crate::{
        host::Host,
        policy::{Containers, PublishedAt, PublishedPort},
    };

    fn endpoint(protocol: PortProtocol, port: u16, processes: &[&str]) -> Endpoint {
        let addresses = BTreeSet::from(["0.0.0.0".parse().unwrap()]);
        let owner = Owner {
            kind: if processes.is_empty() {
                "unknown"
            } else {
                "process"
            },
            processes: processes.iter().map(|name| (*name).to_owned()).collect(),
            ..Owner::default()
        };
        Endpoint::new(protocol, port, addresses, Level::World, owner)
    }

    fn published(port: u16, container: &str) -> Endpoint {
        let mut endpoint = endpoint(PortProtocol::Tcp, port, &[]);
        endpoint.owner = Owner {
            kind: "container",
            container: Some(container.to_owned()),
            ..Owner::default()
        };
        endpoint.inside = Some(port);
        endpoint
    }

    fn survey(endpoints: Vec<Endpoint>, has_docker: bool) -> Survey {
        let published = endpoints.iter().filter(|one| one.inside.is_some());
        let published = published.map(|one| PublishedPort {
            protocol: one.protocol,
            port: *one.ports.start(),
            at: PublishedAt::EveryIpv4,
        });
        Survey {
            containers: Containers {
                published: published.collect(),
                ..Containers::default()
            },
            endpoints,
            docker: DockerQuery {
                socket: has_docker.then(|| DEFAULT_DOCKER_SOCKET.to_owned()),
                answered: has_docker,
                ..DockerQuery::default()
            },
            daemon: None,
            own_addresses: BTreeSet::new(),
            container_addresses: BTreeSet::new(),
            host: Host::unread(4_000_000),
            notes: Vec::new(),
        }
    }

    fn first(survey: &Survey, firewalls: &Firewalls) -> FirstPolicy {
        let findings = Findings {
            survey,
            session: None,
            firewalls,
        };
        write(&findings).unwrap()
    }

    fn firewall(name: &str) -> Firewalls {
        Firewalls {
            names: BTreeSet::from([name.to_owned()]),
            error: None,
        }
    }

    #[test]
    fn a_port_of_the_kernel_is_listed_and_a_port_of_a_client_is_not() {
        let endpoint = |port, processes: &[&str]| Endpoint {
            may_be_client: true,
            ..endpoint(PortProtocol::Udp, port, processes)
        };
        let survey = survey(
            vec![endpoint(40_123, &["resolver"]), endpoint(51_820, &[])],
            false,
        );
        let text = first(&survey, &Firewalls::default()).text;
        assert!(text.contains("# ports = [\"udp/51820\"]"), "{text}");
        assert!(text.contains("# name = \"udp-51820\""), "{text}");
        assert!(!text.contains("40123"), "{text}");
    }

    #[test]
    fn the_scope_leaves_the_hosts_ports_to_another_firewall_and_else_closes_them() {
        let unknown = Firewalls {
            names: BTreeSet::new(),
            error: Some("`nft` cannot be run".to_owned()),
        };
        for (has_docker, firewalls, scope, why) in [
            (true, firewall("ufw"), Scope::Containers, "ufw filters"),
            (
                true,
                unknown.clone(),
                Scope::Containers,
                "`nft` cannot be run",
            ),
            (true, Firewalls::default(), Scope::Host, "no other firewall"),
            (false, firewall("ufw"), Scope::Host, "no Docker"),
            (false, unknown, Scope::Host, "no Docker"),
        ] {
            let policy = first(&survey(Vec::new(), has_docker), &firewalls);
            assert_eq!(policy.advice.scope, scope, "{why}");
            assert!(policy.advice.why.contains(why), "{}", policy.advice.why);
            let line = format!("\nscope = \"{}\"\n", scope.name());
            assert!(policy.text.contains(&line), "{}", policy.text);
        }
    }

    #[test]
    fn a_web_server_that_is_no_known_proxy_stays_open_with_a_remark() {
        let survey = survey(
            vec![
                endpoint(PortProtocol::Tcp, 80, &["python3"]),
                published(443, "shop"),
                published(8000, "invoices"),
                endpoint(PortProtocol::Tcp, 8080, &["nginx"]),
                endpoint(PortProtocol::Tcp, 5432, &["postgres"]),
            ],
            true,
        );
        let policy = first(&survey, &firewall("ufw"));
        insta::assert_snapshot!(policy.text, @r#"
        # A first policy, from the services that `guard init` has found on this host. Read it. `guard check`
        # describes it, `guard audit` lists the open ports, and guard.toml(5) explains every key.

        # In this mode nothing is dropped: guard counts the packets that it would drop (`guard counters`). When
        # none of them are packets that you want, write "enforce", and test it with `guard try FILE --for 5m`.
        mode = "observe"

        # Scope "containers" closes the ports that containers publish, and leaves the host's
        # own ports to your firewall.
        # Scope "host" closes every port that no service lists, of containers and of the
        # host's own programs.
        # On this host "containers" fits: ufw filters the host's own ports already, and what
        # containers publish bypasses it.
        scope = "containers"

        # The interfaces on which packets come in from outside. Left out: those of the default routes.
        # interfaces = ["eth0"]

        [docker]
        # guard reads the published ports of containers here
        socket = "/var/run/docker.sock"

        # No SSH server was found that others can reach.

        # The web. What serves it is no reverse proxy that guard knows, but it is on a port
        # of HTTP or HTTPS. Remove the service if others should not reach it.
        # tcp/80: listening: python3
        # tcp/443: published by container shop
        [[service]]
        name = "web"
        ports = ["tcp/80", "tcp/443"]
        [service.limit]            # for each source: an IPv4 address or an IPv6 /64
        packets = "2k/s"           # more than a browser sends, less than a flood

        # Pings of monitors, and the answers to this host's own pings.
        [[service]]
        name = "ping"
        ports = ["icmp", "icmpv6"]
        [service.limit]            # for each source
        packets = "100/s"          # enough for monitoring

        # These ports can be reached now, and will be closed in mode "enforce". To keep a port open, remove
        # the `# ` before the lines of its service, and write the sources that need it into `from`.

        # tcp/8000: published by container invoices
        # [[service]]
        # name = "invoices"
        # ports = ["tcp/8000"]
        # from = ["198.51.100.0/24"]   # the sources that need it; "any" is every source
        "#);
        assert_eq!(
            policy.listed,
            ["web (tcp/80, tcp/443)", "ping (icmp, icmpv6)"]
        );
        assert_eq!(policy.closed, ["invoices (tcp/8000)"]);
        let policy = first(&survey, &Firewalls::default());
        assert_eq!(
            policy.closed,
            [
                "invoices (tcp/8000)",
                "nginx (tcp/8080)",
                "postgres (tcp/5432)"
            ]
        );
    }

    #[test]
    fn two_programs_of_one_interpreter_are_two_services_and_one_program_is_one() {
        let of = |port, name: &str, pids: &[i32]| {
            let mut endpoint = endpoint(PortProtocol::Tcp, port, &[name]);
            endpoint.owner.pids = pids.iter().copied().collect();
            endpoint
        };
        let survey = survey(
            vec![
                of(8443, "python3", &[11]),
                of(9000, "python3", &[12]),
                of(9443, "worker", &[20, 21]),
                of(9500, "worker", &[21]),
            ],
            false,
        );
        assert_eq!(
            first(&survey, &Firewalls::default()).closed,
            [
                "python3 (tcp/8443)",
                "python3-2 (tcp/9000)",
                "worker (tcp/9443, tcp/9500)"
            ]
        );
    }

    #[test]
    fn without_a_default_route_the_interfaces_with_an_address_are_named() {
        let named = FirstInterfaces::Named(vec!["wan".to_owned(), "lan".to_owned()]);
        insta::assert_snapshot!(named.describe(), @r#"
        # The interfaces on which packets come in from outside. This host has no default route, and these have
        # addresses that others can reach.
        interfaces = ["wan", "lan"]
        "#);
        insta::assert_snapshot!(FirstInterfaces::Missing.describe(), @r#"
        # The interfaces on which packets come in from outside. This host has no default route, and none with an
        # address was found: `guard run` refuses the policy until you name one.
        # interfaces = ["eth0"]
        "#);
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
