//! Commands without an agent, by the pins alone: the status of the programs, their counters, and the emergency exits.

use std::{
    collections::BTreeMap,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_api::{AgentStatus, Counter, InterfaceStatus, PolicyStatus, Status, Talker, TrialStatus};
use guard_common::{
    exposure::Scope,
    layout::{About, NO_AGENT},
    reason::Mode,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    agent::interfaces_with_program,
    counted::{of_every_interface, to_counter, to_talker},
    dataplane::{
        HostState, InterfaceState, Passing, detach_all, linked_guards, pass_everything_everywhere,
        pins::{self, ExitMark, Pins},
        text_of,
    },
    host::{self, read},
    operator,
    policy::Timebase,
    state_store::{ChangedMode, StateStore, StoreError},
};

/// The time for an agent to end after it was requested to. After that, it counts as an agent that hangs.
const ENDING: Duration = Duration::from_secs(2);

/// The number of readings before a program counts as not attached.
const READINGS: usize = 3;

/// The obstacle in scope `containers`: without an agent, nothing closes the ports of new containers.
const UNFOLLOWED: &str =
    "no agent follows the containers: ports that new containers publish are open";

/// The obstacle if the kernel has reverted to a policy of which no interface is left.
const NONE_LEFT: &str = "no interface of the previous policy has the program";

/// The status if the agent does not answer. `trouble`: how it fails to answer. `None`: nothing is pinned.
pub fn status(root: &Path, trouble: String) -> Result<Option<Status>> {
    let is_whole = |status: &Status| status.interfaces.iter().all(|one| one.attached);
    for _ in 1..READINGS {
        // A slow agent may swap programs while the interfaces and the pins are read.
        match read_status(root, trouble.clone())? {
            Some(status) if !is_whole(&status) => {}
            status => return Ok(status),
        }
    }
    read_status(root, trouble)
}

fn read_status(root: &Path, trouble: String) -> Result<Option<Status>> {
    let links = read::links().context("this host's interfaces cannot be read")?;
    let now = host::timebase().context("the clocks cannot be read")?;
    let Some(host) = HostState::existing(root)? else {
        return Ok(None);
    };
    let about = host.about()?;
    let mut interfaces = Vec::new();
    for pins in Pins::existing(root)? {
        // An interface may have been renamed since it was attached.
        let pins = pins.called(|index| Some(links.get(&index)?.name.clone()));
        let Some(state) = InterfaceState::existing(&pins)? else {
            continue;
        };
        let of_interface = state.about()?;
        let mut found = links.values().filter(|link| link.name == pins.interface());
        let found = found.find_map(|link| link.xdp);
        interfaces.push(InterfaceStatus {
            name: pins.interface().to_owned(),
            // An agent that ended just after a swap has not written the program's id for the interface.
            attached: found.is_some_and(|found| {
                let ours = [of_interface.program, about.program, about.next_program];
                ours.contains(&found.program_id)
            }),
            xdp_mode: if of_interface.native == 1 {
                "native"
            } else {
                "generic"
            }
            .to_owned(),
            program_id: of_interface.program,
            generation: of_interface.generation,
            trouble: (of_interface.only_on_trial == 1 && is_trial_over(&about, now)).then(|| {
                "only the policy on trial guards this interface, and the trial is over: packets pass uncounted"
                    .to_owned()
            }),
        });
    }
    Ok((!interfaces.is_empty()).then(|| describe(&about, now, interfaces, trouble)))
}

fn is_trial_over(about: &About, now: Timebase) -> bool {
    about.trial_until != 0 && about.trial_until <= now.boot_ns
}

fn describe(
    about: &About,
    now: Timebase,
    interfaces: Vec<InterfaceStatus>,
    trouble: String,
) -> Status {
    let trial_is_over = is_trial_over(about, now);
    let mode = Mode::from_raw(if trial_is_over {
        about.mode_before
    } else {
        about.mode
    });
    let scope = Scope::from_raw(if trial_is_over {
        about.scope_before
    } else {
        about.scope
    });
    let path = text_of(&about.policy);
    let mut not_enforcing_because = Vec::new();
    if mode == Mode::Enforce {
        let detached = interfaces.iter().filter(|interface| !interface.attached);
        not_enforcing_because.extend(
            detached.map(|interface| format!("the program is not attached to {}", interface.name)),
        );
        if interfaces
            .iter()
            .all(|interface| interface.trouble.is_some())
        {
            not_enforcing_because.push(NONE_LEFT.to_owned());
        }
        // Scope `host` closes every port that no service lists, including ports that a container publishes later.
        if scope == Scope::Containers {
            not_enforcing_because.push(UNFOLLOWED.to_owned());
        }
    }
    Status {
        version: text_of(&about.version),
        mode: mode.name().to_owned(),
        scope: scope.name().to_owned(),
        enforcing: mode == Mode::Enforce && not_enforcing_because.is_empty(),
        not_enforcing_because,
        agent: AgentStatus {
            running: false,
            pid: (about.agent != NO_AGENT).then_some(about.agent),
            last_seen: Some(at(about.seen_ns, now)),
            trouble: Some(if about.agent == NO_AGENT {
                "it was stopped".to_owned()
            } else {
                trouble
            }),
        },
        interfaces,
        policy: PolicyStatus {
            path: path.clone(),
            sha256: base16ct::lower::encode_string(&about.sha256),
            loaded_at: Timestamp::from_millisecond(about.loaded_ms).unwrap_or(now.world),
            services: about.services as usize,
            file: None,
            stale_advice: None,
            stale: trial_is_over.then(|| {
                "its trial is over, and the kernel has reverted to the previous policy".to_owned()
            }),
        },
        modes: Vec::new(),
        trial: (about.trial_until != 0 && !trial_is_over).then(|| TrialStatus {
            path,
            until: at(about.trial_until, now),
            back_to: "the previous policy".to_owned(),
            other_file: None,
            by: None,
            process: None,
        }),
        docker: None,
        warnings: Vec::new(),
        not_kept: None,
        since: None,
        floods: Vec::new(),
        entries: 0,
        open: Vec::new(),
        open_from: BTreeMap::new(),
        closed: Vec::new(),
        publishers: BTreeMap::new(),
        page: None,
    }
}

/// Whether the only obstacle is the missing agent: all ports that it had read are closed, and only ports of new
/// containers may be open.
pub fn is_agent_only_obstacle(status: &Status) -> bool {
    matches!(&status.not_enforcing_because[..], [why] if why == UNFOLLOWED)
}

/// A time of CLOCK_BOOTTIME, in nanoseconds, as wall-clock time.
fn at(boot_ns: u64, now: Timebase) -> Timestamp {
    let ahead = i128::from(boot_ns) - i128::from(now.boot_ns);
    let ahead = i64::try_from(ahead).unwrap_or_default();
    let moment = now.world.checked_add(SignedDuration::from_nanos(ahead));
    moment.unwrap_or(now.world)
}

/// The kernel's counters of every interface. `None`: nothing is pinned.
pub fn counters(root: &Path) -> Result<Option<Vec<Counter>>> {
    let rows = of_every_interface(root, names(root)?, |interface, tables, names| {
        let rows = tables.counters(names)?.into_iter();
        Ok(rows.map(|row| to_counter(interface, row)).collect())
    });
    Ok(rows?)
}

/// The top talkers of every interface, without the names of sources in the policy. `None`: nothing is pinned.
pub fn talkers(root: &Path) -> Result<Option<Vec<Talker>>> {
    let rows = of_every_interface(root, names(root)?, |interface, tables, names| {
        let rows = tables.talkers(names)?.into_iter();
        Ok(rows.map(|row| to_talker(interface, row)).collect())
    });
    Ok(rows?)
}

/// The pins of interfaces, and the interfaces' current names. If the current name cannot be read, the name at the time
/// of the attach.
fn names(root: &Path) -> Result<impl Iterator<Item = (Pins, String)>> {
    let links = read::links().unwrap_or_default();
    let existing = Pins::existing(root)?.into_iter();
    Ok(existing.map(move |pins| {
        let pins = pins.called(|index| Some(links.get(&index)?.name.clone()));
        let name = pins.interface().to_owned();
        (pins, name)
    }))
}

/// The result of an emergency exit.
#[derive(Clone, Debug, Default)]
pub struct Stopped {
    /// The interfaces on which it took effect.
    pub interfaces: Vec<String>,
    /// Problems that do not keep packets from passing.
    pub warnings: Vec<String>,
}

/// Lets everything pass, and then tries to save the mode for an agent that wakes up or starts. `claimed_by`: the name
/// that the operator gives.
///
/// # Errors
/// Packets are still judged on an interface, or the state of the interfaces cannot be read.
pub fn switch_off(root: &Path, state: &Path, claimed_by: Option<String>) -> Result<Stopped> {
    let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
    leave_mark_for_agent(ExitMark::Off, root);
    let passing = pass_everything_everywhere(root, tick_ns);
    let by = operator::acting_user();
    let ((), kept) = StateStore::open(state).update(|kept| {
        kept.modes.host = Some(ChangedMode {
            mode: Mode::Off,
            since: Timestamp::now(),
            claimed_by: claimed_by.filter(|claimed| *claimed != by),
            by: Some(by),
            process: Some(std::process::id()),
        });
    });
    let Passing {
        interfaces,
        taken_off,
        failed,
    } = passing?;
    ensure!(
        failed.is_empty(),
        "packets are still judged: {}",
        failed.join("; ")
    );
    let passing = passing_program(root);
    require_nothing_judges(root, |program| passing != Some(program))?;
    let mut warnings: Vec<String> = taken_off
        .into_iter()
        .map(|why| format!("no program that lets everything pass could be attached, so guard was detached from {why}"))
        .collect();
    warnings.extend(
        kept.err()
            .map(|error| leave_mark_without_disk(ExitMark::Off, root, &error)),
    );
    Ok(Stopped {
        interfaces,
        warnings,
    })
}

/// Whether the agent has carried out the detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentDetached {
    /// It has detached the guard, and ends.
    Yes,
    /// There is no agent, it hangs, or the detach failed.
    No,
}

/// Detaches the guard from every interface, with pins of any layout, and tries to leave a mark that ends an agent that
/// wakes up.
///
/// # Errors
/// A program is still on an interface, or the state of the interfaces cannot be read.
pub fn detach(root: &Path, state: &Path, agent: AgentDetached) -> Result<Stopped> {
    let is_held = pins::is_held(root);
    if agent == AgentDetached::No {
        leave_mark_for_agent(ExitMark::Detached, root);
    }
    let first = detach_all(root);
    let kept = if state.is_dir() {
        let ((), kept) = StateStore::open(state).update(|kept| kept.detached = true);
        kept
    } else {
        Ok(())
    };
    // An agent that woke up in between may have attached programs again before it read the state.
    let second = detach_all(root);
    let (first, second) = (first?, second?);
    ensure!(
        second.still_attached.is_empty(),
        "the program is still attached: {}",
        second.still_attached.join("; ")
    );
    require_nothing_judges(root, |_| true)?;
    let end = Instant::now() + ENDING;
    while pins::is_held(root) && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    if !pins::is_held(root) {
        // No agent is left that needs the mark.
        ExitMark::Detached.take(root);
        pins::remove_root(root);
    }
    let mut interfaces = first.interfaces;
    for name in second.interfaces {
        if !interfaces.contains(&name) {
            interfaces.push(name);
        }
    }
    let mut warnings = Vec::new();
    if !second.left.is_empty() {
        warnings.push(format!(
            "no packets are judged any more, but these pins could not be removed: {}",
            second.left.join("; ")
        ));
    }
    if let Err(error) = kept {
        warnings.push(match is_held {
            true => leave_mark_without_disk(ExitMark::Detached, root, &error),
            // No agent needs the mark.
            false => format!("the guard is detached, but that cannot be saved: {error}"),
        });
    }
    Ok(Stopped {
        interfaces,
        warnings,
    })
}

/// The program below these pins that lets everything pass.
fn passing_program(root: &Path) -> Option<u32> {
    let host = HostState::existing(root).ok().flatten()?;
    let about = host.about().ok()?;
    (about.mode == Mode::Off as u8).then_some(about.program)
}

/// Tests the interfaces themselves: a program may be pinned below another root, or a mount may hide its pins.
///
/// # Errors
/// A guard's program is still on an interface of this host.
fn require_nothing_judges(root: &Path, is_meant: impl Fn(u32) -> bool) -> Result<()> {
    let linked = linked_guards();
    let judging = interfaces_with_program(|program| linked.contains(&program) && is_meant(program));
    ensure!(
        judging.is_empty(),
        "packets are still judged: a guard's program is on {}, and no pin below {} holds it: give the right --pins, or \
         unmount what hides the pins; `bpftool link` lists the links, and `bpftool link detach id N` detaches one",
        judging.join(", "),
        root.display()
    );
    Ok(())
}

/// Leaves the mark of an exit before it is carried out, so that an agent that hangs puts no loaded program in force. If
/// the mark cannot be left, the agent may do so, and reverts it within a second after it wakes up.
fn leave_mark_for_agent(word: ExitMark, root: &Path) {
    if pins::is_held(root) {
        let _result = word.leave(root);
    }
}

/// Leaves the mark of an exit because the state could not be written: it needs no disk. Returns the warning.
fn leave_mark_without_disk(word: ExitMark, root: &Path, error: &StoreError) -> String {
    match word.leave(root) {
        Ok(()) => format!("done, but it will not survive a reboot: {error}"),
        Err(second) => {
            format!("done, but an agent that wakes up or starts will undo it: {error}; {second}")
        }
    }
}
