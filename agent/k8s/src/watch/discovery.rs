//! Which kinds a cluster serves, in which versions.

use super::{
    kinds::{OPTIONAL_GROUPS, Watched},
    retry::unreachable,
    state::Fault,
};
use kube::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::timeout;

const ANSWER: Duration = Duration::from_secs(30);

/// What an API server said.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// `v1.36.0`.
    pub(super) kubernetes: String,
    /// Plurals by `group/version`, of the optional groups.
    plurals: BTreeMap<String, BTreeSet<String>>,
}

impl Served {
    /// The newest version of a kind that we can read and the cluster serves.
    pub(super) fn version(&self, kind: Watched) -> Option<&'static str> {
        if !kind.optional() {
            return kind.versions().first().copied();
        }
        let served = |version: &&str| {
            let plurals = self.plurals.get(&format!("{}/{version}", kind.group()));
            plurals.is_some_and(|p| p.contains(kind.plural()))
        };
        kind.versions().iter().copied().find(served)
    }
}

/// Asks. All or nothing: half an answer would look like kinds that are gone.
pub(super) async fn discover(client: &Client) -> Result<Served, Fault> {
    match timeout(ANSWER, ask(client)).await {
        Ok(served) => served.map_err(|e| unreachable(&e)),
        Err(_) => Err(super::state::fault("the API server does not answer", "it is tried again")),
    }
}

async fn ask(client: &Client) -> kube::Result<Served> {
    let kubernetes = client.apiserver_version().await?.git_version;
    let mut served = Served { kubernetes, plurals: BTreeMap::new() };
    let groups = client.list_api_groups().await?.groups;
    for group in groups.into_iter().filter(|g| OPTIONAL_GROUPS.contains(&g.name.as_str())) {
        for version in group.versions {
            let listed = client.list_api_group_resources(&version.group_version).await?;
            let watchable = |verbs: &[String]| ["list", "watch"].iter().all(|v| verbs.iter().any(|w| w == v));
            let plurals =
                listed.resources.into_iter().filter(|r| watchable(&r.verbs)).map(|r| r.name).collect();
            served.plurals.insert(version.group_version, plurals);
        }
    }
    Ok(served)
}
