//! Signs of life on a paused clock, over HTTP/2 in memory.

use super::*;
use crate::{
    telemetry::{Telemetry, TelemetryConfig},
    transport::{
        stream::TunnelStream,
        tunnel::{OpenError, State, Tunnel},
    },
};
use http::{HeaderMap, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::LocalSet,
};
use weft_core::{balance::Standing, model::SpiffeId};

/// A wire that can be frozen: what is written is taken, and nothing comes out at the other end.
#[derive(Clone, Default)]
struct Wire {
    frozen: Rc<Cell<bool>>,
    thawed: Rc<Notify>,
    /// Bytes that came out at the far end.
    arrived: Rc<Cell<usize>>,
}

impl Wire {
    fn new() -> (Self, DuplexStream, DuplexStream) {
        let wire = Self::default();
        let (near, near_end) = duplex(1 << 20);
        let (far_end, far) = duplex(1 << 20);
        let (near_read, near_write) = tokio::io::split(near_end);
        let (far_read, far_write) = tokio::io::split(far_end);
        tokio::task::spawn_local(wire.clone().relay(near_read, far_write, wire.arrived.clone()));
        tokio::task::spawn_local(wire.clone().relay(far_read, near_write, Rc::default()));
        (wire, near, far)
    }

    async fn relay(
        self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        count: Rc<Cell<usize>>,
    ) {
        let mut buf = vec![0; 64 * 1024];
        while let Ok(n) = from.read(&mut buf).await {
            while self.frozen.get() {
                self.thawed.notified().await;
            }
            count.set(count.get() + n);
            if n == 0 || to.write_all(&buf[..n]).await.is_err() {
                return;
            }
        }
    }

    fn freeze(&self) {
        self.frozen.set(true);
    }

    fn thaw(&self) {
        self.frozen.set(false);
        self.thawed.notify_waiters();
    }
}

/// A tunnel to a peer that takes every CONNECT and echoes what comes on it.
struct Bed {
    tunnel: Rc<Tunnel>,
    wire: Wire,
}

impl Bed {
    async fn new(node: Option<Rc<Node>>) -> Self {
        let (wire, near, far) = Wire::new();
        tokio::task::spawn_local(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                // The client may have given up.
                let Ok(send) = respond.send_response(Response::new(()), false) else { continue };
                let stream = TunnelStream::new(send, request.into_body(), None);
                tokio::task::spawn_local(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let identity = Rc::new(SpiffeId::new("cluster.local", "shop", "b"));
        let (tunnel, driver) = Tunnel::establish(near, identity, node, std::future::pending()).await.unwrap();
        tokio::task::spawn_local(driver);
        Self { tunnel, wire }
    }

    async fn open(&self) -> Result<TunnelStream, OpenError> {
        self.tunnel.reserve(false).open("10.0.0.1:80".parse().unwrap(), &HeaderMap::new()).await
    }
}

/// Runs with a clock that moves on as soon as nothing else can.
async fn local<T>(work: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(work).await
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn echo(stream: &mut TunnelStream) -> io::Result<()> {
    stream.write_all(b"ping").await?;
    stream.read_exact(&mut [0; 4]).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_gives_up_a_silent_peer_within_a_second() {
    local(async {
        for idle in [0, 7_000, 100_000] {
            let bed = Bed::new(None).await;
            tokio::time::sleep(ms(idle)).await;
            bed.wire.freeze();
            let begin = Instant::now();
            assert!(matches!(bed.open().await, Err(OpenError::Silent)));
            assert!(begin.elapsed() <= ms(1100), "{:?} after {idle} ms", begin.elapsed());
            assert!(bed.tunnel.is_suspect() && bed.tunnel.state() == State::Open);
            bed.wire.thaw();
            assert!(bed.tunnel.pulse_settles().await);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_is_let_go_and_what_is_established_stays() {
    local(async {
        let bed = Bed::new(None).await;
        let mut stream = bed.open().await.unwrap();
        for waited in [0, 300, 30_000] {
            let lost = bed.tunnel.lost();
            tokio::time::sleep(ms(waited)).await;
            bed.wire.freeze();
            let begin = Instant::now();
            lost.await;
            assert!((ms(1100)..ms(2000)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
            // Ten seconds later the link is there again.
            tokio::time::sleep(ms(10_000)).await;
            bed.wire.thaw();
            echo(&mut stream).await.unwrap();
            assert!(bed.tunnel.pulse_settles().await);
            drop(bed.open().await.unwrap());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_for_long_takes_its_streams_along() {
    local(async {
        let bed = Bed::new(None).await;
        let mut stream = bed.open().await.unwrap();
        bed.wire.freeze();
        let begin = Instant::now();
        assert!(stream.read(&mut [0; 1]).await.is_err());
        assert!((ms(20_000)..ms(32_000)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
        assert_eq!(bed.tunnel.state(), State::Retired);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_application_is_waited_for_at_two_pings_a_second() {
    local(async {
        let bed = Bed::new(None).await;
        let before = bed.wire.arrived.get();
        assert!(tokio::time::timeout(ms(60_000), bed.tunnel.lost()).await.is_err(), "never lost");
        let pings = (bed.wire.arrived.get() - before) / 17;
        assert!((60..=130).contains(&pings), "{pings}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_sends_a_ping_each_ten_seconds() {
    local(async {
        let bed = Bed::new(None).await;
        let _stream = bed.open().await.unwrap();
        tokio::time::sleep(ms(1000)).await;
        let before = bed.wire.arrived.get();
        tokio::time::sleep(ms(60_000)).await;
        let pings = (bed.wire.arrived.get() - before) / 17;
        assert!((5..=6).contains(&pings), "{pings}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_suspected_when_all_of_its_tunnels_are_silent() {
    local(async {
        let telemetry = Telemetry::detached(TelemetryConfig::default()).unwrap();
        let nodes = crate::nodes::Nodes::new(telemetry.worker(), None);
        let node = nodes.get(&"node-b".into());
        let standing = || node.standing(Instant::now().into_std());
        let (one, other) = (Bed::new(Some(node.clone())).await, Bed::new(Some(node.clone())).await);
        // A pod is gone, its node is not. Nobody uses the other tunnel: it is asked.
        one.wire.freeze();
        assert!(matches!(one.open().await, Err(OpenError::Silent)));
        assert_eq!(standing(), Standing::In);
        // The node follows its pod, which is silent already.
        tokio::time::sleep(ms(5_000)).await;
        assert_eq!(standing(), Standing::In);
        other.wire.freeze();
        tokio::time::sleep(ms(3_500)).await;
        assert_eq!(standing(), Standing::Out);
        other.wire.thaw();
        one.wire.thaw();
        assert!(one.tunnel.pulse_settles().await);
        // The node is gone.
        one.wire.freeze();
        other.wire.freeze();
        assert!(matches!(one.open().await, Err(OpenError::Silent)));
        assert_eq!(standing(), Standing::Out);
        tokio::time::sleep(ms(10_000)).await;
        assert_eq!(standing(), Standing::Out, "for as long as it is silent");
        other.wire.thaw();
        assert!(other.tunnel.pulse_settles().await);
        assert_eq!(standing(), Standing::In, "back with its first sign of life");
        assert!(telemetry.render_metrics(false).contains("weft_node_suspicions_total 2"));
    })
    .await;
}
