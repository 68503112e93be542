//! One value of a filesystem, with what it may become again.
//!
//! ```text
//!   set --> now          others see it, or its client makes it durable: it is at the server
//!            |  the client's session is lost before --> any value since the client set it first
//!            |  the server crashes before a sync, and one of those who have set it since does not
//!            |  come back                            --> any value since the last sync
//!            v
//!           seen: it is known again which one
//! ```
//!
//! A change that a client makes by itself is not at the server at once; but it is before anybody
//! else sees or changes the value. A client whose session outlives a crash says again what was lost
//! by it.

/// Sessions that something may have been done in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author {
    /// Which client.
    pub client: usize,
    /// The first of its sessions.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cell<T> {
    now: T,
    /// What it may be instead.
    or: Vec<T>,
    /// Who set it, and may be the only one to know.
    author: Option<Author>,
    /// What it was since the author has set it first, without anybody else seeing it.
    own: Vec<T>,
    /// What it was since it was durable, and who has set it to something else.
    since: Vec<(T, Author)>,
}

impl Author {
    fn is_one_of(&self, sessions: &[u64]) -> bool {
        sessions.iter().any(|session| (self.first..=self.last).contains(session))
    }
}

fn insert<T: Ord>(values: &mut Vec<T>, value: T) {
    if let Err(at) = values.binary_search(&value) {
        values.insert(at, value);
    }
}

impl<T: Ord + Copy> Cell<T> {
    /// A value that is durable.
    pub fn is(value: T) -> Self {
        let (or, own, since) = Default::default();
        Self { now: value, or, author: None, own, since }
    }

    /// The same, as nobody will change it any more.
    pub fn frozen(&self) -> Self {
        Self { or: self.or.clone(), ..Self::is(self.now) }
    }

    /// All that it may be.
    pub fn possible(&self) -> impl Iterator<Item = T> {
        [self.now].into_iter().chain(self.or.iter().copied())
    }

    /// Whether it is this, or may become so again by the end of one of `sessions`, or by that of
    /// one of `crashed` with a crash.
    pub fn may_become(&self, value: T, sessions: &[u64], crashed: &[u64]) -> bool {
        let is_it = |possible: T| possible == value;
        let may_be_lost = self.author.is_some_and(|author| author.is_one_of(sessions));
        let may_crash = self.has_authors(crashed);
        self.possible().any(is_it)
            || (may_crash || may_be_lost) && self.own.iter().copied().any(is_it)
            || may_crash && self.since.iter().any(|(old, _)| is_it(*old))
    }

    /// Whether one of `sessions` has set it since it was durable.
    fn has_authors(&self, sessions: &[u64]) -> bool {
        self.since.iter().any(|(_, author)| author.is_one_of(sessions))
    }

    /// It is set.
    pub fn set(&mut self, value: T, author: Author) {
        match &mut self.author {
            Some(before) if before.client == author.client => {
                before.first = before.first.min(author.first);
                before.last = before.last.max(author.last);
            }
            before => {
                *before = Some(author);
                self.own.clear();
            }
        }
        for old in [self.now].into_iter().chain(std::mem::take(&mut self.or)) {
            insert(&mut self.own, old);
            insert(&mut self.since, (old, author));
        }
        self.now = value;
    }

    /// Were it not for those who have set it since it was durable, it might be this now.
    pub fn would_be(&mut self, value: T) {
        let mut authors: Vec<Author> = self.since.iter().map(|(_, author)| *author).collect();
        authors.dedup();
        authors.into_iter().for_each(|author| insert(&mut self.since, (value, author)));
    }

    /// What `author` has done makes it this, if something is lost that was done before.
    pub fn might_be(&mut self, value: T, author: Author) {
        insert(&mut self.since, (value, author));
    }

    /// What it was since it was durable, but for what it is now.
    pub fn before(&self) -> impl Iterator<Item = T> {
        self.since.iter().map(|(old, _)| *old).filter(|old| *old != self.now)
    }

    /// It is seen to be this, by `client`. Whether it can be.
    pub fn see(&mut self, value: T, client: usize) -> bool {
        let can_be = self.possible().any(|possible| possible == value);
        self.now = value;
        self.or.clear();
        self.passed_to(client);
        can_be
    }

    /// It is taken to be this, which it can be, though nobody has looked.
    pub fn assume(&mut self, value: T) {
        self.now = value;
        self.or.clear();
    }

    /// The client has had to do with it.
    fn passed_to(&mut self, client: usize) {
        if self.author.is_some_and(|author| author.client != client) {
            self.author = None;
            self.own.clear();
        }
    }

    /// The session is lost.
    pub fn lose(&mut self, session: u64) {
        if self.author.is_some_and(|author| author.is_one_of(&[session])) {
            self.take_back(false);
        }
    }

    /// The server has crashed, and somebody's session does not go on on whose changes those of
    /// others may have been built.
    pub fn crash_with_others(&mut self) {
        if !self.since.is_empty() {
            self.take_back(true);
        }
    }

    /// Whether it may become this by that.
    pub fn was_since(&self, value: T) -> bool {
        self.since.iter().any(|(old, _)| *old == value)
    }

    /// The server has crashed, and these sessions do not go on.
    pub fn crash(&mut self, sessions: &[u64]) {
        if self.has_authors(sessions) {
            self.take_back(true);
        }
    }

    fn take_back(&mut self, all: bool) {
        let mut back = std::mem::take(&mut self.own);
        if all {
            back.extend(std::mem::take(&mut self.since).into_iter().map(|(old, _)| old));
        }
        for old in back.into_iter().filter(|old| *old != self.now) {
            insert(&mut self.or, old);
        }
        self.author = None;
    }

    /// The client makes it durable, as far as it is known to the server.
    pub fn sync(&mut self, client: usize) {
        self.since = match self.author {
            Some(author) if author.client != client => {
                self.own.iter().map(|old| (*old, author)).collect()
            }
            _ => Vec::new(),
        };
        if self.since.is_empty() {
            self.author = None;
            self.own.clear();
        }
    }

    /// The value `old` goes by the name `new` from now on.
    pub fn rename(&mut self, old: T, new: T) {
        for value in [&mut self.now].into_iter().chain(&mut self.or) {
            if *value == old {
                *value = new;
            }
        }
        let renamed = |value: T| if value == old { new } else { value };
        for values in [&mut self.or, &mut self.own] {
            values.iter_mut().for_each(|value| *value = renamed(*value));
            values.sort_unstable();
            values.dedup();
        }
        self.since.iter_mut().for_each(|(value, _)| *value = renamed(*value));
        self.since.sort_unstable();
        self.since.dedup();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author(client: usize) -> Author {
        Author { client, first: client as u64, last: client as u64 }
    }

    fn possible(cell: &Cell<u32>) -> Vec<u32> {
        let mut possible: Vec<u32> = cell.possible().collect();
        possible.sort_unstable();
        possible
    }

    #[test]
    fn what_only_its_author_knows_is_lost_with_the_authors_session() {
        let mut cell = Cell::is(0);
        cell.set(1, author(7));
        cell.set(2, author(7));
        cell.lose(8);
        assert_eq!(possible(&cell), [2]);
        cell.lose(7);
        assert_eq!(possible(&cell), [0, 1, 2]);
        assert!(cell.see(1, 3));
        assert_eq!(possible(&cell), [1]);
    }

    #[test]
    fn what_others_have_seen_or_changed_is_lost_by_a_crash_without_its_author_only() {
        let mut cell = Cell::is(0);
        cell.set(1, author(7));
        assert!(cell.see(1, 8));
        cell.lose(7);
        assert_eq!(possible(&cell), [1]);
        cell.set(2, author(8));
        cell.lose(8);
        assert_eq!(possible(&cell), [1, 2]);
        cell.crash(&[9]);
        assert_eq!(possible(&cell), [1, 2]);
        cell.crash(&[7]);
        assert_eq!(possible(&cell), [0, 1, 2]);
        assert!(!cell.see(3, 8));
    }

    #[test]
    fn what_somebody_has_hidden_shows_if_he_is_lost_by_a_crash() {
        let mut cell = Cell::is(0);
        cell.would_be(1);
        cell.set(5, author(7));
        assert!(cell.see(5, 8));
        cell.would_be(3);
        cell.lose(7);
        cell.crash(&[8]);
        assert_eq!(possible(&cell), [5]);
        cell.crash(&[7]);
        assert_eq!(possible(&cell), [0, 3, 5]);
    }

    #[test]
    fn a_sync_keeps_what_the_server_knows() {
        let mut cell = Cell::is(0);
        cell.set(1, author(7));
        cell.set(2, author(8));
        cell.sync(7);
        cell.crash(&[7, 8]);
        assert_eq!(possible(&cell), [1, 2]);
        cell.set(3, author(8));
        cell.sync(8);
        cell.crash(&[7, 8]);
        assert_eq!(possible(&cell), [3]);
    }
}
