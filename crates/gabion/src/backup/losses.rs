//! What of a tree a filesystem has not taken, or keeps in another way than it was.

use std::fmt::{self, Display};
use std::ops::AddAssign;

/// What was not kept of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Objects that belong to somebody else.
    pub owners: u64,
    /// Objects that have other permissions.
    pub permissions: u64,
    /// Objects that were read or written at another time.
    pub times: u64,
    /// Extended attributes that are not there, among them access lists.
    pub attributes: u64,
    /// Names of an object that others have, too, which are copies of it now.
    pub links: u64,
    /// Devices, pipes, sockets and symbolic links that are not there.
    pub nodes: u64,
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.owners += other.owners;
        self.permissions += other.permissions;
        self.times += other.times;
        self.attributes += other.attributes;
        self.links += other.links;
        self.nodes += other.nodes;
    }
}

impl Display for Losses {
    /// All that there is of it, as in "1 owner, 12 times".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.owners, "owner", "owners"),
            (self.permissions, "set of permissions", "sets of permissions"),
            (self.times, "time", "times"),
            (self.attributes, "extended attribute", "extended attributes"),
            (self.links, "hard link", "hard links"),
            (self.nodes, "special file or symbolic link", "special files or symbolic links"),
        ];
        let told = kinds
            .iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, more)| format!("{count} {}", if *count == 1 { one } else { more }));
        f.write_str(&told.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_and_nothing_else() {
        let mut losses = Losses { owners: 1, ..Losses::default() };
        losses += Losses { owners: 1, times: 1, ..Losses::default() };
        assert_eq!(losses.to_string(), "2 owners, 1 time");
        assert_eq!(Losses::default().to_string(), "");
    }
}
