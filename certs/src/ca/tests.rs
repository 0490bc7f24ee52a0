use rcgen::KeyPair;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::*;
use crate::verify::{check_chain, spiffe_id};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn ca() -> Ca {
    Ca::create("cluster.local", now()).unwrap()
}

fn web() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web")
}

fn csr() -> CertificateSigningRequestDer<'static> {
    SecretKey::generate().unwrap().csr(&web()).unwrap()
}

fn leaf(ca: &Ca, ttl: Duration) -> CertificateDer<'static> {
    ca.sign(&csr(), &web(), ttl, now()).unwrap().chain[0].clone()
}

/// (OID, critical, what it says) of every extension, in the certificate's order.
fn extensions(der: &CertificateDer<'_>) -> Vec<(String, bool, String)> {
    let (_, cert) = X509Certificate::from_der(der).unwrap();
    let say = |parsed: &ParsedExtension<'_>| match parsed {
        ParsedExtension::BasicConstraints(b) => format!("ca={} path={:?}", b.ca, b.path_len_constraint),
        ParsedExtension::KeyUsage(u) => u.to_string(),
        ParsedExtension::ExtendedKeyUsage(e) => {
            format!("server={} client={} any={} other={}", e.server_auth, e.client_auth, e.any, e.other.len())
        }
        ParsedExtension::SubjectAlternativeName(san) => {
            san.general_names.iter().map(GeneralName::to_string).collect::<Vec<_>>().join(",")
        }
        ParsedExtension::AuthorityKeyIdentifier(_) => "aki".into(),
        ParsedExtension::SubjectKeyIdentifier(_) => "ski".into(),
        other => format!("{other:?}"),
    };
    let all = cert.extensions().iter();
    all.map(|e| (e.oid.to_id_string(), e.critical, say(e.parsed_extension()))).collect()
}

#[test]
fn shape_of_the_leaf() {
    let der = leaf(&ca(), DAY);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(cert.subject().iter().count(), 0);
    assert_eq!(cert.public_key().algorithm.algorithm.to_id_string(), "1.2.840.10045.2.1");
    assert_eq!(cert.raw_serial().len(), 16);
    let validity = leaf::validity(&cert).unwrap();
    assert_eq!(validity.not_before, now() - SignedDuration::from_secs(120));
    assert_eq!(validity.not_after, now() + SignedDuration::from_secs(86_400));
    let expected = [
        ("2.5.29.35", false, "aki"),
        ("2.5.29.17", true, "URI(spiffe://cluster.local/ns/shop/sa/web)"),
        ("2.5.29.15", true, "Digital Signature"),
        ("2.5.29.37", false, "server=true client=true any=false other=0"),
        ("2.5.29.14", false, "ski"),
        ("2.5.29.19", true, "ca=false path=None"),
    ];
    let found = extensions(&der);
    let found: Vec<_> =
        found.iter().map(|(oid, critical, says)| (oid.as_str(), *critical, says.as_str())).collect();
    assert_eq!(found, expected);
}

#[test]
fn shape_of_the_root() {
    let ca = ca();
    let root = &ca.bundle().roots()[0];
    let (_, cert) = X509Certificate::from_der(root).unwrap();
    assert_eq!(cert.subject(), cert.issuer());
    assert!(cert.subject().to_string().starts_with("O=cluster.local, CN=Weft mesh root "));
    let found = extensions(root);
    assert!(found.contains(&("2.5.29.19".into(), true, "ca=true path=Some(0)".into())), "{found:?}");
    assert!(found.contains(&("2.5.29.15".into(), true, "Key Cert Sign, CRL Sign".into())), "{found:?}");
    let life = ca.validity().not_after.duration_since(now());
    assert_eq!(life.as_hours(), 87_660);
    assert_ne!(
        Ca::create("cluster.local", now()).unwrap().bundle().describe()[0].subject,
        ca.bundle().describe()[0].subject
    );
}

#[test]
fn life_is_bounded() {
    let ca = ca();
    for (wish, given) in [(1, 60), (3600, 3600), (86_400, 86_400), (u64::MAX, 604_800)] {
        let der = leaf(&ca, Duration::from_secs(wish));
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        let not_after = leaf::validity(&cert).unwrap().not_after;
        assert_eq!(not_after.duration_since(now()).as_secs(), given, "{wish}");
    }
    // Never beyond the CA's own end.
    let late = ca.validity().not_after - SignedDuration::from_secs(100);
    let der = ca.sign(&csr(), &web(), DAY, late).unwrap().chain[0].clone();
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(leaf::validity(&cert).unwrap().not_after, ca.validity().not_after);
    let after = ca.validity().not_after + SignedDuration::from_secs(1);
    assert!(matches!(ca.sign(&csr(), &web(), DAY, after), Err(CaError::CaExpired { .. })));
}

#[test]
fn names_in_the_request_are_ignored() {
    let admin = SpiffeId::new("cluster.local", "kube-system", "admin");
    let csr = SecretKey::generate().unwrap().csr(&admin).unwrap();
    let issued = ca().sign(&csr, &web(), DAY, now()).unwrap();
    assert_eq!(spiffe_id(&issued.chain[0]).unwrap(), web());
    check_chain(&issued, now()).unwrap();
}

#[test]
fn possession_must_be_proved() {
    let good = csr().to_vec();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut long = good.clone();
    long.push(0);
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = CertificateParams::default().serialize_request(&ed25519).unwrap();
    let table = [
        (flipped, "does not prove possession"),
        (long, "after the end"),
        (good[..100].to_vec(), "not PKCS#10"),
        (vec![], "not PKCS#10"),
        (ed25519.der().to_vec(), "not ECDSA"),
    ];
    for (der, reason) in table {
        let error = ca().sign(&der.into(), &web(), DAY, now()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_operator_may_bring_an_intermediate() {
    let root_key = SecretKey::generate().unwrap();
    let root = Ca::create_with(root_key, "cluster.local", now()).unwrap();
    let key = SecretKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params, now(), plus(now(), DAY * 30));
    // Our own root forbids CAs below it; one that does not is made here.
    let mut top = CertificateParams::default();
    top.distinguished_name.push(DnType::CommonName, "company root");
    top.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    top.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let top_cert = top.self_signed(root.key().pair()).unwrap();
    let issuer = Issuer::from_params(&top, root.key().pair());
    let cert = params.signed_by(key.pair(), &issuer).unwrap();

    let text = cert.pem() + &top_cert.pem();
    let key_pem = pem::encode("PRIVATE KEY", key.der());
    let ca = Ca::from_pem(text.as_bytes(), key_pem.as_bytes()).unwrap();
    let issued = ca.sign(&csr(), &web(), DAY, now()).unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(issued.bundle.roots(), std::slice::from_ref(top_cert.der()));
    check_chain(&issued, now()).unwrap();
    // Without the root in the file, the topmost is trusted.
    let ca = Ca::from_pem(cert.pem().as_bytes(), key_pem.as_bytes()).unwrap();
    check_chain(&ca.sign(&csr(), &web(), DAY, now()).unwrap(), now()).unwrap();
}

#[test]
fn what_is_no_ca_is_refused() {
    let ca = ca();
    let key = pem::encode("PRIVATE KEY", ca.key().der());
    let other = pem::encode("PRIVATE KEY", SecretKey::generate().unwrap().der());
    let leaf_key = SecretKey::generate().unwrap();
    let leaf = ca.sign(&leaf_key.csr(&web()).unwrap(), &web(), DAY, now()).unwrap();
    let leaf = pem::encode("CERTIFICATE", &leaf.chain[0]);
    let leaf_key = pem::encode("PRIVATE KEY", leaf_key.der());
    let table = [
        (ca.certificate_pem(), other.as_str(), "another certificate"),
        (leaf.to_string(), leaf_key.as_str(), "do not say CA"),
        (String::new(), key.as_str(), "no certificate"),
        (ca.certificate_pem(), "nonsense", "private key"),
    ];
    for (cert, key, reason) in table {
        let error = Ca::from_pem(cert.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn debug_prints_no_key() {
    let ca = ca();
    let text = format!("{ca:?}");
    assert!(text.contains("Weft mesh root") && !text.contains("key"), "{text}");
}

#[test]
fn a_ca_survives_its_pem_texts_with_every_root() {
    let now = Timestamp::now();
    let old = Ca::create("cluster.local", now).unwrap();
    let ca = Ca::create("cluster.local", now).unwrap().trusting(old.bundle());
    let text = ca.to_pem();
    assert!(!format!("{text:?}").contains("PRIVATE"));
    let back = Ca::from_pem(text.certificates.as_bytes(), text.key.as_bytes()).unwrap();
    assert_eq!(back.bundle(), ca.bundle());
    assert_eq!(back.bundle().roots().len(), 2);
}
