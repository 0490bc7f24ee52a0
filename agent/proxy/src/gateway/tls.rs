//! TLS on listeners: which certificate, which clients. Built once for each [`TlsTermination`] and shared by all workers,
//! so that a session's ticket is good on any of them.

use crate::l4::{
    chunks::Chunks,
    pipe::{Pipe, ReadSize},
};
use bytes::BytesMut;
use parking_lot::Mutex;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::{
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::{
    config::{ClientValidation, TlsTermination},
    model::KeyPair,
};

/// Sessions that a listener keeps for clients without tickets.
const SESSIONS_MAX: usize = 1024;

/// The TLS library's configs of all listeners.
#[derive(Debug, Default)]
pub(crate) struct TlsConfigs(Mutex<HashMap<usize, Built>>);

#[derive(Debug)]
struct Built {
    /// Holds what is at the address that is the key.
    of: Arc<TlsTermination>,
    config: Result<Arc<ServerConfig>, String>,
}

impl TlsConfigs {
    /// The config for a listener; an error says why its certificates cannot be served.
    pub(crate) fn get(&self, of: &Arc<TlsTermination>) -> Result<Arc<ServerConfig>, String> {
        let key = Arc::as_ptr(of) as usize;
        if let Some(built) = self.0.lock().get(&key) {
            return built.config.clone();
        }
        // Built outside the lock; two at once only waste the work.
        let config = build(of).map(Arc::new);
        let built = Built { of: Arc::clone(of), config: config.clone() };
        self.0.lock().entry(key).or_insert(built).config.clone()
    }

    /// Forgets configs of listeners that no Config has any more.
    pub(crate) fn prune(&self) {
        self.0.lock().retain(|_, built| Arc::strong_count(&built.of) > 1);
    }
}

fn build(tls: &TlsTermination) -> Result<ServerConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let keys = tls.certificates.iter().map(|pair| certified(pair, &provider)).collect::<Result<_, _>>()?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(validation) => builder.with_client_cert_verifier(verifier(validation, provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates(keys)));
    config.alpn_protocols = tls.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| e.to_string())?;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS_MAX);
    Ok(config)
}

fn certified(pair: &KeyPair, provider: &CryptoProvider) -> Result<Certificate, String> {
    let chain = pair.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(pair.key.expose().to_vec()).map_err(str::to_owned)?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|e| e.to_string())?;
    Ok(Certificate { names: pair.names.iter().map(|n| n.to_ascii_lowercase()).collect(), key: Arc::new(key) })
}

#[derive(Debug)]
struct Certificate {
    names: Vec<String>,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// A wildcard in a certificate covers one label (RFC 6125 §6.4.3), unlike a listener's hostname.
    fn covers(&self, name: &str) -> bool {
        self.names.iter().any(|n| {
            n == name
                || n.strip_prefix('*').is_some_and(|suffix| {
                    name.strip_suffix(suffix).is_some_and(|label| !label.is_empty() && !label.contains('.'))
                })
        })
    }
}

/// The first certificate whose names cover the SNI and whose key the client can check; else the first of all.
#[derive(Debug)]
struct Certificates(Vec<Certificate>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = |c: &&Certificate| c.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = hello.server_name().and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.0.iter().filter(|c| c.covers(&name)).find(usable)
        });
        named.or_else(|| self.0.iter().find(usable)).or(self.0.first()).map(|c| Arc::clone(&c.key))
    }
}

fn verifier(
    validation: &ClientValidation,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(validation.roots.0.iter().map(|der| CertificateDer::from(der.clone())));
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| e.to_string())?;
    Ok(if validation.optional { Arc::new(Optional(inner)) } else { inner })
}

/// `AllowInsecureFallback` (GEP-91): a certificate is asked for, and everybody is let in, also with a bad one. That the
/// client holds the key of what it shows is checked all the same.
#[derive(Debug)]
struct Optional(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Optional {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A TLS connection that is copied, not understood.
pub(crate) struct TlsPipe<Io>(pub(crate) Io);

impl<Io: AsyncRead + AsyncWrite + Unpin> Pipe for TlsPipe<Io> {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Chunks,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = BytesMut::zeroed(size.get());
        let mut read = ReadBuf::new(&mut buffer);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        let n = read.filled().len();
        size.learn(n);
        buffer.truncate(n);
        into.push(buffer.freeze());
        Poll::Ready(Ok(n))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, from: &mut Chunks) -> Poll<io::Result<()>> {
        while !from.is_empty() {
            let mut slices = [IoSlice::new(&[]); crate::l4::chunks::SLICES_MAX];
            let count = from.slices(&mut slices);
            let n = ready!(Pin::new(&mut self.0).poll_write_vectored(cx, &slices[..count]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            from.advance(n);
        }
        // What is in the TLS buffer is not on the wire yet.
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_shutdown(cx)) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }

    fn abort(&mut self) {
        // Dropped without close_notify: a truncated stream, which TLS makes visible to the client.
    }
}
