//! What the agent may do once it runs: no more than loading programs and putting them on interfaces.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
};

use caps::{CapSet, Capability, CapsHashSet};
use tracing::warn;

/// CAP_BPF and CAP_PERFMON (Linux 5.8) to load programs and make maps, CAP_NET_ADMIN to attach them.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
];

static IS_ENOUGH: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IS_GIVEN_UP: Cell<bool> = const { Cell::new(false) };
}

/// Gives up every other capability, for good, in this thread and in every one that calls [`follow`]. A
/// process that cannot goes on with what it has, and says so: it is no less safe than it was.
pub fn keep_only_needed() {
    IS_ENOUGH.store(true, Ordering::SeqCst);
    follow();
}

/// What the threads of the runtime do when they start, wait and go on: to the kernel, each has capabilities
/// of its own.
pub fn follow() {
    if IS_ENOUGH.load(Ordering::SeqCst) && !IS_GIVEN_UP.replace(true) {
        give_up();
    }
}

/// Runs what blocks on a thread that has given up what this process has: the pool's threads may be older than that, and
/// wake without a hook.
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
        // As under a service manager, which leaves nothing else.
        return;
    }
    let mut results = Vec::new();
    for capability in caps::all().difference(&keep) {
        // Without CAP_SETPCAP the bounding set stays; nothing here executes another program.
        let _result = caps::drop(None, CapSet::Bounding, *capability);
    }
    results.push(caps::clear(None, CapSet::Ambient));
    results.push(caps::set(None, CapSet::Effective, &keep));
    results.push(caps::set(None, CapSet::Inheritable, &CapsHashSet::new()));
    results.push(caps::set(None, CapSet::Permitted, &keep));
    for error in results.into_iter().filter_map(Result::err) {
        warn!("privileges that are not needed cannot be given up: {error}");
    }
}
