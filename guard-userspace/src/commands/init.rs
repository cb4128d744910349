//! `guard init`: writes a first policy for the services found on this host.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{DEFAULT_POLICY, Failure, print, print_warning};
use crate::{
    audit::host::{Survey, find_docker},
    init,
    operator::ssh_session,
};

#[derive(Debug, Args)]
pub struct Init {
    /// The policy file to write; an existing file is never overwritten
    #[arg(long, short = 'o', visible_alias = "output", value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// Print the policy, and write nothing
    #[arg(long)]
    print: bool,
    /// The socket of Docker or Podman; "" for none
    #[arg(long, value_name = "SOCKET")]
    docker: Option<String>,
}

impl Init {
    pub async fn run(self) -> Result<(), Failure> {
        let Self {
            policy,
            print: only_print,
            docker,
        } = self;
        // The survey takes a while: an existing file is reported before it.
        if !only_print && policy.exists() {
            return Err(taken(&policy).into());
        }
        let docker = docker
            .or_else(find_docker)
            .filter(|socket| !socket.is_empty());
        let survey = Survey::make(docker).await?;
        let text = init::write(&survey, ssh_session()).map_err(anyhow::Error::from)?;
        for note in survey.docker.error.iter().chain(&survey.notes) {
            print_warning(note);
        }
        if only_print {
            return Ok(print(&text)?);
        }
        match write_new(&policy, &text) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(taken(&policy).into()),
            result => {
                result.with_context(|| format!("{} cannot be written", policy.display()))?;
                let file = policy.display();
                Ok(print(&format!(
                    "wrote {file}: read it, then run `guard check {file}`"
                ))?)
            }
        }
    }
}

fn taken(policy: &Path) -> anyhow::Error {
    let file = policy.display();
    anyhow!(
        "{file} is there already and was not changed: --print shows the new policy, -o FILE writes it to another file"
    )
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
