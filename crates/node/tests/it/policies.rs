//! Quotas and schedules that clients set.

use std::thread;

use gabion_base::ids::SubvolId;
use gabion_fs::{Caller, Error, Privileges, WriteAt};
use gabion_link::errand::{Errand, QuotaRow, Report};
use gabion_link::identities::{Identities, Squash};
use gabion_map::format::subvolume::{Most, Quota, Schedule};
use gabion_map::{MapError, Payload, Stop};
use gabion_node::served::{Changing, Rights};

use crate::shared::{Client, Server, await_that, caller};

const KEEP: Schedule = Schedule { hourly: 0, daily: 7, weekly: 0, monthly: 2 };
const MIB_BLOCKS: u64 = 256;

fn set_quota(path: &str, blocks: Option<u64>) -> Errand {
    Errand::SetQuota { path: path.into(), most: Most { blocks, objects: None } }
}

fn set_schedule(path: &str, keep: Schedule) -> Errand {
    Errand::SetSchedule { path: path.into(), keep }
}

fn rows(report: Report) -> Vec<QuotaRow> {
    match report {
        Report::Quotas { rows, more: false } => rows,
        other => panic!("{other:?}"),
    }
}

fn list(client: &Client) -> Vec<(String, Quota)> {
    let rows = rows(client.errand(Errand::Quotas { after: SubvolId(0) })).into_iter();
    rows.map(|row| (String::from_utf8(row.path.unwrap()).unwrap(), row.quota)).collect()
}

#[test]
fn a_quota_that_one_client_sets_holds_at_the_others_and_all_see_it() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    assert_eq!(list(&a), []);
    let file = b.create("file");
    b.write(file, WriteAt::Offset(0), &[1; 8192]);
    // What a client has changed and not told counts.
    b.move_away();
    let set = rows(a.errand(set_quota("", Some(MIB_BLOCKS))));
    assert_eq!(set[0].path.as_deref(), Some(&b"/"[..]));
    b.errand(Errand::Subvolume { path: b"sub".to_vec(), of: None, created: 1 });
    let other = rows(b.errand(set_quota("/sub/", Some(1000))));
    assert_eq!(other[0].path.as_deref(), Some(&b"/sub"[..]));
    let told = list(&a);
    assert_eq!(told, list(&b));
    let [(first, quota), (second, _)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("/", "/sub"));
    // The root and a file, and two blocks.
    assert_eq!(quota.count.unwrap().charged(), 4);
    assert_eq!(b.run(|fs| fs.space(b.root.subvol)).unwrap().total, MIB_BLOCKS);
    let bytes = vec![2; 1 << 20];
    let (payload, at) = (Payload::Copied(&bytes), WriteAt::Offset(0));
    // What it was promised before it can still have.
    b.write(file, WriteAt::Offset(0), &[1; 4096]);
    b.run(|fs| fs.fsync(file)).unwrap();
    let write = || b.run(|fs| fs.write(&caller(), file, at, &payload, Privileges::Keep));
    let refused = write().unwrap_err();
    assert!(matches!(refused, Error::Stop(Stop::Map(MapError::OverQuota))), "{refused}");
    let gone = rows(a.errand(set_quota("", None)));
    assert_eq!(gone[0].quota, Quota { most: Most::default(), count: None });
    write().unwrap();
    assert_eq!(list(&b).len(), 1);
}

#[test]
fn a_schedule_that_a_client_sets_is_followed_and_shown_to_all() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let kept = |client: &Client| client.errand(Errand::Schedule { path: Vec::new() });
    assert_eq!(kept(&b), Report::Schedule { keep: Schedule::default() });
    let count = || {
        let listed = b.errand(Errand::Snapshots { path: Vec::new(), after: SubvolId(0) });
        let Report::Snapshots { rows, .. } = listed else { panic!("{listed:?}") };
        rows.len()
    };
    thread::scope(|scope| {
        scope.spawn(|| server.served.keep_scheduled());
        assert_eq!(a.errand(set_schedule("", KEEP)), Report::Schedule { keep: KEEP });
        await_that(|| count() == 2);
        assert_eq!(kept(&b), Report::Schedule { keep: KEEP });
        let none = Schedule::default();
        assert_eq!(b.errand(set_schedule("", none)), Report::Schedule { keep: none });
        assert_eq!(server.world.fs.map().schedules(), []);
        server.served.end_errands();
    });
}

#[test]
fn who_may_make_no_snapshots_sets_no_quotas_and_no_schedules() {
    let server = Server::new();
    let all = server.client();
    all.errand(set_quota("", Some(MIB_BLOCKS)));
    all.errand(set_schedule("", KEEP));
    let dir = all.run(|fs| fs.mkdir(&caller(), all.root, b"dir", 0o755)).unwrap().file;
    all.run(|fs| fs.syncfs()).unwrap();
    let squashed = Identities { squash: Squash::Root, ..Identities::CHECKED };
    let superuser = Caller::superuser();
    let show = || Errand::Schedule { path: Vec::new() };
    for (rights, refusal, may_list) in [
        (Rights { changing: Changing::Refused, ..Rights::CHECKED }, "exported read-only", true),
        (Rights { identities: squashed, ..Rights::CHECKED }, "root is squashed", true),
        (Rights { root: dir.ino, ..Rights::CHECKED }, "only a folder of it is mounted", false),
    ] {
        let client = server.client_with(rights);
        for errand in [set_quota("", None), set_schedule("", Schedule::default())] {
            assert!(client.refused(&superuser, errand).contains(refusal), "{refusal}");
        }
        match may_list {
            true => {
                assert_eq!(list(&client).len(), 1);
                assert_eq!(client.errand(show()), Report::Schedule { keep: KEEP });
            }
            false => assert!(client.refused(&superuser, show()).contains(refusal)),
        }
    }
    let user = Caller { uid: 1000, gid: 1000, ..superuser.clone() };
    let said = all.refused(&user, set_quota("", None));
    assert!(said.contains("only the superuser"), "{said}");
    assert_eq!(list(&all).len(), 1);
    assert_eq!(all.errand(show()), Report::Schedule { keep: KEEP });
}

#[test]
fn what_can_have_no_quota_and_no_schedule_is_named() {
    let server = Server::new();
    let client = server.client();
    client.run(|fs| fs.mkdir(&caller(), client.root, b"dir", 0o755)).unwrap();
    let (path, name) = (Vec::new(), b"one".to_vec());
    client.errand(Errand::Snapshot { path, name, created: 7 });
    for (path, reason) in
        [("dir", "/dir is not the root of a subvolume"), (".snapshots/one", "is a snapshot")]
    {
        for errand in [set_quota(path, Some(1)), set_schedule(path, KEEP)] {
            let said = client.refused(&Caller::superuser(), errand);
            assert!(said.contains(reason), "{said}");
        }
    }
}
