//! Mount options, as they come after `-o` and out of the fourth column of fstab.
//!
//! An option that is wrong or unknown is an error: one that was ignored silently would promise
//! what nobody keeps. Only those are ignored that are addressed to others: to mount(8), to systemd
//! (`x-...`), to the start scripts (`_netdev`, `noauto`). Of two that contradict each other the
//! later one counts.

use std::path::PathBuf;
use std::time::Duration;

use gabion_fs::{AtimePolicy, AtimeRules};
use gabion_fuse::mount::MountFlags;

use crate::failure::{Exit, Failure, Result};
use crate::mount::{Users, WritePolicy};
use crate::size::Size;

/// Memory that the daemon aims at if `cache` is not given.
const CACHE_DEFAULT: Size = Size(192 << 20);
/// The least `cache` that is accepted.
const CACHE_MIN: Size = Size(16 << 20);
/// Seconds between commits if `commit` is not given.
const COMMIT_SECONDS_DEFAULT: u64 = 5;
/// The longest time between commits, in seconds.
const COMMIT_SECONDS_MAX: u64 = 300;

/// Seconds that an operation waits for a server if `deadline` is not given.
const DEADLINE_SECONDS_DEFAULT: u64 = 30;
/// The longest time that an operation may wait for a server, in seconds.
const DEADLINE_SECONDS_MAX: u64 = 24 * 3600;

/// Meant for others.
const IGNORED: &[&str] = &[
    "defaults",
    "rw",
    "async",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "norelatime",
    "loud",
    "silent",
    "nomand",
    "nolazytime",
    "iversion",
    "noiversion",
    "loop",
];

/// Whether the filesystem may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `rw`
    ReadWrite,
    /// `ro`
    ReadOnly,
}

/// All options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `ro`, `rw`
    pub access: Access,
    /// `relatime`, `noatime`, `strictatime`
    atime: AtimePolicy,
    /// `nosuid`, `nodev`, `noexec`, `nodiratime`, `sync`, `dirsync`, where set.
    restrictions: MountFlags,
    /// `cache`: the memory that the daemon aims at, in all.
    pub cache: Size,
    /// `commit`: the time between commits.
    pub commit: Duration,
    /// `deadline`: how long an operation waits for a server.
    pub deadline: Duration,
    /// `writeback`, `writethrough`; the mount's own choice if not given.
    pub policy: Option<WritePolicy>,
    /// `allow_other`; by default for root.
    pub users: Users,
    /// `tls-cert`, `tls-key`, `tls-ca`: what to show a server, and whom to believe.
    pub tls: TlsFiles,
    /// `insecure`: talk to a server without encryption.
    pub insecure: bool,
}

/// Files of certificates, in PEM format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// This machine's certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The authority of the server's.
    pub authority: Option<PathBuf>,
}

/// Options that only set a flag of the mount, and those that take it back.
const RESTRICTIONS: &[(&str, &str, MountFlags)] = &[
    ("nosuid", "suid", MountFlags::NOSUID),
    ("nodev", "dev", MountFlags::NODEV),
    ("noexec", "exec", MountFlags::NOEXEC),
    ("nodiratime", "diratime", MountFlags::NODIRATIME),
    ("sync", "async", MountFlags::SYNCHRONOUS),
    ("dirsync", "nodirsync", MountFlags::DIRSYNC),
];

impl Settings {
    /// What a mount without options gets.
    pub fn new(users: Users) -> Self {
        Self {
            access: Access::ReadWrite,
            atime: AtimePolicy::Relative,
            restrictions: MountFlags::NONE,
            cache: CACHE_DEFAULT,
            commit: Duration::from_secs(COMMIT_SECONDS_DEFAULT),
            deadline: Duration::from_secs(DEADLINE_SECONDS_DEFAULT),
            policy: None,
            users,
            tls: TlsFiles::default(),
            insecure: false,
        }
    }

    /// Applies one string of options separated by commas.
    pub fn apply(&mut self, options: &str) -> Result<()> {
        options.split(',').filter(|option| !option.is_empty()).try_for_each(|option| {
            self.apply_one(option).map_err(|failure| failure.exit(Exit::Usage))
        })
    }

    fn apply_one(&mut self, option: &str) -> Result<()> {
        for (name, opposite, flag) in RESTRICTIONS {
            if [name, opposite].contains(&&option) {
                let others = self.restrictions.without(*flag);
                self.restrictions = if option == *name { others | *flag } else { others };
                return Ok(());
            }
        }
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("ro", None) => self.access = Access::ReadOnly,
            ("rw", None) => self.access = Access::ReadWrite,
            ("relatime" | "atime", None) => self.atime = AtimePolicy::Relative,
            ("noatime", None) => self.atime = AtimePolicy::Never,
            ("strictatime", None) => self.atime = AtimePolicy::Always,
            // It takes nothing back but that.
            ("nostrictatime", None) if self.atime != AtimePolicy::Always => {}
            ("nostrictatime", None) => self.atime = AtimePolicy::Relative,
            ("writeback", None) => self.policy = Some(WritePolicy::Back),
            ("writethrough", None) => self.policy = Some(WritePolicy::Through),
            ("allow_other", None) => self.users = Users::Everybody,
            ("cache", Some(value)) => self.cache = cache(value)?,
            ("commit", Some(value)) => self.commit = seconds("commit", value, COMMIT_SECONDS_MAX)?,
            ("deadline", Some(value)) => {
                self.deadline = seconds("deadline", value, DEADLINE_SECONDS_MAX)?;
            }
            ("insecure", None) => self.insecure = true,
            ("tls-cert", Some(path)) => self.tls.certificate = Some(file("tls-cert", path)?),
            ("tls-key", Some(path)) => self.tls.key = Some(file("tls-key", path)?),
            ("tls-ca", Some(path)) => self.tls.authority = Some(file("tls-ca", path)?),
            ("remount", None) => {
                return Err(Failure::new("a mount's options cannot be changed while it is there")
                    .next("Unmount it, and mount it again with the new options."));
            }
            ("user" | "comment", Some(_)) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            (name, None) if IGNORED.contains(&name) => {}
            _ => return Err(unknown(option)),
        }
        Ok(())
    }

    /// The same as `tls-cert`, `tls-key` and `tls-ca`, where given.
    pub fn set_tls_files(&mut self, files: [&Option<PathBuf>; 3]) -> Result<()> {
        let TlsFiles { certificate, key, authority } = &mut self.tls;
        for (place, file) in [certificate, key, authority].into_iter().zip(files) {
            if let Some(path) = file {
                let absolute = std::path::absolute(path);
                *place = Some(absolute.map_err(|error| Failure::of(path.display(), &error))?);
            }
        }
        Ok(())
    }

    /// When reading is recorded. The kernel leaves all of that to a FUSE filesystem.
    pub fn atime(&self) -> AtimeRules {
        let has_none = self.restrictions.contains(MountFlags::NODIRATIME);
        match self.access {
            Access::ReadOnly => AtimeRules::NONE,
            Access::ReadWrite => AtimeRules {
                directories: if has_none { AtimePolicy::Never } else { self.atime },
                others: self.atime,
            },
        }
    }

    /// The flags by which the kernel enforces its part.
    pub fn flags(&self) -> MountFlags {
        let access = match self.access {
            Access::ReadWrite => MountFlags::NONE,
            Access::ReadOnly => MountFlags::READ_ONLY,
        };
        let atime = match self.atime {
            AtimePolicy::Relative => MountFlags::RELATIME,
            AtimePolicy::Never => MountFlags::NOATIME,
            AtimePolicy::Always => MountFlags::STRICTATIME,
        };
        access | atime | self.restrictions
    }
}

fn cache(value: &str) -> Result<Size> {
    let size: Size = value.parse().map_err(|wrong| Failure::new(format!("cache: {wrong}")))?;
    if size < CACHE_MIN {
        return Err(Failure::new(format!("cache={value} is less than 16M, the least possible")));
    }
    Ok(size)
}

/// A daemon leaves the folder that it was started in.
fn file(name: &str, path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::of(format!("{name}={path}"), &error))
}

fn seconds(name: &str, value: &str, most: u64) -> Result<Duration> {
    match value.parse() {
        Ok(seconds) if (1..=most).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => {
            Err(Failure::new(format!("{name}={value} is not a number of seconds from 1 to {most}")))
        }
    }
}

fn unknown(option: &str) -> Failure {
    Failure::new(format!("there is no mount option {option:?}")).next(
        "There are: ro, noatime, relatime, strictatime, nodiratime, nosuid, nodev, noexec, sync, \
         dirsync,\n        cache=SIZE, commit=SECONDS, deadline=SECONDS, writeback, writethrough, \
         allow_other,\n        insecure, tls-cert=FILE, tls-key=FILE, tls-ca=FILE.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<Settings> {
        let mut settings = Settings::new(Users::Owner);
        settings.apply(options).map(|()| settings)
    }

    #[test]
    fn options_are_understood() {
        let settings = parse("ro,noatime,nosuid,nodev,cache=16M,commit=30,writeback").unwrap();
        assert_eq!(settings.access, Access::ReadOnly);
        assert_eq!(settings.cache, Size(16 << 20));
        assert_eq!(settings.commit, Duration::from_secs(30));
        assert_eq!(settings.policy, Some(WritePolicy::Back));
        let flags = settings.flags();
        for flag in [MountFlags::READ_ONLY, MountFlags::NOATIME, MountFlags::NOSUID] {
            assert!(flags.contains(flag), "{flag:?} of {flags:?}");
        }
        assert!(!flags.contains(MountFlags::NOEXEC));
    }

    #[test]
    fn what_is_meant_for_others_changes_nothing() {
        let ignored = "defaults,rw,noauto,_netdev,nofail,user,user=mira,x-systemd.automount,,";
        assert_eq!(parse(ignored).unwrap(), Settings::new(Users::Owner));
    }

    #[test]
    fn the_later_of_two_counts() {
        assert_eq!(parse("nosuid,suid,ro,rw").unwrap(), Settings::new(Users::Owner));
        let all = |options| parse(options).unwrap().atime();
        assert_eq!(all("noatime,strictatime"), AtimeRules::all(AtimePolicy::Always));
        assert_eq!(all("noatime,nostrictatime"), AtimeRules::NONE);
        assert_eq!(all("strictatime,nostrictatime"), AtimeRules::all(AtimePolicy::Relative));
        assert_eq!(all("noatime,atime,norelatime"), AtimeRules::all(AtimePolicy::Relative));
    }

    #[test]
    fn reading_is_recorded_of_what_the_options_say() {
        let rules = |options| parse(options).unwrap().atime();
        let (directories, others) = (AtimePolicy::Never, AtimePolicy::Always);
        assert_eq!(rules("strictatime,nodiratime"), AtimeRules { directories, others });
        assert_eq!(rules("nodiratime,diratime"), AtimeRules::all(AtimePolicy::Relative));
        assert_eq!(rules("strictatime,ro"), AtimeRules::NONE);
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        let wrong = ["sped", "cache", "cache=15M", "cache=lots", "commit=0", "ro=1", "remount"];
        for option in wrong.into_iter().chain(["lazytime", "relatime=1"]) {
            let failure = parse(&format!("ro,{option}")).unwrap_err();
            assert_eq!(failure.code(), Exit::Usage);
        }
        assert!(parse("sped").unwrap_err().to_string().contains("\"sped\""));
    }
}
