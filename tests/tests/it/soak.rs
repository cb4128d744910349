//! Reloads, kills, trials and restarts of Docker under traffic: no packet to a closed port passes, and the guard drops
//! no packet to an open port. `cargo xtask soak` runs the long form.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use lab::{
    docker::Docker,
    guard::{Guard, output, write_policy},
    probe::{Probe, ProbePace, ProbeResult},
    process::wait_for,
    topology::{INTERFACE, Lab},
};
use serde_json::json;

const OPEN: u16 = 9_000;
const CLOSED: u16 = 9_001;

/// The variable that `cargo xtask soak` sets: the path of an older binary, whose maps have another layout.
const OLDER: &str = "GUARD_OLDER_BINARY";

struct SoakPlan {
    reloads: u32,
    kills: u32,
    trials: u32,
    pace: ProbePace,
    docker: bool,
    older: Option<PathBuf>,
}

fn policy(docker: Option<&Docker>, generation: u32) -> String {
    let mut policy = format!(
        "mode = \"enforce\"\nscope = \"host\"\ninterfaces = [\"{INTERFACE}\"]\n\
         docker.socket = \"{}\"\nlimits.packets = \"{}k/s\"\n",
        docker.map_or(String::new(), |docker| docker
            .socket()
            .display()
            .to_string()),
        50 + generation
    );
    // The number of services before the probed one changes.
    for n in 0..generation % 5 {
        writeln!(
            policy,
            "[[service]]\nname = \"s{n}\"\nports = [\"tcp/{}\"]\nlimit.packets = \"{}/s\"",
            1_000 + n,
            100 + generation
        )
        .unwrap();
    }
    policy
        + &format!(
            "[[service]]\nname = \"open\"\nports = [\"udp/{OPEN}\"]\ntotal.packets = \"100M/s\"\n"
        )
}

fn soak(plan: &SoakPlan) -> ProbeResult {
    let lab = Lab::new().unwrap();
    let mut docker = plan.docker.then(|| Docker::start(&lab).unwrap());
    let text = |docker: Option<&Docker>, n| policy(docker, n);
    write_policy(&lab, &text(docker.as_ref(), 0)).unwrap();
    // An older build runs first, and is upgraded under traffic.
    let mut guard = match &plan.older {
        Some(older) => Guard::start_binary(&lab, older).unwrap(),
        None => Guard::start_again(&lab).unwrap(),
    };
    let probe = Probe::start(&lab, OPEN, CLOSED, plan.pace).unwrap();
    let mut watch = CounterWatch::default();
    if plan.older.is_some() {
        guard.kill().unwrap();
        guard = Guard::start_again(&lab).unwrap();
        // The counters start again: those of another layout are not taken over.
        watch = CounterWatch::default();
    }
    for n in 1..=plan.reloads {
        if n % 3 == 0 {
            write_policy(&lab, "mode = \"enforce\"\nscpoe = \"host\"\n").unwrap();
            let refused = output(&lab, &["reload"]).unwrap();
            assert_eq!(refused.status.code(), Some(2));
        } else {
            write_policy(&lab, &text(docker.as_ref(), n)).unwrap();
            guard.run(&["reload"]).unwrap();
        }
        watch.check(&guard);
        if plan.docker && n == plan.reloads / 2 {
            // A reload removes Docker from the policy, and the daemon restarts.
            let lost = policy(None, n).replace("socket = \"\"", "socket = \"/nonexistent\"");
            write_policy(&lab, &lost).unwrap();
            guard.run(&["reload"]).unwrap();
            if let Some(docker) = &mut docker {
                docker.restart(&lab).unwrap();
            }
        }
    }
    write_policy(&lab, &text(docker.as_ref(), 1)).unwrap();
    for _ in 0..plan.kills {
        guard.kill().unwrap();
        guard = Guard::start_again(&lab).unwrap();
        watch.check(&guard);
    }
    for n in 0..plan.trials {
        let path = lab.folder().join("trial.toml");
        fs::write(&path, text(docker.as_ref(), n)).unwrap();
        guard
            .run(&["try", path.to_str().unwrap(), "--for", "2s"])
            .unwrap();
        wait_for(Duration::from_secs(20), || {
            let status = guard.json("status")?;
            anyhow::ensure!(status["trial"].is_null(), "{status}");
            Ok(())
        })
        .unwrap();
        watch.check(&guard);
    }
    let counted = probe.stop(&lab).unwrap();
    let dropped = [("service", json!("open")), ("verdict", json!("drop"))];
    assert_eq!(
        guard.packets(&dropped).unwrap(),
        0,
        "the guard dropped packets to the open port"
    );
    assert_eq!(counted.closed, 0, "leaked: {counted:?}");
    // Only datagrams to the closed port may be dropped. A larger count includes datagrams to the open port.
    let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
    assert!(dropped <= counted.sent, "{dropped} dropped: {counted:?}");
    if plan.older.is_none() {
        let passed = guard.packets(&[("service", json!("open"))]).unwrap();
        assert_eq!(
            passed, counted.open,
            "some packets were judged by no program"
        );
    }
    assert!(counted.open > 0, "{counted:?}");
    counted
}

/// Checks that counters never decrease.
#[derive(Default)]
struct CounterWatch {
    passed: u64,
    dropped: u64,
}

impl CounterWatch {
    fn check(&mut self, guard: &Guard) {
        let passed = guard.packets(&[("verdict", json!("pass"))]).unwrap();
        let dropped = guard.packets(&[("verdict", json!("drop"))]).unwrap();
        assert!(passed >= self.passed && dropped >= self.dropped);
        *self = Self { passed, dropped };
    }
}

#[test]
fn nothing_leaks_and_nothing_is_lost_whatever_happens_to_the_agent() {
    let counted = soak(&SoakPlan {
        reloads: 6,
        kills: 2,
        trials: 1,
        pace: ProbePace::Steady,
        docker: false,
        older: None,
    });
    assert!(counted.sent > 10_000, "{counted:?}");
}

/// The long form. It runs only if `cargo xtask soak` names the older binary.
#[test]
fn soak_long() {
    let Some(older) = env::var_os(OLDER) else {
        return;
    };
    let older = Path::new(&older);
    for pace in [ProbePace::Steady, ProbePace::Flood] {
        let counted = soak(&SoakPlan {
            reloads: 100,
            kills: 20,
            trials: 2,
            pace,
            docker: true,
            older: Some(older.to_owned()),
        });
        let rate = counted.sent as f64 / counted.seconds;
        println!(
            "soak: {pace:?}: {} datagrams to each port in {:.0} s ({rate:.0}/s), leaked 0, lost to the \
             guard 0",
            counted.sent, counted.seconds
        );
        assert!(
            rate >= 10_000.0,
            "only {rate:.0} datagrams a second: the machine is too busy for this run"
        );
    }
}
