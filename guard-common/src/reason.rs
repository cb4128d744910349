//! The reasons why packets pass or are dropped. Their names and numbers are a contract: none ever changes.

/// Declares the reasons from one list: number and name of each, under its verdict.
macro_rules! reasons {
    (
        pass { $($(#[$pass_doc:meta])* $pass:ident = $pass_number:literal $pass_name:literal,)* }
        drop { $($(#[$drop_doc:meta])* $drop:ident = $drop_number:literal $drop_name:literal,)* }
    ) => {
        /// The one reason that every packet has.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$pass_doc])* $pass = $pass_number,)*
            $($(#[$drop_doc])* $drop = $drop_number,)*
        }

        impl Reason {
            /// Every reason, those to pass first.
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

        // The number tells the verdict, and is the slot of a counter.
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
        /// A fragment other than the first: it has no port, and passes with the first.
        Fragment = 5 "fragment",
        /// Nothing to judge: not IP, outside the scope, or the mode is off.
        NotGuarded = 6 "not_guarded",
    }
    drop {
        /// No service lists the port.
        ClosedPort = 16 "closed_port",
        /// A service lists the port, but not for this source.
        SourceNotAllowed = 17 "source_not_allowed",
        /// Sent from outside straight to an address inside a container network.
        ContainerAddress = 18 "container_address",
        /// The policy denies the source.
        DeniedSource = 19 "denied_source",
        /// Over the packets of its source.
        PacketLimit = 20 "packet_limit",
        /// Over the bytes of its source.
        ByteLimit = 21 "byte_limit",
        /// Over the connections of its source.
        ConnectionLimit = 22 "connection_limit",
        /// Over a budget that all sources share, or of what keeps the host on its network.
        TotalLimit = 23 "total_limit",
        /// IP that cannot be read up to its transport header.
        Malformed = 24 "malformed",
        /// An address that is on no wire: loopback, IPv4-mapped, a multicast source, this host's own as a source.
        Martian = 25 "martian",
        /// A fragment without its first one, over the budget of those that overtake it.
        FragmentLimit = 26 "fragment_limit",
    }
}

impl Reason {
    /// The first number of a reason to drop; what lies below is a reason to pass.
    const FIRST_DROP: u8 = 16;

    /// What the policy asks for, before the mode is applied.
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
    /// Everything passes and nothing is judged.
    Off = 0,
    /// Everything passes; what would have been dropped is counted as such.
    #[default]
    Observe = 1,
    Enforce = 2,
}

impl Mode {
    /// The mode with this number; what is none is [`Mode::Off`], which blocks nobody.
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
    /// What would be dropped passes. The bit is that of a drop's reason, one place higher: 16 becomes 48 with both.
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

    /// What is to be dropped passes.
    #[inline(always)]
    pub const fn is_observed(self) -> bool {
        self.0 & Self::OBSERVED != 0
    }
}

/// What a packet is counted as: its reason, and whether a drop was only observed ("would drop").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    pub reason: Reason,
    /// The reason asks for a drop, but the mode let the packet through.
    pub would_drop: bool,
}

impl Outcome {
    /// How many counters a service has. Reasons fill the lower half; the upper half counts the
    /// drops that were only observed.
    pub const SLOTS: u32 = 64;
    const WOULD_DROP: u32 = Self::SLOTS / 2;

    /// Every outcome that a counter can stand for.
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

    /// Whether the packet that has this slot is dropped: [`Self::verdict`] without taking it apart.
    #[inline(always)]
    pub const fn is_dropped(slot: u32) -> bool {
        let first = Reason::FIRST_DROP as u32;
        slot & (Self::WOULD_DROP | first) == first
    }

    /// Whether it is dropped, or would be if the mode were another.
    #[inline(always)]
    pub const fn is_to_drop(slot: u32) -> bool {
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

    /// The slot of what a reason comes to in a mode: that of [`Self::new`], without a question.
    #[inline(always)]
    pub const fn slot_of(reason: Reason, ModeBits(applied): ModeBits) -> u32 {
        let reason = reason as u32;
        reason | reason << 1 & applied as u32
    }

    /// The counter's place among those of its service, below [`Outcome::SLOTS`].
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
    fn a_slot_tells_the_verdict() {
        for outcome in Outcome::all() {
            let is_dropped = outcome.verdict() == Verdict::Drop;
            assert_eq!(Outcome::is_dropped(outcome.slot()), is_dropped);
            let is_to_drop = outcome.reason.verdict() == Verdict::Drop;
            assert_eq!(Outcome::is_to_drop(outcome.slot()), is_to_drop);
            assert_eq!(Outcome::reason_of(outcome.slot()), outcome.reason as u8);
        }
    }

    #[test]
    fn a_mode_is_the_same_in_the_tables() {
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
