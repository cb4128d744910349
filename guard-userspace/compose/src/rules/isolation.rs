//! Rules about the isolation of a container: namespaces, capabilities, confinement and user.

use super::{
    super::{
        finding::Finding,
        fix::Fix,
        project::Project,
        rule::{
            Rule::{
                self, DangerousCapability, HostNamespace, HostNetwork, Privileged, RunsAsRoot,
                Unconfined,
            },
            Severity,
        },
        service::ComposeService,
        yaml::{Mapping, MappingEntry, Node, Scalar, is_true},
    },
    without_item, without_key,
};

pub fn judge(project: &Project<'_>, service: &ComposeService<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(host_network(project, service));
    findings.extend(
        ["pid", "ipc"]
            .into_iter()
            .filter_map(|key| host_namespace(service, key)),
    );
    findings.extend(privileged(service));
    findings.extend(items(service, "cap_add", capability));
    findings.extend(items(service, "security_opt", confinement));
    findings.extend(root(service));
    findings
}

fn host_network(project: &Project<'_>, service: &ComposeService<'_>) -> Option<Finding> {
    const HAS: &str = "the container uses the host's network: its listening ports are open on the host without \
                       being published, and it reaches services on 127.0.0.1";
    let why = format!("{HAS}. Remove the line and publish the ports that others need");
    let (place, why, fix) = if let Some(network) = project.host_network(service) {
        match NetworkReference::find(service, &network) {
            Some(NetworkReference::Item(item)) => {
                (&item.place, why, without_item(service, "networks", item))
            }
            Some(NetworkReference::Entry(networks, entry)) => {
                (&entry.key, why, without_network(service, networks, entry))
            }
            None => {
                let why =
                    format!("{HAS}. The project's network \"{network}\" is the host's network");
                (service.key, why, None)
            }
        }
    } else {
        let entry = service.node.entry("network_mode")?;
        if !project.is_on_host_network(service) {
            return None;
        }
        (&entry.key, why, without_key(service, "network_mode"))
    };
    let severity = Severity::Medium;
    Some(Finding::new(
        HostNetwork,
        severity,
        service,
        place,
        why,
        fix,
    ))
}

/// The item or entry that names a network in a service.
enum NetworkReference<'a> {
    Item(&'a Node),
    Entry(&'a Mapping, &'a MappingEntry),
}

impl<'a> NetworkReference<'a> {
    fn find(service: &ComposeService<'a>, network: &str) -> Option<Self> {
        let node = service.node.get("networks")?;
        if let Some(networks) = node.mapping() {
            return Some(Self::Entry(networks, networks.get(network)?));
        }
        let is_it = |item: &&Node| item.scalar().is_some_and(|scalar| scalar.text == network);
        node.sequence()?.iter().find(is_it).map(Self::Item)
    }
}

fn without_network(
    service: &ComposeService<'_>,
    networks: &Mapping,
    entry: &MappingEntry,
) -> Option<Fix> {
    match networks.len() {
        1 => without_key(service, "networks"),
        _ => Fix::without(&entry.key, &entry.node)
            .or_else(|| Fix::without_flow_entry(networks, entry)),
    }
}

fn host_namespace(service: &ComposeService<'_>, key: &str) -> Option<Finding> {
    let entry = service.node.entry(key)?;
    if service.text(key) != Some("host") {
        return None;
    }
    let (severity, why) = match key {
        "pid" => (
            Severity::High,
            "the container sees every process of the host, with its arguments",
        ),
        _ => (
            Severity::Medium,
            "the container shares the memory that the host's processes share with each other",
        ),
    };
    let why = format!("{why}; remove the line");
    let fix = without_key(service, key);
    Some(Finding::new(
        HostNamespace,
        severity,
        service,
        &entry.key,
        why,
        fix,
    ))
}

fn privileged(service: &ComposeService<'_>) -> Option<Finding> {
    let entry = service.node.entry("privileged")?;
    if !service.text("privileged").is_some_and(is_true) {
        return None;
    }
    let why = "the container has every capability and every device of the host: root in it is root on \
               the host. Add only the capability or device that it needs, with cap_add or devices";
    let fix = entry
        .node
        .scalar()
        .and_then(|scalar| Fix::scalar(&entry.node, scalar, "false"));
    Some(Finding::new(
        Privileged,
        Severity::Critical,
        service,
        &entry.key,
        why,
        fix,
    ))
}

type Judgement = (Rule, Severity, String);

/// The findings about the items of a list.
fn items<'a>(
    service: &'a ComposeService<'_>,
    key: &'static str,
    judge: fn(&str) -> Option<Judgement>,
) -> impl Iterator<Item = Finding> + 'a {
    let items = service.items(key).iter().filter(|item| !item.is_reset());
    items.filter_map(move |item| {
        let (rule, severity, why) = judge(&item.scalar()?.text)?;
        let fix = without_item(service, key, item);
        Some(Finding::new(rule, severity, service, &item.place, why, fix))
    })
}

fn capability(text: &str) -> Option<Judgement> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    let what = match name {
        "ALL" => "every capability",
        "SYS_ADMIN" => "the capability to mount file systems, among many others",
        "SYS_MODULE" => "the capability to load modules into the kernel",
        "SYS_RAWIO" => "the capability to reach the hardware's memory",
        "SYS_PTRACE" => "the capability to read and change other processes",
        "DAC_READ_SEARCH" => "the capability to read any file, also on the host's disk",
        "BPF" => "the capability to load programs into the kernel",
        _ => return None,
    };
    let severity = match name {
        "SYS_PTRACE" | "BPF" => Severity::Medium,
        _ => Severity::High,
    };
    let why = format!("the container has {what}: remove it if the service works without it");
    Some((DangerousCapability, severity, why))
}

fn confinement(text: &str) -> Option<Judgement> {
    let what = match text.replace('=', ":").as_str() {
        "seccomp:unconfined" => "seccomp's filter of system calls",
        "apparmor:unconfined" => "AppArmor",
        "label:disable" => "SELinux",
        _ => return None,
    };
    let why = format!("{what} does not confine the container; remove the option");
    Some((Unconfined, Severity::Medium, why))
}

fn root(service: &ComposeService<'_>) -> Option<Finding> {
    const USER: &str = "1000:1000";
    let Some(entry) = service.node.entry("user") else {
        let why = "no user: is set: the container runs as root unless its image sets another user";
        let fix = Fix::first_key(service.node, "user", USER);
        // A second key `user:` beside one without a value would be refused.
        let is_absent = !service.node.mapping()?.contains_key("user");
        let fix = fix.filter(|_| is_absent);
        return Some(Finding::new(
            RunsAsRoot,
            Severity::Low,
            service,
            service.key,
            why,
            fix,
        ));
    };
    let scalar = entry.node.scalar()?;
    let reference = scalar.reference.as_ref();
    if reference.is_some_and(|reference| !reference.required.is_empty()) {
        return None;
    }
    let unset = match reference.map(|reference| reference.unset.join(", ")) {
        Some(unset) if !unset.is_empty() => format!(" while {unset} is not set"),
        _ => String::new(),
    };
    let (severity, why) = if scalar.text.is_empty() {
        let why = format!(
            "no user is set{unset}: the container runs as root unless its image sets another user"
        );
        (Severity::Low, why)
    } else if is_root(scalar) {
        let why = format!(
            "the container runs as root{unset}; set another user, if the image supports it"
        );
        (Severity::Medium, why)
    } else {
        return None;
    };
    let fix = Fix::scalar(&entry.node, scalar, USER);
    Some(Finding::new(
        RunsAsRoot, severity, service, &entry.key, why, fix,
    ))
}

/// Whether Docker runs the user as root. It reads `00` and `+0` as numbers, and an empty name before a colon as root.
fn is_root(scalar: &Scalar) -> bool {
    let text = scalar.decimal();
    let user = text.split(':').next().unwrap_or_default();
    matches!(user, "" | "root") || user.parse::<i64>() == Ok(0)
}
