//! The targets of `fuzz/`, run over damaged samples and noise without a fuzzer.

#[path = "../../../../fuzz/src/inputs.rs"]
mod inputs;
#[path = "../../../../fuzz/src/map.rs"]
mod map;

/// Inputs for each target: a second or two in all.
const COUNT: u64 = 3000;

#[test]
fn decoding_gives_a_value_or_a_reason() {
    for target in map::targets() {
        inputs::run(&target, COUNT);
    }
}
