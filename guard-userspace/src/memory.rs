//! Limits the memory of this process. To read a policy with a long list takes many times the memory of the result. By
//! default, glibc keeps the rest after it is freed, in a separate heap for each thread.

#[cfg(target_env = "gnu")]
use nix::libc;

/// An allocation of this size, in bytes, or more is returned to the kernel as soon as it is freed.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 17;

/// Makes all threads use one heap, and maps large allocations separately. Must be called before threads are started.
pub fn limit_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions (mallopt(3)). A value that it refuses leaves the default.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Setting the threshold also stops its dynamic growth (M_MMAP_THRESHOLD in mallopt(3)).
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Returns free memory to the kernel.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
