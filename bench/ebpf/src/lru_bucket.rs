//! A token bucket for each source in an LRU hash, as in tutorials and most XDP rate limiters: guard's budgets are
//! compared with it. It parses only IPv4, and has no ports or counters.
#![no_std]
#![no_main]

mod ipv4;
mod whole;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_ktime_get_ns,
    macros::{map, xdp},
    maps::LruHashMap,
    programs::XdpContext,
};

use self::ipv4::source;

struct TokenBucket {
    tokens: u64,
    refilled_ns: u64,
}

#[map]
static BUCKETS: LruHashMap<u32, TokenBucket> = LruHashMap::with_max_entries(1 << 16, 0);

const TOKENS_PER_SECOND: u64 = 1_000_000_000;
const BURST: u64 = TOKENS_PER_SECOND;
const NS_PER_SECOND: u64 = 1_000_000_000;

#[xdp(frags)]
pub fn lru_bucket(ctx: XdpContext) -> u32 {
    match source(&ctx) {
        Some(source) if has_token(source) => xdp_action::XDP_PASS,
        Some(_) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn has_token(source: u32) -> bool {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(bucket) = BUCKETS.get_ptr_mut(source) else {
        let bucket = TokenBucket {
            tokens: BURST - 1,
            refilled_ns: now,
        };
        // If the insertion fails, the packet passes.
        let _ = BUCKETS.insert(source, bucket, 0);
        return true;
    };
    // SAFETY: the pointer is to a value of the table. Two CPUs may lose a token or grant one twice.
    let bucket = unsafe { &mut *bucket };
    let elapsed = now.saturating_sub(bucket.refilled_ns).min(NS_PER_SECOND);
    let tokens = bucket.tokens + elapsed * TOKENS_PER_SECOND / NS_PER_SECOND;
    let tokens = tokens.min(BURST);
    bucket.refilled_ns = now;
    if tokens == 0 {
        return false;
    }
    bucket.tokens = tokens - 1;
    true
}
