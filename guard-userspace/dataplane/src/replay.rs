//! Runs the real kernel programs over recorded packets: not attached, and with the packets' time stamps as the clock.

use std::{borrow::Cow, io};

use aya::{
    TestRun as _,
    maps::Array,
    programs::{ProgramError, TestRunOptions},
};
use guard_common::{
    cell::HashKey,
    gcra::UNITS_PER_NANOSECOND,
    layout::{self, Conclusion, ReplayTime, feature},
    reason::Outcome,
};
use guard_policy::Tables;

use super::{Generation, LoadError, Purpose, Shared};

/// The same key for every replay, so that results are repeatable.
const HASH_KEY: HashKey = HashKey([0x6775_6172_6420_7265, 0x706c_6179_206b_6579]);

/// The time of the first packet, in nanoseconds: late enough that time stamps that go back do not go below zero.
const START_NS: u64 = 1 << 50;

/// The kernel refuses to run a program over a frame that is shorter than an Ethernet header.
const SHORTEST_FRAME: usize = 14;

/// The longest capture, about two years: beyond that, the arithmetic of budgets would overflow.
const LATEST_NS: u64 = 1 << 56;

/// The longest frame: Ethernet's header, two VLAN tags, and the longest IP packet, which is IPv6 (its length field
/// excludes the header).
const LONGEST_FRAME: usize = 40 + 65_535 + 22;

/// A generation that is attached nowhere, with maps of its own.
pub struct Replay {
    generation: Generation,
}

/// The direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    /// From this host: the packet is not judged, but the flow that it opens is recorded.
    Out,
}

/// The verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub service: u16,
    pub outcome: Outcome,
}

impl Replay {
    /// CLOCK_BOOTTIME at the replay's first packet.
    pub const BOOT_NS: u64 = START_NS;

    /// Loads the replay program with these tables. `tick_ns`: the length of the kernel's tick.
    pub fn new(mut tables: Tables, tick_ns: u64) -> Result<Self, LoadError> {
        tables.features |= feature::ALONE;
        let generation = Generation::load_for(
            Purpose::Replay,
            tables,
            tick_ns,
            &Shared::with_key(HASH_KEY),
        )?;
        Ok(Self { generation })
    }

    /// The loaded program with its tables.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Sets the clock to a time after the first packet, in nanoseconds. The clock may go back.
    ///
    /// # Errors
    /// [`LoadError::ClockJump`] if the time is more than two years after the first packet or two weeks before it. The
    /// clock is unchanged.
    pub fn set_clock(&mut self, after_first_ns: i64) -> Result<(), LoadError> {
        let boot_ns = START_NS.checked_add_signed(after_first_ns);
        let boot_ns = boot_ns.filter(|boot_ns| *boot_ns <= LATEST_NS);
        let boot_ns = boot_ns.ok_or(LoadError::ClockJump)?;
        let clock = ReplayTime {
            now: boot_ns.saturating_mul(UNITS_PER_NANOSECOND),
            boot_ns,
        };
        let mut map = Array::<_, ReplayTime>::try_from(self.generation.map_mut(layout::CLOCK)?)?;
        Ok(map.set(0, clock, 0)?)
    }

    /// Judges a frame that came in at the time of the clock.
    pub fn judge(&self, frame: &[u8]) -> Result<Judged, LoadError> {
        let frame = normalised(frame);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ..TestRunOptions::new()
        };
        let program = self.generation.program()?;
        let conclusion = Conclusion::unpack(program.test_run(options)?.return_value);
        let outcome = Outcome::from_slot(conclusion.slot);
        Ok(Judged {
            service: conclusion.service as u16,
            outcome: outcome.ok_or(LoadError::Incomplete("outcome"))?,
        })
    }

    /// Records the flow of a frame that went out.
    ///
    /// The kernel runs a tc program only over frames that its stack would send. Other frames are left out, and so are
    /// frames longer than a page, which are not the first of their flow.
    pub fn sent(&self, frame: &[u8]) -> Result<(), LoadError> {
        if !self.generation.tables().uses(feature::FLOWS) {
            return Ok(());
        }
        let result = self
            .generation
            .run_egress(layout::REPLAY_EGRESS_PROGRAM, frame);
        match result {
            Err(LoadError::Program(ProgramError::SyscallError(error)))
                if error.io_error.kind() == io::ErrorKind::InvalidInput =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

impl Generation {
    /// Runs the tc program over a frame.
    pub(super) fn run_egress(&self, program: &'static str, frame: &[u8]) -> Result<(), LoadError> {
        let options = TestRunOptions {
            data_in: Some(frame),
            ..TestRunOptions::new()
        };
        self.classifier(program)?.test_run(options)?;
        Ok(())
    }
}

/// Pads a frame to the shortest length that the kernel accepts. A frame without a whole Ethernet header has no IP
/// packet either way.
fn normalised(frame: &[u8]) -> Cow<'_, [u8]> {
    if frame.len() < SHORTEST_FRAME {
        let mut longer = frame.to_vec();
        longer.resize(SHORTEST_FRAME, 0);
        return longer.into();
    }
    frame.get(..LONGEST_FRAME).unwrap_or(frame).into()
}
