//! Who belongs to a filesystem, where it is served.
//!
//! ```text
//!   authority/UUID/   in the state folder
//!     ca-cert.pem     the authority's certificate
//!     ca-key.pem      its key
//!   lists, there or with the coordinator of a volume: see `lists`
//!     invitations     a line each: the secret's SHA-256, its end, `open` or `used`
//!     members         a line each: the certificate's serial number, when it was made, the name
//! ```
//!
//! - A certificate counts as long as its line is there: taking it out takes away the right to come
//!   back.
//! - An invitation is used up, durably, before the certificate is made. So none works twice,
//!   whatever crashes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;
use gabion_block::coordinator::{Coordinator, CoordinatorError};
use gabion_link::join::{Admission, Application};
use gabion_tls::authority::{Authority, Holder};
use gabion_tls::mutual::Acceptor;
use gabion_tls::secret::{Digest, Secret};
use gabion_tls::{TlsError, read_certificate, to_pem};
use thiserror::Error;

use super::files;
use super::lists::{Lines, List, Lists};

/// Invitations that may be open at the same time.
const OPEN_MAX: usize = 256;
/// How long an invitation is remembered after its end, in seconds: who comes late is told why.
const REMEMBERED_SECONDS: i64 = 7 * 86_400;
/// Machines that may belong to a filesystem.
const MEMBERS_MAX: usize = 16_384;

/// Why somebody cannot be invited or let in.
#[derive(Debug, Error)]
pub enum MembershipError {
    /// What is kept here cannot be read or written.
    #[error("the state folder: {0}")]
    Io(#[from] io::Error),
    /// The authority does not work.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What is kept with the coordinator cannot be read or written.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// Another server has invited or let in somebody, or took back a right.
    #[error("another server has changed who belongs to it: try again")]
    Changed,
    /// A note can be so long only.
    #[error("the coordinator has no room for more machines: take away the right of some")]
    NoRoom,
    /// Many invitations are open.
    #[error("{OPEN_MAX} invitations are open: wait until some have ended")]
    ManyInvitations,
    /// Many machines belong to it.
    #[error("{MEMBERS_MAX} machines belong to it: take away the right of some with gabion evict")]
    ManyMembers,
    /// There never was such an invitation, or it was long ago.
    #[error("this invitation is not known here")]
    Unknown,
    /// It was for one machine.
    #[error("this invitation was used already")]
    Used,
    /// It was for a time.
    #[error("this invitation has ended")]
    Ended,
}

impl MembershipError {
    /// Whether it may have been guessed.
    pub fn is_wrong_secret(&self) -> bool {
        matches!(self, Self::Unknown | Self::Used | Self::Ended)
    }
}

/// Who belongs to a filesystem.
pub struct Membership {
    folder: PathBuf,
    lists: Lists,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    own: Option<Own>,
    invitations: Vec<Invited>,
    members: Vec<Member>,
}

struct Own {
    authority: Authority,
    acceptor: Acceptor,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Invited {
    digest: Digest,
    ends: i64,
    is_used: bool,
}

/// A machine that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its certificate's serial number.
    pub serial: String,
    /// When that was made, in seconds since 1970.
    pub since: i64,
    /// Its name, which no other member has.
    pub name: String,
}

impl Membership {
    /// What is kept in `folder`, which may not be there yet.
    pub fn load(folder: PathBuf) -> Result<Self, MembershipError> {
        Self::with(folder.clone(), Lists::in_files(folder))
    }

    /// The same, but for the lists, which are a note of this name with a coordinator.
    pub fn load_shared(
        folder: PathBuf,
        coordinator: Arc<dyn Coordinator>,
        name: String,
    ) -> Result<Self, MembershipError> {
        Self::with(folder.clone(), Lists::in_note(folder, coordinator, name))
    }

    fn with(folder: PathBuf, lists: Lists) -> Result<Self, MembershipError> {
        let mut state = State::default();
        let certificate = folder.join("ca-cert.pem");
        if certificate.exists() {
            let key = std::fs::read_to_string(folder.join("ca-key.pem"))?;
            state.own = Some(Own::new(Authority::load(read_certificate(&certificate)?, &key)?)?);
        }
        state.take(&lists.read()?)?;
        Ok(Self { folder, lists, state: Mutex::new(state) })
    }

    /// What the server encrypts with, if there is an authority.
    pub fn acceptor(&self) -> Option<Acceptor> {
        Some(self.state.lock().own.as_ref()?.acceptor.clone())
    }

    /// Makes the authority, if there is none yet.
    pub fn found(&self) -> Result<(), MembershipError> {
        self.state.lock().found(&self.folder)
    }

    /// Invites a machine until `ends`. Gives the authority's fingerprint, and the secret.
    pub fn invite(&self, now: i64, ends: i64) -> Result<(Digest, Secret), MembershipError> {
        let mut state = self.state.lock();
        state.found(&self.folder)?;
        let mut invitations = state.invitations.clone();
        invitations.retain(|invited| invited.ends.saturating_add(REMEMBERED_SECONDS) > now);
        let is_open = |invited: &&Invited| !invited.is_used && invited.ends > now;
        if invitations.iter().filter(is_open).count() >= OPEN_MAX {
            return Err(MembershipError::ManyInvitations);
        }
        let secret = Secret::draw();
        invitations.push(Invited { digest: secret.digest(), ends, is_used: false });
        self.keep_invitations(&mut state, invitations)?;
        let own = state.own.as_ref().expect("it was made above");
        Ok((own.authority.fingerprint(), secret))
    }

    /// Lets a machine in that was invited. Its name becomes another one if a member has it.
    pub fn admit(&self, now: Timestamp, by: &Application) -> Result<Admission, MembershipError> {
        let mut state = self.state.lock();
        let digest = Secret(by.secret).digest();
        // All are looked at, so that it takes as long for each.
        let found = state.invitations.iter().enumerate();
        let found = found.fold(None, |found, (at, invited)| match invited.digest == digest {
            true => Some(at),
            false => found,
        });
        let at = found.ok_or(MembershipError::Unknown)?;
        match state.invitations[at] {
            Invited { is_used: true, .. } => return Err(MembershipError::Used),
            Invited { ends, .. } if ends <= now.seconds => return Err(MembershipError::Ended),
            _ => {}
        }
        if state.members.len() >= MEMBERS_MAX {
            return Err(MembershipError::ManyMembers);
        }
        let mut invitations = state.invitations.clone();
        invitations[at].is_used = true;
        self.keep_invitations(&mut state, invitations)?;
        let own = state.own.as_ref().ok_or(MembershipError::Unknown)?;
        let name = state.free_name(&by.name);
        let (certificate, holder) = own.authority.certify(&by.request, &name)?;
        let mut members = state.members.clone();
        members.push(Member { serial: holder.serial, since: now.seconds, name: holder.name });
        self.keep_members(&mut state, members)?;
        Ok(Admission { certificate })
    }

    /// Whether the certificate with this serial number still counts.
    pub fn has(&self, serial: &str) -> bool {
        self.state.lock().members.iter().any(|member| member.serial == serial)
    }

    /// Takes away the right to come back from the member of this name or serial number.
    pub fn revoke(&self, name_or_serial: &str) -> Result<Option<Member>, MembershipError> {
        let mut state = self.state.lock();
        let is_meant = |member: &Member| [&*member.name, &*member.serial].contains(&name_or_serial);
        let mut members = state.members.clone();
        let Some(at) = members.iter().position(is_meant) else { return Ok(None) };
        let member = members.remove(at);
        self.keep_members(&mut state, members)?;
        Ok(Some(member))
    }

    fn keep_invitations(
        &self,
        state: &mut State,
        invitations: Vec<Invited>,
    ) -> Result<(), MembershipError> {
        let before = std::mem::replace(&mut state.invitations, invitations);
        let written = self.write(List::Invitations, state);
        written.inspect_err(|error| match error {
            MembershipError::Changed => {}
            _ => state.invitations = before,
        })
    }

    fn keep_members(&self, state: &mut State, members: Vec<Member>) -> Result<(), MembershipError> {
        let before = std::mem::replace(&mut state.members, members);
        let written = self.write(List::Members, state);
        written.inspect_err(|error| match error {
            MembershipError::Changed => {}
            _ => state.members = before,
        })
    }

    /// Writes what is in `state`. If somebody else has changed it, that is in there afterwards.
    fn write(&self, changed: List, state: &mut State) -> Result<(), MembershipError> {
        let written = self.lists.write(changed, &state.lines());
        if let Err(MembershipError::Changed) = written {
            state.take(&self.lists.read()?)?;
        }
        written
    }
}

impl State {
    fn lines(&self) -> Lines {
        Lines {
            invitations: self.invitations.iter().map(Invited::line).collect(),
            members: self.members.iter().map(Member::line).collect(),
        }
    }

    fn take(&mut self, lines: &Lines) -> io::Result<()> {
        self.invitations = parsed(&lines.invitations, Invited::parse)?;
        self.members = parsed(&lines.members, Member::parse)?;
        Ok(())
    }

    fn found(&mut self, folder: &std::path::Path) -> Result<(), MembershipError> {
        if self.own.is_some() {
            return Ok(());
        }
        let authority = Authority::make("Gabion filesystem")?;
        files::make_folder(folder)?;
        // The certificate is what tells that there is an authority: it comes last.
        files::write(&folder.join("ca-key.pem"), authority.key_pem().as_bytes())?;
        let certificate = to_pem(authority.certificate());
        files::write(&folder.join("ca-cert.pem"), certificate.as_bytes())?;
        self.own = Some(Own::new(authority)?);
        Ok(())
    }

    /// A name for a new member that no other has, as much like `wish` as possible.
    fn free_name(&self, wish: &str) -> String {
        let fits = |letter: char| !letter.is_control() && !letter.is_whitespace();
        let mut wish: String = wish.chars().filter(|letter| fits(*letter)).collect();
        // The rest of what a certificate takes is for a number.
        wish.truncate(wish.floor_char_boundary(48));
        let wish = if wish.is_empty() { "nameless".to_owned() } else { wish };
        let is_free = |name: &String| self.members.iter().all(|member| member.name != *name);
        let numbered = (2..).map(|number| format!("{wish}-{number}"));
        let mut names = std::iter::once(wish.clone()).chain(numbered);
        names.find(is_free).expect("there are more names than members")
    }
}

impl Own {
    fn new(authority: Authority) -> Result<Self, TlsError> {
        Ok(Self { acceptor: Acceptor::of(&authority)?, authority })
    }
}

/// All lines of a list, or the first that makes no sense.
fn parsed<T>(lines: &[String], parse: fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
    let parse = |line: &String| {
        parse(line).ok_or_else(|| io::Error::other(format!("a line makes no sense: {line:?}")))
    };
    lines.iter().map(parse).collect()
}

impl Invited {
    fn line(&self) -> String {
        let state = if self.is_used { "used" } else { "open" };
        format!("{} {} {state}", self.digest, self.ends)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (digest, ends) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let is_used = match (words.next()?, words.next()) {
            ("used", None) => true,
            ("open", None) => false,
            _ => return None,
        };
        Some(Self { digest, ends, is_used })
    }
}

impl Member {
    fn line(&self) -> String {
        format!("{} {} {}", self.serial, self.since, self.name)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let (serial, since) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(Self { serial, since, name: words.next()?.to_owned() })
    }
}

impl From<Member> for Holder {
    fn from(member: Member) -> Self {
        Self { name: member.name, serial: member.serial }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use gabion_coordinator::{MemCoordinator, Reach};
    use gabion_tls::authority::Applicant;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("gabion-membership-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn load(&self) -> Membership {
            Membership::load(self.0.join("authority")).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 0)
    }

    fn application(secret: Secret, name: &str) -> Application {
        let request = Applicant::new().unwrap().request().unwrap();
        Application { secret: secret.0, name: name.to_owned(), request }
    }

    #[test]
    fn an_invitation_works_once_and_in_its_time_also_after_a_restart() {
        let folder = Folder::new("once");
        let membership = folder.load();
        assert!(membership.acceptor().is_none());
        let (authority, first) = membership.invite(100, 200).unwrap();
        let (_, late) = membership.invite(100, 200).unwrap();
        drop(membership);

        let membership = folder.load();
        assert!(membership.acceptor().is_some());
        let wrong = application(Secret::draw(), "x");
        assert!(matches!(membership.admit(at(150), &wrong), Err(MembershipError::Unknown)));
        membership.admit(at(150), &application(first, "host1")).unwrap();
        let again = membership.admit(at(150), &application(first, "host1"));
        assert!(matches!(again, Err(MembershipError::Used)));
        let ended = membership.admit(at(200), &application(late, "x"));
        assert!(matches!(ended, Err(MembershipError::Ended)));
        drop(membership);

        let membership = folder.load();
        let again = membership.admit(at(150), &application(first, "host1"));
        assert!(matches!(again, Err(MembershipError::Used)));
        assert_eq!(membership.invite(300, 400).unwrap().0, authority);
    }

    #[test]
    fn who_is_revoked_does_not_belong_to_it_any_more() {
        let folder = Folder::new("revoked");
        let membership = folder.load();
        let join = |name: &str| {
            let (_, secret) = membership.invite(1, 2).unwrap();
            membership.admit(at(1), &application(secret, name)).unwrap();
        };
        join("host 1\n");
        join("host1");
        join("");
        let names = |membership: &Membership| -> Vec<_> {
            membership.state.lock().members.iter().map(|member| member.name.clone()).collect()
        };
        assert_eq!(names(&membership), ["host1", "host1-2", "nameless"]);
        let revoked = membership.revoke("host1-2").unwrap().unwrap();
        assert!(!membership.has(&revoked.serial));
        assert_eq!(membership.revoke("host1-2").unwrap(), None);
        let again = folder.load();
        assert_eq!(names(&again), ["host1", "nameless"]);
        assert!(!again.has(&revoked.serial));
    }

    #[test]
    fn a_request_that_makes_no_sense_uses_the_invitation_up_and_gives_nothing() {
        let folder = Folder::new("request");
        let membership = folder.load();
        let (_, secret) = membership.invite(1, 2).unwrap();
        let nonsense = Application { request: vec![7; 40], ..application(secret, "x") };
        assert!(matches!(membership.admit(at(1), &nonsense), Err(MembershipError::Tls(_))));
        let again = membership.admit(at(1), &application(secret, "x"));
        assert!(matches!(again, Err(MembershipError::Used)));
        assert!(membership.state.lock().members.is_empty());
    }

    #[test]
    fn servers_of_a_volume_know_the_same_machines() {
        let (one, other) = (Folder::new("one"), Folder::new("other"));
        let coordinator = Arc::new(MemCoordinator::new());
        let load = |folder: &Folder| {
            let coordinator = Arc::clone(&coordinator) as Arc<dyn Coordinator>;
            let folder = folder.0.join("authority");
            Membership::load_shared(folder, coordinator, "filesystem".to_owned()).unwrap()
        };
        // What was in files before is taken over.
        let before = one.load();
        let (_, secret) = before.invite(1, 2).unwrap();
        before.admit(at(1), &application(secret, "host1")).unwrap();
        drop(before);
        let first = load(&one);
        assert!(!one.0.join("authority/members").exists());
        fs::create_dir_all(other.0.join("authority")).unwrap();
        for name in ["ca-key.pem", "ca-cert.pem"] {
            let file = format!("authority/{name}");
            fs::copy(one.0.join(&file), other.0.join(&file)).unwrap();
        }
        let (_, secret) = first.invite(1, 2).unwrap();
        first.admit(at(1), &application(secret, "host2")).unwrap();
        let revoked = first.revoke("host1").unwrap().unwrap();
        let second = load(&other);
        let again = second.admit(at(1), &application(secret, "x"));
        assert!(matches!(again, Err(MembershipError::Used)));
        assert!(!second.has(&revoked.serial));
        let (_, secret) = second.invite(1, 2).unwrap();
        second.admit(at(1), &application(secret, "host3")).unwrap();
        // Who does not know that may change nothing, and knows it then.
        assert!(matches!(first.revoke("host2"), Err(MembershipError::Changed)));
        let member = first.revoke("host3").unwrap().unwrap();
        assert!(!load(&other).has(&member.serial));
        coordinator.set_reach(Reach::None);
        assert!(matches!(first.invite(1, 2), Err(MembershipError::Coordinator(_))));
        coordinator.set_reach(Reach::Full);
        assert!(first.revoke("host2").unwrap().is_some());
    }

    #[test]
    fn nobody_else_can_read_what_is_kept() {
        let folder = Folder::new("private");
        folder.load().invite(1, 2).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
        let inside = folder.0.join("authority");
        assert_eq!(mode(inside.clone()), 0o700);
        for name in ["ca-key.pem", "ca-cert.pem", "invitations"] {
            assert_eq!(mode(inside.join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn invitations_without_end_are_not_made() {
        let folder = Folder::new("many");
        let membership = folder.load();
        for _ in 0..OPEN_MAX {
            membership.invite(1, 2).unwrap();
        }
        assert!(matches!(membership.invite(1, 2), Err(MembershipError::ManyInvitations)));
        membership.invite(2, 3).unwrap();
    }
}
