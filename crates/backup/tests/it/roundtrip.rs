//! What is written is read.

use gabion_backup::format::index::Totals;
use gabion_backup::{Error, Secret, Stream, Tree};

use crate::world::{ROOT, changes, content, full, header, noise, object, stream};

#[test]
fn a_chain_gives_the_newest_files() {
    let (first, second) =
        (stream(header(1, None), &full(), None), stream(header(2, Some(1)), &changes(), None));
    let before = content(&[&first], None).unwrap();
    let after = content(&[&first, &second], None).unwrap();
    let paths = |of: &std::collections::BTreeMap<Vec<u8>, String>| {
        let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
        of.keys().map(text).collect::<Vec<_>>()
    };
    let all =
        ["", "/copy", "/dir", "/dir/empty", "/dir/null", "/file", "/its other name", "/\u{fffd}\n"];
    assert_eq!(paths(&before), all);
    let moved =
        ["", "/dir", "/dir/empty", "/dir/its other name", "/dir/null", "/file", "/\u{fffd}\n"];
    assert_eq!(paths(&after), moved);
    assert_eq!(before[&b"/file"[..]], before[&b"/its other name"[..]]);
    assert_eq!(after[&b"/file"[..]], after[&b"/dir/its other name"[..]]);
    assert_eq!(before[&b"/dir/null"[..]], after[&b"/dir/null"[..]]);
    let mut bytes = vec![0; 12_000];
    bytes[4096..6000].copy_from_slice(&noise(2, 1904));
    bytes[8192..].fill(9);
    let wanted = format!("{:?}", gabion_base::checksum::crc64(&bytes));
    assert!(after[&b"/file"[..]].ends_with(&wanted), "{}", after[&b"/file"[..]]);
    // The second cannot be read alone.
    let alone = content(&[&second], None).unwrap_err();
    assert!(matches!(alone, Error::Senseless { ino: 2, .. }), "{alone}");
}

#[test]
fn equal_pieces_are_kept_once() {
    let bytes = stream(header(1, None), &full(), None);
    let stream = Stream::open(bytes, None).unwrap();
    assert_eq!(stream.totals(), Totals { objects: 7, bytes: 2 * (4096 + 8192) });
    let data = stream.segments().iter();
    let data = data.filter(|entry| entry.kind == gabion_backup::format::segment::Kind::Data);
    assert_eq!(data.map(|entry| entry.raw).sum::<u32>(), 4096 + 8192);
    let mut tree = Tree::default();
    stream.records(|record| tree.apply(0, record)).unwrap();
    assert_eq!(tree.shared().len(), 2);
    tree.check(ROOT).unwrap();
    assert!(tree.is_linked(2) && !tree.is_linked(7));
}

#[test]
fn only_its_own_secret_opens_a_stream() {
    let secrets = [
        Secret::KeyFile(vec![1; 32]),
        Secret::KeyFile(vec![2; 32]),
        Secret::Passphrase(b"correct horse".to_vec()),
        Secret::Passphrase(b"correct house".to_vec()),
    ];
    let plain = content(&[&stream(header(1, None), &full(), None)], None).unwrap();
    for (number, secret) in secrets.iter().enumerate().step_by(2) {
        let sealed = stream(header(1, None), &full(), Some(secret));
        let open = |secret: Option<&Secret>| Stream::open(sealed.clone(), secret).map(|_| ());
        assert_eq!(content(&[&sealed], Some(secret)).unwrap(), plain);
        let wrong = open(Some(&secrets[number + 1])).unwrap_err();
        assert!(matches!(wrong, Error::WrongSecret(_)), "{wrong}");
        for other in [None, Some(&secrets[(number + 2) % 4])] {
            let locked = open(other).unwrap_err();
            assert!(matches!(locked, Error::Locked(_)), "{locked}");
        }
        // Nothing of it can be seen.
        for text in [&b"its other name"[..], b"user.name", b"target"] {
            assert!(!sealed.windows(text.len()).any(|window| window == text));
        }
    }
}

#[test]
fn segments_of_other_streams_do_not_open() {
    let secret = Secret::KeyFile(vec![1; 32]);
    let sealed = [1, 2].map(|number| stream(header(number, None), &full(), Some(&secret)));
    let at = Stream::open(sealed[0].clone(), Some(&secret)).unwrap().segments()[0].offset as usize;
    let mut mixed = sealed[0].clone();
    mixed[at..].copy_from_slice(&sealed[1][at..]);
    assert_eq!(sealed[0].len(), sealed[1].len());
    assert!(content(&[&mixed], Some(&secret)).is_err());
}

#[test]
fn what_makes_no_tree_is_refused() {
    use gabion_backup::Record;
    let name = |dir, ino, name: &[u8]| Record::Name { dir, ino, name: name.to_vec() };
    let directory = |ino| Record::Object(object(ino, 0o040_755, 0));
    let file = |ino| Record::Object(object(ino, 0o100_644, 5));
    let piece = || Record::Hole { ino: 1, from: 0, to: 5 };
    let lies = [
        vec![],
        vec![file(1)],
        vec![directory(1), name(1, 2, b"missing")],
        vec![directory(1), directory(2), name(1, 2, b"a"), name(1, 2, b"b")],
        vec![directory(1), directory(2), name(1, 2, b"a"), name(2, 1, b"loop")],
        vec![directory(1), file(2), file(3), name(1, 2, b"a"), name(2, 3, b"below a file")],
        vec![directory(1), piece()],
    ];
    for records in lies {
        let mut tree = Tree::default();
        let said = format!("{records:?}");
        let applied = records.into_iter().try_for_each(|record| tree.apply(0, record));
        let checked = applied.and_then(|()| tree.check(1));
        assert!(matches!(checked, Err(Error::Senseless { .. })), "{said}");
    }
}
