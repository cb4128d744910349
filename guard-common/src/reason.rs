//! The reasons why packets pass or are dropped. Their names and numbers are a contract: none ever changes.

/// Declares the reasons from one list: number and name of each, under its verdict.
macro_rules! reasons {
    (
        pass { $($(#[$pass_doc:meta])* $pass:ident = $pass_number:literal $pass_name:literal,)* }
        drop { $($(#[$drop_doc:meta])* $drop:ident = $drop_number:literal $drop_name:literal,)* }
    ) => {
        /// The reason why a packet passes or is dropped. Every packet has exactly one.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$pass_doc])* $pass = $pass_number,)*
            $($(#[$drop_doc])* $drop = $drop_number,)*
        }

        impl Reason {
            /// Every reason, the pass reasons first.
            pub const ALL: [Self; [$($pass_name,)* $($drop_name,)*].len()] =
                [$(Self::$pass,)* $(Self::$drop,)*];

            /// The name in JSON, metrics and text.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$pass => $pass_name,)*
                    $(Self::$drop => $drop_name,)*
                }
            }
        }

        // The number decides the verdict, and is the slot of a counter.
        $(const _: () = assert!($pass_number < Reason::FIRST_DROP);)*
        $(const _: () = assert!(
            $drop_number >= Reason::FIRST_DROP && ($drop_number as u32) < Outcome::WOULD_DROP
        );)*
    };
}

reasons! {
    pass {
        /// Reaches a listed service that admits the source, within its budgets.
        Allowed = 0 "allowed",
        /// A TCP segment that opens no connection, to a port that no service lists for its source.
        Established = 1 "established",
        /// Answers a UDP flow that this host opened.
        Reply = 2 "reply",
        /// Over a budget, but its source is exempt.
        Exempt = 3 "exempt",
        /// Keeps the host on its network: neighbour discovery, MLD, IGMP, DHCP replies.
        Control = 4 "control",
        /// A fragment other than the first. It has no port, and passes with its first fragment, or before it within a
        /// budget.
        Fragment = 5 "fragment",
        /// Not judged: not IP, outside the scope, or the mode is off.
        NotGuarded = 6 "not_guarded",
    }
    drop {
        /// No service lists the port.
        ClosedPort = 16 "closed_port",
        /// A service lists the port, but not for this source.
        SourceNotAllowed = 17 "source_not_allowed",
        /// Sent from outside straight to an address inside a container network.
        ContainerAddress = 18 "container_address",
        /// The policy or an operator denies the source.
        DeniedSource = 19 "denied_source",
        /// Over its source's budget of packets.
        PacketLimit = 20 "packet_limit",
        /// Over its source's budget of bytes.
        ByteLimit = 21 "byte_limit",
        /// Over its source's budget of connections.
        ConnectionLimit = 22 "connection_limit",
        /// Over a budget that all sources share, or over the budget of control packets.
        TotalLimit = 23 "total_limit",
        /// An IP packet that cannot be parsed up to its transport header.
        Malformed = 24 "malformed",
        /// An address that must not be on a wire: loopback, IPv4-mapped, a multicast source, an address of this host as
        /// the source.
        Martian = 25 "martian",
        /// A fragment that arrives before its first fragment, over the budget of such fragments.
        FragmentLimit = 26 "fragment_limit",
        /// In a flood, a request for a connection from a source that is not verified. It was answered with a challenge.
        Challenged = 27 "challenged",
        /// In a flood, a request from a source that is not verified, and that could not be challenged.
        Unverified = 28 "unverified",
        /// The answer to a challenge: it verifies its source, and belongs to no connection.
        Handshake = 29 "handshake",
    }
}

impl Reason {
    /// The lowest number of a drop reason. Lower numbers are pass reasons.
    const FIRST_DROP: u8 = 16;

    /// The policy's verdict, before the mode is applied.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        if (self as u8) < Self::FIRST_DROP {
            Verdict::Pass
        } else {
            Verdict::Drop
        }
    }
}

/// Whether a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Pass,
    Drop,
}

impl Verdict {
    /// The name in policies and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// How much of the policy is applied. The order is from mild to strict.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Every packet passes, and none is judged.
    Off = 0,
    /// Every packet passes. A packet that `enforce` would drop is counted as such.
    #[default]
    Observe = 1,
    Enforce = 2,
}

impl Mode {
    /// The mode with this number. Any other number gives [`Mode::Off`], which drops no packet.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            2 => Self::Enforce,
            1 => Self::Observe,
            _ => Self::Off,
        }
    }

    /// The name in policies and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// A mode in the kernel program's tables: bits that are combined with a reason into the slot of an [`Outcome`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModeBits(u8);

const _: () = assert!((Reason::FIRST_DROP as u32) << 1 == Outcome::WOULD_DROP);

impl ModeBits {
    /// Packets are judged. Without this bit the mode is [`Mode::Off`], and no drop's slot is computed.
    const JUDGED: u8 = 1 << 0;
    /// Packets with a drop reason pass. This bit is [`Reason::FIRST_DROP`], shifted left by one: slot 16 becomes 48.
    const OBSERVED: u8 = Outcome::WOULD_DROP as u8;

    /// The bits of a mode.
    #[inline(always)]
    pub const fn of(mode: Mode) -> Self {
        Self(match mode {
            Mode::Off => Self::OBSERVED,
            Mode::Observe => Self::JUDGED | Self::OBSERVED,
            Mode::Enforce => Self::JUDGED,
        })
    }

    /// The mode of these bits.
    #[inline(always)]
    pub const fn mode(self) -> Mode {
        if self.is_off() {
            Mode::Off
        } else if self.is_observed() {
            Mode::Observe
        } else {
            Mode::Enforce
        }
    }

    /// Whether packets pass without a decision.
    #[inline(always)]
    pub const fn is_off(self) -> bool {
        self.0 & Self::JUDGED == 0
    }

    /// Whether packets with a drop reason pass.
    #[inline(always)]
    pub const fn is_observed(self) -> bool {
        self.0 & Self::OBSERVED != 0
    }
}

/// The outcome that a packet is counted under: its reason, and whether a drop was only observed ("would drop").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    pub reason: Reason,
    /// The packet has a drop reason, but the mode let it pass.
    pub would_drop: bool,
}

impl Outcome {
    /// How many counters a service has. Reasons fill the lower half; the upper half counts the
    /// drops that were only observed.
    pub const SLOTS: u32 = 64;
    const WOULD_DROP: u32 = Self::SLOTS / 2;

    /// Every outcome that has a counter.
    pub fn all() -> impl Iterator<Item = Self> {
        Reason::ALL.into_iter().flat_map(|reason| {
            let observed = (reason.verdict() == Verdict::Drop).then_some(true);
            [Some(false), observed]
                .into_iter()
                .flatten()
                .map(move |would_drop| Self { reason, would_drop })
        })
    }

    /// The outcome of a reason in a mode.
    pub const fn new(reason: Reason, mode: Mode) -> Self {
        let would_drop =
            matches!(reason.verdict(), Verdict::Drop) && !matches!(mode, Mode::Enforce);
        Self { reason, would_drop }
    }

    /// Whether the packet passed.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        if self.would_drop {
            Verdict::Pass
        } else {
            self.reason.verdict()
        }
    }

    /// Whether a packet with this slot is dropped: [`Self::verdict`], computed from the slot itself.
    #[inline(always)]
    pub const fn is_dropped(slot: u32) -> bool {
        let first = Reason::FIRST_DROP as u32;
        slot & (Self::WOULD_DROP | first) == first
    }

    /// Whether a packet with this slot is dropped, or would be dropped in mode `enforce`.
    #[inline(always)]
    pub const fn has_drop_reason(slot: u32) -> bool {
        slot & Reason::FIRST_DROP as u32 != 0
    }

    /// The number of the reason of this slot.
    #[inline(always)]
    pub const fn reason_of(slot: u32) -> u8 {
        (slot % Self::WOULD_DROP) as u8
    }

    /// The outcome with this slot.
    pub fn from_slot(slot: u32) -> Option<Self> {
        Self::all().find(|outcome| outcome.slot() == slot)
    }

    /// The slot of a reason in a mode: the same as that of [`Self::new`], but without a branch.
    #[inline(always)]
    pub const fn slot_of(reason: Reason, ModeBits(applied): ModeBits) -> u32 {
        let reason = reason as u32;
        reason | reason << 1 & applied as u32
    }

    /// The index of the counter among those of its service, below [`Outcome::SLOTS`].
    pub const fn slot(self) -> u32 {
        let reason = self.reason as u32;
        if self.would_drop {
            reason + Self::WOULD_DROP
        } else {
            reason
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        let slots: BTreeSet<u32> = Outcome::all().map(Outcome::slot).collect();
        assert_eq!(slots.len(), Outcome::all().count());
        assert!(slots.iter().all(|slot| *slot < Outcome::SLOTS));
    }

    #[test]
    fn a_slot_determines_the_verdict() {
        for outcome in Outcome::all() {
            let is_dropped = outcome.verdict() == Verdict::Drop;
            assert_eq!(Outcome::is_dropped(outcome.slot()), is_dropped);
            let has_drop_reason = outcome.reason.verdict() == Verdict::Drop;
            assert_eq!(Outcome::has_drop_reason(outcome.slot()), has_drop_reason);
            assert_eq!(Outcome::reason_of(outcome.slot()), outcome.reason as u8);
        }
    }

    #[test]
    fn the_bits_of_a_mode_convert_back_to_it() {
        for mode in [Mode::Off, Mode::Observe, Mode::Enforce] {
            assert_eq!(ModeBits::of(mode).mode(), mode);
        }
        assert_eq!(ModeBits::default().mode(), Mode::Off);
    }

    #[test]
    fn the_slot_of_a_reason_in_a_mode_is_that_of_its_outcome() {
        for reason in Reason::ALL {
            for mode in [Mode::Off, Mode::Observe, Mode::Enforce] {
                let slot = Outcome::slot_of(reason, ModeBits::of(mode));
                assert_eq!(slot, Outcome::new(reason, mode).slot());
            }
        }
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Reason::ALL.into_iter().map(Reason::name).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn only_enforce_drops() {
        for mode in [Mode::Off, Mode::Observe] {
            let outcome = Outcome::new(Reason::ClosedPort, mode);
            assert_eq!(outcome.verdict(), Verdict::Pass);
            assert!(outcome.would_drop);
        }
        let outcome = Outcome::new(Reason::ClosedPort, Mode::Enforce);
        assert_eq!(outcome.verdict(), Verdict::Drop);
        assert!(!outcome.would_drop);
        for mode in [Mode::Off, Mode::Observe, Mode::Enforce] {
            let outcome = Outcome::new(Reason::Allowed, mode);
            assert_eq!(outcome.verdict(), Verdict::Pass);
            assert!(!outcome.would_drop);
        }
    }
}
