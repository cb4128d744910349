//! `guard status`: whether the guard is at work, and where.

use anyhow::Result;

use super::{Output, print_json};
use crate::api::{DockerStatus, InterfaceStatus, PolicyStatus, Status, client::Client};

pub async fn run(client: &Client, output: &Output) -> Result<()> {
    let status = client.status().await?;
    if output.json {
        return print_json(&status);
    }
    print(&status);
    Ok(())
}

fn print(status: &Status) {
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
    println!("guard {version} is {headline}");
    for obstacle in not_enforcing_because {
        println!("  because {obstacle}");
    }
    println!("scope      {scope}");
    println!(
        "policy     {path}, {services} services, loaded {loaded_at}, sha256 {}",
        sha256.get(..12).unwrap_or(sha256)
    );
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
        println!(
            "interface  {name}: {state}, {xdp_mode} XDP, program {program_id}, generation \
             {generation}"
        );
    }
    println!("docker     {}", describe(docker));
}

fn describe(docker: &DockerStatus) -> String {
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
