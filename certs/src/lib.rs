//! Mesh identity: who a workload is, proved by X.509-SVID certificates.
//!
//! The public surface:
//! - [`IdentityStore`]: asks an [`Issuer`] for a certificate per [`SpiffeId`], renews it at half life and
//!   keeps a valid one when the issuer fails. [`IdentityStore::acquire`] gives an [`IdentityHandle`];
//! - [`IdentityHandle`]: prebuilt TLS configs of one identity, for both sides of a mutual TLS 1.3 connection.
//!   It withholds the key and the CA on purpose: a proxy needs neither;
//! - [`Issuer`], with [`LocalIssuer`] over a [`Ca`] in the same process;
//! - [`peer_identity`]: who is at the other end of a verified connection, and [`HandshakeFailure`]: why there
//!   is none;
//! - [`rotation`]: when to renew, as plain functions.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use weft_certs::{Alpn, Ca, IdentityStore, LocalIssuer, PeerSet, SpiffeId, StoreConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ca = Ca::create("cluster.local", jiff::Timestamp::now())?;
//! let issuer = Arc::new(LocalIssuer::new(ca, "cluster.local"));
//! let store = IdentityStore::new(issuer, StoreConfig::new("cluster.local"));
//!
//! let shop = store.acquire(SpiffeId::new("cluster.local", "shop", "web"));
//! shop.ready(tokio::time::Instant::now() + Duration::from_secs(5)).await?;
//!
//! // Both are cheap: an Arc clone, and a small map look-up.
//! let accept = shop.server_config().ok_or("no certificate")?;
//! let to_cart = PeerSet::one(SpiffeId::new("cluster.local", "shop", "cart"));
//! let connect = shop.client_config(&to_cart, Alpn::Weft).ok_or("no certificate")?;
//! # assert!(accept.alpn_protocols.contains(&connect.alpn_protocols[0]));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod anonymous;
mod bond;
mod bundle;
mod ca;
mod ca_dir;
mod clock;
mod csr;
mod entry;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
mod info;
mod issue;
mod key;
mod leaf;
mod pem;
pub mod rotation;
mod server;
mod slots;
mod store;
mod tls;
mod verify;

pub use anonymous::{anonymous_certificate, anonymous_client, anonymous_server};
pub use bond::{Bond, Unbound};
pub use bundle::{InvalidBundle, TrustBundle};
pub use ca::{Ca, CaError, CaPem, MAX_TTL, MIN_TTL};
pub use clock::{Clock, SystemClock, TokioClock};
pub use csr::{csr_from_pem, csr_names_only};
pub use failure::HandshakeFailure;
pub use info::{IdentityInfo, IdentityState, Metrics};
pub use issue::{
    Fault, IssueError, IssueFuture, IssueRequest, IssuedCertificate, Issuer, LocalIssuer, Retry,
};
pub use leaf::RootInfo;
pub use server::ServerCertificate;
pub use store::{IdentityHandle, IdentityStore, NotReady, StoreConfig};
pub use tls::{ALPN_H2, ALPN_WEFT, Alpn, crypto_provider};
pub use verify::{IdentityError, PeerSet, peer_identity};
pub use weft_core::model::SpiffeId;
