//! POSIX ACLs: the rules of acl(5) on values.
//!
//! An access ACL refines the mode word and is tied to it: owner and others are the same in both,
//! and the mode's group bits are the ACL's mask (without a mask: its owning group). An ACL that
//! says no more than a mode word is not kept. A default ACL of a directory is what objects in it
//! start with, in place of the umask.
//!
//! Where ACLs are stored is the matter of [`crate::xattr`].

use crate::caller::Caller;

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The object's owner.
    Owner,
    /// A user.
    User(u32),
    /// The object's group.
    OwningGroup,
    /// A group.
    Group(u32),
    /// What users, the owning group and groups get at most.
    Mask,
    /// Everyone else.
    Others,
}

impl Tag {
    fn rank(self) -> u8 {
        match self {
            Self::Owner => 0,
            Self::User(_) => 1,
            Self::OwningGroup => 2,
            Self::Group(_) => 3,
            Self::Mask => 4,
            Self::Others => 5,
        }
    }
}

/// One line of an ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whom it is about.
    pub tag: Tag,
    /// What they may: 4 read, 2 write, 1 execute.
    pub permissions: u8,
}

/// A valid ACL: one owner, owning group and others, a mask if it names users or groups, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// The ACL of these entries if they make a valid one.
    pub fn new(entries: Vec<Entry>) -> Option<Self> {
        if !entries.is_sorted_by_key(|entry| entry.tag.rank()) {
            return None;
        }
        let mut counts = [0_usize; 6];
        for entry in &entries {
            counts[usize::from(entry.tag.rank())] += 1;
        }
        let [owner, users, owning_group, groups, mask, others] = counts;
        let is_valid = owner == 1
            && owning_group == 1
            && others == 1
            && mask <= 1
            && (mask == 1 || users + groups == 0);
        is_valid.then_some(Self { entries })
    }

    /// The entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The nine bits of the mode word that belong to this ACL.
    pub fn permissions(&self) -> u32 {
        let mut owner = 0;
        let mut group = 0;
        let mut others = 0;
        for entry in &self.entries {
            let permissions = u32::from(entry.permissions);
            match entry.tag {
                Tag::Owner => owner = permissions,
                // The mask stands behind the owning group and takes its place.
                Tag::OwningGroup | Tag::Mask => group = permissions,
                Tag::Others => others = permissions,
                Tag::User(_) | Tag::Group(_) => {}
            }
        }
        owner << 6 | group << 3 | others
    }

    /// Whether a mode word says the same.
    pub fn is_mode_word(&self) -> bool {
        self.entries.len() == 3
    }

    /// Makes the ACL agree with new permission bits, as chmod(2) does.
    pub fn change_mode(&mut self, permissions: u32) {
        let has_mask = self.entries.iter().any(|entry| entry.tag == Tag::Mask);
        for entry in &mut self.entries {
            let shift = match entry.tag {
                Tag::Owner => 6,
                Tag::OwningGroup if !has_mask => 3,
                Tag::Mask => 3,
                Tag::Others => 0,
                _ => continue,
            };
            entry.permissions = (permissions >> shift & 7) as u8;
        }
    }

    /// Makes a default ACL the access ACL of a new object that was asked for with `permissions`:
    /// both give no more than the other. The object's permission bits are those of the result.
    pub fn restrict(&mut self, permissions: u32) {
        self.change_mode(self.permissions() & permissions);
    }

    /// Whether the ACL grants `wanted` (4 read, 2 write, 1 execute) to `caller` on an object of
    /// `owner` and `group`: the algorithm of acl(5), "Access check algorithm".
    pub fn grants(&self, caller: &Caller, owner: u32, group: u32, wanted: u8) -> bool {
        let mask = self.mask();
        let mut is_member = false;
        for entry in &self.entries {
            match entry.tag {
                Tag::Owner if caller.uid == owner => {
                    return entry.permissions & wanted == wanted;
                }
                Tag::User(uid) if caller.uid == uid => {
                    return entry.permissions & mask & wanted == wanted;
                }
                Tag::OwningGroup if caller.is_in_group(group) => {
                    is_member = true;
                    if entry.permissions & mask & wanted == wanted {
                        return true;
                    }
                }
                Tag::Group(gid) if caller.is_in_group(gid) => {
                    is_member = true;
                    if entry.permissions & mask & wanted == wanted {
                        return true;
                    }
                }
                Tag::Others => return !is_member && entry.permissions & wanted == wanted,
                _ => {}
            }
        }
        false
    }

    fn mask(&self) -> u8 {
        let mask = self.entries.iter().find(|entry| entry.tag == Tag::Mask);
        mask.map_or(7, |entry| entry.permissions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::{Groups, Trust};

    fn acl(entries: &[(Tag, u8)]) -> Acl {
        let entries =
            entries.iter().map(|(tag, permissions)| Entry { tag: *tag, permissions: *permissions });
        Acl::new(entries.collect()).expect("the test's ACL is valid")
    }

    fn caller(uid: u32, groups: &[u32]) -> Caller {
        let groups = Groups::new(groups);
        Caller { uid, gid: 9999, groups, umask: 0, trust: Trust::CheckHere }
    }

    fn rich() -> Acl {
        acl(&[
            (Tag::Owner, 7),
            (Tag::User(5), 6),
            (Tag::OwningGroup, 4),
            (Tag::Group(20), 2),
            (Tag::Mask, 6),
            (Tag::Others, 1),
        ])
    }

    #[test]
    fn the_first_class_that_fits_decides_and_groups_add_up_only_by_one_entry() {
        let grants = |caller: &Caller, wanted| rich().grants(caller, 1, 10, wanted);
        assert!(grants(&caller(1, &[]), 7));
        assert!(grants(&caller(5, &[]), 6));
        assert!(!grants(&caller(5, &[]), 1));
        assert!(grants(&caller(6, &[10]), 4));
        assert!(grants(&caller(6, &[20]), 2));
        // No single entry grants both.
        assert!(!grants(&caller(6, &[10, 20]), 6));
        // A member is no longer one of the others.
        assert!(!grants(&caller(6, &[20]), 1));
        assert!(grants(&caller(6, &[]), 1));
    }

    #[test]
    fn the_mask_limits_all_but_owner_and_others() {
        let mut acl = rich();
        acl.change_mode(0o707);
        assert!(!acl.grants(&caller(5, &[]), 1, 10, 4));
        assert!(!acl.grants(&caller(6, &[10]), 1, 10, 4));
        assert!(acl.grants(&caller(1, &[]), 1, 10, 7));
        assert_eq!(acl.permissions(), 0o707);
        // The owning group keeps what it had, behind the mask.
        assert_eq!(acl.entries()[2].permissions, 4);
    }

    #[test]
    fn a_new_object_gets_no_more_than_default_acl_and_mode_allow() {
        let mut acl = rich();
        assert_eq!(acl.permissions(), 0o761);
        acl.restrict(0o640);
        assert_eq!(acl.permissions(), 0o640);
        let mut minimal = acl_of_mode(0o751);
        assert!(minimal.is_mode_word() && !rich().is_mode_word());
        minimal.restrict(0o666);
        assert_eq!(minimal.permissions(), 0o640);
    }

    fn acl_of_mode(permissions: u32) -> Acl {
        acl(&[
            (Tag::Owner, (permissions >> 6 & 7) as u8),
            (Tag::OwningGroup, (permissions >> 3 & 7) as u8),
            (Tag::Others, (permissions & 7) as u8),
        ])
    }
}
