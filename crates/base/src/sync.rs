//! The locks of blocking engine code.
//!
//! Engine code takes its locks from here and nowhere else, so that a simulator which runs it in
//! coroutines can put yielding locks in their place. Today they are `parking_lot`'s: small, fair
//! enough that nobody starves, and free of poisoning (a panic in the engine ends the process).

pub use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard,
    RwLockWriteGuard,
};
