//! `guard explain`: explains whether a source reaches a port, and why.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;

use super::{
    DEFAULT_POLICY, Failure, Output, figures, print, print_json, print_warning, read_policy,
};
use crate::{
    agent::{find_once, plan::chosen_by},
    api::{ExplainRequest, client::Client},
    explain::{Destination, ExplainInput, Explanation, OverBudget, Seen, Step, explain},
    host::{self, Host},
    policy::{KernelTick, labels},
    without_agent,
};

#[derive(Debug, Args)]
pub struct Explain {
    /// The source's address
    #[arg(long, value_name = "ADDR")]
    from: IpAddr,
    /// The destination: 8000/tcp, 203.0.113.5:8000/tcp, [2001:db8::5]:53/udp, icmp, 112/proto
    #[arg(long, value_name = "[ADDR:]PORT/PROTO")]
    to: String,
    /// Explain this policy instead of the policy in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Explain {
    pub async fn run(self, client: &Client, pins: &Path) -> Result<(), Failure> {
        let Self {
            from,
            to,
            policy,
            output: Output { json },
        } = self;
        let destination = to.parse::<Destination>().map_err(Failure::Usage)?;
        let explanation = match policy {
            None if client.has_agent() => client.explain(&ExplainRequest { from, to }).await?,
            Some(policy) => explain_file(&policy, from, &destination).await?,
            None => {
                let path = policy_in_force(pins);
                print_warning(&format!(
                    "no agent answers: this is the verdict of {}, without the entries and modes of operators",
                    path.display()
                ));
                explain_file(&path, from, &destination).await?
            }
        };
        if json {
            print_json(&explanation)?;
        } else {
            print(&describe(&explanation).map_err(anyhow::Error::from)?)?;
        }
        Ok(())
    }
}

/// The file of the policy that the kernel applies without an agent, or the default path.
fn policy_in_force(pins: &Path) -> PathBuf {
    let status = without_agent::status(pins, String::new()).ok().flatten();
    status.map_or_else(|| DEFAULT_POLICY.into(), |status| status.policy.path.into())
}

/// Explains a policy file, with the ports that Docker publishes at this moment.
async fn explain_file(path: &Path, from: IpAddr, to: &Destination) -> Result<Explanation, Failure> {
    let policy = read_policy(path)?;
    let host = Host::read_once().context("this host cannot be read")?;
    let docker = find_once(&policy, &host).await;
    let own: Vec<IpAddr> = match host.own_addresses() {
        Some(own) => own.into_iter().collect(),
        None => {
            let why = host.addresses.error.unwrap_or_default();
            return Err(anyhow::anyhow!("this host's addresses cannot be read: {why}").into());
        }
    };
    let tick_ns = host.tick_ns;
    let interfaces = chosen_by(&host, &policy);
    let own_sources = host.own_sources(&interfaces).unwrap_or_default();
    let (policy, _) = labels::apply(&policy, &docker.containers, KernelTick { tick_ns });
    let situation = ExplainInput {
        policy: &policy,
        containers: &docker.containers,
        local_ports: host::local_port_range().map_err(anyhow::Error::from)?,
        now: host::timebase().map_err(anyhow::Error::from)?,
        tick_ns,
        own: &own,
        own_sources: &own_sources,
        entries: &[],
    };
    Ok(explain(&situation, from, to)?)
}

pub fn describe(explanation: &Explanation) -> Result<String, fmt::Error> {
    let Explanation {
        verdict,
        would,
        reason,
        service: _,
        packet,
        steps,
        line,
        seen,
        over_budget,
    } = explanation;
    let mut text = String::new();
    let headline = match (verdict.as_str(), would, over_budget) {
        ("drop", ..) => format!("DROPPED: {reason}"),
        (_, Some(_), _) => format!("PASSES, but would be dropped if enforced: {reason}"),
        (.., Some(over)) => describe_over_budget(over),
        _ => format!("PASSES: {reason}"),
    };
    writeln!(text, "{headline}")?;
    writeln!(text, "{packet}")?;
    for Step {
        step,
        finding,
        line,
    } in steps
    {
        let place = line
            .map(|line| format!(" (line {line})"))
            .unwrap_or_default();
        writeln!(text, "  {step:<20} {finding}{place}")?;
    }
    match line {
        Some(line) => writeln!(text, "Line {line} of the policy decided.")?,
        None => writeln!(text, "No line of the policy decided.")?,
    }
    if let Some(seen) = seen {
        describe_seen(&mut text, seen)?;
    }
    Ok(text)
}

fn describe_over_budget(over: &OverBudget) -> String {
    let OverBudget {
        budget,
        packets,
        over,
        seconds,
    } = over;
    // The agent reads the talkers every ten seconds, so a minute is not exactly 60 s.
    let when = match seconds {
        50..=80 => "minute".to_owned(),
        seconds => format!("{seconds} s"),
    };
    format!(
        "PASSES, but {} of its {} packets in the last {when} were over `{budget}`",
        figures::whole(*over),
        figures::whole(*packets)
    )
}

fn describe_seen(text: &mut String, seen: &Seen) -> fmt::Result {
    let Seen {
        packets,
        dropped,
        reason,
        service,
    } = seen;
    if *packets == 0 {
        return writeln!(
            text,
            "No packet of this source is in the sample (one packet in sixteen, of the busiest sources): it sends little."
        );
    }
    write!(
        text,
        "Estimated from one packet in sixteen: about {packets} packets of this source, of which about {dropped} were \
         dropped or would be"
    )?;
    if let Some(reason) = reason {
        write!(text, ", the last for {reason}")?;
        if let Some(service) = service {
            write!(text, " at service \"{service}\"")?;
        }
    }
    writeln!(
        text,
        ". A few dozen drops may not show here: `guard counters` is exact, and `guard capture --from` shows each."
    )
}
