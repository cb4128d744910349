//! Prints an audit for people: sorted by what has to be done, the most severe first.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    net::IpAddr,
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};

use super::{
    Audited, DockerQuery, GuardState, JudgedBy, Report, Role,
    endpoint::{EVERYWHERE, Endpoint, Level, range},
    judge::{ANY, Decision, Fate},
    loopback::Neighbours,
    owner::Owner,
    rewritten::Rewrite,
};
use crate::policy::untrusted;

/// The most characters that are shown of the name of a container, a project or a process.
const LONGEST_NAME: usize = 64;

/// The most characters that are shown of a rule that cannot be interpreted.
const LONGEST_RULE: usize = 128;

/// Narrow enough for every terminal.
const WIDTH: u16 = 84;

/// A heading, and the test for the endpoints below it.
type Section = (&'static str, fn(&Audited) -> bool);

/// Every endpoint is listed in the first section whose test it passes.
const SECTIONS: [Section; 6] = [
    ("OPEN TO THE WORLD, AND NO SERVICE LISTS IT", |audited| {
        audited.finding
    }),
    ("LISTED BY THE POLICY", |audited| {
        audited.is_reachable()
            && audited
                .policy
                .iter()
                .any(|decision| decision.fate == Fate::Open)
    }),
    (
        "REACHED FROM SOME NETWORKS, OR ONLY AS THIS HOST'S OWN CLIENT",
        Audited::is_reachable,
    ),
    ("CLOSED BY THE POLICY", Audited::is_closed),
    ("ONLY FROM THIS HOST", |audited| {
        audited.endpoint.level == Level::Localhost
    }),
    ("ONLY FROM THE CONTAINER NETWORKS", |audited| {
        audited.endpoint.level == Level::Containers
    }),
];

impl Report {
    /// The report as text.
    pub fn describe(&self) -> Result<String, fmt::Error> {
        let Self {
            policy,
            docker,
            notes,
            endpoints,
            findings: _,
        } = self;
        let entries = policy.as_ref().and_then(|policy| policy.entries);
        let mut text = String::new();
        writeln!(text, "{}", describe_policy(policy.as_ref()))?;
        writeln!(text, "{}", describe_docker(docker))?;
        if let Some(entries) = entries.filter(|entries| *entries > 0) {
            writeln!(text, "{}", wrapped("entries", &describe_entries(entries)))?;
        }
        writeln!(text, "{}", wrapped("result", &self.result()))?;
        let mut left: Vec<&Audited> = endpoints.iter().collect();
        for (heading, is_here) in SECTIONS {
            let (here, others) = left.into_iter().partition(|audited| is_here(audited));
            left = others;
            let here: Vec<&Audited> = here;
            if !here.is_empty() {
                writeln!(text, "\n{heading}\n{}", table(&here))?;
            }
        }
        if !notes.is_empty() {
            writeln!(text)?;
        }
        for note in notes {
            writeln!(text, "{}", wrapped("note:", note))?;
        }
        Ok(text)
    }

    /// The result in one sentence, with what it depends on.
    fn result(&self) -> String {
        if let Some(complaint) = self.complaint() {
            return complaint;
        }
        let nothing = "nothing is open to the world that no service lists";
        let guard = self.policy.as_ref().map(|policy| policy.guard);
        match (guard, &self.docker.error) {
            (Some(GuardState::Unknown), _) => format!("if that policy is in force, {nothing}"),
            (_, Some(_)) => format!("as far as was found without Docker, {nothing}"),
            _ => nothing.to_owned(),
        }
    }
}

fn describe_policy(policy: Option<&JudgedBy>) -> String {
    let Some(JudgedBy {
        path,
        mode,
        scope,
        guard,
        entries: _,
    }) = policy
    else {
        return "policy     none: no decisions are shown. `guard init` writes a first policy."
            .to_owned();
    };
    let state = match guard {
        GuardState::AtWork => "in force",
        GuardState::NotAtWork => "NOT IN FORCE",
        GuardState::Unknown => "perhaps in force",
        GuardState::Supposed => "applied as if it were in force",
    };
    format!("policy     {path}, {state}: mode {mode}, scope {scope}")
}

fn describe_entries(entries: usize) -> String {
    let entries = match entries {
        1 => "1 temporary entry is".to_owned(),
        entries => format!("{entries} temporary entries are"),
    };
    format!("{entries} not shown here and decide first for their sources: `guard list`")
}

fn describe_docker(docker: &DockerQuery) -> String {
    let DockerQuery {
        socket,
        answered,
        error,
        running,
    } = docker;
    match (socket, error) {
        (Some(socket), None) if *answered => {
            format!("docker     {socket} answers; containers that run: {running}")
        }
        (_, Some(error)) => wrapped("docker", error),
        _ => "docker     not queried: the policy turns it off, or there is no socket of Docker or Podman".to_owned(),
    }
}

fn wrapped(label: &str, text: &str) -> String {
    columns([[format!("{label:<9}"), text.to_owned()]], 2)
}

fn table(endpoints: &[&Audited]) -> String {
    let rows = endpoints.iter().flat_map(|audited| {
        let head = [
            audited.endpoint.place(),
            describe_endpoint(&audited.endpoint),
        ];
        let details = audited.details().into_iter();
        [head]
            .into_iter()
            .chain(details.map(|detail| [String::new(), detail]))
    });
    columns(rows, 2)
}

/// Two columns with a gap between them, the second wrapped.
pub fn columns(rows: impl IntoIterator<Item = [String; 2]>, gap: u16) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH);
    table.add_rows(rows);
    for (column, right) in table.column_iter_mut().zip([gap, 0]) {
        column.set_padding((0, right));
    }
    table.trim_fmt()
}

impl Audited {
    /// The decisions, warnings and changes, a line each.
    fn details(&self) -> Vec<String> {
        let Self {
            endpoint,
            policy,
            finding: _,
            danger,
            changes,
        } = self;
        let mut details: Vec<String> = policy.iter().map(describe_decision).collect();
        if let Some(Neighbours { interfaces, why }) = &endpoint.neighbours {
            let interfaces = interfaces.join(", ");
            details.push(format!(
                "every host on the network of {interfaces} reaches it: {why}"
            ));
        }
        if endpoint.may_be_client && endpoint.level <= Level::Network {
            details.push("it may be the local end of a query by this host".to_owned());
        }
        details.extend(danger.map(|danger| format!("WARNING: {danger}")));
        let changes = changes.iter().enumerate();
        details.extend(changes.map(|(n, change)| match n {
            0 => format!("change: {change}"),
            _ => format!("or: {change}"),
        }));
        details
    }
}

fn describe_endpoint(endpoint: &Endpoint) -> String {
    let Endpoint {
        addresses,
        interface,
        owner,
        inside,
        role,
        ports,
        own_address,
        ..
    } = endpoint;
    let mut text = describe_addresses(addresses);
    if *own_address {
        text += ", the container's own address";
    }
    if let Some(interface) = interface {
        text += &format!(" on {interface} only");
    }
    let rewrite = owner.rewrite.as_ref();
    if let Some(from) = rewrite.and_then(|rewrite| rewrite.from.as_ref()) {
        text += &format!(" from {from} only");
    }
    text += &format!(": {}", describe_owner(owner));
    match role {
        Some(Role::Ssh) => text += " (SSH)",
        Some(Role::Proxy) => text += " (the web)",
        None => {}
    }
    if let Some(inside) = inside.filter(|inside| inside != ports.start()) {
        text += &format!(", {} inside", range(inside, ports.len()));
    }
    if let [first, others @ ..] = owner.pids.iter().collect::<Vec<_>>().as_slice() {
        text += &match others.len() {
            0 => format!(", process {first}"),
            n => format!(", process {first} and {n} more"),
        };
    }
    text
}

fn describe_addresses(addresses: &BTreeSet<IpAddr>) -> String {
    let is_everywhere = EVERYWHERE.map(|every| addresses.contains(&every));
    let named = addresses.iter().filter(|address| !address.is_unspecified());
    let every = match is_everywhere {
        [true, true] => Some("every address".to_owned()),
        [true, false] => Some("every IPv4 address".to_owned()),
        [false, true] => Some("every IPv6 address".to_owned()),
        [false, false] => None,
    };
    let all: Vec<String> = every
        .into_iter()
        .chain(named.map(IpAddr::to_string))
        .collect();
    match all.as_slice() {
        [] => "its container's address".to_owned(),
        all => all.join(", "),
    }
}

/// The program or container that listens, in a few words.
pub fn describe_owner(owner: &Owner) -> String {
    let Owner {
        kind,
        container,
        image: _,
        project,
        service,
        host_network,
        processes,
        pids: _,
        user,
        rewrite,
    } = owner;
    // The names of containers and processes are untrusted: their users choose them.
    let shown = |name: &String| untrusted::name(name, LONGEST_NAME);
    let names: Vec<String> = processes.iter().map(shown).collect();
    let names = names.join(", ");
    let [container, project, service] =
        [container, project, service].map(|name| name.as_ref().map(shown));
    let mut text = match (container, project, service) {
        (Some(container), Some(project), Some(service)) => {
            format!("{service} of {project}, container {container}")
        }
        (Some(container), ..) => format!("container {container}"),
        (.., Some(service)) if *kind == "swarm" => {
            format!("service {service} of the Swarm, on every node")
        }
        _ if *kind == "swarm" => "a service of the Swarm".to_owned(),
        _ if *kind == "nat" => "an unknown service".to_owned(),
        _ if !names.is_empty() => names.clone(),
        _ if *kind == "kernel" => "the kernel".to_owned(),
        _ => format!(
            "an unknown process of user {}",
            user.as_deref().unwrap_or("unknown")
        ),
    };
    if *host_network {
        text += &format!(", on the host's network as {names}");
    }
    if let Some(Rewrite { to, chain, .. }) = rewrite {
        let to = untrusted::name(to, LONGEST_RULE);
        text = format!("redirected to {to} by a rule in {chain}: {text}");
    }
    text
}

fn describe_decision(decision: &Decision) -> String {
    let Decision {
        fate,
        addresses,
        why,
        service,
        line,
        from,
        limits,
        enforced,
    } = decision;
    let place = match addresses.is_empty() {
        true => String::new(),
        false => format!("on {}: ", describe_addresses(addresses)),
    };
    let service = service.as_ref().map(|name| {
        let line = line
            .map(|line| format!(" (line {line})"))
            .unwrap_or_default();
        format!("service {name}{line}")
    });
    let listed = service
        .map(|service| format!(", {service}"))
        .unwrap_or_default();
    let whom = if from.iter().any(|from| from == ANY) {
        "anybody".to_owned()
    } else {
        from.join(", ")
    };
    let is_loose = !enforced && whom != "anybody";
    let budgets = match limits.as_slice() {
        [] => "without limits".to_owned(),
        // A loose service has said before that this needs the mode `enforce`.
        limits if *enforced || is_loose => format!("limited to {}", limits.join(", ")),
        limits => format!("would be limited to {} if enforced", limits.join(", ")),
    };
    let what = match fate {
        Fate::NotGuarded => format!("not guarded: {}", why.unwrap_or_default()),
        Fate::WouldBeClosed => format!("open now, would be closed if enforced{listed}"),
        Fate::Closed => format!("closed{listed}"),
        Fate::Open if is_loose => {
            format!("open to anybody now, would be open to {whom} if enforced, {budgets}{listed}")
        }
        Fate::Open => format!("open to {whom}, {budgets}{listed}"),
    };
    place + &what
}

#[cfg(test)]
mod tests {
    use guard_common::layout::PortProtocol;

    use super::*;

    fn audited(port: u16, level: Level, inside: Option<u16>, policy: Vec<Decision>) -> Audited {
        let owner = Owner {
            kind: "container",
            container: Some("shop-app-1".to_owned()),
            project: Some("shop".to_owned()),
            service: Some("app".to_owned()),
            ..Owner::default()
        };
        let addresses = BTreeSet::from(EVERYWHERE);
        let endpoint = Endpoint {
            inside,
            ..Endpoint::new(PortProtocol::Tcp, port, addresses, level, owner)
        };
        Audited {
            policy,
            finding: false,
            ..Audited::new(endpoint, None)
        }
    }

    fn decision(fate: Fate, from: &[&str], enforced: bool) -> Decision {
        Decision {
            fate,
            addresses: BTreeSet::new(),
            service: (fate == Fate::Open).then(|| "app".to_owned()),
            line: (fate == Fate::Open).then_some(7),
            from: from.iter().map(|from| (*from).to_owned()).collect(),
            why: None,
            limits: Vec::new(),
            enforced,
        }
    }

    #[test]
    fn an_audit_lists_the_most_severe_endpoints_first() {
        let finding = Audited {
            finding: true,
            changes: vec!["do this".to_owned(), "do that".to_owned()],
            ..audited(
                11_434,
                Level::World,
                Some(80),
                vec![decision(Fate::WouldBeClosed, &[], false)],
            )
        };
        let open = decision(Fate::Open, &["198.51.100.0/24"], true);
        let loose = decision(Fate::Open, &["198.51.100.0/24"], false);
        let closed = decision(Fate::Closed, &[], true);
        let report = Report {
            policy: Some(JudgedBy {
                path: "/etc/guard/guard.toml".to_owned(),
                mode: "observe",
                scope: "containers",
                guard: GuardState::AtWork,
                entries: Some(2),
            }),
            docker: DockerQuery {
                socket: Some("/var/run/docker.sock".to_owned()),
                answered: true,
                error: None,
                running: 3,
            },
            notes: vec!["a fact is not known".to_owned()],
            endpoints: vec![
                audited(1, Level::Localhost, Some(1), Vec::new()),
                audited(2, Level::World, Some(2), vec![closed]),
                audited(3, Level::World, Some(3), vec![open]),
                audited(4, Level::World, Some(4), vec![loose]),
                finding,
            ],
            findings: 1,
        };
        let text = report.describe().unwrap();
        let expected = "\
policy     /etc/guard/guard.toml, in force: mode observe, scope containers
docker     /var/run/docker.sock answers; containers that run: 3
entries    2 temporary entries are not shown here and decide first for their
           sources: `guard list`
result     1 endpoint is open to the world, and no service lists it

OPEN TO THE WORLD, AND NO SERVICE LISTS IT
tcp/11434  every address: app of shop, container shop-app-1, 80 inside
           open now, would be closed if enforced
           WARNING: 11434 is the port of Ollama, which asks for no login by default.
           An intruder gets the graphics card, and every model: used, replaced or
           deleted
           change: do this
           or: do that

LISTED BY THE POLICY
tcp/3  every address: app of shop, container shop-app-1
       open to 198.51.100.0/24, without limits, service app (line 7)
tcp/4  every address: app of shop, container shop-app-1
       open to anybody now, would be open to 198.51.100.0/24 if enforced, without
       limits, service app (line 7)

CLOSED BY THE POLICY
tcp/2  every address: app of shop, container shop-app-1
       closed

ONLY FROM THIS HOST
tcp/1  every address: app of shop, container shop-app-1

note:      a fact is not known
";
        assert_eq!(text, expected, "{text}");

        let report = Report {
            findings: 0,
            ..report
        };
        assert_eq!(
            report.result(),
            "nothing is open to the world that no service lists"
        );
        let mut perhaps = report;
        perhaps.policy.as_mut().unwrap().guard = GuardState::Unknown;
        assert!(perhaps.result().starts_with("if that policy is in force"));
    }

    #[test]
    fn a_limit_that_is_not_enforced_is_no_limit_now() {
        let limits = vec!["packets 2k/s".to_owned()];
        let described = |from: &[&str], enforced| {
            let decision = decision(Fate::Open, from, enforced);
            describe_decision(&Decision {
                limits: limits.clone(),
                ..decision
            })
        };
        let anybody = described(&[ANY], false);
        assert_eq!(
            anybody,
            "open to anybody, would be limited to packets 2k/s if enforced, service app (line 7)"
        );
        assert_eq!(
            described(&["192.0.2.1/32"], false),
            "open to anybody now, would be open to 192.0.2.1/32 if enforced, limited to packets 2k/s, service app \
             (line 7)"
        );
        assert_eq!(
            described(&[ANY], true),
            "open to anybody, limited to packets 2k/s, service app (line 7)"
        );
    }
}
