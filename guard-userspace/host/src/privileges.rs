//! Drops the capabilities that a running agent does not need: it only loads programs and attaches them to interfaces.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
};

use caps::{CapSet, Capability, CapsHashSet};
use tracing::warn;

/// CAP_BPF and CAP_PERFMON (Linux 5.8) to load programs and create maps, CAP_NET_ADMIN to attach programs.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
];

static IS_ENOUGH: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IS_GIVEN_UP: Cell<bool> = const { Cell::new(false) };
}

/// Drops every other capability for good, in this thread and in every thread that calls [`follow`]. If that fails, the
/// process logs a warning and goes on with the capabilities that it has.
pub fn keep_only_needed() {
    IS_ENOUGH.store(true, Ordering::SeqCst);
    follow();
}

/// Drops the capabilities of the calling thread, if [`keep_only_needed`] was called. In the kernel each thread has its
/// own capabilities, so threads of the runtime call this when they start, park and unpark.
pub fn follow() {
    if IS_ENOUGH.load(Ordering::SeqCst) && !IS_GIVEN_UP.replace(true) {
        give_up();
    }
}

/// Runs blocking work on a thread that has dropped its capabilities. Threads of the pool may have started before
/// [`keep_only_needed`], and tokio has no hook for when they wake up.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(move || {
        follow();
        work()
    })
}

fn give_up() {
    let needed: CapsHashSet = NEEDED.into_iter().collect();
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let keep: CapsHashSet = permitted.intersection(&needed).copied().collect();
    if permitted == keep {
        // For example, a service manager has dropped the others already.
        return;
    }
    let mut results = Vec::new();
    for capability in caps::all().difference(&keep) {
        // Without CAP_SETPCAP the bounding set is unchanged. That is harmless: the agent executes no other program.
        let _result = caps::drop(None, CapSet::Bounding, *capability);
    }
    results.push(caps::clear(None, CapSet::Ambient));
    results.push(caps::set(None, CapSet::Effective, &keep));
    results.push(caps::set(None, CapSet::Inheritable, &CapsHashSet::new()));
    results.push(caps::set(None, CapSet::Permitted, &keep));
    for error in results.into_iter().filter_map(Result::err) {
        warn!("capabilities that are not needed cannot be dropped: {error}");
    }
}
