use super::*;
use crate::share::pause;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::model::ObjectKey;

/// The handshake's stand-in: what it leaves behind is the socket alone.
impl Moves for Metered<Socket> {
    fn socket(&mut self) -> &mut Socket {
        &mut self.0
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

fn tenant(name: &str) -> ShareKey {
    ShareKey::Pod(ObjectKey::new("shop", name))
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_connection_moves_there_and_back() {
    let stop = CancellationToken::new();
    let (handshakes, thread) = Handshakes::start(stop.clone()).unwrap();
    let (mut client, server) = pair().await;
    let here = std::thread::current().id();
    let shaken = handshakes.run(tenant("a"), server, move |mut io| async move {
        assert_ne!(std::thread::current().id(), here);
        let mut hello = [0; 5];
        io.read_exact(&mut hello).await?;
        io.write_all(&hello).await?;
        Ok(io)
    });
    let hello = async {
        client.write_all(b"hello, early").await.unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hello");
    };
    let (shaken, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(shaken, hello) }).await.unwrap();
    let mut io = shaken.unwrap();
    // Registered with this runtime now: what is left of before, and what comes later.
    let mut rest = [0; 7];
    io.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b", early");
    let later = async { client.write_all(b"later").await.unwrap() };
    let mut rest = [0; 5];
    let (read, ()) = tokio::join!(io.read_exact(&mut rest), later);
    assert_eq!((read.unwrap(), &rest), (5, b"later"));
    assert_eq!(handshakes.inline(), 0);
    stop.cancel();
    thread.join().unwrap();
}

#[tokio::test]
async fn a_handshake_ends_with_who_waits_for_it_and_its_errors_come_back() {
    let stop = CancellationToken::new();
    let (handshakes, thread) = Handshakes::start(stop.clone()).unwrap();
    let (mut client, server) = pair().await;
    let stalled = handshakes.run(tenant("a"), server, |io| async move {
        std::future::pending::<()>().await;
        Ok(io)
    });
    {
        let mut stalled = pin!(stalled);
        assert!(futures_util::poll!(stalled.as_mut()).is_pending());
    }
    // The other end sees that the connection has gone with it.
    let read = tokio::time::timeout(PATIENCE, client.read(&mut [0; 1])).await.unwrap();
    assert_eq!(read.unwrap(), 0);

    let (_client, server) = pair().await;
    let failed = handshakes.run(tenant("a"), server, |_: Metered<Socket>| async move {
        Err::<Metered<Socket>, _>(io::Error::other("who are you?"))
    });
    let failed = tokio::time::timeout(PATIENCE, failed).await.unwrap();
    assert_eq!(failed.unwrap_err().to_string(), "who are you?");

    stop.cancel();
    thread.join().unwrap();
    let (_client, server) = pair().await;
    let over = handshakes.run(tenant("a"), server, |io| async move { Ok(io) }).await;
    // The thread is gone: done here.
    assert!(over.is_ok());
    assert_eq!(handshakes.inline(), 1);
}

/// A flood waits behind its own tenant: another one's handshake is done before the flood is.
#[tokio::test]
async fn tenants_take_turns() {
    let stop = CancellationToken::new();
    let (handshakes, thread) = Handshakes::start(stop.clone()).unwrap();
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut clients = Vec::new();
    // Holds the thread until everybody has come: what is tested is the order, not who is faster.
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let (client, server) = pair().await;
    clients.push(client);
    let held = handshakes.run(tenant("gate"), server, |io| async move {
        gate.recv_timeout(PATIENCE).unwrap();
        Ok(io)
    });
    let mut all = Vec::new();
    for name in std::iter::repeat_n("flood", 100).chain(["one"]) {
        let (client, server) = pair().await;
        clients.push(client);
        let order = order.clone();
        all.push(handshakes.run(tenant(name), server, move |io| async move {
            // Twenty steps, each as long as a slice.
            for _ in 0..20 {
                let end = std::time::Instant::now() + Duration::from_micros(100);
                while std::time::Instant::now() < end {}
                pause().await;
            }
            order.lock().push(name);
            Ok(io)
        }));
    }
    let all = async {
        let mut all = pin!(futures_util::future::join_all(all));
        assert!(futures_util::poll!(all.as_mut()).is_pending());
        open.send(()).unwrap();
        all.await
    };
    let (held, done) = tokio::time::timeout(PATIENCE, async { tokio::join!(held, all) }).await.unwrap();
    assert!(held.is_ok() && done.iter().all(Result::is_ok));
    let order = order.lock();
    // All of the flood's steps come round once before the first of its handshakes ends; the other one's need no more
    // than one turn of the flood's each.
    let before = order.iter().position(|name| *name == "one").unwrap();
    assert!(before < 10, "after {before} of the flood's 100");
    stop.cancel();
    thread.join().unwrap();
}
