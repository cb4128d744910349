//! Copies packets into a ring buffer for `guard capture`.
//!
//! Without a capture this costs one load and one branch per packet. During a capture user space grants a number of
//! copies, and samples fewer packets in a flood.

use core::{
    cell::UnsafeCell,
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xsub, likely},
    ptr::read_volatile,
};

use aya_ebpf::{
    bindings::{BPF_RB_NO_WAKEUP, xdp_md},
    helpers::{bpf_ktime_get_boot_ns, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use guard_common::{
    address::Address,
    layout::{CaptureFilter, Event, SERVICE_ID_WORDS, SNAP_LENGTH, feature, grant},
    packet::IpHeader,
    reason::Outcome,
};

use crate::{
    barrier::opaque,
    config::uses,
    counters::Counted,
    interfaces::row,
    maps::{EVENTS, GRANT, LOSS_ROWS, LOSSES},
};

/// Alone in its section, so that it is a map of its own.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.capture")]
static CAPTURE: CaptureVariable = CaptureVariable(UnsafeCell::new(CaptureFilter::NONE));

struct CaptureVariable(UnsafeCell<CaptureFilter>);

// SAFETY: the kernel program only reads it. User space may write it meanwhile: any mixture of two filters is a valid
// filter.
unsafe impl Sync for CaptureVariable {}

/// Reads the current value of one field.
macro_rules! wanted {
    ($($field:tt)+) => {
        // SAFETY: the pointer comes from a reference to a static, and indices are bounded.
        unsafe { read_volatile(&raw const (*CAPTURE.0.get()).$($field)+) }
    };
}

/// The length of an Ethernet header. The kernel runs XDP on no shorter frame.
const SHORTEST_FRAME: u32 = 14;

/// The facts of an event in one word: a BPF function takes at most five arguments.
#[derive(Clone, Copy)]
struct EventFacts(u64);

impl EventFacts {
    #[inline(always)]
    fn of(counted: &Counted<'_, impl IpHeader>) -> Self {
        let family = match counted.packet {
            Some(packet) => packet.ip.family() as u64,
            None => 0,
        };
        Self(family << 32 | u64::from(counted.conclusion.pack()))
    }

    /// The slot, masked even where the compiler knows its bounds: the verifier does not know them.
    #[inline(always)]
    fn slot(self) -> usize {
        // SAFETY: the pointer comes from a reference.
        let facts = unsafe { read_volatile(&self.0) };
        facts as usize % Outcome::SLOTS as usize
    }

    #[inline(always)]
    const fn service(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    const fn family(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[inline(always)]
pub fn offer(ctx: &XdpContext, counted: &Counted<'_, impl IpHeader>) {
    if likely(wanted!(on) == 0) {
        return;
    }
    let facts = EventFacts::of(counted);
    let one_of = wanted!(one_of[facts.slot()]);
    if one_of != 0 && counted.number & (u64::from(one_of) - 1) == 0 {
        let Address { high, low } = match counted.packet {
            Some(packet) => packet.ip.source(),
            None => Address::default(),
        };
        guard_hand_over(ctx.ctx, facts.0, high, low, counted.length);
    }
}

/// Copies a packet into the ring buffer if the filter matches it and a copy is granted.
///
/// It is a global function: the verifier checks it once (Linux 5.6) and not behind each path of a packet, and the code
/// that every packet runs stays small.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_hand_over(
    ctx: *mut xdp_md,
    facts: u64,
    high: u64,
    low: u64,
    length: u64,
) -> u32 {
    let facts = EventFacts(facts);
    let source = Address { high, low };
    let is_wanted = has_service(facts.service()) && has_source(facts.family(), source);
    if is_wanted {
        hand_over(ctx, facts, length as u32);
    }
    0
}

#[inline(always)]
fn hand_over(ctx: *mut xdp_md, facts: EventFacts, length: u32) {
    let one_of = wanted!(one_of[facts.slot()]);
    let event = if is_granted(one_of) {
        EVENTS.reserve::<Event>(0)
    } else {
        None
    };
    let row = row(&XdpContext::new(ctx));
    let Some(mut event) = event else {
        if let Some(losses) = find_losses(row, facts.slot() as u32) {
            // A reader that comes late does not know the sampling rate of this moment.
            // SAFETY: the pointer is to this CPU's own value.
            unsafe { *losses += u64::from(one_of) };
        }
        return;
    };
    let captured = if length < SNAP_LENGTH {
        length
    } else {
        SNAP_LENGTH
    };
    let to = event.as_mut_ptr();
    // SAFETY: the entry has room for all of an `Event`, and no reader sees it before it is submitted. The helper reads
    // through all fragments of the frame (Linux 5.18 and later).
    let result = unsafe {
        (&raw mut (*to).boot_ns).write(bpf_ktime_get_boot_ns());
        (&raw mut (*to).length).write(length);
        (&raw mut (*to).captured).write(captured);
        (&raw mut (*to).service).write(facts.service());
        (&raw mut (*to).slot).write(facts.slot() as u16);
        (&raw mut (*to).one_of).write(one_of);
        (&raw mut (*to).row).write(row);
        (&raw mut (*to).reserved).write(0);
        let to = (&raw mut (*to).frame).cast();
        load(ctx, to, captured)
    };
    // The reader polls the buffer at intervals, so no packet wakes it.
    if result == 0 {
        event.submit(BPF_RB_NO_WAKEUP.into());
    } else {
        event.discard(BPF_RB_NO_WAKEUP.into());
    }
}

#[inline(always)]
fn find_losses(row: u32, slot: u32) -> Option<*mut u64> {
    if uses!(feature::ALONE) {
        return LOSSES.get_ptr_mut(slot);
    }
    LOSS_ROWS.get_value_ptr_mut(row, &slot)
}

/// Reads the first bytes of a frame. Returns a negative error number if the frame is too short.
///
/// # Safety
/// There must be room for [`SNAP_LENGTH`] bytes.
#[inline(always)]
unsafe fn load(ctx: *mut xdp_md, to: *mut c_void, length: u32) -> i64 {
    const UNREADABLE: i64 = -1;
    // The verifier must see both bounds of the register that the helper gets. Tested together, the compiler would merge
    // them into one comparison of another register.
    let length = opaque(length.into());
    if length < SHORTEST_FRAME.into() {
        return UNREADABLE;
    }
    let length = opaque(length);
    if length > SNAP_LENGTH.into() {
        return UNREADABLE;
    }
    // SAFETY: the caller guarantees the room, and the context is the one that this program was called with.
    unsafe { bpf_xdp_load_bytes(ctx, 0, to, length as u32) }
}

#[inline(always)]
fn has_service(service: u16) -> bool {
    let word = wanted!(services[service as usize / 64 % SERVICE_ID_WORDS]);
    word >> (service % 64) & 1 != 0
}

#[inline(always)]
fn has_source(family: u32, source: Address) -> bool {
    let wanted = wanted!(family);
    // If the packet was not parsed, the reader of the event finds the source itself.
    let unparsed = family == 0;
    wanted == 0 || unparsed || wanted == family && source.masked(wanted!(mask)) == wanted!(prefix)
}

/// Takes one copy off the grant; `false`: none is left. An outcome of which every packet is copied (`one_of` is 1) takes
/// from the reserve as well: a flood that the other outcomes are part of cannot use it up, however late the next grant
/// comes.
#[inline(always)]
fn is_granted(one_of: u32) -> bool {
    take(grant::SHARED) || one_of == 1 && take(grant::RESERVE)
}

#[inline(always)]
fn take(index: u32) -> bool {
    let Some(grant) = GRANT.get_ptr_mut(index) else {
        return false;
    };
    let is_left = |left: u64| left as i64 > 0;
    // SAFETY: a value of an array map lives as long as the program, and an aligned 64-bit load does not tear. In a
    // flood most packets find no copy left, and skip the atomic write.
    if !is_left(unsafe { read_volatile(grant) }) {
        return false;
    }
    // SAFETY: as above. SeqCst, because LLVM 22 miscompiles weaker orderings for this target.
    is_left(unsafe { atomic_xsub::<u64, u64, { AtomicOrdering::SeqCst }>(grant, 1) })
}
