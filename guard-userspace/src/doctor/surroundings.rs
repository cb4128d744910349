//! Checks the agent, the policy, the host's local ports and tracked connections, and Docker.

use std::{io::ErrorKind, path::Path};

use guard_common::layout::PortProtocol;
use jiff::Timestamp;

use super::DoctorFinding;
use crate::{
    api::{Status, client::ClientError},
    docker, host,
    policy::{Policy, PolicyError, PublishedPort},
};

pub fn policy(path: &Path, policy: &Result<Policy, PolicyError>) -> DoctorFinding {
    let policy = match policy {
        Ok(policy) => policy,
        Err(error) if is_missing(error) => {
            let advice = "`guard init` writes a first policy for the services of this host";
            return DoctorFinding::failure("policy", error.to_string(), advice);
        }
        Err(error) => {
            let advice = format!(
                "`guard check {}` shows what would be right; an agent that runs keeps what is in force",
                path.display()
            );
            return DoctorFinding::failure("policy", error.to_string(), advice);
        }
    };
    let place = path.display();
    match policy.warnings(Timestamp::now()).as_slice() {
        [] => DoctorFinding::ok("policy", format!("{place} is valid")),
        [first, rest @ ..] => DoctorFinding::warning(
            "policy",
            format!(
                "{}, and {} more",
                first.display(&place.to_string()),
                rest.len()
            ),
            "`guard check` lists all warnings",
        ),
    }
}

fn is_missing(error: &PolicyError) -> bool {
    matches!(error, PolicyError::Unreadable { error, .. } if error.kind() == ErrorKind::NotFound)
}

/// Whether the policy in force is that of the file.
pub fn stale(status: &Result<Status, ClientError>) -> Option<DoctorFinding> {
    let status = status.as_ref().ok()?;
    let stale = status.policy.stale.as_ref()?;
    let advice = status.policy.stale_advice.as_deref();
    let advice = advice.unwrap_or("`guard diff` shows the difference");
    Some(DoctorFinding::warning("in_force", stale.clone(), advice))
}

pub fn agent(status: &Result<Status, ClientError>) -> DoctorFinding {
    let status = match status {
        Ok(status) => status,
        Err(problem) => {
            let advice = if problem.is_refusal() {
                "run it as root or as a member of group guard"
            } else {
                "`systemctl start guard`"
            };
            return DoctorFinding::warning("agent", problem.to_string(), advice);
        }
    };
    if !status.agent.running {
        let trouble = status
            .agent
            .trouble
            .as_deref()
            .unwrap_or("it does not answer");
        return DoctorFinding::failure(
            "agent",
            format!("{trouble}; the program in the kernel keeps running"),
            "`systemctl restart guard`; `journalctl -u guard` shows why it ended",
        );
    }
    match status.not_enforcing_because.first() {
        Some(obstacle) => DoctorFinding::failure(
            "agent",
            format!("it runs, but does not enforce: {obstacle}"),
            "`guard status` lists every reason",
        ),
        None => DoctorFinding::ok("agent", format!("it runs, in mode {}", status.mode)),
    }
}

pub fn local_ports(status: &Result<Status, ClientError>) -> DoctorFinding {
    let range = match host::local_port_range() {
        Ok(range) => range,
        Err(error) => return DoctorFinding::unknown("local_ports", error.to_string()),
    };
    let docker = status
        .as_ref()
        .ok()
        .and_then(|status| status.docker.as_ref());
    let published = docker.into_iter().flat_map(|docker| &docker.published);
    let inside: Vec<&str> = published
        .filter(|port| {
            let ports = PublishedPort::parse(port).unwrap_or_default();
            let mut ports = ports.iter();
            ports.any(|port| port.protocol == PortProtocol::Tcp && range.contains(&port.port))
        })
        .map(String::as_str)
        .collect();
    let finding = format!("{} to {}", range.start(), range.end());
    if inside.is_empty() {
        return DoctorFinding::ok("local_ports", finding);
    }
    DoctorFinding::warning(
        "local_ports",
        format!(
            "{finding} contains published ports ({}): closing such a port does not end its open sessions",
            inside.join(", ")
        ),
        "publish ports below the range of net.ipv4.ip_local_port_range",
    )
}

pub fn conntrack() -> DoctorFinding {
    match host::tracked_connections("count").zip(host::tracked_connections("max")) {
        Some((count, max)) => conntrack_fill(count, max),
        None => DoctorFinding::ok("conntrack", "the kernel tracks no connections"),
    }
}

fn conntrack_fill(count: u64, max: u64) -> DoctorFinding {
    let percent = count * 100 / max.max(1);
    let finding = format!("{count} of {max} connections, {percent} %");
    let advice = "all programs of this host share the table, and a full one refuses new connections: raise \
                  net.netfilter.nf_conntrack_max, or find the sources that open so many in `guard top`";
    match percent {
        0..50 => DoctorFinding::ok("conntrack", finding),
        50..95 => DoctorFinding::warning("conntrack", finding, advice),
        _ => DoctorFinding::failure("conntrack", finding, advice),
    }
}

pub async fn docker(policy: Option<&Policy>) -> DoctorFinding {
    let Some(policy) = policy else {
        return DoctorFinding::unknown("docker", "not checked: its socket is a key of the policy")
            .advised("`guard doctor --policy FILE` checks with a valid policy");
    };
    let Some(socket) = &policy.docker_socket else {
        return DoctorFinding::ok("docker", "turned off by the policy");
    };
    match docker::version(socket).await {
        Ok(version) => {
            DoctorFinding::ok("docker", format!("version {version} answers at {socket}"))
        }
        Err(error) => DoctorFinding::warning(
            "docker",
            error.to_string(),
            if error.is_refused() {
                "the agent runs as root and may open it; run `guard doctor` as root to check it"
            } else {
                "start Docker, or write `[docker] socket = \"\"` in the policy if this host has none"
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn conntrack_warns_before_its_table_is_full() {
        for (count, health) in [
            (0, Health::Ok),
            (499, Health::Ok),
            (500, Health::Warning),
            (949, Health::Warning),
            (950, Health::Failure),
            (1_000, Health::Failure),
        ] {
            assert_eq!(conntrack_fill(count, 1_000).health, health, "{count}");
        }
        assert_eq!(conntrack_fill(0, 0).health, Health::Ok);
    }
}
