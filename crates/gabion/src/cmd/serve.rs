//! `gabion serve`: lets other machines mount a filesystem, until it is asked to stop.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gabion_host::signals::Wake;
use gabion_node::LocalFs;
use gabion_tls::mutual::{Acceptor, Files};
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
use crate::supervisor;
use crate::trust::Trust;
use crate::trust::membership::{Membership, MembershipError};
use crate::volumes::{Place, sink};
use crate::watching;

/// How long ending the background waits before it wakes it again.
const WAKE_AGAIN: Duration = Duration::from_millis(2);

/// Runs the command.
pub fn run(args: &sharing::Serve) -> Result<()> {
    frugality::restart(Keep::Messages);
    if args.with_parent {
        supervisor::end_with_parent(Signal::KILL)?;
    }
    let exports = Exports::of(&args.exports)?;
    let listener = listen(args)?;
    let acceptor = acceptor(args)?;
    let mut settings = Settings::new(users());
    args.options.iter().try_for_each(|options| settings.apply(options))?;
    if args.read_only {
        settings.access = Access::ReadOnly;
    }
    let mut place = Place::of(&args.target)?;
    let cannot = |cause: &dyn std::error::Error| {
        Failure::of(format!("cannot serve {}", args.target.display()), cause)
    };
    place.path = place.path.canonicalize().map_err(|error| cannot(&error))?;
    // Before any thread is started, as threads inherit what is blocked.
    let signals = signals()?;
    let storage = Storage::open(&place, &settings)?;
    let fs = open_fs(storage.disk(), &settings).map_err(|error| cannot(&error))?;
    let fs = Arc::new(fs);
    // Clients of a start before may have some of them open.
    fs.hold_orphans();
    for path in exports.paths().filter(|path| fs.folder(path.as_bytes()).is_err()) {
        eprintln!("gabion: {path} is exported and not there: nobody can mount it yet");
    }
    let background = Background::start(&fs).map_err(|error| cannot(&error))?;
    let patience = Duration::from_secs(args.session_seconds);
    let is_local = listener.local_addr().map_err(|error| cannot(&error))?.ip().is_loopback();
    let plain = args.insecure || is_local && acceptor.is_none();
    let trust = Arc::new(match acceptor {
        Some(acceptor) => Trust::Others(acceptor),
        None => Trust::Members(Box::new(membership(&fs, plain).map_err(|error| cannot(&error))?)),
    });
    let (name, sink) = (place.name(), sink("gabion serve")?);
    watching::watch(&fs, name.clone(), None, Some(Arc::clone(&sink)));
    let options = ServeOptions { name, sink, patience, trust, plain, exports };
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
    drop(server);
    background.end();
    let closed = fs.close();
    storage.close().map_err(|error| cannot(&error))?;
    closed.map_err(|error| cannot(&error))
}

/// Who belongs to the filesystem. There is an authority if somebody has been invited, or if nobody
/// gets in without encryption.
fn membership(fs: &LocalFs, plain: bool) -> std::result::Result<Membership, MembershipError> {
    let folder = places::state()?.join("authority").join(fs.map().uuid().to_string());
    let membership = Membership::load(folder)?;
    if !plain {
        membership.found()?;
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

fn listen(args: &sharing::Serve) -> Result<TcpListener> {
    let what = || format!("cannot listen at {}", args.listen);
    let addresses: Vec<SocketAddr> = args
        .listen
        .to_socket_addrs()
        .map_err(|error| Failure::of(what(), &error).exit(Exit::Usage))?
        .collect();
    TcpListener::bind(&addresses[..]).map_err(|error| Failure::of(what(), &error))
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
