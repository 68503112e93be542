//! What is far away, read in stretches.
//!
//! Streams are read in small pieces: the frame of a segment, then its bytes, then the next one, or
//! one that is elsewhere. Each would be a question and an answer. So more is fetched than is asked
//! for: a little at a new place, and twice as much each time when it goes on where the last stretch
//! ended.

use std::collections::VecDeque;
use std::io;

use gabion_backup::ReadAt;
use gabion_base::sync::Mutex;

/// What is fetched at a new place, in bytes.
const STRETCH_MIN: u64 = 128 << 10;
/// What is fetched at once at most.
const STRETCH_MAX: u64 = 8 << 20;
/// So many stretches are kept: who restores goes back and forth between neighbours.
const STRETCHES: usize = 4;

/// Something that is read in stretches.
pub struct Window<R> {
    of: R,
    length: u64,
    kept: Mutex<Kept>,
}

struct Kept {
    stretches: VecDeque<(u64, Vec<u8>)>,
    /// Where the last stretch ended, and how much is fetched if it goes on there.
    end: u64,
    next: u64,
}

impl<R: ReadAt> Window<R> {
    /// Around something whose length does not change.
    pub fn new(of: R) -> io::Result<Self> {
        let length = of.length()?;
        let kept = Kept { stretches: VecDeque::new(), end: u64::MAX, next: STRETCH_MIN };
        Ok(Self { of, length, kept: Mutex::new(kept) })
    }
}

impl<R: ReadAt> ReadAt for Window<R> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut kept = self.kept.lock();
        let end = offset.checked_add(into.len() as u64).filter(|end| *end <= self.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        while at < end {
            let rest = &mut into[(at - offset) as usize..];
            match kept.copy(at, rest) {
                0 => kept.fetch(&self.of, at, end, self.length)?,
                count => at += count as u64,
            }
        }
        Ok(())
    }
}

impl Kept {
    /// Copies what is kept from `at` on.
    fn copy(&self, at: u64, into: &mut [u8]) -> usize {
        let has = |from: &u64, bytes: &Vec<u8>| (*from..*from + bytes.len() as u64).contains(&at);
        let found = self.stretches.iter().find(|(from, bytes)| has(from, bytes));
        let Some((from, bytes)) = found else { return 0 };
        let bytes = &bytes[(at - from) as usize..];
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        count
    }

    fn fetch<R: ReadAt>(&mut self, of: &R, at: u64, end: u64, length: u64) -> io::Result<()> {
        self.next = match at == self.end {
            true => (self.next * 2).min(STRETCH_MAX),
            false => STRETCH_MIN,
        };
        let to = (at + self.next).max(end).min(length).min(at + STRETCH_MAX);
        let mut bytes = vec![0; (to - at) as usize];
        of.read_at(at, &mut bytes)?;
        if self.stretches.len() >= STRETCHES {
            self.stretches.pop_front();
        }
        self.stretches.push_back((at, bytes));
        self.end = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it was asked for.
    struct Far {
        bytes: Vec<u8>,
        asked: Mutex<Vec<(u64, usize)>>,
    }

    impl ReadAt for Far {
        fn length(&self) -> io::Result<u64> {
            self.bytes.length()
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            self.asked.lock().push((offset, into.len()));
            self.bytes.read_at(offset, into)
        }
    }

    fn far(length: usize) -> Window<Far> {
        let mut bytes = vec![0; length];
        gabion_base::rng::Rng::new(1).fill(&mut bytes);
        Window::new(Far { bytes, asked: Mutex::default() }).unwrap()
    }

    #[test]
    fn what_is_read_in_order_is_fetched_in_few_stretches() {
        let window = far(40 << 20);
        for at in (0..40 << 20).step_by(10_000) {
            let mut into = vec![0; 10_000.min((40 << 20) - at)];
            window.read_at(at as u64, &mut into).unwrap();
            assert_eq!(into, window.of.bytes[at..at + into.len()]);
        }
        let asked = window.of.asked.lock();
        assert!(asked.len() < 14, "{asked:?}");
        assert_eq!(asked.iter().map(|(_, length)| length).sum::<usize>(), 40 << 20);
    }

    #[test]
    fn what_is_read_here_and_there_is_fetched_without_much_around_it() {
        let window = far(40 << 20);
        let mut rng = gabion_base::rng::Rng::new(7);
        for _ in 0..200 {
            let length = 1 + (rng.next_u64() % 300_000) as usize;
            let at = (rng.next_u64() % ((40 << 20) - length as u64)) as usize;
            let mut into = vec![0; length];
            window.read_at(at as u64, &mut into).unwrap();
            assert_eq!(into, window.of.bytes[at..at + length]);
        }
        let most = 300_000 + STRETCH_MIN as usize;
        assert!(window.of.asked.lock().iter().all(|(_, length)| *length <= most));
        let mut into = [0; 2];
        assert!(window.read_at((40 << 20) - 1, &mut into).is_err());
        assert!(window.read_at(u64::MAX, &mut into).is_err());
        window.read_at((40 << 20) - 2, &mut into).unwrap();
    }
}
