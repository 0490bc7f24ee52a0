//! Which Secrets and ConfigMaps are handed out, and to whom: a key pair only where a Gateway is served that refers to it
//! and may.

use super::world::*;
use crate::{
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
