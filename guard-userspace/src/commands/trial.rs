//! `guard try` and `guard confirm`: puts a policy in force on trial, and keeps it.

use std::{fs, path::PathBuf};

use clap::Args;
use jiff::SignedDuration;

use super::{
    Failure, Forced, Output, entries::parse_duration, one_line, print, print_json,
    read_policy_and_text,
};
use crate::{
    api::{Applied, NewTrial, client::Client},
    operator::ssh_session,
};

#[derive(Debug, Args)]
pub struct Try {
    /// The policy file to try
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Time until the previous policy comes back, such as 60s or 10m
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    lasts: SignedDuration,
    #[command(flatten)]
    forced: Forced,
    #[command(flatten)]
    output: Output,
}

impl Try {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self {
            file,
            lasts,
            forced: Forced { force },
            output,
        } = self;
        // The agent checks it again. An error found here names the file as the operator typed it.
        let (policy, text) = read_policy_and_text(&file)?;
        let path = fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
        let request = NewTrial {
            path: one_line("the policy file's name", path.display().to_string())?,
            text,
            seconds: u64::try_from(lasts.as_secs()).unwrap_or_default(),
            operator: ssh_session(),
            force,
        };
        let applied = client.try_policy(&request).await?;
        if output.json {
            return Ok(print_json(&applied)?);
        }
        let Applied { mode, until, .. } = applied;
        let until = until.map(|until| format!("{until:.0}")).unwrap_or_default();
        let of_policy = policy.mode.name();
        let hidden = if mode == of_policy {
            String::new()
        } else {
            format!(
                ", because an operator set it (the policy has {of_policy}): `guard mode policy` ends that"
            )
        };
        Ok(print(&format!(
            "{} is in force until {until}, mode {mode}{hidden}. Check that everything works, also a new \
             connection, then run `guard confirm`. Without it the previous policy comes back, even \
             if this session or the agent ends.",
            file.display()
        ))?)
    }
}

pub async fn confirm(client: &Client) -> Result<(), Failure> {
    let Applied {
        path, other_file, ..
    } = client.confirm().await?;
    let hint = other_file.map(|own| {
        format!(". A reload or a restart reads {own}: copy the policy there (`cp {path} {own}`)")
    });
    Ok(print(&format!(
        "{path} is confirmed and stays in force{}",
        hint.unwrap_or_default()
    ))?)
}
