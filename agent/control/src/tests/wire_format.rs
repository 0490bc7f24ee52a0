//! Messages: what travels, what is kept apart, and what garbage does.

use proptest::prelude::*;
use prost::Message;
use weft_core::{
    config::Transport,
    message::{PathAction, PathRules},
    model::{AddressMode, ClientRules, GatewaySettings, IpRange, ProxyProtocol, TrafficPolicy},
};

use super::*;
use crate::{
    convert::{material_from_map, material_to_map},
    delta::{Bounds, CHUNK, Chunk, Mirror, diff},
    istio::IstioCertificateRequest,
    wire,
};

const NO_BOUNDS: Bounds = Bounds { entries: usize::MAX, bytes: usize::MAX };

/// Brings a mirror from `before` to `after` over the wire.
fn travel<C: Chunk>(before: &BTreeMap<C::Key, C::Value>, after: &BTreeMap<C::Key, C::Value>) -> Mirror<C>
where
    C::Value: Clone,
{
    let mut mirror = Mirror::<C>::new(NO_BOUNDS);
    for (old, new) in [(None, before), (Some(before), after)] {
        let chunks = diff::<C>(old, new);
        let last = chunks.len().saturating_sub(1);
        for (i, chunk) in chunks.into_iter().enumerate() {
            let chunk = C::decode(chunk.encode_to_vec().as_slice()).unwrap();
            assert_eq!(mirror.take(chunk).unwrap(), i == last);
        }
        assert!(mirror.entries() == new);
    }
    mirror
}

#[test]
fn everything_of_a_report_travels() {
    let mut full = applied(&[("infra/edge", 7), ("infra/inner", 1)]);
    let edge = full.get_mut(&key("infra/edge")).unwrap();
    edge.mark.uid = "u-7".into();
    edge.mark.placement = u64::MAX;
    edge.mark.sets.insert(key("shop/set"), 3);
    edge.unbound.insert((53, Transport::Udp), "in use".into());
    edge.unbound.insert((53, Transport::Tcp), "not permitted".into());
    edge.unusable.insert("2001:db8::1".parse().unwrap(), "not ours".into());
    travel::<wire::Applied>(&full, &applied(&[("infra/inner", 2)]));
    travel::<wire::Applied>(&BTreeMap::new(), &full);
    assert!(diff::<wire::Applied>(Some(&full), &full).is_empty(), "nothing new, nothing said");
    assert_eq!(diff::<wire::Applied>(None, &BTreeMap::new()).len(), 1, "an empty whole is said too");
}

#[test]
fn everything_of_material_travels_but_labels_and_annotations() {
    let mut all = material(&["infra/cert"], &["infra/ca"]);
    let broken = SecretData::Invalid("no key".into());
    let ca = SecretData::Ca(CaBundle(Arc::new(vec![b"root".to_vec()])));
    for (of, data) in [("infra/broken", broken), ("infra/roots", ca)] {
        all.secrets.insert(
            key(of),
            Arc::new(Secret { meta: meta(of), data, broken: Some("renewed with garbage".into()) }),
        );
    }
    let invalid =
        ConfigMap { meta: meta("infra/bad"), ca: Some(Err("no PEM".into())), broken: None, parameters: None };
    all.config_maps.insert(key("infra/bad"), Arc::new(invalid));
    let empty = ConfigMap { meta: meta("infra/empty"), ca: None, broken: None, parameters: None };
    all.config_maps.insert(key("infra/empty"), Arc::new(empty));
    let mirror = travel::<wire::Material>(&material_to_map(&Material::default()), &material_to_map(&all));
    assert_eq!(material_from_map(mirror.entries()), all);

    let mut labelled = all.clone();
    let mut secret = (**labelled.secrets.get(&key("infra/cert")).unwrap()).clone();
    secret.meta.annotations.insert("kubectl.kubernetes.io/last-applied".into(), "the whole secret".into());
    labelled.secrets.insert(key("infra/cert"), Arc::new(secret));
    let map = material_to_map(&labelled);
    assert!(diff::<wire::Material>(Some(&material_to_map(&all)), &map).is_empty());
}

#[test]
fn parameters_of_config_maps_travel_field_by_field() {
    let labels = [("disk".into(), "ssd".into()), ("zone".into(), "".into())];
    let every = GatewaySettings {
        mode: Some(AddressMode::AddressPool),
        pool: Some(vec![
            IpRange::of("10.90.128.0/17".parse().unwrap()),
            IpRange::of("2001:db8::/64".parse().unwrap()),
        ]),
        traffic_policy: Some(TrafficPolicy::Cluster),
        load_balancer_class: Some("metal".into()),
        source_ranges: Some(vec!["192.0.2.0/24".parse().unwrap(), "::/0".parse().unwrap()]),
        node_selector: Some(labels.into()),
        paths: Some(PathRules {
            repeated_slashes: PathAction::Normalize,
            escaped_slashes: PathAction::Reject,
            ..PathRules::default()
        }),
        stream_idle: Some(Duration::ZERO),
        udp_session: Some(Duration::from_millis(90_500)),
        clients: Some(ClientRules {
            proxy_protocol: ProxyProtocol::Required,
            trusted: vec!["192.0.2.0/24".parse().unwrap()],
            trust_trace: true,
        }),
    };
    // Empty is not absent: it overrides what the class says.
    let (pool, source_ranges, node_selector) = (Some(vec![]), Some(vec![]), Some(BTreeMap::new()));
    let traffic_policy = Some(TrafficPolicy::Local);
    let empty =
        GatewaySettings { pool, source_ranges, node_selector, traffic_policy, ..GatewaySettings::default() };
    let cases =
        [Ok(every), Ok(empty), Ok(GatewaySettings::default()), Err("spec.pool: unknown field".into())];
    let mut all = Material::default();
    for (i, read) in cases.into_iter().enumerate() {
        let of = format!("infra/c{i}");
        let map = ConfigMap { parameters: Some(read.into()), ..(*config_map(&of, b"ca".to_vec())).clone() };
        all.config_maps.insert(key(&of), Arc::new(map));
    }
    let mirror = travel::<wire::Material>(&BTreeMap::new(), &material_to_map(&all));
    assert_eq!(material_from_map(mirror.entries()), all);
}

/// A controller must clear what the agent of the version before does not say.
#[test]
fn an_agent_that_does_not_know_of_application_ports_says_15008() {
    let pod = wire::Key { namespace: "shop".into(), name: "web".into() };
    let check = |application: Option<Vec<u32>>, expected: Option<TunnelPort>| {
        let application = application.map(|except| wire::ApplicationPorts { except });
        let said =
            wire::CapturedPod { pod: Some(pod.clone()), uid: "u".into(), application, addresses: Vec::new() };
        let chunk = wire::Captured { full: true, pods: vec![said], ..wire::Captured::default() };
        let mut mirror = Mirror::<wire::Captured>::new(NO_BOUNDS);
        let complete = mirror.take(chunk).is_ok();
        let tunnel = mirror.entries().get(&key("shop/web")).map(|capture| capture.tunnel.clone());
        assert_eq!((complete, tunnel), (expected.is_some(), expected), "{pod:?}");
    };
    check(None, Some(TunnelPort::Hbone));
    check(Some(vec![]), Some(TunnelPort::application([])));
    check(Some(vec![9100, 22]), Some(TunnelPort::application([22, 9100])));
    check(Some(vec![70_000]), None);
}

#[test]
fn large_changes_travel_in_pieces() {
    let pods = (0..20_000).map(|i| (key(&format!("shop/web-{i}")), capture(&"x".repeat(40))));
    let pods: crate::Captured = pods.collect();
    let chunks = diff::<wire::Captured>(None, &pods);
    assert!(chunks.len() > 3);
    for (i, chunk) in chunks.iter().enumerate() {
        assert!(chunk.encoded_len() < CHUNK + 1024);
        assert_eq!((chunk.full, chunk.more), (i == 0, i + 1 < chunks.len()));
    }
    travel::<wire::Captured>(&pods, &BTreeMap::new());
}

#[test]
fn nothing_prints_a_key() {
    let all = material(&["infra/cert"], &[]);
    let chunk = diff::<wire::Material>(None, &material_to_map(&all)).remove(0);
    let down = wire::Down { body: Some(wire::DownBody::Material(chunk.clone())) };
    let opened = format!("{:?}", chunk.clone().open().unwrap());
    for text in [format!("{all:?}"), format!("{down:#?}"), format!("{chunk:?}"), opened] {
        let bytes = format!("{KEY_BYTES:?}");
        assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
        assert!(!text.contains(std::str::from_utf8(KEY_BYTES).unwrap()), "{text}");
        assert!(text.contains("infra"), "it is about this secret: {text}");
    }
}

#[test]
fn understands_ztunnels_request() {
    // Field by field as protoc would write it: csr = 1, validity_duration = 3, metadata = 4, which is a Struct whose
    // map entries are {key = 1, value = 2}; a Value's string is 3, its number 2.
    fn field(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag << 3 | 2, u8::try_from(body.len()).unwrap()], body].concat()
    }
    let entry = |name: &str, value: &[u8]| field(1, &[field(1, name.as_bytes()), field(2, value)].concat());
    let identity = field(3, b"spiffe://cluster.local/ns/shop/sa/web");
    let number = [&[2 << 3 | 1][..], &1.5f64.to_le_bytes()].concat();
    let metadata = [entry("Other", &number), entry("ImpersonatedIdentity", &identity)].concat();
    let bytes = [field(1, b"PEM"), vec![3 << 3, 60], field(4, &metadata), field(9, b"new")].concat();
    let request = IstioCertificateRequest::decode(bytes.as_slice()).unwrap();
    let web = weft_certs::SpiffeId::new("cluster.local", "shop", "web");
    assert_eq!((&*request.csr, request.validity_duration), ("PEM", 60));
    assert_eq!(request.impersonated().unwrap(), Some(web.clone()));
    let ours = IstioCertificateRequest::on_behalf("PEM".into(), 60, &web);
    assert_eq!(ours.impersonated().unwrap(), Some(web));
    assert!(contains(&ours.encode_to_vec(), &field(4, &entry("ImpersonatedIdentity", &identity))));
    assert_eq!(IstioCertificateRequest::default().impersonated().unwrap(), None);
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn newer_peers_are_understood_as_far_as_possible() {
    // An Up of an unknown kind (tag 15), and a Hello with an unknown field.
    let unknown = wire::Up::decode(&[15 << 3 | 2, 2, 8, 1][..]).unwrap();
    assert_eq!(unknown.body, None);
    let mut hello = wire::Hello { protocol: 2, node: "n1".into(), ..Default::default() }.encode_to_vec();
    hello.extend([14 << 3, 5]);
    assert_eq!(wire::Hello::decode(hello.as_slice()).unwrap().protocol, 2);
    // A Secret whose content is of a kind that does not exist yet.
    let object = wire::MaterialObject {
        id: Some(wire::MaterialKey {
            key: Some(wire::Key { namespace: "infra".into(), name: "cert".into() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let chunk = wire::Material { objects: vec![object], ..Default::default() };
    let mut mirror = Mirror::<wire::Material>::new(NO_BOUNDS);
    assert!(mirror.take(chunk).unwrap());
    let material = material_from_map(mirror.entries());
    assert!(matches!(&material.secrets[&key("infra/cert")].data, SecretData::Invalid(_)));
}

/// A small map of pods.
fn some_pods() -> impl Strategy<Value = crate::Captured> {
    let tunnel = prop_oneof![
        Just(TunnelPort::Hbone),
        proptest::collection::vec(1u16.., 0..4).prop_map(TunnelPort::application),
    ];
    let entry = (0u8..12, 0u8..3, tunnel).prop_map(|(name, uid, tunnel)| {
        (
            key(&format!("ns/p{name}")),
            Capture { uid: format!("u{uid}").into(), tunnel, addresses: vec![[10, 1, 0, uid].into()] },
        )
    });
    proptest::collection::vec(entry, 0..10).prop_map(|entries| entries.into_iter().collect())
}

proptest! {
    #[test]
    fn a_mirror_ends_where_the_sender_is(before in some_pods(), after in some_pods()) {
        travel::<wire::Captured>(&before, &after);
    }

    #[test]
    fn garbage_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(wire::Up { body: Some(body) }) = wire::Up::decode(bytes.as_slice()) {
            match body {
                wire::UpBody::Applied(chunk) => drop(Mirror::new(NO_BOUNDS).take(chunk)),
                wire::UpBody::Captured(chunk) => drop(Mirror::new(NO_BOUNDS).take(chunk)),
                _ => {}
            }
        }
        for bytes in [&bytes[..], &bytes[bytes.len() / 2..]] {
            drop(wire::Material::decode(bytes).map(|chunk| Mirror::new(NO_BOUNDS).take(chunk)));
        }
        drop(wire::Applied::decode(bytes.as_slice()).map(|chunk| Mirror::new(NO_BOUNDS).take(chunk)));
        drop(IstioCertificateRequest::decode(bytes.as_slice()).map(|request| request.impersonated()));
    }
}
