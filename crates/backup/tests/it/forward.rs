//! Streams from a pipe: what passes is whole, and where it is not is told.

use std::io::{self, Read};

use gabion_backup::forward::{self, Passed};
use gabion_backup::{Error, Record, Result, Secret, Stream};

use crate::world::{changes, full, header, is_damage, noise, stream};

/// Gives a few bytes at a time, as pipes may.
struct Pipe<'b>(&'b [u8]);

impl Read for Pipe<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(7).min(self.0.len());
        let (now, later) = self.0.split_at(count);
        into[..count].copy_from_slice(now);
        self.0 = later;
        Ok(count)
    }
}

fn let_pass(bytes: &[u8], secret: Option<&Secret>) -> Result<Passed> {
    let mut pipe = Pipe(bytes);
    let coming = forward::next(&mut pipe, secret)?;
    coming.expect("some bytes").pass(|_| Ok(()), |_| {})
}

fn let_pass_at_once(mut bytes: &[u8]) -> Result<Passed> {
    forward::next(&mut bytes, None)?.expect("some bytes").pass(|_| Ok(()), |_| {})
}

#[test]
fn streams_pass_one_after_the_other_with_all_their_records() {
    let secret = Secret::KeyFile(vec![3; 40]);
    let one = stream(header(1, None), &full(), Some(&secret));
    let two = stream(header(2, Some(1)), &changes(), Some(&secret));
    let both = [&one[..], &two].concat();
    let mut pipe = Pipe(&both);
    for bytes in [&one, &two] {
        let (mut records, mut length) = (Vec::new(), 0);
        let take = |record: Record| {
            records.push(record);
            Ok(())
        };
        let coming = forward::next(&mut pipe, Some(&secret)).unwrap().unwrap();
        let header = coming.header().clone();
        let passed = coming.pass(take, |bytes| length += bytes).unwrap();
        let stream = Stream::open(bytes.clone(), Some(&secret)).unwrap();
        let mut wanted = Vec::new();
        stream
            .records(|record| {
                wanted.push(record);
                Ok(())
            })
            .unwrap();
        assert_eq!(records, wanted);
        assert_eq!((&header, &passed.header), (stream.header(), stream.header()));
        assert_eq!(passed.totals, stream.totals());
        assert_eq!((passed.length, length), (bytes.len() as u64, bytes.len() as u64));
    }
    assert!(forward::next(&mut pipe, Some(&secret)).unwrap().is_none());
    assert!(matches!(let_pass(&one, None), Err(Error::Locked("key file"))));
}

#[test]
fn every_flipped_bit_in_a_pipe_is_found() {
    let bytes = stream(header(1, None), &full(), None);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let error = let_pass_at_once(&damaged).unwrap_err();
        let is_told = is_damage(&error) || matches!(error, Error::Version(_) | Error::Locked(_));
        assert!(is_told, "byte {at}: {error}");
    }
}

#[test]
fn a_pipe_that_ends_too_early_is_never_taken_for_a_whole_stream() {
    let bytes = stream(header(1, None), &full(), None);
    for length in 1..bytes.len() {
        let error = let_pass(&bytes[..length], None).unwrap_err();
        match error {
            Error::Unfinished(at) => assert_eq!(at, length as u64),
            error => assert!(matches!(error, Error::NotABackup) && length < 16, "{error}"),
        }
    }
}

#[test]
fn bytes_that_came_long_ago_are_compared_when_they_are_told_of_again() {
    let mut writer = gabion_backup::Writer::begin(Vec::new(), header(1, None), None).unwrap();
    let piece = noise(5, 256 << 10);
    writer.piece(2, 0, &piece).unwrap();
    // More than is kept, and the first piece once more.
    for number in 0..300_u64 {
        writer.piece(3, number << 18, &noise(100 + number, 256 << 10)).unwrap();
    }
    writer.piece(4, 0, &piece).unwrap();
    let (bytes, ..) = writer.finish().unwrap();
    assert!(bytes.len() > 70 << 20);
    let_pass_at_once(&bytes).unwrap();
}
