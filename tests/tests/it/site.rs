//! A lab with a web server, and helpers to start guards and compare their effect on its port.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use guard_common::layout;
use lab::{
    guard::{Guard, output, write_policy},
    http::{HttpOutcome, get},
    process::{run, wait_for},
    proxy::Proxy,
    topology::{HOST_V4, INTERFACE, Lab, USER_V4},
};
use serde_json::Value;

/// nginx answers 502, because its upstream does not run: the port is open.
pub const OPEN: HttpOutcome = HttpOutcome::Status(502);
pub const CLOSED: HttpOutcome = HttpOutcome::TimedOut;

pub const SHUT: &str = "";
pub const OPEN_80: &str = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n";

pub fn policy(mode: &str, extra: &str) -> String {
    format!(
        "mode = \"{mode}\"\ninterfaces = [\"{INTERFACE}\"]\nscope = \"host\"\ndocker.socket = \"\"\n\
         {extra}"
    )
}

/// A lab with a web server on port 80.
pub struct Site {
    pub lab: Lab,
    _web: Proxy,
}

impl Site {
    pub fn new() -> Self {
        let lab = Lab::new().unwrap();
        let _web = Proxy::start(&lab, "127.0.0.1:1").unwrap();
        Self { lab, _web }
    }

    pub fn start(&self, mode: &str, extra: &str) -> Guard {
        Guard::start(&self.lab, &policy(mode, extra)).unwrap()
    }

    pub fn write(&self, mode: &str, extra: &str) -> String {
        let path = write_policy(&self.lab, &policy(mode, extra)).unwrap();
        path.display().to_string()
    }

    pub fn get(&self) -> HttpOutcome {
        get(&self.lab, USER_V4, HOST_V4, 80).unwrap()
    }

    /// Runs a `guard` command, with or without an agent, asserts that it succeeds, and returns its output.
    pub fn guard(&self, arguments: &[&str]) -> String {
        let output = output(&self.lab, arguments).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.guard(&["status", "--json"])).unwrap()
    }

    /// Pins the guard's program, and returns the path: tests attach it as another software's program.
    pub fn keep_program(&self, guard: &Guard) -> PathBuf {
        let pins = self.lab.folder().join("bpf/foreign");
        let id = guard.json("status").unwrap()["interfaces"][0]["program_id"].clone();
        let mut command = Command::new("bpftool");
        command.args(["prog", "pin", "id", &id.to_string()]);
        run(command.arg(&pins)).unwrap();
        pins
    }

    /// Attaches a pinned program with `ip link`, over netlink instead of a BPF link.
    pub fn put_foreign(&self, interface: &str, pins: &Path) {
        let pins = pins.display();
        let command = format!("link set dev {interface} xdp pinned {pins}");
        self.lab.host.ip(&command).unwrap();
    }

    /// Waits until [`attached`](Self::attached) returns these programs. The kernel detaches a program a moment after
    /// the last process or pin that holds its link is gone.
    pub fn wait_for_attached(&self, programs: &str) {
        wait_for(Duration::from_secs(20), || {
            let found = self.attached();
            anyhow::ensure!(found == programs, "{found:?} is attached, not {programs:?}");
            Ok(())
        })
        .unwrap();
    }

    /// The programs on the guarded interface, as `ip link` prints them.
    pub fn attached(&self) -> String {
        let link = self.lab.host.ip(&format!("-details link show {INTERFACE}"));
        let link = link.unwrap();
        let lines = link.lines().filter(|line| line.contains("prog/xdp"));
        lines.collect()
    }
}

/// The folder where a lab's guard pins the maps of one interface, or of the host (`%host`).
pub fn pins_of(lab: &Lab, interface: &str) -> PathBuf {
    let version = format!("v{}", layout::VERSION);
    lab.pins().join(version).join(interface)
}

pub fn fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr}");
    }
}
