use super::*;
use crate::echo::{self, EchoArgs};

/// An address of this test program alone, so that its ports are nobody else's.
fn serve(host: u8) -> std::net::Ipv4Addr {
    let ip = std::net::Ipv4Addr::new(127, 61, 0, host);
    tokio::spawn(async move {
        let args = EchoArgs { name: "e".into(), http: Some(8080), tcp: Some(9000), ..EchoArgs::default() };
        echo::serve_on(ip.into(), args).await.unwrap();
    });
    ip
}

fn args(ip: std::net::Ipv4Addr, port: u16) -> CallArgs {
    CallArgs {
        url: format!("http://{ip}:{port}/").parse().unwrap(),
        protocol: Protocol::Http,
        host: None,
        headers: vec!["x-a: b".into()],
        count: 20,
        connections: 2,
        rate: None,
        no_keepalive: false,
        until_eof: false,
        changes: false,
        number: None,
        report: None,
    }
}

async fn check(host: u8, protocol: Protocol, port: u16, codes: u64, messages: u64) {
    let args = CallArgs { protocol, ..args(serve(host), port) };
    // Until the server listens.
    let deadline = Instant::now() + Duration::from_secs(30);
    let tally = loop {
        let tally = run(args.clone()).await.unwrap();
        if tally.bad() == 0 || Instant::now() > deadline {
            break tally;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((tally.codes.get(&200).copied().unwrap_or(0), tally.messages), (codes, messages), "{tally:?}");
    assert_eq!((tally.opened, tally.resets, tally.bad()), (2, 0, 0), "{tally:?}");
}

#[tokio::test]
async fn each_protocol_is_answered_over_kept_connections() {
    check(1, Protocol::Http, 8080, 20, 0).await;
    check(2, Protocol::Grpc, 8080, 0, 20).await;
    check(3, Protocol::Tcp, 9000, 0, 20).await;
}

#[tokio::test]
async fn a_server_that_ends_answers_what_it_has_taken_and_takes_no_more() {
    let ip = std::net::Ipv4Addr::new(127, 61, 0, 4);
    let log = tempfile::NamedTempFile::new().unwrap();
    let server =
        EchoArgs { http: Some(8080), answer_after: 300, log: Some(log.path().into()), ..EchoArgs::default() };
    let ending = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn(echo::serve_until(ip.into(), server, ending.clone()));
    let deadline = Instant::now() + Duration::from_secs(30);
    while tokio::net::TcpStream::connect((ip, 8080)).await.is_err() && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let one = CallArgs { count: 1, connections: 1, number: Some("p".into()), ..args(ip, 8080) };
    let calling = tokio::spawn(run(one.clone()));
    while std::fs::read_to_string(log.path()).unwrap().is_empty() && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    ending.cancel();
    let tally = calling.await.unwrap().unwrap();
    assert_eq!((tally.good(), tally.bad()), (1, 0), "{tally:?}");
    assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "taken p-0\n");
    serving.await.unwrap().unwrap();
    let tally = run(one).await.unwrap();
    assert_eq!((tally.bad(), &tally.lost[..]), (1, &[0][..]), "{tally:?}");
}
