//! Runs the real kernel program on one packet at a time, with `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;

use aya::{
    TestRun as _,
    programs::{TestRunOptions, Xdp},
};
use guard::{
    dataplane::Generation,
    host,
    policy::{Containers, KernelTick, Policy, PublishedPort, Tables},
};
use guard_common::reason::{Outcome, Reason, Verdict};

/// The kernel's default local port range.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// XDP_DROP, XDP_PASS and XDP_TX (linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// A loaded generation that is not attached.
pub struct ProgramUnderTest {
    generation: Generation,
}

impl ProgramUnderTest {
    pub fn new(policy: &str, published: &[PublishedPort]) -> Self {
        let containers = Containers {
            published: published.to_vec(),
            networks: Vec::new(),
            labelled: Vec::new(),
        };
        Self::with_containers(policy, &containers)
    }

    pub fn with_containers(policy: &str, containers: &Containers) -> Self {
        let tick_ns = host::tick_ns().unwrap();
        let policy = Policy::parse(policy, "test.toml", KernelTick { tick_ns }).unwrap();
        let now = host::timebase().unwrap();
        let tables = Tables::compile(&policy, containers, &LOCAL_PORTS, now);
        Self {
            generation: Generation::load(tables, tick_ns).unwrap(),
        }
    }

    /// The program's verdict on a frame.
    pub fn verdict(&self, frame: &[u8]) -> Verdict {
        test_run(&self.generation, frame)
    }

    /// What the program does with a frame.
    pub fn action(&self, frame: &[u8]) -> ProgramAction {
        // A program may make a frame longer, but none of guard's does.
        let mut sent = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut sent),
            ..TestRunOptions::new()
        };
        let result = self.generation.program().unwrap().test_run(options);
        let result = result.unwrap();
        match result.return_value {
            XDP_DROP => ProgramAction::Drop,
            XDP_PASS => ProgramAction::Pass,
            XDP_TX => {
                sent.truncate(result.data_size_out as usize);
                ProgramAction::Send(sent)
            }
            other => panic!("the program returned {other}"),
        }
    }

    /// Runs the program on the same frame `repeat` times, as fast as possible.
    pub fn repeat(&self, frame: &[u8], repeat: u32) {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::new()
        };
        self.generation
            .program()
            .unwrap()
            .test_run(options)
            .unwrap();
    }

    /// The number of instructions that the verifier processed.
    pub fn verified_instructions(&self) -> u32 {
        let info = self.generation.program().unwrap().info().unwrap();
        info.verified_instruction_count().unwrap()
    }

    pub fn counters(&self) -> BTreeMap<String, (u64, u64)> {
        let rows = self.generation.counters().unwrap();
        rows.into_iter()
            .map(|row| {
                let key = key(row.service.as_deref(), row.outcome);
                (key, (row.packets, row.bytes))
            })
            .collect()
    }

    /// Runs the program on one frame. Asserts the verdict, and that only this counter grew, by one packet and the
    /// frame's length.
    #[track_caller]
    pub fn assert(&self, what: &str, frame: &[u8], expected: &Expected) {
        let before = self.counters();
        let verdict = self.verdict(frame);
        let mut after = self.counters();
        for (key, (packets, bytes)) in before {
            let row = after.get_mut(&key).expect("a counter decreased");
            row.0 -= packets;
            row.1 -= bytes;
        }
        after.retain(|_, row| *row != (0, 0));
        let key = key(expected.service, expected.outcome);
        let counted = BTreeMap::from([(key, (1, frame.len() as u64))]);
        assert_eq!(after, counted, "{what}");
        assert_eq!(verdict, expected.outcome.verdict(), "{what}");
    }
}

/// What the program does with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramAction {
    Drop,
    Pass,
    /// It sends this frame back.
    Send(Vec<u8>),
}

/// The verdict of a generation's program on a frame.
pub fn test_run(generation: &Generation, frame: &[u8]) -> Verdict {
    run_program(generation.program().unwrap(), frame)
}

pub fn run_program(program: &Xdp, frame: &[u8]) -> Verdict {
    let options = TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).unwrap();
    match result.return_value {
        // A packet that is answered does not pass.
        XDP_DROP | XDP_TX => Verdict::Drop,
        XDP_PASS => Verdict::Pass,
        other => panic!("the program returned {other}"),
    }
}

/// The expected verdict and counter of a packet.
#[derive(Clone, Copy)]
pub struct Expected {
    pub service: Option<&'static str>,
    pub outcome: Outcome,
}

/// A packet with the verdict of its reason.
pub fn because(service: Option<&'static str>, reason: Reason) -> Expected {
    Expected {
        service,
        outcome: Outcome {
            reason,
            would_drop: false,
        },
    }
}

/// A packet with a drop reason that passes because of mode observe.
pub fn observed(service: Option<&'static str>, reason: Reason) -> Expected {
    Expected {
        service,
        outcome: Outcome {
            reason,
            would_drop: true,
        },
    }
}

fn key(service: Option<&str>, outcome: Outcome) -> String {
    let would = if outcome.would_drop { "would " } else { "" };
    let service = service.unwrap_or("-");
    format!(
        "{service}: {would}{} {}",
        outcome.reason.verdict().name(),
        outcome.reason.name()
    )
}
