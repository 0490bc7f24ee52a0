//! `options` of listeners and of BackendTLSPolicies: what of TLS may be spoken. Keys of other domains are other
//! implementations'; one of ours that means nothing must not leave TLS weaker than somebody believes.

use super::Str;
use crate::spelling::closest;
use std::collections::BTreeMap;

/// The domain of our keys.
const DOMAIN: &str = "weft.dev/";
/// `1.2` (what holds without it) or `1.3`.
pub const MIN_TLS_VERSION: &str = "weft.dev/min-tls-version";
/// Names of the IANA registry, separated by commas.
pub const CIPHER_SUITES: &str = "weft.dev/cipher-suites";

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum TlsVersion {
    #[default]
    V12,
    V13,
}

/// The cipher suites that there are here, by their names in the IANA registry, and the version that each is for. The data
/// plane's tests hold its TLS library to the same list.
pub const SUITES: &[(&str, TlsVersion)] = &[
    ("TLS_AES_256_GCM_SHA384", TlsVersion::V13),
    ("TLS_AES_128_GCM_SHA256", TlsVersion::V13),
    ("TLS_CHACHA20_POLY1305_SHA256", TlsVersion::V13),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", TlsVersion::V12),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", TlsVersion::V12),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", TlsVersion::V12),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", TlsVersion::V12),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", TlsVersion::V12),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", TlsVersion::V12),
];

/// What of TLS may be spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// [`MIN_TLS_VERSION`].
    pub min_version: TlsVersion,
    /// [`CIPHER_SUITES`], in the order of preference; empty allows all of [`SUITES`].
    pub suites: Vec<&'static str>,
}

impl TlsSettings {
    /// Reads options.
    ///
    /// # Errors
    /// Which entry of ours means nothing, why, and what may stand there: whoever wrote it believes that TLS is restricted.
    pub fn read(options: &BTreeMap<Str, Str>) -> Result<Self, String> {
        let mut settings = Self::default();
        for (key, value) in options.iter().filter(|(key, _)| key.starts_with(DOMAIN)) {
            match &**key {
                MIN_TLS_VERSION => settings.min_version = version(value)?,
                CIPHER_SUITES => settings.suites = suites(value)?,
                other => {
                    let hint = closest(other, [MIN_TLS_VERSION, CIPHER_SUITES]);
                    let hint = hint.map_or_else(
                        || format!("there are {MIN_TLS_VERSION} and {CIPHER_SUITES}"),
                        |known| format!("did you mean {known}?"),
                    );
                    return Err(format!("options: {other} is no option: {hint}"));
                }
            }
        }
        if settings.versions().is_empty() {
            return Err(format!(
                "options: {CIPHER_SUITES} has no suite of TLS 1.3, and {MIN_TLS_VERSION} allows no other version"
            ));
        }
        Ok(settings)
    }

    /// Keys that are for other implementations, if there are any, as a sentence for a condition.
    #[must_use]
    pub fn foreign(options: &BTreeMap<Str, Str>) -> Option<String> {
        let keys: Vec<&str> =
            options.keys().map(|key| &**key).filter(|key| !key.starts_with(DOMAIN)).collect();
        (!keys.is_empty()).then(|| format!("Of its options these mean nothing to Weft: {}.", keys.join(", ")))
    }

    /// The versions that can be spoken: those allowed for which there is a suite.
    #[must_use]
    pub fn versions(&self) -> Vec<TlsVersion> {
        let has = |version: &TlsVersion| {
            self.suites.is_empty()
                || SUITES.iter().any(|(name, of)| of == version && self.suites.contains(name))
        };
        [TlsVersion::V12, TlsVersion::V13]
            .into_iter()
            .filter(|v| *v >= self.min_version)
            .filter(has)
            .collect()
    }
}

fn version(value: &str) -> Result<TlsVersion, String> {
    match value {
        "1.2" => Ok(TlsVersion::V12),
        "1.3" => Ok(TlsVersion::V13),
        _ => Err(format!(
            "options: {MIN_TLS_VERSION}: \"{value}\" is no version that is spoken here; write 1.2 or 1.3"
        )),
    }
}

fn suites(value: &str) -> Result<Vec<&'static str>, String> {
    let mut found = Vec::new();
    for name in value.split(',').map(str::trim) {
        let known = SUITES.iter().map(|(known, _)| *known).find(|known| *known == name);
        let Some(known) = known else {
            let hint = closest(name, SUITES.iter().map(|(known, _)| *known));
            let hint = hint.map_or_else(
                || {
                    format!(
                        "there are {}",
                        SUITES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")
                    )
                },
                |known| format!("did you mean {known}?"),
            );
            return Err(format!(
                "options: {CIPHER_SUITES}: \"{name}\" is no suite that there is here: {hint}"
            ));
        };
        if !found.contains(&known) {
            found.push(known);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(entries: &[(&str, &str)]) -> BTreeMap<Str, Str> {
        entries.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    /// B11: nobody read the options, so that a minimum was believed to be set.
    #[test]
    fn options_of_ours_are_read_or_refused_with_what_may_stand_there() {
        use TlsVersion::{V12, V13};
        let suite = "TLS_AES_128_GCM_SHA256";
        let old = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        for (entries, versions, suites) in [
            (&[][..], &[V12, V13][..], &[][..]),
            (&[("example.com/min-tls-version", "1.3")], &[V12, V13], &[]),
            (&[(MIN_TLS_VERSION, "1.2")], &[V12, V13], &[]),
            (&[(MIN_TLS_VERSION, "1.3")], &[V13], &[]),
            (&[(CIPHER_SUITES, suite)], &[V13], &[suite]),
            (&[(CIPHER_SUITES, old)], &[V12], &[old]),
            (
                &[(
                    CIPHER_SUITES,
                    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 , TLS_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256",
                )],
                &[V12, V13],
                &[old, suite],
            ),
            (&[(MIN_TLS_VERSION, "1.3"), (CIPHER_SUITES, suite)], &[V13], &[suite]),
        ] {
            let read =
                TlsSettings::read(&options(entries)).unwrap_or_else(|why| panic!("{entries:?}: {why}"));
            assert_eq!((&read.versions()[..], &read.suites[..]), (versions, suites), "{entries:?}");
        }
        for (entries, why) in [
            (
                &[(MIN_TLS_VERSION, "TLSv1.3")][..],
                "options: weft.dev/min-tls-version: \"TLSv1.3\" is no version",
            ),
            (&[(MIN_TLS_VERSION, "1.1")], "write 1.2 or 1.3"),
            (&[(MIN_TLS_VERSION, "")], "write 1.2 or 1.3"),
            (&[("weft.dev/min-tls-versoin", "1.3")], "did you mean weft.dev/min-tls-version?"),
            (&[("weft.dev/x", "1.3")], "there are weft.dev/min-tls-version and weft.dev/cipher-suites"),
            (&[(CIPHER_SUITES, "")], "\"\" is no suite that there is here"),
            (&[(CIPHER_SUITES, "TLS13_AES_128_GCM_SHA256")], "did you mean TLS_AES_128_GCM_SHA256?"),
            (&[(CIPHER_SUITES, "TLS_RSA_WITH_RC4_128_MD5")], "is no suite that there is here"),
            (
                &[(MIN_TLS_VERSION, "1.3"), (CIPHER_SUITES, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")],
                "has no suite of TLS 1.3",
            ),
        ] {
            let said = TlsSettings::read(&options(entries)).expect_err(why);
            assert!(said.contains(why), "{entries:?}: {said}");
        }
        let foreign = TlsSettings::foreign(&options(&[
            ("example.com/a", "b"),
            (MIN_TLS_VERSION, "1.3"),
            ("bare", "c"),
        ]));
        assert_eq!(
            foreign.as_deref(),
            Some("Of its options these mean nothing to Weft: bare, example.com/a.")
        );
        assert_eq!(TlsSettings::foreign(&options(&[(MIN_TLS_VERSION, "1.3")])), None);
    }
}
