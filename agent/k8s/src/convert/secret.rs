//! Secrets and ConfigMaps: certificates.

use super::{Cx, meta};
use crate::provision::parameters;
use k8s_openapi::api::core::v1 as core;
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::{collections::BTreeMap, sync::Arc};
use weft_core::model::{CaBundle, ConfigMap, KeyPair, Kind, PrivateKey, Secret, SecretData, Str, Validity};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// The keys of `data` that are read of Secrets and ConfigMaps.
pub(crate) const DATA: [&str; 4] = ["tls.crt", "tls.key", "ca.crt", "config.yaml"];

const TLS_TYPE: &str = "kubernetes.io/tls";

pub(super) fn secret(cx: &mut Cx<'_>) -> Option<Secret> {
    let object: core::Secret = cx.object()?;
    let meta = meta::of(Kind::Secret, object.metadata, cx)?;
    let kind = object.type_.unwrap_or_else(|| "Opaque".to_owned());
    let mut data: BTreeMap<String, Vec<u8>> =
        object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
    // As the API server does on write: stringData wins.
    data.extend(object.string_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes())));
    if kind == TLS_TYPE {
        for key in ["tls.crt", "tls.key"].into_iter().filter(|k| !data.contains_key(*k)) {
            let path = crate::path::key("data", key);
            cx.report.reject(
                &path,
                "is required",
                "a Secret of type kubernetes.io/tls has tls.crt and tls.key",
            );
        }
    }
    let complete = cx.report.rejections() == 0;
    let data = read(&kind, &data);
    if let (SecretData::Invalid(reason), TLS_TYPE, true) = (&data, kind.as_str(), complete) {
        let remedy = "listeners that use it serve TLS with what it held before, or not at all";
        cx.report.unserved("data", &**reason, remedy);
    }
    Some(Secret { meta, data, broken: None })
}

pub(super) fn config_map(cx: &mut Cx<'_>) -> Option<ConfigMap> {
    let object: core::ConfigMap = cx.object()?;
    let meta = meta::of(Kind::ConfigMap, object.metadata, cx)?;
    let mut data = object.data.unwrap_or_default();
    let pem = data.remove("ca.crt");
    let ca = pem.map(|pem| bundle("ca.crt", pem.as_bytes()));
    if let Some(Err(reason)) = &ca {
        cx.report.unserved(
            "data[ca.crt]",
            &**reason,
            "policies that use it trust what it held before, or nothing",
        );
    }
    // Whether it is meant for a Gateway is known where it is named: until then it is not read, and nothing is said of it.
    let parameters = data.remove("config.yaml").map(parameters::written);
    Some(ConfigMap { meta, ca, broken: None, parameters })
}

fn read(kind: &str, data: &BTreeMap<String, Vec<u8>>) -> SecretData {
    match (data.get("tls.crt"), data.get("tls.key"), data.get("ca.crt")) {
        (Some(chain), Some(key), _) if kind == TLS_TYPE => match key_pair(chain, key) {
            Ok(pair) => SecretData::Tls(Arc::new(pair)),
            Err(reason) => SecretData::Invalid(reason),
        },
        (_, _, Some(ca)) => match bundle("ca.crt", ca) {
            Ok(ca) => SecretData::Ca(ca),
            Err(reason) => SecretData::Invalid(reason),
        },
        (Some(_), Some(_), None) => SecretData::Invalid(format!("type is {kind}, not {TLS_TYPE}").into()),
        _ => SecretData::Invalid("has neither tls.crt and tls.key nor ca.crt".into()),
    }
}

fn key_pair(chain: &[u8], key: &[u8]) -> Result<KeyPair, Str> {
    let chain = certificates("tls.crt", chain)?;
    let (names, validity) = leaf(chain.first().map_or(&[], |c| c.as_slice()))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        Str::from("tls.key: no PEM private key (PKCS#8, PKCS#1 or SEC1) found; is it encrypted?")
    })?;
    let signer = aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| Str::from("tls.key: not an RSA, ECDSA or Ed25519 key that can be used"))?;
    let ders = chain.iter().map(|c| CertificateDer::from(c.clone())).collect();
    CertifiedKey::new(ders, signer)
        .keys_match()
        .map_err(|_| Str::from("tls.key does not belong to the first certificate of tls.crt"))?;
    Ok(KeyPair { chain, key: PrivateKey::new(key.secret_der().to_vec()), names, validity })
}

fn bundle(what: &str, pem: &[u8]) -> Result<CaBundle, Str> {
    certificates(what, pem).map(|c| CaBundle(Arc::new(c)))
}

/// The certificates of a PEM text, each checked to be X.509.
fn certificates(what: &str, pem: &[u8]) -> Result<Vec<Vec<u8>>, Str> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = parsed.map_err(|e| Str::from(format!("{what}: broken PEM: {e}")))?;
    if certificates.is_empty() {
        return Err(format!("{what}: no PEM certificate found").into());
    }
    for (i, c) in certificates.iter().enumerate() {
        let rest = x509_parser::certificate::X509Certificate::from_der(c).map(|(rest, _)| rest.len());
        if rest.ok() != Some(0) {
            return Err(format!("{what}: certificate {} is no X.509", i + 1).into());
        }
    }
    Ok(certificates.into_iter().map(|c| c.to_vec()).collect())
}

/// DNS names and IPs of a certificate, and when it may be used.
fn leaf(leaf: &[u8]) -> Result<(Vec<Str>, Validity), Str> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf)
        .map_err(|_| Str::from("tls.crt: certificate 1 is no X.509"))?;
    let validity = certificate.validity();
    let validity =
        Validity { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() };
    let Ok(Some(san)) = certificate.subject_alternative_name() else { return Ok((Vec::new(), validity)) };
    let name = |n: &GeneralName<'_>| match n {
        GeneralName::DNSName(name) => Some(Str::from(*name)),
        GeneralName::IPAddress(raw) => address(raw),
        _ => None,
    };
    Ok((san.value.general_names.iter().filter_map(name).collect(), validity))
}

fn address(raw: &[u8]) -> Option<Str> {
    let v4 = || <[u8; 4]>::try_from(raw).ok().map(|a| std::net::IpAddr::from(a).to_string());
    let v6 = || <[u8; 16]>::try_from(raw).ok().map(|a| std::net::IpAddr::from(a).to_string());
    v4().or_else(v6).map(Str::from)
}
