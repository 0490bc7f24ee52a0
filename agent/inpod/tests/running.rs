//! Pods that run already: found through /proc and captured without a CNI ADD. Needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    process::{Child, Command},
};
use support::*;
use tempfile::TempDir;
use weft_inpod::{
    CaptureConfig, Mode, Netns, NotFound, apply, find_sandbox, find_sandboxes, is_captured, pod_namespaces,
    remove,
};

const UID: &str = "3c5a1c2e-8f0d-4b2e-9d1a-0123456789ab";

/// A program in a namespace, ended when it is dropped.
struct Program(Child);

impl Program {
    fn start(ns: &Netns) -> Self {
        Self(ns.run(|| Command::new("sleep").arg("1000").spawn().unwrap()).unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A tree like /proc in which real processes are in control groups of the test's choice.
struct Proc(TempDir);

impl Proc {
    fn new() -> Self {
        let proc = Self(TempDir::new().unwrap());
        // The host's first process, and what else is in /proc.
        proc.add(1, std::process::id(), "/init.scope", 0);
        fs::write(proc.0.path().join("version"), "x").unwrap();
        fs::create_dir(proc.0.path().join("sys")).unwrap();
        proc
    }

    /// Process `real`, seen as `pid`, in `group`, started at `start`.
    fn add(&self, pid: u32, real: u32, group: &str, start: u64) {
        let dir = self.0.path().join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("cgroup"), format!("12:pids:{group}\n0::{group}\n")).unwrap();
        fs::write(dir.join("stat"), format!("{pid} (x) S {} {start} 0", ["0"; 18].join(" "))).unwrap();
        symlink(format!("/proc/{real}/ns/net"), dir.join("ns/net")).unwrap();
    }
}

#[test]
fn the_oldest_process_of_the_pods_group_leads_to_its_namespace() {
    let (net, proc) = (Net::new(), Proc::new());
    let (pause, app, nested) =
        (Program::start(&net.pod), Program::start(&net.pod), Program::start(&net.peer));
    let group = format!("/kubepods/burstable/pod{UID}");
    proc.add(900, app.pid(), &format!("{group}/bbb"), 20);
    proc.add(901, pause.pid(), &format!("{group}/aaa"), 10);
    // A container engine in the pod: its processes have a network of their own.
    proc.add(5, nested.pid(), &format!("{group}/bbb/docker/ccc"), 30);
    // A runtime's watcher, older than all, is in the pod's group with the host's network.
    proc.add(2, std::process::id(), &format!("{group}/shim"), 1);
    let found = find_sandbox(proc.0.path(), UID).unwrap();
    assert_eq!((found.container_id.as_str(), found.pid, found.started), ("aaa", 901, 10));
    assert_eq!(found.netns.inode(), net.pod.inode());
    assert!(found.started_at().unwrap() < std::time::SystemTime::now());
    let ip = |ip: &str| ip.parse::<IpAddr>().unwrap();
    assert!(found.has_address(&[ip("192.0.2.1"), ip(POD4)]).unwrap());
    assert!(found.has_address(&[ip(POD6)]).unwrap());
    assert!(!found.has_address(&[ip(PEER4), ip(PEER6)]).unwrap() && !found.has_address(&[]).unwrap());

    // The namespace is held: it stays when its last process goes.
    drop((pause, app));
    assert!(found.has_address(&[ip(POD4)]).unwrap());
}

#[test]
fn what_is_not_found_says_why() {
    let (net, proc) = (Net::new(), Proc::new());
    let app = Program::start(&net.pod);
    proc.add(40, app.pid(), "/kubepods.slice/kubepods-podaa_bb.slice/cri-containerd-c1.scope", 1);
    proc.add(41, std::process::id(), "/kubepods/podhost/c2", 1);
    let gone = Program::start(&net.pod);
    proc.add(42, gone.pid(), "/kubepods/podgone/c3", 1);
    drop(gone);
    // A container that is being made is in a group above its own.
    proc.add(43, app.pid(), "/kubepods/podearly", 1);
    let uids = ["aa-bb", "host", "gone", "early", "none"].map(String::from);
    let all = find_sandboxes(proc.0.path(), &BTreeSet::from(uids));
    let said = |uid: &str| match &all[uid] {
        Ok(sandbox) => sandbox.container_id.clone(),
        Err(NotFound::NoProcess) => "no process".into(),
        Err(NotFound::HostNetwork) => "host network".into(),
        Err(other) => panic!("{uid}: {other}"),
    };
    for (uid, want) in [
        ("aa-bb", "c1"),
        ("host", "host network"),
        ("gone", "no process"),
        ("early", "no process"),
        ("none", "no process"),
    ] {
        assert_eq!(said(uid), want, "{uid}");
    }
    let nowhere = proc.0.path().join("nowhere");
    assert!(matches!(find_sandbox(&nowhere, UID), Err(NotFound::Proc(..))));
}

/// What `weft node clean` does: without an agent, a holder or the pods' names.
#[test]
fn the_rules_of_an_agent_that_is_gone_are_found_and_taken_out_of_pods_and_of_nothing_else() {
    let (net, proc) = (Net::new(), Proc::new());
    let (app, nested) = (Program::start(&net.pod), Program::start(&net.peer));
    let group = format!("/kubepods/burstable/pod{UID}");
    proc.add(50, app.pid(), &format!("{group}/aaa"), 10);
    proc.add(51, app.pid(), &format!("{group}/bbb"), 10);
    proc.add(52, std::process::id(), "/kubepods/podhost/c2", 1);
    let gone = Program::start(&net.pod);
    proc.add(53, gone.pid(), "/kubepods/podgone/c3", 1);
    drop(gone);
    // A program in a namespace of its own that is no pod's: somebody else's test, or a demo.
    proc.add(54, nested.pid(), "/user.slice", 1);
    let found = pod_namespaces(proc.0.path()).unwrap();
    let inodes: Vec<(&str, Vec<u64>)> =
        found.iter().map(|(uid, all)| (uid.as_str(), all.iter().map(Netns::inode).collect())).collect();
    assert_eq!(inodes, [(UID, vec![net.pod.inode()]), ("host", vec![])]);

    let pod = &found[UID][0];
    assert!(!is_captured(pod).unwrap());
    for mode in [Mode::Capture, Mode::Drain] {
        apply(pod, &CaptureConfig::default(), mode).unwrap();
        assert!(is_captured(pod).unwrap(), "{mode:?}");
        for _ in 0..2 {
            remove(pod).unwrap();
            assert!(!is_captured(pod).unwrap(), "{mode:?}");
        }
    }
}
