//! `gabion backup`: saves a filesystem, from a snapshot that is made for it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use gabion_backup::format::header::Lock;
use gabion_backup::format::index::Totals;
use gabion_backup::scan::scan;
use gabion_backup::{Hash, Header, Secret, Stream, StreamId, Time, Writer, writer};
use gabion_host::clock;
use gabion_node::{Delta, LocalFs};

use crate::args::backup::Backup;
use crate::backup::chain;
use crate::backup::destination::Destination;
use crate::backup::mounted::Mounted;
use crate::backup::origin::{Origin, snapshot_name};
use crate::backup::progress::Progress;
use crate::backup::save::{Known, Saving, unwritten};
use crate::backup::secrets;
use crate::backup::source::Source;
use crate::backup::store::Upload;
use crate::backup::stored::Stored;
use crate::backup::streams::{self, of_stream};
use crate::failure::{Failure, Result};
use crate::print;
use crate::size::Size;

/// What to do when a place does not take what is written.
const GO_ON: &str = "What has been saved is kept: run it again to go on.";

/// Runs the command.
pub fn run(args: &Backup) -> Result<()> {
    let secret = secrets::of(&args.secrets)?;
    let to = Destination::of(&args.to)?;
    let origin = Origin::open(&args.subject)?;
    let done = save(args, &origin, &to, secret.as_ref()).map_err(Failure::without_damage);
    let closed = origin.close();
    let text = done?;
    closed?;
    match to {
        Destination::Output => print::notice(text),
        _ => print::line(text)?,
    }
    Ok(())
}

/// A backup that has been prepared.
struct Job {
    snapshot: String,
    base: Option<String>,
    writer: Writer<Box<dyn Upload>>,
    known: Known,
    /// Tells other backups that this one is under way.
    sign: Option<File>,
    looked: Looked,
}

/// What is known of a snapshot before it is read.
struct Looked {
    /// It, if it can be read past the mount.
    fs: Option<LocalFs>,
    /// What has changed since another one, if it builds upon one.
    delta: Option<Delta>,
}

fn save(
    args: &Backup,
    origin: &Origin,
    to: &Destination,
    secret: Option<&Secret>,
) -> Result<String> {
    let (filesystem, used) = origin.identity()?;
    let place = to.tag();
    let follows = args.incremental && !is_first(origin, to, filesystem)?;
    let resumed = resume(follows, origin, to, secret, filesystem)?;
    let is_resumed = resumed.is_some();
    let mut job = match resumed {
        Some(job) => job,
        None => begin(follows, origin, to, secret, filesystem)?,
    };
    let (snapshot, base) = (job.snapshot.clone(), job.base.clone());
    let _sign = job.sign.take();
    let older = origin.snapshots(&place)?;
    let written = read(args, origin, job, used);
    let (upload, totals, length, time) = match written {
        Ok(written) => written,
        Err(failure) if to.store().is_none() => {
            // Nobody can go on with it.
            origin.remove(&snapshot)?;
            return Err(failure);
        }
        Err(failure) => {
            return Err(failure.next(GO_ON));
        }
    };
    let path = upload.finish().map_err(|failure| match to.store() {
        Some(_) => Failure::new(failure.to_string()).next(GO_ON),
        None => failure,
    })?;
    // What another one has made meanwhile, or reads and has not come to its end, is left to that.
    let mut olds = origin.snapshots(&place)?;
    olds.retain(|(old, is_held)| {
        let is_older = *old != snapshot && older.iter().any(|(found, _)| found == old);
        is_older && (*is_held || origin.read(old).is_ok())
    });
    for old in origin.supersede(&snapshot, olds.into_iter().map(|(name, _)| name).collect())? {
        // It costs nothing but space.
        print::notice(format!("the snapshot {old} is not needed any more, but cannot be removed"));
    }
    let what = match (base, is_resumed) {
        (None, false) if args.incremental => "saved all, as the first there",
        (None, false) => "saved",
        (Some(_), false) => "saved what has changed",
        (None, true) => "went on saving",
        (Some(_), true) => "went on saving what has changed",
    };
    let saved = format!(
        "{}: {what}: {} objects, {} of files in {} at {path}, in {:.1} s",
        origin.name(),
        totals.objects,
        Size(totals.bytes),
        Size(length),
        time.as_secs_f64()
    );
    let left_out = origin.inner_subvolumes().into_iter().map(|path| {
        let path = print::printable(&path);
        format!("\n{}: the subvolume {path} is not in it, and is saved by itself", origin.name())
    });
    Ok(saved + &left_out.collect::<String>())
}

/// Whether nothing of this was ever saved there: so there is nothing that could be followed, and
/// nothing that was lost.
fn is_first(origin: &Origin, to: &Destination, filesystem: [u8; 16]) -> Result<bool> {
    // Of what went to standard output nobody knows where it is.
    if matches!(to, Destination::Output) {
        return Ok(false);
    }
    // Those that are not held are of such as were cut off.
    if origin.snapshots(&to.tag())?.iter().any(|(_, held)| *held) {
        return Ok(false);
    }
    let name = origin.name().into_bytes();
    let is_of_it = |header: &Header| header.filesystem == filesystem && header.origin == name;
    Ok(!to.streams()?.iter().any(|found| is_of_it(&found.header)))
}

/// Begins a new stream, which builds upon the last one if it `follows` that.
fn begin(
    follows: bool,
    origin: &Origin,
    to: &Destination,
    secret: Option<&Secret>,
    filesystem: [u8; 16],
) -> Result<Job> {
    let place = to.tag();
    let base = match follows {
        true => Some(base(origin, to, filesystem)?),
        false => None,
    };
    if let Some(Base { snapshot, .. }) = &base {
        // Not everybody tells differences. Then nothing is begun.
        origin.delta(snapshot, snapshot)?;
    }
    let stream = writer::draw_id().map_err(unwritten)?;
    let now = clock::coarse_now();
    let created = Time { seconds: now.seconds, nanoseconds: now.nanos };
    let snapshot = snapshot_name(&place, stream);
    // What a passphrase gives takes long: meanwhile the snapshot is made and looked at.
    let make = || {
        origin.create(&snapshot).map(|()| {
            let sign = origin.read(&snapshot)?;
            let of = base.as_ref().map(|base| base.snapshot.as_str());
            Ok::<_, Failure>((sign, look(origin, &snapshot, of)?))
        })
    };
    let (made, proven) = thread::scope(|scope| {
        let making = thread::Builder::new().name("make".to_owned()).spawn_scoped(scope, make);
        let proven = base.as_ref().map_or(Ok(()), |base| base.prove(to, secret));
        let made = match making {
            Ok(making) => making.join().unwrap_or_else(|cause| panic::resume_unwind(cause)),
            Err(_) => make(),
        };
        (made, proven)
    });
    let begun = made?.and_then(|(sign, looked)| {
        proven?;
        let root = root_of(origin, &snapshot)?;
        let upload = to.begin(stream, created.seconds)?;
        let header = Header {
            stream,
            base: base.as_ref().map(|base| base.stream),
            filesystem,
            created,
            root,
            snapshot: snapshot.clone().into_bytes(),
            origin: origin.name().into_bytes(),
            lock: base.as_ref().map_or(Lock::Open, |base| base.lock.clone()),
            hash: Hash::default(),
        };
        Ok((Writer::begin(upload, header, secret).map_err(unwritten)?, sign, looked))
    });
    let (writer, sign, looked) = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            origin.remove(&snapshot)?;
            return Err(failure);
        }
    };
    let known = Known::default();
    Ok(Job { snapshot, base: base.map(|base| base.snapshot), writer, known, sign, looked })
}

/// Looks at a snapshot that is to be read: all of it, or what has changed since `base`.
fn look(origin: &Origin, snapshot: &str, base: Option<&str>) -> Result<Looked> {
    let (fs, old) = origin.beside(snapshot, base).map_or((None, None), |(fs, old)| (Some(fs), old));
    let delta = match (base, &fs, old) {
        (None, ..) => None,
        (Some(_), Some(fs), Some(old)) => {
            let found = gabion_node::delta(fs.map(), old, fs.root().subvol);
            let failed = |error| Failure::of(format!("cannot compare {}", origin.name()), &error);
            Some(found.map_err(failed)?)
        }
        (Some(base), ..) => Some(origin.delta(base, snapshot)?),
    };
    Ok(Looked { fs, delta })
}

fn root_of(origin: &Origin, snapshot: &str) -> Result<u64> {
    fn number<S: Source>(source: &S) -> Result<u64> {
        let found = source.object(&source.root()?)?;
        let (object, _) = found.ok_or_else(|| Failure::new("a snapshot has no root"))?;
        Ok(object.ino)
    }
    match origin {
        Origin::Mounted { dir, .. } => number(&Mounted::new(at(dir, snapshot))?),
        Origin::Stored { fs, of, .. } => number(&Stored::new(fs, *of, snapshot)?),
    }
}

fn at(dir: &Path, snapshot: &str) -> PathBuf {
    dir.join(".snapshots").join(snapshot)
}

/// What a difference builds upon.
struct Base {
    stream: StreamId,
    snapshot: String,
    lock: Lock,
    /// What it is called at its place, and its path; nothing of what is not known where it is.
    at: Option<(OsString, String)>,
}

impl Base {
    /// Fails if the secret does not open it, or it is not whole: nothing could build upon it.
    fn prove(&self, to: &Destination, secret: Option<&Secret>) -> Result<()> {
        let (Some(store), Some((name, path))) = (to.store(), &self.at) else { return Ok(()) };
        let opened = Stream::open(store.open(name)?.bytes, secret);
        opened.map_err(|error| of_stream(path, &error)).map(|_| ())
    }
}

/// The newest stream at the place that has its snapshot here, and that snapshot's name.
/// What a restoration will need is looked for now: all streams that it builds upon. Then
/// [`Base::prove`] tries the secret.
fn base(origin: &Origin, to: &Destination, filesystem: [u8; 16]) -> Result<Base> {
    let place = to.tag();
    let streams = to.streams()?;
    let of_name = |name: &str| {
        let digits = name.rsplit('-').next().unwrap_or_default();
        let byte = |at: usize| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..16).map(byte).collect();
        Some(StreamId(bytes?.try_into().ok()?))
    };
    let held = origin.snapshots(&place)?.into_iter().rev().filter(|(_, held)| *held);
    for (name, _) in held {
        let Some(stream) = of_name(&name) else { continue };
        let found = streams
            .iter()
            .find(|found| found.header.stream == stream && found.header.filesystem == filesystem);
        if let Some(found) = found {
            chain::members(&streams, found)?;
            let lock = found.header.lock.clone();
            let at = Some((found.name.clone(), found.path.clone()));
            return Ok(Base { stream, snapshot: name, lock, at });
        }
        // Of what went to standard output nobody knows where it is.
        if matches!(to, Destination::Output) {
            return Ok(Base { stream, snapshot: name, lock: Lock::Open, at: None });
        }
    }
    Err(Failure::new(format!("no backup of {} went there that this could follow", origin.name()))
        .next("Save everything first: leave out --incremental."))
}

/// Takes up a stream that was cut off, if there is one whose snapshot is still there.
fn resume(
    follows: bool,
    origin: &Origin,
    to: &Destination,
    secret: Option<&Secret>,
    filesystem: [u8; 16],
) -> Result<Option<Job>> {
    let Some(store) = to.store() else { return Ok(None) };
    let place = to.tag();
    // In this order: whoever has begun a stream has made its snapshot before.
    let partials = to.partials()?;
    let snapshots = origin.all_snapshots()?;
    let has = |wanted: &str, complete: bool| {
        snapshots.iter().any(|(name, held)| name == wanted && *held == complete)
    };
    for name in partials {
        let path = store.path(&name);
        let Ok(found) = streams::look(store, &name) else {
            // Nothing was written before somebody died.
            let begun = store.take_up(&name);
            if begun.is_ok_and(|begun| begun.bytes().length().is_ok_and(|length| length == 0)) {
                let _ = store.remove(&name);
            }
            continue;
        };
        let header = &found.header;
        if header.filesystem != filesystem {
            continue;
        }
        // The same place may have been called by another name.
        let made = String::from_utf8_lossy(&header.snapshot);
        if snapshots.iter().all(|(found, _)| *found != made) {
            // So nobody can ever go on with it; but another subvolume has snapshots of its own.
            let is_ours = header.origin == origin.name().into_bytes();
            if is_ours && store.take_up(&name).and_then(|_| store.remove(&name)).is_ok() {
                let what = "was not complete and its snapshot is gone: removed";
                print::notice(format!("{path} {what}"));
            }
            continue;
        }
        let snapshot = snapshot_name(&place, header.stream);
        let base = header.base.map(|base| snapshot_name(&place, base));
        let is_wanted = base.is_some() == follows;
        let can_follow = base.as_ref().is_none_or(|base| has(base, true));
        if !is_wanted || !can_follow || !has(&snapshot, false) {
            continue;
        }
        let begun = store.take_up(&name)?;
        let sign = origin.read(&snapshot)?;
        let looked = look(origin, &snapshot, base.as_deref())?;
        let kept = scan(begun.bytes(), secret).map_err(|error| of_stream(&path, &error))?;
        let known = Known::of(&kept);
        let upload = begun.go_on(kept.length)?;
        let writer = Writer::resume(upload, kept).map_err(unwritten)?;
        return Ok(Some(Job { snapshot, base, writer, known, sign, looked }));
    }
    Ok(None)
}

/// Reads the snapshot into the stream. Gives what it was written to, what there is in all, how
/// long it is, and how long it took.
fn read(
    args: &Backup,
    origin: &Origin,
    job: Job,
    used: u64,
) -> Result<(Box<dyn Upload>, Totals, u64, Duration)> {
    let Job { snapshot, writer, known, looked: Looked { fs, delta }, .. } = job;
    let changed = delta.as_ref().map(|delta| {
        let stretches = delta.touched.iter().flat_map(|touched| &touched.stretches);
        stretches.map(|stretch| stretch.to - stretch.from).sum()
    });
    let mut progress = Progress::new(changed.unwrap_or(used), args.rate.map(|rate| rate.0));
    fn all<S: Source, W: Write>(
        saving: Saving<'_, S, W>,
        delta: Option<&Delta>,
    ) -> Result<Writer<W>> {
        match delta {
            Some(delta) => saving.changes(delta),
            None => saving.all(),
        }
    }
    let progress_of = &mut progress;
    let writer = match origin {
        Origin::Mounted { dir, .. } => match fs {
            Some(fs) => {
                let source = &Stored::all_of(&fs);
                all(Saving { source, writer, known, progress: progress_of }, delta.as_ref())?
            }
            None => {
                let source = &Mounted::new(at(dir, &snapshot))?;
                all(Saving { source, writer, known, progress: progress_of }, delta.as_ref())?
            }
        },
        Origin::Stored { fs, of, .. } => {
            let source = &Stored::new(fs, *of, &snapshot)?;
            all(Saving { source, writer, known, progress: progress_of }, delta.as_ref())?
        }
    };
    let (upload, totals, length) = writer.finish().map_err(unwritten)?;
    Ok((upload, totals, length, progress.end()))
}
