//! Messages arrive as they were sent, or are refused: never as something else.

use super::support::*;
use crate::http::Entrance;
use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::{io, net::SocketAddr, rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_core::config::{AppProtocol, MirrorTarget};

/// An upstream that answers everything.
async fn willing() -> App {
    // hyper's HTTP/2 server would send the body of an answer to HEAD.
    App::start(|seen, _| {
        Box::pin(async move { text(200, if seen.method == "HEAD" { "" } else { "answer" }) })
    })
    .await
}

/// `app` behind a Gateway, and as a Service without routes.
fn both(app: &App, protocol: AppProtocol) -> [(&'static str, Rc<Bed>, Entrance); 2] {
    let world = || {
        let mut world = World::default();
        let service = world.service(backend("app", protocol), &[app.addr]);
        (world, service)
    };
    let ((at_edge, edge), (in_mesh, mesh)) = (world(), world());
    let routes = vec![(None, vec![(prefix("/"), rule(to(&edge)))])];
    [
        ("gateway", Bed::new(at_edge.gateway(routes)), at_gateway()),
        ("mesh", Bed::new(in_mesh.frontend(&mesh, None)), Entrance::Mesh { frontend: FRONTEND.into() }),
    ]
}

/// C1: what has no length is a body all the same, whatever the method.
#[test]
fn a_body_of_get_and_head_without_a_length_arrives() {
    run(async {
        for protocol in [AppProtocol::Http, AppProtocol::H2c] {
            let app = willing().await;
            for (place, bed, entrance) in both(&app, protocol) {
                let addr = bed.listen(entrance, None).await;
                for method in ["GET", "HEAD", "POST"] {
                    let request = format!(
                        "{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
                    );
                    assert_eq!(parse(&raw(addr, &request).await).0, 200, "{place} {method}");
                    let seen = app.last();
                    assert_eq!(
                        (&*seen.method, &seen.body[..]),
                        (method, &b"body"[..]),
                        "{place} {protocol:?}"
                    );
                    let data = stream::iter([Ok::<_, io::Error>(Frame::data(Bytes::from("of http/2")))]);
                    let request = Request::builder().method(method).uri("http://a/");
                    let request = request.body(StreamBody::new(data).boxed_unsync()).unwrap();
                    let answer = h2_client(addr).await.send_request(request).await;
                    let answer = answer.unwrap_or_else(|e| panic!("{place} {method} {protocol:?}: {e:?}"));
                    assert_eq!(answer.status(), 200, "{place} {method}");
                    let seen = app.last();
                    assert_eq!(
                        (&*seen.method, &seen.body[..]),
                        (method, &b"of http/2"[..]),
                        "{place} {protocol:?}"
                    );
                }
            }
        }
    });
}

/// C1: a copy is a message, too.
#[test]
fn a_mirrored_get_keeps_its_body() {
    run(async {
        let (app, copy) = (willing().await, willing().await);
        let mut world = World::default();
        let primary = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mirror = world.service(backend("copy", AppProtocol::Http), &[copy.addr]);
        let mut rule = rule(to(&primary));
        rule.filters.mirrors = vec![Arc::new(MirrorTarget { backend: mirror, numerator: 1, denominator: 1 })];
        let bed = Bed::new(world.frontend(&primary, Some(vec![(prefix("/"), rule)])));
        let request = "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        assert_eq!(parse(&raw(bed.mesh().await, request).await).0, 200);
        while copy.count() == 0 {
            tokio::task::yield_now().await;
        }
        for app in [app, copy] {
            assert_eq!((&*app.last().method, &app.last().body[..]), ("GET", &b"body"[..]));
        }
    });
}

/// Sends, ends its side, and reads to the end.
async fn and_fin(addr: SocketAddr, request: &[u8]) -> String {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(request).await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// C2: `nc -N`, BusyBox's wget.
#[test]
fn who_sends_a_request_and_then_fin_is_answered() {
    run(async {
        // The answer begins well after the FIN has been seen.
        let app = App::start(|_, _| {
            Box::pin(async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                text(200, "answer")
            })
        })
        .await;
        for (place, bed, entrance) in both(&app, AppProtocol::Http) {
            for version in [None, Some(crate::http::HttpVersion::Http1)] {
                let addr = bed.listen(entrance.clone(), version).await;
                for request in [
                    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
                    "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
                    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
                ] {
                    let answer = and_fin(addr, request.as_bytes()).await;
                    assert_eq!(parse(&answer), (200, "answer".into()), "{place} {request}");
                }
                // Two at once: both are answered, in order.
                let two = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
                let answer = and_fin(addr, two.as_bytes()).await;
                assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{place} {answer}");
                // Half a body is none: nobody is told that it came whole.
                let half = "POST /half HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nbody";
                let answer = and_fin(addr, half.as_bytes()).await;
                assert_ne!(parse(&answer).0, 200, "{place} {answer}");
                assert_ne!(app.last().uri, "/half", "{place}");
            }
        }
    });
}
