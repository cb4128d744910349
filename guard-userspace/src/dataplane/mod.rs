//! The kernel side as the agent handles it: load a generation with its tables filled, attach it,
//! read what it counted.

mod attach;
mod counters;

use std::io;

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{Array, LpmTrie, Map, MapError, lpm_trie::Key},
    programs::{ProgramError, Xdp},
};
use guard_common::{
    cell::HashKey,
    gcra::UNITS_PER_NANOSECOND,
    layout::{self, AdmittedKey, Config, DEFAULT_CELLS_PER_ROW, SERVICE_BITS},
};
use ipnet::IpNet;

pub use self::{
    attach::{AttachError, Attachment, XdpMode},
    counters::CounterRow,
};
use crate::policy::{ServiceTable, Tables};

/// The kernel program, compiled for the BPF virtual machine by this crate's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard-ebpf"));

/// One loaded copy of the kernel program: its switches are constants, its tables are full.
pub struct Generation {
    ebpf: Ebpf,
    tables: Tables,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "guard needs root, or the capabilities BPF, NET_ADMIN and PERFMON, to load its program"
    )]
    NotPermitted,
    #[error("the kernel refuses the program or its tables")]
    Ebpf(#[from] EbpfError),
    #[error("the kernel's verifier refuses the program")]
    Program(#[from] ProgramError),
    #[error("a table cannot be filled")]
    Map(#[from] MapError),
    #[error("no random key can be drawn for the budgets' hash: {0}")]
    NoRandomness(getrandom::Error),
    #[error("the kernel object has no {0}")]
    Incomplete(&'static str),
}

impl Generation {
    /// Loads a fresh copy of the program and fills its tables. Nothing is attached yet, so no packet
    /// is judged by half a policy.
    pub fn load(tables: Tables, tick_ns: u64) -> Result<Self, LoadError> {
        Self::try_load(tables, tick_ns).map_err(|error| {
            if is_not_permitted(&error) {
                LoadError::NotPermitted
            } else {
                error
            }
        })
    }

    fn try_load(tables: Tables, tick_ns: u64) -> Result<Self, LoadError> {
        let settings = || tables.services.iter().map(|service| service.settings);
        let config = Config {
            jiffy: tick_ns * UNITS_PER_NANOSECOND,
            hash_key: random_hash_key()?,
            cell_mask: DEFAULT_CELLS_PER_ROW - 1,
            mode: tables.mode as u8,
            scope: tables.scope as u8,
            has_restricted: settings().any(|settings| settings.restricted != 0).into(),
            has_budgets: settings()
                .any(|settings| settings.packets.is_limited())
                .into(),
        };
        let mut ebpf = EbpfLoader::new()
            .override_global(layout::CONFIG, &config, true)
            .load(OBJECT)?;
        fill(&mut ebpf, &tables)?;
        let mut generation = Self { ebpf, tables };
        generation.program_mut()?.load()?;
        Ok(generation)
    }

    /// The tables that this generation was filled with.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The XDP program, to run it over a packet of one's own.
    pub fn program(&self) -> Result<&Xdp, LoadError> {
        let program = self.ebpf.program(layout::PROGRAM);
        let program = program.ok_or(LoadError::Incomplete(layout::PROGRAM))?;
        Ok(program.try_into()?)
    }

    fn program_mut(&mut self) -> Result<&mut Xdp, LoadError> {
        let program = self.ebpf.program_mut(layout::PROGRAM);
        let program = program.ok_or(LoadError::Incomplete(layout::PROGRAM))?;
        Ok(program.try_into()?)
    }

    fn map(&self, name: &'static str) -> Result<&Map, LoadError> {
        self.ebpf.map(name).ok_or(LoadError::Incomplete(name))
    }
}

fn fill(ebpf: &mut Ebpf, tables: &Tables) -> Result<(), LoadError> {
    let mut services = array(ebpf, layout::SERVICES)?;
    for (number, service) in (1..).zip(&tables.services) {
        services.set(number, service.settings, 0)?;
    }
    let mut ports = array(ebpf, layout::PORTS)?;
    for (index, entry) in &tables.ports {
        ports.set(*index, *entry, 0)?;
    }
    for (number, ServiceTable { admitted, .. }) in (1..).zip(&tables.services) {
        for prefix in admitted {
            match prefix {
                IpNet::V4(prefix) => {
                    let address = prefix.network().octets();
                    admit(
                        ebpf,
                        layout::ADMITTED_V4,
                        number,
                        address,
                        prefix.prefix_len(),
                    )?;
                }
                IpNet::V6(prefix) => {
                    let address = prefix.network().octets();
                    admit(
                        ebpf,
                        layout::ADMITTED_V6,
                        number,
                        address,
                        prefix.prefix_len(),
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn admit<const BYTES: usize>(
    ebpf: &mut Ebpf,
    trie: &'static str,
    service: u32,
    address: [u8; BYTES],
    prefix_length: u8,
) -> Result<(), LoadError> {
    let mut trie = LpmTrie::<_, AdmittedKey<BYTES>, u8>::try_from(map_mut(ebpf, trie)?)?;
    let length = SERVICE_BITS + u32::from(prefix_length);
    trie.insert(&Key::new(length, AdmittedKey { service, address }), 1, 0)?;
    Ok(())
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, LoadError> {
    ebpf.map_mut(name).ok_or(LoadError::Incomplete(name))
}

fn array<'a, V: Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<Array<&'a mut aya::maps::MapData, V>, LoadError> {
    Ok(Array::try_from(map_mut(ebpf, name)?)?)
}

fn random_hash_key() -> Result<HashKey, LoadError> {
    let word = || getrandom::u64().map_err(LoadError::NoRandomness);
    Ok(HashKey([word()?, word()?]))
}

/// Whether the kernel said EPERM or EACCES anywhere below this error. The verifier's own refusal is
/// EACCES too, and has a log.
fn is_not_permitted(error: &LoadError) -> bool {
    if let LoadError::Program(ProgramError::LoadError { verifier_log, .. }) = error
        && !verifier_log.to_string().is_empty()
    {
        return false;
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return true;
        }
        source = error.source();
    }
    false
}
