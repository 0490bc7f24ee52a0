//! From a listener's certificates to the TLS library's settings. Built once per change, shared by all workers, so that
//! a session ticket is good on every one of them.

use super::client_cert::AnyClient;
use crate::tls_settings::allowed;
use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig, SignatureScheme,
    crypto::CryptoProvider,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{collections::HashMap, sync::Arc};
use weft_core::{
    config::{ClientValidation, Config, TlsTermination},
    expiry::ListenerCertificate,
    model::KeyPair,
};

/// Settings, or why there are none.
type Built = Result<Arc<ServerConfig>, Arc<str>>;

/// Everything that has been built for the Config in effect. Keyed by the address of the [`TlsTermination`]; the values
/// hold what is at these addresses. Never shared between two of them: a session ticket must not carry a client past
/// another listener's demands.
#[derive(Debug, Default)]
pub(crate) struct TlsConfigs(ArcSwap<HashMap<usize, (Arc<TlsTermination>, Built)>>);

impl TlsConfigs {
    /// Settings for a listener.
    pub(super) fn get(&self, tls: &Arc<TlsTermination>) -> Built {
        let key = Arc::as_ptr(tls) as usize;
        if let Some((_, built)) = self.0.load().get(&key) {
            return built.clone();
        }
        // A connection that was faster than `refresh`.
        let built = build_logged(tls);
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.insert(key, (tls.clone(), built.clone()));
            all
        });
        built
    }

    /// Builds what a new Config needs, ahead of the handshakes, and forgets what it does not need.
    pub(super) fn refresh(&self, config: &Config) {
        let before = self.0.load_full();
        let mut all = HashMap::new();
        for (_, _, tls) in config.terminations() {
            let key = Arc::as_ptr(tls) as usize;
            all.entry(key).or_insert_with(|| match before.get(&key) {
                Some(known) => known.clone(),
                None => (tls.clone(), build_logged(tls)),
            });
        }
        self.0.store(Arc::new(all));
    }
}

fn build_logged(tls: &TlsTermination) -> Built {
    build(tls).map(Arc::new).map_err(|why| {
        tracing::error!(%why, "a listener's certificates cannot be used");
        why.into()
    })
}

fn build(tls: &TlsTermination) -> Result<ServerConfig, String> {
    let (provider, versions) = allowed(&tls.settings);
    let certificates = Certificates::build(&tls.certificates, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(|e| e.to_string())?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(validation) => builder.with_client_cert_verifier(client_verifier(validation, provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = tls.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    if tls.client_ca.is_some() {
        // What a resumed session was opened with is not verified again, and a ticket may outlive the client's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|e| e.to_string())?;
    }
    Ok(config)
}

fn client_verifier(
    validation: &ClientValidation,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    if validation.optional {
        return Ok(Arc::new(AnyClient::new(provider)));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(
        validation.roots.0.iter().map(|der| CertificateDer::from(der.as_slice()).into_owned()),
    );
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
        .map_err(|e| format!("client validation: {e}"))
}

/// A listener's certificates by the names that they carry.
#[derive(Debug)]
struct Certificates {
    all: Vec<Arc<CertifiedKey>>,
    /// Exact names and `*.` names, lower case. More than one where there is an RSA and an ECDSA certificate.
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    fn build(pairs: &[ListenerCertificate], provider: &CryptoProvider) -> Result<Self, String> {
        let mut certificates = Self { all: Vec::new(), by_name: HashMap::new() };
        let mut problem = "no certificate".to_owned();
        for ListenerCertificate { pair, .. } in pairs {
            match certified(pair, provider) {
                Ok(key) => certificates.add(Arc::new(key)),
                // One bad pair must not take the good ones down.
                Err(error) => problem = error,
            }
        }
        if certificates.all.is_empty() { Err(problem) } else { Ok(certificates) }
    }

    fn add(&mut self, key: Arc<CertifiedKey>) {
        if let Some(leaf) = key.cert.first()
            && let Ok(leaf) = webpki::EndEntityCert::try_from(leaf)
        {
            for name in leaf.valid_dns_names() {
                self.by_name.entry(name.to_ascii_lowercase()).or_default().push(key.clone());
            }
        }
        self.all.push(key);
    }

    /// Those that cover the name (RFC 9525 §6.3: a wildcard stands for one label).
    fn covering(&self, name: &str) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        let wildcard = name.split_once('.').and_then(|(_, parent)| self.by_name.get(&format!("*.{parent}")));
        self.by_name.get(name).into_iter().chain(wildcard).flatten()
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let named = name.and_then(|name| self.covering(name).find(usable));
        named.or_else(|| self.all.iter().find(usable)).or_else(|| self.all.first()).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        self.choose(name.as_deref(), hello.signature_schemes())
    }
}

fn certified(pair: &KeyPair, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = pair.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(pair.key.expose().to_vec()).map_err(str::to_owned)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| e.to_string())
}
