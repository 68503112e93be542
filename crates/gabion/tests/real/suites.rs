//! Test suites by others, as their authors mean them to be run.

use std::fs;

use crate::GIB;
use crate::program::{attempt, crate_program, program, run};
use crate::site::{Kind, Site, is_long};

/// The ways in which a file is exercised: what fsx is told.
const FSX_MODES: &[(&str, &str)] = &[
    ("the usual", ""),
    (
        "everything",
        "[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 3\nread = 10\n\
         write = 10\ntruncate = 5\nfsync = 0.5\nfdatasync = 0.5\nposix_fallocate = 3\n\
         punch_hole = 3\nsendfile = 3\nposix_fadvise = 1\ncopy_file_range = 3\n",
    ),
    (
        "a large file without mappings",
        "flen = 8388608\n[opsize]\nmax = 1048576\n[weights]\nclose_open = 1\nmapread = 0\n\
         mapwrite = 0\nread = 10\nwrite = 10\ntruncate = 3\nposix_fallocate = 2\npunch_hole = 3\n\
         copy_file_range = 2\nfsync = 0.2\n",
    ),
    // Without fallocate, which fsx now and then asks for no bytes at all when it aligns.
    (
        "whole blocks",
        "flen = 1048576\n[opsize]\nalign = 4096\nmin = 4096\n[weights]\nclose_open = 1\n\
         mapread = 10\nmapwrite = 3\nread = 10\nwrite = 10\ntruncate = 3\npunch_hole = 3\n\
         copy_file_range = 3\n",
    ),
    (
        "a few bytes",
        "flen = 9000\n[opsize]\nmax = 300\n[weights]\nclose_open = 2\nmapread = 5\nmapwrite = 2\n\
         read = 10\nwrite = 10\ntruncate = 10\npunch_hole = 3\ncopy_file_range = 3\n",
    ),
    (
        "mappings that are synced late",
        "nomsyncafterwrite = true\n[weights]\nmapread = 10\nmapwrite = 20\nread = 10\nwrite = 10\n\
         truncate = 5\ninvalidate = 0\nfsync = 0.2\n",
    ),
];

fn fsx(name: &str, options: &[&str]) {
    let operations = if is_long() { "100000" } else { "1500" };
    // Compiled before there is a mount, whose watchdog would count the time.
    let _installed = crate_program("fsx", "0.3.2");
    let site = Site::with_options(name, GIB, options);
    for (number, (mode, config)) in FSX_MODES.iter().enumerate() {
        let path = site.beside("fsx.toml");
        fs::write(&path, config).unwrap();
        let mut fsx = crate_program("fsx", "0.3.2");
        fsx.arg("-f").arg(&path).args(["-N", operations, "-S", &(number + 1).to_string()]);
        fsx.arg("-P").arg(site.beside("")).arg(site.path(&format!("file {number}")));
        let (success, text) = attempt(&mut fsx);
        assert!(success, "{mode}: {text}");
    }
    site.scrub();
}

#[test]
fn fsx_reads_what_it_wrote() {
    fsx("fsx", &[]);
}

#[test]
fn fsx_reads_what_it_wrote_through_the_kernels_write_cache() {
    fsx("fsx-back", &["writeback"]);
}

#[test]
fn fsx_reads_what_it_wrote_through_to_the_daemon() {
    fsx("fsx-through", &["writethrough", "cache=16M"]);
}

/// Those of stress-ng's stressors that ask a filesystem for something.
///
/// Not here: those for one kernel filesystem's own calls (binderfs, chattr, fiemap, inode-flags,
/// verity), those that mount (bind-mount), and those that want no filesystem (dup, eventfd, ioprio,
/// procfs, fanotify's permission events).
const STRESSORS: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "fallocate",
    "fcntl",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "inotify",
    "io",
    "iomix",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "rename",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

#[test]
fn stress_ng_meets_no_unexpected_error() {
    let seconds = if is_long() { 30 } else { 1 };
    let site = Site::new("stress-ng", 2 * GIB);
    for group in STRESSORS.chunks(4) {
        let mut stress = program("stress-ng", "stress-ng");
        stress.args(["--verify", "--oom-avoid", "--timeout", &format!("{seconds}s")]);
        stress.arg("--temp-path").arg(site.root());
        for stressor in group {
            stress.args([format!("--{stressor}"), "1".to_owned()]);
        }
        // Bounded, or some of them fill any disk.
        stress.args(["--hdd-bytes", "64M", "--iomix-bytes", "64M", "--fallocate-bytes", "64M"]);
        stress.args(["--copy-file-bytes", "128M", "--sync-file-bytes", "16M"]);
        stress.args(["--dirdeep-inodes", "2000", "--dirmany-bytes", "0", "--seed", "1"]);
        let (success, text) = attempt(&mut stress);
        assert!(success, "{group:?}: {text}");
    }
    site.scrub();
}

/// What pjdfstest leaves out where `link(2)` has no limit that could be looked up.
const PJDFSTEST_UNKNOWN_LIMIT: &str = "link::link_count_max";

#[test]
fn pjdfstest_finds_no_difference_from_posix() {
    let _installed = crate_program("pjdfstest", "0.2.2");
    let site = Site::new("pjdfstest", GIB);
    // Another filesystem for what must not cross devices; its users are on every Debian.
    let (second, config) = (site.beside("second"), site.beside("pjdfstest.toml"));
    fs::create_dir(&second).unwrap();
    // Remounting fails, on any filesystem, while other cases hold files open: those run alone.
    for (remounts, filter) in [("false", None), ("true", Some("erofs"))] {
        let text = format!(
            "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nstat_st_birthtime = {{}}\n\
             utime_now = {{}}\nutimensat = {{}}\n[settings]\nnaptime = 0.02\n\
             allow_remount = {remounts}\n[dummy_auth]\n\
             entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n"
        );
        fs::write(&config, text).unwrap();
        let mut suite = crate_program("pjdfstest", "0.2.2");
        suite.arg("-c").arg(&config).arg("-p").arg(site.root()).arg("-s").arg(&second);
        let report = run(suite.args(filter));
        let is_excused = |line: &str| {
            line.contains("erofs") && remounts == "false"
                || line.contains(PJDFSTEST_UNKNOWN_LIMIT) && site.kind() == Kind::Gabion
        };
        let mut skipped = report.lines().filter(|line| line.ends_with(" skipped"));
        assert_eq!(skipped.find(|line| !is_excused(line)), None, "left out:\n{report}");
        assert!(report.contains("Summary: 0 failed"), "{report}");
    }
    site.scrub();
}
