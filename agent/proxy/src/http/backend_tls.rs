//! TLS to backends (BackendTLSPolicy, GEP-1897): settings built once per policy and worker, not per connection.

use super::connect::Protocol;
use crate::tls_settings::allowed;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
    sync::{Arc, OnceLock},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_core::{
    config::BackendTls,
    model::{KeyPair, SubjectAltName},
};

/// Policies remembered before unused ones are forgotten.
const POLICIES_MAX: usize = 1024;

/// TLS settings for one policy, and for the client certificate of one Gateway.
pub(crate) struct BackendTlsClient {
    /// Tells kept connections apart; never 0.
    pub(crate) id: u32,
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

/// What a worker has built. Keyed by address; the values hold what is at these addresses.
#[derive(Default)]
pub(crate) struct BackendTlsCache {
    built: RefCell<HashMap<(usize, usize), Built>>,
    next_id: Cell<u32>,
}

struct Built {
    client: Result<Rc<BackendTlsClient>, String>,
    policy: Arc<BackendTls>,
    _certificate: Option<Arc<KeyPair>>,
}

impl BackendTlsCache {
    /// Settings for `policy`, showing `certificate` if the backend asks for one.
    pub(crate) fn get(
        &self,
        policy: &Arc<BackendTls>,
        certificate: Option<&Arc<KeyPair>>,
    ) -> Result<Rc<BackendTlsClient>, String> {
        let key = (Arc::as_ptr(policy) as usize, certificate.map_or(0, |c| Arc::as_ptr(c) as usize));
        let mut built = self.built.borrow_mut();
        if let Some(known) = built.get(&key) {
            return known.client.clone();
        }
        if built.len() >= POLICIES_MAX {
            // Held by nobody but us: the policy was replaced.
            built.retain(|_, b| Arc::strong_count(&b.policy) > 1);
        }
        self.next_id.set(self.next_id.get() + 1);
        let client = build(self.next_id.get(), policy, certificate.map(|c| &**c)).map(Rc::new);
        let value =
            Built { client: client.clone(), policy: Arc::clone(policy), _certificate: certificate.cloned() };
        built.insert(key, value);
        client
    }
}

impl BackendTlsClient {
    /// Does the handshake over an established way to the endpoint.
    pub(crate) async fn connect<Io>(&self, io: Io, protocol: Protocol) -> io::Result<TlsStream<Io>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let config = match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        };
        TlsConnector::from(Arc::clone(config)).connect(self.name.clone(), io).await
    }
}

fn build(id: u32, policy: &BackendTls, certificate: Option<&KeyPair>) -> Result<BackendTlsClient, String> {
    let name = ServerName::try_from(policy.hostname.as_str().to_owned()).map_err(|e| e.to_string())?;
    let (provider, versions) = allowed(&policy.settings);
    let roots = match &policy.roots {
        Some(bundle) => trusted(bundle.0.iter().map(|der| CertificateDer::from(der.as_slice()))),
        None => system_roots().clone(),
    };
    if roots.is_empty() {
        return Err("no trusted CA certificate".to_owned());
    }
    let verifier = Verifier::new(roots, policy, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some(pair) => {
            let chain = pair.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
            let key = PrivateKeyDer::try_from(pair.key.expose().to_vec()).map_err(str::to_owned)?;
            config.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
        }
    };
    let with = |alpn: &[u8]| {
        let mut config = config.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    };
    Ok(BackendTlsClient { id, name, http1: with(b"http/1.1"), http2: with(b"h2") })
}

fn trusted<'a>(certificates: impl Iterator<Item = CertificateDer<'a>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.map(CertificateDer::into_owned));
    roots
}

/// The system's bundle (`wellKnownCACertificates: System`), read once. `SSL_CERT_FILE` names another.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let path =
            std::env::var_os("SSL_CERT_FILE").unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into());
        let certificates = CertificateDer::pem_file_iter(path).into_iter().flatten().flatten();
        trusted(certificates)
    })
}

/// The usual checks, but for whose certificate it is: any of the policy's names when it lists some
/// (`subjectAltNames`), else its hostname.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    hostname: ServerName<'static>,
    names: Vec<SubjectAltName>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        roots: RootCertStore,
        policy: &BackendTls,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        Ok(Self {
            roots,
            hostname: ServerName::try_from(policy.hostname.as_str().to_owned()).map_err(|e| e.to_string())?,
            names: policy.subject_alt_names.clone(),
            provider: Arc::clone(provider),
        })
    }

    fn names_match(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        if self.names.is_empty() {
            return verify_server_name(&parsed, &self.hostname);
        }
        let end_entity = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let carried = |name: &SubjectAltName| match name {
            SubjectAltName::Uri(uri) => end_entity.valid_uri_names().any(|carried| carried == &**uri),
            SubjectAltName::Hostname(host) => match host.wildcard_suffix() {
                // A certificate's own `*.example.com` is what a wildcard SAN of a policy asks for.
                Some(_) => end_entity.valid_dns_names().any(|carried| carried == host.as_str()),
                None => {
                    ServerName::try_from(host.as_str()).is_ok_and(|n| verify_server_name(&parsed, &n).is_ok())
                }
            },
        };
        if self.names.iter().any(carried) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        self.names_match(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
