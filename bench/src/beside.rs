//! The programs beside guard's: the empty program, the wrappers that vary packets, minimal programs, and the token
//! bucket of the tutorials.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, ProgramArray},
    programs::{ProgramFd, Xdp},
};

/// Compiled for the BPF virtual machine by this crate's build script.
static WRAPPER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wrapper"));
static FLOORS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/floors"));
static LRU_BUCKET: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lru_bucket"));

/// A range of addresses or ports.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub first: u32,
    pub count: u32,
}

/// The field that varies from packet to packet, at random.
#[derive(Clone, Copy)]
pub enum Varied {
    Source(Numbers),
    Port(Numbers),
}

/// One of these programs, loaded.
pub struct Beside {
    ebpf: Ebpf,
    name: &'static str,
}

impl Beside {
    pub fn empty() -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), WRAPPER, "empty")
    }

    pub fn lru_bucket() -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), LRU_BUCKET, "lru_bucket")
    }

    /// Loads a program that only counts each packet in two cells of its source, atomically.
    pub fn two_exchanges() -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), FLOORS, "two_exchanges")
    }

    /// Loads a program that only drops and counts packets to closed ports; all ports are closed.
    pub fn one_port() -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), FLOORS, "one_port")
    }

    /// Loads a program that only drops these sources.
    pub fn one_lookup(Numbers { first, count }: Numbers) -> Result<Self> {
        let mut floor = Self::load(&mut EbpfLoader::new(), FLOORS, "one_lookup")?;
        let map = floor
            .ebpf
            .map_mut("LISTED")
            .context("the program has no map LISTED")?;
        let mut listed = HashMap::<_, u32, u64>::try_from(map)?;
        for source in first..first + count {
            listed.insert(source.to_be(), 0, 0)?;
        }
        Ok(floor)
    }

    /// Wraps a program, so that every packet gets another source or port.
    pub fn randomised(target: &ProgramFd, varied: Varied) -> Result<Self> {
        let (name, Numbers { first, count }) = match varied {
            Varied::Source(sources) => ("randomise", sources),
            Varied::Port(ports) => ("randomise_port", ports),
        };
        let mut loader = EbpfLoader::new();
        loader
            .override_global("FIRST", &first, true)
            .override_global("COUNT", &count, true);
        let mut wrapper = Self::load(&mut loader, WRAPPER, name)?;
        let map = wrapper.ebpf.map_mut("TARGET");
        let map = map.context("the wrapper has no map for the program")?;
        ProgramArray::try_from(map)?.set(0, target, 0)?;
        Ok(wrapper)
    }

    fn load(loader: &mut EbpfLoader<'_>, object: &[u8], name: &'static str) -> Result<Self> {
        let mut ebpf = loader.load(object)?;
        let program = ebpf.program_mut(name);
        let program: &mut Xdp = program.context(name)?.try_into()?;
        program.load()?;
        Ok(Self { ebpf, name })
    }

    pub fn program(&self) -> Result<&Xdp> {
        let Self { ebpf, name } = self;
        Ok(ebpf.program(name).context(*name)?.try_into()?)
    }
}
