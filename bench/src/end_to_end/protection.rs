//! The protections between a flood and the server.

use std::process::Command;

use anyhow::Result;
use lab::{
    guard::Guard,
    process::run,
    topology::{INTERFACE, Lab},
};

use super::FloodKind;
use crate::{policies::WEB_PORT, xdp_filter};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    Nothing,
    Guard,
    Iptables,
    Nftables,
    XdpFilter,
}

/// A protection that is set up, and the guard that must live as long.
pub struct ActiveProtection {
    guard: Option<Guard>,
}

/// The budget of new connections: each source's rate per second and burst, and the rate of all sources together.
const RATE: u32 = 100;
const BURST: u32 = 200;
const TOTAL: u32 = 1_000;

impl Protection {
    pub const ALL: [Self; 5] = [
        Self::Nothing,
        Self::Guard,
        Self::Iptables,
        Self::Nftables,
        Self::XdpFilter,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Guard => "guard",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::XdpFilter => "xdp-filter",
        }
    }

    pub const fn about(self) -> &'static str {
        match self {
            Self::Nothing => "without protection",
            Self::Guard => "guard",
            Self::Iptables => "iptables, table raw, with hashlimit",
            Self::Nftables => "nftables at ingress, with a dynamic set",
            Self::XdpFilter => "xdp-filter",
        }
    }

    /// Whether the protection has a rule against this flood.
    pub fn handles(self, flood: FloodKind) -> bool {
        self != Self::XdpFilter || flood == FloodKind::Closed
    }

    pub fn set_up(self, lab: &Lab) -> Result<ActiveProtection> {
        let host = |program: &str, arguments: &str| {
            let arguments = arguments.split_whitespace();
            run(lab.host.command(program).args(arguments)).map(drop)
        };
        // GRO, which drivers of network cards do by default, must be enabled on a veth.
        host("ethtool", &format!("-K {INTERFACE} gro on"))?;
        match self {
            Self::Nothing => {}
            Self::Guard => {
                let guard = Some(Guard::start(lab, &policy())?);
                return Ok(ActiveProtection { guard });
            }
            Self::Iptables => {
                let rule = "-t raw -A PREROUTING -p tcp --syn";
                host("iptables", &format!("{rule} ! --dport {WEB_PORT} -j DROP"))?;
                let limits = [
                    format!(
                        "each --hashlimit-mode srcip --hashlimit-above {RATE}/sec --hashlimit-burst {BURST}"
                    ),
                    format!("all --hashlimit-above {TOTAL}/sec --hashlimit-burst {TOTAL}"),
                ];
                for limit in limits {
                    let limit = format!("{rule} -m hashlimit --hashlimit-name {limit} -j DROP");
                    host("iptables", &limit)?;
                }
            }
            Self::Nftables => run(&mut nft(lab)).map(drop)?,
            Self::XdpFilter => xdp_filter::protect(lab, super::CLOSED_PORT)?,
        }
        Ok(ActiveProtection { guard: None })
    }
}

impl ActiveProtection {
    pub fn take_down(self) -> Result<()> {
        let Self { guard } = self;
        guard.map_or(Ok(()), Guard::remove)
    }
}

fn policy() -> String {
    format!(
        "mode = \"enforce\"\nscope = \"host\"\ninterfaces = [\"{INTERFACE}\"]\n\
         [docker]\nsocket = \"\"\n\
         [[service]]\nname = \"web\"\nports = [\"tcp/{WEB_PORT}\"]\n\
         limit.connections = {{ rate = \"{RATE}/s\", burst = {BURST} }}\n\
         total.connections = \"{TOTAL}/s\"\n"
    )
}

fn nft(lab: &Lab) -> Command {
    let rules = format!(
        "table netdev bench {{
             set over {{ type ipv4_addr; flags dynamic; timeout 10s; size 65536; }}
             chain ingress {{
                 type filter hook ingress device {INTERFACE} priority -500;
                 tcp flags & (syn | ack) == syn tcp dport != {WEB_PORT} drop
                 tcp flags & (syn | ack) == syn update @over {{ ip saddr limit rate over \
             {RATE}/second burst {BURST} packets }} drop
                 tcp flags & (syn | ack) == syn limit rate over {TOTAL}/second burst {TOTAL} packets drop
             }}
         }}"
    );
    let mut command = lab.host.command("nft");
    command.arg(rules);
    command
}
