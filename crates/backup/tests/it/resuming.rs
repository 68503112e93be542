//! A stream that was cut off anywhere can be taken up again.

use std::io::{self, Write};

use gabion_backup::scan::scan;
use gabion_backup::{Secret, Writer};

use crate::world::{content, full, header, stream, take};

#[test]
fn whatever_was_written_goes_on_to_the_same_files() {
    for secret in [None, Some(Secret::KeyFile(vec![1; 32]))] {
        let secret = secret.as_ref();
        let whole = stream(header(1, None), &full(), secret);
        let wanted = content(&[&whole], secret).unwrap();
        let mut kept_some = 0;
        for length in (0..=whole.len()).step_by(7) {
            // What could not even be begun is begun anew.
            let Ok(kept) = scan(&whole[..length].to_vec(), secret) else { continue };
            let head = whole[..kept.length as usize].to_vec();
            kept_some += usize::from(!kept.complete.is_empty());
            let steps = full();
            let known = scan(&head, secret).unwrap();
            let mut writer = Writer::resume(head.clone(), kept).unwrap();
            take(&mut writer, &steps, Some(&known)).unwrap();
            let (bytes, totals, _) = writer.finish().unwrap();
            assert!(bytes.starts_with(&head));
            assert_eq!(content(&[&bytes], secret).unwrap(), wanted, "cut at {length}");
            assert_eq!(totals.objects, 7, "cut at {length}");
        }
        assert!(kept_some > 10, "{kept_some}");
    }
}

/// Remembers where it was flushed.
#[derive(Default)]
struct Flushed {
    bytes: Vec<u8>,
    at: Vec<usize>,
}

impl Write for Flushed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.at.push(self.bytes.len());
        Ok(())
    }
}

#[test]
fn a_stream_is_flushed_where_it_is_good_and_not_only_at_its_end() {
    let mut writer = Writer::begin(Flushed::default(), header(1, None), None).unwrap();
    take(&mut writer, &full(), None).unwrap();
    writer.checkpoint().unwrap();
    let (Flushed { bytes, at }, _, length) = writer.finish().unwrap();
    assert!(at.len() > 1 && at.last() == Some(&(length as usize)), "{at:?} of {length}");
    for end in &at[..at.len() - 1] {
        let kept = scan(&bytes[..*end].to_vec(), None).unwrap();
        assert_eq!(kept.length, *end as u64);
        assert!(!kept.complete.is_empty());
    }
}
