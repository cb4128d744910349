//! Reads the rules that rewrite destinations, from `nft` and the `iptables` programs. It blocks.
//!
//! The kernel has them in three places: tables of nftables, tables of nftables that `iptables-nft` creates (`nft` does
//! not print the targets of their rules), and the older tables of `iptables-legacy`.

mod chains;
mod condition;
mod iptables;
mod nftables;

use std::{fs, io, process::Command};

use guard_common::{address::Family, layout::PortProtocol};
use serde_json::Value;

use self::chains::NatChains;
use super::NatRules;

/// Why NAT rules cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    #[error("`{program}`, which lists the NAT rules, cannot be run: {error}")]
    NotRun { program: String, error: io::Error },
    #[error("`{program}`, which lists the NAT rules, fails: {complaint}")]
    Failed { program: String, complaint: String },
    #[error("the output of `{program}`, which lists the NAT rules, cannot be parsed")]
    Garbled { program: String },
}

const NFT: &str = "nft";
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// The programs of `iptables-nft`, for IPv4 and IPv6.
const NFT_SAVE: [&str; 2] = ["iptables-nft-save", "ip6tables-nft-save"];
/// The programs of the iptables that the host uses.
const ANY_SAVE: [&str; 2] = ["iptables-save", "ip6tables-save"];
/// The programs of `iptables-legacy`, with the kernel's list of its tables. A program runs only if its table exists,
/// because it would create a missing table.
const LEGACY_SAVE: [(&str, &str); 2] = [
    ("iptables-legacy-save", "/proc/net/ip_tables_names"),
    ("ip6tables-legacy-save", "/proc/net/ip6_tables_names"),
];

/// Reads every rule that rewrites the destination of packets that come in or that this host sends.
pub fn nat_rules() -> Result<NatRules, NatError> {
    let mut chains = NatChains::default();
    match run(NFT, &["-j", "list", "ruleset"]) {
        Ok(text) => {
            let ruleset: Value = serde_json::from_str(&text).map_err(|_| NatError::Garbled {
                program: NFT.to_owned(),
            })?;
            if nftables::enter(&ruleset, &mut chains) {
                enter(NFT_SAVE, &mut chains)?;
            }
        }
        // A host may have iptables without `nft`.
        Err(error) if error.is_missing() => match enter(ANY_SAVE, &mut chains) {
            Err(other) if other.is_missing() => return Err(error),
            entered => entered?,
        },
        Err(error) => return Err(error),
    }
    for ((program, tables), family) in LEGACY_SAVE.into_iter().zip(FAMILIES) {
        // If the file is missing, the kernel module is not loaded.
        let tables = fs::read_to_string(tables).unwrap_or_default();
        if tables.lines().any(|table| table == "nat") {
            iptables::enter(&run(program, &["-t", "nat"])?, family, &mut chains);
        }
    }
    Ok(chains.rules())
}

fn enter(programs: [&str; 2], chains: &mut NatChains) -> Result<(), NatError> {
    for (program, family) in programs.into_iter().zip(FAMILIES) {
        iptables::enter(&run(program, &["-t", "nat"])?, family, chains);
    }
    Ok(())
}

impl NatError {
    fn is_missing(&self) -> bool {
        matches!(self, Self::NotRun { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, NatError> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| NatError::NotRun {
        program: program.to_owned(),
        error,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NatError::Failed {
        program: program.to_owned(),
        complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn protocol_of(name: &str) -> Option<PortProtocol> {
    let mut all = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp].into_iter();
    all.find(|protocol| protocol.name() == name)
}
