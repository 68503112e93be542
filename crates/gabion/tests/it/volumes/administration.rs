//! Copies that are put in, taken out and left alone; layouts; exports.

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::stage::{HEADERS, Stage, run};
use super::writing::Writer;

#[test]
fn copies_come_and_go_while_the_volume_is_mounted() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = (stage.mirror(), ["c", "d", "e"].map(|name| stage.target(name)));
    let [b, c, d, e] = ["b", "c", "d", "e"].map(|name| stage.uri(name));
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    let volume = |arguments: &[&str]| host.gabion(&[&["volume"], arguments].concat());
    volume(&["suspend", "tank", &b]).succeeded();
    host.await_copies(&["in-sync", "suspended"]);
    volume(&["remove", "tank", &stage.uri("a")]).failed(1, &["last copy", "in sync"]);
    writer.await_more(5);
    volume(&["resume", "tank", &b]).succeeded();
    host.await_copies(&["in-sync", "in-sync"]);
    volume(&["add", "tank", &c]).succeeded();
    host.await_copies(&["in-sync", "in-sync", "in-sync"]);
    volume(&["remove", "tank", &b]).succeeded();
    host.await_copies(&["in-sync", "removed", "in-sync"]);
    volume(&["remove", "tank", &b]).failed(1, &["no copy of volume tank is on", &b]);
    // The new one takes the place that is free.
    volume(&["replace", "tank", &c, &d]).succeeded();
    host.await_copies(&["in-sync", "in-sync", "removed"]);
    writer.await_more(5);
    let written = writer.finish();
    volume(&["resync", "tank", "--verify"]).succeeded();
    host.unmount();
    stage.assert_equal("a.img", "d.img", HEADERS);
    // What is wanted is in the record; whoever comes next fills the new copy, and then lets go of
    // the old one.
    volume(&["replace", "tank", &d, &e]).succeeded();
    assert_eq!(host.copies(), ["in-sync", "in-sync", "stale"]);
    let shown = volume(&["status", "tank"]).succeeded();
    assert!(shown.contains("leaves when the new copy is in sync"), "{shown}");
    host.mount();
    host.await_copies(&["in-sync", "removed", "in-sync"]);
    written.check();
    host.unmount();
    stage.assert_equal("a.img", "e.img", HEADERS);
}

#[test]
fn lines_stripes_and_nested_mirrors_can_be_mounted() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, _b) = (stage.target("a"), stage.target("b"));
    let [c, d, e] = ["c.img", "d.img", "e.img"].map(|name| stage.disk(name));
    let [c, d, e] = [c, d, e].map(|path| path.to_str().unwrap().to_owned());
    let (a, b) = (stage.uri("a"), stage.uri("b"));
    let host = stage.host();
    let striped = format!("stripe({a},{c})");
    let lined = format!("linear({b},mirror({d},{e}))");
    for layout in
        [&["--linear", &a, &c][..], &["--stripe", &a, &b, &c], &["--mirror", &striped, &lined]]
    {
        let create = [&["volume", "create", "tank", "--force", "--equal"], layout].concat();
        host.gabion(&create).succeeded();
        // The filesystem before may shine through.
        host.gabion(&["mkfs", "--force", "tank"]).succeeded();
        let mountpoint = host.mount();
        let writer = Writer::start(&mountpoint);
        fs::write(mountpoint.join("large"), vec![9; 20 << 20]).unwrap();
        writer.await_more(5);
        let written = writer.finish();
        host.unmount();
        host.mount();
        written.check();
        assert_eq!(fs::read(mountpoint.join("large")).unwrap(), vec![9; 20 << 20]);
        host.unmount();
        host.gabion(&["volume", "delete", "--yes", "tank"]).succeeded();
    }
}

#[test]
fn a_volume_that_was_lengthened_keeps_what_it_has() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = (stage.mirror(), stage.target("c"));
    let host = stage.host();
    let mountpoint = host.mount();
    fs::write(mountpoint.join("file"), "kept").unwrap();
    host.unmount();
    let before = host.volume("tank")["bytes"].as_u64().unwrap();
    host.gabion(&["volume", "grow", "tank", &stage.uri("c")]).succeeded();
    assert!(host.volume("tank")["bytes"].as_u64().unwrap() > before);
    host.mount();
    assert_eq!(fs::read_to_string(mountpoint.join("file")).unwrap(), "kept");
    // The only mirror is the one that is meant.
    let _d = stage.target("d");
    host.gabion(&["volume", "add", "tank", &stage.uri("d")]).succeeded();
    host.await_copies(&["in-sync", "in-sync", "in-sync"]);
}

#[test]
fn a_volume_is_exported_to_any_client_and_can_be_a_member() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let listen = format!("unix:{}", stage.text("export.sock"));
    let export =
        stage.start_target(host.command(&["volume", "export", "tank", "--listen", &listen]));
    let folder = stage.folder.path();
    let told = run(folder, "nbdinfo", &["--json", &export.uri]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let size = host.volume("tank")["bytes"].as_u64().unwrap();
    assert_eq!(told["exports"][0]["export-size"], size);
    for ability in ["flush", "fua", "trim", "zero", "multi_conn"] {
        assert_eq!(told["exports"][0][format!("can_{ability}")], true, "{ability}");
    }
    run(folder, "sh", &["-c", &format!("head -c {size} /dev/urandom > source")]);
    run(folder, "nbdcopy", &["--flush", "source", &export.uri]);
    b.kill();
    run(folder, "qemu-img", &["compare", "-f", "raw", "-F", "raw", "source", &export.uri]);
    run(folder, "qemu-io", &["-f", "raw", &export.uri, "-c", "write -P 7 0 64k", "-c", "flush"]);
    run(folder, "qemu-io", &["-f", "raw", &export.uri, "-c", "write -z 0 16M", "-c", "flush"]);
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    // A volume on the volume.
    let create = ["volume", "create", "upper", "--force", "--linear", &export.uri];
    host.gabion(&create).succeeded();
    host.gabion(&["mkfs", "upper"]).succeeded();
    let mountpoint = host.mount_of("upper", "mnt");
    let writer = Writer::start(&mountpoint);
    writer.await_more(5);
    writer.finish().check();
    host.unmount();
    let mut export = export;
    export.signal(Signal::TERM);
    assert!(export.running.0.wait().unwrap().success());
    assert!(host.volume("tank")["holder"].is_null());
    stage.assert_equal("a.img", "b.img", HEADERS);
}

#[test]
fn a_volume_is_exported_encrypted_to_who_has_a_certificate() {
    let stage = Stage::new();
    stage.folder.certify();
    let host = stage.host();
    let [a, b] = ["a.img", "b.img"].map(|name| stage.disk(name).to_str().unwrap().to_owned());
    host.gabion(&["volume", "create", "tank", "--equal", "--mirror", &a, &b]).succeeded();
    let export = ["volume", "export", "tank", "--listen", "127.0.0.1:0"];
    let own = ["--tls-cert", "pki/server-cert.pem", "--tls-key", "pki/server-key.pem"];
    let encrypted = [&export[..], &own, &["--tls-ca", "pki/ca-cert.pem"]].concat();
    let mut exported = stage.start_target(host.command(&encrypted));
    assert!(exported.uri.starts_with("nbds://127.0.0.1:"), "{}", exported.uri);
    let folder = stage.folder.path();
    let uri = format!("{}?tls-certificates={}", exported.uri, stage.text("pki"));
    assert!(run(folder, "nbdinfo", &[&uri]).contains("with TLS"));
    run(folder, "sh", &["-c", "head -c 1M /dev/urandom > source"]);
    run(folder, "nbdcopy", &["--flush", "source", &uri]);
    run(folder, "sh", &["-c", &format!("nbdcopy '{uri}' - | cmp -n 1048576 - source")]);
    let plain = exported.uri.replace("nbds:", "nbd:");
    stage.folder.run(Command::new("nbdinfo").arg(plain)).failed(1, &["not supported"]);
    exported.signal(Signal::TERM);
    assert!(exported.running.0.wait().unwrap().success());
    stage.assert_equal("a.img", "b.img", HEADERS / 2);
    host.gabion(&[&export[..], &own[..2]].concat()).failed(2, &["--tls-key"]);
    let epoch = host.volume("tank")["epoch"].clone();
    let strange = ["--tls-cert", "pki/server-cert.pem", "--tls-key", "pki/ca-key.pem"];
    host.gabion(&[&export[..], &strange].concat()).failed(1, &["cannot encrypt"]);
    assert_eq!(host.volume("tank")["epoch"], epoch, "it was opened for nothing");
}
