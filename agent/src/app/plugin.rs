//! The CNI plugin's installation, which the agent keeps up, removes when Weft is uninstalled, and puts back.

use crate::cluster::CniReport;
use parking_lot::Mutex;
use std::{io, sync::Arc};
use tokio::sync::watch;
use weft_cni::install::{InstallConfig, InstallHandle, Installed, Installer, State, Way, Witness};

/// The plugin on this node; without a configuration somebody else installs it.
#[derive(Debug, Default)]
pub(super) struct Plugin {
    config: Option<InstallConfig>,
    at_work: Mutex<AtWork>,
}

#[derive(Debug, Default)]
struct AtWork {
    handle: Option<InstallHandle>,
    installed: Option<watch::Receiver<Installed>>,
    /// Why it could not be removed.
    problem: String,
}

impl Plugin {
    /// Nothing is done before [`Plugin::start`].
    pub(super) fn new(config: Option<InstallConfig>) -> Arc<Self> {
        Arc::new(Self { config, at_work: Mutex::default() })
    }

    /// Installs it and keeps it so; nothing if that is going on.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut at_work = self.at_work.lock();
        let Some(config) = self.config.as_ref().filter(|_| at_work.handle.is_none()) else { return Ok(()) };
        let handle = Installer::new(config.clone()).start()?;
        *at_work =
            AtWork { installed: Some(handle.installed()), handle: Some(handle), problem: String::new() };
        Ok(())
    }

    /// For those who know whether ADDs come; of the installation that is going on.
    pub(super) fn witness(&self) -> Option<Witness> {
        self.at_work.lock().handle.as_ref().map(InstallHandle::witness)
    }

    /// Leaves everything in place and ends: another agent's installation is at work already.
    pub(super) fn stop(&self) {
        let handle = self.at_work.lock().handle.take(); // not under the lock: it waits for a thread
        if let Some(handle) = handle {
            handle.stop();
        }
    }

    /// Removes it: the entry, then the program. Blocking.
    ///
    /// # Errors
    /// Says what is left; it can be tried again.
    pub(super) fn remove(&self) -> Result<(), String> {
        self.stop();
        let Some(config) = &self.config else { return Ok(()) };
        let removed = Installer::new(config.clone()).uninstall().map_err(|e| e.to_string());
        let mut at_work = self.at_work.lock();
        at_work.installed = None;
        at_work.problem = removed.clone().err().unwrap_or_default();
        removed
    }

    /// How it stands.
    pub(super) fn report(&self) -> CniReport {
        let at_work = self.at_work.lock();
        match &at_work.installed {
            Some(installed) => told(&installed.borrow()),
            None => removed(self.config.is_some(), &at_work.problem),
        }
    }

    /// How often the entry had to be put back by this installation.
    pub(super) fn reinserted(&self) -> u64 {
        self.at_work.lock().installed.as_ref().map_or(0, |installed| installed.borrow().reinserted)
    }
}

fn removed(ours: bool, problem: &str) -> CniReport {
    if !ours {
        return CniReport { problem: "not installed by this agent".into(), ..CniReport::default() };
    }
    let state = if problem.is_empty() { "removed" } else { "failed" };
    CniReport { state: state.into(), problem: problem.into(), ..CniReport::default() }
}

fn told(installed: &Installed) -> CniReport {
    let (state, problem) = match &installed.state {
        State::Inserted => ("installed", String::new()),
        State::Waiting { why } => ("waiting", why.clone()),
        State::Overridden { why } => ("failed", why.clone()),
    };
    let way = match installed.way {
        Some(Way::DropIn) => "dropIn",
        Some(Way::Edited | Way::Derived) => "conflist",
        None => "",
    };
    CniReport {
        state: state.into(),
        way: way.into(),
        file: installed.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default(),
        add_seen: installed.last_add.is_some(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, time::Duration};

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn each_state_has_its_word() {
        let check = |state: State, way, word: &str, way_word: &str, problem: &str| {
            let file = Some("/etc/cni/net.d/10-x.conflist".into());
            let report = told(&Installed { state, way, file, since: None, last_add: None, reinserted: 0 });
            assert_eq!((&*report.state, &*report.way, &*report.problem), (word, way_word, problem));
            assert_eq!((&*report.file, report.add_seen), ("/etc/cni/net.d/10-x.conflist", false));
        };
        check(State::Inserted, Some(Way::DropIn), "installed", "dropIn", "");
        check(State::Inserted, Some(Way::Edited), "installed", "conflist", "");
        check(State::Waiting { why: "no CNI".into() }, None, "waiting", "", "no CNI");
        check(State::Overridden { why: "undone".into() }, Some(Way::Derived), "failed", "conflist", "undone");
    }

    #[tokio::test]
    async fn it_comes_goes_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("net.d")).unwrap();
        let list = r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "ptp"}]}"#;
        fs::write(at("net.d/10-x.conflist"), list).unwrap();
        fs::write(at("weft-cni"), "program").unwrap();
        let plugin = Plugin::new(Some(InstallConfig {
            conf_dir: at("net.d"),
            bin_dir: at("bin"),
            plugin_source: at("weft-cni"),
            run_dir: at("run"),
            state_dir: at("state"),
            cache_dir: at("cache"),
            proc_root: at("proc"),
            reload_pause: Duration::ZERO,
            ..InstallConfig::default()
        }));
        assert_eq!(plugin.report().state, "removed");
        for _ in 0..2 {
            plugin.start().unwrap();
            let mut installed = plugin.at_work.lock().installed.clone().unwrap();
            let inserted = installed.wait_for(|i| i.state == State::Inserted);
            tokio::time::timeout(PATIENCE, inserted).await.unwrap().unwrap();
            assert_eq!(plugin.report().state, "installed");
            assert!(plugin.witness().is_some());
            plugin.remove().unwrap();
            assert_eq!(plugin.report(), removed(true, ""));
            assert_eq!(fs::read_to_string(at("net.d/10-x.conflist")).unwrap(), list);
            assert!(!at("bin/weft-cni").exists());
        }
    }
}
