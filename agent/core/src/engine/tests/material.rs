//! Which Secrets and ConfigMaps are handed out, and to whom: a key pair only where a Gateway is served that refers to it
//! and may.

use super::world::*;
use crate::{
    config::{PortConfig, TlsListener, TlsTermination, Transport},
    engine::{Engine, Feedback},
    model::*,
};
use std::collections::{BTreeMap, BTreeSet};

fn names(material: BTreeSet<ObjectRef>) -> Vec<String> {
    material.iter().map(ToString::to_string).collect()
}

fn edge() -> Gateway {
    let certificates = ["own", "other/granted", "absent"];
    let listeners = [("own", 443), ("granted", 444), ("absent", 445)];
    let listeners = listeners.iter().zip(certificates).map(|((name, port), c)| https(name, *port, "", c));
    let ca_refs = vec![object(Kind::ConfigMap, "clients-ca")];
    let validation = FrontendValidation { ca_refs, insecure_fallback: false };
    let parameters_ref =
        Some(ParametersRef { kind: Kind::ConfigMap.into(), name: "of-edge".into(), namespace: None });
    Gateway {
        allowed_listeners: FromNamespaces::All,
        backend_client_certificate: Some(object(Kind::Secret, "client")),
        frontend_tls: Some(FrontendTls { default: Some(validation), per_port: Vec::new() }),
        infrastructure: Some(Infrastructure { parameters_ref, ..Infrastructure::default() }),
        ..gateway("infra/edge", listeners.collect())
    }
}

#[test]
fn each_gateway_gets_what_it_may_use_and_no_more() {
    let mut w = world();
    w.gateway(edge());
    w.gateway(gateway("infra/inner", vec![https("https", 443, "", "inner")]));
    w.gateway(gateway("infra/thief", vec![https("https", 443, "", "other/private")]));
    w.gateway(Gateway {
        class: "theirs".into(),
        ..gateway("infra/theirs", vec![https("x", 443, "", "own")])
    });
    w.class("theirs", "example.com/other");
    w.set(listener_set("shop/set", "infra/edge", vec![https("set", 446, "", "set-cert")]));
    // Not let in: `inner` takes no sets.
    w.set(listener_set("shop/uninvited", "infra/inner", vec![https("set", 446, "", "set-cert")]));
    let grant = ReferenceGrant {
        meta: meta("other/grant"),
        from: vec![GrantFrom { kind: Kind::Gateway.into(), namespace: "infra".into() }],
        to: vec![GrantTo { kind: Kind::Secret.into(), name: Some("granted".into()) }],
    };
    w.0.grants.insert(key("other/grant"), grant.into());
    for of in ["infra/own", "infra/client", "infra/inner", "shop/set-cert", "other/granted", "other/private"]
    {
        w.secret(of, key_pair(of));
    }
    w.ca("infra/clients-ca", Some(Ok(ca_bundle("clients"))));
    let settings_of = ConfigMap {
        meta: meta("infra/of-edge"),
        ca: None,
        broken: None,
        parameters: Some(Ok(GatewaySettings::default()).into()),
    };
    w.0.config_maps.insert(key("infra/of-edge"), settings_of.into());
    w.ca("shop/backend-ca", Some(Ok(ca_bundle("backend"))));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let target = PolicyTarget { kind: Kind::Service.into(), name: "web".into(), section_name: None };
    w.policy(BackendTlsPolicy {
        meta: meta("shop/policy"),
        targets: vec![target],
        hostname: host("web.example.com"),
        ca_refs: vec![object(Kind::ConfigMap, "backend-ca")],
        system_roots: false,
        subject_alt_names: Vec::new(),
        options: BTreeMap::new(),
    });
    let mut engine = Engine::new(settings());
    engine.apply(w.0.clone(), &Feedback::default());
    let cases: [(&str, &[&str]); 4] = [
        (
            "infra/edge",
            &[
                "Secret infra/absent",
                "Secret infra/client",
                "Secret infra/own",
                "Secret other/granted",
                "Secret shop/set-cert",
                "ConfigMap infra/clients-ca",
                "ConfigMap infra/of-edge",
            ],
        ),
        ("infra/inner", &["Secret infra/inner"]),
        ("infra/thief", &[]),
        ("infra/theirs", &[]),
    ];
    for (gateway, expected) in cases {
        let got: BTreeSet<String> = names(engine.gateway_material(&key(gateway))).into_iter().collect();
        let expected: BTreeSet<String> = expected.iter().map(|e| (*e).to_owned()).collect();
        assert_eq!(got, expected, "{gateway}");
    }
    assert_eq!(names(engine.backend_material()), ["ConfigMap shop/backend-ca"]);
    // What is taken back is not handed out any more.
    w.0.grants.clear();
    engine.apply(w.0.clone(), &Feedback::default());
    assert!(!names(engine.gateway_material(&key("infra/edge"))).contains(&"Secret other/granted".to_owned()));
}

/// D1: a renewal with another's key closed the listener: 110 of 110 requests failed.
/// E10: the listener's condition says until when, and that the names are others; Events and metrics come of the same listener.
#[test]
fn a_listener_says_when_its_certificate_ends_and_that_it_is_for_others() {
    let mut w = world();
    let mut listener = https("a", 443, "", "own");
    listener.hostname = Some(Hostname::parse("a.example").expect("a hostname"));
    w.gateway(gateway("infra/edge", vec![listener]));
    let validity = Validity { not_before: 0, not_after: 100 * 86_400 };
    w.secret("infra/own", key_pair_until("b.example", validity));
    let mut engine = Engine::new(settings());
    let out = Applied(engine.apply(w.0.clone(), &Feedback::default()));
    assert_eq!(out.listener("infra/edge", "a"), "Accepted ResolvedRefs Programmed");
    let message = &find(&out.listeners(Kind::Gateway, "infra/edge")[0].conditions, "ResolvedRefs").message;
    assert_eq!(
        message,
        "All references are resolved. The certificate of Secret infra/own is valid until 1970-04-11T00:00:00Z. \
         But the certificate of Secret infra/own is not for a.example (it has b.example)."
    );
    let ends = out.0.config.certificate_ends();
    assert_eq!(
        ends.iter().map(|e| (&*e.secret.name, e.end)).collect::<Vec<_>>(),
        [("own", validity.not_after)]
    );
    let said = |day: i64| -> Vec<_> {
        let remarks = engine.certificate_remarks(day * 86_400).into_iter();
        remarks.map(|r| format!("{} {} {}", r.object, r.listener, r.remark.fault.reason())).collect()
    };
    assert_eq!(said(50), ["Gateway infra/edge a CertificateNameMismatch"]);
    let both = ["Gateway infra/edge a CertificateExpired", "Gateway infra/edge a CertificateNameMismatch"];
    assert_eq!(said(101), both);
    w.secret("infra/own", key_pair_until("a.example", Validity { not_after: 200 * 86_400, ..validity }));
    engine.apply(w.0.clone(), &Feedback::default());
    assert_eq!(engine.certificate_remarks(101 * 86_400), [], "renewed");
    w.secret("infra/own", SecretData::Invalid("broken".into()));
    let out = Applied(engine.apply(w.0.clone(), &Feedback::default()));
    let message = &find(&out.listeners(Kind::Gateway, "infra/edge")[0].conditions, "ResolvedRefs").message;
    assert!(
        message.contains("until it is corrected. The certificate of Secret infra/own is valid"),
        "{message}"
    );
}

/// B11: options were parsed and read by nobody. A wrong one of ours closes the listener, whose TLS would be weaker than is
/// believed; another implementation's is said.
#[test]
fn options_of_a_listener_hold_or_close_it() {
    let check = |mode: TlsMode,
                 option: (&str, &str),
                 conditions: &str,
                 said: (&str, &str),
                 settings: Option<TlsVersion>| {
        let mut w = world();
        let mut listener = https("a", 443, "", "own");
        if mode == TlsMode::Passthrough {
            listener = Listener { protocol: Protocol::Tls, ..listener };
        }
        let tls = listener.tls.as_mut().expect("made with it");
        (tls.mode, tls.options) = (mode, BTreeMap::from([(option.0.into(), option.1.into())]));
        w.gateway(gateway("infra/edge", vec![listener]));
        w.secret("infra/own", key_pair("one"));
        let out = w.apply();
        assert_eq!(out.listener("infra/edge", "a"), conditions, "{option:?}");
        let (kind, words) = said;
        let message = &find(&out.listeners(Kind::Gateway, "infra/edge")[0].conditions, kind).message;
        assert!(message.contains(words), "{message}");
        let served = out.0.config.terminations().next().map(|(_, _, tls)| tls.settings.min_version);
        assert_eq!(served, settings, "{option:?}");
    };
    const GOOD: &str = "Accepted ResolvedRefs Programmed";
    const CLOSED: &str = "Accepted=False/UnsupportedValue ResolvedRefs Programmed=False/Invalid";
    let ends = TlsMode::Terminate;
    check(
        ends,
        (MIN_TLS_VERSION, "1.3"),
        GOOD,
        ("Accepted", "The listener is valid."),
        Some(TlsVersion::V13),
    );
    check(
        ends,
        (MIN_TLS_VERSION, "13"),
        CLOSED,
        ("Accepted", "tls.options: weft.dev/min-tls-version: \"13\""),
        None,
    );
    check(
        ends,
        ("weft.dev/min", "1.3"),
        CLOSED,
        ("Accepted", "tls.options: weft.dev/min is no option"),
        None,
    );
    let foreign = "Of its options these mean nothing to Weft: example.com/min.";
    check(ends, ("example.com/min", "1.3"), GOOD, ("Accepted", foreign), Some(TlsVersion::V12));
    let through = TlsMode::Passthrough;
    check(
        through,
        (MIN_TLS_VERSION, "1.3"),
        CLOSED,
        ("Accepted", "has no effect with mode Passthrough"),
        None,
    );
}

#[test]
fn a_broken_renewal_leaves_the_last_good_certificate_in_use() {
    let mut w = world();
    let validation =
        FrontendValidation { ca_refs: vec![object(Kind::ConfigMap, "clients-ca")], insecure_fallback: false };
    w.gateway(Gateway {
        frontend_tls: Some(FrontendTls { default: Some(validation), per_port: Vec::new() }),
        ..gateway("infra/edge", vec![https("a", 443, "", "own")])
    });
    let mut engine = Engine::new(settings());
    let broken = || SecretData::Invalid("tls.key does not belong to the first certificate of tls.crt".into());
    let mut check = |w: &World, listener: &str, served: Option<(&str, &str)>, said: &[&str]| {
        let out = Applied(engine.apply(w.0.clone(), &Feedback::default()));
        assert_eq!(out.listener("infra/edge", "a"), listener);
        let gateway = &out.0.config.gateways[&key("infra/edge")];
        let serving = gateway.ports.get(&(443, Transport::Tcp)).and_then(|port| match port {
            PortConfig::Tls(tls) => match tls.get(Some("x")).map(|l| &**l) {
                Some(TlsListener::Https { tls, .. }) => Some(tls.clone()),
                _ => None,
            },
            _ => None,
        });
        let names = |tls: &TlsTermination| {
            let roots = &tls.client_ca.as_ref().expect("asks for certificates").roots;
            (
                tls.certificates[0].pair.names[0].to_string(),
                String::from_utf8(roots.0[0].clone()).expect("a name"),
            )
        };
        let served = served.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(serving.map(|tls| names(&tls)), served);
        let status = out.listeners(Kind::Gateway, "infra/edge");
        let message = &find(&status[0].conditions, "ResolvedRefs").message;
        assert!(said.iter().all(|word| message.contains(word)), "{message}");
    };
    const GOOD: &str = "Accepted ResolvedRefs Programmed";
    const STALE: &str = "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed";
    // Never usable so far: closed.
    w.ca("infra/clients-ca", Some(Ok(ca_bundle("ca-1"))));
    w.secret("infra/own", broken());
    check(&w, "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid", None, &[]);
    w.secret("infra/own", key_pair("one"));
    check(&w, GOOD, Some(("one", "ca-1")), &[]);
    for _ in 0..2 {
        w.secret("infra/own", broken());
        let words = ["Secret infra/own", "does not belong", "stays in use until it is corrected"];
        check(&w, STALE, Some(("one", "ca-1")), &words);
    }
    w.ca("infra/clients-ca", Some(Err("ca.crt: no PEM certificate found".into())));
    check(&w, STALE, Some(("one", "ca-1")), &["Secret infra/own", "ConfigMap infra/clients-ca"]);
    w.secret("infra/own", key_pair("two"));
    w.ca("infra/clients-ca", Some(Ok(ca_bundle("ca-2"))));
    check(&w, GOOD, Some(("two", "ca-2")), &[]);
    // Deleted is not renewed, and one that was made anew owes nothing to the old one.
    w.secret("infra/own", broken());
    check(&w, STALE, Some(("two", "ca-2")), &[]);
    w.0.secrets.remove(&key("infra/own"));
    check(
        &w,
        "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid",
        None,
        &["does not exist"],
    );
    w.secret("infra/own", key_pair("three"));
    check(&w, GOOD, Some(("three", "ca-2")), &[]);
    let anew =
        Secret { meta: Meta { uid: "another".into(), ..meta("infra/own") }, data: broken(), broken: None };
    w.0.secrets.insert(key("infra/own"), anew.into());
    check(
        &w,
        "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid",
        None,
        &["does not belong"],
    );
}
