//! Runs a program over one packet, again and again, and says what a packet cost.

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

/// What a program returns (linux/bpf.h).
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;

/// Many packets, one after the other.
pub struct Run {
    /// Of this thread's CPU time, for each packet, the loop around the program included.
    pub ns: f64,
    /// What the program returned last.
    pub verdict: u32,
}

/// The kernel says what a packet took in whole nanoseconds, which is too coarse here. This thread's time
/// on its CPU is exact, stands still while another process runs, and has the cost of the system call in
/// it once, not for each packet.
pub fn run(program: &Xdp, frame: &[u8], repeat: u32) -> Result<Run> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat,
        ..TestRunOptions::new()
    };
    let start = cpu_ns()?;
    let result = program
        .test_run(options)
        .context("BPF_PROG_TEST_RUN does not run the program")?;
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

/// Does something on a thread that is kept on one CPU.
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
        .with_context(|| format!("no thread can be kept on CPU {cpu}"))
}
