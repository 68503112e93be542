//! The fuzz targets of NBD, over seeded inputs.

#[path = "../../../../fuzz/src/inputs.rs"]
mod inputs;
#[path = "../../../../fuzz/src/nbd.rs"]
mod nbd;

#[test]
fn decoders_give_a_value_or_a_reason() {
    for target in nbd::targets() {
        inputs::run(&target, 4000);
    }
}
