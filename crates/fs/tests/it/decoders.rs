//! The targets of `fuzz/`, run over damaged samples and noise without a fuzzer.

#[path = "../../../../fuzz/src/fs.rs"]
mod fs;
#[path = "../../../../fuzz/src/inputs.rs"]
mod inputs;

/// Inputs for each target: a second in all.
const COUNT: u64 = 20_000;

#[test]
fn decoding_gives_a_value_or_a_reason() {
    for target in fs::targets() {
        inputs::run(&target, COUNT);
    }
}
