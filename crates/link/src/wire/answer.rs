//! What servers say. The result of an answer stands last: bytes of a file are in it.

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::SubvolId;
use gabion_base::time::Timestamp;
use gabion_fs::lock::Lock;
use gabion_fs::{Attributes, Disposition, Error};
use gabion_map::LockMode;

use super::error::Outcome;
use super::fields::{Bytes, Update, follows, put_items, take_items};
use super::layout::{Layout, tagged};
use crate::errand::Report;
use crate::message::{Answer, CallId, ChangeNumber, Grant, ToClient, Witness};
use crate::range::KeyRange;
use crate::table::{Keep, RevokeId};

tagged! {
    ToClient, "what a server says";
    1 => Answer {
        id: CallId,
        updates: Vec<Update>,
        grants: Vec<Grant>,
        now: Timestamp,
        order: u64,
        done: Option<Timestamp>,
        result: Outcome,
    },
    2 => Pong { received: u64, now: Timestamp },
    3 => Revoke { id: RevokeId, range: KeyRange, keep: Keep },
    4 => Applied { number: ChangeNumber, extents: Vec<Update>, credit: u64 },
    5 => Failed { number: ChangeNumber, error: Error },
    6 => Durable { round: u64, number: ChangeNumber, calls: Vec<CallId> };
    7 => Witness(calls: Vec<Witness>),
    8 => Freeze(freeze: u64),
    9 => Thaw(freeze: u64),
    10 => LocksLost(locks: Vec<Lock>),
    11 => Tight(subvols: Vec<SubvolId>)
}

tagged! {
    Answer, "a result";
    1 => Done {},
    5 => Written { offset: u64, length: u64 },
    7 => Space {
        total: u64, available: u64, used: u64, objects: Option<u64>, objects_left: Option<u64>
    };
    2 => Object(attributes: Attributes),
    3 => Made(attributes: Attributes, disposition: Disposition),
    4 => Bytes(bytes: Bytes),
    6 => Number(number: u64),
    8 => Lock(lock: Option<Lock>),
    9 => Report(report: Report)
}

impl Layout for Grant {
    type Value = Self;
    const BYTES_MIN: usize = KeyRange::BYTES_MIN + 5;

    fn put(value: &Self, out: &mut Vec<u8>) {
        let Grant { range, mode, items } = value;
        for (index, (key, _)) in items.iter().enumerate() {
            assert!(follows(&items[..index], range, *key), "{key:?} does not follow in {range:?}");
        }
        KeyRange::put(range, out);
        LockMode::put(mode, out);
        put_items(items, out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let range = KeyRange::take(reader)?;
        let mode = LockMode::take(reader)?;
        Ok(Self { range, mode, items: take_items(range, reader)? })
    }
}
