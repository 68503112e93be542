//! Volumes of mirrors within other things, whose targets come and go and whose users die.
//!
//! One target is away at a time, and comes back before the next one goes. Whatever was acknowledged
//! must be read, whoever serves it, and at the end all copies of all mirrors are equal. What
//! happens follows from a seed; when it happens does not.

use std::collections::BTreeMap;
use std::env;

use gabion_base::disk::Disk;
use gabion_base::rng::Rng;
use gabion_block::mirror::Trust;
use gabion_block::record::{CopyState, Record};
use gabion_volume::volume::Volume;

use crate::world::{Target, World, assert_block, end, until, write};

/// Rounds of a trial, unless GABION_ROUNDS says how many.
const ROUNDS: u64 = 3;

/// The number in a variable of the environment, or the usual one.
fn number(name: &str, usual: u64) -> u64 {
    env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// A volume of targets, and what it must hold.
struct Trial {
    world: World,
    targets: BTreeMap<char, Target>,
    /// Those that there are copies of.
    mirrored: Vec<char>,
    volume: Option<Volume>,
    model: BTreeMap<u64, u8>,
    /// Its length at first, in blocks.
    short: u64,
    rng: Rng,
}

impl Trial {
    /// Of a layout in which a lower-case letter is a member with copies, and an upper-case one is
    /// a member without.
    fn new(text: &str, seed: u64) -> Self {
        let world = World::new();
        let names: Vec<char> = text.split(|c: char| !c.is_alphabetic()).filter_map(only).collect();
        let targets = names.iter().map(|name| (*name, world.target(&name.to_string()))).collect();
        let mut spelled = String::new();
        for part in text.split_inclusive(|c: char| !c.is_alphabetic()) {
            let (word, rest) = part.split_at(part.trim_end_matches(['(', ')', ',']).len());
            spelled += &only(word).map_or(word.to_owned(), |name| world.url(&name.to_string()));
            spelled += rest;
        }
        world.create(&spelled);
        let volume = world.open();
        let (short, volume) = (volume.blocks(), Some(volume));
        let mirrored = names.into_iter().filter(char::is_ascii_lowercase).collect();
        let (model, rng) = (BTreeMap::new(), Rng::new(number("GABION_SEED", seed)));
        Self { world, targets, mirrored, volume, model, short, rng }
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("it is open")
    }

    fn write_some(&mut self) {
        for _ in 0..20 {
            let (addr, mark) = (self.rng.below(self.volume().blocks()), self.rng.below(256) as u8);
            write(self.volume(), addr, mark);
            self.model.insert(addr, mark);
        }
        if self.rng.chance(1, 2) {
            self.volume().flush().unwrap();
        }
    }

    fn check(&self) {
        self.model.iter().for_each(|(addr, mark)| assert_block(self.volume(), *addr, *mark));
    }

    /// Whoever has the volume dies, and somebody else opens it.
    fn reopen(&mut self) {
        self.volume = None;
        self.volume = Some(self.world.open());
    }

    fn await_sync(&self) {
        let is_so = |volume: &Volume| {
            let status = volume.status();
            let mut copies = status.values().flatten();
            copies.all(|copy| copy.trust == Trust::InSync)
        };
        // A copy within a copy that is away is not known to this opener, but to the record.
        let is_recorded = |volume: &Volume| {
            let record = volume.record();
            let mirrors = record.layout.mirrors();
            let mut copies = mirrors.iter().flat_map(|(_, copies)| copies.iter());
            copies.all(|copy| copy.state.is_in_sync())
        };
        until("sync", || is_so(self.volume()) && is_recorded(self.volume()));
    }

    /// Makes all disks longer. One target is away, and its length is not known before the next
    /// time that somebody asks.
    fn lengthen(&mut self) {
        let names: Vec<_> = self.targets.keys().map(char::to_string).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.world.lengthen(&names);
        self.write_some();
    }

    fn await_growth(&self) {
        let names: Vec<_> = self.targets.keys().map(char::to_string).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.world.lengthen(&names);
        until("the new length", || {
            self.volume().blocks() > self.short && !self.volume().has_to_grow()
        });
    }

    fn run(mut self) {
        for round in 0..number("GABION_ROUNDS", ROUNDS) {
            self.write_some();
            let away = self.mirrored[self.rng.below(self.mirrored.len() as u64) as usize];
            self.targets.remove(&away);
            self.write_some();
            if round == 1 {
                self.lengthen();
            }
            if self.rng.chance(1, 3) {
                self.reopen();
                self.write_some();
            }
            self.check();
            self.targets.insert(away, self.world.target(&away.to_string()));
            if self.rng.chance(1, 3) {
                self.reopen();
            }
            self.write_some();
            self.await_sync();
            self.check();
        }
        self.await_growth();
        self.write_some();
        let volume = self.volume.take().expect("it is open");
        let length = volume.blocks();
        end(volume);
        self.volume = Some(self.world.open());
        assert_eq!(self.volume().blocks(), length);
        self.check();
        self.volume().compare();
        until("the comparison", || self.volume().compared().is_empty());
        assert_eq!(self.volume().differences(), 0);
    }
}

/// The name of a member.
fn only(word: &str) -> Option<char> {
    let mut letters = word.chars();
    letters.next().filter(|_| letters.next().is_none())
}

#[test]
fn mirrors_of_mirrors_keep_what_they_have() {
    Trial::new("mirror(mirror(a,b),mirror(c,d))", 1).run();
}

/// What is left of it is a copy like any other.
#[test]
fn a_copy_is_used_again_though_a_copy_within_it_stays_away() {
    let world = World::new();
    let [_a, _b, c, d] = ["a", "b", "c", "d"].map(|name| world.target(name));
    let [a, b, c_url, d_url] = ["a", "b", "c", "d"].map(|name| world.url(name));
    world.create(&format!("mirror(mirror({a},{b}),mirror({c_url},{d_url}))"));
    let volume = world.open();
    let outer = volume.record().layout.mirrors()[0].0;
    let trust = |volume: &Volume| -> Vec<Trust> {
        volume.status()[&outer].iter().map(|copy| copy.trust).collect()
    };
    let inner = |record: &Record| -> Vec<CopyState> {
        record.layout.mirrors()[2].1.iter().map(|copy| copy.state).collect()
    };
    let stale = CopyState::Stale { full: false };
    drop(d);
    write(&volume, 5, 1);
    until("the first loss", || inner(&volume.record()) == [CopyState::InSync, stale]);
    drop(c);
    write(&volume, 5, 2);
    until("the loss", || trust(&volume) == [Trust::InSync, Trust::Stale]);
    let _c = world.target("c");
    until("the return", || trust(&volume) == [Trust::InSync; 2]);
    write(&volume, 6, 3);
    assert_eq!(inner(&volume.record()), [CopyState::InSync, stale], "whoever comes next knows");
    drop(volume);
    let _d = world.target("d");
    let volume = world.open();
    until("all", || {
        let record = volume.record();
        let mirrors = record.layout.mirrors();
        mirrors.iter().flat_map(|(_, copies)| copies.iter()).all(|copy| copy.state.is_in_sync())
    });
    assert_block(&volume, 5, 2);
    assert_block(&volume, 6, 3);
    volume.compare();
    until("the comparison", || volume.compared().is_empty());
    assert_eq!(volume.differences(), 0);
    end(volume);
}

#[test]
fn mirrors_of_stripes_and_lines_with_mirrors_keep_what_they_have() {
    Trial::new("mirror(stripe(mirror(a,b),c),linear(d,mirror(e,f)))", 2).run();
}

#[test]
fn stripes_of_mirrors_keep_what_they_have() {
    Trial::new("stripe(mirror(a,b),mirror(c,linear(d,e)))", 3).run();
}

#[test]
fn lines_of_mirrors_and_stripes_keep_what_they_have() {
    Trial::new("linear(mirror(a,b),stripe(mirror(c,d),E))", 4).run();
}

/// Whoever opens the volume meanwhile finds nothing of it. What it has in sync it keeps.
#[test]
fn a_copy_of_copies_comes_back_though_all_of_it_was_away_at_an_opening() {
    let world = World::new();
    let [_a, _b, c, d] = ["a", "b", "c", "d"].map(|name| world.target(name));
    let [a, b, c_url, d_url] = ["a", "b", "c", "d"].map(|name| world.url(name));
    world.create(&format!("mirror(mirror({a},{b}),mirror({c_url},{d_url}))"));
    let volume = world.open();
    write(&volume, 5, 1);
    end(volume);
    drop((c, d));
    let volume = world.open();
    write(&volume, 5, 2);
    let record = volume.record();
    let mirrors = record.layout.mirrors();
    let states = |at: usize| mirrors[at].1.iter().map(|copy| copy.state).collect::<Vec<_>>();
    assert_eq!(states(0), [CopyState::InSync, CopyState::Stale { full: false }]);
    assert_eq!(states(2), [CopyState::InSync; 2]);
    let (_c, _d) = (world.target("c"), world.target("d"));
    until("all", || {
        let record = volume.record();
        let mirrors = record.layout.mirrors();
        mirrors.iter().flat_map(|(_, copies)| copies.iter()).all(|copy| copy.state.is_in_sync())
    });
    assert_block(&volume, 5, 2);
    volume.compare();
    until("the comparison", || volume.compared().is_empty());
    assert_eq!(volume.differences(), 0);
    end(volume);
}
