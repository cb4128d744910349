//! Sends a flood over a veth, as fast as asked or as it can: the kernel runs a program over frames of its
//! own and sends on what comes out (BPF_PROG_TEST_RUN with live frames, Linux 5.18).

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

use super::{cpu, process_of};
use crate::beside::Numbers;

/// Compiled for the BPF virtual machine by this crate's build script.
static FLOOD: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flood"));

/// How many frames the kernel handles at once, and as many as one system call asks for.
const BATCH: u32 = 64;
const MOST: u32 = 1 << 14;

/// The generator sends what is due in so long at once, and sleeps until then. Each system call makes and
/// initialises its frames anew, for the time of some hundred packets: to send whatever is due would take all of the
/// CPU at half of the rate.
const NAP: Duration = Duration::from_millis(4);

/// How far behind it may fall before it gives up what it has not sent.
const BEHIND: f64 = 0.02;

/// An interface that is down.
const STILL: &str = "still";

/// Before everything else on its CPU, as the interrupts of a card are.
const NICE: i32 = -20;

/// Where a frame of IPv4 has its checksums.
const IP_CHECKSUM: usize = 24;
const TCP_CHECKSUM: usize = 50;

/// The program that makes a flood of one frame, whose source and source port are 0.
pub struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

/// A flood under way, as others see it.
#[derive(Default)]
pub struct FloodProgress {
    pub sent: AtomicU64,
    /// What that took of its CPU, with all that the CPU does on receiving it, in nanoseconds.
    pub busy_ns: AtomicU64,
    /// It sends only while this is set.
    pub on: AtomicBool,
    pub stop: AtomicBool,
}

impl Generator {
    /// Readies a namespace to send floods from.
    pub fn settle(namespace: &Namespace) -> Result<()> {
        namespace
            .ip(&format!("link add {STILL} type veth"))
            .map(drop)
    }

    pub fn load(frame: Vec<u8>, sources: Numbers) -> Result<Self> {
        let Numbers { first, count } = sources;
        let sum = |offset: usize| -> Result<u32> {
            let bytes = frame.get(offset..offset + 2);
            let bytes: [u8; 2] = bytes.context("the frame is no TCP")?.try_into()?;
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

    /// Floods out of an interface whenever it is told to and until it is told to stop, with so many packets a
    /// second or as many as it makes.
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
            // A program that is attached somewhere has its place in the kernel's dispatcher already; else
            // each run waits until every CPU has seen that it comes and goes.
            let still = program.attach(STILL, XdpMode::Skb)?;
            process_of(cpu::FLOODED, NICE)?;
            let index = if_nametoindex(interface)?;
            let context = context(frame.len(), index);
            let mut start = Instant::now();
            let mut sent = 0.0;
            while !progress.stop.load(Ordering::Relaxed) {
                if !progress.on.load(Ordering::Relaxed) {
                    thread::sleep(NAP);
                    (start, sent) = (Instant::now(), 0.0);
                    continue;
                }
                let due = f64::from(rate) * start.elapsed().as_secs_f64() - sent;
                if due > f64::from(rate) * BEHIND {
                    (start, sent) = (Instant::now(), 0.0);
                }
                let at_once = f64::from(rate) * NAP.as_secs_f64();
                let count = (due as u32).min(MOST);
                if f64::from(count) < at_once.min(f64::from(MOST)) {
                    // Part of a packet may be due besides.
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
            program.detach(still)?;
            Ok(())
        })?
    }
}

/// What drops all that comes in by an interface; as long as it lives.
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
    let program = ebpf.program_mut(name).context("the flood is incomplete")?;
    Ok(program.try_into()?)
}

/// A `struct xdp_md`: a frame of this length that came in by this interface.
fn context(length: usize, interface: u32) -> Vec<u8> {
    let [data, meta, queue, egress] = [0u32; 4];
    let words = [data, length as u32, meta, interface, queue, egress];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}
