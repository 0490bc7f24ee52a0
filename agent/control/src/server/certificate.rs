//! The server's own certificate: issued by the mesh's CA, renewed at half life.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use weft_certs::{ALPN_H2, crypto_provider, rotation};

use super::Shared;

/// The certificate's life.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// The longest sleep before the clock is read again: it may jump.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Shows the certificate that is current; none before the first.
#[derive(Default)]
pub(super) struct Resolver(ArcSwapOption<CertifiedKey>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// TLS 1.3, HTTP/2. Clients show tokens, no certificates.
pub(super) fn tls_config(resolver: Arc<Resolver>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // Connections are few and long: a ticket would only outlive the certificate.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Keeps a valid certificate in place, also when the CA changes. Never ends.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut ca = shared.config.ca.clone();
    loop {
        let current = ca.borrow_and_update().clone();
        let renewal = match current {
            None => Timestamp::MAX,
            Some(ca) => renew(&shared, &ca),
        };
        let due = async {
            loop {
                let left = renewal.duration_since(shared.config.clock.now());
                let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(CLOCK_CHECK)).await;
            }
        };
        let replaced = async {
            if ca.changed().await.is_err() {
                // Nobody will ever bring another CA: go on with this one.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = replaced => {}
            () = due => {}
        }
    }
}

/// Installs a new certificate; says when to do it again.
fn renew(shared: &Shared, ca: &weft_certs::Ca) -> Timestamp {
    let config = &shared.config;
    let now = config.clock.now();
    match ca.server_certificate(&config.identity, &config.names, LIFE, now) {
        Ok(certificate) => {
            shared.resolver.0.store(Some(certificate.key));
            tracing::info!(not_after = %certificate.validity.not_after, "server certificate renewed");
            rotation::renewal(certificate.validity, now, 0)
        }
        Err(error) => {
            tracing::error!(%error, "no certificate for our own server");
            now.checked_add(RETRY).unwrap_or(Timestamp::MAX)
        }
    }
}
