//! The lock between the emergency exits and the loop. An exit does not wait for a load that is under way, and no plan
//! that was made before the exit is put in force after it.
//!
//! This also holds for an exit without this agent, which may hang or be stopped in the middle of a load: such an exit
//! first leaves a mark ([`ExitMark`]) in the pins.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::{dataplane::pins::ExitMark, host::claim::WorkMark, state_store::ChangedMode};

/// Held while the kernel's attachments change, and never while a program is loaded.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The folder of the marks of exits without this agent.
    pins: Arc<Path>,
    inner: Arc<Mutex<GateState>>,
}

#[derive(Debug, Default)]
struct GateState {
    /// Counts the uses of the kill switch.
    epoch: u64,
    detached: bool,
    /// The last use of the kill switch, until the loop makes a plan with it.
    switched_off: Option<ChangedMode>,
    /// When the guard was last switched off without this agent.
    off_outside: Option<SystemTime>,
    /// Work marks: they show a starting agent that this one works.
    work: Vec<WorkMark>,
}

/// The number of uses of the kill switch before a plan was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

/// The right to change what is attached, until it is dropped.
pub struct Turn<'a>(#[expect(dead_code, reason = "held for its drop")] MutexGuard<'a, GateState>);

/// Why a plan must not be put in force any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overtaken {
    #[error("the guard has been detached, and this agent ends")]
    Detached,
    #[error("the guard was switched off before this change was in force")]
    SwitchedOff,
}

impl Gate {
    /// `pins`: the folder in which an exit without this agent leaves its mark.
    pub fn new(pins: &Path) -> Self {
        Self {
            pins: pins.into(),
            inner: Arc::default(),
        }
    }

    /// Begins a plan. Returns its epoch, and the use of the kill switch that no plan has taken into account. The plan
    /// must not be older than the kernel's state, which the kill switch has already changed.
    pub fn begin(&self) -> (Epoch, Option<ChangedMode>) {
        let mut inner = self.lock();
        (Epoch(inner.epoch), inner.switched_off.take())
    }

    /// Removes the mark of a kill switch without this agent. Returns whether it was there.
    pub fn take_off_mark(&self) -> bool {
        // The time is recorded before the mark is removed: `is_off_since` must see one of them.
        if let Some(left_at) = ExitMark::Off.left_at(&self.pins) {
            self.lock().off_outside = Some(left_at);
        }
        ExitMark::Off.take(&self.pins)
    }

    /// Whether the guard was switched off without this agent after `asked`, the time of a client's request: an older
    /// request must not undo it.
    pub fn is_off_since(&self, asked: SystemTime) -> bool {
        let left_at = ExitMark::Off.left_at(&self.pins);
        let taken_at = self.lock().off_outside;
        left_at.max(taken_at).is_some_and(|off| asked < off)
    }

    /// Whether an emergency exit came after `planned`.
    pub fn is_overtaken(&self, planned: Epoch) -> bool {
        self.enter(planned).is_err()
    }

    /// Whether the guard was taken off.
    pub fn is_detached(&self) -> bool {
        self.lock().detached
    }

    /// Waits for the right to change what is attached.
    ///
    /// # Errors
    /// An emergency exit came after `planned`, or one without this agent left a mark that is not taken in yet.
    pub fn enter(&self, planned: Epoch) -> Result<Turn<'_>, Overtaken> {
        let inner = self.lock();
        if inner.detached || ExitMark::Detached.is_left(&self.pins) {
            return Err(Overtaken::Detached);
        }
        if Epoch(inner.epoch) != planned || ExitMark::Off.is_left(&self.pins) {
            return Err(Overtaken::SwitchedOff);
        }
        Ok(Turn(inner))
    }

    /// Switches the guard off under the lock. Earlier plans are overtaken.
    pub fn switch_off<T>(&self, asked: ChangedMode, switch_off: impl FnOnce() -> T) -> T {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.switched_off = Some(asked);
        switch_off()
    }

    /// Detaches the guard under the lock. This agent attaches nothing afterwards, even if `detach` fails.
    pub fn detach<T>(&self, detach: impl FnOnce() -> T) -> T {
        let mut inner = self.lock();
        inner.detached = true;
        inner.work.clear();
        detach()
    }

    /// Holds the work marks of this agent until it is about to end.
    pub fn is_at_work(&self, work: impl Iterator<Item = WorkMark>) {
        self.lock().work.extend(work);
    }

    /// Removes the work marks: the agent ends after the current step of the loop.
    pub fn is_ending(&self) {
        self.lock().work.clear();
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use guard_common::reason::Mode;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn nothing_is_put_in_force_after_an_emergency_exit() {
        let pins = tempfile::tempdir().unwrap();
        let gate = Gate::new(pins.path());
        let (planned, off) = gate.begin();
        assert_eq!(off, None);
        drop(gate.enter(planned).unwrap());
        let asked = ChangedMode {
            mode: Mode::Off,
            since: Timestamp::UNIX_EPOCH,
            by: None,
            process: None,
            claimed_by: None,
        };
        gate.switch_off(asked.clone(), || ());
        assert_eq!(gate.enter(planned).err(), Some(Overtaken::SwitchedOff));
        let (planned, off) = gate.begin();
        assert_eq!(off, Some(asked), "the next plan has it");
        assert_eq!(gate.begin(), (planned, None));
        drop(gate.enter(planned).unwrap());
        for (word, overtaken) in [
            (ExitMark::Off, Overtaken::SwitchedOff),
            (ExitMark::Detached, Overtaken::Detached),
        ] {
            // The same as an exit creates below /sys/fs/bpf.
            let left = format!("{word:?}").to_lowercase();
            std::fs::create_dir(pins.path().join(left)).unwrap();
            assert_eq!(
                gate.enter(planned).err(),
                Some(overtaken),
                "without the agent"
            );
            assert!(word.take(pins.path()));
            drop(gate.enter(planned).unwrap());
        }
        gate.detach(|| ());
        assert!(gate.is_detached());
        assert_eq!(gate.enter(planned).err(), Some(Overtaken::Detached));
    }
}
