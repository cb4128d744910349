//! `guard audit` of this host.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::{
    audit::host::{GuardLocation, PolicyInForce, Report, Survey, find_docker},
    commands::{AgentLocation, DEFAULT_POLICY, Failure, Output, print, print_json},
    host,
    policy::KernelTick,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0: nothing is open to the world that no service lists; 1: something is; 2: wrong usage, or a \
policy that is refused.")]
pub struct AuditHostCommand {
    /// Judge by this policy, as if it were in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where Docker or Podman answers, if not where the policy says; "" asks nobody
    #[arg(long, value_name = "SOCKET")]
    docker: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl AuditHostCommand {
    /// What is asked of the host means nothing beside another audit.
    pub fn require_unused(&self) -> Result<(), Failure> {
        let Self {
            policy,
            docker,
            output: Output { json },
        } = self;
        if policy.is_none() && docker.is_none() && !json {
            return Ok(());
        }
        let problem =
            "--policy, --docker and --json before `compose` are for the audit of the host";
        Err(Failure::Usage(problem.to_owned()))
    }

    pub async fn run(self, whereabouts: &AgentLocation) -> Result<(), Failure> {
        let Self {
            policy,
            docker,
            output: Output { json },
        } = self;
        let mut notes = Vec::new();
        let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
        let clock = KernelTick { tick_ns };
        let in_force = match policy {
            Some(path) => Some(PolicyInForce::supposed(&path, clock)?),
            None => {
                let places = GuardLocation {
                    client: &whereabouts.client()?,
                    socket: &whereabouts.socket,
                    pins: &whereabouts.pins,
                    default: DEFAULT_POLICY.as_ref(),
                };
                PolicyInForce::find(&places, clock, &mut notes).await?
            }
        };
        let docker = match (docker, &in_force) {
            (Some(socket), _) => Some(socket).filter(|socket| !socket.is_empty()),
            (None, Some(in_force)) => in_force.policy.docker_socket.clone(),
            (None, None) => find_docker(),
        };
        let report = Report::new(Survey::make(docker).await?, in_force, notes).await?;
        if json {
            print_json(&report)?;
        } else {
            print(&report.describe().map_err(anyhow::Error::from)?)?;
        }
        match report.complaint() {
            Some(complaint) => Err(anyhow::Error::msg(complaint).into()),
            None => Ok(()),
        }
    }
}
