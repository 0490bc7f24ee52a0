//! The one request of an HTTP or HTTPS probe, and its answer.

use super::{
    Line, Probing, denied,
    head::{Declared, Scheme},
    redirects, tls,
};
use crate::error::ProxyError;
use bytes::BytesMut;
use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The beginning of an answer that is read for where it leads.
const ANSWER_HEAD_MAX: usize = 16 * 1024;
/// Room for one read of an answer.
const READ: usize = 16 * 1024;
/// A `preStop` handler may take as long as the pod's grace period. This only ends what nobody waits for any more.
const EXCHANGE_MAX: Duration = Duration::from_secs(3600);

/// Sends the request by the scheme by which it came, and passes back whatever is answered.
pub(super) async fn serve<D: Line>(
    probing: &mut Probing<'_>,
    downstream: &mut D,
    request: &Declared,
) -> Result<(), ProxyError> {
    let clear = probing.application().await?;
    if request.scheme == Scheme::Http {
        return relay(probing, (downstream, clear), &request.forward, request).await;
    }
    if let Some(application) = tls::connect(probing, clear).await? {
        return relay(probing, (downstream, application), &request.forward, request).await;
    }
    let no_tls = || tls::failed("the application does not speak TLS".to_owned());
    let forward = request.in_clear.as_ref().ok_or_else(no_tls)?;
    let clear = probing.application().await?;
    relay(probing, (downstream, clear), forward, request).await
}

/// The client's direction is shut: a byte that it sends ends the connection.
async fn relay<D, A>(
    probing: &mut Probing<'_>,
    (downstream, mut application): (&mut D, A),
    forward: &[u8],
    request: &Declared,
) -> Result<(), ProxyError>
where
    D: Line,
    A: AsyncRead + AsyncWrite + Unpin,
{
    let running = async {
        // A client that goes away meanwhile, and an application that resets, end a probe in its ordinary way: the kubelet
        // has seen it too. That nothing could be written, reading tells better: TLS says why.
        if application.write_all(forward).await.is_ok() && application.flush().await.is_ok() {
            probing.received += forward.len() as u64;
        }
        let mut answer = Some(BytesMut::new());
        let mut buffer = BytesMut::with_capacity(READ);
        let mut byte = [0];
        loop {
            buffer.reserve(READ);
            tokio::select! {
                read = application.read_buf(&mut buffer) => match read {
                    Ok(n) if n > 0 => {}
                    Ok(_) => {
                        learn(probing, request, answer.take());
                        let _ = downstream.shutdown().await; // it may be gone
                        return Ok(());
                    }
                    // Ended without TLS's own end: so it ends for the kubelet too, which knows what to make of it.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                        learn(probing, request, answer.take());
                        return Ok(());
                    }
                    Err(error) => {
                        downstream.reset_on_close();
                        return tls::refusal(&error).map_or(Ok(()), Err);
                    }
                },
                read = downstream.read(&mut byte) => return match read {
                    Ok(n) if n > 0 => Err(denied("a second request on the connection of a probe")),
                    _ => Ok(()),
                },
            }
            if let Some(head) = &mut answer {
                head.extend_from_slice(&buffer);
                let whole = head.windows(4).any(|four| four == b"\r\n\r\n");
                // Before the kubelet has it, or it would be faster than we are.
                if whole || head.len() >= ANSWER_HEAD_MAX {
                    learn(probing, request, answer.take());
                }
            }
            probing.sent += buffer.len() as u64;
            if downstream.write_all_buf(&mut buffer).await.is_err() || downstream.flush().await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(EXCHANGE_MAX, running).await.unwrap_or(Ok(()))
}

fn learn(probing: &Probing<'_>, request: &Declared, answer: Option<BytesMut>) {
    let Some(answer) = answer else { return };
    if let Some((port, asked)) = redirects::follow(&answer, probing.to, request) {
        let pod = &probing.local.source.workload.pod;
        probing.worker.shared.redirects.learn(pod, port, asked, Instant::now());
    }
}
