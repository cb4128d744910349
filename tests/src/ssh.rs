//! A real SSH server on the guarded host, for the operator who logs in from the internet: Debian's
//! dropbear, whose package starts no service.

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

/// It ends when this is dropped. Its root has a home of its own: the machine's files are as they were.
pub struct Ssh {
    dropbear: Daemon,
    folder: PathBuf,
}

impl Ssh {
    /// Listens on port 22 of the guarded host.
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
        // Its mounts are its own.
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

    /// Runs a shell's command on the guarded host, over a session of its own from the internet.
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
