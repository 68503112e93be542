//! Who decides when a thread runs, if it is not the system.

use std::cell::OnceCell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Lets one of its threads run at a time. Every method is called by the thread that runs, and
/// returns when it is that thread's turn again.
pub trait Scheduler: Send + Sync {
    /// Others may run first.
    fn pause(&self);

    /// Somebody has what the thread needs: others have to run before it looks again.
    fn contended(&self);

    /// Waits until somebody wakes who waits at `place`, or for `patience`. Whether somebody did.
    fn wait(&self, place: usize, patience: Option<Duration>) -> bool;

    /// The time, from any moment on.
    fn now(&self) -> Duration;

    /// Wakes one who waits at `place`.
    fn wake_one(&self, place: usize);

    /// Wakes all who wait at `place`.
    fn wake_all(&self, place: usize);

    /// Starts a thread that is enrolled with the same scheduler.
    fn spawn(&self, name: &str, run: Box<dyn FnOnce() + Send>);
}

/// Whether any thread of this process was ever enrolled: in a product, never.
static IS_ANY: AtomicBool = AtomicBool::new(false);

thread_local! {
    static OWN: OnceCell<Arc<dyn Scheduler>> = const { OnceCell::new() };
}

/// From now on this thread waits for `scheduler` wherever it would wait for others. Panics if it
/// is enrolled already.
pub fn enroll(scheduler: Arc<dyn Scheduler>) {
    IS_ANY.store(true, Ordering::Relaxed);
    OWN.with(|own| assert!(own.set(scheduler).is_ok(), "a thread has one scheduler"));
}

/// Does `run` with this thread's scheduler, if it has one.
#[inline]
pub(super) fn with_own<T>(run: impl FnOnce(&dyn Scheduler) -> T) -> Option<T> {
    if !IS_ANY.load(Ordering::Relaxed) {
        return None;
    }
    with_enrolled(run)
}

#[cold]
fn with_enrolled<T>(run: impl FnOnce(&dyn Scheduler) -> T) -> Option<T> {
    // A thread that ends has none any more.
    OWN.try_with(|own| own.get().map(|scheduler| run(&**scheduler))).ok().flatten()
}

/// If this thread has a scheduler: `attempt`, again and again until it succeeds.
#[inline]
pub(super) fn until_there<G>(mut attempt: impl FnMut() -> Option<G>) -> Option<G> {
    with_own(|scheduler| {
        scheduler.pause();
        loop {
            if let Some(guard) = attempt() {
                return guard;
            }
            scheduler.contended();
        }
    })
}

/// The time, counted from some moment before: what a scheduler says, or else the system.
pub fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    with_own(|scheduler| scheduler.now())
        .unwrap_or_else(|| START.get_or_init(Instant::now).elapsed())
}

/// Does nothing for a while.
pub fn sleep(patience: Duration) {
    // Nobody is woken where no address is.
    if with_own(|scheduler| scheduler.wait(0, Some(patience))).is_none() {
        thread::sleep(patience);
    }
}

/// Starts a thread that nobody waits for.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut run = Some(run);
    let is_enrolled = with_own(|scheduler| {
        let run = run.take().expect("it was not started yet");
        scheduler.spawn(name, Box::new(run));
    });
    match (is_enrolled, run) {
        (None, Some(run)) => thread::Builder::new().name(name.to_owned()).spawn(run).map(drop),
        _ => Ok(()),
    }
}
