//! What of TLS may be spoken ([`TlsSettings`]), in the words of the TLS library.

use rustls::{SupportedProtocolVersion, crypto::CryptoProvider, version};
use std::sync::Arc;
use weft_core::model::{TlsSettings, TlsVersion};

/// The cryptography, and the versions.
pub(crate) type Allowed = (Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>);

/// What `settings` allow.
pub(crate) fn allowed(settings: &TlsSettings) -> Allowed {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if !settings.suites.is_empty() {
        let suites = settings.suites.iter().filter_map(|name| {
            provider.cipher_suites.iter().find(|suite| iana(suite.suite().as_str()) == **name).copied()
        });
        provider.cipher_suites = suites.collect();
    }
    let version = |version: &TlsVersion| match version {
        TlsVersion::V12 => &version::TLS12,
        TlsVersion::V13 => &version::TLS13,
    };
    // The newest first, as the library has them.
    let versions = settings.versions().iter().rev().map(version).collect();
    (Arc::new(provider), versions)
}

/// The library's name of a suite as the IANA registry has it.
fn iana(name: Option<&'static str>) -> String {
    name.unwrap_or_default().replacen("TLS13_", "TLS_", 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use weft_core::model::SUITES;

    #[test]
    fn the_suites_that_can_be_named_are_those_of_the_library() {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let there: BTreeSet<String> =
            provider.cipher_suites.iter().map(|s| iana(s.suite().as_str())).collect();
        assert_eq!(there, SUITES.iter().map(|(name, _)| (*name).to_owned()).collect());
        for suite in provider.cipher_suites {
            let is_13 = suite.version() == &version::TLS13;
            let known = SUITES.iter().find(|(name, _)| *name == iana(suite.suite().as_str()));
            assert_eq!(known.map(|(_, v)| *v == TlsVersion::V13), Some(is_13), "{suite:?}");
        }
    }
}
