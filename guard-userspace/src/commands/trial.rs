//! `guard try` and `guard confirm`: puts a policy in force on trial, and keeps it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use jiff::SignedDuration;

use super::{
    Failure, Forced, Output,
    entries::parse_duration,
    files,
    moments::{clock, left},
    one_line, print, print_json, read_policy_and_text,
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
        let Applied {
            mode,
            until,
            other_file,
            ..
        } = applied;
        let until = until
            .map(|until| format!("goes back in {} (at {})", left(until), clock(until)))
            .unwrap_or_default();
        let of_policy = policy.mode.name();
        let hidden = if mode == of_policy {
            String::new()
        } else {
            format!(
                " because an operator set it, which hides the mode {of_policy} of the file: `guard mode policy` ends that"
            )
        };
        Ok(print(&format!(
            "{} is in force in mode {mode}{hidden}, and {until}. Check that everything works, also a new \
             connection, then run `guard confirm`. Without it the previous policy comes back, even \
             if this session or the agent ends. {}",
            file.display(),
            how_to_end(other_file.as_deref())
        ))?)
    }
}

/// How a trial is ended before its time. `other_file`: the policy file, if another file is on trial.
pub fn how_to_end(other_file: Option<&str>) -> String {
    match other_file {
        Some(file) => {
            format!("`guard reload --force` ends the trial now, and puts {file} in force.")
        }
        // A reload would put the file on trial in force for good.
        None => "To end the trial now, restore the policy file and run `guard reload --force`."
            .to_owned(),
    }
}

#[derive(Debug, Args)]
pub struct ConfirmTrial {
    /// Write the policy also to the file that a reload and a restart read
    #[arg(long)]
    write: bool,
}

impl ConfirmTrial {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self { write } = self;
        let Applied {
            path, other_file, ..
        } = client.confirm().await?;
        let kept = format!("{path} is confirmed and stays in force");
        let Some(own) = other_file else {
            return Ok(print(&kept)?);
        };
        let text = client.policy().await?.text;
        if fs::read(&own).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(print(&kept)?);
        }
        if write {
            files::replace(Path::new(&own), &text)
                .with_context(|| format!("{kept}, but {own} cannot be written"))?;
            return Ok(print(&format!("{kept}, and {own} has it too"))?);
        }
        Ok(print(&format!(
            "{kept}, until a reload or a restart: these read {own}, which differs (`guard diff`). To keep it, copy the \
             policy there: `cp {path} {own}`. `guard reload` would go back to {own}"
        ))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_of_the_policy_file_itself_is_not_ended_by_a_reload_of_that_file() {
        insta::assert_snapshot!(how_to_end(Some("/etc/guard/guard.toml")), @"`guard reload --force` ends the trial now, and puts /etc/guard/guard.toml in force.");
        insta::assert_snapshot!(how_to_end(None), @"To end the trial now, restore the policy file and run `guard reload --force`.");
    }
}
