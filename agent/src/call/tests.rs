use super::*;
use crate::echo::{self, EchoArgs};

/// An address of this test program alone, so that its ports are nobody else's.
fn serve(host: u8) -> std::net::Ipv4Addr {
    let ip = std::net::Ipv4Addr::new(127, 61, 0, host);
    tokio::spawn(async move {
        let args =
            EchoArgs { name: "e".into(), http: Some(8080), tcp: Some(9000), banner: None, forward: None };
        echo::serve_on(ip.into(), args).await.unwrap();
    });
    ip
}

async fn check(host: u8, protocol: Protocol, port: u16, codes: u64, messages: u64) {
    let ip = serve(host);
    let args = CallArgs {
        url: format!("http://{ip}:{port}/").parse().unwrap(),
        protocol,
        host: None,
        headers: vec!["x-a: b".into()],
        count: 20,
        connections: 2,
        rate: None,
        no_keepalive: false,
        until_eof: false,
        changes: false,
        report: None,
    };
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
