//! TLS configs of one identity, built once per rotation.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, GetRandomFailed, aws_lc_rs},
    server::ProducesTickets,
    sign::{CertifiedKey, SingleCertAndKey},
    ticketer::TicketRotator,
    version::TLS13,
};
use weft_core::model::Str;

use crate::{
    bundle::TrustBundle,
    clock::{Clock, TlsTime},
    leaf::LeafFacts,
    verify::{Accept, MeshVerifier, PeerSet},
};

/// The protocol of the tunnel on port 15008, of HBONE peers of every make.
pub const ALPN_H2: &[u8] = b"h2";
/// The same protocol on the application's own port, where the name alone tells a tunnel from TLS of the application.
pub const ALPN_WEFT: &[u8] = b"weft-hbone/1";

/// What a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// [`ALPN_H2`].
    H2,
    /// [`ALPN_WEFT`].
    Weft,
}

impl Alpn {
    /// As in the ClientHello.
    #[must_use]
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::H2 => ALPN_H2,
            Self::Weft => ALPN_WEFT,
        }
    }
}

/// How long a ticket key is in use, in seconds. A resumed session is not verified anew, so this (twice, as
/// the last key still opens tickets) bounds how long a peer outlives its certificate; rustls's own ticketer
/// allows 12 h.
const TICKET_KEY_LIFE: u32 = 3600;
/// Sessions that a client config remembers: one per endpoint address.
const CLIENT_SESSIONS: usize = 64;

/// The mesh's cryptography: TLS 1.3 AES-GCM suites, X25519MLKEM768 first. Passed explicitly to every config,
/// so that no other crate's process-wide default matters.
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ];
        provider.kx_groups = vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ];
        Arc::new(provider)
    });
    PROVIDER.clone()
}

/// What is the same for every identity of a store.
#[derive(Clone, Debug)]
pub(crate) struct TlsSettings {
    pub(crate) trust_domain: Str,
    pub(crate) clock: Arc<dyn Clock>,
    /// How many client configs an identity keeps.
    pub(crate) client_configs: usize,
}

/// A certificate with its key: what stays when only the bundle changes.
#[derive(Clone)]
pub(crate) struct Material {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) facts: LeafFacts,
}

/// One rotation of one identity: its certificate and the configs made of it. Debug prints no key.
pub(crate) struct Credentials {
    pub(crate) material: Material,
    pub(crate) bundle: TrustBundle,
    pub(crate) server: Arc<ServerConfig>,
    roots: Arc<RootCertStore>,
    settings: TlsSettings,
    ticketer: Arc<dyn ProducesTickets>,
    clients: Mutex<ClientCache>,
}

impl Credentials {
    /// Builds the server config. `previous` lends its ticket keys if it trusts the same roots: a ticket
    /// stands for a verified peer, so it must not outlive the roots by which the peer was verified.
    pub(crate) fn build(
        settings: &TlsSettings,
        material: Material,
        bundle: TrustBundle,
        previous: Option<&Self>,
    ) -> Result<Self, rustls::Error> {
        let roots = Arc::new(bundle.anchors());
        let ticketer = match previous.filter(|p| p.bundle == bundle) {
            Some(previous) => previous.ticketer.clone(),
            None => ticketer()?,
        };
        let bounded = Bounded {
            tickets: ticketer.clone(),
            clock: settings.clock.clone(),
            until: material.facts.validity.not_after,
        };
        let server = Arc::new(server_config(settings, &material, &roots, Arc::new(bounded))?);
        let clients = Mutex::new(ClientCache::new(settings.client_configs));
        Ok(Self { material, bundle, server, roots, settings: settings.clone(), ticketer, clients })
    }

    /// The config for calling `peers`: from the cache, else built.
    pub(crate) fn client(&self, peers: &PeerSet, alpn: Alpn) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock();
        let key = (peers.clone(), alpn);
        if let Some(config) = clients.get(&key) {
            return Ok(config);
        }
        let mut config = client_config(&self.settings, &self.material, &self.roots, peers)?;
        config.alpn_protocols = vec![alpn.name().to_vec()];
        let config = Arc::new(config);
        clients.insert(key, config.clone());
        Ok(config)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("facts", &self.material.facts).finish_non_exhaustive()
    }
}

fn server_config(
    settings: &TlsSettings,
    material: &Material,
    roots: &Arc<RootCertStore>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, rustls::Error> {
    let time = Arc::new(TlsTime(settings.clock.clone()));
    let accept = Accept::TrustDomain(settings.trust_domain.clone());
    let verifier = MeshVerifier::new(roots.clone(), accept).map_err(general)?;
    let mut config = ServerConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(material.key.clone())));
    // A client offers one of them.
    config.alpn_protocols = vec![ALPN_WEFT.to_vec(), ALPN_H2.to_vec()];
    config.ticketer = ticketer;
    Ok(config)
}

fn client_config(
    settings: &TlsSettings,
    material: &Material,
    roots: &Arc<RootCertStore>,
    peers: &PeerSet,
) -> Result<ClientConfig, rustls::Error> {
    let time = Arc::new(TlsTime(settings.clock.clone()));
    let verifier = MeshVerifier::new(roots.clone(), Accept::Peers(peers.clone())).map_err(general)?;
    let mut config = ClientConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // the host name is not compared; the identity is (MeshVerifier)
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(material.key.clone())));
    config.enable_sni = false; // the listener is the pod: a name would only tell watchers whom we call
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
    Ok(config)
}

fn general(error: rustls::server::VerifierBuilderError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Tickets under keys that change every [`TICKET_KEY_LIFE`].
fn ticketer() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    fn generation() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
        aws_lc_rs::Ticketer::new().map(|t| Box::new(Generation(t)) as _).map_err(|_| GetRandomFailed)
    }
    Ok(Arc::new(TicketRotator::new(TICKET_KEY_LIFE, generation)?))
}

/// Tickets that are good until the certificate ends by which the server was verified when they were given out. Whether the
/// client's has ended is looked at when a session was resumed ([`crate::Bond`]): what a ticket holds is rustls's.
#[derive(Debug)]
struct Bounded {
    tickets: Arc<dyn ProducesTickets>,
    clock: Arc<dyn Clock>,
    until: Timestamp,
}

impl Bounded {
    /// Bytes before what a ticket holds: until when it is good, Unix seconds.
    const STAMP: usize = 8;
}

impl ProducesTickets for Bounded {
    fn enabled(&self) -> bool {
        self.tickets.enabled()
    }

    fn lifetime(&self) -> u32 {
        let left = self.until.as_second().saturating_sub(self.clock.now().as_second()).max(0);
        self.tickets.lifetime().min(u32::try_from(left).unwrap_or(u32::MAX))
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut stamped = self.until.as_second().to_be_bytes().to_vec();
        stamped.extend_from_slice(plain);
        self.tickets.encrypt(&stamped)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.tickets.decrypt(cipher)?;
        let until = i64::from_be_bytes(plain.get(..Self::STAMP)?.try_into().ok()?);
        (self.clock.now().as_second() <= until).then(|| plain.split_off(Self::STAMP))
    }
}

/// One generation of ticket keys: `TicketRotator` wants a Box where rustls's ticketer gives an Arc.
#[derive(Debug)]
struct Generation(Arc<dyn ProducesTickets>);

impl ProducesTickets for Generation {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        TICKET_KEY_LIFE
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

/// Client configs by peer set and protocol. When full, the one unused for longest goes.
struct ClientCache {
    bound: usize,
    uses: u64,
    configs: HashMap<(PeerSet, Alpn), (u64, Arc<ClientConfig>)>,
}

impl ClientCache {
    fn new(bound: usize) -> Self {
        Self { bound: bound.max(1), uses: 0, configs: HashMap::new() }
    }

    fn get(&mut self, peers: &(PeerSet, Alpn)) -> Option<Arc<ClientConfig>> {
        self.uses += 1;
        let (last_use, config) = self.configs.get_mut(peers)?;
        *last_use = self.uses;
        Some(config.clone())
    }

    fn insert(&mut self, peers: (PeerSet, Alpn), config: Arc<ClientConfig>) {
        if self.configs.len() >= self.bound {
            let oldest = self.configs.iter().min_by_key(|(_, (last_use, _))| *last_use);
            if let Some(oldest) = oldest.map(|(peers, _)| peers.clone()) {
                self.configs.remove(&oldest);
            }
        }
        self.configs.insert(peers, (self.uses, config));
    }
}

#[cfg(test)]
mod tests;
