#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = gabion_fuzz::backup::backup(bytes);
});
