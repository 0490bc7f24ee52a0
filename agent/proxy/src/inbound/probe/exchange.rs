//! The one request of a plain HTTP probe, and its answer.

use super::{Probing, denied, redirects};
use crate::{error::ProxyError, transport::connect::reset_on_close};
use bytes::BytesMut;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::model::Str;

/// The beginning of an answer that is read for where it leads.
const ANSWER_HEAD_MAX: usize = 16 * 1024;
/// Room for one read of an answer.
const READ: usize = 16 * 1024;
/// A `preStop` handler may take as long as the pod's grace period. This only ends what nobody waits for any more.
const EXCHANGE_MAX: Duration = Duration::from_secs(3600);

/// A request that is declared.
pub(super) struct Declared {
    /// As the application is to see it.
    pub(super) forward: Vec<u8>,
    pub(super) target: String,
    pub(super) headers: Vec<(Str, Str)>,
    pub(super) depth: u8,
}

/// Sends the request, and passes back whatever is answered. The client's direction is shut: a byte that it sends ends the
/// connection.
pub(super) async fn serve(probing: &mut Probing<'_>, request: Declared) -> Result<(), ProxyError> {
    let mut application = probing.application().await?;
    let running = async {
        // A client that goes away meanwhile, and an application that resets, end a probe in its ordinary way: the kubelet
        // has seen it too.
        if application.write_all(&request.forward).await.is_err() {
            return Ok(());
        }
        probing.received += request.forward.len() as u64;
        let mut answer = Some(BytesMut::new());
        let mut buffer = BytesMut::with_capacity(READ);
        let mut byte = [0];
        loop {
            buffer.reserve(READ);
            tokio::select! {
                read = application.read_buf(&mut buffer) => match read {
                    Ok(n) if n > 0 => {}
                    Ok(_) => {
                        learn(probing, &request, answer.take());
                        let _ = probing.downstream.shutdown().await; // it may be gone
                        return Ok(());
                    }
                    Err(_) => {
                        reset_on_close(probing.downstream);
                        return Ok(());
                    }
                },
                read = probing.downstream.read(&mut byte) => return match read {
                    Ok(n) if n > 0 => Err(denied("a second request on the connection of a probe")),
                    _ => Ok(()),
                },
            }
            if let Some(head) = &mut answer {
                head.extend_from_slice(&buffer);
                let whole = head.windows(4).any(|four| four == b"\r\n\r\n");
                // Before the kubelet has it, or it would be faster than we are.
                if whole || head.len() >= ANSWER_HEAD_MAX {
                    learn(probing, &request, answer.take());
                }
            }
            probing.sent += buffer.len() as u64;
            if probing.downstream.write_all_buf(&mut buffer).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(EXCHANGE_MAX, running).await.unwrap_or(Ok(()))
}

fn learn(probing: &Probing<'_>, request: &Declared, answer: Option<BytesMut>) {
    let Some(answer) = answer else { return };
    let next = redirects::follow(&answer, probing.to, &request.target, &request.headers, request.depth);
    if let Some((port, asked)) = next {
        let pod = &probing.pod.source.workload.pod;
        probing.worker.shared.redirects.learn(pod, port, asked, Instant::now());
    }
}
