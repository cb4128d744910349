//! The machine that runs the measurements.

use std::{fmt, fs, thread};

use anyhow::Result;
use nix::sys::utsname::uname;
use serde::Serialize;

#[derive(Serialize)]
pub struct MachineInfo {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    /// The sysctls `net.core.bpf_jit_enable` and `bpf_jit_harden`.
    pub jit: String,
    pub jit_harden: String,
}

impl MachineInfo {
    pub fn read() -> Result<Self> {
        let name = uname()?;
        Ok(Self {
            cpu: model().unwrap_or_else(|| name.machine().to_string_lossy().into_owned()),
            cpus: thread::available_parallelism()?.get(),
            kernel: name.release().to_string_lossy().into_owned(),
            jit: setting("bpf_jit_enable"),
            jit_harden: setting("bpf_jit_harden"),
        })
    }
}

fn model() -> Option<String> {
    let about = fs::read_to_string("/proc/cpuinfo").ok()?;
    let mut lines = about.lines();
    let line = lines.find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn setting(name: &str) -> String {
    let setting = fs::read_to_string(format!("/proc/sys/net/core/{name}"));
    setting.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

impl fmt::Display for MachineInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cpus,
            kernel,
            jit,
            jit_harden,
        } = self;
        write!(
            formatter,
            "{cpu}, {cpus} CPUs, Linux {kernel}, bpf_jit_enable {jit}, bpf_jit_harden {jit_harden}"
        )
    }
}
