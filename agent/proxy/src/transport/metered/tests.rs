use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Outside of a turn nothing stops it; within one, what is over waits for the next.
#[tokio::test]
async fn stops_when_the_turn_is_over() {
    let (io, mut other) = tokio::io::duplex(1 << 20);
    let mut io = Metered(io);
    io.write_all(&[1; 100_000]).await.unwrap();
    turn::begin(40_000);
    let wrote = io.write(&[2; 100_000]).await.unwrap();
    assert_eq!(wrote, 40_000);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(Pin::new(&mut io).poll_write(&mut cx, b"3").is_pending());
    let slices = [IoSlice::new(&[4; 30_000]), IoSlice::new(&[5; 30_000])];
    assert!(Pin::new(&mut io).poll_write_vectored(&mut cx, &slices).is_pending());
    turn::begin(40_000);
    // A duplex stream writes the first slice only.
    assert!(matches!(
        Pin::new(&mut io).poll_write_vectored(&mut cx, &slices),
        Poll::Ready(Ok(n)) if n <= 40_000
    ));
    turn::begin(10);
    other.write_all(&[6; 1000]).await.unwrap();
    let mut buf = [0; 1000];
    assert_eq!(io.read(&mut buf).await.unwrap(), 1000);
    let mut buf = ReadBuf::new(&mut buf);
    assert!(Pin::new(&mut io).poll_read(&mut cx, &mut buf).is_pending());
    turn::end();
}
