//! Tests whether this process may load and attach programs.

use super::LoadError;

/// Bits of the effective capabilities (linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// Fails unless this process may load and attach programs. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, which Linux
/// 5.8 introduced.
pub fn require_capabilities() -> Result<(), LoadError> {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    let Ok(status) = status else {
        // Without /proc, the kernel's own error has to do.
        return Ok(());
    };
    let has = |capability| status.capeff & (capability | CAP_SYS_ADMIN) != 0;
    let admin = status.capeff & CAP_NET_ADMIN != 0;
    if admin && has(CAP_BPF) && has(CAP_PERFMON) {
        Ok(())
    } else {
        Err(LoadError::NotPermitted)
    }
}
