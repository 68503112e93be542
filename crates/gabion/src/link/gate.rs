//! How many strangers may knock, how often, and how often with a wrong secret.
//!
//! Whoever has not said who he is costs memory and, if he wants to encrypt, time. So there is a
//! bound on how many of those there are at once, and on how many come from one address in a time;
//! of IPv6 the first half of an address counts, which is what one network has.
//!
//! A rate is kept as the time up to which an address has used up what it may: it comes later by an
//! interval with each use, and may be ahead of now by a number of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::sync::Mutex;

/// Connections at once that have not said who they are, and of one address.
const STRANGERS_MAX: usize = 512;
const STRANGERS_OF_ONE_MAX: usize = 128;
/// Addresses that are remembered. Others share what one of them has.
const ADDRESSES_MAX: usize = 4096;

/// How often it is looked at most whose address can be forgotten.
const CLEARING: Duration = Duration::from_secs(1);

/// Connections from one address: all mounts of a machine at once, and then these.
const CONNECTIONS: Rate = Rate { interval: Duration::from_millis(20), burst: 256 };
/// Wrong secrets from one address.
const SECRETS: Rate = Rate { interval: Duration::from_secs(10), burst: 5 };

/// How often something may happen.
#[derive(Clone, Copy)]
struct Rate {
    interval: Duration,
    burst: u32,
}

/// Up to when all is used up.
#[derive(Clone, Copy)]
struct Used(Instant);

impl Used {
    fn is_allowed(self, rate: Rate, now: Instant) -> bool {
        self.0.saturating_duration_since(now) <= rate.interval * (rate.burst - 1)
    }

    fn use_up(&mut self, rate: Rate, now: Instant) {
        self.0 = self.0.max(now) + rate.interval;
    }
}

/// What came from an address.
struct Visitor {
    strangers: usize,
    connections: Used,
    secrets: Used,
}

/// Who may knock.
#[derive(Default)]
pub(super) struct Gate(Arc<Mutex<Visitors>>);

#[derive(Default)]
struct Visitors {
    strangers: usize,
    all: BTreeMap<IpAddr, Visitor>,
    /// When those were looked for last that can be forgotten.
    cleared: Option<Instant>,
}

/// Somebody who has not said who he is, until this is dropped.
pub(super) struct Stranger {
    gate: Arc<Mutex<Visitors>>,
    network: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let visitors = &mut *self.gate.lock();
        visitors.strangers -= 1;
        if let Some(visitor) = visitors.all.get_mut(&self.network) {
            visitor.strangers -= 1;
        }
    }
}

impl Gate {
    /// Whether a connection from `address` may say who it is.
    pub(super) fn enter(&self, address: IpAddr, now: Instant) -> Option<Stranger> {
        let visitors = &mut *self.0.lock();
        if visitors.strangers >= STRANGERS_MAX {
            return None;
        }
        let (network, visitor) = visitors.find(address, now);
        let is_allowed = visitor.strangers < STRANGERS_OF_ONE_MAX
            && visitor.connections.is_allowed(CONNECTIONS, now);
        if !is_allowed {
            return None;
        }
        visitor.connections.use_up(CONNECTIONS, now);
        visitor.strangers += 1;
        visitors.strangers += 1;
        Some(Stranger { gate: Arc::clone(&self.0), network })
    }

    /// Whether a secret from `address` is looked at.
    pub(super) fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        self.0.lock().find(address, now).1.secrets.is_allowed(SECRETS, now)
    }

    /// A secret from `address` was wrong.
    pub(super) fn was_wrong(&self, address: IpAddr, now: Instant) {
        self.0.lock().find(address, now).1.secrets.use_up(SECRETS, now);
    }
}

impl Visitors {
    /// What counts for `address`, and under which name.
    fn find(&mut self, address: IpAddr, now: Instant) -> (IpAddr, &mut Visitor) {
        let mut network = network_of(address);
        if self.all.len() >= ADDRESSES_MAX && !self.all.contains_key(&network) {
            let is_due = |cleared| now.saturating_duration_since(cleared) >= CLEARING;
            if self.cleared.is_none_or(is_due) {
                self.all.retain(|_, visitor| visitor.counts(now));
                self.cleared = Some(now);
            }
            if self.all.len() >= ADDRESSES_MAX {
                network = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let (connections, secrets) = (Used(now), Used(now));
        let nothing = Visitor { strangers: 0, connections, secrets };
        (network, self.all.entry(network).or_insert(nothing))
    }
}

impl Visitor {
    /// Whether it is more than nothing.
    fn counts(&self, now: Instant) -> bool {
        self.strangers > 0 || self.connections.0.max(self.secrets.0) > now
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_knocks_too_often_has_to_wait_and_others_do_not() {
        let (gate, now) = (Gate::default(), Instant::now());
        let one = address("10.0.0.1");
        for _ in 0..CONNECTIONS.burst {
            assert!(gate.enter(one, now).is_some());
        }
        assert!(gate.enter(one, now).is_none());
        assert!(gate.enter(address("::ffff:10.0.0.1"), now).is_none());
        assert!(gate.enter(address("10.0.0.2"), now).is_some());
        assert!(gate.enter(one, now + CONNECTIONS.interval).is_some());
        assert!(gate.enter(one, now + CONNECTIONS.interval).is_none());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let (gate, now) = (Gate::default(), Instant::now());
        for number in 0..SECRETS.burst {
            let one = address(&format!("fd00::{number}"));
            assert!(gate.may_try(one, now));
            gate.was_wrong(one, now);
        }
        assert!(!gate.may_try(address("fd00::ffff"), now));
        assert!(gate.may_try(address("fd00:0:0:1::1"), now));
        assert!(gate.may_try(address("fd00::1"), now + SECRETS.interval));
    }

    #[test]
    fn strangers_are_counted_until_they_are_known() {
        let (gate, now) = (Gate::default(), Instant::now());
        let from = |number: usize| address(&format!("10.0.0.{number}"));
        let several = STRANGERS_MAX / STRANGERS_OF_ONE_MAX;
        let mut inside = Vec::new();
        for number in 0..several {
            for _ in 0..STRANGERS_OF_ONE_MAX {
                inside.push(gate.enter(from(number), now).unwrap());
            }
            assert!(gate.enter(from(number), now).is_none());
        }
        assert!(gate.enter(from(several), now).is_none());
        inside.pop();
        assert!(gate.enter(from(several), now).is_some());
        inside.clear();
        assert!(gate.0.lock().all.values().all(|visitor| visitor.strangers == 0));
    }

    #[test]
    fn addresses_without_end_cost_no_memory_without_end() {
        let (gate, now) = (Gate::default(), Instant::now());
        for number in 0..2 * ADDRESSES_MAX as u32 {
            drop(gate.enter(IpAddr::V4(number.into()), now));
        }
        assert_eq!(gate.0.lock().all.len(), ADDRESSES_MAX + 1);
        let later = now + CLEARING;
        assert!(gate.enter(address("10.1.0.1"), later).is_some());
        // The new one, and what all shared who found no place.
        assert_eq!(gate.0.lock().all.len(), 2);
    }
}
