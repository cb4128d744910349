//! `guard audit`: audits this host.

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
Exit status: 0: no finding; 1: at least one finding, which is a port that is open to the world and listed by no \
service; 2: wrong usage, or an invalid policy.")]
pub struct AuditHostCommand {
    /// Apply this policy, as if it were in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The socket of Docker or Podman, instead of the policy's; "" for none
    #[arg(long, value_name = "SOCKET")]
    docker: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl AuditHostCommand {
    /// The options of the audit of the host have no meaning for another audit.
    ///
    /// # Errors
    /// An option was given.
    pub fn require_unused(&self) -> Result<(), Failure> {
        let Self {
            policy,
            docker,
            output: Output { json },
        } = self;
        if policy.is_none() && docker.is_none() && !json {
            return Ok(());
        }
        let problem = "--policy, --docker and --json before `compose` apply to the audit of the host: leave them out";
        Err(Failure::Usage(problem.to_owned()))
    }

    pub async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
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
                    client: &location.client()?,
                    socket: &location.socket,
                    pins: &location.pins,
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
