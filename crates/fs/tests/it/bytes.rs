//! Bytes: write, read, fallocate, seek, copy_range, times.

use gabion_base::time::Timestamp;
use gabion_fs::{
    self as fs, AtimePolicy, Changes, CopyRequest, Privileges, Result, SetTime, SizeRule,
    SpaceRequest, WriteAt, needs_atime,
};
use gabion_map::LockMode;
use gabion_map::txn::SeekTarget;

use crate::world::{World, failure};

const BLOCK: u64 = 4096;

/// Bytes that differ from block to block and from place to place.
fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|i| (i / BLOCK * 31 + i % 251 + 1) as u8).collect()
}

fn fallocate(
    world: &mut World,
    path: &str,
    request: SpaceRequest,
    offset: u64,
    length: u64,
) -> Result<()> {
    let file = world.resolve(path)?;
    world.tick();
    let ctx = &world.ctx;
    world.map.run(|txn| fs::fallocate(txn, ctx, file, request, offset, length, Privileges::Keep))
}

#[test]
fn what_is_written_is_read_and_gaps_are_zeros() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    world.write("/file", 3, b"abc").unwrap();
    world.write("/file", 8, b"z").unwrap();
    assert_eq!(world.read("/file").unwrap(), b"\0\0\0abc\0\0z");
    let attributes = world.stat("/file").unwrap();
    assert_eq!((attributes.size, attributes.sectors), (9, 8));
    assert_eq!([attributes.mtime, attributes.ctime], [world.ctx.now; 2]);
    let mut read = |offset| world.map.run(|txn| fs::read(txn, file, offset, &mut [9; 4]));
    assert_eq!(read(7).unwrap(), 2);
    assert_eq!(read(9).unwrap(), 0);
    assert_eq!(read(u64::MAX).unwrap(), 0);
}

#[test]
fn appended_bytes_go_to_the_end_of_that_moment() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    let first = world.write_to(file, WriteAt::End, b"one").unwrap();
    let second = world.write_to(file, WriteAt::End, b"two").unwrap();
    assert_eq!((first.offset, second.offset, second.length), (0, 3, 3));
    assert_eq!(world.read("/file").unwrap(), b"onetwo");
}

#[test]
fn a_write_in_the_same_tick_holds_the_file_shared() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    world.tick();
    world.write_to(file, WriteAt::Offset(0), b"x").unwrap();
    assert_eq!(world.map.locked[&file], LockMode::Exclusive);
    world.write_to(file, WriteAt::Offset(1), b"y").unwrap();
    assert_eq!(world.map.locked[&file], LockMode::Shared);
    world.write_to(file, WriteAt::End, b"z").unwrap();
    assert_eq!(world.map.locked[&file], LockMode::Exclusive);
}

#[test]
fn a_file_ends_before_the_greatest_offset() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    let last = i64::MAX as u64;
    let before = world.stat("/file").unwrap();
    assert_eq!(failure(world.write_to(file, WriteAt::Offset(last), b"x")), "TooLarge");
    assert_eq!(failure(world.write_to(file, WriteAt::Offset(u64::MAX), b"x")), "TooLarge");
    world.write_to(file, WriteAt::Offset(u64::MAX), b"").unwrap();
    assert_eq!(world.stat("/file").unwrap(), before);
    world.write_to(file, WriteAt::Offset(last - 1), b"x").unwrap();
    assert_eq!(world.stat("/file").unwrap().size, last);
    world.mkdir("/dir", 0o755).unwrap();
    assert_eq!(failure(world.write("/dir", 0, b"x")), "IsDirectory");
}

#[test]
fn allocated_space_changes_no_byte() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    world.write("/file", 0, b"abc").unwrap();
    let keep = SpaceRequest::Allocate(SizeRule::Keep);
    fallocate(&mut world, "/file", keep, 0, 3 * BLOCK).unwrap();
    let attributes = world.stat("/file").unwrap();
    assert_eq!((attributes.size, attributes.sectors, attributes.mtime), (3, 24, world.ctx.now));
    fallocate(&mut world, "/file", SpaceRequest::Allocate(SizeRule::Extend), 1, 9).unwrap();
    assert_eq!(world.read("/file").unwrap(), b"abc\0\0\0\0\0\0\0");
    assert_eq!(failure(fallocate(&mut world, "/file", keep, 0, 0)), "InvalidArgument");
    assert_eq!(failure(fallocate(&mut world, "/file", keep, 1, u64::MAX)), "TooLarge");
    assert_eq!(failure(fallocate(&mut world, "/file", keep, 1, i64::MAX as u64)), "TooLarge");
    world.mkdir("/dir", 0o755).unwrap();
    assert_eq!(failure(fallocate(&mut world, "/dir", keep, 0, 1)), "IsDirectory");
}

#[test]
fn holes_and_zeroed_ranges_read_as_zeros() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    let bytes = pattern(4 * BLOCK);
    world.write("/file", 0, &bytes).unwrap();
    fallocate(&mut world, "/file", SpaceRequest::Punch, BLOCK - 10, BLOCK + 20).unwrap();
    let mut expected = bytes.clone();
    expected[BLOCK as usize - 10..2 * BLOCK as usize + 10].fill(0);
    assert_eq!(world.read("/file").unwrap(), expected);
    assert_eq!(world.stat("/file").unwrap().sectors, 24);
    let mut seek = |offset, target| world.map.run(|txn| fs::seek(txn, file, offset, target));
    assert_eq!(seek(0, SeekTarget::Hole).unwrap(), BLOCK);
    assert_eq!(seek(BLOCK, SeekTarget::Data).unwrap(), 2 * BLOCK);
    assert_eq!(seek(2 * BLOCK, SeekTarget::Hole).unwrap(), 4 * BLOCK);
    assert_eq!(failure(seek(4 * BLOCK, SeekTarget::Hole)), "NoSuchOffset");
    let zero = SpaceRequest::Zero(SizeRule::Extend);
    fallocate(&mut world, "/file", zero, 4 * BLOCK - 1, BLOCK).unwrap();
    expected[4 * BLOCK as usize - 1] = 0;
    expected.resize(5 * BLOCK as usize - 1, 0);
    assert_eq!(world.read("/file").unwrap(), expected);
    fallocate(&mut world, "/file", SpaceRequest::Zero(SizeRule::Keep), 0, 9 * BLOCK).unwrap();
    assert_eq!(world.read("/file").unwrap(), vec![0; 5 * BLOCK as usize - 1]);
    fallocate(&mut world, "/file", SpaceRequest::Punch, 0, 9 * BLOCK).unwrap();
    let mut seek = |offset, target| world.map.run(|txn| fs::seek(txn, file, offset, target));
    assert_eq!(failure(seek(0, SeekTarget::Data)), "NoSuchOffset");
    assert_eq!(seek(7, SeekTarget::Hole).unwrap(), 7);
}

#[test]
fn blocks_are_taken_out_and_put_in() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    let bytes = pattern(3 * BLOCK + 5);
    world.write("/file", 0, &bytes).unwrap();
    fallocate(&mut world, "/file", SpaceRequest::Collapse, BLOCK, BLOCK).unwrap();
    let block = BLOCK as usize;
    let mut expected = [&bytes[..block], &bytes[2 * block..]].concat();
    assert_eq!(world.read("/file").unwrap(), expected);
    fallocate(&mut world, "/file", SpaceRequest::Insert, 0, 2 * BLOCK).unwrap();
    expected.splice(..0, vec![0; 2 * block]);
    assert_eq!(world.read("/file").unwrap(), expected);
    let size = expected.len() as u64;
    let mut fails =
        |request, offset, length| failure(fallocate(&mut world, "/file", request, offset, length));
    assert_eq!(fails(SpaceRequest::Collapse, 1, BLOCK), "InvalidArgument");
    assert_eq!(fails(SpaceRequest::Collapse, 0, BLOCK + 1), "InvalidArgument");
    assert_eq!(
        fails(SpaceRequest::Collapse, BLOCK, size.next_multiple_of(BLOCK)),
        "InvalidArgument"
    );
    assert_eq!(fails(SpaceRequest::Insert, size.next_multiple_of(BLOCK), BLOCK), "InvalidArgument");
    assert_eq!(fails(SpaceRequest::Insert, 0, (1 << 63) - BLOCK), "TooLarge");
}

/// Copies all of a request in as many steps as it takes.
fn copy(world: &mut World, mut request: CopyRequest) -> Result<u64> {
    let mut total = 0;
    for _ in 0..100 {
        world.tick();
        let ctx = &world.ctx;
        let count = world.map.run(|txn| fs::copy_range(txn, ctx, &request, Privileges::Keep))?;
        total += count;
        request.source_offset += count;
        request.target_offset += count;
        request.length -= count;
        if count == 0 || request.length == 0 {
            return Ok(total);
        }
    }
    panic!("the copy does not come to an end");
}

#[test]
fn copies_are_exact_at_every_offset() {
    let bytes = pattern(5 * BLOCK + 100);
    let old = vec![0xee; 7 * BLOCK as usize];
    let offsets = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK];
    let lengths = [1, BLOCK, BLOCK + 1, 2 * BLOCK, 20 * BLOCK];
    let mut world = World::new();
    let source = world.create("/source", 0o644).unwrap().file;
    world.write("/source", 0, &bytes).unwrap();
    for source_offset in offsets {
        for target_offset in offsets {
            for length in lengths {
                let target = world.create("/target", 0o644).unwrap().file;
                world.write("/target", 0, &old).unwrap();
                let request = CopyRequest { source, source_offset, target, target_offset, length };
                let count = copy(&mut world, request).unwrap();
                assert_eq!(count, length.min(bytes.len() as u64 - source_offset), "{request:?}");
                let (from, at) = (source_offset as usize, target_offset as usize);
                let copied = &bytes[from..from + count as usize];
                let mut expected = old.clone();
                expected.resize(expected.len().max(at + copied.len()), 0);
                expected[at..at + copied.len()].copy_from_slice(copied);
                assert!(world.read("/target").unwrap() == expected, "{request:?}");
                world.unlink("/target").unwrap();
            }
        }
    }
}

#[test]
fn a_whole_file_is_shared_in_one_step() {
    let mut world = World::new();
    let source = world.create("/source", 0o644).unwrap().file;
    let target = world.create("/target", 0o644).unwrap().file;
    world.write("/source", 0, &pattern(9 * BLOCK + 7)).unwrap();
    let request =
        CopyRequest { source, source_offset: 0, target, target_offset: 0, length: u64::MAX };
    let ctx = &world.ctx;
    let count = world.map.run(|txn| fs::copy_range(txn, ctx, &request, Privileges::Keep));
    assert_eq!(count.unwrap(), 9 * BLOCK + 7);
    assert_eq!(world.read("/target").unwrap(), pattern(9 * BLOCK + 7));
    let past = CopyRequest { source_offset: 10 * BLOCK, ..request };
    assert_eq!(copy(&mut world, past).unwrap(), 0);
}

#[test]
fn ranges_of_one_file_that_overlap_are_not_copied() {
    let mut world = World::new();
    let source = world.create("/file", 0o644).unwrap().file;
    world.write("/file", 0, &pattern(4 * BLOCK)).unwrap();
    let overlapping =
        CopyRequest { source, source_offset: 0, target: source, target_offset: 5, length: 10 };
    assert_eq!(failure(copy(&mut world, overlapping)), "InvalidArgument");
    let apart = CopyRequest { target_offset: 2 * BLOCK, length: 2 * BLOCK, ..overlapping };
    assert_eq!(copy(&mut world, apart).unwrap(), 2 * BLOCK);
    let far = CopyRequest { target_offset: i64::MAX as u64, ..apart };
    assert_eq!(failure(copy(&mut world, far)), "TooLarge");
}

#[test]
fn reading_is_recorded_after_a_change_and_once_a_day() {
    let at = |seconds| Timestamp::new(seconds, 0);
    let day = 24 * 60 * 60;
    let relative = |atime, mtime, now| {
        needs_atime(AtimePolicy::Relative, at(atime), at(mtime), at(mtime), at(now))
    };
    assert!(relative(10, 10, 11));
    assert!(relative(5, 10, 11));
    assert!(!relative(11, 10, 12));
    assert!(!relative(11, 10, 10 + day));
    assert!(relative(11, 10, 11 + day));
    assert!(!relative(i64::MAX, 10, i64::MIN));
    assert!(needs_atime(AtimePolicy::Always, at(11), at(10), at(10), at(12)));
    assert!(!needs_atime(AtimePolicy::Never, at(5), at(10), at(10), at(11)));
}

#[test]
fn of_several_readers_the_last_one_counts_and_none_from_before_a_change() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    let read = |world: &mut World, at: Timestamp| {
        world.map.run(|txn| fs::record_reading(txn, file, at)).unwrap();
        let found = world.stat("/file").unwrap();
        (found.atime, found.ctime)
    };
    let created = world.ctx.now;
    let after = |seconds| Timestamp::new(created.seconds + seconds, created.nanos);
    assert_eq!(read(&mut world, after(5)), (after(5), created));
    assert_eq!(read(&mut world, after(3)), (after(5), created), "it comes late");
    assert_eq!(read(&mut world, after(7)), (after(7), created));
    // Somebody says that it was read long ago; whoever read it before that says so too late.
    world.ctx.now = after(9);
    let long_ago = Timestamp::new(1, 0);
    let changes = Changes { atime: Some(SetTime::At(long_ago)), ..Changes::default() };
    world.map.run(|txn| fs::setattr(txn, &world.ctx, file, &changes)).unwrap();
    assert_eq!(read(&mut world, after(8)), (long_ago, after(9)));
    assert_eq!(read(&mut world, after(9)), (after(9), after(9)));
}
