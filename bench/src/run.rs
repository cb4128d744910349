//! Runs a program on one packet repeatedly, and returns the cost of a packet.

use std::thread;

use anyhow::{Context as _, Result};
use aya::{
    TestRun as _,
    programs::{TestRunOptions, Xdp},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// Return values of XDP programs (linux/bpf.h).
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;

/// The result of many packets, one after the other.
pub struct Run {
    /// This thread's CPU time for each packet in nanoseconds, with the kernel's loop around the program.
    pub ns: f64,
    /// The program's last return value.
    pub verdict: u32,
}

/// Measures with this thread's CPU time: it does not advance while another process runs, and has the cost of the system
/// call only once. The kernel's own result is in whole nanoseconds, which is too coarse here.
pub fn run(program: &Xdp, frame: &[u8], repeat: u32) -> Result<Run> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat,
        ..TestRunOptions::new()
    };
    let start = cpu_ns()?;
    let result = program
        .test_run(options)
        .context("BPF_PROG_TEST_RUN of the program failed")?;
    let spent = cpu_ns()? - start;
    Ok(Run {
        ns: spent as f64 / f64::from(repeat),
        verdict: result.return_value,
    })
}

fn cpu_ns() -> Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// Runs a function on a new thread that is pinned to one CPU.
pub fn on<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            pin(cpu)?;
            work()
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
        .with_context(|| format!("no thread can be pinned to CPU {cpu}"))
}
