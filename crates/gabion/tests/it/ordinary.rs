//! Users other than root, who mount through `fusermount3`, and see what others have mounted.

use std::process::Command;

use crate::world::{Folder, GABION, Outcome};

/// Runs a shell script as the user nobody, in a mount namespace of its own in which everybody may
/// use `/dev/fuse`, as is usual.
fn script(folder: &Folder, text: &str) -> Option<Outcome> {
    let prepared = "set -e\n\
        for program in fusermount3 setpriv; do command -v $program >/dev/null || exit 77; done\n\
        mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse || exit 77\n\
        mkdir home && cp \"$0\" home/gabion && chown -R 65534:65534 home && chmod 755 .\n\
        cd home\n\
        echo \"set -e; PATH=.:$PATH; $1\" >script\n\
        exec setpriv --reuid=65534 --regid=65534 --clear-groups \
        env -u XDG_RUNTIME_DIR TMPDIR=$PWD sh script\n";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", prepared, GABION, text]);
    let outcome = folder.run(&mut command);
    if outcome.code() == Some(77) {
        eprintln!("left out: needs fusermount3, setpriv and a device node: {}", outcome.stderr);
        return None;
    }
    Some(outcome)
}

#[test]
fn an_ordinary_user_makes_mounts_and_unmounts() {
    let Some(folder) = Folder::for_mounts() else { return };
    let text = "gabion mkfs --size 64M disk.img; mkdir mnt; gabion mount disk.img mnt; \
        echo kept >mnt/file; gabion status mnt; gabion scrub mnt; gabion umount mnt; \
        gabion mount -o ro disk.img mnt; cat mnt/file; gabion umount mnt; \
        gabion mount --foreground disk.img mnt & \
        until grep -q $PWD/mnt /proc/self/mounts; do :; done; \
        gabion status mnt >status || kill $!; gabion umount mnt; wait";
    let Some(outcome) = script(&folder, text) else { return };
    let said = outcome.succeeded();
    assert!(said.contains("sync(2) does not reach the daemon"), "{said}");
    assert!(said.ends_with("\nkept\n"), "{said}");
}

#[test]
fn an_ordinary_user_sees_of_a_mount_of_root_what_the_kernel_tells_and_leaves_it() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    let text = "gabion status; gabion status --json ../mnt >json; cat json; \
        gabion umount ../mnt 2>said && exit 1; cat said; \
        gabion scrub ../mnt 2>&1 && exit 1; true";
    let Some(outcome) = script(&folder, text) else { return };
    let said = outcome.succeeded();
    let mountpoint = folder.join("mnt");
    let shown = mountpoint.display();
    assert!(said.contains(&format!("{shown}: Gabion filesystem, mounted\n")), "{said}");
    assert!(said.contains(" available\n  kernel     fuseblk of /dev/loop"), "{said}");
    assert!(said.contains("is told to root and to who mounted it"), "{said}");
    assert!(
        said.contains("\"access\": \"rw\"") && said.contains("\"available_bytes\": "),
        "{said}"
    );
    assert!(!said.contains("pid"), "{said}");
    assert!(said.contains("was mounted by root, who alone can unmount it"), "{said}");
    assert!(said.contains("Only root and who mounted it can."), "{said}");
    assert_eq!(folder.mountpoints(), [mountpoint]);
}
