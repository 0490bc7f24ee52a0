//! Peers that do what they should not.

use std::io::Write;

use futures_util::StreamExt;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_prost::ProstCodec;

use super::*;
use crate::{
    client::connect,
    delta::Bounds,
    istio::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse},
    wire::{self, Up, UpBody},
};

pub(super) async fn channel(bench: &Bench) -> Channel {
    connect(bench.address(), &bench.roots(), "weft-controller.weft-system.svc", SOON).await.unwrap()
}

/// Opens a stream with a token and first messages.
pub(super) async fn open(
    channel: &Channel,
    token: &str,
    ups: Vec<Up>,
) -> Result<(mpsc::Sender<Up>, Streaming<wire::Down>), Status> {
    let (sender, receiver) = mpsc::channel(64);
    for up in ups {
        sender.send(up).await.unwrap();
    }
    let mut request = Request::new(ReceiverStream::new(receiver));
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<Up, wire::Down>::default();
    let opened = grpc.streaming(request, PathAndQuery::from_static(wire::CONNECT), codec);
    let down = timeout(SOON, opened).await.expect("an answer")?;
    Ok((sender, down.into_inner()))
}

pub(super) fn up(body: UpBody) -> Up {
    Up { body: Some(body) }
}

pub(super) fn hello(node: &str) -> Up {
    let hello = wire::Hello { protocol: 1, node: node.into(), ..wire::Hello::default() };
    up(UpBody::Hello(hello))
}

fn many_pods(count: usize, uid: usize) -> Up {
    let pods = (0..count).map(|i| wire::CapturedPod {
        pod: Some(wire::Key { namespace: "shop".into(), name: format!("web-{i}") }),
        uid: "u".repeat(uid),
        application: None,
        addresses: Vec::new(),
    });
    up(UpBody::Captured(wire::Captured { full: true, pods: pods.collect(), ..Default::default() }))
}

pub(super) async fn end(down: &mut Streaming<wire::Down>) -> Status {
    let ended = async {
        loop {
            match down.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without saying why"),
                Err(status) => return status,
            }
        }
    };
    timeout(SOON, ended).await.expect("the server ends the stream")
}

#[tokio::test]
async fn streams_that_begin_wrongly_are_refused() {
    let bench = Bench::new();
    let running = bench.serve(Limits::default());
    let channel = channel(&bench).await;
    let old = wire::Hello { protocol: 0, node: "n1".into(), ..wire::Hello::default() };
    let table: Vec<(&str, Vec<Up>, Code)> = vec![
        ("", vec![hello("n1")], Code::Unauthenticated),
        ("expired", vec![hello("n1")], Code::Unauthenticated),
        ("shop/web@n1", vec![hello("n1")], Code::PermissionDenied),
        ("agent@n1", vec![hello("n2")], Code::PermissionDenied),
        ("agent@n1", vec![up(UpBody::Heartbeat(wire::Heartbeat {}))], Code::InvalidArgument),
        ("agent@n1", vec![Up { body: None }], Code::InvalidArgument),
        ("agent@n1", vec![up(UpBody::Hello(old))], Code::FailedPrecondition),
    ];
    for (token, ups, code) in table {
        let said = format!("{token} {ups:?}");
        let refused = open(&channel, token, ups).await.err();
        assert_eq!(refused.as_ref().map(Status::code), Some(code), "{said}: {refused:?}");
    }
    assert_eq!(running.count("refused_other_node"), 1);
    assert_eq!(running.count("streams"), 0);
    running.stop().await;
    let running = bench.serve(Limits { hello: Duration::from_millis(50), ..Limits::default() });
    let silent = open(&self::channel(&bench).await, "agent@n1", vec![]).await;
    assert_eq!(silent.err().map(|status| status.code()), Some(Code::DeadlineExceeded));
    running.stop().await;
}

#[tokio::test]
async fn what_is_too_much_or_malformed_ends_only_its_own_stream() {
    let bench = Bench::new();
    let report = Bounds { entries: 100, bytes: 20_000 };
    let running = bench.serve(Limits { report, ..Limits::default() });
    let well_behaved = bench.client("n2");
    connected(&well_behaved).await;
    let channel = channel(&bench).await;
    let no_name = wire::Captured { pods: vec![wire::CapturedPod::default()], ..Default::default() };
    let bad_port = wire::GatewayApplied {
        gateway: Some(wire::Key { namespace: "infra".into(), name: "edge".into() }),
        unbound: vec![wire::Unbound { port: 70_000, ..Default::default() }],
        ..Default::default()
    };
    let bad_port = wire::Applied { gateways: vec![bad_port], ..Default::default() };
    let table: Vec<(Up, Code)> = vec![
        (many_pods(101, 1), Code::ResourceExhausted),
        (many_pods(100, 1000), Code::ResourceExhausted),
        (many_pods(4000, 1000), Code::OutOfRange), // larger than any message
        (up(UpBody::Captured(no_name)), Code::InvalidArgument),
        (up(UpBody::Applied(bad_port)), Code::InvalidArgument),
    ];
    for (message, code) in table {
        let (_sender, mut down) = open(&channel, "agent@n1", vec![hello("n1"), message]).await.unwrap();
        let status = end(&mut down).await;
        assert_eq!(status.code(), code, "{status:?}");
    }
    well_behaved.captured([(key("shop/web"), capture("u"))].into());
    until(&mut running.server.agents(), |agents| agents.get("n2").is_some_and(|a| a.captured.len() == 1))
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_silent_agent_is_let_go() {
    let bench = Bench::new();
    let running = bench.serve(Limits { quiet: Duration::from_millis(100), ..Limits::default() });
    let channel = channel(&bench).await;
    let (_sender, mut down) = open(&channel, "agent@n1", vec![hello("n1")]).await.unwrap();
    assert_eq!(end(&mut down).await.code(), Code::DeadlineExceeded);
    running.stop().await;
}

#[tokio::test]
async fn a_slow_reader_blocks_nobody_and_is_let_go() {
    let bench = Bench::new();
    let running = bench.serve(Limits { send: Duration::from_millis(500), ..Limits::default() });
    let big = |n: u8| {
        let maps = (0..64).map(|i| {
            let of = format!("infra/ca-{i}");
            (key(&of), config_map(&of, vec![n; 512 * 1024]))
        });
        Material { config_maps: maps.collect(), ..Material::default() }
    };
    bench.material("n1", big(1));
    let channel = channel(&bench).await;
    let (sender, down) = open(&channel, "agent@n1", vec![hello("n1")]).await.unwrap();
    let quick = bench.client("n2");
    connected(&quick).await;
    bench.material("n2", material(&["infra/cert"], &[]));
    until(&mut quick.material(), |m| m.secrets.len() == 1).await;
    running.until_counted("dropped_slow_reader", 1).await;
    drop((sender, down, channel));
    running.stop().await;
}

#[tokio::test]
async fn strangers_on_the_port_do_no_harm() {
    let bench = Bench::new();
    let running = bench.serve(Limits { step: Duration::from_millis(200), ..Limits::default() });
    let mut held = Vec::new();
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0xff, 0xff], &[0; 4096]] {
        let mut stream = std::net::TcpStream::connect(bench.address()).unwrap();
        let _ = stream.write_all(bytes);
        held.push(stream);
    }
    running.until_counted("dropped_handshake", 4).await;
    drop(held);
    running.stop().await;
}

#[tokio::test]
async fn certificate_requests_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    bench.pods(&[("shop/web-1", "web", "n1")]);
    let running = bench.serve(Limits::default());
    let channel = channel(&bench).await;
    let web = weft_certs::SpiffeId::new("cluster.local", "shop", "web");
    let mut elsewhere = IstioCertificateRequest::on_behalf("nonsense".into(), 60, &web);
    let field = elsewhere.metadata.as_mut().unwrap().fields.values_mut().next().unwrap();
    field.string = Some("spiffe://cluster.local/other/shape".into());
    let table = [
        (IstioCertificateRequest::on_behalf("nonsense".into(), 60, &web), Code::InvalidArgument),
        (IstioCertificateRequest::on_behalf("x".repeat(70_000), 60, &web), Code::OutOfRange),
        (elsewhere, Code::InvalidArgument),
        (IstioCertificateRequest::default(), Code::InvalidArgument),
    ];
    for (message, code) in table {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", "Bearer agent@n1".parse().unwrap());
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<_, IstioCertificateResponse>::default();
        let refused = grpc.unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE), codec).await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
    running.stop().await;
}

#[tokio::test]
async fn other_methods_do_not_exist() {
    let bench = Bench::new();
    let running = bench.serve(Limits::default());
    let mut grpc = tonic::client::Grpc::new(channel(&bench).await);
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<wire::Heartbeat, wire::Heartbeat>::default();
    let path = PathAndQuery::from_static("/weft.control.v1.Agents/Other");
    let refused = grpc.unary(Request::new(wire::Heartbeat {}), path, codec).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    // A stream that is dropped at once does no harm either.
    let (sender, down) = open(&channel(&bench).await, "agent@n1", vec![hello("n1")]).await.unwrap();
    drop(sender);
    let rest: Vec<_> = down.collect().await;
    assert!(!rest.is_empty(), "it was welcomed before");
    running.stop().await;
}
