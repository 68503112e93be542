//! Mounts of a filesystem that others change, too: the tests themselves, behind the kernel's back.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use gabion_base::ids::Ino;
use gabion_base::sync::Mutex;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Ticket, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Attributes, Caller, Changes, CopyRequest, Detail, Disposition, FileType, IfExists, Listing,
    OpenRequest, Privileges, RenameRequest, Result, SpaceRequest, WriteAt, Written,
};
use gabion_fuse::{ByteRange, NodeId};
use gabion_map::map::SpaceReport;
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Payload};
use gabion_node::{BackgroundLoop, Filesystem, Kept, LocalFs, LockEnd, Reader};
use rustix::fs::syncfs;

use crate::mount_world::{BACK, Kind, SHARED, USUAL, World};
use crate::world::{GLANCE, await_that, await_tick};

/// How long bytes wait for their times.
const BYTES_HELD_MAX: Duration = Duration::from_secs(20);

/// What a filesystem was told of a thread's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Asked,
    Answered,
}

/// What a [`Witness`] says and sees.
#[derive(Default)]
struct Testimony {
    vouches: AtomicBool,
    /// Who makes a directory has come so far that this holds him up.
    is_making: AtomicBool,
    making: Mutex<()>,
    last: Mutex<BTreeMap<String, Step>>,
    /// Bytes wait until the kernel has told times.
    holds_bytes: AtomicBool,
    times_told: AtomicBool,
}

impl Testimony {
    fn note(&self, step: Step) {
        let thread: ThreadId = thread::current().id();
        self.last.lock().insert(format!("{thread:?}"), step);
    }
}

/// A local filesystem that vouches for what it tells only if the test says so.
struct Witness(Arc<LocalFs>, Arc<Testimony>);

macro_rules! the_same {
    ($($name:ident($($value:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($value: $type),*) -> $result {
            Filesystem::$name(&*self.0, $($value),*)
        })*
    };
}

impl Filesystem for Witness {
    the_same! {
        file(ino: Ino) -> FileId;
        lookup(by: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes>;
        find(file: FileId) -> Result<Attributes>;
        create(by: &Caller, parent: FileId, name: &[u8], mode: u32, exists: IfExists,
            request: &OpenRequest) -> Result<(Attributes, Disposition)>;
        tmpfile(by: &Caller, parent: FileId, mode: u32, linkable: Linkable) -> Result<Attributes>;
        mknod(by: &Caller, parent: FileId, name: &[u8], file_type: FileType, mode: u32,
            rdev: u32) -> Result<Attributes>;
        symlink(by: &Caller, parent: FileId, name: &[u8], to: &[u8]) -> Result<Attributes>;
        link(by: &Caller, file: FileId, parent: FileId, name: &[u8]) -> Result<Attributes>;
        unlink(by: &Caller, parent: FileId, name: &[u8]) -> Result<()>;
        rmdir(by: &Caller, parent: FileId, name: &[u8]) -> Result<()>;
        rename(by: &Caller, request: &RenameRequest<'_>) -> Result<()>;
        readlink(by: &Caller, file: FileId) -> Result<Vec<u8>>;
        readdir(by: &Caller, dir: FileId, cookie: u64, limit: usize, detail: Detail)
            -> Result<Listing>;
        stat(file: FileId) -> Result<Attributes>;
        open_file(by: &Caller, file: FileId, request: &OpenRequest) -> Result<Attributes>;
        xattr(by: &Caller, file: FileId, name: &[u8]) -> Result<Vec<u8>>;
        xattr_names(by: &Caller, file: FileId) -> Result<Vec<u8>>;
        set_xattr(by: &Caller, file: FileId, name: &[u8], value: &[u8], condition: SetCondition,
            set_group: SetGroupBit) -> Result<()>;
        remove_xattr(by: &Caller, file: FileId, name: &[u8]) -> Result<()>;
        read(by: &Caller, file: FileId, offset: u64, into: &mut [u8], reader: Reader)
            -> Result<usize>;
        record_reading(by: &Caller, file: FileId) -> ();
        write(by: &Caller, file: FileId, at: WriteAt, payload: &Payload<'_>,
            privileges: Privileges) -> Result<Written>;
        fallocate(by: &Caller, file: FileId, request: SpaceRequest, offset: u64, length: u64,
            privileges: Privileges) -> Result<()>;
        seek(file: FileId, offset: u64, target: SeekTarget) -> Result<u64>;
        copy_range(by: &Caller, request: &CopyRequest, privileges: Privileges) -> Result<u64>;
        fsync(file: FileId) -> Result<()>;
        syncfs() -> Result<()>;
        space(of: FileId) -> Result<SpaceReport>;
        lock_conflict(lock: &Lock) -> Result<Option<Lock>>;
        lock(lock: Lock, wait: Wait, end: LockEnd) -> Option<Ticket>;
        cancel_lock(ticket: Ticket) -> ();
        unlock(file: FileId, class: LockClass, owner: LockOwner, range: LockRange) -> Result<()>;
        unlock_then(
            file: FileId,
            class: LockClass,
            owner: LockOwner,
            range: LockRange,
            end: LockEnd
        ) -> ();
        unlock_soon(file: FileId, class: LockClass, owner: LockOwner, range: LockRange) -> ();
        unseen(dir: FileId) -> ();
        forget(file: FileId, count: u64) -> ();
        release(file: FileId) -> ();
        close() -> Result<()>;
        end_background() -> ();
    }

    fn mkdir(&self, by: &Caller, parent: FileId, name: &[u8], mode: u32) -> Result<Attributes> {
        self.1.is_making.store(true, Ordering::Relaxed);
        let _making = self.1.making.lock();
        Filesystem::mkdir(&*self.0, by, parent, name, mode)
    }

    fn setattr(&self, by: &Caller, file: FileId, changes: &Changes) -> Result<Attributes> {
        let set = Filesystem::setattr(&*self.0, by, file, changes);
        self.1.times_told.store(true, Ordering::Relaxed);
        set
    }

    fn write_untimed(
        &self,
        by: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        let begun = Instant::now();
        while self.1.holds_bytes.load(Ordering::Relaxed) && begun.elapsed() < BYTES_HELD_MAX {
            // Also when the times have just been told.
            await_tick();
            if self.1.times_told.load(Ordering::Relaxed) {
                break;
            }
        }
        Filesystem::write_untimed(&*self.0, by, file, offset, payload, privileges)
    }

    fn is_kept(&self, _subject: Kept<'_>) -> bool {
        self.1.note(Step::Asked);
        self.1.vouches.load(Ordering::Relaxed)
    }

    fn answered(&self) {
        self.1.note(Step::Answered);
    }

    fn background(self: Arc<Self>) -> Vec<(&'static str, BackgroundLoop)> {
        Filesystem::background(Arc::clone(&self.0))
    }
}

fn witnessed() -> Option<(World, Arc<Testimony>)> {
    witnessed_as(SHARED)
}

fn witnessed_as(kind: Kind) -> Option<(World, Arc<Testimony>)> {
    let testimony = Arc::new(Testimony::default());
    let told = Arc::clone(&testimony);
    let serve = move |fs| Arc::new(Witness(fs, Arc::clone(&told))) as Arc<dyn Filesystem>;
    Some((World::serving(kind, Box::new(serve))?, testimony))
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Makes a directory as somebody else.
fn make(world: &World, name: &str) -> FileId {
    let fs = world.fs();
    let made = fs.mkdir(&Caller::superuser(), fs.root(), name.as_bytes(), 0o755).unwrap();
    fs.forget(made.file, 1);
    made.file
}

fn remove(world: &World, name: &str) {
    world.fs().rmdir(&Caller::superuser(), world.fs().root(), name.as_bytes()).unwrap();
}

fn change_mode(world: &World, file: FileId, mode: u32) {
    let changes = Changes { permissions: Some(mode), ..Changes::default() };
    world.fs().setattr(&Caller::superuser(), file, &changes).unwrap();
}

fn write(world: &World, file: FileId, at: WriteAt, bytes: &[u8]) {
    let payload = Payload::Copied(bytes);
    world.fs().write(&Caller::superuser(), file, at, &payload, Privileges::Keep).unwrap();
}

fn file(world: &World, name: &str) -> FileId {
    let fs = world.fs();
    let found = fs.lookup(&Caller::superuser(), fs.root(), name.as_bytes()).unwrap();
    fs.forget(found.file, 1);
    found.file
}

#[test]
fn what_nobody_vouches_for_is_asked_for_each_time() {
    let Some((world, _)) = witnessed() else { return };
    let path = world.path("dir");
    assert!(!is_there(&path));
    let dir = make(&world, "dir");
    assert_eq!(mode(&path), 0o755);
    change_mode(&world, dir, 0o700);
    assert_eq!(mode(&path), 0o700);
    assert_eq!(fs::read_dir(world.path("")).unwrap().count(), 1);
    change_mode(&world, dir, 0o711);
    make(&world, "second");
    assert_eq!(fs::read_dir(world.path("")).unwrap().count(), 2);
    assert_eq!(mode(&path), 0o711);
    remove(&world, "dir");
    assert!(!is_there(&path));
}

#[test]
fn what_is_vouched_for_is_kept_until_the_kernel_is_told() {
    let Some((world, testimony)) = witnessed() else { return };
    testimony.vouches.store(true, Ordering::Relaxed);
    let notifier = world.mounted.as_ref().unwrap().notifier();
    let path = world.path("dir");
    assert!(!is_there(&path));
    let dir = make(&world, "dir");
    assert!(!is_there(&path));
    notifier.inval_entry(NodeId::ROOT, b"dir").unwrap();
    assert_eq!(mode(&path), 0o755);
    change_mode(&world, dir, 0o700);
    assert_eq!(mode(&path), 0o755);
    notifier.inval_attr(NodeId(dir.ino.0)).unwrap();
    assert_eq!(mode(&path), 0o700);
}

#[test]
fn a_filesystem_hears_when_a_request_is_answered() {
    let Some((mut world, testimony)) = witnessed() else { return };
    for index in 0..20 {
        let path = world.path(&format!("{index}"));
        fs::write(&path, b"bytes").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 5);
    }
    world.unmount();
    let last = testimony.last.lock();
    assert!(!last.is_empty());
    assert!(last.values().all(|step| *step == Step::Answered), "{last:?}");
}

#[test]
fn what_is_appended_goes_where_the_file_ends_by_then() {
    let Some(world) = World::new(SHARED) else { return };
    let path = world.path("log");
    let mut log = OpenOptions::new().append(true).create(true).open(&path).unwrap();
    log.write_all(b"one ").unwrap();
    let id = file(&world, "log");
    write(&world, id, WriteAt::End, b"two ");
    log.write_all(b"three").unwrap();
    let mut bytes = [0; 100];
    let count = world.fs().read(id, 0, &mut bytes).unwrap();
    assert_eq!(std::str::from_utf8(&bytes[..count]), Ok("one two three"));
}

#[test]
fn who_has_a_file_open_for_writing_reads_what_others_write() {
    let Some(world) = World::new(SHARED) else { return };
    let path = world.path("file");
    fs::write(&path, b"old old").unwrap();
    let id = file(&world, "file");
    let ours = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let content = |file: &File| {
        let mut bytes = [0; 7];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!((content(&ours), content(&reader)), (*b"old old", *b"old old"));
    write(&world, id, WriteAt::Offset(0), b"new");
    assert_eq!(&content(&ours), b"new old");
    // Whoever only reads keeps pages until the kernel is told.
    assert_eq!(&content(&reader), b"old old");
    let notifier = world.mounted.as_ref().unwrap().notifier();
    notifier.inval_inode(NodeId(id.ino.0), ByteRange::All).unwrap();
    assert_eq!(&content(&reader), b"new old");
    ours.write_all_at(b"new", 4).unwrap();
    assert_eq!(&content(&reader), b"new new");
}

/// The kernel takes the directory for as it was: nobody has told it otherwise.
#[test]
fn a_local_change_whose_maker_was_killed_meanwhile_is_seen() {
    let Some((world, testimony)) = witnessed_as(USUAL) else { return };
    testimony.vouches.store(true, Ordering::Relaxed);
    let (top, path) = (world.path(""), world.path("dir"));
    let seen = || (fs::read_dir(&top).unwrap().count(), is_there(&path));
    for _ in 0..3 {
        assert_eq!(seen(), (0, false));
    }
    let held = testimony.making.lock();
    let mut maker = Command::new("mkdir").arg(&path).spawn().unwrap();
    await_that(|| testimony.is_making.load(Ordering::Relaxed));
    maker.kill().unwrap();
    maker.wait().unwrap();
    assert_eq!(seen(), (0, false));
    drop(held);
    let begin = Instant::now();
    while seen() != (1, true) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", seen());
        thread::sleep(GLANCE);
    }
}

/// Where nobody waits for bytes, the kernel tells times as soon as it has begun to hand them over.
#[test]
fn bytes_that_arrive_late_leave_the_times_that_programs_were_told() {
    let Some((mut world, testimony)) = witnessed_as(BACK) else { return };
    testimony.vouches.store(true, Ordering::Relaxed);
    let path = world.path("file");
    let file = File::create(&path).unwrap();
    file.sync_all().unwrap();
    testimony.times_told.store(false, Ordering::Relaxed);
    testimony.holds_bytes.store(true, Ordering::Relaxed);
    // In the tick of the file's making there were no new times to tell.
    await_tick();
    file.write_all_at(&[1; 8192], 0).unwrap();
    let times = |found: fs::Metadata| (found.modified().unwrap(), found.ctime_nsec());
    let told = times(fs::metadata(&path).unwrap());
    syncfs(&file).unwrap();
    testimony.holds_bytes.store(false, Ordering::Relaxed);
    assert!(testimony.times_told.load(Ordering::Relaxed), "the times came behind the bytes");
    drop(file);
    world.remount();
    assert_eq!(times(fs::metadata(&path).unwrap()), told);
    assert_eq!(fs::read(&path).unwrap(), [1; 8192]);
}
