//! The agent's end of `<runDir>/cni.sock`: one question per connection from `weft-cni`.

use crate::{
    holder::is_root,
    netns::Netns,
    wire::{Frame, FrameReader, Step, WireError},
};
use std::{io, os::fd::AsFd, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_cni::{
    protocol::{Command, PROTOCOL_VERSION, Request, Response, encode},
    spec::Code,
};

/// Calls at once: a node that boots starts all its pods together.
const MAX_CALLS: usize = 256;
/// The plugin sends its question at once and reads the answer at once.
const WIRE_DEADLINE: Duration = Duration::from_secs(5);
/// A little less than the plugin's own 20 s, so that it hears a reason.
const ANSWER_DEADLINE: Duration = Duration::from_secs(19);

/// A question, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) command: Command,
    /// The pod's namespace (ADD).
    pub(crate) netns: Option<Netns>,
    pub(crate) reply: oneshot::Sender<Response>,
}

/// Accepts until `stop`; calls in work are then dropped, and the plugin decides by its table.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CALLS));
    let tasks = TaskTracker::new();
    let accepting = async {
        loop {
            // Beyond the limit, calls wait in the accept queue.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    let stop = stop.clone();
                    tasks.spawn(async move {
                        let _permit = permit;
                        tokio::select! {
                            done = serve_one(stream, calls) => {
                                if let Err(error) = done {
                                    tracing::warn!(%error, "a CNI call went wrong");
                                }
                            }
                            () = stop.cancelled() => {}
                        }
                    });
                }
                // Out of descriptors: let those in work finish before the next try.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a CNI call");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve_one(mut stream: UnixStream, calls: mpsc::Sender<Call>) -> Result<(), WireError> {
    if !is_root(&stream) {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
    }
    let Some(frame) = timeout(WIRE_DEADLINE, read_frame(&stream)).await.map_err(timed_out)?? else {
        return Ok(());
    };
    let response = match question(frame) {
        Ok((command, netns)) => ask(command, netns, calls).await,
        Err(refused) => refused,
    };
    let answer = encode(&response)?;
    timeout(WIRE_DEADLINE, stream.write_all(&answer)).await.map_err(timed_out)??;
    Ok(())
}

fn question(mut frame: Frame) -> Result<(Command, Option<Netns>), Response> {
    let bad = |msg: String| refuse(Code::Undecodable, msg);
    let request: Request = frame.message().map_err(|e| bad(e.to_string()))?;
    if request.version != PROTOCOL_VERSION {
        return Err(bad(format!(
            "weft-cni speaks version {}, the agent version {PROTOCOL_VERSION}: reinstall the plugin",
            request.version
        )));
    }
    let netns = match request.command {
        Command::Add(_) => {
            let [fd] = frame.take_fds().map_err(|e| bad(e.to_string()))?;
            Some(Netns::from_fd(fd).map_err(|e| refuse(Code::InvalidEnvironment, e.to_string()))?)
        }
        _ => None,
    };
    Ok((request.command, netns))
}

async fn ask(command: Command, netns: Option<Netns>, calls: mpsc::Sender<Call>) -> Response {
    let (reply, answer) = oneshot::channel();
    if calls.try_send(Call { command, netns, reply }).is_err() {
        return refuse(Code::TryAgainLater, "the agent is busy".into());
    }
    match timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(response)) => response,
        _ => refuse(Code::TryAgainLater, "the agent did not get it done in time".into()),
    }
}

pub(crate) const fn refuse(code: Code, msg: String) -> Response {
    Response::Refused { code: code as u32, msg, details: String::new() }
}

async fn read_frame(stream: &UnixStream) -> Result<Option<Frame>, WireError> {
    let mut reader = FrameReader::default();
    loop {
        stream.readable().await?;
        // `try_io` wants an io::Result; what the step found is carried beside it.
        let step = stream.try_io(Interest::READABLE, || match reader.step(stream.as_fd()) {
            Err(WireError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            other => Ok(other),
        });
        match step {
            Ok(Ok(Step::Done(frame))) => return Ok(Some(frame)),
            Ok(Ok(Step::Closed)) => return Ok(None),
            Ok(Ok(Step::More)) => {}
            Ok(Err(e)) => return Err(e),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn timed_out(_: tokio::time::error::Elapsed) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
