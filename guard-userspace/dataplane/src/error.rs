//! The reasons why an interface cannot be guarded.

use aya::pin::PinError as AyaPinError;
use guard_common::interfaces::MAX_ROWS;

use super::{LoadError, pins::PinError, state::StateError};

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("interface {0} does not exist")]
    NoInterface(String),
    #[error(
        "interface {interface} already has an XDP program, {program}, which another process holds: \
         `bpftool link` shows it; --force takes it off"
    )]
    Held { interface: String, program: String },
    #[error(
        "interface {interface} already has an XDP program, {program}: `ip link set dev {interface} \
         xdp off` removes it, and so does --force"
    )]
    Occupied { interface: String, program: String },
    #[error(
        "{above} stands on interface {interface} and has an XDP program, {program}: the kernel takes \
         none below it (`ip link set dev {above} xdp off` removes it)"
    )]
    OccupiedAbove {
        interface: String,
        /// A macvlan, a bridge or another device.
        above: String,
        program: String,
    },
    #[error(
        "interface {0} has no XDP program, and the kernel takes none because of another: one on a \
         device that stands on {0} and cannot be seen from here, such as a macvlan in a container"
    )]
    OccupiedElsewhere(String),
    #[error(
        "interface {interface} takes the program neither in its driver ({native}) nor in the generic path ({generic})"
    )]
    Refused {
        interface: String,
        native: String,
        generic: String,
    },
    #[error(
        "interface {interface} takes no program on its way out, which is needed to know answers to its own UDP flows: {reason}"
    )]
    NoEgress { interface: String, reason: String },
    #[error("the link of {interface} cannot be used: {reason}")]
    Link { interface: String, reason: String },
    #[error(
        "there is no room for all services: those of this policy, of the policy in force and of the one that \
         the trial goes back to are counted apart; end the trial first"
    )]
    NoRoom,
    #[error("interface {0} is one too many: there are counters for {most} interfaces", most = MAX_ROWS - 1)]
    NoRow(String),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<PinError> for AttachError {
    fn from(error: PinError) -> Self {
        Self::State(error.into())
    }
}

impl From<AyaPinError> for AttachError {
    fn from(error: AyaPinError) -> Self {
        Self::State(error.into())
    }
}
