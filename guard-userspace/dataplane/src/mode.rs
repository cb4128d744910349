//! The XDP modes, and the programs that are already attached around an interface.

use guard_host::XdpState;

/// The XDP mode in which the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel allocates anything for the packet.
    Native,
    /// In the kernel's generic path: every packet costs an allocation first, and skips GRO.
    Generic,
}

impl XdpMode {
    /// The name in JSON and text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The XDP programs that the kernel tests when one is attached to an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    /// On the interface itself.
    pub on: Option<XdpState>,
    /// On a device directly above it, by name.
    pub above: Option<(String, XdpState)>,
}

/// Whether a program of other software on the interface is detached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// The program stays, and attaching fails with an error that names it.
    #[default]
    No,
    /// The program is detached.
    Yes,
}
