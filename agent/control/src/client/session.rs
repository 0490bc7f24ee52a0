//! One stream to the controller, from the connection to its end.

use std::{sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    Inner,
    connect::{ConnectError, bearer, connect},
};
use crate::{
    convert::{material_from_map, reached_to_wire},
    delta::{Bounds, Chunk, Malformed, Mirror, diff},
    report::{Applied, Captured},
    wire::{self, DownBody, Up, UpBody},
};

/// The largest message from the controller, in bytes: a chunk and one large Secret.
const DOWN_MAX: usize = 4 << 20;
/// What is kept of the controller's material.
const MATERIAL: Bounds = Bounds { entries: 50_000, bytes: 128 << 20 };
/// Messages that wait to be sent.
const QUEUE: usize = 8;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the address or the roots of the controller have changed")]
    Moved,
    #[error("this replica does not lead: {0}")]
    NotLeader(String),
    #[error("no replica leads")]
    NobodyLeads,
    #[error("the controller refused or ended the stream ({code:?}): {reason}")]
    Refused { code: Code, reason: String },
    #[error("the controller says what cannot be understood: {0}")]
    Malformed(#[from] Malformed),
    #[error("the controller did not take a message within {0:?}")]
    Slow(Duration),
    #[error("the controller did not answer within {0:?}")]
    Late(Duration),
    #[error("the controller closed the stream")]
    Closed,
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let reason = status.message().to_owned();
        match status.code() {
            Code::Unavailable if reason.starts_with(crate::NOT_THE_LEADER) => {
                if reason.contains(crate::NOBODY) { Self::NobodyLeads } else { Self::NotLeader(reason) }
            }
            code => Self::Refused { code, reason },
        }
    }
}

impl End {
    fn sent_away(leader: wire::Leader) -> Self {
        if leader.holder.is_empty() { Self::NobodyLeads } else { Self::NotLeader(leader.holder) }
    }
}

/// Waits until it is known where to connect, connects, and stays until something ends it.
pub(super) async fn run(inner: &Inner) -> End {
    let config = &inner.config;
    let (mut address, mut roots) = (config.address.clone(), config.roots.clone());
    let target = async {
        let at = address.wait_for(Option::is_some).await.ok()?.as_ref().copied()?;
        let trusted = roots.wait_for(Option::is_some).await.ok()?.clone()?;
        Some((at, trusted))
    };
    let Some((at, trusted)) = target.await else {
        // Whoever knew has gone: nothing will ever come.
        return std::future::pending().await;
    };
    let moved = async {
        let mut address = config.address.clone();
        let mut roots = config.roots.clone();
        // A sender that is gone changes nothing any more.
        let other_address = async {
            if address.wait_for(|now| now.is_some_and(|now| now != at)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let other_roots = async {
            if roots.wait_for(|now| now.as_ref().is_some_and(|now| *now != trusted)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = other_address => {}
            () = other_roots => {}
        }
    };
    let session = async {
        match connect(at, &trusted, &config.server_name, config.timing.step).await {
            Ok(channel) => talk(inner, channel).await,
            Err(error) => Err(error.into()),
        }
    };
    tokio::select! {
        ended = session => match ended {
            Ok(()) => End::Closed,
            Err(end) => end,
        },
        () = moved => End::Moved,
    }
}

async fn talk(inner: &Inner, channel: Channel) -> Result<(), End> {
    let config = &inner.config;
    let step = config.timing.step;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let teller = Teller { sender, within: config.timing.send };
    let hello = wire::Hello {
        protocol: wire::PROTOCOL,
        node: config.node.clone(),
        version: config.version.clone(),
        instance: config.instance.clone(),
    };
    teller.send(UpBody::Hello(hello)).await?;
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("authorization", bearer(&config.token).await?);
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(DOWN_MAX);
    let opened = async {
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let codec = ProstCodec::<Up, wire::Down>::default();
        grpc.streaming(request, PathAndQuery::from_static(wire::CONNECT), codec).await
    };
    let mut down = timeout(step, opened).await.map_err(|_| End::Late(step))??.into_inner();
    let first = timeout(step, down.message()).await.map_err(|_| End::Late(step))??;
    match first.ok_or(End::Closed)?.body {
        Some(DownBody::Welcome(welcome)) => {
            tracing::info!(
                version = welcome.version,
                protocol = welcome.protocol,
                "connected to the controller"
            );
        }
        Some(DownBody::Leader(leader)) => return Err(End::sent_away(leader)),
        _ => return Err(Malformed::Part { what: "Welcome" }.into()),
    }
    inner.state.send_modify(|state| {
        (state.connected, state.since, state.failures) = (true, Timestamp::now(), 0);
    });
    inner.channel.send_replace(Some(channel));
    tokio::select! {
        ended = hear(inner, &mut down) => ended,
        ended = tell(inner, &teller) => ended,
    }
}

/// Takes what the controller sends, until it ends.
async fn hear(inner: &Inner, down: &mut Streaming<wire::Down>) -> Result<(), End> {
    let mut material = Mirror::<wire::Material>::new(MATERIAL);
    while let Some(message) = down.message().await? {
        match message.body {
            Some(DownBody::Material(message)) => {
                let version = message.version;
                if material.take(message)? {
                    let fresh = material_from_map(material.entries());
                    keep(inner, fresh, version).await;
                }
            }
            Some(DownBody::Leader(leader)) => return Err(End::sent_away(leader)),
            // Unknown kinds come from newer controllers.
            Some(DownBody::Welcome(_)) | None => {}
        }
    }
    Ok(())
}

/// Publishes new material and caches it: in this order, since serving matters more.
async fn keep(inner: &Inner, fresh: crate::Material, version: u64) {
    if **inner.material.borrow() == fresh {
        return;
    }
    let (secrets, config_maps) = (fresh.secrets.len(), fresh.config_maps.len());
    tracing::info!(version, secrets, config_maps, "material for Gateways and policies changed");
    let fresh = Arc::new(fresh);
    inner.material.send_replace(fresh.clone());
    if let Some(cache) = inner.cache.clone() {
        // One at a time and awaited: the newest is written last.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || cache.store(&fresh)).await {
            tracing::warn!(%error, "material is not cached: a restart will need the controller");
        }
    }
}

/// Says everything once, then what changes, paced; and something now and then.
async fn tell(inner: &Inner, teller: &Teller) -> Result<(), End> {
    let timing = inner.config.timing;
    let mut applied = Source::<wire::Applied>::new(inner.applied.subscribe());
    let mut captured = Source::<wire::Captured>::new(inner.captured.subscribe());
    let mut reached = inner.reached.subscribe();
    // A new stream is told at once what there is.
    reached.mark_changed();
    loop {
        for chunk in applied.news() {
            teller.send(UpBody::Applied(chunk)).await?;
        }
        for chunk in captured.news() {
            teller.send(UpBody::Captured(chunk)).await?;
        }
        if reached.has_changed().unwrap_or(false) {
            let now = reached_to_wire(&reached.borrow_and_update());
            teller.send(UpBody::Reached(now)).await?;
        }
        let next = Instant::now() + timing.report;
        let quiet = Instant::now() + timing.heartbeat;
        tokio::select! {
            // The senders live in `inner`.
            _ = applied.values.changed() => tokio::time::sleep_until(next).await,
            _ = captured.values.changed() => tokio::time::sleep_until(next).await,
            // Marked anew, because waiting for it takes the mark away.
            _ = reached.changed() => {
                reached.mark_changed();
                tokio::time::sleep_until(next).await;
            }
            () = tokio::time::sleep_until(quiet) => teller.send(UpBody::Heartbeat(wire::Heartbeat {})).await?,
        }
    }
}

/// A value that is told, and what was told of it last.
struct Source<C: Chunk> {
    values: watch::Receiver<Option<Arc<Map<C>>>>,
    told: Option<Arc<Map<C>>>,
}

type Map<C> = std::collections::BTreeMap<<C as Chunk>::Key, <C as Chunk>::Value>;

impl<C: Chunk> Source<C> {
    fn new(values: watch::Receiver<Option<Arc<Map<C>>>>) -> Self {
        Self { values, told: None }
    }

    fn news(&mut self) -> Vec<C> {
        let Some(now) = self.values.borrow_and_update().clone() else { return Vec::new() };
        let chunks = diff::<C>(self.told.as_deref(), &now);
        self.told = Some(now);
        chunks
    }
}

// Both reports are such maps.
const _: fn(Applied) -> Map<wire::Applied> = |map| map;
const _: fn(Captured) -> Map<wire::Captured> = |map| map;

struct Teller {
    sender: mpsc::Sender<Up>,
    within: Duration,
}

impl Teller {
    async fn send(&self, body: UpBody) -> Result<(), End> {
        match timeout(self.within, self.sender.send(Up { body: Some(body) })).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Closed),
            Err(_) => Err(End::Slow(self.within)),
        }
    }
}
