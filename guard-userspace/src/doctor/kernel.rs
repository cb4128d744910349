//! Checks the kernel's features, and whether this user may load programs.

use std::{fs, path::Path};

use super::DoctorFinding;
use crate::{
    dataplane::{self, pins},
    host,
};

/// The first kernel with `bpf_xdp_get_buff_len`: multi-buffer XDP.
const OLDEST: (u32, u32) = (5, 18);

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A tick of 10 ms (CONFIG_HZ=100) is warned about: no burst can be shorter than a tick.
const LONG_TICK_MS: u64 = 10;

pub fn examine(pins: &Path) -> Vec<DoctorFinding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        version(release.trim()),
        btf(),
        bpffs(pins),
        capabilities(),
        tick(),
    ]
}

fn version(release: &str) -> DoctorFinding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let finding = format!("Linux {release}");
    match number().zip(number()) {
        Some(version) if version >= OLDEST => DoctorFinding::ok("kernel", finding),
        Some(_) => DoctorFinding::failure(
            "kernel",
            finding,
            format!("run Linux {}.{} or later", OLDEST.0, OLDEST.1),
        ),
        None => DoctorFinding::unknown("kernel", "the kernel's version cannot be read"),
    }
}

fn btf() -> DoctorFinding {
    if Path::new(BTF).exists() {
        return DoctorFinding::ok("btf", "the kernel has BTF type information");
    }
    DoctorFinding::warning(
        "btf",
        format!("there is no {BTF}: tools such as bpftool show the tables without names"),
        "run a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build theirs",
    )
}

fn bpffs(folder: &Path) -> DoctorFinding {
    let mut existing = folder.ancestors().filter(|folder| folder.exists());
    if existing.next().is_some_and(pins::is_bpffs) {
        return DoctorFinding::ok(
            "bpffs",
            format!("{} is on a BPF file system", folder.display()),
        );
    }
    if folder.starts_with(pins::BPFFS) {
        return DoctorFinding::warning(
            "bpffs",
            format!("no BPF file system is visible at {}", pins::BPFFS),
            "start the agent as root, which mounts it; or run `mount -t bpf bpf /sys/fs/bpf`",
        );
    }
    DoctorFinding::failure(
        "bpffs",
        format!("{} is on no BPF file system", folder.display()),
        "leave out --pins, or mount one with `mount -t bpf bpf FOLDER` and name a folder below it with --pins",
    )
}

fn capabilities() -> DoctorFinding {
    match dataplane::require_capabilities() {
        Ok(()) => DoctorFinding::ok("capabilities", "this user may load and attach programs"),
        Err(_) => DoctorFinding::warning(
            "capabilities",
            "this user may not load programs, and can check less than root",
            "run `guard doctor` as root; the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        ),
    }
}

fn tick() -> DoctorFinding {
    match host::tick_ns() {
        Ok(tick_ns) => tick_of(tick_ns / 1_000_000),
        Err(error) => DoctorFinding::unknown("tick", format!("the clocks cannot be read: {error}")),
    }
}

fn tick_of(ms: u64) -> DoctorFinding {
    match ms {
        0..LONG_TICK_MS => DoctorFinding::ok(
            "tick",
            format!(
                "the kernel's clock steps every {ms} ms, short enough for the bursts of limits"
            ),
        ),
        ms => DoctorFinding::warning(
            "tick",
            format!("the kernel's clock steps every {ms} ms: no burst of a limit can be shorter"),
            "run a kernel with CONFIG_HZ=250 or more if short bursts matter",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn the_tick_is_told_in_words() {
        assert_eq!(
            tick_of(4).finding,
            "the kernel's clock steps every 4 ms, short enough for the bursts of limits"
        );
        assert_eq!(tick_of(10).health, Health::Warning);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, health) in [
            ("6.1.0-18-amd64", Health::Ok),
            ("5.18.0", Health::Ok),
            ("10.2", Health::Ok),
            ("5.4.300", Health::Failure),
            ("4.19.0", Health::Failure),
            ("", Health::Unknown),
        ] {
            assert_eq!(version(release).health, health, "{release}");
        }
    }
}
