//! What clients may do, as `--export` says, and what ordinary programs do not notice of it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::world::{Folder, GABION, Running};

/// A filesystem with some exports.
struct Exported {
    server: Running,
    uri: String,
    folder: Folder,
}

impl Exported {
    fn new(exports: &[&str]) -> Option<Self> {
        let folder = Folder::for_mounts()?;
        folder.image();
        let mut command = Command::new(GABION);
        command.args(["serve", "disk.img", "--listen", "127.0.0.1:0"]);
        command.args(exports.iter().flat_map(|export| ["--export", export]));
        command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
        let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Some(Self { server, uri: line.trim_end().to_owned(), folder })
    }

    fn mount(&self, path: &str, name: &str) -> PathBuf {
        let mountpoint = self.folder.join(name);
        fs::create_dir(&mountpoint).unwrap();
        self.folder.gabion(&["mount", &format!("{}{path}", self.uri), name]).succeeded();
        mountpoint
    }

    fn is_refused(&self, path: &str) {
        let outcome = self.folder.gabion(&["mount", &format!("{}{path}", self.uri), "."]);
        outcome.failed(1, &[&format!("/{path} is not exported to 127.0.0.1"), "--export"]);
    }

    fn finish(mut self, mounts: &[&str]) {
        for name in mounts {
            self.folder.gabion(&["umount", name]).succeeded();
        }
        self.server.signal(Signal::TERM);
        assert!(self.server.0.wait().unwrap().success());
        self.folder.gabion(&["scrub", "disk.img"]).succeeded();
    }
}

/// Makes a folder that everybody may use.
fn open_folder(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Runs a script of the shell in `folder` as a user with groups; whether it succeeded.
fn as_user(uid: u32, groups: &str, folder: &Path, script: &str) -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string()]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.args(["--groups", groups]),
    };
    command.args(["sh", "-ec", script]).current_dir(folder).stderr(Stdio::null());
    command.status().unwrap().success()
}

#[test]
fn nobody_changes_anything_through_a_read_only_export() {
    let Some(exported) = Exported::new(&["/", "/public:ro"]) else { return };
    let all = exported.mount("", "all");
    fs::create_dir(all.join("public")).unwrap();
    fs::write(all.join("public/file"), "one").unwrap();
    let public = exported.mount("public", "public");
    assert_eq!(fs::read_to_string(public.join("file")).unwrap(), "one");
    let refused = [
        fs::write(public.join("new"), ""),
        fs::write(public.join("file"), "two"),
        fs::remove_file(public.join("file")),
        fs::create_dir(public.join("dir")),
        fs::set_permissions(public.join("file"), fs::Permissions::from_mode(0o600)),
    ];
    for outcome in refused {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    let opened = fs::File::options().write(true).open(public.join("file"));
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    fs::write(all.join("public/file"), "two").unwrap();
    assert_eq!(fs::read_to_string(public.join("file")).unwrap(), "two");
    exported.finish(&["public", "all"]);
}

#[test]
fn root_is_nobody_where_it_is_squashed() {
    let Some(exported) = Exported::new(&["/", "/sub:root_squash,anonuid=70,anongid=71"]) else {
        return;
    };
    let all = exported.mount("", "all");
    open_folder(&all.join("sub"));
    fs::write(all.join("sub/roots"), "secret").unwrap();
    fs::set_permissions(all.join("sub/roots"), fs::Permissions::from_mode(0o600)).unwrap();
    let sub = exported.mount("sub", "sub");
    let kind = |outcome: std::io::Result<()>| outcome.unwrap_err().kind();
    let denied = ErrorKind::PermissionDenied;
    assert_eq!(kind(fs::read(sub.join("roots")).map(drop)), denied);
    assert_eq!(kind(fs::write(sub.join("roots"), "x")), denied);
    assert_eq!(kind(chown(sub.join("roots"), Some(0), Some(0))), denied);
    fs::write(sub.join("made"), "by root").unwrap();
    let made = all.join("sub/made").metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (70, 71));
    assert_eq!(kind(chown(sub.join("made"), Some(0), Some(0))), denied);
    assert_eq!(fs::read_to_string(sub.join("made")).unwrap(), "by root");
    // Another user's file is theirs.
    assert!(as_user(1000, "", &sub, "umask 077; echo mine > own; cat own"));
    assert_eq!(kind(fs::read(sub.join("own")).map(drop)), denied);
    assert_eq!(fs::read_to_string(all.join("sub/own")).unwrap(), "mine\n");
    exported.finish(&["sub", "all"]);
}

#[test]
fn ordinary_users_have_their_rights_though_the_server_checks() {
    let Some(exported) = Exported::new(&[]) else { return };
    let all = exported.mount("", "all");
    open_folder(&all.join("open"));
    fs::create_dir(all.join("staff")).unwrap();
    chown(all.join("staff"), Some(0), Some(50)).unwrap();
    fs::set_permissions(all.join("staff"), fs::Permissions::from_mode(0o2770)).unwrap();
    let other = exported.mount("", "other");
    // By a group that the kernel's protocol does not tell, on a machine that knows nothing yet.
    let work = "umask 007; echo one > a; echo two >> a; mkdir d; mv a d/b; ln d/b c; chmod g-w c; \
                ls -l d > /dev/null; cat c; rm c; rm d/b; rmdir d; ln -s x link; rm link";
    assert!(as_user(1000, "50,51", &all.join("staff"), work));
    assert!(as_user(1001, "51,50", &other.join("staff"), work));
    assert!(!as_user(1002, "51", &other, "ls staff"));
    assert!(!as_user(1002, "51", &other, "echo x > staff/x"));
    // A file of another user, read and written by its group; not by others.
    assert!(as_user(1000, "50", &all.join("staff"), "umask 007; echo one > file"));
    assert!(as_user(1001, "50", &other.join("staff"), "cat file; echo two >> file"));
    assert_eq!(fs::read_to_string(all.join("staff/file")).unwrap(), "one\ntwo\n");
    // Made read-only, and written by who made it; git does that.
    let made = "umask 0333; exec 3> ro; echo x >&3; exec 3>&-; cat ro; ! echo y > ro";
    assert!(as_user(1000, "", &all.join("open"), made));
    // Opened by root, and used by somebody else after its mode was changed.
    let script = "exec 3> log 4< log; chmod 600 log; \
                  setpriv --reuid 33 --regid 33 --clear-groups sh -ec 'echo line >&3; cat <&4'";
    assert!(as_user(0, "", &other.join("open"), script));
    assert_eq!(fs::read_to_string(all.join("open/log")).unwrap(), "line\n");
    assert!(!as_user(33, "", &all.join("open"), "cat log"));
    // Run without the right to be read.
    let program = all.join("open/program");
    fs::copy("/bin/true", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o711)).unwrap();
    assert!(as_user(1000, "", &other.join("open"), "./program; ! cat program > /dev/null"));
    exported.finish(&["other", "all"]);
}

#[test]
fn a_folder_is_mounted_as_if_it_were_all() {
    let Some(exported) = Exported::new(&["/home", "/inner:ro", "/away:clients=10.0.0.0/8"]) else {
        return;
    };
    for path in ["", "away", "hom", "home/none"] {
        exported.is_refused(path);
    }
    exported.finish(&[]);
    let Some(exported) = Exported::new(&["/:clients=127.0.0.1", "/home/ann"]) else { return };
    let all = exported.mount("", "all");
    fs::create_dir_all(all.join("home/ann")).unwrap();
    fs::write(all.join("secret"), "x").unwrap();
    let home = exported.mount("home", "home");
    let ann = exported.mount("home/ann", "ann");
    let inode = |path: &Path| path.metadata().unwrap().ino();
    assert_eq!(inode(&ann), inode(&all.join("home/ann")));
    fs::write(ann.join("file"), "one").unwrap();
    assert_eq!(fs::read_to_string(home.join("ann/file")).unwrap(), "one");
    fs::write(all.join("home/ann/file"), "two").unwrap();
    assert_eq!(fs::read_to_string(ann.join("file")).unwrap(), "two");
    // Nothing that is cached of the folder itself outlives a change elsewhere.
    for round in 0..20_u32 {
        let mode = 0o700 + round % 8;
        fs::set_permissions(all.join("home/ann"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(ann.metadata().unwrap().mode() & 0o777, mode);
        fs::write(all.join(format!("home/ann/new{round}")), "").unwrap();
        assert_eq!(fs::read_dir(&ann).unwrap().count(), 2 + round as usize);
        assert!(ann.join(format!("new{round}")).exists());
    }
    let tree = "mkdir t; for i in $(seq 100); do mkdir -p t/$((i % 7)); echo $i > t/$((i % 7))/$i; \
                done; cp -r t e; cp -rl e l; mv e l/e; diff -r l/e t; \
                find . -type f -exec stat {} + > /dev/null; rm -r l t";
    assert!(as_user(0, "", &ann, tree));
    fs::create_dir(ann.join("dir")).unwrap();
    fs::write(ann.join("dir/deep"), "three").unwrap();
    assert_eq!(fs::read_to_string(home.join("ann/dir/deep")).unwrap(), "three");
    // Moved out of it, it is not there any more.
    fs::rename(home.join("ann/dir"), home.join("dir")).unwrap();
    assert_eq!(fs::read(ann.join("dir/deep")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::rename(home.join("dir"), home.join("ann/dir")).unwrap();
    assert_eq!(fs::read_to_string(ann.join("dir/deep")).unwrap(), "three");
    exported.finish(&["ann", "home", "all"]);
}

#[test]
fn exports_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    folder.image();
    let serve = |export: &str| folder.gabion(&["serve", "disk.img", "--export", export]);
    serve("home").failed(2, &["--export home is not possible", "slash"]);
    serve("/:frobnicate").failed(2, &["there is no option frobnicate"]);
}

#[test]
fn a_subvolume_is_mounted_by_itself_with_its_snapshots_and_its_quota() {
    let Some(exported) = Exported::new(&["/home"]) else { return };
    let folder = &exported.folder;
    // It is made where all can be seen: by the server.
    exported.is_refused("home");
    folder.gabion(&["subvolume", "create", "disk.img:/home"]).succeeded();
    folder.gabion(&["subvolume", "create", "disk.img:/home/within"]).succeeded();
    folder.gabion(&["quota", "set", "disk.img:/home", "8M"]).succeeded();
    let (a, b) = (exported.mount("home", "a"), exported.mount("home", "b"));
    fs::create_dir(a.join("dir")).unwrap();
    fs::write(a.join("dir/file"), "before").unwrap();
    folder.gabion(&["snapshot", "create", "disk.img:/home", "one"]).succeeded();
    fs::write(b.join("dir/file"), "after").unwrap();
    for mount in [&a, &b] {
        assert_eq!(fs::read_to_string(mount.join("dir/file")).unwrap(), "after");
        let seen = mount.join(".snapshots/one/dir/file");
        assert_eq!(fs::read_to_string(&seen).unwrap(), "before");
        assert_eq!(fs::write(&seen, "never").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        let left_out = fs::metadata(mount.join("within")).unwrap_err();
        assert_eq!(left_out.raw_os_error(), Some(libc::EXDEV));
    }
    let space = rustix::fs::statvfs(&a).unwrap();
    assert_eq!(space.f_blocks * space.f_frsize, 8 << 20);
    let mut file = fs::File::create(a.join("large")).unwrap();
    let filled = std::io::copy(&mut std::io::repeat(7).take(20 << 20), &mut file);
    let refused = filled.and_then(|_| file.sync_all()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EDQUOT));
    let within = format!("{}home/dir", exported.uri);
    folder.gabion(&["mount", &within, "."]).failed(1, &["/home/dir is within another subvolume"]);
    drop(file);
    exported.finish(&["a", "b"]);
}
