//! Records in etcd, for volumes that more than one machine can open.
//!
//! ```text
//! /gabion/volumes/NAME    the record; its revision is the key's mod_revision
//! /gabion/claims/NAME     who holds the claim; the key goes with the holder's lease
//! /gabion/notes/NAME      a note
//! ```
//!
//! - Spoken is etcd's own JSON gateway over HTTP or HTTPS (etcd 3.4 and later): a client of the
//!   gRPC interface needs a protobuf compiler to be built and an async runtime to be run.
//! - Several endpoints are tried in turn, in rounds, until the deadline of the call is over: while
//!   etcd elects a leader or is restarted, a call takes longer instead of failing.
//! - A transaction may have happened although its answer was lost. It is tried again, and if it
//!   then fails, what is there now decides: our own text is a success, any other a conflict.
//! - Reads go through etcd's consensus (they are not `serializable`), so that each sees every
//!   replacement that was acknowledged before.
//!
//! Without `etcds://` and a password whoever reaches etcd can change records, so that it belongs
//! into a network that can be trusted. Deliberately absent: users by their certificates, which etcd
//! does not have at its JSON gateway.

mod address;
mod claim;
mod gateway;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_block::coordinator::{Claim, Coordinator, CoordinatorError, Revision, Stored};
use serde_json::{Value, json};

use crate::{check_name, check_record, conflict, strange, unavailable};
use gateway::{Answer, Gateway, decoded, encoded, number};

const VOLUMES: &str = "/gabion/volumes/";
/// The first key behind all that begin with [`VOLUMES`].
const VOLUMES_END: &str = "/gabion/volumes0";
const NOTES: &str = "/gabion/notes/";
/// The longest time that a change is waited for without asking again.
const WATCH_MAX: Duration = Duration::from_secs(5);
/// The pause after a wait that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// How long things take at most.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A call.
    pub call: Duration,
    /// A claim whose holder is silent, in seconds; etcd's least is 2.
    pub lease_seconds: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { call: Duration::from_secs(5), lease_seconds: 10 }
    }
}

/// Records in etcd.
#[derive(Debug)]
pub struct Etcd {
    gateway: Arc<Gateway>,
    patience: Patience,
}

/// A key as it is kept.
struct Kept {
    stored: Option<Stored>,
    /// etcd's revision at the time of the reading.
    seen: u64,
}

impl Etcd {
    /// Asks etcd at `url`, `etcd://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]]...`, or `etcds://`
    /// with encryption; says what is wrong with that text, or with the files that it names.
    pub fn new(url: &str, patience: Patience) -> Result<Self, String> {
        let gateway = Arc::new(Gateway::new(url)?);
        Ok(Self { gateway, patience })
    }

    fn ask(&self, path: &str, request: &Value) -> Result<Answer, CoordinatorError> {
        let answer = self.gateway.ask(path, request, Instant::now() + self.patience.call);
        answer.map_err(|reason| unavailable(&self.gateway.name, reason))
    }

    /// What is kept under a name, among records or notes.
    fn kept(&self, among: &str, volume: &str) -> Result<Kept, CoordinatorError> {
        check_name(&self.gateway.name, volume)?;
        let answer = self.ask("kv/range", &json!({ "key": key(among, volume) }))?.value;
        let strange = |reason: &str| strange(&self.gateway.name, volume, reason.to_owned());
        let seen = number(&answer["header"]["revision"]);
        let seen = seen.ok_or_else(|| strange("an answer without a revision"))?;
        let stored = stored(&answer).map_err(strange)?;
        Ok(Kept { stored, seen })
    }

    /// Puts a text under a name whose text has the revision that is expected.
    fn put(
        &self,
        among: &str,
        volume: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        check_name(&self.gateway.name, volume)?;
        check_record(&self.gateway.name, volume, text)?;
        let put = json!({ "key": key(among, volume), "value": encoded(text) });
        let put = json!({ "request_put": put });
        match self.transact(&key(among, volume), volume, expected, &put)? {
            Transacted::Done(revision) => Ok(revision),
            Transacted::Unclear(Some(now)) if now.text == text && now.revision != expected => {
                Ok(now.revision)
            }
            Transacted::Unclear(_) | Transacted::Refused => Err(conflict(volume)),
        }
    }

    /// Does `change` if what is at `key` has the revision that is expected. Otherwise reads it.
    fn transact(
        &self,
        key: &str,
        volume: &str,
        expected: Revision,
        change: &Value,
    ) -> Result<Transacted, CoordinatorError> {
        let expected = expected.0.to_string();
        let answer = self.ask(
            "kv/txn",
            &json!({
                "compare": [{ "key": key, "target": "MOD", "result": "EQUAL",
                              "mod_revision": expected }],
                "success": [change],
                "failure": [{ "request_range": { "key": key } }],
            }),
        )?;
        let strange = |reason: &str| strange(&self.gateway.name, volume, reason.to_owned());
        if answer.value["succeeded"] == true {
            let revision = number(&answer.value["header"]["revision"]);
            let revision = revision.ok_or_else(|| strange("an answer without a revision"))?;
            return Ok(Transacted::Done(Revision(revision)));
        }
        let range = &answer.value["responses"][0]["response_range"];
        if !range.is_object() {
            return Err(strange("an answer without what it is about"));
        }
        if !answer.is_repeated {
            return Ok(Transacted::Refused);
        }
        Ok(Transacted::Unclear(stored(range).map_err(strange)?))
    }
}

/// How a transaction ended.
enum Transacted {
    /// It was done.
    Done(Revision),
    /// The record has another revision than the expected one.
    Refused,
    /// The same, but an earlier try whose answer was lost may be the reason.
    Unclear(Option<Stored>),
}

/// The key of a name among records or notes.
fn key(among: &str, name: &str) -> String {
    encoded(&format!("{among}{name}"))
}

/// The first record of a range.
fn stored(range: &Value) -> Result<Option<Stored>, &'static str> {
    let record = &range["kvs"][0];
    if record.is_null() {
        return Ok(None);
    }
    let revision = number(&record["mod_revision"]).ok_or("a record without a revision")?;
    // An empty value is left out.
    let text = match &record["value"] {
        Value::Null => String::new(),
        value => decoded(value).ok_or("a record that is no text")?,
    };
    Ok(Some(Stored { revision: Revision(revision), text }))
}

impl Coordinator for Etcd {
    fn name(&self) -> String {
        self.gateway.name.clone()
    }

    fn volumes(&self) -> Result<Vec<String>, CoordinatorError> {
        let (from, to) = (encoded(VOLUMES), encoded(VOLUMES_END));
        let range = json!({ "key": from, "range_end": to, "keys_only": true,
                            "sort_target": "KEY", "sort_order": "ASCEND" });
        let answer = self.ask("kv/range", &range)?.value;
        let keys = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
        // Whatever else is there was not put there by us.
        let names = keys.iter().filter_map(|record| {
            let key = decoded(&record["key"])?;
            key.strip_prefix(VOLUMES).map(str::to_owned)
        });
        Ok(names.filter(|name| check_name("", name).is_ok()).collect())
    }

    fn read(&self, volume: &str) -> Result<Option<Stored>, CoordinatorError> {
        Ok(self.kept(VOLUMES, volume)?.stored)
    }

    fn replace(
        &self,
        volume: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        self.put(VOLUMES, volume, expected, text)
    }

    fn remove(&self, volume: &str, expected: Revision) -> Result<(), CoordinatorError> {
        check_name(&self.gateway.name, volume)?;
        if expected == Revision::ABSENT {
            return Err(conflict(volume));
        }
        let delete = json!({ "request_delete_range": { "key": key(VOLUMES, volume) } });
        match self.transact(&key(VOLUMES, volume), volume, expected, &delete)? {
            Transacted::Done(_) | Transacted::Unclear(None) => Ok(()),
            Transacted::Unclear(Some(_)) | Transacted::Refused => Err(conflict(volume)),
        }
    }

    fn changed(
        &self,
        volume: &str,
        known: Revision,
        patience: Duration,
    ) -> Result<Option<Stored>, CoordinatorError> {
        let end = Instant::now() + patience;
        loop {
            let kept = self.kept(VOLUMES, volume)?;
            if let Some(stored) = kept.stored.filter(|stored| stored.revision != known) {
                return Ok(Some(stored));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let key = key(VOLUMES, volume);
            if self.gateway.watch(&key, kept.seen + 1, left.min(WATCH_MAX)).is_err() {
                // The next reading finds out what is the matter.
                thread::sleep(PAUSE.min(left));
            }
        }
    }

    fn claim(&self, volume: &str, holder: &str) -> Result<Box<dyn Claim>, CoordinatorError> {
        check_name(&self.gateway.name, volume)?;
        let claim = claim::LeaseClaim::take(&self.gateway, self.patience, volume, holder)?;
        Ok(Box::new(claim))
    }

    fn holder(&self, volume: &str) -> Result<Option<String>, CoordinatorError> {
        check_name(&self.gateway.name, volume)?;
        let answer = self.ask("kv/range", &json!({ "key": claim::key(volume) }))?.value;
        Ok(claim::holder(&answer))
    }

    fn note(&self, name: &str) -> Result<Option<Stored>, CoordinatorError> {
        Ok(self.kept(NOTES, name)?.stored)
    }

    fn replace_note(
        &self,
        name: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        self.put(NOTES, name, expected, text)
    }

    fn released(
        &self,
        volume: &str,
        patience: Duration,
    ) -> Result<Option<String>, CoordinatorError> {
        check_name(&self.gateway.name, volume)?;
        let (end, key) = (Instant::now() + patience, claim::key(volume));
        loop {
            let answer = self.ask("kv/range", &json!({ "key": key }))?.value;
            let Some(holder) = claim::holder(&answer) else { return Ok(None) };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some(holder));
            }
            let seen = number(&answer["header"]["revision"]).unwrap_or(0);
            if self.gateway.watch(&key, seen + 1, left.min(WATCH_MAX)).is_err() {
                // The next reading finds out what is the matter.
                thread::sleep(PAUSE.min(left));
            }
        }
    }
}
