//! What an operator sees of the store: no keys.

use jiff::Timestamp;
use serde::Serialize;

use crate::leaf::{RootInfo, as_text_opt};

/// How an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityState {
    /// No certificate yet.
    Pending,
    /// A valid certificate, and the last issue succeeded.
    Ready,
    /// A valid certificate, but its renewal fails.
    RenewalFailing,
    /// The certificate has run out (or is not valid yet): connections fail.
    Expired,
}

/// Certificate and state of one identity. No key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityInfo {
    /// SPIFFE ID.
    pub identity: String,
    /// How it stands.
    pub state: IdentityState,
    /// Serial number: hexadecimal, colons between bytes.
    pub serial: Option<String>,
    /// Distinguished name of the signer.
    pub issuer: Option<String>,
    /// First moment of validity.
    #[serde(serialize_with = "as_text_opt")]
    pub not_before: Option<Timestamp>,
    /// Last moment of validity.
    #[serde(serialize_with = "as_text_opt")]
    pub not_after: Option<Timestamp>,
    /// When the issuer is asked next; none while it is being asked the first time.
    #[serde(serialize_with = "as_text_opt")]
    pub next_renewal: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, if the last issue failed.
    pub last_error: Option<String>,
    /// What peers must chain to.
    pub roots: Vec<RootInfo>,
}

/// Counters since the start, and the present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Certificates issued.
    pub issued: u64,
    /// Issues that failed.
    pub failed: u64,
    /// Identities held now.
    pub identities: usize,
    /// Of these, those with a valid certificate.
    pub ready: usize,
    /// When the first certificate held runs out; in the past if one has.
    pub earliest_expiry: Option<Timestamp>,
}
