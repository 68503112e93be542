//! PostgreSQL is saved while pgbench works on it, and starts from what was restored elsewhere.
//!
//! What pgbench does keeps a sum: each transaction adds one number to an account, a teller and a
//! branch, and notes it in a history. A state that is not of one moment breaks that, or does not
//! even start: data pages and the log of writes belong together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::MIB;
use crate::program::{Running, attempt, program, run};
use crate::site::{Kind, Site, gabion, is_long};

/// The account that PostgreSQL runs under: it refuses root.
const USER: &str = "postgres";

/// A program of PostgreSQL's, under its account.
fn postgres(name: &str) -> Command {
    let folders = fs::read_dir("/usr/lib/postgresql");
    let folders = folders.expect("no PostgreSQL: apt-get install -y postgresql");
    let newest = folders.map(|entry| entry.unwrap().path()).max().expect("a version");
    let mut command = program("runuser", "util-linux");
    command.args(["-u", USER, "--"]).arg(newest.join("bin").join(name));
    command.current_dir("/");
    command
}

/// A server on a folder of data, which ends with this.
struct Server {
    data: PathBuf,
    sockets: PathBuf,
}

impl Server {
    /// Starts one; its socket is in `sockets`.
    fn start(data: &Path, sockets: &Path) -> Self {
        fs::create_dir_all(sockets).unwrap();
        run(Command::new("chown").arg(USER).arg(sockets));
        let server = Self { data: data.to_owned(), sockets: sockets.to_owned() };
        let options = format!("-k {} -c listen_addresses=", sockets.display());
        let log = sockets.join("log");
        let mut start = postgres("pg_ctl");
        start.args(["-w", "-t", "200", "-o", &options, "-D"]).arg(data);
        start.arg("-l").arg(&log).arg("start");
        let (success, text) = attempt(&mut start);
        let told = fs::read_to_string(&log).unwrap_or_default();
        assert!(success && text.contains("server started"), "{text}\n{told}");
        server
    }

    fn client(&self, name: &str) -> Command {
        let mut command = postgres(name);
        command.arg("-h").arg(&self.sockets);
        command
    }

    fn number(&self, query: &str) -> i64 {
        let mut psql = self.client("psql");
        run(psql.args(["-A", "-t", "-c", query, "postgres"])).trim().parse().unwrap()
    }

    /// The number of transactions that are there, which must fit together.
    fn check(&self) -> i64 {
        let sums = ["sum(abalance) FROM pgbench_accounts", "sum(tbalance) FROM pgbench_tellers"];
        let wanted = self.number("SELECT coalesce(sum(delta), 0) FROM pgbench_history");
        for sum in sums.into_iter().chain(["sum(bbalance) FROM pgbench_branches"]) {
            assert_eq!(self.number(&format!("SELECT {sum}")), wanted, "{sum}");
        }
        let dump = run(self.client("pg_dump").arg("postgres"));
        assert!(dump.contains("PostgreSQL database dump complete"));
        self.number("SELECT count(*) FROM pgbench_history")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut stop = postgres("pg_ctl");
        let _ = stop.args(["-m", "immediate", "-D"]).arg(&self.data).arg("stop").output();
    }
}

#[test]
fn postgresql_starts_from_backups_that_were_made_under_load() {
    let seconds = if is_long() { "300" } else { "25" };
    let site = Site::new("backup-postgresql", 600 * MIB);
    if site.kind() == Kind::Ext4 {
        eprintln!("left out: only Gabion has backups");
        return;
    }
    let data = site.path("data");
    fs::create_dir(&data).unwrap();
    run(Command::new("chown").arg(USER).arg(&data));
    run(postgres("initdb").args(["--data-checksums", "--no-sync", "-D"]).arg(&data));
    let server = Server::start(&data, &site.beside("sockets"));
    run(server.client("pgbench").args(["-q", "-i", "-s", "3", "postgres"]));
    let store = site.beside("store");
    fs::create_dir_all(&store).unwrap();
    let mut load = server.client("pgbench");
    load.args(["-n", "-c", "4", "-T", seconds, "postgres"]);
    let load = Running::start_unheard(&mut load);
    let mut committed = Vec::new();
    for round in 0..3 {
        let history = || server.number("SELECT count(*) FROM pgbench_history");
        // Between two backups something has to happen.
        let before = committed.last().copied().unwrap_or(0);
        while history() < before + 20 {
            thread::sleep(Duration::from_millis(50));
        }
        committed.push(history());
        let mut save = gabion("backup");
        if round > 0 {
            save.arg("--incremental");
        }
        run(save.arg(site.root()).arg(store.join(round.to_string())));
    }
    assert!(load.wait(), "pgbench failed");
    let last = server.check();
    drop(server);
    run(gabion("verify").arg(&store));
    for (number, committed) in committed.into_iter().enumerate() {
        // On Gabion, and on whatever the disk has.
        let target = match number {
            0 => site.path("restored"),
            number => site.beside(&format!("restored {number}")),
        };
        let backup = store.join(number.to_string());
        run(gabion("restore").arg("--to-directory").arg(backup).arg(&target));
        // It names the process that had it, whose number may be somebody else's by now.
        fs::remove_file(target.join("data/postmaster.pid")).unwrap();
        let socket = site.beside(&format!("sockets-{number}"));
        let restored = Server::start(&target.join("data"), &socket);
        let found = restored.check();
        assert!(found >= committed, "{found} transactions of {committed} that were committed");
        assert!(found <= last, "{found} transactions, of {last} in all");
        drop(restored);
        fs::remove_dir_all(&target).unwrap();
    }
    site.scrub();
}
