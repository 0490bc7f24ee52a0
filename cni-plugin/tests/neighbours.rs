//! The configuration files of CNIs that are run elsewhere, as they write them: our entry goes in behind all of theirs and out
//! again, with the same bytes left. (Flannel and bridge are really run by the cluster tests.)

use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use weft_cni::install::{Chaining, InstallConfig, InstallHandle, Installed, Installer, State, Way};

/// A test that waits longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/neighbours").join(name)
}

/// A node with one file in its folder.
struct Node {
    dir: TempDir,
    config: InstallConfig,
}

impl Node {
    fn new(file: &str, chaining: Chaining) -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = InstallConfig {
            conf_dir: at("net.d"),
            bin_dir: at("bin"),
            plugin_source: at("source"),
            run_dir: at("run"),
            state_dir: at("state"),
            cache_dir: at("cache"),
            proc_root: at("proc"),
            chaining,
            look: Duration::from_millis(100),
            reload_pause: Duration::ZERO,
        };
        fs::create_dir(&config.conf_dir).unwrap();
        fs::write(&config.plugin_source, "program").unwrap();
        fs::copy(fixture(file), config.conf_dir.join(file)).unwrap();
        Self { dir, config }
    }

    fn install(&self) -> (InstallHandle, Installed) {
        let handle = Installer::new(self.config.clone()).start().unwrap();
        let mut installed = handle.installed();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let inserted = runtime.block_on(async {
            let inserted = installed.wait_for(|i| i.state == State::Inserted);
            tokio::time::timeout(PATIENCE, inserted).await.expect("inserted in time").unwrap().clone()
        });
        (handle, inserted)
    }

    /// What the runtime would run, in order, by the file that names us.
    fn chain(&self, installed: &Installed) -> Vec<String> {
        let file = installed.file.as_ref().unwrap();
        let read =
            |path: &Path| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
        let types = |list: &Value| -> Vec<String> {
            let plugins = list["plugins"].as_array().into_iter().flatten();
            plugins.map(|p| p["type"].as_str().unwrap().to_owned()).collect()
        };
        if installed.way != Some(Way::DropIn) {
            return types(&read(file));
        }
        // libcni reads the folder of the network's name behind the list's own plugins.
        let own =
            fs::read_dir(&self.config.conf_dir).unwrap().flatten().find(|e| e.path().is_file()).unwrap();
        let list = read(&own.path());
        assert!(file.starts_with(self.config.conf_dir.join(list["name"].as_str().unwrap())), "{file:?}");
        types(&list).into_iter().chain([read(file)["type"].as_str().unwrap().to_owned()]).collect()
    }
}

/// Every file below, with its bytes.
fn all(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(all(&path))
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()))
        }
    }
    found.sort();
    found
}

#[test]
fn each_cnis_file_takes_our_entry_last_and_is_the_same_bytes_afterwards() {
    let check = |file: &str, chaining: Chaining, way: Way, chain: &[&str]| {
        let node = Node::new(file, chaining);
        let before = all(&node.config.conf_dir);
        let (handle, installed) = node.install();
        assert_eq!(installed.way, Some(way), "{file} {chaining:?}");
        assert_eq!(node.chain(&installed), [chain, &["weft-cni"]].concat(), "{file} {chaining:?}");
        if way != Way::Edited {
            assert_eq!(fs::read(node.config.conf_dir.join(file)).unwrap(), fs::read(fixture(file)).unwrap());
        }
        handle.uninstall().unwrap();
        assert_eq!(all(&node.config.conf_dir), before, "{file} {chaining:?}");
        assert!(!node.dir.path().join("bin/weft-cni").exists());
    };
    let lists: [(&str, &[&str]); 7] = [
        ("10-kindnet.conflist", &["ptp", "portmap"]),
        ("10-calico.conflist", &["calico", "portmap", "bandwidth", "tuning"]),
        ("05-cilium.conflist", &["cilium-cni"]),
        ("05-cilium-portmap.conflist", &["cilium-cni", "portmap"]),
        ("05-cilium-aws.conflist", &["aws-cni", "egress-cni", "portmap", "cilium-cni"]),
        ("10-flannel.conflist", &["flannel", "portmap"]),
        ("11-crio-ipv4-bridge.conflist", &["bridge"]),
    ];
    for (file, chain) in lists {
        check(file, Chaining::Edit, Way::Edited, chain);
        check(file, Chaining::DropIn, Way::DropIn, chain);
    }
    // Single plugins' files get a list of ours that sorts before them.
    for chaining in [Chaining::Edit, Chaining::DropIn] {
        check("05-cilium.conf", chaining, Way::Derived, &["cilium-cni"]);
        check("00-multus.conf", chaining, Way::Derived, &["multus"]);
    }
}

#[test]
fn the_program_stays_while_what_a_runtime_keeps_cannot_be_changed() {
    let node = Node::new("11-crio-ipv4-bridge.conflist", Chaining::Edit);
    fs::create_dir(&node.config.cache_dir).unwrap();
    fs::write(node.config.cache_dir.join("results"), "not a folder").unwrap();
    let (handle, _) = node.install();
    let error = handle.uninstall().unwrap_err().to_string();
    assert!(error.contains("results"), "{error}");
    let program = node.config.bin_dir.join("weft-cni");
    assert!(program.exists(), "a pod that CRI-O takes down would ask for it");
    fs::remove_file(node.config.cache_dir.join("results")).unwrap();
    Installer::new(node.config.clone()).uninstall().unwrap();
    assert!(!program.exists());
}

#[test]
fn what_crio_keeps_of_a_pod_names_our_program_no_more() {
    let node = Node::new("11-crio-ipv4-bridge.conflist", Chaining::Edit);
    let results = node.config.cache_dir.join("results");
    fs::create_dir_all(&results).unwrap();
    let (handle, installed) = node.install();
    let kept = |config: &[u8]| {
        let config = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, config);
        json!({"kind": "cniCacheV1", "containerId": "c1", "config": config, "ifName": "eth0", "networkName": "crio"}).to_string()
    };
    // libcni keeps the file's bytes as it ran them.
    fs::write(results.join("crio-c1-eth0"), kept(&fs::read(installed.file.unwrap()).unwrap())).unwrap();
    handle.uninstall().unwrap();
    let now = fs::read_to_string(results.join("crio-c1-eth0")).unwrap();
    assert_eq!(now, kept(&fs::read(fixture("11-crio-ipv4-bridge.conflist")).unwrap()));
}
