//! Where the mesh's CA is kept in a cluster: Secret `weft-ca`, which only the controller may read, and its roots in
//! ConfigMap `weft-ca-root`, which agents read.

use crate::lease::Leadership;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use std::{collections::BTreeMap, fmt, future::Future, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};
use zeroize::Zeroizing;

/// The CA's Secret.
const SECRET: &str = "weft-ca";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// The roots' ConfigMap, and where they are in it.
const ROOTS: &str = "weft-ca-root";
const ROOTS_KEY: &str = "root.pem";
const FIELD_MANAGER: &str = "weft-controller";
/// The Secret is read again this often: an operator may bring another CA.
const LOOK: Duration = Duration::from_secs(30);
/// After a failure, or while nobody has made a CA yet.
const RETRY: Duration = Duration::from_secs(1);
/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A CA as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct CaTexts {
    /// The signing certificate first, then those above it and other trusted roots (PEM).
    pub certificates: String,
    /// The key (PEM).
    pub key: Zeroizing<String>,
}

impl fmt::Debug for CaTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaTexts").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// Why the CA cannot be had now; tried again.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}: the API server did not answer within {ANSWER:?}")]
    Silent(&'static str),
    #[error("{0}: {1}")]
    Api(&'static str, Box<kube::Error>),
    #[error(
        "Secret {SECRET}: data[\"{0}\"] is missing or no text; repair it, or delete it: a controller that still holds the CA writes it again, else a new one is made"
    )]
    Broken(&'static str),
    #[error("no CA could be made: {0}")]
    Make(String),
}

/// How a CA is made and read: certificates are not this crate's.
#[derive(Clone, Debug)]
pub struct CaCraft {
    /// Whose CA it is.
    pub trust_domain: String,
    /// Makes one for a trust domain.
    pub make: fn(&str) -> Result<CaTexts, String>,
    /// What is published of a CA's texts; `None` when they are no CA.
    pub roots: fn(&CaTexts) -> Option<String>,
}

/// Keeps the CA's texts: reads the Secret, and makes it when there is none and we lead. A Secret that was deleted is written
/// again as it was: another CA at once would be one that no certificate in use is of.
pub async fn keep_ca(
    client: Client,
    namespace: String,
    mut leadership: watch::Receiver<Leadership>,
    found: watch::Sender<Option<Arc<CaTexts>>>,
    craft: CaCraft,
) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut said = None;
    loop {
        let leads = leadership.borrow_and_update().leads();
        let had = found.borrow().as_deref().cloned();
        let pause = match look(&secrets, leads, had, || (craft.make)(&craft.trust_domain)).await {
            Ok(Some(texts)) => {
                let published = if leads { publish(&maps, (craft.roots)(&texts)).await } else { Ok(()) };
                found.send_if_modified(|now| {
                    let changed = now.as_deref() != Some(&texts);
                    if changed {
                        *now = Some(Arc::new(texts));
                    }
                    changed
                });
                match published {
                    Ok(()) => {
                        said = None;
                        LOOK
                    }
                    Err(error) => complain(&error, &mut said),
                }
            }
            Ok(None) => RETRY,
            Err(error) => complain(&error, &mut said),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// The same twice in a row is said once.
fn complain(error: &Trouble, said: &mut Option<String>) -> Duration {
    let error = error.to_string();
    if said.as_ref() != Some(&error) {
        tracing::warn!("the mesh's CA: {error}; the last one stays in use, it is tried again");
        *said = Some(error);
    }
    RETRY
}

async fn within<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Trouble> {
    let answer = timeout(ANSWER, call).await.map_err(|_| Trouble::Silent(what))?;
    answer.map_err(|e| Trouble::Api(what, Box::new(e)))
}

/// The CA's texts; `None` when there are none and it is not ours to make them.
async fn look(
    secrets: &Api<Secret>,
    leads: bool,
    had: Option<CaTexts>,
    make: impl FnOnce() -> Result<CaTexts, String>,
) -> Result<Option<CaTexts>, Trouble> {
    if let Some(secret) = within("reading Secret weft-ca", secrets.get_opt(SECRET)).await? {
        return read(secret).map(Some);
    }
    if !leads {
        return Ok(None);
    }
    let texts = had.map_or_else(make, Ok).map_err(Trouble::Make)?;
    let data = [(CERTIFICATE, texts.certificates.clone()), (KEY, texts.key.to_string())];
    let secret = Secret {
        metadata: metadata(SECRET),
        type_: Some("Opaque".to_owned()),
        string_data: Some(data.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ..Secret::default()
    };
    match within("making Secret weft-ca", secrets.create(&PostParams::default(), &secret)).await {
        Ok(_) => {
            tracing::info!("wrote the mesh's CA: Secret weft-ca");
            Ok(Some(texts))
        }
        // Another replica was faster: its CA is the mesh's.
        Err(Trouble::Api(_, error)) if matches!(&*error, kube::Error::Api(status) if status.code == 409) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn read(secret: Secret) -> Result<CaTexts, Trouble> {
    let mut data = secret.data.unwrap_or_default();
    let mut text = |name: &'static str| {
        let bytes = data.remove(name).ok_or(Trouble::Broken(name))?;
        String::from_utf8(bytes.0).map_err(|_| Trouble::Broken(name))
    };
    Ok(CaTexts { certificates: text(CERTIFICATE)?, key: Zeroizing::new(text(KEY)?) })
}

fn metadata(name: &str) -> ObjectMeta {
    let labels = [("app.kubernetes.io/name", "weft"), ("app.kubernetes.io/managed-by", FIELD_MANAGER)];
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
        ..ObjectMeta::default()
    }
}

/// Writes the roots, if they differ.
async fn publish(maps: &Api<ConfigMap>, roots: Option<String>) -> Result<(), Trouble> {
    let Some(roots) = roots else { return Ok(()) };
    let there = within("reading ConfigMap weft-ca-root", maps.get_opt(ROOTS)).await?;
    if there.and_then(|map| map.data).is_some_and(|data| data.get(ROOTS_KEY) == Some(&roots)) {
        return Ok(());
    }
    let map = ConfigMap {
        metadata: metadata(ROOTS),
        data: Some(BTreeMap::from([(ROOTS_KEY.to_owned(), roots)])),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    within("writing ConfigMap weft-ca-root", maps.patch(ROOTS, &params, &Patch::Apply(&map))).await?;
    tracing::info!("published the mesh's roots: ConfigMap weft-ca-root");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeApi;

    fn texts(of: &str) -> CaTexts {
        CaTexts { certificates: of.to_owned(), key: Zeroizing::new("key".to_owned()) }
    }

    /// `kubectl delete secret --all`: another CA would be one that nobody's certificate is of.
    #[tokio::test]
    async fn a_deleted_ca_is_written_again_as_it_was() {
        let api = FakeApi::new();
        let secrets: Api<Secret> = Api::namespaced(api.client(), "weft-system");
        let check = async |leads, had: Option<&str>, expected: Option<&str>| {
            let found = look(&secrets, leads, had.map(texts), || Ok(texts("new"))).await;
            let found = found.unwrap().map(|ca| ca.certificates);
            assert_eq!(found.as_deref(), expected, "{leads} {had:?}");
        };
        check(false, Some("old"), None).await;
        check(true, Some("old"), Some("old")).await;
        api.delete("secrets", "weft-system", SECRET);
        check(true, None, Some("new")).await;
    }
}
