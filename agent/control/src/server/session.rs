//! One agent's stream.

use std::sync::Arc;

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status, Streaming};
use weft_core::model::Str;

use super::{Downs, Shared, agents::Session, not_leading};
use crate::{
    auth::{Caller, Refusal},
    convert::{MaterialMap, material_to_map, reached_from_wire},
    delta::{Malformed, Mirror, diff},
    report::Material,
    wire::{self, Down, DownBody, UpBody},
};

/// Messages that wait for an agent. Each is about [`crate::delta::CHUNK`] bytes or less.
const QUEUE: usize = 4;

type Sender = mpsc::Sender<Result<Down, Status>>;

/// Hears who it is, then answers with a stream.
pub(super) async fn connect(
    shared: Arc<Shared>,
    caller: Caller,
    request: Request<Streaming<wire::Up>>,
) -> Result<Response<Downs>, Status> {
    let mut up = request.into_inner();
    let late = |_| Status::deadline_exceeded("no Hello came");
    let first = timeout(shared.config.limits.hello, up.message()).await.map_err(late)??;
    let Some(UpBody::Hello(hello)) = first.and_then(|up| up.body) else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    if hello.protocol == 0 {
        return Err(Status::failed_precondition("Hello says no protocol version"));
    }
    if *hello.node != *caller.node {
        let refusal = Refusal::OtherNode { token: caller.node.clone(), claimed: hello.node };
        return Err(shared.refuse(&caller, None, &refusal));
    }
    shared.counters.count("streams");
    tracing::info!(node = %caller.node, version = hello.version, instance = hello.instance, "agent connected");
    let session = Session::join(shared.clone(), caller.node, &hello.version, &hello.instance);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let tasks = shared.tasks.clone();
    tasks.spawn(run(shared, session, up, sender));
    Ok(Response::new(Downs::new(receiver)))
}

async fn run(shared: Arc<Shared>, session: Session, mut up: Streaming<wire::Up>, sender: Sender) {
    let end = tokio::select! {
        end = hear(&shared, &session, &mut up) => end,
        end = tell(&shared, &session, &sender) => end,
        () = session.superseded.cancelled() => Some(Status::aborted("newer streams of this node took its place")),
        () = shared.stop.cancelled() => Some(Status::unavailable("the controller stops")),
    };
    let why = end.as_ref().map_or("the agent closed it", Status::message);
    tracing::info!(node = %session.node, why, "stream ended");
    if let Some(status) = end {
        // Nobody may be reading any more.
        let _ = sender.try_send(Err(status));
    }
}

/// Takes what the agent reports, until it ends. None: the agent closed.
async fn hear(shared: &Shared, session: &Session, up: &mut Streaming<wire::Up>) -> Option<Status> {
    let limits = shared.config.limits;
    let mut applied = Mirror::<wire::Applied>::new(limits.report);
    let mut captured = Mirror::<wire::Captured>::new(limits.report);
    loop {
        let message = match timeout(limits.quiet, up.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return None,
            Ok(Err(status)) => {
                shared.counters.count("dropped_broken_stream");
                return Some(status);
            }
            Err(_) => {
                shared.counters.count("dropped_quiet");
                return Some(Status::deadline_exceeded("nothing was heard for too long"));
            }
        };
        let taken = match message.body {
            Some(UpBody::Applied(message)) => applied.take(message).map(|complete| {
                if complete {
                    session.applied(applied.entries().clone());
                }
            }),
            Some(UpBody::Captured(message)) => captured.take(message).map(|complete| {
                if complete {
                    session.captured(captured.entries().clone());
                }
            }),
            Some(UpBody::Reached(message)) => reached_from_wire(message).map(|now| session.reached(now)),
            // Unknown kinds come from newer agents.
            Some(UpBody::Heartbeat(_) | UpBody::Hello(_)) | None => Ok(()),
        };
        if let Err(malformed) = taken {
            shared.counters.count("dropped_malformed");
            return Some(status_of(&malformed));
        }
    }
}

fn status_of(malformed: &Malformed) -> Status {
    match malformed {
        Malformed::Part { .. } => Status::invalid_argument(malformed.to_string()),
        Malformed::TooMuch { .. } => Status::resource_exhausted(malformed.to_string()),
    }
}

/// Tells the agent what it needs, as it changes, until the stream must end. None: nobody listens.
async fn tell(shared: &Shared, session: &Session, sender: &Sender) -> Option<Status> {
    let limits = shared.config.limits;
    let age = Instant::now() + spread(limits.stream_life, &session.node);
    let mut materials = shared.config.materials.clone();
    let mut leading = shared.leading.subscribe();
    let mut teller = Teller { shared, sender, told: None, version: 0 };
    let welcome = wire::Welcome { protocol: wire::PROTOCOL, version: shared.config.version.clone() };
    if let Err(end) = teller.send(DownBody::Welcome(welcome)).await {
        return end;
    }
    loop {
        let now = leading.borrow_and_update().clone();
        if !now.leader {
            let notice = wire::Leader { holder: now.holder.to_string() };
            return teller.send(DownBody::Leader(notice)).await.err().unwrap_or(Some(not_leading(&now)));
        }
        let material = materials.borrow_and_update().get(&session.node).cloned();
        if let Some(material) = material
            && let Err(end) = teller.material(&material).await
        {
            return end;
        }
        let news = async {
            // Without a sender nothing changes any more.
            if materials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = news => {}
            // The sender lives in `shared`.
            _ = leading.changed() => {}
            () = tokio::time::sleep_until(age) => return Some(Status::unavailable("time to authenticate again")),
            () = sender.closed() => return None,
        }
    }
}

/// A life between nine and ten tenths of `life`, so that not all agents come back at once.
fn spread(life: std::time::Duration, node: &Str) -> std::time::Duration {
    let draw = node.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    life - life / 1000 * (draw % 100)
}

struct Teller<'a> {
    shared: &'a Shared,
    sender: &'a Sender,
    /// What the agent has, and the value that it was made of.
    told: Option<(Arc<Material>, MaterialMap)>,
    version: u64,
}

impl Teller<'_> {
    async fn material(&mut self, material: &Arc<Material>) -> Result<(), Option<Status>> {
        if self.told.as_ref().is_some_and(|(told, _)| Arc::ptr_eq(told, material)) {
            return Ok(());
        }
        let map = material_to_map(material);
        let chunks = diff::<wire::Material>(self.told.as_ref().map(|(_, map)| map), &map);
        self.told = Some((material.clone(), map));
        self.version += u64::from(!chunks.is_empty());
        for mut chunk in chunks {
            chunk.version = self.version;
            self.send(DownBody::Material(chunk)).await?;
        }
        Ok(())
    }

    /// Waits for the reader, but not for ever. The error ends the stream.
    async fn send(&self, body: DownBody) -> Result<(), Option<Status>> {
        match timeout(self.shared.config.limits.send, self.sender.send(Ok(Down { body: Some(body) }))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(None),
            Err(_) => {
                self.shared.counters.count("dropped_slow_reader");
                Err(Some(Status::deadline_exceeded("the agent does not read")))
            }
        }
    }
}
