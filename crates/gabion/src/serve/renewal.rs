//! Mounting a filesystem anew, so that its kernel collects no writes any more.
//!
//! A kernel says at the beginning of a mount whether it collects writes, and stays with it. Then
//! programs hear of a quota that is used up when their bytes are handed over, and not when they
//! write. So with the first quota the mount is exchanged for another one as soon as nobody uses it:
//!
//! ```text
//! who set the quota                                     who runs the daemon
//!   nobody uses the mount: a curtain beneath it
//!   the mount is unmounted ---------------------------> its session ends, all is written
//!                                                       opens the filesystem again, mounts it
//!   is told <------------------------------------------ beneath the curtain, and raises that
//! ```
//!
//! If somebody uses it, a thread looks again from time to time. If somebody else unmounts it
//! meanwhile, it stays unmounted.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex, MutexGuard};
use gabion_fuse::mount::{Expiry, Unmount, expire, unmount};
use gabion_fuse::mountinfo::{self, Mount};

use super::Plan;
use crate::failure::chain;
use crate::mount::Curtain;
use crate::mounts;

/// How long whoever set a quota waits for the other mount.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether somebody uses the mount before that is believed: most uses are
/// over in no time.
const GLANCES: usize = 20;
/// Until it is looked at again.
const GLANCE: Duration = Duration::from_millis(10);
/// Until what is in use is looked at again, at first and at most.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is mounted anew.
    Done,
    /// These use it, as far as can be seen. It will be done when nobody does.
    InUse(Vec<String>),
    /// It cannot be done here.
    Impossible,
}

/// The exchange of one mount for another one.
pub(super) struct Renewal {
    mountpoint: PathBuf,
    /// What people call the filesystem.
    name: String,
    /// The device number of the mount.
    device: (u32, u32),
    state: Mutex<State>,
    changed: Condvar,
}

enum State {
    /// Nobody has asked for it.
    Resting,
    /// A thread looks whether somebody uses the mount.
    Looking,
    /// Somebody does, and the thread looks again later.
    InUse(Vec<String>),
    /// The thread unmounts it.
    Unmounting,
    /// It is unmounted, and covered.
    Unmounted(Curtain),
    /// The filesystem is about to be mounted again.
    Mounting,
    /// It is.
    Done,
    /// It was in vain, or nobody needs it any more.
    Over,
}

impl Renewal {
    /// Of the mount with this device number.
    pub(super) fn new(plan: &Plan, device: (u32, u32)) -> Arc<Self> {
        Arc::new(Self {
            mountpoint: plan.mountpoint.clone(),
            name: plan.target.name(),
            device,
            state: Mutex::new(State::Resting),
            changed: Condvar::new(),
        })
    }

    /// Has it done now, or once nobody uses the mount.
    pub(super) fn ask(self: &Arc<Self>) -> Outcome {
        let mut state = self.state.lock();
        match *state {
            State::Resting => {
                let renewal = Arc::clone(self);
                let thread = thread::Builder::new().name("renewal".to_owned());
                if thread.spawn(move || renewal.run()).is_err() {
                    return Outcome::Impossible;
                }
                *state = State::Looking;
            }
            State::InUse(_) => {
                *state = State::Looking;
                self.changed.notify_all();
            }
            _ => {}
        }
        let is_open = |state: &State| !matches!(state, State::InUse(_) | State::Done | State::Over);
        self.wait_while(&mut state, PATIENCE, is_open);
        match &*state {
            State::Done => Outcome::Done,
            State::InUse(users) => Outcome::InUse(users.clone()),
            State::Over => Outcome::Impossible,
            // Somebody has come to the mount at the last moment.
            _ => Outcome::InUse(Vec::new()),
        }
    }

    fn wait_while(
        &self,
        state: &mut MutexGuard<'_, State>,
        patience: Duration,
        is_so: impl Fn(&State) -> bool,
    ) {
        let end = Instant::now() + patience;
        while is_so(state) && !self.changed.wait_until(state, end).timed_out() {}
    }

    /// The life of the thread.
    fn run(&self) {
        let mut pause = PAUSE_MIN;
        while let Some(users) = self.attempt() {
            let mut state = self.state.lock();
            if let State::Over = *state {
                return;
            }
            *state = State::InUse(users);
            self.changed.notify_all();
            self.wait_while(&mut state, pause, |state| matches!(state, State::InUse(_)));
            match *state {
                State::InUse(_) => pause = (pause * 2).min(PAUSE_MAX),
                State::Looking => {}
                _ => return,
            }
        }
    }

    /// Who uses the mount; nothing if the matter is settled.
    fn attempt(&self) -> Option<Vec<String>> {
        if let Some(user) = self.user_elsewhere() {
            return Some(vec![user]);
        }
        let is_in_use = |expiry: &Result<Expiry, _>| matches!(expiry, Ok(Expiry::InUse));
        let mut expiry = expire(&self.mountpoint);
        for _ in 1..GLANCES {
            if is_in_use(&expiry) {
                thread::sleep(GLANCE);
                expiry = expire(&self.mountpoint);
            }
        }
        match expiry {
            Ok(Expiry::InUse) => return Some(mounts::users(&self.mountpoint)),
            Ok(Expiry::Marked) => {}
            // Somebody else has asked, too, and so has unmounted it.
            Ok(Expiry::Unmounted) | Err(_) => {
                self.settle(State::Over);
                return None;
            }
        }
        match Curtain::beneath(&self.mountpoint, &self.name) {
            Ok(curtain) => {
                self.settle(State::Unmounting);
                let is_ours = self.unmount();
                self.settle(if is_ours { State::Unmounted(curtain) } else { State::Over });
            }
            Err(error) => {
                // It is not looked at again: it is marked, and would be unmounted.
                eprintln!("gabion: {}: {}", self.mountpoint.display(), chain(&error));
                self.settle(State::Over);
            }
        }
        None
    }

    fn settle(&self, state: State) {
        let before = std::mem::replace(&mut *self.state.lock(), state);
        self.changed.notify_all();
        drop(before);
    }

    /// Who has it at another place, too, or has covered it.
    fn user_elsewhere(&self) -> Option<String> {
        let is_other = |mount: &&Mount| self.is_it(mount) && mount.mountpoint != self.mountpoint;
        let here = mountinfo::mounts().unwrap_or_default();
        if let Some(other) = here.iter().find(is_other) {
            return Some(format!("the mount at {}", other.mountpoint.display()));
        }
        if self.is_uppermost() {
            return mounts::user_of_device_elsewhere(self.device);
        }
        Some("what is mounted over it".to_owned())
    }

    fn is_it(&self, mount: &Mount) -> bool {
        mount.device == self.device
    }

    fn is_uppermost(&self) -> bool {
        let uppermost = mounts::at(&self.mountpoint);
        uppermost.is_ok_and(|mount| mount.is_some_and(|mount| self.is_it(&mount)))
    }

    /// Unmounts it; false if somebody else does.
    fn unmount(&self) -> bool {
        let mut pause = GLANCE;
        while self.is_uppermost() {
            if unmount(&self.mountpoint, Unmount::Plain).is_ok() {
                return true;
            }
            // Somebody has come since it was asked who uses it.
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        false
    }

    /// What covers the place of the mount, which has ended, if it is to be mounted anew.
    pub(super) fn take(&self) -> Option<Curtain> {
        let mut state = self.state.lock();
        while let State::Unmounting = *state {
            self.changed.wait(&mut state);
        }
        match std::mem::replace(&mut *state, State::Over) {
            State::Unmounted(curtain) => {
                *state = State::Mounting;
                Some(curtain)
            }
            _ => None,
        }
    }

    /// Tells those who wait that the filesystem is mounted anew.
    pub(super) fn done(&self) {
        self.settle(State::Done);
    }

    /// The same if it is not.
    pub(super) fn over(&self) {
        self.settle(State::Over);
    }
}
