//! CephFS: a monitor, one OSD on an image file, a metadata server, and clients in FUSE.
//!
//! There is no manager: a filesystem needs none, and what it does in the background would take a
//! share of the machine from everybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::ADDRESS;
use super::pair::{Caches, Servers};
use super::program::{Program, eventually, run_in_time};
use crate::systems::{full_image, run};

/// The least image that an OSD can be made on, in MiB.
const IMAGE_MIN: u64 = 3072;
/// Of the cluster, and of its OSD.
const IDS: [&str; 2] =
    ["6b1a3c52-9a1f-4b5e-8f0e-2d5f0a7c1e01", "6b1a3c52-9a1f-4b5e-8f0e-2d5f0a7c1e02"];
/// The monitor's addresses.
const PORTS: [u16; 2] = [3300, 6789];

/// The servers of CephFS.
pub struct Ceph {
    _metadata: Program,
    _objects: Program,
    _monitor: Program,
    settings: PathBuf,
}

impl Ceph {
    /// Makes a cluster with a filesystem in `scratch`.
    pub fn start(scratch: &Path, mebibytes: u64) -> Result<Self> {
        let folder = scratch.join("ceph");
        for name in ["monitor", "metadata", "osd0", "run", "log"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let settings = folder.join("ceph.conf");
        fs::write(&settings, cluster_settings(&folder))?;
        let program = |name: &str| {
            let mut command = Command::new(name);
            command.arg("--conf").arg(&settings);
            command
        };
        let log = |name: &str| folder.join("log").join(name);
        prepare_monitor(&folder, &settings)?;
        let mut monitor = program("ceph-mon");
        let monitor = Program::start(monitor.args(["-i", "x", "-f"]), &log("ceph-mon.out"))?;
        let admin = |arguments: &[&str]| {
            let mut command = program("ceph");
            run_in_time(command.args(["--connect-timeout", "20"]).args(arguments))
        };
        eventually(|| admin(&["osd", "new", IDS[1]]))?;
        full_image(&folder.join("osd0/block"), mebibytes.max(IMAGE_MIN))?;
        run(program("ceph-osd").args(["-i", "0", "--mkfs", "--osd-uuid", IDS[1]]))?;
        admin(&["osd", "crush", "add", "osd.0", "1.0", "root=default", "host=here"])?;
        let mut objects = program("ceph-osd");
        let objects = Program::start(objects.args(["-i", "0", "-f"]), &log("ceph-osd.out"))?;
        let mut metadata = program("ceph-mds");
        let metadata = Program::start(metadata.args(["-i", "m", "-f"]), &log("ceph-mds.out"))?;
        for pool in ["names", "bytes"] {
            admin(&["osd", "pool", "create", pool, "16", "16"])?;
        }
        admin(&["fs", "new", "bench", "names", "bytes", "--force"])?;
        eventually(|| {
            let state =
                program("ceph").args(["mds", "stat"]).output().context("cannot run ceph")?;
            let state = String::from_utf8_lossy(&state.stdout);
            ensure!(state.contains("up:active"), "the metadata server is not active: {state}");
            Ok(())
        })?;
        Ok(Self { _metadata: metadata, _objects: objects, _monitor: monitor, settings })
    }
}

/// The cluster's first map, and a monitor with it.
fn prepare_monitor(folder: &Path, settings: &Path) -> Result<()> {
    let (map, keys) = (folder.join("monmap"), folder.join("keyring"));
    let [v2, v1] = PORTS;
    let address = format!("[v2:{ADDRESS}:{v2},v1:{ADDRESS}:{v1}]");
    run(Command::new("monmaptool")
        .args(["--create", "--addv", "x", &address, "--fsid", IDS[0]])
        .arg(&map))?;
    run(Command::new("ceph-authtool").arg(&keys).args([
        "--create-keyring",
        "--gen-key",
        "-n",
        "mon.",
        "--cap",
        "mon",
        "allow *",
    ]))?;
    run(Command::new("ceph-mon")
        .arg("--conf")
        .arg(settings)
        .args(["--mkfs", "-i", "x", "--monmap"])
        .arg(&map)
        .arg("--keyring")
        .arg(&keys))
}

/// One copy of everything, nobody asked who he is, everything in one folder; else the defaults.
fn cluster_settings(folder: &Path) -> String {
    let [v2, v1] = PORTS;
    let folder = folder.display();
    let mut text = "[global]\n".to_owned();
    for (key, value) in [
        ("fsid", IDS[0].to_owned()),
        ("mon_initial_members", "x".to_owned()),
        ("mon_host", format!("[v2:{ADDRESS}:{v2},v1:{ADDRESS}:{v1}]")),
        ("public_addr", ADDRESS.to_owned()),
        ("cluster_addr", ADDRESS.to_owned()),
        ("ms_bind_ipv6", "false".to_owned()),
        ("auth_cluster_required", "none".to_owned()),
        ("auth_service_required", "none".to_owned()),
        ("auth_client_required", "none".to_owned()),
        ("osd_pool_default_size", "1".to_owned()),
        ("osd_pool_default_min_size", "1".to_owned()),
        ("osd_pool_default_pg_autoscale_mode", "off".to_owned()),
        ("osd_crush_chooseleaf_type", "0".to_owned()),
        ("mon_allow_pool_size_one", "true".to_owned()),
        // On a disk that is nearly full it would end without a word.
        ("mon_data_avail_crit", "0".to_owned()),
        ("mon_data", format!("{folder}/monitor")),
        ("mds_data", format!("{folder}/metadata")),
        ("osd_data", format!("{folder}/osd$id")),
        ("osd_objectstore", "bluestore".to_owned()),
        ("log_file", format!("{folder}/log/$name.log")),
        ("admin_socket", format!("{folder}/run/$name.$pid.asok")),
        ("pid_file", format!("{folder}/run/$name.$pid.pid")),
        ("run_dir", format!("{folder}/run")),
        ("crash_dir", format!("{folder}/run")),
        ("keyring", format!("{folder}/keyring")),
    ] {
        text += &format!("{key} = {value}\n");
    }
    text
}

impl Servers for Ceph {
    fn client(&self, caches: Caches, mountpoint: &Path) -> Command {
        let mut command = Command::new("ceph-fuse");
        command.arg("-f").arg("--conf").arg(&self.settings).args(["--id", "admin"]);
        if caches == Caches::Off {
            command.args(["--client_oc=false", "--fuse_disable_pagecache=true"]);
        }
        command.arg(mountpoint);
        command
    }

    fn is_synced_by_fsync(&self) -> bool {
        false
    }

    fn sync(&self) -> Result<()> {
        // The OSD answers what is on its disk.
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        for who in ["osd.0", "mds.m"] {
            let mut command = Command::new("ceph");
            command.arg("--conf").arg(&self.settings).args(["tell", who, "cache", "drop"]);
            run_in_time(&mut command)?;
        }
        Ok(())
    }
}
