//! Which peers there are, what they need, and how they are started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use super::ceph::Ceph;
use super::gabion::Gabion;
use super::gluster::Gluster;
use super::juicefs::JuiceFs;
use super::moosefs::MooseFs;
use super::pair::{Caches, Pair, Servers};
use super::program::is_installed;
use super::sshfs::Sshfs;
use super::{ADDRESS, LocalTwice, Shared};
use crate::systems::run;

/// Somebody to be compared with.
#[derive(Debug)]
struct Peer {
    name: &'static str,
    /// Its column with all caches off, if it has any.
    uncached: Option<&'static str>,
    programs: &'static [&'static str],
    /// What to say if a program is missing.
    install: &'static str,
}

const PEERS: &[Peer] = &[
    Peer {
        name: "ext4",
        uncached: None,
        programs: &["mkfs.ext4"],
        install: "apt-get install e2fsprogs",
    },
    Peer {
        name: "moosefs",
        uncached: Some("moosefs-uncached"),
        programs: &["mfsmaster", "mfschunkserver", "mfsmount", "mfssettrashtime"],
        install: "apt-get install moosefs-master moosefs-chunkserver moosefs-client",
    },
    Peer {
        name: "gluster",
        uncached: Some("gluster-uncached"),
        programs: &["glusterd", "glusterfs", "gluster"],
        install: "apt-get install glusterfs-server",
    },
    Peer {
        name: "cephfs",
        uncached: Some("cephfs-uncached"),
        programs: &["ceph", "ceph-mon", "ceph-osd", "ceph-mds", "ceph-fuse"],
        install: "apt-get install ceph-mon ceph-osd ceph-mds ceph-common ceph-fuse",
    },
    Peer {
        name: "sshfs",
        uncached: Some("sshfs-uncached"),
        programs: &["sshd", "ssh", "ssh-keygen", "sshfs"],
        install: "apt-get install openssh-server sshfs",
    },
    Peer {
        name: "juicefs",
        uncached: Some("juicefs-uncached"),
        programs: &["juicefs", "redis-server"],
        install: "apt-get install redis-server, and juicefs into the path",
    },
];

/// Who takes part, and why others do not.
#[derive(Debug)]
pub struct Chosen {
    peers: Vec<&'static Peer>,
    /// A sentence each.
    pub left_out: Vec<String>,
}

/// Those of `names`, or all that are installed if there are none.
pub fn choose(names: &[String]) -> Result<Chosen> {
    let mut chosen = Chosen { peers: Vec::new(), left_out: Vec::new() };
    if let Some(name) = names.iter().find(|name| PEERS.iter().all(|peer| peer.name != **name)) {
        let known: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
        bail!("there is no peer {name:?}; there are: {}", known.join(" "));
    }
    for peer in PEERS {
        let is_named = names.iter().any(|name| name == peer.name);
        if !is_named && !names.is_empty() {
            continue;
        }
        match peer.programs.iter().find(|program| !is_installed(program)) {
            None => chosen.peers.push(peer),
            Some(missing) => {
                let why = format!("{} needs {missing}: {}", peer.name, peer.install);
                if is_named {
                    bail!(why);
                }
                chosen.left_out.push(why);
            }
        }
    }
    Ok(chosen)
}

/// Makes a place for servers in our namespaces: an address, and folders that they insist on.
pub fn prepare(scratch: &Path) -> Result<()> {
    let ip =
        |arguments: &[&str]| run(Command::new("ip").args(arguments)).context("package iproute2");
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"])?;
    let logs = scratch.join("var-log");
    fs::create_dir(&logs)?;
    run(Command::new("mount").arg("--bind").arg(&logs).arg("/var/log"))?;
    run(Command::new("mount").args(["-t", "tmpfs", "run", "/run"]))
}

/// Gabion, and whoever else was chosen, mounted in `scratch`. Who does not start is left out, which
/// is an error if somebody was asked for by name.
pub fn start(
    chosen: &mut Chosen,
    are_named: bool,
    scratch: &Path,
    mebibytes: u64,
    gabion: PathBuf,
) -> Result<Vec<Box<dyn Shared>>> {
    println!("starting gabion");
    let servers: Rc<dyn Servers> = Rc::new(Gabion::start(scratch, mebibytes, gabion)?);
    let pair = Pair::new(scratch, "gabion", servers, Caches::Default)?;
    let mut systems: Vec<Box<dyn Shared>> = vec![Box::new(pair)];
    for peer in &chosen.peers {
        println!("starting {}", peer.name);
        match peer.start(scratch, mebibytes) {
            Ok(started) => systems.extend(started),
            Err(error) if are_named => return Err(error.context(format!("with {}", peer.name))),
            Err(error) => {
                let why = format!("{} does not start: {error:#}", peer.name);
                eprintln!("{why}");
                chosen.left_out.push(why);
            }
        }
    }
    Ok(systems)
}

impl Peer {
    fn start(&self, scratch: &Path, mebibytes: u64) -> Result<Vec<Box<dyn Shared>>> {
        let servers: Rc<dyn Servers> = match self.name {
            "ext4" => return Ok(vec![Box::new(LocalTwice::new(scratch, mebibytes)?)]),
            "moosefs" => Rc::new(MooseFs::start(scratch, mebibytes)?),
            "gluster" => Rc::new(Gluster::start(scratch, mebibytes)?),
            "cephfs" => Rc::new(Ceph::start(scratch, mebibytes)?),
            "sshfs" => Rc::new(Sshfs::start(scratch, mebibytes)?),
            _ => Rc::new(JuiceFs::start(scratch, mebibytes)?),
        };
        let pair = Pair::new(scratch, self.name, Rc::clone(&servers), Caches::Default)?;
        if self.name == "moosefs" {
            MooseFs::empty_trash(pair.mountpoint())?;
        }
        let mut systems: Vec<Box<dyn Shared>> = vec![Box::new(pair)];
        if let Some(name) = self.uncached {
            systems.push(Box::new(Pair::new(scratch, name, servers, Caches::Off)?));
        }
        Ok(systems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_there_is_named_with_all_that_are() {
        let error = choose(&["nfs".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("\"nfs\"") && error.contains("ext4 moosefs"), "{error}");
    }
}
