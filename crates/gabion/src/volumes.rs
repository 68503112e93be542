//! Volumes as the commands know them: by name, with the coordinator of this machine or another one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::Disk;
use gabion_base::event::{NoSink, Sink};
use gabion_base::sync::Mutex;
use gabion_block::coordinator::{Coordinator, CoordinatorError};
use gabion_block::mirror::Options;
use gabion_block::record::unfit_name;
use gabion_host::events::Publisher;
use gabion_host::file_disk::{self, FileDisk};
use gabion_host::random;
use gabion_map::OpenMode;
use gabion_volume::member::Outside;
use gabion_volume::register::RegisterError;
use gabion_volume::surroundings::Surroundings;
use gabion_volume::volume::{Volume, VolumeError};

use crate::failure::{Failure, Result};
use crate::places;
use crate::target;

/// Says which coordinator is meant if the command line does not.
const COORDINATOR: &str = "GABION_COORDINATOR";
/// How long to wait for somebody who is about to let go of a volume.
const CLAIM_PATIENCE: Duration = Duration::from_secs(3);

/// What a command's target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The image or device. For a volume a file that stands for it and holds nothing.
    pub path: PathBuf,
    /// The volume, if it is one.
    pub volume: Option<String>,
}

impl Place {
    /// What `text` means: a path, or a name without a slash that is a volume's.
    pub fn of(text: &Path) -> Result<Self> {
        Self::with(None, text)
    }

    /// The same with the given coordinator, if one is given.
    pub fn with(given: Option<&str>, text: &Path) -> Result<Self> {
        let path = Self { path: text.to_owned(), volume: None };
        let Some(name) = text.to_str().filter(|name| unfit_name(name).is_none()) else {
            return Ok(path);
        };
        let has_volumes = given.is_some() || has_volumes();
        if !has_volumes || coordinator(given)?.read(name).map_err(unanswered)?.is_none() {
            return Ok(path);
        }
        if text.exists() {
            return Err(Failure::new(format!("{name} is a volume and a file"))
                .next(format!("Say ./{name} if you mean the file, or go to another folder.")));
        }
        Self::of_volume(name)
    }

    /// The volume `name`.
    pub fn of_volume(name: &str) -> Result<Self> {
        let folder = folder("volumes")?;
        let stand_in = folder.join(name);
        let made = File::options().create(true).append(true).open(&stand_in);
        made.map_err(|error| Failure::of(format!("cannot make {}", stand_in.display()), &error))?;
        Ok(Self { path: stand_in, volume: Some(name.to_owned()) })
    }

    /// What people call it.
    pub fn name(&self) -> String {
        self.volume.clone().unwrap_or_else(|| self.path.display().to_string())
    }
}

fn folder(name: &str) -> Result<PathBuf> {
    let cannot = |error: std::io::Error| Failure::of("cannot use the folder for state", &error);
    let folder = places::state().map_err(cannot)?.join(name);
    fs::create_dir_all(&folder).map_err(cannot)?;
    Ok(folder)
}

/// Whether volumes can be known here; looking makes nothing.
fn has_volumes() -> bool {
    std::env::var_os(COORDINATOR).is_some()
        || places::state().is_ok_and(|state| state.join("coordinator").exists())
}

/// The coordinator that is meant: the given one, or the environment's, or this machine's own.
pub fn coordinator(given: Option<&str>) -> Result<Arc<dyn Coordinator>> {
    let text = match (given, std::env::var(COORDINATOR)) {
        (Some(given), _) => given.to_owned(),
        (None, Ok(text)) if !text.is_empty() => text,
        (None, _) => folder("coordinator")?.display().to_string(),
    };
    gabion_coordinator::open(&text)
        .map_err(|error| Failure::of("cannot use the coordinator", &error))
}

/// All that opening a volume needs. Starts a thread, so that it must come after a fork.
pub fn surroundings(given: Option<&str>, program: &str) -> Result<Surroundings> {
    around(coordinator(given)?, &folder("events")?, program)
}

/// The same for a volume whose record and events are in `state`.
pub fn surroundings_in(state: &Path, program: &str) -> Result<Surroundings> {
    let (records, events) = (state.join("coordinator"), state.join("events"));
    for folder in [&records, &events] {
        fs::create_dir_all(folder)
            .map_err(|error| Failure::of(format!("cannot make {}", folder.display()), &error))?;
    }
    around(coordinator(Some(&records.display().to_string()))?, &events, program)
}

/// Who publishes events of this program.
static PUBLISHERS: Mutex<Vec<Weak<Publisher>>> = Mutex::new(Vec::new());

/// Waits, for a short time, until all events are written: threads may keep a publisher up to the
/// end of the program, which does not wait for them.
pub fn finish_events() {
    let publishers = PUBLISHERS.lock().drain(..).collect::<Vec<_>>();
    publishers.iter().filter_map(Weak::upgrade).for_each(|publisher| publisher.finish());
}

/// Where events of this machine go. Starts a thread.
pub fn sink(program: &str) -> Result<Arc<dyn Sink>> {
    Ok(sink_in(&folder("events")?, program))
}

fn sink_in(events: &Path, program: &str) -> Arc<dyn Sink> {
    match Publisher::start(events, program) {
        Ok(publisher) => {
            let publisher = Arc::new(publisher);
            PUBLISHERS.lock().push(Arc::downgrade(&publisher));
            publisher
        }
        Err(error) => {
            // Data goes before words about it.
            eprintln!("gabion: events are not kept: {error}");
            Arc::new(NoSink)
        }
    }
}

fn around(coordinator: Arc<dyn Coordinator>, events: &Path, program: &str) -> Result<Surroundings> {
    let sink = sink_in(events, program);
    let host = rustix::system::uname();
    let holder = format!("{}, process {}", host.nodename().to_string_lossy(), std::process::id());
    Ok(Surroundings {
        connector: Arc::new(Outside),
        coordinator,
        sink,
        holder,
        random: || {
            let bytes = random::bytes();
            u64::from_le_bytes(*bytes.first_chunk().expect("16 bytes hold 8"))
        },
        options: Options::default(),
    })
}

/// Does something with the disk of a target that nobody has in use. `program` is told to others
/// who want it meanwhile.
pub fn with_disk<T>(
    target: &Path,
    place: &Place,
    program: &str,
    mode: OpenMode,
    act: impl FnOnce(Arc<dyn Disk>) -> Result<T>,
) -> Result<T> {
    let name = place.name();
    let Some(volume) = &place.volume else {
        let mode = match mode {
            OpenMode::ReadWrite => file_disk::OpenMode::ReadWrite,
            OpenMode::ReadOnly => file_disk::OpenMode::ReadOnly,
        };
        let disk = FileDisk::open(target, mode);
        let failed = |error| target::not_opened(&format!("cannot open {name}"), target, &error);
        return act(Arc::new(disk.map_err(failed)?));
    };
    let volume = Arc::new(open(volume, &surroundings(None, program)?)?);
    let done = act(Arc::clone(&volume) as Arc<dyn Disk>)?;
    volume.close().map_err(|error| Failure::of(format!("cannot close {name}"), &error))?;
    Ok(done)
}

/// Opens a volume. Waits for a moment for somebody who is just letting go of it.
pub fn open(name: &str, surroundings: &Surroundings) -> Result<Volume> {
    let began = Instant::now();
    loop {
        let error = match Volume::open(name, surroundings.clone()) {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        if !is_claimed(&error) || began.elapsed() >= CLAIM_PATIENCE {
            return Err(not_opened(name, &error));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether somebody else has the volume.
fn is_claimed(error: &VolumeError) -> bool {
    let VolumeError::Register(RegisterError::Coordinator(error)) = error else { return false };
    matches!(error, CoordinatorError::Claimed { .. })
}

/// That a volume cannot be opened.
pub fn not_opened(name: &str, error: &VolumeError) -> Failure {
    let failure = Failure::of(format!("cannot open volume {name}"), error);
    match error {
        error if is_claimed(error) => match Place::of_volume(name) {
            Ok(place) => target::used(failure, Path::new(name), &place.path),
            Err(_) => failure,
        },
        VolumeError::Register(RegisterError::Absent(_)) => {
            failure.next("To see which there are: gabion volume list")
        }
        VolumeError::Opening { .. } => {
            failure.next(format!("To see its members: gabion volume status {name}"))
        }
        _ => failure,
    }
}

/// Says that no volume was meant, either, where a name could be that of one and nothing is there.
pub fn or_volume(failure: Failure, place: &Place, error: &io::Error) -> Failure {
    let can_be_volume = place.path.to_str().is_some_and(|name| unfit_name(name).is_none());
    match error.kind() == io::ErrorKind::NotFound && can_be_volume {
        true => failure.next(
            "There is no volume of this name, either. To see which there are: gabion volume list",
        ),
        false => failure,
    }
}

/// That a coordinator did not do what it was asked.
pub fn unanswered(error: CoordinatorError) -> Failure {
    Failure::of("cannot look for volumes", &error)
}

/// A volume's length in bytes.
pub fn bytes(disk: &dyn Disk) -> u64 {
    disk.blocks() * BLOCK_SIZE as u64
}
