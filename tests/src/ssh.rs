//! A real SSH server on the guarded host, for an operator who logs in from the internet. It is Debian's dropbear: its
//! package starts no service.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    process::{Daemon, run, wait_for},
    topology::{HOST_V4, Lab},
};

const PORT: u16 = 22;

/// The server; it ends when this is dropped. It sees another home of root, so the machine's files do not change.
pub struct Ssh {
    dropbear: Daemon,
    folder: PathBuf,
}

impl Ssh {
    /// Starts the server on port 22 of the guarded host.
    pub fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.folder().join("ssh");
        let keys = folder.join("home/.ssh");
        fs::create_dir_all(&keys)?;
        let place = folder.display();
        let home = format!("root:x:0:0:root:{place}/home:/bin/sh\n");
        fs::write(folder.join("passwd"), home)?;
        for name in ["host_key", "key"] {
            let mut keygen = Command::new("dropbearkey");
            run(keygen.args(["-t", "ed25519", "-f"]).arg(folder.join(name)))?;
        }
        let public = run(Command::new("dropbearkey")
            .arg("-y")
            .arg("-f")
            .arg(folder.join("key")))?;
        let public = public.lines().find(|line| line.starts_with("ssh-"));
        let public = public.context("dropbearkey printed no public key")?;
        fs::write(keys.join("authorized_keys"), public)?;
        // In a separate mount namespace: the machine's /etc/passwd does not change.
        let script = format!(
            "mount --bind {place}/passwd /etc/passwd && \
             exec dropbear -F -E -m -s -r {place}/host_key -P {place}/pid -p {PORT}"
        );
        let dropbear = Daemon::start(
            lab.host
                .command("unshare")
                .args(["--mount", "--", "sh", "-c", &script]),
            &lab.folder().join("dropbear.log"),
        )?;
        let mut ssh = Self { dropbear, folder };
        wait_for(Duration::from_secs(10), || {
            ssh.dropbear.check_alive()?;
            let output = ssh.output(lab, HOST_V4, "true")?;
            anyhow::ensure!(output.status.success(), "{output:?} {}", ssh.dropbear.log());
            Ok(())
        })?;
        Ok(ssh)
    }

    /// Runs a shell command on the guarded host, over a new session from the internet.
    pub fn output(&self, lab: &Lab, host: IpAddr, command: &str) -> Result<Output> {
        let mut client = lab.internet.command("dbclient");
        client
            .args(["-y", "-y", "-q", "-T", "-p", &PORT.to_string(), "-i"])
            .arg(self.folder.join("key"))
            .arg(format!("root@{host}"))
            .arg(command)
            .env("HOME", self.folder.join("home"));
        Ok(client.output()?)
    }
}
