//! `guard status`: whether the guard is at work, and where.

use std::fmt::{self, Write as _};

use super::{Failure, Output, Whereabouts, print, print_json};
use crate::{
    api::{
        DockerStatus, InterfaceStatus, ModeStatus, PolicyStatus, Status, TrialStatus,
        client::ClientError,
    },
    unattended,
};

/// Without an agent it says from the pins what the kernel does.
pub async fn run(whereabouts: &Whereabouts, output: &Output) -> Result<(), Failure> {
    let status = match whereabouts.client()?.status().await {
        Err(error) if error.is_without_agent() => {
            let trouble = match &error {
                ClientError::Silent { .. } => "it hangs",
                _ => "it is dead",
            };
            let status = unattended::status(&whereabouts.pins, trouble.to_owned()).await;
            status.ok().flatten().ok_or(error)?
        }
        status => status?,
    };
    if output.json {
        return Ok(print_json(&status)?);
    }
    Ok(print(&describe(&status).map_err(anyhow::Error::from)?)?)
}

fn describe(status: &Status) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let Status {
        version,
        mode,
        scope,
        enforcing,
        not_enforcing_because,
        agent,
        interfaces,
        policy:
            PolicyStatus {
                path,
                sha256,
                loaded_at,
                services,
                stale,
            },
        modes,
        trial,
        docker,
        not_kept,
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
    if !agent.running {
        let trouble = agent.trouble.as_deref().unwrap_or("it does not answer");
        write!(text, "agent      NOT RUNNING: {trouble}")?;
        if let Some(last_seen) = agent.last_seen {
            write!(text, ", last alive {last_seen:.0}")?;
        }
        writeln!(text, "; the kernel goes on without it")?;
    }
    writeln!(text, "scope      {scope}")?;
    if let Some(TrialStatus {
        path,
        until,
        back_to,
    }) = trial
    {
        writeln!(
            text,
            "trial      {path} until {until:.0}, then back to {back_to}: `guard confirm` keeps it"
        )?;
    }
    for ModeStatus {
        service,
        mode,
        since,
        by,
    } in modes
    {
        let whose = service.as_deref().unwrap_or("host");
        let by = by.as_ref().map(|by| format!(" by {by}"));
        let option = service.as_ref().map(|name| format!(" --service {name}"));
        writeln!(
            text,
            "mode       {whose}: {mode} since {since:.0}{}, whatever the policy says: `guard mode \
             policy{}` ends it",
            by.unwrap_or_default(),
            option.unwrap_or_default()
        )?;
    }
    writeln!(
        text,
        "policy     {path}, services: {services}, loaded {loaded_at}, sha256 {}",
        sha256.get(..12).unwrap_or(sha256)
    )?;
    if let Some(stale) = stale {
        writeln!(text, "           not what the file says: {stale}")?;
    }
    for InterfaceStatus {
        name,
        attached,
        xdp_mode,
        program_id,
        generation,
        trouble,
    } in interfaces
    {
        let state = match (attached, trouble) {
            (true, _) => "attached".to_owned(),
            (false, Some(trouble)) => format!("NOT ATTACHED ({trouble})"),
            (false, None) => "NOT ATTACHED".to_owned(),
        };
        writeln!(
            text,
            "interface  {name}: {state}, {xdp_mode} XDP, program {program_id}, generation \
             {generation}"
        )?;
    }
    match docker {
        Some(docker) => {
            writeln!(text, "docker     {}", describe_docker(docker))?;
            for warning in &docker.warnings {
                writeln!(text, "           {warning}")?;
            }
        }
        None => writeln!(text, "docker     nobody asks it without an agent")?,
    }
    if let Some(not_kept) = not_kept {
        writeln!(text, "state      LOST AT THE NEXT START: {not_kept}")?;
    }
    Ok(text)
}

fn describe_docker(docker: &DockerStatus) -> String {
    let DockerStatus {
        socket,
        connected,
        error,
        published,
        warnings: _,
    } = docker;
    match (connected, error) {
        (true, _) if published.is_empty() => "connected, no published ports".to_owned(),
        (true, _) => format!("connected, published: {}", published.join(", ")),
        (false, Some(error)) => error.clone(),
        (false, None) if socket.is_empty() => "turned off by the policy".to_owned(),
        (false, None) => format!("not connected at {socket}"),
    }
}
