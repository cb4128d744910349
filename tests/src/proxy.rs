//! A real reverse proxy in front of the container: Debian's nginx.

use std::{fs, time::Duration};

use anyhow::Result;

use crate::{
    process::{Daemon, wait_for},
    topology::Lab,
};

/// nginx on port 80 of the guarded host's addresses, in front of `upstream`. It ends when this is dropped.
pub struct Proxy {
    _nginx: Daemon,
}

/// The login that a proxy with a login accepts, `name:password`.
pub const LOGIN: &str = "ana:invoices";

impl Proxy {
    /// Starts nginx without a login.
    pub fn start(lab: &Lab, upstream: &str) -> Result<Self> {
        Self::start_with(lab, upstream, "")
    }

    /// Starts a proxy that requires [`LOGIN`].
    pub fn start_with_login(lab: &Lab, upstream: &str) -> Result<Self> {
        let path = lab.folder().join("logins");
        fs::write(&path, LOGIN.replace(':', ":{PLAIN}") + "\n")?;
        let path = path.display();
        let login = format!("auth_basic invoices; auth_basic_user_file {path};");
        Self::start_with(lab, upstream, &login)
    }

    fn start_with(lab: &Lab, upstream: &str, login: &str) -> Result<Self> {
        let folder = lab.folder().join("nginx");
        fs::create_dir(&folder)?;
        let place = folder.display();
        let config = format!(
            "daemon off;
             user root;
             worker_processes 1;
             pid {place}/pid;
             error_log stderr warn;
             events {{ worker_connections 512; }}
             http {{
                 access_log off;
                 client_body_temp_path {place}/body;
                 proxy_temp_path {place}/proxy;
                 fastcgi_temp_path {place}/fastcgi;
                 uwsgi_temp_path {place}/uwsgi;
                 scgi_temp_path {place}/scgi;
                 server {{
                     listen 0.0.0.0:80;
                     listen [::]:80;
                     {login}
                     location / {{ proxy_pass http://{upstream}; }}
                 }}
             }}\n"
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let mut nginx = Daemon::start(
            lab.host
                .command("nginx")
                .arg("-p")
                .arg(&folder)
                .arg("-c")
                .arg(&path)
                .args(["-e", "stderr"]),
            &lab.folder().join("nginx.log"),
        )?;
        wait_for(Duration::from_secs(10), || {
            nginx.check_alive()?;
            anyhow::ensure!(folder.join("pid").exists(), "nginx has not started yet");
            Ok(())
        })?;
        Ok(Self { _nginx: nginx })
    }
}
