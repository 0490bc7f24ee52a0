//! Uninstalling, on a node: pods are let go first, then the plugin goes, then what is left of the agent's files. Asked for by
//! the key `uninstall` of ConfigMap `weft-config`; without it the node is in the mesh again.

use super::plugin::Plugin;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use weft_core::model::ObjectKey;
use weft_inpod::{Captured, Counts};
use weft_k8s::World;

/// Between two tries of what could not be removed.
const RETRY: Duration = Duration::from_secs(5);

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Not asked for.
    #[default]
    No,
    /// Pods are being let go, or the plugin is being removed.
    Going,
    /// No pod is captured; the plugin and its configuration are gone.
    Done,
}

impl Leaving {
    /// As [`crate::cluster::NodeReport::uninstall`] has it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Going => "leaving",
            Self::Done => "done",
        }
    }
}

/// What leaves a node.
pub(super) struct Leaver {
    pub(super) worlds: watch::Receiver<Arc<World>>,
    pub(super) counts: watch::Receiver<Counts>,
    pub(super) captured: watch::Receiver<Arc<BTreeMap<ObjectKey, Captured>>>,
    pub(super) plugin: Arc<Plugin>,
    /// Directories and files of ours that nobody needs once pods are gone.
    pub(super) litter: Vec<PathBuf>,
    pub(super) tell: watch::Sender<Leaving>,
}

impl Leaver {
    /// Follows the worlds until they end.
    pub(super) async fn run(mut self) {
        loop {
            let asked = self.worlds.borrow_and_update().uninstall;
            let is = *self.tell.borrow();
            match (asked, is) {
                (true, Leaving::Done) | (false, Leaving::No) => {}
                (true, _) => self.leave().await,
                (false, _) => self.come_back(),
            }
            let settled = asked == (*self.tell.borrow() == Leaving::Done);
            tokio::select! {
                changed = self.worlds.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !settled => {}
            }
        }
    }

    async fn leave(&self) {
        if self.tell.send_replace(Leaving::Going) == Leaving::No {
            tracing::info!("Weft is being uninstalled: pods of this node are let go");
        }
        let mut worlds = self.worlds.clone();
        tokio::select! {
            free = self.free() => if !free { return },
            _ = worlds.wait_for(|world| !world.uninstall) => return,
        }
        let plugin = self.plugin.clone();
        // It waits for a thread and for the runtime. Not given up half-way: what comes next would meet it at work.
        match tokio::task::spawn_blocking(move || plugin.remove()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::error!("the CNI plugin: {error}; tried again"),
            Err(error) => return tracing::error!("removing the CNI plugin: {error}; tried again"),
        }
        self.litter.iter().for_each(remove);
        tracing::info!("this node is clean");
        self.tell.send_replace(Leaving::Done);
    }

    /// Waits until no pod is captured; false when that will not be known any more.
    async fn free(&self) -> bool {
        let (mut counts, mut captured) = (self.counts.clone(), self.captured.clone());
        // Without the holder it is not known who is captured.
        counts.wait_for(|c| c.holder && c.pending == 0 && c.captured == 0).await.is_ok()
            && captured.wait_for(|pods| pods.is_empty()).await.is_ok()
    }

    fn come_back(&self) {
        tracing::info!("Weft is not uninstalled after all: pods of this node join again");
        match self.plugin.start() {
            Ok(()) => drop(self.tell.send_replace(Leaving::No)),
            Err(error) => tracing::error!("the CNI plugin's installer cannot be started: {error}"),
        }
    }
}

/// Removes what is in the run directory when the last agent of an uninstalled node ends. The directory itself is a mount here.
pub(super) fn clear(run_dir: &Path) {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
    entries.for_each(|entry| remove(&entry.path()));
}

fn remove(path: &PathBuf) {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{}: {error}; it stays", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn reaches(told: &mut watch::Receiver<Leaving>, wanted: Leaving) {
        tokio::time::timeout(PATIENCE, told.wait_for(|l| *l == wanted)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn pods_go_first_and_a_change_of_mind_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let litter = dir.path().join("cache");
        std::fs::create_dir(&litter).unwrap();
        let asked = |uninstall| Arc::new(World { uninstall, ..World::default() });
        let (worlds, from) = watch::channel(asked(false));
        let busy = Counts { captured: 1, pending: 0, known: 1, holder: true };
        let (counts, counted) = watch::channel(busy);
        let (_pods, captured) = watch::channel(Arc::default());
        let (tell, mut told) = watch::channel(Leaving::No);
        let leaver = Leaver {
            worlds: from,
            counts: counted,
            captured,
            plugin: Plugin::new(None),
            litter: vec![litter.clone(), dir.path().join("absent")],
            tell,
        };
        let task = tokio::spawn(leaver.run());
        worlds.send_replace(asked(true));
        reaches(&mut told, Leaving::Going).await;
        worlds.send_replace(asked(false));
        reaches(&mut told, Leaving::No).await;
        assert!(litter.exists());
        worlds.send_replace(asked(true));
        reaches(&mut told, Leaving::Going).await;
        counts.send_replace(Counts { captured: 0, pending: 1, ..busy });
        counts.send_replace(Counts { captured: 0, pending: 0, ..busy });
        reaches(&mut told, Leaving::Done).await;
        assert!(!litter.exists());
        worlds.send_replace(asked(false));
        reaches(&mut told, Leaving::No).await;
        drop(worlds);
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }
}
