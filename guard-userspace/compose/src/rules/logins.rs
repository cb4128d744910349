//! Rule about switches that turn a login off. How bad that is depends on who reaches the service.

use guard_common::layout::PortProtocol::Tcp;

use super::super::{
    finding::Finding,
    logins::{LoginSwitch, SWITCHES, SwitchPlace, SwitchValue},
    project::{Project, routed_by},
    rule::{Rule::LoginOff, Severity},
    service::{CommandWord, ComposeService, Label},
    source::Place,
};

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let command = service.command();
    let mut found: Vec<(&LoginSwitch, Written<'_>)> = Vec::new();
    for switch in SWITCHES {
        let is_known = found
            .iter()
            .any(|(known, _)| known.service == switch.service);
        if !is_known && let Some(written) = written(service, &command, switch) {
            found.push((switch, written));
        }
    }
    let findings = found.into_iter();
    let findings = findings.map(|(switch, written)| finding(project, service, switch, written));
    findings.chain(dashboard(service, &command)).collect()
}

/// A switch as it is written in the file.
struct Written<'a> {
    place: &'a Place,
    text: String,
}

fn written<'a>(
    service: &ComposeService<'a>,
    command: &[CommandWord<'a>],
    switch: &LoginSwitch,
) -> Option<Written<'a>> {
    let is_run = || {
        command
            .iter()
            .any(|word| is_program(&word.text, switch.images))
    };
    let is_argument = matches!(switch.place, SwitchPlace::Argument(_));
    let applies =
        switch.images.is_empty() || service.runs(switch.images) || (is_argument && is_run());
    if !applies {
        return None;
    }
    let written = switched(service, command, switch)?;
    let is_off = has_company(service, switch) && !is_closed(service, command, switch);
    is_off.then_some(written)
}

/// The place of the switch, if its value turns the login off.
fn switched<'a>(
    service: &ComposeService<'a>,
    command: &[CommandWord<'a>],
    switch: &LoginSwitch,
) -> Option<Written<'a>> {
    match switch.place {
        SwitchPlace::Variable(name) => {
            let variable = service.environment.iter().find(|v| v.name == name)?;
            let reference = variable.scalar.reference.as_ref();
            let is_unknown = reference.is_some_and(|reference| {
                !reference.unset.is_empty() || !reference.required.is_empty()
            });
            // A variable that is not set here is set where the project runs.
            if (is_unknown && switch.value == SwitchValue::Empty)
                || !switch.value.fits(Some(variable.value()))
            {
                return None;
            }
            Some(Written {
                place: variable.place,
                text: shown(name, "=", variable.value(), switch.value),
            })
        }
        SwitchPlace::Argument(name) => argument(command, name, switch.value),
    }
}

/// A value is shown only if it is one that the table knows.
fn shown(name: &str, between: &str, value: &str, known: SwitchValue) -> String {
    match known {
        SwitchValue::NotEmpty => name.to_owned(),
        SwitchValue::Empty => format!("An empty {name}"),
        _ => format!("{name}{between}{}", value.trim()),
    }
}

fn argument<'a>(
    command: &[CommandWord<'a>],
    name: &str,
    wanted: SwitchValue,
) -> Option<Written<'a>> {
    // Of a switch that is written twice, the last counts.
    let mut last = None;
    for (index, word) in command.iter().enumerate() {
        let (own, value) = match word.text.split_once('=') {
            Some((own, value)) => (own, Some(value)),
            None => (word.text.as_str(), None),
        };
        if !own.eq_ignore_ascii_case(name) {
            continue;
        }
        let next = command.get(index + 1).map(|word| word.text.as_str());
        let is_value = |next: &&str| wanted != SwitchValue::On && !next.starts_with("--");
        let is_apart = value.is_none();
        let value = value.or_else(|| next.filter(is_value));
        let between = if is_apart { " " } else { "=" };
        last = wanted.fits(value).then(|| Written {
            place: word.place,
            text: match value {
                None => own.to_owned(),
                Some(value) => shown(own, between, value, wanted),
            },
        });
    }
    last
}

/// Whether a word of the command is one of these programs: `/usr/bin/redis-server`.
fn is_program(word: &str, programs: &[&str]) -> bool {
    let name = word.rsplit('/').next().unwrap_or(word);
    programs.contains(&name)
}

fn has_company(service: &ComposeService<'_>, switch: &LoginSwitch) -> bool {
    let is_set = |(name, value): &(&str, &str)| {
        let mut variables = service.environment.iter();
        variables.any(|v| v.name == *name && v.value().eq_ignore_ascii_case(value))
    };
    switch.with.is_empty() || switch.with.iter().any(is_set)
}

/// Whether something else asks for a login.
fn is_closed(
    service: &ComposeService<'_>,
    command: &[CommandWord<'_>],
    switch: &LoginSwitch,
) -> bool {
    switch.unless.iter().any(|unless| {
        if let Some(end) = unless.strip_prefix('*') {
            let is_switch = |name: &str| {
                let mut switches = SWITCHES.iter();
                switches
                    .any(|switch| matches!(switch.place, SwitchPlace::Variable(own) if own == name))
            };
            // `ALLOW_EMPTY_PASSWORD` ends like a variable that has a password.
            return service.may_set(|name| name.ends_with(end) && !is_switch(name));
        }
        if unless.starts_with('/') {
            let mounts = service.mounts();
            return mounts.iter().any(|mount| mount.target.starts_with(unless));
        }
        if unless.starts_with('-') {
            return command.iter().enumerate().any(|(index, word)| {
                let (own, value) = match word.text.split_once('=') {
                    Some((own, value)) => (own, Some((value, word.has_unset))),
                    None => (word.text.as_str(), None),
                };
                let next = command.get(index + 1);
                let next = next.map(|next| (next.text.as_str(), next.has_unset));
                let is_set = |(value, has_unset): (&str, bool)| has_unset || !value.is_empty();
                own.eq_ignore_ascii_case(unless) && value.or(next).is_some_and(is_set)
            });
        }
        service.may_set(|name| name == *unless)
    })
}

/// Who reaches a service, and the severity of a missing login.
fn reached(
    project: &Project<'_>,
    service: &ComposeService<'_>,
    ports: &[u16],
) -> (Severity, String) {
    if project.is_on_host_network(service) {
        let how = "the container listens on the host's own network";
        return (Severity::Critical, how.to_owned());
    }
    let published = project.published(service).iter();
    let opened = published.filter(|port| {
        let is_it = |number: &u16| port.container.contains(number);
        port.protocol == Tcp && (ports.is_empty() || ports.iter().any(is_it))
    });
    let outside = opened.filter(|port| !port.address.is_loopback());
    let widest = outside.min_by_key(|port| port.address.is_private());
    if let Some(port) = widest {
        let severity = match port.address.is_private() {
            true => Severity::High,
            false => Severity::Critical,
        };
        let how = format!("{port} is published on {}", port.address);
        return (severity, how);
    }
    match routed_by(service).filter(|_| ports.is_empty()) {
        Some(proxy) => {
            let how = format!("{proxy}, passes on requests, unless it asks for a login itself");
            (Severity::High, how)
        }
        None => {
            let how = "other containers of its networks and users of this host reach it";
            (Severity::Medium, how.to_owned())
        }
    }
}

fn finding(
    project: &Project<'_>,
    service: &ComposeService<'_>,
    switch: &LoginSwitch,
    written: Written<'_>,
) -> Finding {
    let (severity, how) = reached(project, service, switch.ports);
    let severity = match switch.is_read_only {
        true => severity.lower(),
        false => severity,
    };
    let LoginSwitch {
        service: name,
        gain,
        instead,
        source,
        ..
    } = switch;
    let Written { place, text } = written;
    let why = format!("{text} turns the login of {name} off, and {how}. An intruder gets {gain}");
    Finding::new(LoginOff, severity, service, place, why, None)
        .advised(format!("{instead} ({source})"))
}

/// A router of Traefik's dashboard without a middleware: <https://doc.traefik.io/traefik/operations/api/>.
fn dashboard(service: &ComposeService<'_>, command: &[CommandWord<'_>]) -> Option<Finding> {
    let is_inner = |label: &&Label<'_>| {
        label.name.starts_with("traefik.http.routers.")
            && label.name.ends_with(".service")
            && label.value == "api@internal"
    };
    let labels = service.labels();
    let router = labels.iter().find(is_inner)?;
    let (prefix, _) = router.name.rsplit_once('.')?;
    let of_router = |key: &str| {
        let is_it = |label: &&Label<'_>| label.name == format!("{prefix}.{key}");
        labels.iter().find(is_it).map(|label| label.value)
    };
    let is_guarded = of_router("middlewares").is_some_and(|value| !value.is_empty());
    // Middlewares of an entry point apply to every router.
    let for_all = command.iter().any(|word| {
        let word = word.text.to_ascii_lowercase();
        word.starts_with("--entrypoints.") && word.contains(".http.middlewares")
    });
    let is_local = of_router("rule").is_some_and(|rule| rule.contains("ClientIP("));
    if is_guarded || for_all || is_local {
        return None;
    }
    let (_, name) = prefix.rsplit_once('.')?;
    let why = format!(
        "the router {name} serves Traefik's dashboard without a middleware that asks for a login. An intruder \
         gets every route with its middlewares, and the addresses of the services behind"
    );
    let place = router.place;
    let finding = Finding::new(LoginOff, Severity::High, service, place, why, None);
    Some(finding.advised(format!(
        "add the label {prefix}.middlewares with a basicauth middleware \
         (https://doc.traefik.io/traefik/operations/api/)"
    )))
}
