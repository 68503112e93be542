//! `gabion volume`: makes volumes, shows them, and leaves the administrator's wishes in their
//! records.
//!
//! A volume that is in use is never touched by these commands: they change its record, and whoever
//! has it open, on whatever machine, sees to it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::Disk;
use gabion_block::coordinator::{Coordinator, CoordinatorError};
use gabion_block::copies::COPIES_MAX;
use gabion_block::epoch::Epoch;
use gabion_block::mirror::Trust;
use gabion_block::record::{CopyState, Layout, MirrorCopy, Record, Wish, unfit_name};
use gabion_host::signals::{Signals, Wake};
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server, Stopped};
use gabion_volume::create::{
    Content, CreateError, Occupied, create, prepare_member, release_member,
};
use gabion_volume::layout::{self, Kind};
use gabion_volume::register::{self, RegisterError};
use gabion_volume::volume::Volume;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::args::{Volume as Args, VolumeCommand as Command, VolumeCreate};
use crate::date;
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::size::Size;
use crate::volumes;

/// The latest openings that people are shown.
const OPENINGS_SHOWN: usize = 5;
/// How often a progress bar moves.
const GLANCE: Duration = Duration::from_millis(200);
/// How long requests of an export's clients may take at its end.
const GRACE: Duration = Duration::from_secs(10);
/// Copies that do not answer for this long are not there.
const PRESENCE: Duration = Duration::from_secs(2);

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let given = args.coordinator.as_deref();
    let coordinator = || volumes::coordinator(given);
    match &args.command {
        Command::Create(args) => make(args, given),
        Command::List { json } => list(&*coordinator()?, *json),
        Command::Status { name, json } => status(&*coordinator()?, name, *json),
        Command::Add { name, url, force } => add(name, url, occupied(*force), given),
        Command::Remove { name, url } => wish(&*coordinator()?, name, url, Wish::Remove),
        Command::Suspend { name, url } => wish(&*coordinator()?, name, url, Wish::Suspend),
        Command::Resume { name, url } => wish(&*coordinator()?, name, url, Wish::Use),
        Command::Replace { name, old, new, force } => {
            add(name, new, occupied(*force), given)?;
            wish(&*coordinator()?, name, old, Wish::Remove)
        }
        Command::Grow { name, url, force } => grow(name, url, occupied(*force), given),
        Command::Resync { name, verify } => resync(name, *verify, given),
        Command::Export { name, listen } => export(name, listen, given),
        Command::Delete { name, yes } => delete(name, *yes, given),
    }
}

fn occupied(force: bool) -> Occupied {
    if force { Occupied::Overwrite } else { Occupied::Refuse }
}

fn make(args: &VolumeCreate, given: Option<&str>) -> Result<()> {
    if let Some(reason) = unfit_name(&args.name) {
        return Err(Failure::new(format!("{} is no name for a volume: {reason}", args.name))
            .exit(Exit::Usage));
    }
    let (kind, parts) = match (&args.mirror[..], &args.linear[..], &args.stripe[..]) {
        (mirror, [], []) if !mirror.is_empty() => (Kind::Mirror, mirror),
        ([], linear, []) if !linear.is_empty() => (Kind::Linear, linear),
        ([], [], stripe) if !stripe.is_empty() => (Kind::Stripe, stripe),
        _ => {
            let text = "exactly one of --mirror, --linear and --stripe is needed";
            return Err(Failure::new(text).exit(Exit::Usage));
        }
    };
    let parts = parts.iter().map(|part| parsed(part)).collect::<Result<Vec<_>>>()?;
    let content = if args.equal { Content::Equal } else { Content::Unknown };
    let layout = layout::of_parts(kind, parts);
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let record = create(&args.name, layout, content, occupied(args.force), &surroundings)
        .map_err(|error| not_created(&args.name, &error))?;
    let blocks = record.layout.blocks().unwrap_or_default();
    let size = Size(blocks.saturating_mul(BLOCK_SIZE as u64));
    let name = &args.name;
    print::line(format!("{name}: made a volume of {size}, {}", record.uuid))?;
    print::line(format!("To use it: gabion mkfs {name} && gabion mount {name} MOUNTPOINT"))
}

/// A layout whose paths hold wherever the volume is opened from.
fn parsed(text: &str) -> Result<Layout> {
    let mut layout =
        layout::parse(text).map_err(|error| Failure::new(error.to_string()).exit(Exit::Usage))?;
    make_absolute(&mut layout)?;
    Ok(layout)
}

fn make_absolute(layout: &mut Layout) -> Result<()> {
    match layout {
        Layout::Member(member) => member.url = absolute(&member.url)?,
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter_mut().try_for_each(make_absolute)?;
        }
        Layout::Mirror { copies, .. } => {
            copies.iter_mut().try_for_each(|copy| make_absolute(&mut copy.on))?;
        }
    }
    Ok(())
}

fn absolute(url: &str) -> Result<String> {
    if url.contains("://") {
        return Ok(url.to_owned());
    }
    let path = std::fs::canonicalize(url)
        .map_err(|error| Failure::of(format!("cannot use {url}"), &error))?;
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => Err(Failure::new(format!("the name of {url} is not UTF-8"))),
    }
}

fn not_created(name: &str, error: &CreateError) -> Failure {
    let failure = Failure::of(format!("cannot make volume {name}"), error);
    match error {
        CreateError::Occupied { .. } => {
            failure.next("If nobody needs that any more, say --force. It is destroyed then.")
        }
        CreateError::Coordinator(CoordinatorError::Conflict { .. }) => {
            Failure::new(format!("there is a volume {name} already"))
                .next(format!("To see it: gabion volume status {name}"))
        }
        _ => failure,
    }
}

fn failed(error: RegisterError) -> Failure {
    match &error {
        RegisterError::Absent(_) => {
            Failure::new(error.to_string()).next("To see which there are: gabion volume list")
        }
        _ => Failure::of("cannot use the volume's record", &error),
    }
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        failed(error)
    }
}

fn list(coordinator: &dyn Coordinator, as_json: bool) -> Result<()> {
    let names = coordinator.volumes().map_err(volumes::unanswered)?;
    let mut all = Vec::new();
    for name in &names {
        let (record, _) = register::read(coordinator, name)?;
        let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
        all.push(describe(&record, holder.as_deref()));
    }
    if as_json {
        return print::line(format!("{:#}", Value::Array(all)));
    }
    if all.is_empty() {
        return print::line("there are no volumes; to make one: gabion volume create --help");
    }
    for volume in all {
        let text = |key: &str| volume[key].as_str().unwrap_or_default().to_owned();
        let size = Size(volume["bytes"].as_u64().unwrap_or_default());
        let used = match volume["holder"].as_str() {
            Some(holder) => format!("in use by {holder}"),
            None => "not in use".to_owned(),
        };
        print::line(format!("{}  {size}  {}, {used}", text("name"), text("health")))?;
    }
    Ok(())
}

/// A volume for scripts.
fn describe(record: &Record, holder: Option<&str>) -> Value {
    let mirrors: Vec<_> = record
        .layout
        .mirrors()
        .into_iter()
        .map(|(uuid, copies)| {
            let copies: Vec<_> = copies.iter().map(describe_copy).collect();
            json!({ "uuid": uuid.to_string(), "copies": copies })
        })
        .collect();
    let bytes = record.layout.blocks().unwrap_or_default().saturating_mul(BLOCK_SIZE as u64);
    json!({
        "name": record.name,
        "uuid": record.uuid.to_string(),
        "bytes": bytes,
        "layout": layout::text(&record.layout),
        "epoch": record.epoch().0,
        "health": health(record),
        "holder": holder,
        "mirrors": mirrors,
    })
}

fn describe_copy(copy: &MirrorCopy) -> Value {
    let state = match copy.state {
        CopyState::InSync => "in-sync",
        CopyState::Stale { .. } => "stale",
        CopyState::Suspended { .. } => "suspended",
        CopyState::Removed => "removed",
    };
    json!({
        "on": layout::text(&copy.on),
        "state": state,
        "full-resync": copy.state.is_full(),
        "since-epoch": copy.since.0,
    })
}

fn health(record: &Record) -> &'static str {
    let mirrors = record.layout.mirrors();
    let mut copies = mirrors.iter().flat_map(|(_, copies)| copies.iter());
    let is_fine = |copy: &MirrorCopy| copy.state.is_in_sync() || copy.state == CopyState::Removed;
    match () {
        () if mirrors.is_empty() => "without copies",
        () if copies.all(is_fine) => "whole",
        () => "degraded",
    }
}

fn status(coordinator: &dyn Coordinator, name: &str, as_json: bool) -> Result<()> {
    let (record, _) = register::read(coordinator, name)?;
    let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
    let volume = describe(&record, holder.as_deref());
    if as_json {
        return print::line(format!("{volume:#}"));
    }
    let mut text = String::new();
    let size = Size(volume["bytes"].as_u64().unwrap_or_default());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name}: volume of {size}, {}", health(&record));
    let _ = writeln!(text, "  uuid       {}", record.uuid);
    let _ = writeln!(text, "  epoch      {}", record.epoch().0);
    let _ = writeln!(text, "  in use by  {}", holder.as_deref().unwrap_or("nobody"));
    let _ = writeln!(text, "  layout     {}", layout::text(&record.layout));
    for (_, copies) in record.layout.mirrors() {
        for copy in copies.iter().filter(|copy| copy.state != CopyState::Removed) {
            let on = layout::text(&copy.on);
            let _ = writeln!(text, "  copy       {on}: {}", state_text(copy));
        }
    }
    for opening in record.openings.iter().rev().take(OPENINGS_SHOWN) {
        let (when, who) = (date::seconds(opening.seconds), &opening.holder);
        let _ = writeln!(text, "  opened     {when}, {}, by {who}", opening.epoch);
    }
    print::line(text.trim_end())
}

fn state_text(copy: &MirrorCopy) -> String {
    let state = match copy.state {
        CopyState::InSync => "in sync".to_owned(),
        CopyState::Stale { full: false } => "stale; lacks what was written since".to_owned(),
        CopyState::Stale { full: true } => "stale; everything is to be copied".to_owned(),
        CopyState::Suspended { .. } => {
            "suspended; `gabion volume resume` brings it back".to_owned()
        }
        CopyState::Removed => "taken out".to_owned(),
    };
    match (copy.wish, copy.state) {
        (Wish::Suspend, CopyState::Suspended { .. }) | (Wish::Use, _) => state,
        (Wish::Suspend, _) => format!("{state}; is to be suspended"),
        (Wish::Remove, _) => format!("{state}; is to be taken out"),
    }
}

/// Finds the copy that is on `url` alone.
fn copy_on<'a>(record: &'a mut Record, url: &str) -> Option<(&'a mut MirrorCopy, usize)> {
    let mirrors: Vec<_> = record.layout.mirrors().iter().map(|(uuid, _)| *uuid).collect();
    let is_it =
        |copy: &MirrorCopy| layout::text(&copy.on) == url && copy.state != CopyState::Removed;
    let found = mirrors.into_iter().find(|uuid| {
        record.layout.mirror_mut(*uuid).is_some_and(|copies| copies.iter().any(is_it))
    })?;
    let copies = record.layout.mirror_mut(found)?;
    let others = copies.iter().filter(|copy| copy.state.is_in_sync() && !is_it(copy)).count();
    Some((copies.iter_mut().find(|copy| is_it(copy))?, others))
}

fn wish(coordinator: &dyn Coordinator, name: &str, url: &str, wish: Wish) -> Result<()> {
    let url = absolute(url).unwrap_or_else(|_| url.to_owned());
    let is_used = coordinator.holder(name).map_err(volumes::unanswered)?.is_some();
    register::change(coordinator, name, |record| {
        let Some((copy, others)) = copy_on(record, &url) else {
            return Err(Failure::new(format!("no copy of volume {name} is on {url}"))
                .next(format!("To see them: gabion volume status {name}")));
        };
        if wish != Wish::Use && others == 0 {
            let text = format!("{url} is the last copy of volume {name} that is in sync");
            return Err(Failure::new(text).next("Bring another one in sync first."));
        }
        copy.wish = wish;
        if !is_used {
            copy.state = match (wish, copy.state) {
                (Wish::Remove, _) => CopyState::Removed,
                (Wish::Suspend, state) => CopyState::Suspended { full: state.is_full() },
                (Wish::Use, CopyState::Suspended { full }) => CopyState::Stale { full },
                (Wish::Use, state) => state,
            };
        }
        Ok(())
    })
}

fn add(name: &str, url: &str, occupied: Occupied, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let url = absolute(url)?;
    let (record, _) = register::read(&*coordinator, name)?;
    let Layout::Mirror { uuid, blocks, .. } = &record.layout else {
        let text = format!("volume {name} is not a mirror: it has no copies to add one to");
        return Err(
            Failure::new(text).next(format!("To lengthen it: gabion volume grow {name} URL"))
        );
    };
    let (uuid, needed) = (*uuid, *blocks);
    let member = prepare_member(&record, &url, occupied, &surroundings)
        .map_err(|error| not_created(name, &error))?;
    let on = Layout::Member(member);
    if on.blocks().is_none_or(|blocks| blocks < needed) {
        return Err(Failure::new(format!("{url} is smaller than the other copies of {name}")));
    }
    register::change(&*coordinator, name, |record| {
        let copies = record
            .layout
            .mirror_mut(uuid)
            .ok_or_else(|| Failure::new(format!("volume {name} was changed by somebody else")))?;
        let copy = MirrorCopy {
            state: CopyState::Stale { full: true },
            wish: Wish::Use,
            since: Epoch(0),
            on: on.clone(),
        };
        match copies.iter().position(|copy| copy.state == CopyState::Removed) {
            Some(free) => copies[free] = copy,
            None if copies.len() < COPIES_MAX => copies.push(copy),
            None => {
                let text = format!("volume {name} has {COPIES_MAX} copies already");
                return Err(Failure::new(text));
            }
        }
        Ok(())
    })?;
    let when = format!("while the volume is in use, or by gabion volume resync {name}");
    print::line(format!("{name}: {url} was added; it is filled {when}"))
}

fn grow(name: &str, url: &str, occupied: Occupied, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let _claim = coordinator.claim(name, &surroundings.holder).map_err(|error| {
        Failure::of(format!("cannot lengthen volume {name}"), &error).next("Unmount it first.")
    })?;
    let part = parsed(url)?;
    let Layout::Member(member) = part else {
        return Err(Failure::new("only single members can be added").exit(Exit::Usage));
    };
    let (record, _) = register::read(&*coordinator, name)?;
    let member = prepare_member(&record, &member.url, occupied, &surroundings)
        .map_err(|error| not_created(name, &error))?;
    register::change(&*coordinator, name, |record| {
        let part = Layout::Member(member.clone());
        match &mut record.layout {
            Layout::Linear(parts) => parts.push(part),
            other => {
                let first = other.clone();
                *other = Layout::Linear(vec![first, part]);
            }
        }
        Ok::<_, Failure>(())
    })?;
    print::line(format!("{name}: {url} was appended"))
}

fn bar(template: &str) -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(template).expect("the template is constant"));
    bar
}

const BYTES: &str =
    "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

fn resync(name: &str, verify: bool, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
    if let Some(holder) = holder {
        if verify {
            register::change(&*coordinator, name, |record| {
                record.compare += 1;
                Ok::<_, Failure>(())
            })?;
        }
        let next = "to see how it goes: gabion events --follow";
        return print::line(format!("{name} is in use by {holder}, which does it; {next}"));
    }
    let volume = volumes::open(name, &surroundings)?;
    let synced = bring_up_to_date(name, &volume);
    let different = match (&synced, verify) {
        (Ok(()), true) => compare(&volume),
        _ => 0,
    };
    volume.close().map_err(|error| Failure::of(format!("cannot close volume {name}"), &error))?;
    synced?;
    match different {
        0 if verify => print::line(format!("{name}: all copies are equal")),
        0 => print::line(format!("{name}: all copies are in sync")),
        blocks => {
            let text = format!("{name}: {blocks} blocks differ between copies that are in sync");
            Err(Failure::new(text)
                .next("A filesystem repairs what it reads from its checksums: gabion scrub")
                .exit(Exit::Damaged))
        }
    }
}

/// Waits until all copies that can be reached are in sync.
fn bring_up_to_date(name: &str, volume: &Volume) -> Result<()> {
    let bar = bar(BYTES);
    let mut total = 0;
    let mut waiting = None;
    loop {
        let copies: Vec<_> = volume.status().into_values().flatten().collect();
        let is_over =
            |trust: Trust| matches!(trust, Trust::InSync | Trust::Suspended | Trust::Removed);
        if copies.iter().all(|copy| is_over(copy.trust)) {
            bar.finish_and_clear();
            return Ok(());
        }
        let missing: u64 = copies.iter().map(|copy| copy.missing_blocks).sum();
        total = total.max(missing);
        bar.set_length(total * BLOCK_SIZE as u64);
        bar.set_position((total - missing) * BLOCK_SIZE as u64);
        if copies.iter().all(|copy| is_over(copy.trust) || copy.trust == Trust::Stale) {
            // Connecting is tried at once; who is not there after a moment is not there.
            if waiting.get_or_insert_with(Instant::now).elapsed() >= PRESENCE {
                bar.finish_and_clear();
                return Err(Failure::new(format!("some copies of {name} cannot be reached"))
                    .next(format!("To see them: gabion volume status {name}")));
            }
        } else {
            waiting = None;
        }
        thread::sleep(GLANCE);
    }
}

fn compare(volume: &Volume) -> u64 {
    let bar = bar(BYTES);
    bar.set_length(volumes::bytes(volume));
    volume.compare();
    loop {
        let compared = volume.compared();
        if compared.is_empty() {
            bar.finish_and_clear();
            return volume.differences();
        }
        let done: u64 = compared.iter().map(|one| one.done).sum();
        bar.set_position(done * BLOCK_SIZE as u64);
        thread::sleep(GLANCE);
    }
}

fn export(name: &str, listen: &[gabion_nbd::address::Address], given: Option<&str>) -> Result<()> {
    let signals =
        Signals::block().map_err(|error| Failure::of("cannot prepare for signals", &error))?;
    let surroundings = volumes::surroundings(given, "gabion volume export")?;
    let volume = Arc::new(volumes::open(name, &surroundings)?);
    let disk = Arc::clone(&volume) as Arc<dyn Disk>;
    let exports = Exports::new(vec![Export::new(name, disk, Permission::ReadWrite)]);
    let mut listeners = Vec::new();
    for address in listen {
        let cannot = || format!("cannot listen at {address}");
        let listener = Listener::bind(address).map_err(|error| Failure::of(cannot(), &error))?;
        let address = listener.address().map_err(|error| Failure::of(cannot(), &error))?;
        let uri = gabion_nbd::address::Uri { address, export: name.to_owned(), tls: None };
        print::line(uri)?;
        listeners.push(listener);
    }
    let server = Server::start(exports, listeners)
        .map_err(|error| Failure::of("cannot start the server", &error))?;
    while signals.wait().map_err(|error| Failure::of("cannot wait for signals", &error))?
        == Wake::HangUp
    {}
    if let Stopped::CutOff(clients) = server.stop(GRACE) {
        eprintln!("gabion: requests of {clients} clients did not end in time");
    }
    volume.close().map_err(|error| Failure::of(format!("cannot close volume {name}"), &error))
}

fn delete(name: &str, yes: bool, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = &surroundings.coordinator;
    let (record, revision) = register::read(&**coordinator, name)?;
    if !yes {
        return Err(Failure::new(format!("deleting volume {name} destroys what is on it"))
            .next(format!("If that is what you want: gabion volume delete --yes {name}"))
            .exit(Exit::Usage));
    }
    let _claim = coordinator
        .claim(name, &surroundings.holder)
        .map_err(|error| Failure::of(format!("cannot delete volume {name}"), &error))?;
    coordinator.remove(name, revision).map_err(volumes::unanswered)?;
    for member in record.layout.members() {
        if let Err(error) = release_member(&record, member, &surroundings) {
            eprintln!("gabion: {} keeps its header: {error}", member.url);
        }
    }
    Ok(())
}
