//! Real UDP servers on the internet (dnsmasq, chronyd, ngtcp2), and the command lines of their clients. The commands
//! are the same on the host and in a container with [`CLIENTS`].

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{Daemon, run},
    topology::{Lab, USER_V4, USER_V6},
};

/// The client programs of [`resolve`], [`query_time`] and [`fetch`].
pub const CLIENTS: [&str; 3] = ["busybox", "chronyd", "gtlsclient"];

/// The port of NTP.
pub const NTP_PORT: u16 = 123;
/// The port of QUIC.
pub const QUIC_PORT: u16 = 443;

/// The addresses of the name that [`resolve`] looks up.
pub const ADDRESSES: [&str; 2] = ["192.0.2.53", "2001:db8::53"];

const PAGE: &str = "hello over QUIC";

/// The servers. DNS and NTP listen on the user's IPv4 and IPv6 addresses, QUIC on the IPv4 address.
pub struct Servers {
    _dns: Daemon,
    ntp: Daemon,
    quic: Daemon,
}

impl Servers {
    /// Starts the servers in the namespace of the internet.
    pub fn start(lab: &Lab) -> Result<Self> {
        Ok(Self {
            _dns: start_dns(lab)?,
            ntp: start_ntp(lab)?,
            quic: start_quic(lab)?,
        })
    }

    /// Stops the NTP and QUIC servers, so that a test can bind their ports.
    pub fn stop_ntp_and_quic(&mut self) -> Result<()> {
        self.ntp.stop()?;
        self.quic.stop()?;
        Ok(())
    }
}

/// Starts dnsmasq, which answers for one name.
fn start_dns(lab: &Lab) -> Result<Daemon> {
    let [v4, v6] = ADDRESSES;
    Daemon::start(
        lab.internet
            .command("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
            ])
            .args(["--bind-interfaces", "--pid-file=", "--conf-file=/dev/null"])
            .arg(format!("--listen-address={USER_V4},{USER_V6}"))
            .arg(format!("--address=/example.test/{v4}"))
            .arg(format!("--address=/example.test/{v6}")),
        &lab.folder().join("dnsmasq.log"),
    )
}

/// Starts chronyd, which serves the machine's time and does not set it (`-x`).
fn start_ntp(lab: &Lab) -> Result<Daemon> {
    Daemon::start(
        lab.internet
            .command("chronyd")
            .args(["-d", "-x", "-u", "root"])
            .args(["local stratum 8", "allow", "cmdport 0", "bindcmdaddress /"])
            .args([USER_V4, USER_V6].map(|address| format!("bindaddress {address}")))
            .arg(format!("port {NTP_PORT}"))
            .arg(pid_file(lab, "ntp-server")),
        &lab.folder().join("ntp.log"),
    )
}

/// Starts ngtcp2's server, which has one page.
fn start_quic(lab: &Lab) -> Result<Daemon> {
    let folder = lab.folder().join("quic");
    fs::create_dir(&folder)?;
    fs::write(folder.join("index.html"), PAGE)?;
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    run(lab
        .internet
        .command("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=example.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate))?;
    Daemon::start(
        lab.internet
            .command("gtlsserver")
            .args(["--quiet", "--htdocs"])
            .arg(&folder)
            .args([USER_V4.to_string(), QUIC_PORT.to_string()])
            .args([&key, &certificate]),
        &lab.folder().join("quic.log"),
    )
}

/// The command that looks up the name's addresses.
pub fn resolve(server: IpAddr) -> Vec<String> {
    let command = ["busybox", "nslookup", "example.test", &server.to_string()];
    command.map(str::to_owned).into()
}

/// The command that queries the time and prints the clock's error, without setting the clock (`-Q`).
pub fn query_time(lab: &Lab, server: IpAddr) -> Vec<String> {
    let server = format!("server {server} iburst maxsamples 1");
    let pid_file = pid_file(lab, "ntp-client");
    let command = ["chronyd", "-Q", "-t", "5", "-u", "root", &server, &pid_file];
    command.map(str::to_owned).into()
}

/// The command that fetches the page over QUIC into this folder.
pub fn fetch(folder: &Path, server: IpAddr) -> Vec<String> {
    let (server, port) = (server.to_string(), QUIC_PORT.to_string());
    let download = format!("--download={}", folder.display());
    let command = [
        "gtlsclient",
        "--quiet",
        "--exit-on-all-streams-close",
        "--timeout=5s",
        &download,
        &server,
        &port,
        "https://example.test/index.html",
    ];
    command.map(str::to_owned).into()
}

/// Checks that [`fetch`] has written the page to this folder.
pub fn check_page(folder: &Path) -> Result<()> {
    let path = folder.join("index.html");
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(page == PAGE, "the page is {page:?}");
    Ok(())
}

/// A separate pid file for each chronyd: it refuses to start if the file names another process.
fn pid_file(lab: &Lab, name: &str) -> String {
    let path: PathBuf = lab.folder().join(name).with_extension("pid");
    format!("pidfile {}", path.display())
}
