//! Frames out of bytes as they come, without waiting for more.

use std::io;

use gabion_link::wire::{HEADER_BYTES, Header};

/// A frame that is not whole yet. It has no memory of its own before there is something of it.
#[derive(Default)]
pub(super) struct Assembly {
    /// The header, as far as it has come.
    head: Vec<u8>,
    /// The payload that follows, as far as it has come.
    body: Option<(Header, Vec<u8>)>,
}

/// A frame.
pub(super) type Frame = (Header, Vec<u8>);

impl Assembly {
    /// Takes bytes off the front of `bytes`, until a frame is whole or none are left. A payload may
    /// have at most `limit` bytes.
    pub(super) fn take(&mut self, bytes: &mut &[u8], limit: usize) -> io::Result<Option<Frame>> {
        if self.body.is_none() {
            let (some, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.head.len()));
            self.head.extend_from_slice(some);
            *bytes = rest;
            let Ok(head) = <&[u8; HEADER_BYTES]>::try_from(&self.head[..]) else { return Ok(None) };
            let header = Header::decode(head).map_err(io::Error::other)?;
            let length = header.length as usize;
            if length > limit {
                let text = format!("a frame of {length} bytes; {limit} are allowed here");
                return Err(io::Error::other(text));
            }
            self.head = Vec::new();
            self.body = Some((header, Vec::with_capacity(length)));
        }
        let Some((header, payload)) = &mut self.body else { return Ok(None) };
        let missing = header.length as usize - payload.len();
        let (some, rest) = bytes.split_at(bytes.len().min(missing));
        payload.extend_from_slice(some);
        *bytes = rest;
        if some.len() < missing {
            return Ok(None);
        }
        let (header, payload) = self.body.take().expect("it was looked at above");
        header.check_payload(&payload).map_err(io::Error::other)?;
        Ok(Some((header, payload)))
    }
}

#[cfg(test)]
mod tests {
    use gabion_link::wire::{FrameKind, encode_frame};

    use super::*;

    fn frames() -> Vec<u8> {
        let payloads = [&b"first"[..], b"", &[7; 1000]];
        let frame = |(number, payload)| encode_frame(&Header::message(number, 0, payload), payload);
        (1..).zip(payloads).flat_map(frame).collect()
    }

    #[test]
    fn frames_are_the_same_however_their_bytes_come() {
        let bytes = frames();
        for step in [1, 2, 31, 32, 33, 500, bytes.len()] {
            let mut assembly = Assembly::default();
            let mut found = Vec::new();
            for mut part in bytes.chunks(step) {
                while let Some((header, payload)) = assembly.take(&mut part, 1000).unwrap() {
                    found.push((header.number, payload.len()));
                }
                assert!(part.is_empty());
            }
            assert_eq!(found, [(1, 5), (2, 0), (3, 1000)], "{step} at once");
        }
    }

    #[test]
    fn what_is_too_long_or_damaged_is_none() {
        let bytes = frames();
        let mut assembly = Assembly::default();
        let mut rest = &bytes[..];
        assert!(assembly.take(&mut rest, 999).unwrap().is_some());
        assert!(assembly.take(&mut rest, 999).unwrap().is_some());
        assert!(assembly.take(&mut rest, 999).is_err());

        let mut damaged = bytes;
        damaged[HEADER_BYTES] ^= 1;
        assert!(Assembly::default().take(&mut &damaged[..], 1000).is_err());
        let mut hello = Header::greeting(FrameKind::Hello, b"").encode();
        hello[9] = 9;
        assert!(Assembly::default().take(&mut &hello[..], 1000).is_err());
    }
}
