//! What a stolen node gets: every call of the controller, made with the token of that node's agent. Each row is one request;
//! none gets a certificate, a key or a word that is not that node's.

use http::uri::PathAndQuery;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair as Key, SanType,
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_prost::ProstCodec;
use weft_core::model::MESH_LABEL;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{
    hostile::{channel, end, hello, open, up},
    *,
};
use crate::{
    Agents, Expected, feedback,
    istio::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, Struct, Value},
    wire::{self, DownBody, UpBody},
};

/// What a thief writes into a request for a certificate.
struct Wish<'a> {
    /// Subject alternative names of the request.
    names: Vec<SanType>,
    /// `ImpersonatedIdentity`.
    wanted: Option<&'a str>,
    seconds: i64,
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const CONTROLLER: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-controller";

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// A request that also asks to be an authority and a server of another name, which nobody grants.
fn request(wish: &Wish<'_>) -> IstioCertificateRequest {
    let mut params = CertificateParams::default();
    params.subject_alt_names.clone_from(&wish.names);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    params.distinguished_name.push(DnType::CommonName, "weft-controller.weft-system.svc");
    // Not everything can be asked for; what rcgen does not put into requests is not in ours.
    let csr = params.serialize_request(&Key::generate().unwrap()).or_else(|_| {
        params.is_ca = IsCa::NoCa;
        params.serialize_request(&Key::generate().unwrap())
    });
    let metadata = wish.wanted.map(|wanted| {
        let value = Value { string: Some(wanted.to_owned()) };
        Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() }
    });
    IstioCertificateRequest { csr: csr.unwrap().pem().unwrap(), validity_duration: wish.seconds, metadata }
}

async fn ask(channel: &Channel, message: IstioCertificateRequest) -> Result<Vec<String>, Status> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer agent@n1".parse().unwrap());
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<_, IstioCertificateResponse>::default();
    let answer = grpc.unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE), codec);
    Ok(timeout(SOON, answer).await.expect("an answer")?.into_inner().cert_chain)
}

/// Pods of two nodes, of every kind that has no identity of its own, and a Gateway on each node.
fn world(bench: &Bench) {
    let mut world = Snapshot::default();
    let mut put = |name: &str, account: &str, node: &str, edit: fn(&mut Pod)| {
        let mut pod = pod(name, account, node);
        edit(&mut pod);
        world.pods.insert(pod.meta.key.clone(), Arc::new(pod));
    };
    put("shop/web-1", "web", "n1", |_| {});
    put("shop/cart-1", "cart", "n2", |_| {});
    put("shop/new", "new", "", |_| {});
    put("shop/done", "done", "n1", |pod| pod.finished = true);
    put("shop/host", "host", "n1", |pod| pod.host_network = true);
    // As a kubelet's mirror of a static pod is read: with the namespace's first account, and out of the mesh.
    put("shop/mirror", "default", "n1", |pod| {
        pod.meta.labels.insert(MESH_LABEL.into(), "disabled".into());
    });
    put("weft-system/weft-agent-1", "weft-agent", "n1", |pod| pod.host_network = true);
    put("weft-system/weft-controller-1", "weft-controller", "n2", |_| {});
    for name in ["edge", "inner"] {
        let gateway = gateway(&format!("infra/{name}"), 1);
        world.gateways.insert(gateway.meta.key.clone(), Arc::new(gateway));
    }
    bench.worlds.send_replace(Arc::new(world));
    let serving: Serving =
        [(key("infra/edge"), [node("n1")].into()), (key("infra/inner"), [node("n2")].into())].into();
    bench.serving.send_replace(Arc::new(serving));
}

#[tokio::test]
async fn a_stolen_agent_gets_no_certificate_beyond_its_node() {
    let bench = Bench::new();
    world(&bench);
    let running = bench.serve(Limits { early: Duration::ZERO, ..Limits::default() });
    let channel = channel(&bench).await;
    let plain = |id: &'static str| Wish { names: vec![uri(id)], wanted: Some(id), seconds: 3600 };
    let (denied, malformed) = (Code::PermissionDenied, Code::InvalidArgument);
    let dns = SanType::DnsName("weft-controller.weft-system.svc".try_into().unwrap());
    let ip = SanType::IpAddress([10, 0, 0, 1].into());
    let table: Vec<(Wish<'_>, Code, &str)> = vec![
        // Whose pods are not here, or are nobody's.
        (plain(CART), denied, "pod_on_other_node"),
        (plain("spiffe://cluster.local/ns/shop/sa/new"), denied, "no_such_pod"),
        (plain("spiffe://cluster.local/ns/shop/sa/done"), denied, "no_such_pod"),
        (plain("spiffe://cluster.local/ns/shop/sa/gone"), denied, "no_such_pod"),
        (plain("spiffe://cluster.local/ns/shop/sa/host"), denied, "no_such_pod"),
        (plain("spiffe://cluster.local/ns/shop/sa/default"), denied, "no_such_pod"),
        (plain("spiffe://cluster.local/ns/other/sa/web"), denied, "no_such_pod"),
        (plain("spiffe://cluster.local/ns/weft-system/sa/weft-agent"), denied, "no_such_pod"),
        (plain(CONTROLLER), denied, "pod_on_other_node"),
        (plain("spiffe://cluster.local/ns/infra/sa/inner-weft"), denied, "gateway_not_served"),
        (plain("spiffe://elsewhere.org/ns/shop/sa/web"), denied, "other_trust_domain"),
        (plain("spiffe://CLUSTER.local/ns/shop/sa/web"), denied, "other_trust_domain"),
        // Two minds: one identity is asked for, another is in the request, or both are.
        (Wish { names: vec![uri(CART)], wanted: Some(WEB), seconds: 60 }, malformed, "bad_request"),
        (Wish { names: vec![uri(WEB)], wanted: Some(CART), seconds: 60 }, malformed, "bad_request"),
        (Wish { names: vec![uri(WEB), uri(CART)], wanted: Some(WEB), seconds: 60 }, malformed, "bad_request"),
        (
            Wish { names: vec![uri(WEB), dns.clone()], wanted: Some(WEB), seconds: 60 },
            malformed,
            "bad_request",
        ),
        (Wish { names: vec![dns], wanted: Some(WEB), seconds: 60 }, malformed, "bad_request"),
        (Wish { names: vec![ip], wanted: Some(WEB), seconds: 60 }, malformed, "bad_request"),
        (Wish { names: vec![uri(CART)], wanted: None, seconds: 60 }, malformed, "bad_request"),
        (Wish { names: vec![], wanted: Some(CART), seconds: 60 }, denied, "pod_on_other_node"),
        // For itself: an agent has no identity in the mesh.
        (Wish { names: vec![], wanted: None, seconds: 60 }, denied, "no_such_pod"),
    ];
    for (n, (wish, code, reason)) in table.iter().enumerate() {
        let reason = format!("refused_{reason}");
        let before = running.count(&reason);
        let answer = ask(&channel, request(wish)).await;
        let said = answer.as_ref().map(Vec::len).map_err(Status::code);
        assert_eq!(said, Err(*code), "row {n}: {answer:?}");
        assert_eq!(running.count(&reason), before + 1, "row {n}: {reason} is counted");
    }
    // Names that some reader may take for another one.
    for odd in [
        "spiffe://cluster.local/ns/shop/sa/web/../cart",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop/sa/web?x=1",
        "spiffe://cluster.local/ns/shop/sa/web#cart",
        "spiffe://cluster.local/ns/shop/sa/%77eb",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://user@cluster.local/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local/ns/shop/sa/",
        "https://cluster.local/ns/shop/sa/web",
        "",
    ] {
        let answer = ask(&channel, request(&Wish { names: vec![], wanted: Some(odd), seconds: 60 })).await;
        assert_eq!(answer.map_err(|e| e.code()), Err(malformed), "{odd}");
    }
    assert_eq!(running.count("signed"), 0);
    running.stop().await;
}

/// What it does get, its own pods' and Gateways' certificates, says nothing that was not granted.
#[tokio::test]
async fn what_a_stolen_agent_gets_names_its_own_pods_only() {
    let bench = Bench::new();
    world(&bench);
    let running = bench.serve(Limits { early: Duration::ZERO, ..Limits::default() });
    let channel = channel(&bench).await;
    for id in [WEB, "spiffe://cluster.local/ns/infra/sa/edge-weft"] {
        let ten_years = Wish { names: vec![uri(id)], wanted: Some(id), seconds: 10 * 365 * 24 * 3600 };
        let chain = ask(&channel, request(&ten_years)).await.unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&pem.contents).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::URI(id)]);
        assert!(!leaf.is_ca(), "no authority");
        assert!(leaf.subject().iter_common_name().next().is_none(), "{}", leaf.subject());
        let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert!(life <= 8 * 24 * 3600, "{life} s");
    }
    assert_eq!(running.count("signed"), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_stolen_agent_speaks_for_its_own_node_only() {
    let bench = Bench::new();
    world(&bench);
    bench.material("n1", material(&["infra/own"], &[]));
    bench.material("n2", material(&["infra/secret"], &[]));
    let running = bench.serve(Limits::default());
    let channel = channel(&bench).await;
    for (n, node) in ["n2", "", "N1", "n1 ", "n1\0", "n1/n2", "n1,n2"].into_iter().enumerate() {
        let refused = open(&channel, "agent@n1", vec![hello(node)]).await.err();
        assert_eq!(refused.map(|status| status.code()), Some(Code::PermissionDenied), "{node:?}");
        assert_eq!(running.count("refused_other_node"), n as u64 + 1, "{node:?}");
    }
    // Reports about everybody: every pod is captured, and Gateways of other nodes run, or cannot.
    let pod = |name: &str| wire::CapturedPod {
        pod: Some(wire::Key { namespace: "shop".into(), name: name.into() }),
        uid: format!("uid-shop/{name}"),
        application: None,
    };
    let captured = wire::Captured {
        full: true,
        pods: vec![pod("cart-1"), pod("web-1"), pod("ghost")],
        ..wire::Captured::default()
    };
    let applied = wire::GatewayApplied {
        gateway: Some(wire::Key { namespace: "infra".into(), name: "inner".into() }),
        generation: 1,
        unbound: vec![wire::Unbound { port: 443, udp: false, reason: "a lie".into() }],
        ..wire::GatewayApplied::default()
    };
    let applied = wire::Applied { full: true, gateways: vec![applied], ..wire::Applied::default() };
    // A second greeting changes nobody's name.
    let ups = vec![hello("n1"), up(UpBody::Captured(captured)), hello("n2"), up(UpBody::Applied(applied))];
    let (_sender, mut down) = open(&channel, "agent@n1", ups).await.unwrap();
    let mut agents = running.server.agents();
    let told = until(&mut agents, |agents| {
        agents.get("n1").is_some_and(|agent| agent.captured.len() == 3 && !agent.applied.is_empty())
    })
    .await;
    assert_eq!(
        told.keys().map(|node| &**node).collect::<Vec<_>>(),
        ["n1"],
        "nothing is filed under another node"
    );
    nothing_is_believed_of_gateways_elsewhere(&told, &bench.serving.borrow());
    // And down comes what is its own.
    loop {
        let message = timeout(SOON, down.message()).await.expect("material").unwrap().unwrap();
        let Some(DownBody::Material(material)) = message.body else { continue };
        let names: Vec<_> = material
            .objects
            .iter()
            .filter_map(|o| Some(o.id.as_ref()?.key.as_ref()?.name.as_str()))
            .collect();
        assert_eq!(names, ["own"]);
        break;
    }
    // That of another node changes; this one hears nothing of it until the stream ends.
    bench.material("n2", material(&["infra/secret", "infra/second"], &[]));
    running.server.set_leading(Leading { leader: false, holder: "another".into() });
    let last = timeout(SOON, down.message()).await.expect("the end").unwrap().and_then(|down| down.body);
    assert!(matches!(last, Some(DownBody::Leader(_))), "{last:?}");
    assert_eq!(end(&mut down).await.code(), Code::Unavailable);
    running.stop().await;
}

/// A Gateway that n2 serves is what n2 says of it.
fn nothing_is_believed_of_gateways_elsewhere(told: &Agents, serving: &Serving) {
    let mark = Watermark { generation: 1, ..Watermark::default() };
    let expected = BTreeMap::from([(key("infra/inner"), Expected { mark, every_node: true })]);
    let said = feedback(&expected, serving, told, Timestamp::now());
    assert_eq!(said.unbound.len(), 0, "{:?}", said.unbound);
    let pending = said.pending.get(&key("infra/inner")).map(|why| why.to_string());
    assert_eq!(pending.as_deref(), Some("no node serves it: no agent of its nodes is connected"));
}
