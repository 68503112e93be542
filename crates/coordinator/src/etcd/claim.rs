//! A claim as a key that etcd removes when its lease ends.
//!
//! 1. A lease is granted, and a transaction makes the key with it unless there is one.
//! 2. A thread confirms the lease three times in its length.
//! 3. The claim counts as held until a lease's length, less a margin for clocks that run apart,
//!    after the *sending* of the last confirmation that etcd has answered. Etcd counts from its
//!    arrival, and so lets others in only after the holder knows that it has lost the claim.
//! 4. A claim that was lost once stays lost, even if etcd would still confirm the lease.
//!
//! Time is measured by the clock that goes on while the machine is suspended.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};
use gabion_block::coordinator::{Claim, CoordinatorError};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::Patience;
use super::gateway::{Gateway, decoded, encoded, number};
use crate::{claimed, strange, unavailable};

const CLAIMS: &str = "/gabion/claims/";
/// The margin for clocks that run apart, as a part of the lease.
const MARGIN_DIVISOR: u32 = 10;
/// The pause after a confirmation that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How long letting go may take. If it fails, the lease ends by itself.
const RELEASE: Duration = Duration::from_secs(2);

/// The key of a volume's claim.
pub(super) fn key(volume: &str) -> String {
    encoded(&format!("{CLAIMS}{volume}"))
}

/// Who holds the claim that was read, in its own words.
pub(super) fn holder(range: &Value) -> Option<String> {
    let claim = &range["kvs"][0];
    if claim.is_null() {
        return None;
    }
    Some(decoded(&claim["value"]).unwrap_or_else(|| "somebody".to_owned()))
}

/// A claim with the thread that keeps it.
pub(super) struct LeaseClaim {
    shared: Arc<Shared>,
}

struct Shared {
    gateway: Arc<Gateway>,
    lease: String,
    length: Duration,
    state: Mutex<State>,
    ended: Condvar,
}

enum State {
    /// Held, if this time since boot is not over.
    HeldUntil(Duration),
    Lost,
    Released,
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is negative: the clock counts from zero.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl LeaseClaim {
    pub(super) fn take(
        gateway: &Arc<Gateway>,
        patience: Patience,
        volume: &str,
        holder_text: &str,
    ) -> Result<Self, CoordinatorError> {
        let end = Instant::now() + patience.call;
        let failed = |reason: String| unavailable(&gateway.name, reason);
        let sent = since_boot();
        let grant = json!({ "TTL": patience.lease_seconds.to_string() });
        let granted = gateway.ask("lease/grant", &grant, end).map_err(failed)?.value;
        let no_lease = || strange(&gateway.name, volume, "a lease without a number".to_owned());
        let lease = granted["ID"].as_str().ok_or_else(no_lease)?.to_owned();
        let length = number(&granted["TTL"]).ok_or_else(no_lease)?;
        let length = Duration::from_secs(length.min(patience.lease_seconds).max(1));
        let shared = Arc::new(Shared {
            gateway: Arc::clone(gateway),
            lease,
            length,
            state: Mutex::new(State::HeldUntil(sent + length - length / MARGIN_DIVISOR)),
            ended: Condvar::new(),
        });
        // From here on dropping it gives the lease back.
        let claim = Self { shared: Arc::clone(&shared) };
        let key = key(volume);
        let put = json!({ "key": key, "value": encoded(holder_text), "lease": shared.lease });
        let transaction = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL",
                          "create_revision": "0" }],
            "success": [{ "request_put": put }],
            "failure": [{ "request_range": { "key": key } }],
        });
        let answer = gateway.ask("kv/txn", &transaction, end).map_err(failed)?.value;
        let found = &answer["responses"][0]["response_range"];
        // Made by a try of ours whose answer was lost?
        let is_ours = found["kvs"][0]["lease"].as_str() == Some(&*shared.lease);
        if answer["succeeded"] != true && !is_ours {
            let holder = holder(found).unwrap_or_else(|| "somebody".to_owned());
            return Err(claimed(volume, holder));
        }
        thread::Builder::new()
            .name("claim".to_owned())
            .spawn(move || shared.keep())
            .map_err(|error| failed(error.to_string()))?;
        Ok(claim)
    }
}

impl Shared {
    /// Whether it is held now; finds out that it is lost.
    fn look(&self, state: &mut State) -> bool {
        match state {
            State::HeldUntil(end) if since_boot() < *end => true,
            State::HeldUntil(_) => {
                *state = State::Lost;
                false
            }
            State::Lost | State::Released => false,
        }
    }

    /// Confirms the lease until the claim ends.
    fn keep(&self) {
        let mut pause = self.length / 3;
        loop {
            {
                let mut state = self.state.lock();
                if self.look(&mut state) {
                    self.ended.wait_for(&mut state, pause);
                }
                if !self.look(&mut state) {
                    return;
                }
            }
            let sent = since_boot();
            let answer = self.gateway.ask(
                "lease/keepalive",
                &json!({ "ID": self.lease }),
                Instant::now() + self.length / 3,
            );
            let Ok(answer) = answer else {
                pause = PAUSE.min(self.length / 3);
                continue;
            };
            let mut state = self.state.lock();
            if !self.look(&mut state) {
                return;
            }
            // A lease that has ended has no time to live.
            if number(&answer.value["result"]["TTL"]).unwrap_or(0) == 0 {
                *state = State::Lost;
                return;
            }
            *state = State::HeldUntil(sent + self.length - self.length / MARGIN_DIVISOR);
            pause = self.length / 3;
        }
    }
}

impl Claim for LeaseClaim {
    fn is_held(&self) -> bool {
        let mut state = self.shared.state.lock();
        self.shared.look(&mut state)
    }
}

impl Drop for LeaseClaim {
    fn drop(&mut self) {
        let was_held = {
            let mut state = self.shared.state.lock();
            let was_held = self.shared.look(&mut state);
            *state = State::Released;
            was_held
        };
        self.shared.ended.notify_all();
        if was_held {
            let request = json!({ "ID": self.shared.lease });
            let end = Instant::now() + RELEASE;
            // If it fails, the lease ends by itself.
            let _ = self.shared.gateway.ask("lease/revoke", &request, end);
        }
    }
}
