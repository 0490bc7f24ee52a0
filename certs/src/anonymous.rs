//! TLS that keeps listeners away and proves nothing: for callers who verify no certificate, and for calling as they do.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{ca::CaError, key::SecretKey};

/// A server with a new key and a certificate that nobody has issued, for clients that look at none. TLS 1.2 or 1.3, by
/// ciphers that are not the mesh's own: such clients may have older ones only. Keeps no sessions.
///
/// # Errors
/// When no key can be made.
pub fn anonymous_server(alpn: &[&[u8]]) -> Result<ServerConfig, CaError> {
    let words = |error: Error| CaError::Material { what: "TLS".into(), reason: error.to_string() };
    let key = anonymous_certificate()?;
    let mut server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(words)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    server.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// A new key with a certificate that nobody has issued and that proves nothing.
///
/// # Errors
/// When no key can be made.
pub fn anonymous_certificate() -> Result<Arc<CertifiedKey>, CaError> {
    let key = SecretKey::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "weft, anonymous");
    let certificate = params.self_signed(key.pair())?.der().clone();
    let tls_key = key
        .tls_key()
        .map_err(|error| CaError::Material { what: "an anonymous key".into(), reason: error.to_string() })?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate], tls_key)))
}

/// How a client asks that looks at no certificate, names nobody and keeps no session.
///
/// # Errors
/// When `provider` has no version of TLS.
pub fn anonymous_client(provider: Arc<CryptoProvider>, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let anybody = Anybody(provider.signature_verification_algorithms.supported_schemes());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous() // as kubelets do, see `Anybody`
        .with_custom_certificate_verifier(Arc::new(anybody))
        .with_no_client_auth();
    client.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // An address is asked; a Host header does not change that.
    client.enable_sni = false;
    // One config serves all servers.
    client.resumption = Resumption::disabled();
    Ok(client)
}

/// Takes every certificate, as a kubelet does. So nothing is to be learned from a signature either, by whatever key; and
/// certificates that rustls does not read (those of X.509 version 1, which `openssl x509 -req` makes) are taken too.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
