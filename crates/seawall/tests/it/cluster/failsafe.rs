//! Primaries that go on without a quorum, while every other voter answers: most disks are full, and nobody is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Cluster;
use crate::placed::{SHOP, ask, primary, shop};
use crate::support::processes::{is_root, is_running};
use crate::support::wait;

/// The data directory of a node that is down, on a disk of its own; gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(folder: &Path) -> Option<Self> {
        let (data, kept) = (folder.join("data"), folder.join("kept"));
        std::fs::rename(&data, &kept).unwrap();
        std::fs::create_dir(&data).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&data).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let disk = Self(data);
        let copied = Command::new("cp").arg("-a").arg(kept.join(".")).arg(&disk.0).status().unwrap();
        assert!(copied.success());
        Some(disk)
    }

    fn fill(&self) {
        // Ignored: it ends with "no space left", which is the point.
        let _ = std::fs::write(self.0.join("ballast"), vec![0; 64 << 20]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Ignored: a lazy unmount of what was mounted can only fail when somebody else did it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn primaries_go_on_while_most_disks_are_full_and_end_once_a_voter_does_not_answer() {
    if !is_root() {
        println!("skipped: mounting a small file system needs root");
        return;
    }
    let mut cluster = Cluster::up_with(", failsafe: keepPrimary");
    let mut disks = Vec::new();
    for place in 0..2 {
        cluster.stop(place);
        let Some(disk) = SmallDisk::under(cluster.down[&place].path()) else {
            println!("skipped: mounting a small file system needs more rights than there are");
            return;
        };
        disks.push(disk);
        cluster.start(place);
    }
    cluster.leader();
    shop(&cluster, 2, SHOP);
    let (place, old) = primary(&cluster, 2);
    let process = cluster.node(place).instance(&old)["pid"].as_u64().unwrap();
    disks.iter().for_each(SmallDisk::fill);
    // What the logs have set aside is used up first.
    let value = vec![b'x'; 400_000];
    while cluster.node(2).api("PUT", "/api/v1/kv/large", &value).status == 200 {}
    for place in 0..3 {
        cluster.node(place).event("failsafe-began", "");
    }
    // More than twice as long as a primary lives without.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for place in 0..3 {
            let answer = ask(&cluster, place, "/ledger");
            assert_eq!(
                (answer.status, answer.json()["instance"].as_str()),
                (200, Some(&*old)),
                "through n{}",
                place + 1
            );
        }
    }
    assert!(is_running(process));
    let lost = if place == 0 { 1 } else { 0 };
    cluster.kill(lost);
    wait("the primary has ended", || (!is_running(process)).then_some(()));
    cluster.node(place).event("failsafe-ended", "");
}
