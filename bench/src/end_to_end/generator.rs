//! Sends a flood over a veth, at a given rate or as fast as possible: the kernel runs a program on its own frames and
//! transmits the results (BPF_PROG_TEST_RUN with live frames, Linux 5.18).

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    programs::{TestRunAttrs, TestRunOptions, Xdp, xdp::XdpMode},
};
use lab::namespace::Namespace;
use nix::{
    net::if_::if_nametoindex,
    time::{ClockId, clock_gettime},
};

use super::{cpu, pin_thread};
use crate::beside::Numbers;

/// Compiled for the BPF virtual machine by this crate's build script.
static FLOOD: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flood"));

/// The frames that the kernel handles in one batch, and the most frames for one system call.
const BATCH: u32 = 64;
const MOST: u32 = 1 << 14;

/// The generator sleeps for this time, and then sends the packets that are due at once. Each system call allocates and
/// initialises its frames again, in the time of some hundred packets: without the sleeps, half of the rate would take
/// all of the CPU.
const SLEEP: Duration = Duration::from_millis(4);

/// How many seconds the generator may be late before it skips the packets that are due.
const BEHIND: f64 = 0.02;

/// The name of an interface that stays down.
const DOWN_INTERFACE: &str = "still";

/// A priority above all other processes on its CPU, as the interrupts of a network card have.
const NICE: i32 = -20;

/// The offsets of the checksums in an IPv4 frame.
const IP_CHECKSUM: usize = 24;
const TCP_CHECKSUM: usize = 50;

/// The program that makes a flood from one frame, whose source and source port are 0.
pub struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

/// The progress of a running flood, shared with other threads.
#[derive(Default)]
pub struct FloodProgress {
    pub sent: AtomicU64,
    /// The thread's CPU time in nanoseconds, with the kernel's work on receiving the flood.
    pub busy_ns: AtomicU64,
    /// The generator sends only while this is set.
    pub on: AtomicBool,
    pub stop: AtomicBool,
}

impl Generator {
    /// Adds the interface that the generator's program is attached to.
    pub fn add_interface(namespace: &Namespace) -> Result<()> {
        namespace
            .ip(&format!("link add {DOWN_INTERFACE} type veth"))
            .map(drop)
    }

    pub fn load(frame: Vec<u8>, sources: Numbers) -> Result<Self> {
        let Numbers { first, count } = sources;
        let sum = |offset: usize| -> Result<u32> {
            let bytes = frame.get(offset..offset + 2);
            let bytes: [u8; 2] = bytes
                .context("the frame is not a TCP segment")?
                .try_into()?;
            Ok(u32::from(!u16::from_be_bytes(bytes)))
        };
        let (ip, tcp) = (sum(IP_CHECKSUM)?, sum(TCP_CHECKSUM)?);
        let mut ebpf = EbpfLoader::new()
            .override_global("FIRST", &first, true)
            .override_global("COUNT", &count, true)
            .override_global("IP_SUM", &ip, true)
            .override_global("TCP_SUM", &tcp, true)
            .load(FLOOD)?;
        program(&mut ebpf, "flood")?.load()?;
        Ok(Self { ebpf, frame })
    }

    /// Sends the flood out of an interface while `progress.on` is set, until `progress.stop` is set. `rate` is in
    /// packets a second.
    pub fn run(
        &mut self,
        namespace: &Namespace,
        interface: &str,
        rate: u32,
        progress: &FloodProgress,
    ) -> Result<()> {
        let Self { ebpf, frame } = self;
        let program = program(ebpf, "flood")?;
        namespace.enter(|| {
            // An attached program is already in the kernel's dispatcher. Otherwise each run adds and removes it, and
            // waits until all CPUs have seen the change.
            let link = program.attach(DOWN_INTERFACE, XdpMode::Skb)?;
            pin_thread(cpu::FLOODED, NICE)?;
            let index = if_nametoindex(interface)?;
            let context = context(frame.len(), index);
            let mut start = Instant::now();
            let mut sent = 0.0;
            while !progress.stop.load(Ordering::Relaxed) {
                if !progress.on.load(Ordering::Relaxed) {
                    thread::sleep(SLEEP);
                    (start, sent) = (Instant::now(), 0.0);
                    continue;
                }
                let due = f64::from(rate) * start.elapsed().as_secs_f64() - sent;
                if due > f64::from(rate) * BEHIND {
                    (start, sent) = (Instant::now(), 0.0);
                }
                let at_once = f64::from(rate) * SLEEP.as_secs_f64();
                let count = (due as u32).min(MOST);
                if f64::from(count) < at_once.min(f64::from(MOST)) {
                    // A fraction of a packet may already be due.
                    let ahead = (at_once - due).max(0.0);
                    thread::sleep(Duration::from_secs_f64(ahead / f64::from(rate)));
                    continue;
                }
                program.test_run(TestRunOptions {
                    data_in: Some(frame),
                    ctx_in: Some(&context),
                    repeat: count,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::new()
                })?;
                sent += f64::from(count);
                let busy = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
                let busy_ns = Duration::from(busy).as_nanos() as u64;
                progress.busy_ns.store(busy_ns, Ordering::Relaxed);
                progress.sent.fetch_add(count.into(), Ordering::Relaxed);
            }
            program.detach(link)?;
            Ok(())
        })?
    }
}

/// A program that drops all packets that an interface receives, until this is dropped.
pub struct Sink(#[expect(dead_code, reason = "held for its drop")] Ebpf);

impl Sink {
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(FLOOD)?;
        namespace.enter(|| -> Result<()> {
            let program = program(&mut ebpf, "drop_all")?;
            program.load()?;
            program.attach(interface, XdpMode::Driver)?;
            Ok(())
        })??;
        Ok(Self(ebpf))
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .context("the flood's object file lacks the program")?;
    Ok(program.try_into()?)
}

/// A `struct xdp_md` of a frame with this length, received on this interface.
fn context(length: usize, interface: u32) -> Vec<u8> {
    let [data, meta, queue, egress] = [0u32; 4];
    let words = [data, length as u32, meta, interface, queue, egress];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}
