//! User space's side of the kernel program: loads a generation with its tables filled, attaches it, reads its counters,
//! and replays packets through it.

mod attach;
mod batch;
mod closed_ports;
mod closer;
mod clsact;
mod counters;
mod deny_list;
mod egress;
mod error;
mod evict;
mod fill;
mod flows;
mod globals;
mod handover;
mod in_force;
mod interface;
mod link;
mod link_info;
mod live;
mod maps;
mod mode;
mod networks;
mod object;
mod own_sources;
mod permission;
pub mod pins;
mod ports;
mod remove;
mod replay;
mod rows;
mod state;
mod steps;
mod sys;
mod talkers;
mod tap;

use std::{io, path::PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError},
    programs::{ProgramError, SchedClassifier, Xdp},
};
use aya_log::{EbpfLogger, Level};
use guard_common::{
    cell::HashKey,
    gcra::UNITS_PER_NANOSECOND,
    layout::{self, CaptureFilter, feature},
    literal::Config,
    siphash::{self, SipKey},
};
use guard_host::causes::io_error;
use guard_policy::Tables;
use nix::sys::signal::{SigSet, SigmaskHow};
use tracing_log::{LogTracer, log};

pub use self::{
    attach::{Attachment, TakenOff},
    closed_ports::ClosedPortRow,
    closer::Closer,
    counters::CounterRow,
    error::AttachError,
    evict::linked_guards,
    flows::FlowCounts,
    in_force::{Dataplane, PolicyFacts, Prepared},
    interface::{InterfaceState, InterfaceTables},
    link::pinned_program,
    live::needs_new_generation,
    mode::{Force, Programs, XdpMode},
    permission::require_capabilities,
    ports::PortUpdates,
    remove::{Passing, Removal, detach_all, pass_everything_everywhere},
    replay::{Direction, Judged, Replay},
    state::{HostState, StateError, UNKNOWN_INTERFACE, keeps_flows_of, text_of},
    talkers::TalkerRow,
    tap::{CapturedPacket, PacketFilter, ROUNDS, Round, Tap, source_of},
};
use self::{deny_list::DenyList, object::Object, ports::SharedPortMaps};

/// One loaded copy of the kernel programs, with constants for its switches and filled tables.
pub struct Generation {
    ebpf: Ebpf,
    tables: Tables,
    ports: SharedPortMaps,
    deny_list: DenyList,
    /// The name of its XDP program.
    ingress: &'static str,
    /// The log of its programs, if the log level is debug.
    log: Option<EbpfLogger<LogTracer>>,
}

/// Why a generation cannot be loaded.
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
    #[error("its time is more than two years after the first packet's, or two weeks before it")]
    ClockJump,
    #[error("a fact of this host cannot be read: {0}")]
    Host(io::Error),
    #[error("the program was loaded without the features {0:#x}, which are needed now")]
    Lacks(u16),
    #[error("the kernel object has no {0}")]
    Incomplete(&'static str),
}

/// The purpose for which a generation is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To be attached.
    Service,
    /// To be attached for the time of a trial.
    Trial,
    /// To be run over recorded packets, with their time stamps as the clock.
    Replay,
}

impl Purpose {
    const fn programs(self) -> (&'static str, &'static str) {
        match self {
            Self::Service => (layout::PROGRAM, layout::EGRESS_PROGRAM),
            Self::Trial => (layout::TRIAL_PROGRAM, layout::EGRESS_PROGRAM),
            Self::Replay => (layout::REPLAY_PROGRAM, layout::REPLAY_EGRESS_PROGRAM),
        }
    }
}

impl Generation {
    /// Loads a new copy of the programs and fills its tables. Nothing is attached yet, so no packet is judged by half a
    /// policy.
    ///
    /// # Errors
    /// The kernel refuses the program or a table.
    pub fn load(mut tables: Tables, tick_ns: u64) -> Result<Self, LoadError> {
        tables.features |= feature::ALONE;
        Self::load_for(Purpose::Service, tables, tick_ns, &Shared::new()?)
    }

    fn load_for(
        purpose: Purpose,
        tables: Tables,
        tick_ns: u64,
        shared: &Shared,
    ) -> Result<Self, LoadError> {
        Self::try_load(purpose, tables, tick_ns, shared).map_err(|error| {
            if is_not_permitted(&error) {
                LoadError::NotPermitted
            } else {
                error
            }
        })
    }

    fn try_load(
        purpose: Purpose,
        tables: Tables,
        tick_ns: u64,
        shared: &Shared,
    ) -> Result<Self, LoadError> {
        let Shared {
            hash_key,
            pins,
            capture,
            trial_until,
            is_attached,
        } = shared;
        let (deny_list, lines) = DenyList::of(&tables.denied);
        let is_debugged = tracing::enabled!(tracing::Level::DEBUG);
        let config = Config {
            jiffy: tick_ns * UNITS_PER_NANOSECOND,
            hash_key: *hash_key,
            challenge_key: challenge_key(*hash_key),
            trial_until: *trial_until,
            deny_line_bits: deny_list.line_bits(),
            mode: tables.mode,
            scope: tables.scope,
            features: tables.features,
            is_debugged,
        };
        let mut loader = EbpfLoader::new();
        // The program needs no types of the kernel (BTF), which take megabytes to read and parse.
        loader.btf(None);
        loader.override_global(layout::CAPTURE_GLOBAL, capture, true);
        for (map, entries) in fill::sizes(&tables, &deny_list, *is_attached) {
            loader.map_max_entries(map, entries);
        }
        for (map, path) in pins {
            loader.map_pin_path(map, path);
        }
        let level = if is_debugged { Level::Debug as u8 } else { 0 };
        loader.override_global(aya_log::LEVEL, &level, true);
        let mut ebpf = loader.load(Object::with(&config)?.bytes())?;
        let ports = SharedPortMaps::of(&ebpf)?;
        deny_list.fill(&mut ebpf, &lines)?;
        // Frees megabytes.
        drop(lines);
        fill::fill(&mut ebpf, &ports, &tables, &deny_list)?;
        let log = if is_debugged {
            // The tracer drops records above the maximum level of the crate `log`.
            log::set_max_level(log::LevelFilter::Debug);
            // An error is ignored: debugging must not stop the guard.
            EbpfLogger::init_with_logger(&mut ebpf, LogTracer::new()).ok()
        } else {
            None
        };
        let (ingress, egress) = purpose.programs();
        let mut generation = Self {
            ebpf,
            tables,
            ports,
            deny_list,
            ingress,
            log,
        };
        let program = generation.program_mut()?;
        retry_interrupted(|| program.load())?;
        if generation.tables.uses(feature::FLOWS | feature::FLOODS) {
            let program = generation.classifier_mut(egress)?;
            retry_interrupted(|| program.load())?;
        }
        Ok(generation)
    }

    /// Writes the log of the programs to this process's log.
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// The kernel's id of the program.
    pub fn program_id(&self) -> Result<u32, LoadError> {
        Ok(self.program()?.info()?.id())
    }

    /// The tables that this generation was filled with.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The XDP program, for callers that run it over a packet.
    pub fn program(&self) -> Result<&Xdp, LoadError> {
        let program = self.ebpf.program(self.ingress);
        let program = program.ok_or(LoadError::Incomplete(self.ingress))?;
        Ok(program.try_into()?)
    }

    fn program_mut(&mut self) -> Result<&mut Xdp, LoadError> {
        let program = self.ebpf.program_mut(self.ingress);
        let program = program.ok_or(LoadError::Incomplete(self.ingress))?;
        Ok(program.try_into()?)
    }

    fn classifier(&self, name: &'static str) -> Result<&SchedClassifier, LoadError> {
        let program = self.ebpf.program(name).ok_or(LoadError::Incomplete(name))?;
        Ok(program.try_into()?)
    }

    fn classifier_mut(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        let program = self.ebpf.program_mut(name);
        let program = program.ok_or(LoadError::Incomplete(name))?;
        Ok(program.try_into()?)
    }

    fn map(&self, name: &'static str) -> Result<&Map, LoadError> {
        self.ebpf.map(name).ok_or(LoadError::Incomplete(name))
    }

    fn map_mut(&mut self, name: &'static str) -> Result<&mut Map, LoadError> {
        self.ebpf.map_mut(name).ok_or(LoadError::Incomplete(name))
    }
}

/// The maps and constants that a generation shares with others.
struct Shared {
    hash_key: HashKey,
    /// The maps that exist already, and the paths of their pins.
    pins: Vec<(&'static str, PathBuf)>,
    /// The packets that a capture matches, if [`layout::CAPTURE`] is among these maps.
    capture: CaptureFilter,
    /// See [`Config::trial_until`].
    trial_until: u64,
    /// The generation counts in the tables of interfaces, not in its own.
    is_attached: bool,
}

impl Shared {
    /// Shares nothing, and draws a new key.
    fn new() -> Result<Self, LoadError> {
        Ok(Self::with_key(random_hash_key()?))
    }

    fn with_key(hash_key: HashKey) -> Self {
        Self {
            hash_key,
            pins: Vec::new(),
            capture: CaptureFilter::NONE,
            trial_until: 0,
            is_attached: false,
        }
    }
}

/// How many times an interrupted load is repeated at most. libbpf gives up after 5, which a busy machine has exceeded.
const LOAD_ATTEMPTS: u32 = 50;

/// The verifier returns EAGAIN while a signal is pending (do_check in kernel/bpf/verifier.c). The thread therefore
/// blocks signals, which other threads of the process take. What the kernel wakes a thread for besides, such as a
/// freezer, cannot be blocked: the load is repeated.
fn retry_interrupted(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let mut attempt = || {
        for _ in 1..LOAD_ATTEMPTS {
            match load() {
                Err(ProgramError::LoadError { io_error, .. })
                    if io_error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
        load()
    };
    let result = attempt();
    if let Ok(before) = before {
        // Setting a mask that was read fails for no reason that a caller could act on.
        let _result = before.thread_set_mask();
    }
    result
}

/// The key of challenges, which lasts as long as the state: an answer to a challenge counts also after a reload. No
/// output of the hash of sources is ever seen, so their key is a secret to derive another from.
fn challenge_key(HashKey(key): HashKey) -> SipKey {
    SipKey([1, 2].map(|nth| siphash::hash(SipKey(key), [nth])))
}

fn random_hash_key() -> Result<HashKey, LoadError> {
    let word = || getrandom::u64().map_err(LoadError::NoRandomness);
    Ok(HashKey([word()?, word()?]))
}

/// Whether EPERM or EACCES is among the causes of this error. A rejection by the verifier is EACCES too, and has a log.
fn is_not_permitted(error: &LoadError) -> bool {
    if let LoadError::Program(ProgramError::LoadError { verifier_log, .. }) = error
        && !verifier_log.to_string().is_empty()
    {
        return false;
    }
    io_error(error).is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}
