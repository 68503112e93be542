//! What events say to people: one place for each kind, with all answers of an event side by side.

use std::fmt;

use super::{
    BlockEvent, ClientEvent, CoordinatorEvent, Event, FilesystemEvent, LogEvent, MemberEvent,
    ResyncEvent, Severity, TargetEvent, VolumeEvent,
};
use crate::time::Timestamp;

/// What an event answers.
struct Answers {
    severity: Severity,
    what: String,
    meaning: &'static str,
    next_step: &'static str,
}

/// For events after which nothing is to be done.
const NOTHING: &str = "Nothing.";
const UNCHANGED: &str = "Nothing changes for the data.";

fn answers(
    severity: Severity,
    what: String,
    meaning: &'static str,
    next_step: &'static str,
) -> Answers {
    Answers { severity, what, meaning, next_step }
}

impl Event {
    /// How grave it is.
    pub fn severity(&self) -> Severity {
        self.answers().severity
    }

    /// What has happened, as a sentence without its object and its stop.
    pub fn what(&self) -> String {
        self.answers().what
    }

    /// What it means for the data.
    pub fn meaning(&self) -> &'static str {
        self.answers().meaning
    }

    /// What to do.
    pub fn next_step(&self) -> &'static str {
        self.answers().next_step
    }

    /// What it has happened to.
    pub fn object(&self) -> String {
        match self {
            Self::Volume { volume, .. } => format!("volume {volume}"),
            Self::Member { volume, member, .. } | Self::Resync { volume, member, .. } => {
                format!("member {member} of volume {volume}")
            }
            Self::Block { device, .. } => device.clone(),
            Self::Coordinator { coordinator, .. } => format!("coordinator {coordinator}"),
            Self::Target { export, .. } => format!("export {export}"),
            Self::Filesystem { filesystem, .. } => format!("filesystem {filesystem}"),
            Self::Client { filesystem, client, .. } => {
                format!("client {client} of filesystem {filesystem}")
            }
            Self::Log { program, .. } => format!("events of {program}"),
            Self::Unknown { name, .. } => name.clone(),
        }
    }

    /// Since when, if not since it was published.
    pub fn since(&self) -> Option<Timestamp> {
        match self {
            Self::Member { event: MemberEvent::Back { since }, .. }
            | Self::Coordinator {
                event:
                    CoordinatorEvent::Unreachable { since, .. } | CoordinatorEvent::Back { since },
                ..
            } => Some(*since),
            _ => None,
        }
    }

    fn answers(&self) -> Answers {
        match self {
            Self::Volume { event, .. } => volume(event),
            Self::Member { event, .. } => member(event),
            Self::Resync { event, .. } => resync(event),
            Self::Block { event, .. } => block(event),
            Self::Coordinator { event, .. } => coordinator(event),
            Self::Target { event, .. } => target(event),
            Self::Filesystem { event, .. } => filesystem(event),
            Self::Client { event, .. } => client(event),
            Self::Log { event, .. } => log(event),
            Self::Unknown { fields, .. } => answers(
                Severity::Warning,
                format!("something that this version does not know: {fields}"),
                "Not known to this version.",
                "Read it with the version that has told it.",
            ),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object(), self.what())
    }
}

fn volume(event: &VolumeEvent) -> Answers {
    match event {
        VolumeEvent::Opened { epoch, holder } => answers(
            Severity::Note,
            format!("opened by {holder} with epoch {epoch}"),
            "Whoever had it open before can write to it no more.",
            NOTHING,
        ),
        VolumeEvent::Closed { epoch } => answers(
            Severity::Note,
            format!("closed, which ends epoch {epoch}"),
            "All of it is on its members.",
            NOTHING,
        ),
        VolumeEvent::Fenced { epoch, by } => answers(
            Severity::Critical,
            format!("taken away from epoch {epoch} by epoch {by}"),
            "Nothing more is written here; what was not flushed here may be missing.",
            "See who has opened the volume, and unmount it here.",
        ),
        VolumeEvent::ClaimLost { epoch } => answers(
            Severity::Warning,
            format!("epoch {epoch} has lost its claim"),
            "It goes on here; but whoever opens it now is not refused, and takes it away.",
            "Open it nowhere else; see to the coordinator, and the claim is taken again.",
        ),
        VolumeEvent::ClaimBack { epoch } => answers(
            Severity::Note,
            format!("epoch {epoch} has its claim again"),
            "Whoever else opens it is told that it is in use.",
            NOTHING,
        ),
        VolumeEvent::Degraded { working, members } => answers(
            Severity::Warning,
            format!("{working} of {members} members are in sync"),
            "All data is there, with fewer copies.",
            "See to the members that are missing; they catch up by themselves.",
        ),
        VolumeEvent::Whole { members } => answers(
            Severity::Note,
            format!("all {members} members are in sync"),
            "All copies are there again.",
            NOTHING,
        ),
        VolumeEvent::Unavailable { reason } => answers(
            Severity::Critical,
            format!("not available: {reason}"),
            "It can neither be read nor written until this is over; what was flushed is kept.",
            "See to its members and its coordinator.",
        ),
        VolumeEvent::Grown { bytes } => answers(
            Severity::Note,
            format!("has {bytes} bytes by now"),
            "A filesystem on it has its old length until gabion grow lengthens it, too.",
            NOTHING,
        ),
        VolumeEvent::NotGrown { reason } => answers(
            Severity::Warning,
            format!("does not become longer: {reason}"),
            "It goes on with the length that it has.",
            "See to the reason; it is tried again as long as it is wanted.",
        ),
        VolumeEvent::SplitBrain { one, other } => answers(
            Severity::Critical,
            format!("{one} and {other} were written to without each other"),
            "Each has changes that the other lacks; nothing is merged or thrown away by itself.",
            "Decide which of them is right, keep a copy of the other, and resynchronise it.",
        ),
    }
}

fn member(event: &MemberEvent) -> Answers {
    match event {
        MemberEvent::Stale { reason } => answers(
            Severity::Warning,
            format!("stale: {reason}"),
            "It misses changes and is not read from; all data is on the other members.",
            "See that it can be reached; it then catches up by itself.",
        ),
        MemberEvent::Unreachable { reason } => answers(
            Severity::Warning,
            format!("does not answer: {reason}"),
            "Its copy cannot be used; the other members serve.",
            "See to its machine, its target and the network between.",
        ),
        MemberEvent::Back { .. } => answers(
            Severity::Note,
            "answers again".to_owned(),
            "What it has missed is copied to it before it counts.",
            NOTHING,
        ),
        MemberEvent::Foreign { found } => answers(
            Severity::Critical,
            format!("there is something else in its place: {found}"),
            "It was neither read nor written; the other members serve.",
            "Put the right medium back, or replace the member if the medium is a new one.",
        ),
        MemberEvent::Slow { latency_ms, others_ms } => answers(
            Severity::Warning,
            format!("takes {latency_ms} ms where the others take {others_ms} ms"),
            "Writes wait for it; the data is not concerned.",
            "Look at its medium and its network: slow ones often fail soon.",
        ),
    }
}

fn resync(event: &ResyncEvent) -> Answers {
    match event {
        ResyncEvent::Started { bytes } => answers(
            Severity::Note,
            format!("a resync of {bytes} bytes has started"),
            "The member does not count as a copy until it is finished.",
            NOTHING,
        ),
        ResyncEvent::Progress { done, total } => {
            let percent = u128::from(*done) * 100 / u128::from(*total).max(1);
            answers(
                Severity::Note,
                format!("the resync has copied {done} of {total} bytes ({percent} %)"),
                "The member does not count as a copy until it is finished.",
                NOTHING,
            )
        }
        ResyncEvent::Finished { bytes } => answers(
            Severity::Note,
            format!("the resync is finished after {bytes} bytes"),
            "The member has everything that the others have.",
            NOTHING,
        ),
        ResyncEvent::Interrupted { reason } => answers(
            Severity::Warning,
            format!("the resync was interrupted: {reason}"),
            "The member still misses changes; what was copied need not be copied again.",
            "See to the reason; the resync then goes on by itself.",
        ),
        ResyncEvent::DifferencesFound { blocks } => answers(
            Severity::Critical,
            format!("{blocks} blocks differ from those of the other members"),
            "One of the copies is wrong, by a medium that lies or by a write past the volume.",
            "Scrub the filesystem: its checksums tell which copy is right.",
        ),
    }
}

fn block(event: &BlockEvent) -> Answers {
    match event {
        BlockEvent::ReadErrorRepaired { address, copy } => answers(
            Severity::Warning,
            format!("{address} could not be read from {copy} and was written again"),
            "Nothing is lost: another copy was good.",
            "Replace the medium if there are more of these.",
        ),
        BlockEvent::ChecksumRepaired { address, copy } => answers(
            Severity::Warning,
            format!("{address} was wrong on {copy} and was written again"),
            "Nothing is lost: another copy was good.",
            "Scrub the filesystem, and replace the medium if there are more of these.",
        ),
        BlockEvent::ChecksumLost { address } => answers(
            Severity::Critical,
            format!("{address} is damaged in every copy"),
            "What was in it is lost; reading it fails and never gives wrong data.",
            "Scrub the filesystem to see which files it concerns, and restore them.",
        ),
    }
}

fn coordinator(event: &CoordinatorEvent) -> Answers {
    match event {
        CoordinatorEvent::Unreachable { reason, .. } => answers(
            Severity::Warning,
            format!("does not answer: {reason}"),
            "Open volumes go on; none can be opened, and a member's failure now stops writing.",
            "See to the coordinator and the network to it.",
        ),
        CoordinatorEvent::Back { .. } => {
            answers(Severity::Note, "answers again".to_owned(), UNCHANGED, NOTHING)
        }
    }
}

fn target(event: &TargetEvent) -> Answers {
    match event {
        TargetEvent::ClientConnected { client, epoch, holder } => answers(
            Severity::Note,
            match epoch {
                0 => format!("{client} can write to it"),
                _ => format!("{client} can write to it with epoch {epoch}, held by {holder}"),
            },
            UNCHANGED,
            NOTHING,
        ),
        TargetEvent::ClientLeft { client, .. } => answers(
            Severity::Note,
            format!("{client} is gone"),
            "What it had not flushed may be lost if this machine fails now, unless it comes back.",
            NOTHING,
        ),
        TargetEvent::EpochTaken { epoch, holder, before } => answers(
            Severity::Note,
            format!("{holder} has taken epoch {epoch}, after {before}"),
            "Whoever has a lower epoch can write no more.",
            NOTHING,
        ),
        TargetEvent::DiskFailed { operation, address, reason } => answers(
            Severity::Warning,
            format!("its disk has failed {operation} at {address}: {reason}"),
            "The client was told; a volume goes on with its other copies.",
            "Look at the disk, and replace it if there are more of these.",
        ),
        TargetEvent::ClientFenced { client, epoch, newest } => answers(
            Severity::Warning,
            format!("{client} was refused: its epoch is {epoch}, the newest is {newest}"),
            "What it wanted to write was not written; whoever has opened the volume since serves.",
            "Unmount the volume where that client runs.",
        ),
    }
}

fn filesystem(event: &FilesystemEvent) -> Answers {
    match event {
        FilesystemEvent::StoppedWriting { reason } => answers(
            Severity::Critical,
            format!("stopped writing: {reason}"),
            "It can be read; what was not synced before may be missing after the next mount.",
            "Unmount it, see to the disk, and mount it again.",
        ),
        FilesystemEvent::WritesRefused { reason } => answers(
            Severity::Critical,
            format!("its disk does not take what is written: {reason}"),
            "It waits in memory and is tried again; what is not synced is lost if that ends now.",
            "See to the disk, or make room where the image is; it then goes on by itself.",
        ),
        FilesystemEvent::WritesAgain {} => answers(
            Severity::Note,
            "its disk has taken what it had refused".to_owned(),
            "All that was written is on the disk.",
            NOTHING,
        ),
        FilesystemEvent::ServedAgain { patience_ms } => answers(
            Severity::Note,
            format!("served again; clients of before are waited for, {patience_ms} ms at most"),
            "Nothing is answered until they have come back and said what may be lost.",
            NOTHING,
        ),
        FilesystemEvent::StandsBy { holder } => {
            answers(Severity::Note, format!("a standby waits; {holder} has it"), UNCHANGED, NOTHING)
        }
        FilesystemEvent::TakesOver { before } => answers(
            Severity::Warning,
            format!("the standby takes it over, which {before} had"),
            "Clients go on here with all that they were answered; there is one server less.",
            "See to the other server, and start it again as a standby.",
        ),
        FilesystemEvent::ServedElsewhere { reason } => answers(
            Severity::Warning,
            format!("not served here any more: {reason}"),
            "Clients go on at the server that has it now.",
            "See why this one was taken for gone; a standby waits for its turn again by itself.",
        ),
        FilesystemEvent::ScheduleNotFollowed { subvolume, snapshot, reason } => answers(
            Severity::Warning,
            format!("the schedule of {subvolume} is not followed at {snapshot}: {reason}"),
            "Its files and the snapshots that there are are not concerned.",
            "See to the reason; it is tried again every minute.",
        ),
    }
}

fn client(event: &ClientEvent) -> Answers {
    match event {
        ClientEvent::Connected { session, address } => answers(
            Severity::Note,
            format!("session {session} has begun from {address}"),
            UNCHANGED,
            NOTHING,
        ),
        ClientEvent::Left { session } => answers(
            Severity::Note,
            format!("has ended session {session}"),
            "Nothing of it is waited for.",
            NOTHING,
        ),
        ClientEvent::Silent { session, patience_ms } => answers(
            Severity::Warning,
            format!("session {session} has ended after {patience_ms} ms of silence"),
            "Its locks are free, and what was open there only may be gone; nobody waits for it.",
            "See to its machine and the network between; it comes back by itself.",
        ),
        ClientEvent::Evicted { session, reason } => answers(
            Severity::Warning,
            format!("session {session} was ended: {reason}"),
            "Its locks are free, and it may show old data until it knows; nobody waits for it.",
            "See to its machine; it comes back by itself if it lives.",
        ),
        ClientEvent::LockLost { mount, file, count, first, last, reason } => answers(
            Severity::Warning,
            format!(
                "{count} locks on {file} at {mount} (bytes {first} to {last}) are lost: {reason}"
            ),
            "Others may have them; using the file there fails until it is unlocked or closed.",
            "See which programs use the file at that machine, and whether they go on.",
        ),
        ClientEvent::ChangesLost { mount, count, bytes, kept, folder, reason } => answers(
            Severity::Critical,
            format!(
                "{count} changes with {bytes} bytes of files at {mount} may be lost: {reason}; \
                 {kept} bytes are kept in {folder}"
            ),
            "Programs were told that this is done; where it is not, the next fsync tells them.",
            "Look into changes.txt in the folder, do again what is still wanted, and remove it.",
        ),
    }
}

fn log(event: &LogEvent) -> Answers {
    match event {
        LogEvent::Dropped { count } => answers(
            Severity::Warning,
            format!("{count} were dropped, as they came faster than they could be written"),
            UNCHANGED,
            "Ask for the present state: gabion status.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_answers_in_sentences_and_names_its_facts() {
        for event in Event::examples() {
            let shown = event.to_string();
            assert!(event.meaning().ends_with('.') && event.next_step().ends_with('.'), "{shown}");
            assert!(!event.what().ends_with('.') && !event.what().contains('\n'), "{shown}");
            // Each text that the event carries is shown.
            let carried = format!("{event:?}");
            for word in carried.split('"').filter(|word| word.starts_with('<')) {
                assert!(shown.contains(word), "{shown} lacks {word}");
            }
            let calm = event.severity() == Severity::Note;
            assert_eq!(event.next_step() == NOTHING, calm, "{shown}");
        }
    }

    #[test]
    fn an_event_reads_as_a_sentence_about_its_object() {
        let event = VolumeEvent::Degraded { working: 1, members: 2 };
        let event = Event::Volume { volume: "tank".to_owned(), event };
        assert_eq!(event.to_string(), "volume tank: 1 of 2 members are in sync");
        assert_eq!(event.severity(), Severity::Warning);
        let time = Timestamp::new(9, 0);
        let event = CoordinatorEvent::Back { since: time };
        let event = Event::Coordinator { coordinator: "x".to_owned(), event };
        assert_eq!(event.since(), Some(time));
    }
}
