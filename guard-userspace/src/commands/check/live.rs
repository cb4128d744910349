//! `guard check --live`: finds the open sessions that a policy would cut.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::Context as _;
use guard_common::layout::feature;
use serde::Serialize;

use crate::{
    agent::{apply::explained_gap, find_once},
    api::client::Client,
    dataplane::keeps_flows_of,
    host::{self, Host, Netlink},
    lockout::{self, Cut, Lockout},
    operator::{SshSession, ssh_session},
    policy::{Containers, KernelTick, Policy, Tables, labels},
    privileges,
};

/// The most sessions that the text lists. JSON lists all.
const LISTED: usize = 20;

#[derive(Serialize)]
pub struct LiveCheck {
    /// The SSH session of this command, if it has one.
    pub ssh_session: Option<SshSession>,
    /// Why the ports that containers publish are not known.
    pub docker_error: Option<String>,
    /// Why the open UDP flows, whose answers the policy would let in, are not all known.
    pub flows_gap: Option<String>,
    #[serde(flatten)]
    pub lockout: Lockout,
}

impl LiveCheck {
    /// Compares a policy with this host. The entries of operators come from the agent, if it runs.
    pub async fn read(policy: &Policy, client: &Client, pins: &Path) -> anyhow::Result<Self> {
        let netlink = Netlink::connect().context("route netlink cannot be reached")?;
        let host = Host::read_once().context("this host cannot be read")?;
        let docker = find_once(policy, &host).await;
        let entries = if client.has_agent() {
            let listed = client.entries().await?.into_iter();
            listed.map(|listed| listed.entry).collect()
        } else {
            Vec::new()
        };
        let ssh_session = ssh_session();
        let containers = &docker.containers;
        let clock = KernelTick {
            tick_ns: host.tick_ns,
        };
        let (policy, _) = labels::apply(policy, containers, clock);
        let here = (&host, &netlink);
        let lockout = lockout::of_host(&policy, containers, &entries, here, ssh_session);
        let flows_gap =
            if needs_flows(&policy, containers)? && !keeps_flows_of(pins, &policy.sha256) {
                privileges::spawn_blocking(|| host::open_udp_flows().gap).await?
            } else {
                None
            };
        Ok(Self {
            ssh_session,
            docker_error: docker.error,
            flows_gap,
            lockout: lockout.await?,
        })
    }

    /// The error of the command if the policy would cut a session.
    pub fn complaint(&self) -> Option<String> {
        let count = self.lockout.enforced();
        let is_operators = self.lockout.refusal().is_some();
        match (count, is_operators) {
            (0, _) => None,
            (1, true) => Some("this policy would close your own way in".to_owned()),
            (count, true) => Some(format!(
                "this policy would close your own way in, and {} more",
                sessions(count - 1)
            )),
            (count, false) => Some(format!("this policy would cut {}", sessions(count))),
        }
    }

    pub fn describe(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let Self {
            ssh_session,
            docker_error,
            flows_gap,
            lockout:
                Lockout {
                    sessions: open,
                    operator,
                    cut,
                },
        } = self;
        match (operator, ssh_session) {
            (Some(cut), _) => describe_way_in(&mut text, cut)?,
            (None, Some(SshSession { client, server })) => writeln!(
                text,
                "your own way in, SSH from {} to {server}, stays open",
                client.ip()
            )?,
            (None, None) => writeln!(text, "no SSH session of this command was found")?,
        }
        for (is_enforced, fate) in [(true, "cut"), (false, "cut if it were enforced")] {
            let cuts: Vec<&Cut> = cut
                .iter()
                .filter(|cut| cut.is_enforced() == is_enforced)
                .collect();
            if !cuts.is_empty() {
                writeln!(text, "{} would be {fate}:", sessions(cuts.len()))?;
            }
            for cut in cuts.iter().take(LISTED) {
                writeln!(text, "  {cut}: {}, {}", Why(cut), effect(cut))?;
            }
            if cuts.len() > LISTED {
                writeln!(text, "  and {} more; --json lists all", cuts.len() - LISTED)?;
            }
        }
        if cut.is_empty() {
            let others = if operator.is_some() { "other " } else { "" };
            writeln!(
                text,
                "no {others}session would be cut, of {} into this host",
                sessions(*open)
            )?;
        }
        if let Some(error) = docker_error {
            writeln!(
                text,
                "the ports that containers publish are not known, and not checked: {error}"
            )?;
        }
        if let Some(gap) = flows_gap {
            writeln!(text, "{}", explained_gap(gap))?;
        }
        Ok(text)
    }
}

/// Whether the policy has ports that admit only answers to UDP flows of this host or its containers.
fn needs_flows(policy: &Policy, containers: &Containers) -> anyhow::Result<bool> {
    let now = host::timebase().context("the clocks cannot be read")?;
    // The range of local ports does not change whether the program uses flows.
    let tables = Tables::compile(policy, containers, &(0..=0), now);
    Ok(tables.uses(feature::FLOWS))
}

fn describe_way_in(text: &mut String, cut: &Cut) -> fmt::Result {
    let (client, server) = (cut.peer.ip(), cut.local);
    if cut.is_enforced() {
        writeln!(
            text,
            "YOUR OWN WAY IN WOULD BE CLOSED: SSH from {client} to {server}"
        )?;
    } else {
        writeln!(
            text,
            "your own way in, SSH from {client} to {server}, stays open in this mode; enforced, it \
             would be closed"
        )?;
    }
    writeln!(text, "  {}", Why(cut))?;
    writeln!(text, "  {}", effect(cut))?;
    if let Some(keep_open) = &cut.keep_open {
        writeln!(text, "  to keep it open, write in the policy:")?;
        for line in keep_open.lines() {
            writeln!(text, "    {line}")?;
        }
    }
    Ok(())
}

fn effect(cut: &Cut) -> &'static str {
    if cut.at_once {
        "the open session dies at once"
    } else {
        "the open session goes on, but no new one can be opened"
    }
}

fn sessions(count: usize) -> String {
    match count {
        1 => "1 session".to_owned(),
        count => format!("{count} sessions"),
    }
}

/// `closed_port, no service lists tcp/22 (line 3)`.
struct Why<'a>(&'a Cut);

impl fmt::Display for Why<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut {
            reason,
            because,
            line,
            ..
        } = self.0;
        write!(formatter, "{reason}, {because}")?;
        match line {
            Some(line) => write!(formatter, " (line {line})"),
            None => Ok(()),
        }
    }
}
