//! `guard doctor`: checks this host for problems of the guard, and shows what to do about them.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use super::{
    AgentLocation, DEFAULT_POLICY, Failure, Output, print, print_json, reading::GuardReader,
};
use crate::doctor::{BETWEEN_READINGS, DoctorFinding, DoctorInput, Health, examine};

#[derive(Debug, Args)]
pub struct Doctor {
    /// The policy file; the file that a reload reads if left out
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Doctor {
    pub async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self {
            policy,
            output: Output { json },
        } = self;
        let reader = GuardReader::new(location)?;
        let status = reader.status().await;
        let in_force = status
            .as_ref()
            .ok()
            .map(|status| &status.policy)
            .map(|policy| policy.file.as_ref().unwrap_or(&policy.path).into());
        let policy = policy.or(in_force).unwrap_or_else(|| DEFAULT_POLICY.into());
        let known = DoctorInput {
            policy: &policy,
            pins: &location.pins,
            status,
            counters: read_twice(&reader).await,
        };
        let findings = examine(&known).await;
        if json {
            print_json(&findings)?;
        } else {
            print(&describe(&findings))?;
        }
        match count(&findings, Health::Failure) {
            0 => Ok(()),
            1 => Err(anyhow!("1 check fails").into()),
            failures => Err(anyhow!("{failures} checks fail").into()),
        }
    }
}

/// Two readings of the counters. `None`: no program is attached, or this user may not read the pins.
async fn read_twice(reader: &GuardReader) -> Option<[Vec<crate::api::Counter>; 2]> {
    let before = reader.counters().await.ok()?;
    tokio::time::sleep(BETWEEN_READINGS).await;
    let now = reader.counters().await.ok()?;
    Some([before, now])
}

fn count(findings: &[DoctorFinding], health: Health) -> usize {
    findings
        .iter()
        .filter(|finding| finding.health == health)
        .count()
}

fn describe(findings: &[DoctorFinding]) -> String {
    let mut text = String::new();
    for DoctorFinding {
        check,
        interface,
        health,
        finding,
        advice,
    } in findings
    {
        let word = match health {
            Health::Ok => "ok",
            Health::Unknown => "not seen",
            Health::Warning => "warning",
            Health::Failure => "FAILURE",
        };
        let name = match interface {
            Some(interface) => format!("{interface} {check}"),
            None => (*check).to_owned(),
        };
        text += &format!("{word:<9} {name:<18} {finding}\n");
        if let Some(advice) = advice {
            text += &format!("{:<28} -> {advice}\n", "");
        }
    }
    text
}
