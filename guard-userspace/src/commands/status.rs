//! `guard status`: whether the guard is at work, and where.

use std::fmt::{self, Write as _};

use anyhow::Result;

use super::{Output, print, print_json};
use crate::api::{DockerStatus, InterfaceStatus, PolicyStatus, Status, client::Client};

pub async fn run(client: &Client, output: &Output) -> Result<()> {
    let status = client.status().await?;
    if output.json {
        return print_json(&status);
    }
    print(&describe(&status)?)
}

fn describe(status: &Status) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let Status {
        version,
        mode,
        scope,
        enforcing,
        not_enforcing_because,
        interfaces,
        policy:
            PolicyStatus {
                path,
                sha256,
                loaded_at,
                services,
            },
        docker,
    } = status;
    let headline = match (mode.as_str(), enforcing) {
        ("enforce", true) => "enforcing: what the policy closes is closed",
        ("enforce", false) => "NOT ENFORCING, although the policy says so",
        ("observe", _) => "observing: everything passes, would-be drops are counted",
        _ => "off: everything passes",
    };
    writeln!(text, "guard {version} is {headline}")?;
    for obstacle in not_enforcing_because {
        writeln!(text, "  because {obstacle}")?;
    }
    writeln!(text, "scope      {scope}")?;
    writeln!(
        text,
        "policy     {path}, services: {services}, loaded {loaded_at}, sha256 {}",
        sha256.get(..12).unwrap_or(sha256)
    )?;
    for InterfaceStatus {
        name,
        attached,
        xdp_mode,
        program_id,
        generation,
    } in interfaces
    {
        let state = if *attached {
            "attached"
        } else {
            "NOT ATTACHED"
        };
        writeln!(
            text,
            "interface  {name}: {state}, {xdp_mode} XDP, program {program_id}, generation \
             {generation}"
        )?;
    }
    writeln!(text, "docker     {}", describe_docker(docker))?;
    Ok(text)
}

fn describe_docker(docker: &DockerStatus) -> String {
    let DockerStatus {
        socket,
        connected,
        error,
        published,
    } = docker;
    match (connected, error) {
        (true, _) if published.is_empty() => "connected, no published ports".to_owned(),
        (true, _) => format!("connected, published: {}", published.join(", ")),
        (false, Some(error)) => error.clone(),
        (false, None) if socket.is_empty() => "turned off by the policy".to_owned(),
        (false, None) => format!("not connected at {socket}"),
    }
}
