//! NBD servers beside each other, by the same client on the same image: `gabion target`, nbdkit's
//! file plugin, and qemu-nbd.
//!
//! Each measurement starts its server, has fio's nbd engine use it for a while, and stops it; the
//! servers take turns within a round, in an order that rotates. There are two places:
//!
//! - **In memory**, where reading and writing costs next to nothing: what is left is the server.
//! - **On a disk**, with the page cache dropped before each measurement, in two ways: past the page
//!   cache, beside qemu-nbd with `--cache=none`, as nbdkit knows no such way; and through it, where
//!   what is written is in memory and nowhere else until a flush.
//!
//! The target for every figure is the better one of the peers.
//!
//! Volumes are measured in a third place: in memory, and with each target at a distance as of a
//! machine of its own. In the others all copies share the processors and the disk that one target
//! has for itself, so that the ratio shows what a second copy costs those; with the distance, both
//! volumes wait for it alike, and the ratio shows what the mirror itself adds.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args;
use crate::figures::{Figures, Metric, Sample};
use crate::systems::{Exported, Scratch};
use crate::table::{Table, rate, verdict};

/// A server that needs longer to listen is taken for broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a server that starts.
const PAUSE: Duration = Duration::from_millis(5);
/// Where images in memory are made.
const MEMORY: &str = "/dev/shm";
/// How far away a machine of its own is: half of what a small request takes there and back, with a
/// disk that is not idle.
const ONE_WAY: Duration = Duration::from_micros(500);

/// A user with a home of its own.
const NOBODY: u32 = 65_534;

/// Where servers are measured.
struct Place<'a> {
    title: &'static str,
    folder: &'a Path,
    /// How far away the targets of volumes are.
    one_way: Option<Duration>,
    /// Whether clients encrypt.
    is_encrypted: bool,
}

/// What fio does.
struct Job {
    metric: Metric,
    arguments: &'static [&'static str],
}

const fn job(metric: Metric, arguments: &'static [&'static str]) -> Job {
    Job { metric, arguments }
}

const JOBS: &[Job] = &[
    job(Metric::operations("read 4k, depth 1"), &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    job(Metric::operations("read 4k, depth 32"), &["--rw=randread", "--bs=4k", "--iodepth=32"]),
    job(Metric::operations("write 4k, depth 1"), &["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    job(Metric::operations("write 4k, depth 32"), &["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    job(Metric::bytes("read 1m in order"), &["--rw=read", "--bs=1m", "--iodepth=4"]),
    job(Metric::bytes("write 1m in order"), &["--rw=write", "--bs=1m", "--iodepth=4"]),
    job(
        Metric::operations("write 4k and flush"),
        &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
    ),
];

/// A server's name, and whether it goes past the page cache.
const GABION: &str = "gabion";
const GABION_CACHED: &str = "gabion cached";
const NBDKIT: &str = "nbdkit";
const QEMU: &str = "qemu-nbd";
const QEMU_DIRECT: &str = "qemu direct";
/// Volumes that are offered by `gabion volume export`.
const MIRROR: &str = "mirror";
const ONE: &str = "one target";
/// The images of volumes: of the mirror, and of the other one.
const MIRROR_IMAGES: [&str; 2] = ["image", "image-2"];
const ONE_IMAGE: [&str; 1] = ["image-3"];

/// Runs the command.
pub fn run(args: &args::Targets) -> Result<()> {
    let engines = Command::new("fio").arg("--enghelp").output().context("cannot run fio")?;
    if !String::from_utf8_lossy(&engines.stdout).contains("nbd") {
        bail!("this fio has no engine for NBD");
    }
    let gabion = match &args.gabion {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gabion"),
    };
    let volumes: &[_] = &[MIRROR, ONE];
    if !args.no_memory {
        let folder = Folder::new(Path::new(MEMORY))?;
        let (title, folder) = ("in memory", &*folder.0);
        let near = Place { title, folder, one_way: None, is_encrypted: false };
        if args.tls {
            certify(folder)?;
            let place = Place { title: "in memory, encrypted", is_encrypted: true, ..near };
            return measure(&place, &[GABION, NBDKIT, QEMU], &gabion, args);
        }
        if args.volumes {
            measure(&near, volumes, &gabion, args)?;
            let title = "in memory, 1 ms away";
            let far = Place { title, one_way: Some(ONE_WAY), ..near };
            measure(&far, volumes, &gabion, args)?;
        } else {
            measure(&near, &[GABION, NBDKIT, QEMU], &gabion, args)?;
        }
    }
    if !args.no_disk {
        let scratch = Scratch::new(&args.dir)?;
        let (title, folder) = ("on disk", scratch.path());
        let place = Place { title, folder, one_way: None, is_encrypted: false };
        if args.volumes {
            return measure(&place, volumes, &gabion, args);
        }
        measure(&place, &[GABION, QEMU_DIRECT], &gabion, args)?;
        let cached = Place { title: "on disk, through the page cache", ..place };
        measure(&cached, &[GABION_CACHED, NBDKIT, QEMU], &gabion, args)?;
    }
    Ok(())
}

/// Makes certificates for servers that encrypt, in the folder `tls`, and puts the authority's where
/// a client looks for it whose home is `folder`.
fn certify(folder: &Path) -> Result<()> {
    let (tls, home) = (folder.join("tls"), folder.join(".pki/libnbd"));
    fs::create_dir_all(&tls)?;
    fs::create_dir_all(&home)?;
    let ca = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=bench"];
    let server = ["-keyout", "server-key.pem", "-out", "server-cert.pem", "-subj", "/CN=localhost"];
    let signed = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"];
    let plain = ["-addext", "basicConstraints=critical,CA:FALSE"];
    for arguments in [&ca[..], &[&server[..], &signed, &plain].concat()] {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(arguments)
            .current_dir(&tls)
            .output()
            .context("cannot run openssl")?;
        if !made.status.success() {
            bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
        }
    }
    fs::copy(tls.join("ca-cert.pem"), home.join("ca-cert.pem"))?;
    Ok(())
}

/// A folder in memory, which goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("gabion-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot write to {}", parent.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn measure(
    place: &Place<'_>,
    servers: &[&'static str],
    gabion: &Path,
    args: &args::Targets,
) -> Result<()> {
    let folder = place.folder;
    let image = folder.join("image");
    fill(&image, args.image << 20)?;
    if args.volumes {
        for name in [MIRROR_IMAGES[1], ONE_IMAGE[0]] {
            fill(&folder.join(name), args.image << 20)?;
        }
    }
    let mut figures = Figures::default();
    for round in 0..args.rounds {
        for (turn, job) in JOBS.iter().enumerate() {
            for next in 0..servers.len() {
                let name = servers[(round as usize + turn + next) % servers.len()];
                File::open(&image)?.sync_all()?;
                fs::write("/proc/sys/vm/drop_caches", "1")?;
                let server = Server::start(name, gabion, &image, place)?;
                let sample = server.measure(job, args)?;
                figures.add(name, round, sample);
            }
        }
    }
    println!("{}:\n{}", place.title, report(&figures, servers));
    Ok(())
}

/// Bytes that are no zeros, so that nobody answers with holes.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk: Vec<u8> = (0..1_usize << 20).map(|at| (at % 251) as u8 + 1).collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk)?;
    }
    Ok(file.sync_all()?)
}

fn report(figures: &Figures, servers: &[&'static str]) -> String {
    let mut headings = vec![""];
    headings.extend(servers);
    let ratios: Vec<String> = servers[1..].iter().map(|peer| format!("to {peer}")).collect();
    headings.extend(ratios.iter().map(String::as_str));
    let mut table = Table::new(&headings);
    for metric in figures.metrics() {
        let mut row = vec![metric.name.to_owned()];
        row.extend(servers.iter().map(|name| rate(figures.rate(metric, name), metric.unit)));
        let ratio = |peer: &&'static str| figures.ratio(metric, servers[0], peer);
        // Writing everything twice may cost something.
        let writes = metric.name.starts_with("write");
        let target = if servers[0] == MIRROR && writes { 0.8 } else { 1.0 };
        row.extend(servers[1..].iter().map(|peer| verdict(ratio(peer), Some(target))));
        table.row(row);
    }
    table.text()
}

/// A server that listens. Dropping it ends it.
struct Server {
    running: Running,
    socket: PathBuf,
    /// The name of the export.
    export: &'static str,
    /// The home of a client that encrypts.
    home: Option<PathBuf>,
}

enum Running {
    Program(Child),
    Volume(Exported),
}

impl Server {
    fn start(name: &str, gabion: &Path, image: &Path, place: &Place<'_>) -> Result<Self> {
        let (folder, one_way) = (place.folder, place.one_way);
        let socket = folder.join("socket");
        let _ = fs::remove_file(&socket);
        let volume = |images: &[&str]| Exported::start(gabion, folder, images, &socket, one_way);
        let running = match name {
            MIRROR => Running::Volume(volume(&MIRROR_IMAGES)?),
            ONE => Running::Volume(volume(&ONE_IMAGE)?),
            _ => Running::Program(Self::spawn(name, gabion, image, &socket, place)?),
        };
        let home = place.is_encrypted.then(|| folder.to_owned());
        let export = if matches!(running, Running::Volume(_)) { "bench" } else { "disk" };
        let mut server = Self { running, socket, export, home };
        let start = Instant::now();
        // That there is a socket does not mean yet that anybody listens.
        while UnixStream::connect(&server.socket).is_err() {
            let has_ended = match &mut server.running {
                Running::Program(child) => child.try_wait()?.is_some(),
                Running::Volume(volume) => volume.has_ended()?,
            };
            if has_ended || start.elapsed() > PATIENCE {
                bail!("{name} does not listen");
            }
            thread::sleep(PAUSE);
        }
        if server.home.is_some() {
            fs::set_permissions(&server.socket, fs::Permissions::from_mode(0o777))?;
        }
        Ok(server)
    }

    fn spawn(
        name: &str,
        gabion: &Path,
        image: &Path,
        socket: &Path,
        place: &Place<'_>,
    ) -> Result<Child> {
        let tls = place.is_encrypted.then(|| place.folder.join("tls"));
        let mut command = match name {
            GABION | GABION_CACHED => {
                let mut command = Command::new(gabion);
                let mut listen = std::ffi::OsString::from("unix:");
                listen.push(socket);
                let mut offer = std::ffi::OsString::from("disk=");
                offer.push(image);
                let cache = if name == GABION_CACHED { "writeback" } else { "none" };
                command.args(["target", "--raw", "--cache", cache, "--listen"]);
                command.arg(listen).arg(offer);
                if let Some(tls) = &tls {
                    command.arg("--tls-cert").arg(tls.join("server-cert.pem"));
                    command.arg("--tls-key").arg(tls.join("server-key.pem"));
                }
                command
            }
            NBDKIT => {
                let mut command = Command::new("nbdkit");
                command.arg("-f").arg("-U").arg(socket);
                if let Some(tls) = &tls {
                    command.arg("--tls=require");
                    command.arg(format!("--tls-certificates={}", tls.display()));
                }
                command.arg("file").arg(image);
                command
            }
            _ => {
                let mut command = Command::new("qemu-nbd");
                command.args(["-t", "-e", "16", "-f", "raw", "-x", "disk", "-k"]).arg(socket);
                if let Some(tls) = &tls {
                    let dir = tls.display();
                    let object = "tls-creds-x509,id=tls,endpoint=server,verify-peer=off";
                    command.arg("--object").arg(format!("{object},dir={dir}"));
                    command.args(["--tls-creds", "tls"]);
                }
                if name == QEMU_DIRECT {
                    command.args(["--cache=none", "--aio=io_uring"]);
                }
                command.arg(image);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if place.is_encrypted {
            // Some complain of clients that just hang up, as fio does.
            command.stderr(Stdio::null());
        }
        let child = command.spawn();
        child.with_context(|| format!("cannot start {command:?}"))
    }

    fn measure(&self, job: &Job, args: &args::Targets) -> Result<Sample> {
        let mut fio = Command::new("fio");
        let mut scheme = "nbd+unix";
        if let Some(home) = &self.home {
            // Of root libnbd wants the certificates in /etc.
            scheme = "nbds+unix";
            fio.uid(NOBODY).gid(NOBODY).env("HOME", home).current_dir("/");
        }
        let output = fio
            .args(["--name=job", "--ioengine=nbd", "--minimal", "--time_based"])
            .arg(format!("--uri={scheme}:///{}?socket={}", self.export, self.socket.display()))
            .arg(format!("--runtime={}", args.seconds))
            // Some of the image is a volume's own.
            .arg(format!("--size={}m", args.image - 4))
            .args(job.arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(failure(&output));
        }
        // The fields of fio's terse format: KiB that were moved, and over how many milliseconds.
        let field = |index: usize| said.split(';').nth(index).and_then(|text| text.parse().ok());
        let (read, written): (Option<f64>, Option<f64>) = (field(5), field(46));
        let (Some(read), Some(written)) = (read, written) else {
            bail!(failure(&output));
        };
        let milliseconds: f64 = field(if read > 0.0 { 8 } else { 49 }).context("fio's format")?;
        let kibibytes = read + written;
        let count = match job.metric.unit {
            crate::figures::Unit::MebibytesPerSecond => kibibytes / 1024.0,
            _ => kibibytes / 4.0,
        };
        Ok(job.metric.sample(count, milliseconds / 1000.0))
    }
}

/// Why there is no figure. Of its reasons, fio gives some on its standard output only, before the
/// line of its figures, and none at all if it was killed.
fn failure(output: &Output) -> String {
    let lines = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
    let lines = lines.iter().flat_map(|text| text.lines());
    let told: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with("3;")).collect();
    format!("fio ({}): {}", output.status, told.join("; "))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Running::Program(child) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
