//! What is known and can be done without an agent, from the pins alone: whether the kernel goes on, what it
//! has counted, and how to stop it.

use std::path::Path;

use anyhow::{Context as _, Result};
use guard_common::{exposure::Scope, layout::About, reason::Mode};
use jiff::{SignedDuration, Timestamp};

use crate::{
    api::{
        AgentStatus, Counter, InterfaceStatus, PolicyStatus, Status, Talker, TrialStatus,
        actor::Actor, to_counter, to_talker,
    },
    dataplane::{
        State, StateError, detach as detach_pins, pass_everything,
        pins::{self, Pins},
        text_of,
    },
    host::{self, Netlink},
    kept::{ChangedMode, KeepError, Kept, StateFile},
    policy::Timebase,
};

/// What `guard status` says if the agent does not answer; `trouble` is how. `None`: nothing is pinned.
pub async fn status(root: &Path, trouble: String) -> Result<Option<Status>> {
    let netlink = Netlink::connect().context("route netlink cannot be reached")?;
    let now = host::timebase().context("the clocks cannot be read")?;
    let mut interfaces = Vec::new();
    let mut newest: Option<About> = None;
    for pins in Pins::existing(root)? {
        let Some(state) = State::existing(&pins)? else {
            continue;
        };
        let about = state.about()?;
        let found = netlink.xdp(pins.interface()).await.unwrap_or_default();
        interfaces.push(InterfaceStatus {
            name: pins.interface().to_owned(),
            // An agent that ended just after a swap has not said so.
            attached: found.is_some_and(|found| {
                [about.program, about.next_program].contains(&found.program_id)
            }),
            xdp_mode: if about.native == 1 {
                "native"
            } else {
                "generic"
            }
            .to_owned(),
            program_id: about.program,
            generation: about.generation,
            trouble: None,
        });
        if newest.is_none_or(|newest| newest.seen_ns < about.seen_ns) {
            newest = Some(about);
        }
    }
    Ok(newest.map(|about| describe(&about, now, interfaces, trouble)))
}

fn describe(
    about: &About,
    now: Timebase,
    interfaces: Vec<InterfaceStatus>,
    trouble: String,
) -> Status {
    let trial_is_over = about.trial_until != 0 && about.trial_until <= now.boot_ns;
    let mode = Mode::from_raw(if trial_is_over {
        about.mode_before
    } else {
        about.mode
    });
    let path = text_of(&about.policy);
    let mut not_enforcing_because = Vec::new();
    if mode == Mode::Enforce {
        let detached = interfaces.iter().filter(|interface| !interface.attached);
        not_enforcing_because.extend(
            detached.map(|interface| format!("the program is not attached to {}", interface.name)),
        );
    }
    Status {
        version: text_of(&about.version),
        mode: mode.name().to_owned(),
        scope: Scope::from_raw(about.scope).name().to_owned(),
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
        not_kept: None,
    }
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
    of_every_interface(root, |interface, state| {
        let rows = state.counters()?.into_iter();
        Ok(rows.map(|row| to_counter(interface, row)).collect())
    })
}

/// The sources that sent most, of every interface, without the policy's names for them. `None`: nothing
/// is pinned.
pub fn talkers(root: &Path) -> Result<Option<Vec<Talker>>> {
    of_every_interface(root, |interface, state| {
        let rows = state.talkers()?.into_iter();
        Ok(rows.map(|row| to_talker(interface, row)).collect())
    })
}

fn of_every_interface<T>(
    root: &Path,
    read: impl Fn(&str, &State) -> Result<Vec<T>, StateError>,
) -> Result<Option<Vec<T>>> {
    let mut found = None;
    for pins in Pins::existing(root)? {
        if let Some(state) = State::existing(&pins)? {
            let rows = read(pins.interface(), &state)?;
            found.get_or_insert_with(Vec::new).extend(rows);
        }
    }
    Ok(found)
}

/// Lets everything pass, and keeps it so when an agent comes back. Returns the interfaces.
pub fn switch_off(root: &Path, state: &Path, claimed_by: Option<String>) -> Result<Vec<String>> {
    let tick_ns = host::tick_ns().context("the kernel's tick cannot be read")?;
    let by = Actor::own();
    // The state first: an agent that wakes up must not undo it.
    let kept = change_state(state, |kept| {
        kept.modes.host = Some(ChangedMode {
            mode: Mode::Off,
            since: Timestamp::now(),
            claimed_by: claimed_by.filter(|claimed| *claimed != by.user),
            by: Some(by.user),
            process: by.process,
        });
    });
    let mut switched = Vec::new();
    for pins in Pins::existing(root)? {
        if pass_everything(&pins, tick_ns)? {
            switched.push(pins.interface().to_owned());
        }
    }
    // Said last: that nothing is blocked is worth more than that it is kept.
    kept?;
    Ok(switched)
}

/// Takes the guard off every interface, whatever layout its pins have, and tells an agent that wakes up to
/// end. Returns the interfaces.
pub fn detach(root: &Path, state: &Path) -> Result<Vec<String>> {
    let kept = if state.is_dir() {
        change_state(state, |kept| kept.detached = true)
    } else {
        Ok(())
    };
    let mut detached = Vec::new();
    for pins in pins::all(root)? {
        detach_pins(&pins)?;
        detached.push(pins.interface().to_owned());
    }
    kept?;
    Ok(detached)
}

fn change_state(folder: &Path, change: impl FnOnce(&mut Kept)) -> Result<(), KeepError> {
    let mut file = StateFile::open(folder)?;
    change(&mut file.kept);
    file.save()
}
