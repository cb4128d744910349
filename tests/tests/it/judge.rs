//! Runs the real kernel program over one packet at a time, with `BPF_PROG_TEST_RUN`.

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

/// The ports that a kernel picks from by default.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// XDP_DROP and XDP_PASS (linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// A generation of its own, attached nowhere.
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

    /// What the program returns for a frame.
    pub fn verdict(&self, frame: &[u8]) -> Verdict {
        test_run(&self.generation, frame)
    }

    /// Runs the program over the same frame many times, as fast as it goes.
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

    /// How many instructions the verifier looked at.
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

    /// Judges one frame and asserts the verdict and that exactly this counter moved, by one packet
    /// and the frame's length.
    #[track_caller]
    pub fn assert(&self, what: &str, frame: &[u8], expected: &Expected) {
        let before = self.counters();
        let verdict = self.verdict(frame);
        let mut after = self.counters();
        for (key, (packets, bytes)) in before {
            let row = after.get_mut(&key).expect("a counter went back");
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

/// What the program of a generation returns for a frame.
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
        XDP_DROP => Verdict::Drop,
        XDP_PASS => Verdict::Pass,
        other => panic!("the program returned {other}"),
    }
}

/// What a packet is expected to be counted as.
#[derive(Clone, Copy)]
pub struct Expected {
    pub service: Option<&'static str>,
    pub outcome: Outcome,
}

/// With the verdict that the reason asks for.
pub fn because(service: Option<&'static str>, reason: Reason) -> Expected {
    Expected {
        service,
        outcome: Outcome {
            reason,
            would_drop: false,
        },
    }
}

/// Passed although the reason asks for a drop.
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
