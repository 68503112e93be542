//! The fuzz targets of the link, over seeded inputs.

#[path = "../../../../fuzz/src/inputs.rs"]
mod inputs;
#[path = "../../../../fuzz/src/link.rs"]
mod link;

use crate::samples;

#[test]
fn decoders_give_a_value_or_a_reason() {
    for target in link::targets() {
        inputs::run(&target, 20_000);
    }
}

#[test]
fn every_beginning_and_every_changed_byte_of_a_message_is_a_value_or_a_reason() {
    for target in link::targets() {
        for sample in &target.samples {
            for end in 0..sample.len() {
                assert!((target.run)(&sample[..end]).is_err(), "{end} bytes of {sample:?}");
            }
            for at in 0..sample.len() {
                // Every number of every table, and every bit.
                let flipped = (0..8).map(|bit| sample[at] ^ 1 << bit);
                for byte in (0..48).chain(flipped) {
                    let mut changed = sample.clone();
                    changed[at] = byte;
                    // What it asserts is that whatever is understood is said in the same way.
                    let _ = (target.run)(&changed);
                }
            }
            let longer = [&sample[..], &[0]].concat();
            assert!((target.run)(&longer).is_err(), "a byte behind {sample:?}");
        }
    }
}
