//! `weft node clean --here`: heals a node whose agent is gone for good, on the node itself. Rules go out of its pods, the plugin
//! out of the network configuration, and every file of ours away. Nothing is needed but root on the node: no API server, no
//! other part of Weft. Each step is done whatever became of the one before, and all of it again does no harm.

use super::leave;
use crate::cluster::CleanArgs;
use anyhow::{Result, bail};
use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};
use weft_cni::{
    install::{InstallConfig, Installer},
    protocol::{enrolment_path, socket_path},
};
use weft_inpod::{Announcer, Netns, is_captured, pod_namespaces, remove};

/// What is cleaned, as this process sees it.
#[derive(Debug)]
struct Place {
    proc_root: PathBuf,
    cni: InstallConfig,
}

/// What became of it.
#[derive(Debug, Default)]
struct Outcome {
    /// Lines for people.
    done: Vec<String>,
    failed: Vec<String>,
}

/// Cleans this node.
///
/// # Errors
/// When an agent serves here and it is not forced.
pub(super) fn run(args: &CleanArgs) -> Result<ExitCode> {
    let place = Place {
        proc_root: "/proc".into(),
        cni: InstallConfig {
            conf_dir: args.cni_conf_dir.clone(),
            bin_dir: args.cni_bin_dir.clone(),
            ..InstallConfig::default()
        },
    };
    if !args.force && is_served(&place.cni.run_dir) {
        bail!(
            "an agent serves on this node ({} answers): it would take the pods in again; `weft uninstall` and `weft leave` let pods \
             go by it; --force cleans all the same",
            socket_path(&place.cni.run_dir).display()
        );
    }
    let outcome = clean(&place);
    let mut out = std::io::stdout().lock();
    for line in &outcome.done {
        let _ = writeln!(out, "{line}"); // nobody may be reading any more
    }
    for line in &outcome.failed {
        let _ = writeln!(out, "not done: {line}");
    }
    Ok(if outcome.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether an agent takes the plugin's questions.
fn is_served(run_dir: &Path) -> bool {
    UnixStream::connect(socket_path(run_dir)).is_ok()
}

fn clean(place: &Place) -> Outcome {
    let mut outcome = Outcome::default();
    // The plugin first: a pod that starts while we look would be refused, or ask for an agent that never comes.
    match Installer::new(place.cni.clone()).uninstall() {
        Ok(()) => outcome
            .done
            .push("the CNI plugin is out of the network configuration, and its tables are gone".to_owned()),
        Err(error) => outcome.failed.push(format!("the CNI plugin: {error}")),
    }
    pods(&place.proc_root, &mut outcome);
    addresses(&place.cni.run_dir.join("addresses"), &mut outcome);
    leave::clear(&place.cni.run_dir);
    let left: Vec<String> = [&place.cni.run_dir, &place.cni.state_dir]
        .into_iter()
        .map(|dir| enrolment_path(dir))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    match left.is_empty() {
        true => outcome.done.push("no file of an agent is left".to_owned()),
        false => outcome.failed.push(format!("{}: still there", left.join(", "))),
    }
    outcome
}

fn pods(proc_root: &Path, outcome: &mut Outcome) {
    let found = match pod_namespaces(proc_root) {
        Ok(found) => found,
        Err(error) => return outcome.failed.push(format!("pods of this node: {error}")),
    };
    let (mut healed, count) = (0, found.len());
    let mut seen = BTreeSet::new();
    for (uid, namespaces) in &found {
        for netns in namespaces.iter().filter(|netns| seen.insert(netns.inode())) {
            match heal(netns) {
                Ok(true) => {
                    healed += 1;
                    outcome.done.push(format!("pod {uid}: the mesh's rules are out"));
                }
                Ok(false) => {}
                Err(error) => outcome.failed.push(format!("pod {uid}: {error}")),
            }
        }
    }
    outcome.done.push(format!("{healed} of {count} pods of this node had rules of the mesh"));
}

fn heal(netns: &Netns) -> Result<bool, String> {
    if !is_captured(netns).map_err(|e| e.to_string())? {
        return Ok(false);
    }
    remove(netns).map(|()| true).map_err(|e| e.to_string())
}

/// Addresses of Gateways that an agent had added to the node's interface.
fn addresses(file: &Path, outcome: &mut Outcome) {
    if !file.exists() {
        return;
    }
    let given_up = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(Announcer::new(file.to_owned()).hold(&[], BTreeSet::new())));
    match given_up {
        Ok(Ok(())) => outcome.done.push("the node holds no address of a Gateway".to_owned()),
        Ok(Err(error)) => outcome.failed.push(error.to_string()),
        Err(error) => outcome.failed.push(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::net::UnixListener, time::Duration};

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;

    /// A node with the marks of an agent that is gone. Its /proc is empty: tests touch no pod of the machine.
    fn node(dir: &Path) -> Place {
        let at = |name: &str| dir.join(name);
        for made in ["proc", "net.d", "bin", "run", "run/cache", "state"] {
            fs::create_dir(at(made)).unwrap();
        }
        let with = LIST.replace("}]", "},{\"type\":\"weft-cni\"}]");
        fs::write(at("net.d/10-net.conflist"), with).unwrap();
        for file in ["bin/weft-cni", "run/enrolment.json", "run/cache/key", "state/enrolment.json", "source"]
        {
            fs::write(at(file), "{}").unwrap();
        }
        let cni = InstallConfig {
            conf_dir: at("net.d"),
            bin_dir: at("bin"),
            plugin_source: at("source"),
            run_dir: at("run"),
            state_dir: at("state"),
            cache_dir: at("cni"),
            reload_pause: Duration::ZERO,
            ..InstallConfig::default()
        };
        Place { proc_root: at("proc"), cni }
    }

    #[test]
    fn a_node_whose_agent_is_gone_for_good_is_clean_afterwards_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = node(dir.path());
        for time in 1..=2 {
            let outcome = clean(&place);
            assert_eq!(outcome.failed, Vec::<String>::new(), "{time}");
            assert!(
                outcome.done.iter().any(|line| line == "0 of 0 pods of this node had rules of the mesh"),
                "{outcome:?}"
            );
            assert_eq!(fs::read_to_string(place.cni.conf_dir.join("10-net.conflist")).unwrap(), LIST);
            assert!(!place.cni.bin_dir.join("weft-cni").exists());
            for dir in [&place.cni.run_dir, &place.cni.state_dir] {
                assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "{}", dir.display());
            }
        }
    }

    #[test]
    fn what_could_not_be_done_is_said_and_the_rest_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let place = node(dir.path());
        fs::create_dir(&place.cni.cache_dir).unwrap();
        fs::write(place.cni.cache_dir.join("results"), "no folder").unwrap();
        fs::remove_dir(&place.proc_root).unwrap();
        let outcome = clean(&place);
        let said = outcome.failed.join("\n");
        assert!(said.contains("results") && said.contains("pods of this node"), "{said}");
        assert_eq!(fs::read_to_string(place.cni.conf_dir.join("10-net.conflist")).unwrap(), LIST);
        assert!(!place.cni.run_dir.join("cache").exists());
    }

    #[test]
    fn an_agent_that_serves_is_noticed_and_one_that_has_left_its_socket_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_served(dir.path()));
        let listener = UnixListener::bind(socket_path(dir.path())).unwrap();
        assert!(is_served(dir.path()));
        drop(listener);
        assert!(socket_path(dir.path()).exists() && !is_served(dir.path()));
    }
}
