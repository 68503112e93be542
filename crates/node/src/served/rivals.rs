//! Files whose locks several processes want at about the same time. To keep such locks here costs
//! each of them less than to take the lease on them from each other.

use std::collections::BTreeMap;
use std::time::Duration;

use gabion_link::table::ClientId;
use gabion_map::FileId;

/// For how long a file is remembered. As long as this nobody else must have wanted locks on it
/// before one client gets the lease.
const MEMORY: Duration = Duration::from_secs(1);
/// Files that are remembered. On others nobody gets a lease.
const FILES_MAX: usize = 4096;

struct Interest {
    /// Who was the last to ask.
    client: ClientId,
    asked: Duration,
    /// Nobody gets a lease before.
    contended_until: Duration,
}

/// Who has asked for locks lately.
#[derive(Default)]
pub(super) struct Rivals {
    files: BTreeMap<FileId, Interest>,
}

impl Rivals {
    /// The client asks for locks on the file. Whether nobody else did lately.
    pub(super) fn asks(&mut self, file: FileId, client: ClientId, now: Duration) -> bool {
        let Some(interest) = self.interest(file, client, now) else { return false };
        if interest.client != client && now.saturating_sub(interest.asked) < MEMORY {
            interest.contended_until = now + MEMORY;
        }
        (interest.client, interest.asked) = (client, now);
        now >= interest.contended_until
    }

    /// Somebody wants locks on the file that somebody else decides about, or has.
    pub(super) fn collide(&mut self, file: FileId, client: ClientId, now: Duration) {
        if let Some(interest) = self.interest(file, client, now) {
            interest.contended_until = now + MEMORY;
        }
    }

    fn interest(&mut self, file: FileId, client: ClientId, now: Duration) -> Option<&mut Interest> {
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&file) {
            self.files.retain(|_, one| {
                now.saturating_sub(one.asked) < MEMORY || now < one.contended_until
            });
            if self.files.len() >= FILES_MAX {
                return None;
            }
        }
        let new = Interest { client, asked: now, contended_until: Duration::ZERO };
        Some(self.files.entry(file).or_insert(new))
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn who_asks_alone_for_a_while_is_alone() {
        let mut rivals = Rivals::default();
        assert!(rivals.asks(file(1), A, at(0)));
        assert!(!rivals.asks(file(1), B, at(100)));
        assert!(rivals.asks(file(2), B, at(100)));
        assert!(!rivals.asks(file(1), B, at(1099)));
        assert!(rivals.asks(file(1), B, at(1100)));
        rivals.collide(file(1), A, at(5000));
        assert!(!rivals.asks(file(1), B, at(5999)));
        assert!(rivals.asks(file(1), B, at(6000)));
    }

    #[test]
    fn only_so_many_files_are_remembered_and_those_of_late() {
        let mut rivals = Rivals::default();
        for number in 0..FILES_MAX as u64 {
            assert!(rivals.asks(file(number), A, at(0)));
        }
        assert!(!rivals.asks(file(9999), A, at(500)));
        assert!(rivals.asks(file(9999), A, at(1000)));
        assert_eq!(rivals.files.len(), 1);
    }
}
