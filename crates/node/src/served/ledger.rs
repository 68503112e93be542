//! What is kept on disk of sessions, so that nothing is lost or done twice when the server dies.
//!
//! ```text
//!   change, call --> its effect and a note of it, one transaction
//!   a round      --> all that was noted so far is made durable with its bytes; a note of that,
//!                    durable; told to the clients, who keep all of it until then
//! ```
//!
//! A crash leaves a prefix of all transactions. What of a session is in it the notes tell: its
//! client says the rest again, and it is done ([`super::recovery`]). Notes are written in the order
//! of what they are about, so what is in the prefix is known exactly. Bytes are not: they may or
//! may not be there, unless a round says so. So those of what is in the prefix are written again.
//!
//! | item under inode 0 | value |
//! |--------------------|-------|
//! | SESSION at n       | a [`Record`]: somebody has a session, whose notes are under inode n |
//! | SESSION at 2⁶³ + i | all changes of the bytes of inode i up to this place u64 are in the map |
//!
//! | item under inode n | value |
//! |--------------------|-------|
//! | SESSION at 0       | number of the last change that is applied u64 |
//! | SESSION at 1       | the last one up to which all is durable with its bytes u64 |
//!
//! | item under inodes n + 1 to n + 16 | value |
//! |-----------------------------------|-------|
//! | SESSION at a call's number        | a [`DoneCall`] |

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::{Error, Result};
use gabion_link::message::{Answer, CallId, ChangeNumber, SessionId};
use gabion_map::key::INO_END;
use gabion_map::{FileId, Key, Kind, LocalTxn, LockMode, MapError, Stop, Txn};

use crate::local::LocalFs;

use super::{Served, Session};

/// Inodes that notes of calls are spread over, lest calls of one client should wait for each other.
const CALL_INODES: u64 = 16;
/// Where notes of changes stand.
const APPLIED: u64 = 0;
pub(super) const SETTLED: u64 = 1;
/// Where it stands under inode 0 how far the bytes of an inode are in the map.
const KEPT: u64 = INO_END;
/// Notes that one transaction takes away.
const FORGOTTEN_AT_ONCE: usize = 1000;
/// What identifies a client besides a secret, in bytes.
const HOLDER_BYTES_MAX: usize = 1024;

/// What shows that a client is the one of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Whoever knows it may go on with the session,
    pub secret: u64,
    /// if he is this one. The owner's words, at most 1,024 bytes.
    pub holder: Vec<u8>,
}

/// What a session has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It lives.
    Alive,
    /// It has ended, and its client does not know: it may show what it has cached until it has
    /// heard nothing for the session's time.
    Cut,
    /// It has ended.
    Left,
}

/// A session as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub session: SessionId,
    /// Who may go on with it.
    pub credentials: Credentials,
    /// After how much silence it ends, in milliseconds.
    pub patience_ms: u32,
    /// What has become of it.
    pub standing: Standing,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u8(match self.standing {
            Standing::Alive => 1,
            Standing::Cut => 2,
            Standing::Left => 3,
        });
        out.put_u32(self.patience_ms);
        out.put_u64(self.session.0);
        out.put_u64(self.credentials.secret);
        out.extend_from_slice(&self.credentials.holder);
        out
    }

    fn decode(value: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new(value);
        let standing = match reader.u8()? {
            1 => Standing::Alive,
            2 => Standing::Cut,
            3 => Standing::Left,
            _ => return Err(DecodeError::Invalid("what has become of a session")),
        };
        let patience_ms = reader.u32()?;
        let (session, secret) = (SessionId(reader.u64()?), reader.u64()?);
        let holder = reader.rest().to_vec();
        if holder.len() > HOLDER_BYTES_MAX {
            return Err(DecodeError::Invalid("the holder of a session"));
        }
        Ok(Self { session, credentials: Credentials { secret, holder }, patience_ms, standing })
    }
}

/// A call that was done, and answered perhaps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DoneCall {
    /// A round has said that it is durable, with its bytes.
    pub(super) is_settled: bool,
    pub(super) order: u64,
    pub(super) now: Timestamp,
    pub(super) answer: Answer,
}

impl DoneCall {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u8(u8::from(self.is_settled));
        out.put_u64(self.order);
        out.put_u64(self.now.seconds as u64);
        out.put_u32(self.now.nanos);
        out.extend_from_slice(&self.answer.encode());
        out
    }

    fn decode(value: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new(value);
        let is_settled = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Invalid("whether a call is durable")),
        };
        let order = reader.u64()?;
        let (seconds, nanos) = (reader.u64()? as i64, reader.u32()?);
        if nanos >= 1_000_000_000 {
            return Err(DecodeError::Invalid("nanoseconds"));
        }
        let answer = Answer::decode(reader.rest())?;
        Ok(Self { is_settled, order, now: Timestamp::new(seconds, nanos), answer })
    }
}

/// What is noted of an operation, in its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// Nothing.
    Nothing,
    /// A client's change is applied.
    Change(ChangeNumber),
    /// A call is done, now.
    Call(CallId),
    /// A call is done that had this place among changes before.
    CallAgain(CallId, u64),
}

/// What is on disk of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    subvol: SubvolId,
    ino: Ino,
}

impl Pages {
    pub(super) fn changes(self) -> FileId {
        FileId::new(self.subvol, self.ino)
    }

    fn calls(self, lane: u64) -> FileId {
        FileId::new(self.subvol, Ino(self.ino.0 + 1 + lane))
    }

    fn of_call(self, id: CallId) -> Key {
        self.calls(id.0 % CALL_INODES).key(Kind::SESSION, id.0)
    }

    /// Where the note is going to stand.
    pub(super) fn place(self, note: Note) -> Option<FileId> {
        match note {
            Note::Nothing => None,
            Note::Change(_) => Some(self.changes()),
            Note::Call(id) | Note::CallAgain(id, _) => Some(self.of_call(id).file()),
        }
    }

    pub(super) fn applied(self, number: ChangeNumber) -> (Key, Vec<u8>) {
        (self.changes().key(Kind::SESSION, APPLIED), number.0.to_le_bytes().to_vec())
    }

    pub(super) fn done(self, id: CallId, done: &DoneCall) -> (Key, Vec<u8>) {
        (self.of_call(id), done.encode())
    }
}

impl Served {
    /// Has it noted that somebody begins a session. It is durable.
    pub(super) fn remember(&self, record: &Record) -> Result<Pages> {
        if record.credentials.holder.len() > HOLDER_BYTES_MAX {
            return Err(Error::InvalidArgument);
        }
        let subvol = self.fs.root().subvol;
        let ino = self.fs.map().reserve_inodes(subvol, 1 + CALL_INODES)?;
        let pages = Pages { subvol, ino };
        self.write_record(pages, record)?;
        Ok(pages)
    }

    /// Has it noted what has become of a session. It is durable.
    pub(super) fn write_record(&self, pages: Pages, record: &Record) -> Result<()> {
        let index = FileId::new(pages.subvol, Ino(0));
        self.fs.run(|txn| {
            txn.lock(index, LockMode::Exclusive)?;
            Ok(txn.put(index.key(Kind::SESSION, pages.ino.0), record.encode())?)
        })?;
        Ok(self.fs.map().sync_file(index)?)
    }

    /// What was done of a call in the session, if it was.
    pub(super) fn done_call(&self, session: &Session, id: CallId) -> Result<Option<DoneCall>> {
        let Some(pages) = session.pages else { return Ok(None) };
        let key = pages.of_call(id);
        self.fs.run(|txn| {
            txn.lock(key.file(), LockMode::Shared)?;
            let value = txn.get(key)?;
            value.map(|value| DoneCall::decode(&value).map_err(|error| bad(key, error))).transpose()
        })
    }

    /// The last change that is applied, and the last up to which all is durable with its bytes.
    pub(super) fn progress_of(&self, pages: Pages) -> Result<(ChangeNumber, ChangeNumber)> {
        let number = |at| {
            let key = pages.changes().key(Kind::SESSION, at);
            self.fs.run(|txn| {
                txn.lock(key.file(), LockMode::Shared)?;
                match txn.get(key)? {
                    None => Ok(ChangeNumber(0)),
                    Some(value) => match value.first_chunk::<8>() {
                        Some(bytes) if value.len() == 8 => {
                            Ok(ChangeNumber(u64::from_le_bytes(*bytes)))
                        }
                        _ => Err(bad(key, DecodeError::Invalid("the number of a change"))),
                    },
                }
            })
        };
        Ok((number(APPLIED)?, number(SETTLED)?))
    }
}

/// Sessions that are remembered and can go on, with where their notes are. Where there is one that
/// cannot, as it is from before a rollback that was not finished, all is forgotten.
pub(super) fn sort_out_outlived(fs: &LocalFs) -> Result<Vec<(Pages, Record)>> {
    let remembered = remembered(fs)?;
    let since = begun_since(fs);
    if remembered.iter().all(|(pages, _)| pages.ino >= since) {
        return Ok(remembered);
    }
    fs.forget_sessions()?;
    Ok(Vec::new())
}

/// From which inode on notes are of sessions that have begun since the last rollback: the snapshot
/// that the filesystem was rolled back to has those of others.
fn begun_since(fs: &LocalFs) -> Ino {
    Ino(fs.map().rolled_back_to(fs.root().subvol).map_or(0, |base| base.next_ino))
}

/// Whether there are sessions that clients may go on with.
pub(super) fn remembers_sessions(fs: &LocalFs) -> Result<bool> {
    Ok(!remembered(fs)?.is_empty())
}

/// Sessions that are remembered, with where their notes are.
fn remembered(fs: &LocalFs) -> Result<Vec<(Pages, Record)>> {
    let subvol = fs.root().subvol;
    let index = FileId::new(subvol, Ino(0));
    let (first, last) = (index.key(Kind::SESSION, 0), index.key(Kind::SESSION, KEPT - 1));
    let items = items(fs, first, last)?;
    let record = |(key, value): &(Key, _)| {
        let value: &gabion_map::Value = value;
        let record = Record::decode(value).map_err(|error| bad(*key, error))?;
        Ok((Pages { subvol, ino: Ino(key.at) }, record))
    };
    items.iter().map(record).collect()
}

fn items(fs: &LocalFs, first: Key, last: Key) -> Result<Vec<(Key, gabion_map::Value)>> {
    fs.run(|txn| {
        txn.lock(first.file(), LockMode::Shared)?;
        Ok(txn.scan(first, last, usize::MAX)?)
    })
}

pub(super) fn kept_key(file: FileId) -> Key {
    FileId::new(file.subvol, Ino(0)).key(Kind::SESSION, KEPT | file.ino.0)
}

/// Notes that the bytes of a file are in the map as changes up to this place made them.
pub(super) fn note_kept<T: Txn>(
    txn: &mut T,
    file: FileId,
    order: u64,
) -> std::result::Result<(), Stop> {
    let key = kept_key(file);
    txn.lock(key.file(), LockMode::Exclusive)?;
    let before = txn.get(key)?.and_then(|value| order_kept(key, &value).ok());
    txn.put(key, order.max(before.unwrap_or(0)).to_le_bytes().to_vec())
}

/// Where it is noted how far the bytes of files are in the map.
pub(super) fn kept_of(file: FileId) -> FileId {
    kept_key(file).file()
}

pub(super) fn order_kept(key: Key, value: &[u8]) -> Result<u64> {
    let order = value.try_into().map(u64::from_le_bytes);
    order.map_err(|_| bad(key, DecodeError::Invalid("a place among changes")))
}

/// How far bytes of files are in the map, as far as that is noted.
pub(super) fn kept_before(fs: &LocalFs) -> Result<Vec<(Key, u64)>> {
    let mut kept = Vec::new();
    for subvol in fs.map().writable_subvolumes() {
        let index = FileId::new(subvol, Ino(0));
        let (first, last) = (index.key(Kind::SESSION, KEPT), index.key(Kind::SESSION, u64::MAX));
        for (key, value) in items(fs, first, last)? {
            kept.push((key, order_kept(key, &value)?));
        }
    }
    Ok(kept)
}

/// Takes away all that is noted of a session.
pub(super) fn forget(fs: &LocalFs, pages: Pages) -> Result<()> {
    let index = FileId::new(pages.subvol, Ino(0));
    let files = (0..CALL_INODES).map(|lane| pages.calls(lane)).chain([pages.changes()]);
    for file in files {
        let (first, last) = (file.key(Kind::SESSION, 0), file.key(Kind::SESSION, u64::MAX));
        loop {
            let count = fs.run(|txn| {
                txn.lock(file, LockMode::Exclusive)?;
                let items = txn.scan(first, last, FORGOTTEN_AT_ONCE)?;
                items.iter().try_for_each(|(key, _)| txn.delete(*key))?;
                Ok(items.len())
            })?;
            if count < FORGOTTEN_AT_ONCE {
                break;
            }
        }
    }
    fs.run(|txn| {
        txn.lock(index, LockMode::Exclusive)?;
        Ok(txn.delete(index.key(Kind::SESSION, pages.ino.0))?)
    })
}

impl LocalFs {
    /// Takes away all that is noted of sessions: the filesystem is going to be changed by somebody
    /// else than their server, so what their clients know of it does not count any more.
    pub fn forget_sessions(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        let remembered = remembered(self)?;
        for (key, _) in kept_before(self)? {
            self.run(|txn| {
                txn.lock(key.file(), LockMode::Exclusive)?;
                Ok(txn.delete(key)?)
            })?;
        }
        // As long as there is one it is seen that there may be more to be taken away.
        for (pages, _) in &remembered {
            forget(self, *pages)?;
        }
        if remembered.is_empty() { Ok(()) } else { self.syncfs() }
    }
}

pub(super) fn settle_call(txn: &mut LocalTxn<'_>, pages: Pages, id: CallId) -> Result<()> {
    let key = pages.of_call(id);
    txn.lock(key.file(), LockMode::Exclusive)?;
    let Some(value) = txn.get(key)? else { return Ok(()) };
    let done = DoneCall::decode(&value).map_err(|error| bad(key, error))?;
    Ok(txn.put(key, DoneCall { is_settled: true, ..done }.encode())?)
}

pub(super) fn forget_call(txn: &mut LocalTxn<'_>, pages: Pages, id: CallId) -> Result<()> {
    let key = pages.of_call(id);
    txn.lock(key.file(), LockMode::Exclusive)?;
    Ok(txn.delete(key)?)
}

fn bad(key: Key, source: DecodeError) -> Error {
    Error::Stop(Stop::Map(MapError::BadItem { key, source }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            session: SessionId(0x0102),
            credentials: Credentials { secret: 0x0304, holder: b"host 05".to_vec() },
            patience_ms: 10_000,
            standing: Standing::Cut,
        }
    }

    fn done() -> DoneCall {
        DoneCall {
            is_settled: true,
            order: 0x0102,
            now: Timestamp::new(-1, 999_999_999),
            answer: Answer::Written { offset: 4096, length: 5 },
        }
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        assert_eq!(Record::decode(&record().encode()), Ok(record()));
        assert_eq!(DoneCall::decode(&done().encode()), Ok(done()));
    }

    #[test]
    fn notes_that_are_cut_or_wrong_anywhere_are_refused_or_others() {
        let (record, done) = (record().encode(), done().encode());
        // Behind its fixed part a record has whatever its owner wrote.
        (0..21).for_each(|end| assert!(Record::decode(&record[..end]).is_err(), "{end}"));
        (0..done.len()).for_each(|end| assert!(DoneCall::decode(&done[..end]).is_err(), "{end}"));
        for at in 0..done.len() {
            for value in [0, 1, 2, 0x7f, 0xff] {
                let mut wrong = done.clone();
                wrong[at] = value;
                if let Ok(decoded) = DoneCall::decode(&wrong) {
                    assert_eq!(decoded.encode(), wrong);
                }
            }
        }
        let long = [record, vec![0; HOLDER_BYTES_MAX]].concat();
        assert!(Record::decode(&long).is_err());
        assert!(Record::decode(&[9; 40]).is_err());
    }
}
