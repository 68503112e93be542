//! The fuzz targets of backups, over seeded inputs.

#[path = "../../../../fuzz/src/backup.rs"]
mod backup;
#[path = "../../../../fuzz/src/inputs.rs"]
mod inputs;

#[test]
fn decoders_give_a_value_or_a_reason() {
    for target in backup::targets() {
        inputs::run(&target, 20_000);
    }
}
