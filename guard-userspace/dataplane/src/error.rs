//! The reasons why an interface cannot be guarded.

use aya::pin::PinError as AyaPinError;
use guard_common::interfaces::MAX_ROWS;

use super::{LoadError, pins::PinError, state::StateError};

/// Why a program cannot be attached, swapped or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("interface {0} does not exist")]
    NoInterface(String),
    #[error(
        "interface {interface} already has an XDP program, {program}, which another process holds: \
         `bpftool link` shows it; --force detaches it"
    )]
    Held { interface: String, program: String },
    #[error(
        "interface {interface} already has an XDP program, {program}: `ip link set dev {interface} \
         xdp off` removes it, and so does --force"
    )]
    Occupied { interface: String, program: String },
    #[error(
        "{above} stands on interface {interface} and has an XDP program, {program}: the kernel attaches \
         none below it (`ip link set dev {above} xdp off` removes it)"
    )]
    OccupiedAbove {
        interface: String,
        /// A macvlan, a bridge or another upper device.
        above: String,
        program: String,
    },
    #[error(
        "interface {0} has no XDP program, and the kernel attaches none: a device that stands on {0} and \
         cannot be seen from here, such as a macvlan in a container, has one"
    )]
    OccupiedElsewhere(String),
    #[error(
        "the program can be attached to interface {interface} neither in its driver ({native}) nor in the \
         generic path ({generic})"
    )]
    Refused {
        interface: String,
        native: String,
        generic: String,
    },
    #[error(
        "the egress program, which recognizes answers to this host's UDP flows, cannot be attached to \
         interface {interface}: {reason}"
    )]
    NoEgress { interface: String, reason: String },
    #[error("the link of {interface} cannot be used: {reason}")]
    Link { interface: String, reason: String },
    #[error(
        "there are too few service ids: this policy, the policy in force and the one that the trial goes back \
         to need one for each service; end the trial first"
    )]
    NoRoom,
    #[error(
        "interface {0} cannot be guarded: there are counters for {most} interfaces, and all are in use",
        most = MAX_ROWS - 1
    )]
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
