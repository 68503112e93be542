//! Reading what a server answers.
//!
//! A structured answer to a read comes in chunks, which may be mixed with those of others: each
//! goes to its place, and the whole must be covered once and without gaps when the last has come.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;

use super::handshake::{strange, undecodable};
use crate::server::Replies;
use crate::stream::Stream;
use crate::wire::STRING_BYTES_MAX;
use crate::wire::error::ErrorCode;
use crate::wire::reply::{
    CHUNK_BYTES, FLAG_DONE, Payload, REPLY_BYTES, ReplyHead, SMALL_PAYLOAD_BYTES_MAX, chunk,
};

/// What is read at once, for many small replies.
const INPUT_BYTES: usize = 64 << 10;
/// Chunks of one reply: a server has no reason to cut finer than this.
const CHUNKS_MAX: usize = 1 << 16;

/// The part of an export that a read asks for; nothing for other requests.
pub(super) type Asked = Option<(u64, usize)>;

/// How a request ended.
#[derive(Debug)]
pub(super) enum Answer {
    /// Well, with the data of a read.
    Done(Option<Blocks>),
    /// With an error, and words for people.
    Failed(ErrorCode, String),
}

/// The server's end of a connection.
pub(super) struct Answers<'a> {
    input: BufReader<&'a Stream>,
    replies: Replies,
    partial: BTreeMap<u64, Partial>,
}

/// A reply of which the last chunk has not come.
#[derive(Default)]
struct Partial {
    blocks: Option<Blocks>,
    /// What has come, as offsets within the request.
    covered: Vec<(usize, usize)>,
    failure: Option<(ErrorCode, String)>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(stream: &'a Stream, replies: Replies) -> Self {
        let input = BufReader::with_capacity(INPUT_BYTES, stream);
        Self { input, replies, partial: BTreeMap::new() }
    }

    /// Waits for the end of any request; `asked` says what a cookie has asked for, if there is a
    /// request of this cookie.
    pub(super) fn next(
        &mut self,
        mut asked: impl FnMut(u64) -> Option<Asked>,
    ) -> io::Result<(u64, Answer)> {
        loop {
            let mut head = [0; REPLY_BYTES];
            self.input.read_exact(&mut head)?;
            let head = ReplyHead::decode(&head).map_err(undecodable)?;
            let (ReplyHead::Simple { cookie, .. } | ReplyHead::Chunk { cookie, .. }) = head;
            let asked = asked(cookie).ok_or_else(|| strange("it answers what nobody asked"))?;
            match head {
                ReplyHead::Simple { error, .. } => {
                    return Ok((cookie, self.simple(cookie, error, asked)?));
                }
                ReplyHead::Chunk { flags, kind, .. } => {
                    self.chunk(cookie, kind, asked)?;
                    if flags & FLAG_DONE != 0 {
                        let partial = self.partial.remove(&cookie).unwrap_or_default();
                        return Ok((cookie, partial.end(asked)?));
                    }
                    if kind == chunk::NONE {
                        return Err(strange("an empty chunk is not the last"));
                    }
                }
            }
        }
    }

    /// Whether an answer, or its last chunk, has come in whole: to take it nobody is waited for.
    pub(super) fn has_answer(&self) -> bool {
        let come = self.input.buffer();
        let Some(head) = come.first_chunk().and_then(|head| ReplyHead::decode(head).ok()) else {
            return false;
        };
        let wanted = match head {
            // Data may follow, of which only who has asked knows the length.
            ReplyHead::Simple { .. } if self.replies == Replies::Simple => return false,
            ReplyHead::Simple { .. } => REPLY_BYTES,
            ReplyHead::Chunk { flags, .. } if flags & FLAG_DONE == 0 => return false,
            ReplyHead::Chunk { .. } => match come[REPLY_BYTES..].first_chunk() {
                Some(length) => CHUNK_BYTES + u32::from_be_bytes(*length) as usize,
                None => return false,
            },
        };
        come.len() >= wanted
    }

    fn simple(&mut self, cookie: u64, error: u32, asked: Asked) -> io::Result<Answer> {
        if self.partial.contains_key(&cookie) {
            return Err(strange("a reply begins in chunks and ends without"));
        }
        if error != 0 {
            return Ok(Answer::Failed(ErrorCode::of(error), String::new()));
        }
        let Some((_, length)) = asked else { return Ok(Answer::Done(None)) };
        if self.replies == Replies::Structured {
            return Err(strange("a read is answered without chunks"));
        }
        let mut blocks = Blocks::zeroed(length / BLOCK_SIZE);
        self.input.read_exact(blocks.bytes_mut())?;
        Ok(Answer::Done(Some(blocks)))
    }

    fn chunk(&mut self, cookie: u64, kind: u16, asked: Asked) -> io::Result<()> {
        if self.replies == Replies::Simple {
            return Err(strange("it answers in chunks without having been asked to"));
        }
        let mut length = [0; CHUNK_BYTES - REPLY_BYTES];
        self.input.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        let partial = self.partial.entry(cookie).or_default();
        if partial.covered.len() >= CHUNKS_MAX {
            return Err(strange("a reply has too many chunks"));
        }
        if kind == chunk::OFFSET_DATA {
            let mut offset = [0; 8];
            let Some(length) = length.checked_sub(8).filter(|length| *length > 0) else {
                return Err(strange("a chunk of data has none"));
            };
            self.input.read_exact(&mut offset)?;
            let into = partial.place(u64::from_be_bytes(offset), length, asked)?;
            return self.input.read_exact(into);
        }
        if length > SMALL_PAYLOAD_BYTES_MAX {
            return Err(strange("a chunk is too long"));
        }
        let mut payload = vec![0; length as usize];
        self.input.read_exact(&mut payload)?;
        match Payload::decode(kind, &payload).map_err(undecodable)? {
            Payload::None => {}
            // The memory is zero already.
            Payload::Hole { offset, length } => {
                partial.place(offset, length, asked)?;
            }
            Payload::Error { code, message, .. } => {
                let end = message.floor_char_boundary(STRING_BYTES_MAX.min(message.len()));
                partial.failure = Some((code, message[..end].to_owned()));
            }
            Payload::Status => return Err(strange("it tells a status that nobody asked for")),
        }
        Ok(())
    }
}

impl Partial {
    /// The memory for a part of a read.
    fn place(&mut self, offset: u64, length: u32, asked: Asked) -> io::Result<&mut [u8]> {
        let outside = || strange("data comes for what was not asked");
        let (start, total) = asked.ok_or_else(outside)?;
        let from = offset.checked_sub(start).ok_or_else(outside)?;
        let from = usize::try_from(from).map_err(|_| outside())?;
        let to = from.checked_add(length as usize).filter(|to| *to <= total);
        let to = to.ok_or_else(outside)?;
        self.covered.push((from, to));
        let blocks = self.blocks.get_or_insert_with(|| Blocks::zeroed(total / BLOCK_SIZE));
        Ok(&mut blocks.bytes_mut()[from..to])
    }

    fn end(mut self, asked: Asked) -> io::Result<Answer> {
        if let Some((code, message)) = self.failure {
            return Ok(Answer::Failed(code, message));
        }
        let Some((_, total)) = asked else { return Ok(Answer::Done(None)) };
        self.covered.sort_unstable();
        let mut reached = 0;
        for (from, to) in self.covered {
            if from != reached {
                return Err(strange("the data of a read overlaps or has gaps"));
            }
            reached = to;
        }
        if reached != total {
            return Err(strange("the data of a read is not complete"));
        }
        Ok(Answer::Done(self.blocks))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::reply;

    /// What a client that has asked for one block at 4096 makes of `bytes`.
    fn answer(bytes: &[u8]) -> io::Result<(u64, Answer)> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(bytes).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let stream = Stream::unix(ours);
        let mut answers = Answers::new(&stream, Replies::Structured);
        answers.next(|cookie| (cookie == 7).then_some(Some((4096, 4096))))
    }

    #[test]
    fn chunks_of_a_read_are_put_together() {
        let half = |at: u64, flags: u16| {
            let mut bytes = reply::chunk_head(flags, chunk::OFFSET_DATA, 7, 2056).to_vec();
            bytes.extend(at.to_be_bytes());
            bytes.extend([at as u8 | 1; 2048]);
            bytes
        };
        let both = [half(6144, 0), half(4096, FLAG_DONE)].concat();
        assert!(matches!(answer(&both), Ok((7, Answer::Done(Some(_))))));
        let twice = [half(4096, 0), half(4096, FLAG_DONE)].concat();
        assert!(answer(&twice).unwrap_err().to_string().contains("overlaps"));
        assert!(answer(&half(4096, FLAG_DONE)).unwrap_err().to_string().contains("not complete"));
        assert!(answer(&half(0, 0)).unwrap_err().to_string().contains("not asked"));
        assert!(answer(&reply::hole(7, 4096, 4096)).is_ok());
        assert!(answer(&reply::hole(8, 4096, 4096)).is_err());
        assert!(answer(&reply::simple(None, 7)).is_err());
    }

    #[test]
    fn an_answer_has_come_when_nothing_of_it_is_missing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::unix(ours);
        let mut answers = Answers::new(&stream, Replies::Structured);
        let data = [&reply::data_head(7, 4096, 4096)[..], &[1; 4096]].concat();
        let mut next = |bytes: &[u8]| {
            (&theirs).write_all(bytes).unwrap();
            let asked = |cookie| Some((cookie == 7).then_some((4096, 4096)));
            let (cookie, _) = answers.next(asked).unwrap();
            (cookie, answers.has_answer())
        };
        let done = |cookie| reply::simple(None, cookie);
        assert_eq!(next(&[&done(1)[..], &done(2)].concat()), (1, true));
        assert_eq!(next(&[]), (2, false), "there is nothing");
        assert_eq!(next(&[&done(3)[..], &data[..19]].concat()), (3, false), "of what length?");
        assert_eq!(next(&[&data[19..], &data[..4123]].concat()), (7, false), "a byte is missing");
        assert_eq!(next(&[&data[4123..], &data].concat()), (7, true));
        let half = reply::chunk_head(0, chunk::NONE, 7, 0);
        assert_eq!(next(&half), (7, false), "it is not the last");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(
            kind in 0_u16..8, error: bool, length in 0_u32..64,
            payload in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let kind = kind | u16::from(error) << 15;
            let head = reply::chunk_head(FLAG_DONE, kind, 7, length);
            let _ = answer(&[&head[..], &payload].concat());
            let _ = answer(&payload);
        }
    }
}
