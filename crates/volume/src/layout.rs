//! Layouts as people write them.
//!
//! ```text
//!   nbd://host/tank                          a member
//!   mirror(A,B)  stripe(A,B)  linear(A,B)    of members, or of more of the same
//! ```

use gabion_base::ids::Uuid;
use gabion_block::epoch::Epoch;
use gabion_block::record::{CopyState, Layout, Member, MirrorCopy, Wish};
use thiserror::Error;

/// Blocks on one part of a stripe before it is the next one's turn: 256 KiB.
const CHUNK_BLOCKS: u64 = 64;
/// Levels that are read.
const DEPTH_MAX: usize = 4;

/// How parts are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The same on all.
    Mirror,
    /// One after the other.
    Linear,
    /// In turns.
    Stripe,
}

/// Why text is no layout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text} is no layout: {reason}")]
pub struct LayoutError {
    text: String,
    reason: &'static str,
}

fn refused<T>(text: &str, reason: &'static str) -> Result<T, LayoutError> {
    Err(LayoutError { text: text.to_owned(), reason })
}

/// A layout of which nothing is known but where its members are; blocks and identities are zero.
pub fn parse(text: &str) -> Result<Layout, LayoutError> {
    parse_part(text, 0)
}

fn parse_part(text: &str, depth: usize) -> Result<Layout, LayoutError> {
    let kinds = [("mirror(", Kind::Mirror), ("linear(", Kind::Linear), ("stripe(", Kind::Stripe)];
    let found = kinds.iter().find_map(|(start, kind)| Some((text.strip_prefix(start)?, *kind)));
    let Some((inner, kind)) = found else {
        if text.is_empty() || text.contains(['(', ')', ',']) {
            return refused(text, "it must be a path, an nbd:// URI, or mirror(...), and so on");
        }
        let member = Member { uuid: Uuid::default(), url: text.to_owned(), blocks: 0 };
        return Ok(Layout::Member(member));
    };
    let Some(inner) = inner.strip_suffix(')') else {
        return refused(text, "a ) is missing at its end");
    };
    if depth >= DEPTH_MAX {
        return refused(text, "it is too deep");
    }
    let parts = split(inner).into_iter().map(|part| parse_part(part, depth + 1));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    Ok(of_parts(kind, parts))
}

/// Puts parts together.
pub fn of_parts(kind: Kind, parts: Vec<Layout>) -> Layout {
    match kind {
        Kind::Linear => Layout::Linear(parts),
        Kind::Stripe => Layout::Stripe { chunk_blocks: CHUNK_BLOCKS, parts },
        Kind::Mirror => {
            let copy =
                |on| MirrorCopy { state: CopyState::InSync, wish: Wish::Use, since: Epoch(0), on };
            let copies = parts.into_iter().map(copy).collect();
            Layout::Mirror { uuid: Uuid::default(), blocks: 0, grows_to: 0, copies }
        }
    }
}

/// Cuts at the commas that are in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// A layout in the way that [`parse`] reads.
pub fn text(layout: &Layout) -> String {
    let all = |name: &str, parts: Vec<&Layout>| {
        let parts: Vec<_> = parts.into_iter().map(text).collect();
        format!("{name}({})", parts.join(","))
    };
    match layout {
        Layout::Member(member) => member.url.clone(),
        Layout::Linear(parts) => all("linear", parts.iter().collect()),
        Layout::Stripe { parts, .. } => all("stripe", parts.iter().collect()),
        Layout::Mirror { copies, .. } => {
            let there = copies.iter().filter(|copy| copy.state != CopyState::Removed);
            all("mirror", there.map(|copy| &copy.on).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_read_and_written() {
        for written in
            ["nbd://a/b", "mirror(nbd://a/b,/dev/sdb)", "mirror(stripe(a,b),linear(c,mirror(d,e)))"]
        {
            assert_eq!(text(&parse(written).unwrap()), written);
        }
        for wrong in ["", "mirror(", "mirror(a,", "mirror()", "a,b", "stripe(a,b))"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let deep = "linear(".repeat(9) + "a" + &")".repeat(9);
        assert!(parse(&deep).is_err());
    }
}
