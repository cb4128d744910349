//! Many SYNs from one source, sent by hping3.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    process::Daemon,
    topology::{HOST_V4, Lab},
};

/// A running flood. It ends when this is dropped.
pub struct Flood {
    hping: Daemon,
}

impl Flood {
    /// Sends `count` SYNs to a port of the guarded host, one every `interval`.
    pub fn start(
        lab: &Lab,
        from: IpAddr,
        port: u16,
        interval: Duration,
        count: u64,
    ) -> Result<Self> {
        let mut command = lab.internet.command("hping3");
        command
            .args(["--quiet", "--syn", "--destport", &port.to_string()])
            .args(["--interval", &format!("u{}", interval.as_micros())])
            .args(["--count", &count.to_string()])
            .args(["--spoof", &from.to_string(), &HOST_V4.to_string()]);
        let log = lab.folder().join(format!("hping3-{from}-{port}.log"));
        let hping = Daemon::start(&mut command, &log)?;
        Ok(Self { hping })
    }

    /// Whether the flood has ended.
    pub fn is_over(&mut self) -> bool {
        self.hping.check_alive().is_err()
    }

    /// Waits until the flood has ended, and returns the number of packets sent.
    pub fn wait(mut self, patience: Duration) -> Result<u64> {
        // The exit status is ignored: hping3 fails if no answer comes, and a closed port gives none.
        self.hping.wait(patience)?;
        self.transmitted()
    }

    /// Ends the flood now, and returns the number of packets sent.
    pub fn stop(mut self) -> Result<u64> {
        self.hping.interrupt()?;
        self.hping.wait(Duration::from_secs(10))?;
        self.transmitted()
    }

    /// Reads hping3's last line: `9876 packets transmitted, …`.
    fn transmitted(&self) -> Result<u64> {
        let log = self.hping.log();
        let line = log
            .lines()
            .find(|line| line.contains("packets transmitted"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("hping3 printed no number of packets: {log}"))
    }
}
