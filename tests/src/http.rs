//! Fetches the invoices with curl, as a client on the internet.

use std::{fmt, net::IpAddr, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::topology::Lab;

/// curl's exit codes (curl(1)): connection refused, and timeout.
const REFUSED: i32 = 7;
const TIMED_OUT: i32 = 28;

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpOutcome {
    Status(u16),
    TimedOut,
    Refused,
}

impl fmt::Display for HttpOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "{status}"),
            Self::TimedOut => formatter.write_str("times out"),
            Self::Refused => formatter.write_str("refused"),
        }
    }
}

/// Requests the invoices, from one of the internet's addresses.
pub fn get(lab: &Lab, from: IpAddr, host: IpAddr, port: u16) -> Result<HttpOutcome> {
    get_with_login(lab, from, host, port, None)
}

/// Requests the invoices with a login, `name:password`.
pub fn get_with_login(
    lab: &Lab,
    from: IpAddr,
    host: IpAddr,
    port: u16,
    login: Option<&str>,
) -> Result<HttpOutcome> {
    let mut command = curl(lab, from, host, port);
    if let Some(login) = login {
        command.args(["--user", login]);
    }
    let output = command.output()?;
    match output.status.code() {
        Some(0) => {
            let status = String::from_utf8_lossy(&output.stdout);
            let status = status.trim().parse().context("curl printed no status")?;
            Ok(HttpOutcome::Status(status))
        }
        Some(TIMED_OUT) => Ok(HttpOutcome::TimedOut),
        Some(REFUSED) => Ok(HttpOutcome::Refused),
        _ => bail!("{command:?}: {}", output.status),
    }
}

fn curl(lab: &Lab, from: IpAddr, host: IpAddr, port: u16) -> Command {
    let host = match host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    };
    let mut command = lab.internet.command("curl");
    command
        .args([
            "--silent",
            "--output",
            "/dev/null",
            // The kernel retransmits a lost SYN after one second (RFC 6298); an answer of a busy server may take
            // longer.
            "--connect-timeout",
            "2",
            "--max-time",
            "10",
            "--noproxy",
            "*",
        ])
        .args(["--write-out", "%{http_code}", "--interface"])
        .arg(from.to_string())
        .arg(format!("http://{host}:{port}/invoices.json"));
    command
}
