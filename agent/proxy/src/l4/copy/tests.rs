use super::*;
use crate::l4::pipe::Plain;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
};

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// A copy between two in-memory streams; gives the outer ends.
fn in_memory(
    early: &'static [u8],
    drain: Drain,
) -> (DuplexStream, DuplexStream, impl Future<Output = Copied>) {
    let (client, downstream) = duplex(64);
    let (upstream, server) = duplex(64);
    let copying = async move {
        let buffers = Buffers::new(usize::MAX, None);
        bidirectional(Plain(downstream), Plain(upstream), Bytes::from_static(early), (&drain, &buffers)).await
    };
    (client, server, copying)
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (mut client, mut server, copying) = in_memory(b"early ", Drain::new());
    let client = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let server = async {
        let mut question = String::new();
        // Ends only because the client's end is passed on while its other direction is open.
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        question
    };
    let (answer, question, copied) = tokio::join!(client, server, copying);
    assert_eq!((&*question, &*answer), ("early question", "answer"));
    assert_eq!((copied.received, copied.sent), (14, 6));
    assert!(matches!(copied.end, End::Clean));
}

#[tokio::test(start_paused = true)]
async fn no_silence_of_a_copy_is_too_long() {
    let (mut client, mut server, copying) = in_memory(b"", Drain::new());
    let talking = async {
        let mut got = [0; 4];
        for _ in 0..2 {
            tokio::time::sleep(std::time::Duration::from_secs(24 * 3600)).await;
            client.write_all(b"ping").await.unwrap();
            server.read_exact(&mut got).await.unwrap();
            server.write_all(b"pong").await.unwrap();
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"pong");
        }
        drop((client, server));
    };
    let ((), copied) = tokio::join!(talking, copying);
    assert_eq!((copied.received, copied.sent), (8, 8));
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    let (client, downstream) = tcp_pair().await;
    let (upstream, mut server) = tcp_pair().await;
    let drain = Drain::new();
    let buffers = Buffers::new(usize::MAX, None);
    let copying = bidirectional(downstream, upstream, Bytes::new(), (&drain, &buffers));
    let resetting = async {
        crate::transport::connect::reset_on_close(&client);
        drop(client);
        server.read(&mut [0; 1]).await
    };
    let (copied, read) = tokio::join!(copying, resetting);
    assert!(matches!(copied.end, End::Downstream(_)), "{copied:?}");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_passed_deadline_ends_a_copy() {
    let drain = Drain::new();
    let (_client, _server, copying) = in_memory(b"", drain.clone());
    drain.begin();
    let mut copying = std::pin::pin!(copying);
    assert!(futures_util::poll!(copying.as_mut()).is_pending(), "an opaque stream outlives the first step");
    drain.end_now();
    assert!(matches!(copying.await.end, End::Expired));
}

/// What happens on a connection before and during a drain of 25 seconds, a letter each: `c` the client speaks, `s` the
/// server, `.` half a second passes, `F` the client ends its direction, `B` the server says more than is taken. Gives when
/// and how it is ended.
async fn drained(history: &str) -> (u128, End) {
    let drain = Drain::new();
    let (mut client, mut server, copying) = in_memory(b"", drain.clone());
    let talking = async move {
        let mut word = [0; 1];
        for step in history.chars() {
            match step {
                'c' => {
                    client.write_all(b"c").await.unwrap();
                    server.read_exact(&mut word).await.unwrap();
                }
                's' => {
                    server.write_all(b"s").await.unwrap();
                    client.read_exact(&mut word).await.unwrap();
                }
                '.' => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
                'F' => {
                    client.shutdown().await.unwrap();
                    assert_eq!(server.read(&mut word).await.unwrap(), 0);
                }
                // More than the pipe to the client holds.
                _ => server.write_all(&[0; 96]).await.unwrap(),
            }
        }
        if history.ends_with(['F', 'B']) {
            return std::future::pending().await;
        }
        // Whoever is told of an end ends, too.
        let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
        let (_, _) = tokio::join!(client.read_to_end(&mut from_server), server.read_to_end(&mut from_client));
    };
    let begin = tokio::time::Instant::now();
    let copying = async {
        let copied = copying.await;
        (begin.elapsed().as_millis(), copied.end)
    };
    let draining = drain.run(std::time::Duration::from_secs(25), std::future::pending());
    let others = async { tokio::join!(talking, draining) };
    tokio::select! {
        biased;
        ended = copying => ended,
        _ = others => unreachable!("a copy outlives its drain"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_what_is_quiet_and_cuts_what_may_be_under_way() {
    let seconds = |n: usize| ".".repeat(2 * n);
    let often = "cs.".repeat(44);
    for (history, quiet, from, to) in [
        (String::new(), true, 20_000, 20_010),
        ("cscs".to_owned(), true, 20_000, 20_010),
        // In a pause of its client, once those that are asked for have become as short.
        (often, true, 21_000, 23_500),
        // It speaks at 20 s, and rests then.
        ("cs".to_owned() + &seconds(19) + ".c.s", true, 20_500, 22_000),
        // A request that is not answered.
        ("c".to_owned(), false, 25_000, 25_000),
        ("cscsc".to_owned(), false, 25_000, 25_000),
        ("cs".to_owned() + &seconds(21) + "c", false, 25_000, 25_000),
        // An answer whose end nobody knows.
        ("cs".to_owned(), false, 25_000, 25_000),
        ("s".to_owned(), false, 25_000, 25_000),
        ("cscsF".to_owned(), false, 25_000, 25_000),
        ("cscsB".to_owned(), false, 25_000, 25_000),
    ] {
        let (at, end) = drained(&history).await;
        assert_eq!(matches!(end, End::Quiet), quiet, "{history}: {end:?} at {at}");
        assert!(quiet || matches!(end, End::Expired), "{history}: {end:?}");
        assert!((from..=to).contains(&at), "{history}: at {at}");
    }
}

/// 80 ms from an answer to the next request, 5 ms from that to its answer.
#[tokio::test(start_paused = true)]
async fn an_end_comes_long_before_the_next_request() {
    let drain = Drain::new();
    let (mut client, mut server, copying) = in_memory(b"", drain.clone());
    let ms = std::time::Duration::from_millis;
    let asking = async move {
        let mut word = [0; 1];
        let mut answered = tokio::time::Instant::now();
        loop {
            // What is read here is the end, between two requests.
            if let Ok(end) = tokio::time::timeout(ms(80), client.read(&mut word)).await {
                assert_eq!(end.unwrap(), 0);
                return answered.elapsed();
            }
            client.write_all(b"?").await.unwrap();
            assert_eq!(client.read(&mut word).await.unwrap(), 1, "a request is lost");
            answered = tokio::time::Instant::now();
        }
    };
    let answering = async move {
        let mut word = [0; 1];
        while server.read(&mut word).await.unwrap() > 0 {
            tokio::time::sleep(ms(5)).await;
            server.write_all(b"!").await.unwrap();
        }
    };
    let draining = drain.run(ms(25_000), std::future::pending());
    let (after, (), copied, _) = tokio::join!(asking, answering, copying, draining);
    assert!(matches!(copied.end, End::Quiet), "{copied:?}");
    assert!(after <= ms(30), "{after:?} after the last answer");
}

#[tokio::test]
async fn bulk_arrives_whole_both_ways_at_once() {
    let (client, downstream) = tcp_pair().await;
    let (upstream, server) = tcp_pair().await;
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
    let push = |io: TcpStream| {
        let data = data.clone();
        async move {
            let (mut read, mut write) = io.into_split();
            let mut got = Vec::new();
            let sending = async {
                write.write_all(&data).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let (_, read) = tokio::join!(sending, read.read_to_end(&mut got));
            read.unwrap();
            got == data
        }
    };
    let drain = Drain::new();
    let buffers = Buffers::new(usize::MAX, None);
    let (a, b, copied) = tokio::join!(
        push(client),
        push(server),
        bidirectional(downstream, upstream, Bytes::new(), (&drain, &buffers))
    );
    assert!(a && b);
    assert_eq!((copied.received, copied.sent), (3_000_000, 3_000_000));
}

#[test]
fn reads_grow_with_a_bulk_flow_and_shrink_after_it() {
    let mut size = ReadSize::default();
    let mut seen = vec![size.get()];
    for n in [16 << 10, 64 << 10, 256 << 10, 256 << 10, 100, 100, 100, 100, 100] {
        size.learn(n);
        seen.push(size.get());
    }
    let kib: Vec<_> = seen.iter().map(|n| n >> 10).collect();
    assert_eq!(kib, [16, 64, 256, 256, 256, 128, 64, 32, 16, 16]);
}

/// What a source gives, in order; `None`: nothing yet. What a sink was given, as text.
#[derive(Default)]
struct Scripted {
    script: Vec<Option<io::Result<usize>>>,
    written: Vec<String>,
}

impl Pipe for Scripted {
    fn poll_fill(
        &mut self,
        _: &mut Context<'_>,
        into: &mut Chunks,
        _: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        let next = if self.script.is_empty() { None } else { self.script.remove(0) };
        match next {
            None => Poll::Pending,
            Some(Ok(n)) => {
                into.push(vec![0; n].into());
                Poll::Ready(Ok(n))
            }
            Some(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    fn poll_drain(&mut self, _: &mut Context<'_>, from: &mut Chunks, last: bool) -> Poll<io::Result<()>> {
        self.written.push(format!("{}{}", from.len(), if last { " and the end" } else { "" }));
        from.advance(from.len());
        Poll::Ready(Ok(()))
    }

    fn joins_end(&self) -> bool {
        true
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.written.push("end".to_owned());
        Poll::Ready(Ok(()))
    }

    fn abort(&mut self) {}
}

/// A server that answers and closes is told of in one frame, where that was two records and two packets.
#[test]
fn an_end_that_is_known_goes_with_the_last_bytes() {
    let check = |script: Vec<Option<io::Result<usize>>>, expected: &[&str], fails: bool| {
        let said = format!("{script:?}");
        let (mut source, mut sink) = (
            Scripted { script, ..Scripted::default() },
            Scripted { script: Vec::new(), ..Scripted::default() },
        );
        let buffers = Buffers::new(usize::MAX, None);
        let mut flow = Flow::new(&buffers);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut polled = Poll::Pending;
        for _ in 0..4 {
            polled = flow.poll(&mut source, &mut sink, &mut cx);
            if polled.is_ready() {
                break;
            }
        }
        assert_eq!(sink.written, expected, "{said}");
        assert_eq!(matches!(polled, Poll::Ready(Err(Failed::Source(_)))), fails, "{said}");
        assert!(fails || polled.is_ready(), "{said}");
    };
    let reset = || Some(Err(io::ErrorKind::ConnectionReset.into()));
    // The sink is told of its end once more, and knows that it has had it.
    check(vec![Some(Ok(3)), Some(Ok(0))], &["3 and the end", "end"], false);
    check(vec![Some(Ok(3)), None, Some(Ok(0))], &["3", "end"], false);
    check(vec![Some(Ok(3)), Some(Ok(2)), Some(Ok(0))], &["5", "end"], false);
    check(vec![Some(Ok(0))], &["end"], false);
    // One that filled the buffer is seldom the last.
    let full = ReadSize::default().get();
    check(vec![Some(Ok(full)), Some(Ok(0))], &["16384", "end"], false);
    check(vec![Some(Ok(3)), reset()], &["3"], true);
    check(vec![reset()], &[], true);
}
