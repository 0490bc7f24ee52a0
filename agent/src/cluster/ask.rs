//! Asks the agent or controller of this pod over its Unix socket: probes, and what `weft status` gets by exec.

use super::args::{AdminArgs, AdminCommand, HealthArgs};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use std::{io::Write as _, path::Path, process::ExitCode, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// Longest wait for a page.
const ANSWER: Duration = Duration::from_secs(5);

/// `weft health`: exit code 0 when the agent says that it is well.
///
/// # Errors
/// Why it is not.
pub fn health(args: &HealthArgs) -> Result<ExitCode> {
    let page = block_on(get(&args.socket, &format!("/{}", args.page)))?;
    super::show::out(String::from_utf8_lossy(&page).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// `weft admin get PATH`: the page on standard output.
///
/// # Errors
/// Why there is none.
pub fn admin(args: &AdminArgs) -> Result<ExitCode> {
    let AdminCommand::Get { page } = &args.command;
    let path = format!("/{}", page.trim_start_matches('/'));
    let page = block_on(get(&args.socket, &path))?;
    let _ = std::io::stdout().lock().write_all(&page); // nobody may be reading any more
    Ok(ExitCode::SUCCESS)
}

fn block_on<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        tokio::time::timeout(ANSWER, what)
            .await
            .with_context(|| format!("no answer in {} s", ANSWER.as_secs()))?
    })
}

async fn get(socket: &Path, path: &str) -> Result<Bytes> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("{}: nobody listens there", socket.display()))?;
    page(stream, path).await
}

/// A page over a stream to an agent.
pub(super) async fn page<S>(stream: S, path: &str) -> Result<Bytes>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", "agent").body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let page = response.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&page).trim());
        Ok(page)
    };
    // Driven here and not by a task: nothing outlives the question.
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        page = &mut answer => page,
        ended = &mut connection => {
            ended.context("the agent ended the connection")?;
            answer.await
        }
    }
}
