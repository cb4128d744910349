//! What stands beside and around guard's program: the empty program, a source for every packet, and the
//! token bucket of the tutorials.

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

/// Addresses or ports, one after the other from this one.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub first: u32,
    pub count: u32,
}

/// What is another in every packet, picked at random.
#[derive(Clone, Copy)]
pub enum Varied {
    Source(Numbers),
    Port(Numbers),
}

/// One program of its own.
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

    /// Counts each packet in two cells of its source, so that no CPU loses a count, and does nothing else.
    pub fn two_exchanges() -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), FLOORS, "two_exchanges")
    }

    /// Drops what is sent to closed ports, which are all, counts it, and does nothing else.
    pub fn one_port() -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), FLOORS, "one_port")
    }

    /// Drops these sources, and does nothing else.
    pub fn one_lookup(Numbers { first, count }: Numbers) -> Result<Self> {
        let mut floor = Self::load(&mut EbpfLoader::new(), FLOORS, "one_lookup")?;
        let map = floor.ebpf.map_mut("LISTED").context("there is no list")?;
        let mut listed = HashMap::<_, u32, u64>::try_from(map)?;
        for source in first..first + count {
            listed.insert(source.to_be(), 0, 0)?;
        }
        Ok(floor)
    }

    /// The program with a source or a port for every packet.
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
        let map = map.context("the wrapper has no place for a program")?;
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
