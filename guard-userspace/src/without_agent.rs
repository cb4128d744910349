//! What is known and can be done without an agent, from the pins alone: whether the kernel goes on, what it
//! has counted, and how to stop it.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_api::{AgentStatus, Counter, InterfaceStatus, PolicyStatus, Status, Talker, TrialStatus};
use guard_common::{exposure::Scope, layout::About, reason::Mode};
use jiff::{SignedDuration, Timestamp};

use crate::{
    agent::still_judging,
    counted::{of_every_interface, to_counter, to_talker},
    dataplane::{
        HostState, InterfaceState, Passing, detach_all, linked_guards, pass_everything_everywhere,
        pins::{self, Pins, Word},
        text_of,
    },
    host::{self, read},
    operator,
    policy::Timebase,
    state_store::{ChangedMode, StateStore, StoreError},
};

/// How long an agent that was told to end may take, until it counts as one that hangs.
const ENDING: Duration = Duration::from_secs(2);

/// How often the kernel is asked again that seems to have taken a program off.
const LOOKS: usize = 3;

/// The obstacle in scope `containers`: only an agent closes what a container publishes after it was killed.
const UNFOLLOWED: &str =
    "no agent follows the containers: a port that a container publishes without one is open";

/// What `guard status` says if the agent does not answer; `trouble` is how. `None`: nothing is pinned.
pub fn status(root: &Path, trouble: String) -> Result<Option<Status>> {
    let is_whole = |status: &Status| status.interfaces.iter().all(|one| one.attached);
    for _ in 1..LOOKS {
        // An agent that is slow and not dead may swap programs between two reads of one look.
        match look(root, trouble.clone())? {
            Some(status) if !is_whole(&status) => {}
            status => return Ok(status),
        }
    }
    look(root, trouble)
}

fn look(root: &Path, trouble: String) -> Result<Option<Status>> {
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
            // An agent that ended just after a swap has not said so.
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
                "only the policy on trial guards it, and the trial is over: its packets pass and are not counted"
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
    let scope = Scope::from_raw(about.scope);
    let path = text_of(&about.policy);
    let mut not_enforcing_because = Vec::new();
    if mode == Mode::Enforce {
        let detached = interfaces.iter().filter(|interface| !interface.attached);
        not_enforcing_because.extend(
            detached.map(|interface| format!("the program is not attached to {}", interface.name)),
        );
        // Scope `host` closes every port that no service lists, also one that a container opens later.
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
            pid: Some(about.agent),
            last_seen: Some(at(about.seen_ns, now)),
            trouble: Some(trouble),
        },
        interfaces,
        policy: PolicyStatus {
            path: path.clone(),
            sha256: base16ct::lower::encode_string(&about.sha256),
            loaded_at: Timestamp::from_millisecond(about.loaded_ms).unwrap_or(now.world),
            services: about.services as usize,
            stale: trial_is_over.then(|| {
                "its trial is over, and the kernel has gone back to the policy before it".to_owned()
            }),
        },
        modes: Vec::new(),
        trial: (about.trial_until != 0 && !trial_is_over).then(|| TrialStatus {
            path,
            until: at(about.trial_until, now),
            back_to: "the policy before it".to_owned(),
            by: None,
            process: None,
        }),
        docker: None,
        warnings: Vec::new(),
        not_kept: None,
    }
}

/// Whether the kernel closes what was known when the agent ended, and only what containers publish without it
/// may be open.
pub fn lacks_agent_alone(status: &Status) -> bool {
    matches!(&status.not_enforcing_because[..], [why] if why == UNFOLLOWED)
}

/// A moment of CLOCK_BOOTTIME on the world's clock.
fn at(boot_ns: u64, now: Timebase) -> Timestamp {
    let ahead = i128::from(boot_ns) - i128::from(now.boot_ns);
    let ahead = i64::try_from(ahead).unwrap_or_default();
    let moment = now.world.checked_add(SignedDuration::from_nanos(ahead));
    moment.unwrap_or(now.world)
}

/// What the kernel counted, on every interface. `None`: nothing is pinned.
pub fn counters(root: &Path) -> Result<Option<Vec<Counter>>> {
    let rows = of_every_interface(root, names(root)?, |interface, tables, names| {
        let rows = tables.counters(names)?.into_iter();
        Ok(rows.map(|row| to_counter(interface, row)).collect())
    });
    Ok(rows?)
}

/// The sources that sent most, of every interface, without the policy's names for them. `None`: nothing
/// is pinned.
pub fn talkers(root: &Path) -> Result<Option<Vec<Talker>>> {
    let rows = of_every_interface(root, names(root)?, |interface, tables, names| {
        let rows = tables.talkers(names)?.into_iter();
        Ok(rows.map(|row| to_talker(interface, row)).collect())
    });
    Ok(rows?)
}

/// The pins of interfaces, and their names: without those of today, those that were attached.
fn names(root: &Path) -> Result<impl Iterator<Item = (Pins, String)>> {
    let links = read::links().unwrap_or_default();
    let existing = Pins::existing(root)?.into_iter();
    Ok(existing.map(move |pins| {
        let pins = pins.called(|index| Some(links.get(&index)?.name.clone()));
        let name = pins.interface().to_owned();
        (pins, name)
    }))
}

/// What was done, and what could not be.
#[derive(Clone, Debug, Default)]
pub struct Stopped {
    /// The interfaces.
    pub interfaces: Vec<String>,
    /// What is not as it should be, though everything passes.
    pub warnings: Vec<String>,
}

/// Lets everything pass, and then keeps it so for an agent that comes back, if it can. `claimed_by`: who asks, by
/// their own account.
///
/// # Errors
/// Packets are still judged on an interface, or whether they are cannot be told.
pub fn switch_off(root: &Path, state: &Path, claimed_by: Option<String>) -> Result<Stopped> {
    let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
    warn_agent(Word::Off, root);
    let passing = pass_everything_everywhere(root, tick_ns);
    let by = operator::doer();
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
        .map(|why| format!("no program that lets everything pass could be put in place, so it was taken off {why}"))
        .collect();
    warnings.extend(kept.err().map(|error| leave_word(Word::Off, root, &error)));
    Ok(Stopped {
        interfaces,
        warnings,
    })
}

/// What the agent knows of its own detaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Informed {
    /// It has taken the guard off, and ends.
    Yes,
    /// There is none, it hangs, or it could not do it.
    No,
}

/// Takes the guard off every interface, whatever layout its pins have, and tells an agent that wakes up to
/// end, if it can.
///
/// # Errors
/// A program is still on an interface, or whether one is cannot be told.
pub fn detach(root: &Path, state: &Path, agent: Informed) -> Result<Stopped> {
    let is_held = pins::is_held(root);
    if agent == Informed::No {
        warn_agent(Word::Detached, root);
    }
    let first = detach_all(root);
    let kept = if state.is_dir() {
        let ((), kept) = StateStore::open(state).update(|kept| kept.detached = true);
        kept
    } else {
        Ok(())
    };
    // An agent that woke up in between may have put back what it was not yet told to leave.
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
        // No agent is left to tell.
        Word::Detached.take(root);
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
            "nothing is judged any more, but this is left below the pins: {}",
            second.left.join("; ")
        ));
    }
    if let Err(error) = kept {
        warnings.push(match is_held {
            true => leave_word(Word::Detached, root, &error),
            // Nobody has to know.
            false => format!("the guard is off, which is not kept: {error}"),
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

/// What the pins do not show is not off: they may be others', or something may be mounted over them.
///
/// # Errors
/// A guard's program is on an interface of this host all the same.
fn require_nothing_judges(root: &Path, is_meant: impl Fn(u32) -> bool) -> Result<()> {
    let linked = linked_guards();
    let judging = still_judging(|program| linked.contains(&program) && is_meant(program));
    ensure!(
        judging.is_empty(),
        "packets are still judged: a guard's program is on {}, and no pin below {} holds it: name its --pins, or look \
         for what is mounted over them; `bpftool link` lists the links, and `bpftool link detach id N` takes one off",
        judging.join(", "),
        root.display()
    );
    Ok(())
}

/// Keeps an agent that hangs from putting in force what it was loading, from before the exit on. Failing that, the
/// agent undoes it within a second of waking up.
fn warn_agent(word: Word, root: &Path) {
    if pins::is_held(root) {
        let _result = word.leave(root);
    }
}

/// Tells an agent that wakes up or starts, without the disk. Returns what is to be told of it.
fn leave_word(word: Word, root: &Path, error: &StoreError) -> String {
    match word.leave(root) {
        Ok(()) => format!("done, but not kept over a reboot: {error}"),
        Err(second) => {
            format!(
                "done, but an agent that wakes up or starts does not know of it: {error}; {second}"
            )
        }
    }
}
