//! Whatever happens to a stream's bytes is told, and where.

use gabion_backup::scan::scan;
use gabion_backup::{Error, Secret, Stream};

use crate::world::{content, full, header, is_damage, stream};

#[test]
fn every_flipped_bit_is_found() {
    let bytes = stream(header(1, None), &full(), None);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let error = content(&[&damaged], None).unwrap_err();
        let is_told = is_damage(&error) || matches!(error, Error::Version(_) | Error::Locked(_));
        assert!(is_told, "byte {at}: {error}");
    }
}

#[test]
fn every_flipped_byte_of_a_sealed_stream_is_found() {
    let secret = Secret::KeyFile(vec![3; 40]);
    let bytes = stream(header(1, None), &full(), Some(&secret));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        assert!(content(&[&damaged], Some(&secret)).is_err(), "byte {at}");
    }
}

#[test]
fn a_stream_that_was_cut_off_is_never_taken_for_a_whole_one() {
    let bytes = stream(header(1, None), &full(), None);
    for length in 0..bytes.len() {
        let error = Stream::open(bytes[..length].to_vec(), None).map(|_| ()).unwrap_err();
        assert!(is_damage(&error), "{length} bytes: {error}");
        match scan(&bytes[..length].to_vec(), None) {
            Ok(kept) => assert!(kept.length <= length as u64),
            Err(error) => assert!(is_damage(&error), "{length} bytes: {error}"),
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(Stream::open(longer, None).is_err());
}

#[test]
fn damage_is_told_with_its_place() {
    let mut bytes = stream(header(1, None), &full(), None);
    let entry = Stream::open(bytes.clone(), None).unwrap().segments()[3];
    bytes[entry.offset as usize + 40] ^= 1;
    let damaged = Stream::open(bytes, None).unwrap();
    let error = damaged.verify(|_| {}).unwrap_err();
    let place = format!("at byte {} (segment 3)", entry.offset);
    assert!(error.to_string().contains(&place), "{error}");
    damaged.segment(2).unwrap();
}
