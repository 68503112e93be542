//! What earlier versions say is understood by this one, and said in the same bytes, for ever.
//!
//! `golden/v5-wire.txt` has one of everything: a line that names it, and its bytes in lines of 16.
//!
//! `GABION_REWRITE_GOLDEN=1` writes the file anew. That is for what version 5 has not said before,
//! as long as it was not released. Bytes of a released version never change: a new version has a
//! new file.

use std::fmt::{Debug, Write as _};
use std::fs;
use std::path::PathBuf;

use gabion_link::join::{Admission, Application};
use gabion_link::message::{Hello, Refusal, ToClient, ToServer, Welcome};
use gabion_link::wire::Header;

use crate::samples;

/// One thing that is said.
struct Sample {
    name: String,
    bytes: Vec<u8>,
    /// The value, in words, that bytes stand for.
    decode: fn(&[u8]) -> String,
}

fn words(value: impl Debug) -> String {
    format!("{value:?}")
}

/// The samples of one kind.
fn of<T>(
    kind: &str,
    values: Vec<T>,
    encode: fn(&T) -> Vec<u8>,
    decode: fn(&[u8]) -> String,
) -> Vec<Sample> {
    let sample =
        |(index, value)| Sample { name: format!("{kind} {index}"), bytes: encode(value), decode };
    values.iter().enumerate().map(sample).collect()
}

fn all() -> Vec<Sample> {
    let header = |bytes: &[u8]| words(Header::decode(bytes.try_into().unwrap()).unwrap());
    let kinds = [
        of("header", samples::headers(), |value| value.encode().to_vec(), header),
        of("hello", samples::hellos(), Hello::encode, |b| words(Hello::decode(b).unwrap())),
        of("welcome", samples::welcomes(), Welcome::encode, |b| words(Welcome::decode(b).unwrap())),
        of("refusal", samples::refusals(), Refusal::encode, |b| words(Refusal::decode(b).unwrap())),
        of("to server", samples::to_server(), ToServer::encode, |b| {
            words(ToServer::decode(b).unwrap())
        }),
        of("to client", samples::to_client(), ToClient::encode, |b| {
            words(ToClient::decode(b).unwrap())
        }),
        of("application", samples::applications(), Application::encode, |b| {
            words(Application::decode(b).unwrap())
        }),
        of("admission", samples::admissions(), Admission::encode, |b| {
            words(Admission::decode(b).unwrap())
        }),
    ];
    kinds.into_iter().flatten().collect()
}

/// A sample as it stands in the file.
fn text(sample: &Sample) -> String {
    let mut text = format!("{}: {}\n", sample.name, (sample.decode)(&sample.bytes));
    for line in sample.bytes.chunks(16) {
        let line: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}", line.join(" "));
    }
    text
}

#[test]
fn version_5_is_spoken_as_it_always_was() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v5-wire.txt");
    let samples = all();
    let texts: Vec<String> = samples.iter().map(text).collect();
    if std::env::var_os("GABION_REWRITE_GOLDEN").is_some() {
        fs::write(&path, texts.concat()).expect("a writable checkout");
    }
    let golden = fs::read_to_string(&path).expect("a golden file");
    let found = texts.concat();
    for (number, (golden, found)) in golden.lines().zip(found.lines()).enumerate() {
        assert_eq!(
            golden,
            found,
            "line {} of {}; the head of this test says when GABION_REWRITE_GOLDEN=1 is right",
            number + 1,
            path.display()
        );
    }
    assert_eq!(golden.len(), found.len(), "one of everything stands in {}", path.display());
}
