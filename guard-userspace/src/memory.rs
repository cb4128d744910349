//! The memory of this process. Reading a policy with a long list takes many times what is kept of it, and
//! left alone glibc holds on to the rest, for each thread anew.

#[cfg(target_env = "gnu")]
use nix::libc;

/// What is as large as this goes back to the kernel as soon as it is free.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 17;

/// One heap for all threads, and none for what is large. To be called before there are threads.
pub fn be_frugal() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions (mallopt(3)). What it refuses stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Said once, it no longer grows with what is freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives back to the kernel what is free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
