//! What stands between a flood and the server.

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

/// What must live as long as the protection.
pub struct Standing {
    guard: Option<Guard>,
}

/// New connections that a source may open in a second and at once, and all sources together.
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

    /// Whether it has a rule against it at all.
    pub fn knows(self, flood: FloodKind) -> bool {
        self != Self::XdpFilter || flood == FloodKind::Closed
    }

    pub fn put_up(self, lab: &Lab) -> Result<Standing> {
        let host = |program: &str, arguments: &str| {
            let arguments = arguments.split_whitespace();
            run(lab.host.command(program).args(arguments)).map(drop)
        };
        // What a card's driver does anyway, a veth does only if asked.
        host("ethtool", &format!("-K {INTERFACE} gro on"))?;
        match self {
            Self::Nothing => {}
            Self::Guard => {
                let guard = Some(Guard::start(lab, &policy())?);
                return Ok(Standing { guard });
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
            Self::XdpFilter => xdp_filter::stand(lab, super::CLOSED_PORT)?,
        }
        Ok(Standing { guard: None })
    }
}

impl Standing {
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
