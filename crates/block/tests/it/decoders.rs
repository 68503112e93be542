//! The fuzz targets of volumes, over seeded inputs.

#[path = "../../../../fuzz/src/block.rs"]
mod block;
#[path = "../../../../fuzz/src/inputs.rs"]
mod inputs;

#[test]
fn decoders_give_a_value_or_a_reason() {
    for target in block::targets() {
        inputs::run(&target, 4000);
    }
}
