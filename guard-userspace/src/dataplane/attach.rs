//! Puts a generation on an interface: in the driver if it can, in the generic path if it must.

use std::io;

use aya::{
    programs::{
        ProgramError,
        links::{FdLink, LinkError},
        tc::{self, SchedClassifierLink, TcAttachType},
        xdp::XdpMode as AyaMode,
    },
    util::KernelVersion,
};
use guard_common::layout::{self, feature};

use super::{Generation, LoadError};
use crate::{
    causes::{innermost, io_error},
    host::UdpFlow,
};

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel allocates anything for the packet.
    Native,
    /// In the kernel's generic path: every packet costs an allocation first, and skips GRO.
    Generic,
}

impl XdpMode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("interface {0} does not exist")]
    NoInterface(String),
    #[error(
        "interface {0} already has an XDP program, which another process holds: `bpftool link` shows \
         it, and it goes when that process ends"
    )]
    Held(String),
    #[error(
        "interface {0} already has an XDP program: `bpftool net` shows it and `ip link set dev {0} \
         xdp off` removes it"
    )]
    Occupied(String),
    #[error(
        "interface {interface} takes the program neither in its driver ({native}) nor in the generic path ({generic})"
    )]
    Refused {
        interface: String,
        native: String,
        generic: String,
    },
    #[error(
        "interface {interface} takes no program on its way out, which scope `host` needs to know answers by: {reason}"
    )]
    NoEgress { interface: String, reason: String },
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A generation at work on an interface. Dropping it detaches the program.
pub struct Attachment {
    generation: Generation,
    /// Held for its drop: the kernel detaches the program when the last reference to the link goes.
    _link: FdLink,
    /// The tc program on the way out, if flows are recorded. Held for its drop.
    _egress: Option<SchedClassifierLink>,
    mode: XdpMode,
    program_id: u32,
}

impl Attachment {
    /// Attaches natively, or else generically.
    ///
    /// The second value says why the driver did not take the program, if it did not: the caller
    /// must tell, since the generic path is slow.
    ///
    /// Flows are recorded before anything is judged, and those that are open already are known.
    pub fn new(
        mut generation: Generation,
        interface: &str,
        open_flows: impl FnOnce() -> Vec<UdpFlow>,
    ) -> Result<(Self, Option<String>), AttachError> {
        let egress = attach_egress(&mut generation, interface)?;
        generation.seed_flows(&open_flows())?;
        let (link, mode, refusal) = match attach(&mut generation, interface, AyaMode::Driver) {
            Ok(link) => (link, XdpMode::Native, None),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Refused(native)) => {
                match attach(&mut generation, interface, AyaMode::Skb) {
                    Ok(link) => (link, XdpMode::Generic, Some(native)),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Refused(generic)) => {
                        return Err(AttachError::Refused {
                            interface: interface.to_owned(),
                            native,
                            generic,
                        });
                    }
                }
            }
        };
        let info = generation.program()?.info().map_err(LoadError::from)?;
        let attachment = Self {
            program_id: info.id(),
            generation,
            _link: link,
            _egress: egress,
            mode,
        };
        Ok((attachment, refusal))
    }

    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// The kernel's number for the program.
    pub fn program_id(&self) -> u32 {
        self.program_id
    }
}

/// Records UDP flows on the way out: with tcx where the kernel has it (Linux 6.6), else below a clsact
/// qdisc.
fn attach_egress(
    generation: &mut Generation,
    interface: &str,
) -> Result<Option<SchedClassifierLink>, AttachError> {
    if !generation.tables().uses(feature::FLOWS) {
        return Ok(None);
    }
    let refused = |error: &(dyn std::error::Error + 'static)| AttachError::NoEgress {
        interface: interface.to_owned(),
        reason: innermost(error),
    };
    if !has_tcx() {
        // It may be there already, for somebody's programs; if there is none, attaching says so.
        let _result = tc::qdisc_add_clsact(interface);
    }
    let program = generation.classifier_mut(layout::EGRESS_PROGRAM)?;
    let link = program
        .attach(interface, TcAttachType::Egress)
        .and_then(|id| program.take_link(id))
        .map_err(|error| refused(&error))?;
    Ok(Some(link))
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|current| current >= KernelVersion::new(6, 6, 0))
}

enum Failure {
    /// Another mode would not help.
    Final(AttachError),
    /// The reason, in the kernel's words.
    Refused(String),
}

fn attach(generation: &mut Generation, interface: &str, mode: AyaMode) -> Result<FdLink, Failure> {
    let program = generation
        .xdp_mut(layout::PROGRAM)
        .map_err(|error| Failure::Final(error.into()))?;
    let classify = |error: ProgramError| match error {
        ProgramError::UnknownInterface { name } => Failure::Final(AttachError::NoInterface(name)),
        error => match io_error(&error).and_then(io::Error::raw_os_error) {
            // EBUSY: a link holds the interface. EEXIST: a program without a link does, or one in
            // the other mode (dev_xdp_attach in net/core/dev.c).
            Some(16) => Failure::Final(AttachError::Held(interface.to_owned())),
            Some(17) => Failure::Final(AttachError::Occupied(interface.to_owned())),
            Some(1 | 13) => Failure::Final(AttachError::Load(LoadError::NotPermitted)),
            _ => Failure::Refused(innermost(&error)),
        },
    };
    let id = program.attach(interface, mode).map_err(classify)?;
    let link = program.take_link(id).map_err(classify)?;
    // aya falls back to netlink when the kernel refuses a link, and such an attachment would neither
    // end with this process nor be swapped atomically. Dropping it detaches it.
    FdLink::try_from(link).map_err(|error: LinkError| Failure::Refused(innermost(&error)))
}
