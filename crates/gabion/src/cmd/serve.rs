//! `gabion serve`: lets other machines mount a filesystem, until it is asked to stop.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gabion_base::event::{Event, FilesystemEvent};
use gabion_base::sync::Mutex;
use gabion_block::coordinator::Coordinator;
use gabion_host::signals::{Signals, Wake, Waker};
use gabion_node::LocalFs;
use gabion_tls::mutual::{Acceptor, Files};
use gabion_volume::tenure::Tenure;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::Signal;

use crate::args::sharing;
use crate::clients;
use crate::cmd::mount::{signals, users};
use crate::exports::Exports;
use crate::failure::{Exit, Failure, Result, chain};
use crate::frugality::{self, Keep};
use crate::link::{LinkServer, ServeOptions};
use crate::options::{Access, Settings};
use crate::places;
use crate::print;
use crate::serve::{Storage, open_fs};
use crate::standby;
use crate::supervisor;
use crate::trust::Trust;
use crate::trust::membership::{Membership, MembershipError};
use crate::volumes::{self, Place, sink};
use crate::watching;

/// How long ending the background waits before it wakes it again.
const WAKE_AGAIN: Duration = Duration::from_millis(2);

/// What an address looks like.
const SAY_WHERE: &str = "Say HOST:PORT, as in 0.0.0.0:7777.";

/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;

/// Runs the command.
pub fn run(args: &sharing::Serve) -> Result<()> {
    frugality::restart(Keep::Messages);
    if args.with_parent {
        supervisor::end_with_parent(Signal::KILL)?;
    }
    let exports = Exports::of(&args.exports)?;
    let listener = bind(args)?;
    let acceptor = acceptor(args)?;
    let mut settings = Settings::new(users());
    args.options.iter().try_for_each(|options| settings.apply(options))?;
    if args.read_only {
        settings.access = Access::ReadOnly;
    }
    let mut place = Place::with(args.coordinator.as_deref(), &args.target)?;
    let cannot = |cause: &dyn std::error::Error| {
        Failure::of(format!("cannot serve {}", args.target.display()), cause)
    };
    let found = place.path.canonicalize();
    place.path = found.map_err(|error| volumes::or_volume(cannot(&error), &place, &error))?;
    let address = listener.local_addr().map_err(|error| cannot(&error))?;
    let plain = args.insecure || address.ip().is_loopback() && acceptor.is_none();
    let needs_authority = !plain && acceptor.is_none();
    // Before any thread is started, as threads inherit what is blocked.
    let signals = signals()?;
    let Some(opened) = open(args, &place, &settings, address, needs_authority, &signals)? else {
        return Ok(());
    };
    let Opened { storage, tenure, coordinator, has_waited } = opened;
    let fs = open_fs(storage.disk(), &settings).map_err(|error| cannot(&error))?;
    let fs = Arc::new(fs);
    // Clients of a start before may have some of them open.
    fs.hold_orphans();
    for path in exports.paths().filter(|path| fs.folder(path.as_bytes()).is_err()) {
        eprintln!("gabion: {path} is exported and not there: nobody can mount it yet");
    }
    let background = Background::start(&fs).map_err(|error| cannot(&error))?;
    let patience = Duration::from_secs(args.session_seconds);
    let trust = Arc::new(match acceptor {
        Some(acceptor) => Trust::Others(acceptor),
        None => Trust::Members(Box::new(membership(&fs, coordinator, plain, has_waited)?)),
    });
    let (name, sink) = (place.name(), sink("gabion serve")?);
    watching::watch(&fs, name.clone(), None, Some(Arc::clone(&sink)));
    rustix::net::listen(&listener, BACKLOG).map_err(|error| cannot_listen(args, &error))?;
    let taken = tenure.clone().map(|tenure| await_taken(tenure, signals.waker()));
    let taken = taken.transpose().map_err(|error| cannot(&error))?;
    let options = ServeOptions { name, sink, patience, trust, plain, exports, tenure };
    let server = LinkServer::start(Arc::clone(&fs), listener, options);
    let server = server.map_err(|error| cannot(&error))?;
    let served = clients::Served { sessions: server.sessions(), address: server.address() };
    let control = clients::start(&place, &fs, &storage, served);
    let control =
        control.map_err(|error| Failure::of("cannot listen for other commands", &error))?;
    print::line(format_args!("gabion://{}/", server.address()))?;
    // A terminal that goes away is no reason to leave the clients alone.
    while signals.wait().map_err(|error| Failure::of("cannot wait for signals", &error))?
        == Wake::HangUp
    {}
    // Scrubs read what is about to be closed.
    control.prepare_end();
    // While the disk is locked still: later its name may be another server's.
    drop(control);
    if let Some(reason) = taken.and_then(|taken| taken.lock().clone()) {
        end_at_once(args, &place.name(), &reason);
    }
    drop(server);
    background.end();
    let closed = fs.close();
    storage.close().map_err(|error| cannot(&error))?;
    closed.map_err(|error| cannot(&error))
}

/// What is to be served.
struct Opened {
    storage: Storage,
    /// Whether it stays this server's, if others can take it.
    tenure: Option<Arc<Tenure>>,
    /// Where the records of the volume are.
    coordinator: Option<Arc<dyn Coordinator>>,
    /// Whether another server had it when this one came.
    has_waited: bool,
}

/// Opens what is at `place`, to be served at `address`; a standby does so when it is its turn.
/// Nothing if it was asked to end before.
fn open(
    args: &sharing::Serve,
    place: &Place,
    settings: &Settings,
    address: SocketAddr,
    needs_authority: bool,
    signals: &Signals,
) -> Result<Option<Opened>> {
    let Some(name) = &place.volume else {
        if args.standby {
            let text = format!("{} is no volume: no other server can have it", place.name());
            return Err(Failure::new(text).exit(Exit::Usage));
        }
        let storage = Storage::open(place, settings, "serve")?;
        return Ok(Some(Opened { storage, tenure: None, coordinator: None, has_waited: false }));
    };
    let surroundings = volumes::surroundings(args.coordinator.as_deref(), "gabion serve")?;
    let (volume, has_waited) = match args.standby {
        false => (volumes::open(name, &surroundings)?, false),
        true => {
            let holder = surroundings.coordinator.holder(name).map_err(volumes::unanswered)?;
            if needs_authority && holder.is_some() && !has_authorities()? {
                let folder = authorities()?;
                return Err(lacks_authority(name, &folder));
            }
            match standby::await_turn(place, name, &surroundings, address, signals)? {
                None => return Ok(None),
                Some(turn) => (turn.volume, turn.has_waited),
            }
        }
    };
    let tenure = volume.tenure().map_err(|error| Failure::of("cannot start a thread", &error))?;
    let storage = Storage::of_volume(place, volume)?;
    let coordinator = Some(surroundings.coordinator);
    Ok(Some(Opened { storage, tenure: Some(tenure), coordinator, has_waited }))
}

/// Has `waker` woken when another server has the volume. Gives where it is told how that is known.
fn await_taken(tenure: Arc<Tenure>, waker: Waker) -> io::Result<Arc<Mutex<Option<Arc<str>>>>> {
    let taken = Arc::<Mutex<_>>::default();
    let told = Arc::clone(&taken);
    let wait = move || {
        *told.lock() = Some(tenure.await_end());
        if let Err(error) = waker.wake() {
            eprintln!("gabion: cannot end in order: {error}");
            process::exit(1);
        }
    };
    thread::Builder::new().name("tenure".to_owned()).spawn(wait)?;
    Ok(taken)
}

/// Ends as if killed: another server has the volume, so that nothing can be written, and nothing
/// that is known here is to be told.
fn end_at_once(args: &sharing::Serve, name: &str, reason: &str) -> ! {
    eprintln!("gabion: {name} is not served here any more: {reason}");
    if let Ok(sink) = sink("gabion serve") {
        let event = FilesystemEvent::ServedElsewhere { reason: reason.to_owned() };
        sink.publish(Event::Filesystem { filesystem: name.to_owned(), event });
        volumes::finish_events();
    }
    if args.standby {
        let error = standby::begin_again();
        eprintln!("gabion: cannot become a standby: {error}");
    }
    process::exit(Exit::Failed.code().into());
}

/// The folder of the authorities of filesystems.
fn authorities() -> Result<PathBuf> {
    let state = places::state();
    Ok(state.map_err(|error| Failure::of("cannot use the folder for state", &error))?.join(FOLDER))
}

/// Where authorities are in the folder for state.
const FOLDER: &str = "authority";

fn has_authorities() -> Result<bool> {
    match fs::read_dir(authorities()?) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::of("cannot look for authorities", &error)),
    }
}

/// With an authority of its own a standby would be believed by nobody who has joined.
fn lacks_authority(name: &str, folder: &Path) -> Failure {
    let folder = folder.display();
    Failure::new(format!("cannot serve {name}: its authority is not in {folder}"))
        .next("Copy that folder from the machine that has served it.")
}

/// Who belongs to the filesystem. There is an authority if somebody has been invited, or if nobody
/// gets in without encryption. Who takes over from another server has to have that one's.
fn membership(
    fs: &LocalFs,
    coordinator: Option<Arc<dyn Coordinator>>,
    plain: bool,
    has_waited: bool,
) -> Result<Membership> {
    let uuid = fs.map().uuid().to_string();
    let folder = authorities()?.join(&uuid);
    let cannot = |error: MembershipError| Failure::of("cannot know clients", &error);
    let loaded = match coordinator {
        None => Membership::load(folder.clone()),
        Some(coordinator) => Membership::load_shared(folder.clone(), coordinator, uuid),
    };
    let membership = loaded.map_err(cannot)?;
    if !plain && has_waited && membership.acceptor().is_none() {
        return Err(lacks_authority("it", &folder));
    }
    if !plain {
        membership.found().map_err(cannot)?;
    }
    Ok(membership)
}

/// What to encrypt with, if the certificates are somebody else's.
fn acceptor(args: &sharing::Serve) -> Result<Option<Acceptor>> {
    let (Some(certificate), Some(key), Some(authority)) =
        (&args.tls_cert, &args.tls_key, &args.tls_ca)
    else {
        return Ok(None);
    };
    let loaded = Acceptor::load(Files { certificate, key, authority });
    loaded.map(Some).map_err(|error| Failure::of("cannot encrypt", &error).exit(Exit::Usage))
}

/// Takes the address. Nobody is listened to there yet: who comes now is sent away, and may have
/// another server to go to.
fn bind(args: &sharing::Serve) -> Result<TcpListener> {
    let addresses = args
        .listen
        .to_socket_addrs()
        .map_err(|error| cannot_listen(args, &error).next(SAY_WHERE).exit(Exit::Usage))?;
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        match bound(address) {
            Ok(socket) => return Ok(socket.into()),
            Err(error) => last = error.into(),
        }
    }
    Err(cannot_listen(args, &last))
}

fn bound(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // What is left of connections of a server before is no reason not to serve.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

fn cannot_listen(args: &sharing::Serve, cause: &dyn std::error::Error) -> Failure {
    Failure::of(format!("cannot listen at {}", args.listen), cause)
}

/// What a thread does until the end, and whom it tells what fails.
type Loop = fn(&LocalFs, &dyn Fn(&gabion_fs::Error));

/// Threads that commit and reap.
struct Background {
    fs: Arc<LocalFs>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Background {
    fn start(fs: &Arc<LocalFs>) -> std::io::Result<Self> {
        let spawn = |name: &str, run: Loop| {
            let fs = Arc::clone(fs);
            let report = |error: &gabion_fs::Error| eprintln!("gabion: {}", chain(error));
            thread::Builder::new().name(name.to_owned()).spawn(move || run(&fs, &report))
        };
        let commit = spawn("gabion-commit", LocalFs::keep_committed)?;
        let reap = spawn("gabion-reap", LocalFs::keep_reaped)?;
        Ok(Self { fs: Arc::clone(fs), threads: vec![commit, reap] })
    }

    fn end(self) {
        for thread in self.threads {
            // A thread that was about to wait may have missed it.
            while !thread.is_finished() {
                self.fs.end_background();
                thread::sleep(WAKE_AGAIN);
            }
            let _ = thread.join();
        }
    }
}
