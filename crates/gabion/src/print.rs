//! Standard output, which may be closed at any time by whoever has seen enough.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::failure::{Failure, Result};

/// Prints a line. A reader that is gone is no failure; a full disk is.
pub fn line(text: impl Display) -> Result<()> {
    let text = text.to_string();
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", harmless(&text)).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::of("cannot print", &error))
        }
        _ => Ok(()),
    }
}

/// Says something on standard error, as this program.
pub fn notice(text: impl Display) {
    // In one call, as several programs may be saying something.
    let line = format!("gabion: {}\n", harmless(&text.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// What others have put into a text, with all that would do something to a terminal or begin a line
/// escaped, as `ls -b` does it: `\n`, `\033`. A backslash is doubled, so that two names are never
/// shown alike.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => shown.push_str("\\\\"),
            letter => escape_into(&mut shown, letter),
        }
    }
    shown
}

/// The same of a path, which need not be text.
pub fn path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        shown.push_str(&printable(chunk.valid()));
        chunk.invalid().iter().for_each(|byte| octal_into(&mut shown, *byte));
    }
    shown
}

/// A text of ours, in which there may be names: nothing in it does anything to a terminal. Its
/// lines stay lines.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let is_ours = |letter: char| matches!(letter, '\n' | '\t');
    if !text.chars().any(|letter| letter.is_control() && !is_ours(letter)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_ours(letter) {
            true => shown.push(letter),
            false => escape_into(&mut shown, letter),
        }
    }
    Cow::Owned(shown)
}

fn escape_into(shown: &mut String, letter: char) {
    match letter {
        '\n' => shown.push_str("\\n"),
        '\t' => shown.push_str("\\t"),
        '\r' => shown.push_str("\\r"),
        letter if letter.is_control() => {
            let mut bytes = [0; 4];
            letter.encode_utf8(&mut bytes).bytes().for_each(|byte| octal_into(shown, byte));
        }
        letter => shown.push(letter),
    }
}

fn octal_into(shown: &mut String, byte: u8) {
    shown.push_str(&format!("\\{byte:03o}"));
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn what_would_do_something_to_a_terminal_is_escaped() {
        assert_eq!(printable("a\n\t\r\u{1b}[31mb\u{7f}"), r"a\n\t\r\033[31mb\177");
        assert_eq!(printable("\u{9b}31m"), r"\302\23331m", "C1 codes, too");
        assert_eq!(printable(r"a\n"), r"a\\n", "it is not taken for a line's end");
        assert_eq!(printable("größer 文"), "größer 文");
    }

    #[test]
    fn a_path_that_is_no_text_is_told_in_full() {
        let bytes = OsStr::from_bytes(b"/a\xff\xfe/\xc3\xa9\n");
        assert_eq!(path(Path::new(bytes)), r"/a\377\376/é\n");
    }

    #[test]
    fn lines_of_a_text_stay_lines() {
        assert_eq!(harmless("one\n\ttwo"), "one\n\ttwo");
        assert_eq!(harmless("one\n\u{1b}two\\"), "one\n\\033two\\");
    }
}
