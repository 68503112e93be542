//! The difference of two snapshots on its way from who has the map to who reads the files.

use gabion_base::ids::Ino;
use gabion_link::errand::DeltaRow;
use gabion_node::{Delta, Stretch, Touched};

use crate::control::wire;

/// So many names or objects are told in one part at most,
const PER_PART: usize = 200;
/// and no more objects when their paths have so many digits: paths have no longest, and lines do.
const DIGITS_PER_PART: usize = 1 << 20;
/// So many ranges are told of one object at once.
const RANGES: usize = 256;

/// The difference in parts, at least one.
pub fn parts(delta: &Delta) -> Vec<wire::Delta> {
    let mut parts = Vec::new();
    for gone in delta.gone.chunks(PER_PART) {
        let gone = gone.iter().map(|ino| ino.0).collect();
        parts.push(wire::Delta { gone, ..wire::Delta::default() });
    }
    for names in delta.names_gone.chunks(PER_PART) {
        let names_gone = names.iter().map(|(dir, name)| (dir.0, hexadecimal(name))).collect();
        parts.push(wire::Delta { names_gone, ..wire::Delta::default() });
    }
    for names in delta.names.chunks(PER_PART) {
        let names = names.iter().map(|(dir, name, ino)| (dir.0, hexadecimal(name), ino.0));
        parts.push(wire::Delta { names: names.collect(), ..wire::Delta::default() });
    }
    let mut digits = DIGITS_PER_PART;
    for touched in delta.touched.iter().flat_map(object) {
        let is_full = |part: &wire::Delta| part.touched.len() >= PER_PART;
        if digits >= DIGITS_PER_PART || parts.last().is_none_or(is_full) {
            parts.push(wire::Delta::default());
            digits = 0;
        }
        digits += touched.path.len();
        parts.last_mut().expect("one was just there").touched.push(touched);
    }
    if parts.is_empty() {
        parts.push(wire::Delta::default());
    }
    let last = parts.len() - 1;
    parts[..last].iter_mut().for_each(|part| part.more = true);
    parts
}

fn object(touched: &Touched) -> Vec<wire::Touched> {
    let told = |ranges| wire::Touched {
        inode: touched.ino.0,
        path: hexadecimal(&touched.path),
        new: touched.is_new,
        ranges,
    };
    if touched.stretches.is_empty() {
        return vec![told(Vec::new())];
    }
    let row = |stretch: &Stretch| (stretch.from, stretch.to, stretch.is_hole);
    let some = touched.stretches.chunks(RANGES);
    some.map(|stretches| told(stretches.iter().map(row).collect())).collect()
}

/// The difference that these parts tell; nothing if something in them is not in hexadecimal digits.
pub fn join(parts: Vec<wire::Delta>) -> Option<Delta> {
    let mut delta = Delta::default();
    for part in parts {
        delta.gone.extend(part.gone.into_iter().map(Ino));
        for (dir, name) in part.names_gone {
            delta.names_gone.push((Ino(dir), bytes(&name)?));
        }
        for (dir, name, ino) in part.names {
            delta.names.push((Ino(dir), bytes(&name)?, Ino(ino)));
        }
        for object in part.touched {
            let ranges = object.ranges.into_iter();
            let stretches = ranges.map(|(from, to, is_hole)| Stretch { from, to, is_hole });
            match delta.touched.last_mut().filter(|last| last.ino.0 == object.inode) {
                Some(last) => last.stretches.extend(stretches),
                None => delta.touched.push(Touched {
                    ino: Ino(object.inode),
                    path: bytes(&object.path)?,
                    is_new: object.new,
                    stretches: stretches.collect(),
                }),
            }
        }
    }
    Some(delta)
}

/// The difference that these rows tell, in order; nothing if one is about an object that was not
/// told before.
pub fn of_rows(rows: Vec<DeltaRow>) -> Option<Delta> {
    let mut delta = Delta::default();
    for row in rows {
        match row {
            DeltaRow::Gone(ino) => delta.gone.push(ino),
            DeltaRow::NameGone { dir, name } => delta.names_gone.push((dir, name)),
            DeltaRow::Name { dir, name, ino } => delta.names.push((dir, name, ino)),
            DeltaRow::Touched { ino, path, is_new } => {
                delta.touched.push(Touched { ino, path, is_new, stretches: Vec::new() });
            }
            DeltaRow::Stretch { ino, from, to, is_hole } => {
                let of = delta.touched.last_mut().filter(|last| last.ino == ino)?;
                of.stretches.push(Stretch { from, to, is_hole });
            }
        }
    }
    // As whoever reads the files wants them: directories before what is in them.
    delta.touched.sort_by(|a, b| a.path.cmp(&b.path));
    Some(delta)
}

/// Bytes as hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    };
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_with_long_paths_fits_a_line() {
        let touched = |ino: u64| Touched {
            ino: Ino(ino),
            path: vec![b'x'; 40_000],
            is_new: true,
            stretches: Vec::new(),
        };
        let delta = Delta { touched: (1..60).map(touched).collect(), ..Delta::default() };
        let parts = parts(&delta);
        let longest = parts.iter().map(|part| serde_json::to_string(part).unwrap().len()).max();
        assert!(longest.is_some_and(|longest| longest < 2 << 20), "{longest:?}");
        assert!((3..30).contains(&parts.len()), "{}", parts.len());
        assert_eq!(join(parts), Some(delta));
    }

    #[test]
    fn a_difference_survives_its_way_in_parts() {
        let name = |number: u64| vec![0xff, b'/', number as u8];
        let stretch =
            |at: u64| Stretch { from: at * 10, to: at * 10 + 5, is_hole: at.is_multiple_of(3) };
        let delta = Delta {
            gone: (0..500).map(Ino).collect(),
            names_gone: (0..300).map(|number| (Ino(number), name(number))).collect(),
            names: (0..201).map(|number| (Ino(1), name(number), Ino(number))).collect(),
            touched: [(7, 0), (8, 1000), (9, 3)]
                .map(|(ino, count)| Touched {
                    ino: Ino(ino),
                    path: name(ino),
                    is_new: ino == 7,
                    stretches: (0..count).map(stretch).collect(),
                })
                .to_vec(),
        };
        let parts = parts(&delta);
        assert!(parts.len() > 5 && parts[..parts.len() - 1].iter().all(|part| part.more));
        assert!(!parts.last().unwrap().more);
        assert_eq!(join(parts), Some(delta));
        assert_eq!(join(super::parts(&Delta::default())), Some(Delta::default()));
        let bad = wire::Delta { names_gone: vec![(1, "4g".to_owned())], ..Default::default() };
        assert_eq!(join(vec![bad]), None);
    }
}
