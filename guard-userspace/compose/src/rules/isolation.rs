//! Rules about the isolation of a container: namespaces, capabilities, confinement and user.

use super::super::{
    finding::Finding,
    project::Project,
    rule::{
        Rule::{
            self, DangerousCapability, HostNamespace, HostNetwork, Privileged, RunsAsRoot,
            Unconfined,
        },
        Severity,
    },
    service::ComposeService,
    source::Place,
    yaml::{Node, Scalar, is_true},
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
    const INSTEAD: &str = "if it need not find devices by broadcast, remove the host's network, and publish its ports: \
                           other containers then reach it by its name";
    let (place, why) = if let Some(network) = project.host_network(service) {
        match reference(service, &network) {
            Some(place) => (place, HAS.to_owned()),
            None => {
                let why =
                    format!("{HAS}. The project's network \"{network}\" is the host's network");
                (service.key, why)
            }
        }
    } else {
        let entry = service.node.entry("network_mode")?;
        if !project.is_on_host_network(service) {
            return None;
        }
        (&entry.key, HAS.to_owned())
    };
    let severity = Severity::Medium;
    let finding = Finding::new(HostNetwork, severity, service, place, why, None);
    Some(finding.advised(INSTEAD))
}

/// The place that names a network in a service.
fn reference<'a>(service: &ComposeService<'a>, network: &str) -> Option<&'a Place> {
    let node = service.node.get("networks")?;
    if let Some(networks) = node.mapping() {
        return Some(&networks.get(network)?.key);
    }
    let is_it = |item: &&Node| item.scalar().is_some_and(|scalar| scalar.text == network);
    Some(&node.sequence()?.iter().find(is_it)?.place)
}

fn host_namespace(service: &ComposeService<'_>, key: &str) -> Option<Finding> {
    let entry = service.node.entry(key)?;
    if service.text(key) != Some("host") {
        return None;
    }
    let (severity, why, advice) = match key {
        "pid" => (
            Severity::High,
            "the container sees every process of the host, with its arguments",
            "only monitors and debuggers need that: remove the line from any other",
        ),
        _ => (
            Severity::Medium,
            "the container shares the memory that the host's processes share with each other",
            "if it only needs much shared memory, as PyTorch does, write shm_size: 8gb instead",
        ),
    };
    let place = &entry.key;
    let finding = Finding::new(HostNamespace, severity, service, place, why, None);
    Some(finding.advised(advice))
}

fn privileged(service: &ComposeService<'_>) -> Option<Finding> {
    let entry = service.node.entry("privileged")?;
    if !service.text("privileged").is_some_and(is_true) {
        return None;
    }
    let why = "the container has every capability and every device of the host: root in it is root on the host";
    let place = &entry.key;
    let finding = Finding::new(Privileged, Severity::Critical, service, place, why, None);
    Some(finding.advised(
        "remove the line, start it, and give it what its log then misses, with cap_add or devices",
    ))
}

type Judgement = (Rule, Severity, String, &'static str);

/// The findings about the items of a list.
fn items<'a>(
    service: &'a ComposeService<'_>,
    key: &'static str,
    judge: fn(&str) -> Option<Judgement>,
) -> impl Iterator<Item = Finding> + 'a {
    let items = service.items(key).iter().filter(|item| !item.is_reset());
    items.filter_map(move |item| {
        let (rule, severity, why, advice) = judge(&item.scalar()?.text)?;
        let place = &item.place;
        let finding = Finding::new(rule, severity, service, place, why, None);
        Some(finding.advised(advice))
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
    let why = format!("the container has {what}");
    let advice = match name {
        "SYS_MODULE" => "remove it, and load the module on the host with modprobe",
        _ => "remove it if the service works without it",
    };
    Some((DangerousCapability, severity, why, advice))
}

fn confinement(text: &str) -> Option<Judgement> {
    let what = match text.replace('=', ":").as_str() {
        "seccomp:unconfined" => "seccomp's filter of system calls",
        "apparmor:unconfined" => "AppArmor",
        "label:disable" => "SELinux",
        _ => return None,
    };
    let why = format!("{what} does not confine the container");
    let advice = "remove the option, and put it back if the service then fails with \"operation not permitted\"";
    Some((Unconfined, Severity::Medium, why, advice))
}

fn root(service: &ComposeService<'_>) -> Option<Finding> {
    // Another user is seldom safe to set unseen: images write to root's folders, and volumes belong to root.
    let check = format!(
        "`docker compose run --rm --entrypoint id {}` shows its user. Set another only if the image's documentation \
         names one, and give that user the volumes with chown",
        service.name
    );
    let Some(entry) = service.node.entry("user") else {
        let why = "no user: is set: the container runs as root unless its image sets another user";
        let place = service.key;
        let finding = Finding::new(RunsAsRoot, Severity::Low, service, place, why, None);
        return Some(finding.advised(check));
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
        let why = format!("the container runs as root{unset}");
        (Severity::Medium, why)
    } else {
        return None;
    };
    let place = &entry.key;
    let finding = Finding::new(RunsAsRoot, severity, service, place, why, None);
    Some(finding.advised(check))
}

/// Whether Docker runs the user as root. It reads `00` and `+0` as numbers, and an empty name before a colon as root.
fn is_root(scalar: &Scalar) -> bool {
    let text = scalar.decimal();
    let user = text.split(':').next().unwrap_or_default();
    matches!(user, "" | "root") || user.parse::<i64>() == Ok(0)
}
