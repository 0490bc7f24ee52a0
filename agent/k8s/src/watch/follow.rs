//! One kind: everything once, then every change, for as long as the process lives.
//!
//! kube's own `watcher` is not used for three reasons: it does not say when a broken watch stands again (`/readyz` wants
//! to know), gives a list no deadline, and never falls back from a streaming list.

use super::{
    admit::{self, Item},
    kinds::Watched,
    raw::{Page, Raw},
    retry::{Backoff, Retry, jitter, spread},
    state::{Fault, fault},
};
use futures_util::{AsyncBufReadExt, StreamExt, stream::BoxStream};
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, Status, WatchEvent},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use weft_core::model::ObjectKey;

/// For a page of a list.
const ANSWER: Duration = Duration::from_secs(60);
/// For the headers of a watch's answer, which come before anything is looked up. Longer would hold a kind back when the API
/// server's way was lost meanwhile.
const OPENED: Duration = Duration::from_secs(15);
/// The server ends a watch after about this many seconds; 295 is the longest that kube grants.
const WATCH_SECONDS: u32 = 280;
/// A watch that is silent for so long is replaced: its connection may lead nowhere. A server sends a bookmark a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner, without an event, counts as a failure: no busy loop.
const SHORT: Duration = Duration::from_secs(1);
/// After another kind's watch stands again, which says that the API server is back. About this long, so that they do not all
/// come at once.
const AFTER_ANOTHER: Duration = Duration::from_millis(250);
/// Objects of one page.
const PAGE: u32 = 500;

/// The lines of a watch, an event each.
type Changes = BoxStream<'static, std::io::Result<String>>;

/// What a follower says.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) kind: Watched,
    /// Which follower of the kind: one that was replaced may have events on the way.
    pub(super) epoch: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// All objects follow, up to [`What::Listed`].
    Listing,
    /// There, or changed.
    Put(Box<Item>),
    /// Deleted.
    Gone(ObjectKey),
    /// All are in: what was not among them is gone.
    Listed,
    /// Changes arrive (again).
    Up,
    /// They do not.
    Down(Failure),
}

/// Why a list or watch failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// Not granted: waiting for it would hold up everything else.
    pub(super) forbidden: bool,
    /// The cluster does not serve the kind (any more).
    pub(super) missing: bool,
    /// Nobody answered: so it is with every kind.
    pub(super) unreachable: bool,
    retry_after: Duration,
}

/// Where a follower stands.
enum Stop {
    /// Nobody listens.
    Unheard,
    /// The version that it knows is too old: everything has to be listed again.
    Expired,
    /// The server grants no streaming list.
    NoStreaming,
    Failed(Box<Failure>),
}

/// Follows one kind.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) kind: Watched,
    pub(super) version: &'static str,
    pub(super) path: String,
    pub(super) fields: Option<String>,
    /// Keep statuses that other controllers may write too.
    pub(super) statuses: bool,
    pub(super) epoch: u64,
    pub(super) events: mpsc::Sender<Event>,
    /// Cleared for all by the first who is refused.
    pub(super) streaming: Arc<AtomicBool>,
    pub(super) retry: Retry,
    /// Whose watch was opened last, by its epoch.
    pub(super) opened: watch::Sender<u64>,
}

impl Follower {
    /// Runs until nobody listens, or it is aborted.
    pub(super) async fn run(self) {
        // The version to go on from; none before the first list and after a gap.
        let mut from: Option<String> = None;
        let mut backoff = Backoff::new(self.retry);
        let mut opened = self.opened.subscribe();
        loop {
            opened.mark_unchanged();
            let started = Instant::now();
            let streaming = self.streaming.load(Ordering::Relaxed);
            let (known, mut seen) = (from.is_some(), false);
            let step = match &from {
                Some(_) => self.watch(&mut from, &mut seen).await,
                None if streaming => self.stream_list(&mut from, &mut seen).await,
                None => self.list(&mut from).await,
            };
            if seen || started.elapsed() > self.retry.longest {
                backoff.reset();
            }
            match step {
                Ok(()) if !known || seen || started.elapsed() > SHORT => {}
                Ok(()) => backoff.wait(Duration::ZERO).await,
                Err(Stop::Unheard) => return,
                Err(Stop::NoStreaming) => self.streaming.store(false, Ordering::Relaxed),
                Err(Stop::Expired) => {
                    from = None;
                    backoff.wait(Duration::ZERO).await;
                }
                Err(Stop::Failed(failure)) => {
                    let after = failure.retry_after;
                    if self.say(What::Down(*failure)).await.is_err() {
                        return;
                    }
                    // The server's own wish counts for more than that others are served.
                    let back = self.another_opened(&mut opened);
                    tokio::select! {
                        () = backoff.wait(after) => {}
                        () = back, if after.is_zero() => {}
                    }
                }
            }
        }
    }

    /// Until the watch of another kind was opened. Without it, what follows the API server's return comes in over the longest
    /// wait of all, and a world that is partly old lasts as long.
    async fn another_opened(&self, opened: &mut watch::Receiver<u64>) {
        while opened.changed().await.is_ok() {
            if *opened.borrow_and_update() != self.epoch {
                return tokio::time::sleep(jitter(AFTER_ANOTHER)).await;
            }
        }
        std::future::pending().await
    }

    /// All objects by pages.
    async fn list(&self, from: &mut Option<String>) -> Result<(), Stop> {
        self.say(What::Listing).await?;
        let mut more: Option<String> = None;
        loop {
            let params = ListParams {
                field_selector: self.fields.clone(),
                limit: Some(PAGE),
                continue_token: more.take(),
                ..ListParams::default()
            };
            let url = Request::new(&self.path);
            let request = match self.kind {
                Watched::Definition => url.list_metadata(&params),
                _ => url.list(&params),
            };
            let request = request.map_err(|e| self.failed(&kube::Error::BuildRequest(e)))?;
            // Not kube's `request`: that logs what it cannot parse, Secrets too.
            let page = match timeout(ANSWER, self.client.request_text(request)).await {
                Ok(text) => text.map_err(|e| self.failed(&e))?,
                Err(_) => return Err(silent()),
            };
            let page: Page = serde_json::from_str(&page).map_err(|e| unreadable(&e))?;
            for raw in page.items {
                self.put(raw).await?;
            }
            match page.metadata.more.filter(|m| !m.is_empty()) {
                Some(token) => more = Some(token),
                None => {
                    *from = Some(page.metadata.resource_version);
                    return self.say(What::Listed).await;
                }
            }
        }
    }

    /// All objects and then the changes, in one request. Cheaper for the server, and complete at a known version.
    async fn stream_list(&self, from: &mut Option<String>, seen: &mut bool) -> Result<(), Stop> {
        // No version: at least as new as now.
        let stream = self.open("", true).await?;
        self.say(What::Listing).await?;
        self.read(stream, from, seen).await?;
        if from.is_none() {
            let remedy = "it is tried again";
            return Err(failed(fault("the connection ended before all objects had come", remedy)));
        }
        Ok(())
    }

    /// The changes since `from`.
    async fn watch(&self, from: &mut Option<String>, seen: &mut bool) -> Result<(), Stop> {
        let stream = self.open(from.as_deref().unwrap_or_default(), false).await?;
        self.say(What::Up).await?;
        self.read(stream, from, seen).await
    }

    async fn open(&self, version: &str, initial: bool) -> Result<Changes, Stop> {
        let params = WatchParams {
            field_selector: self.fields.clone(),
            timeout: Some(spread(WATCH_SECONDS)),
            bookmarks: true,
            send_initial_events: initial,
            ..WatchParams::default()
        };
        let url = Request::new(&self.path);
        let request = match self.kind {
            Watched::Definition => url.watch_metadata(&params, version),
            _ => url.watch(&params, version),
        };
        let request = request.map_err(|e| self.failed(&kube::Error::BuildRequest(e)))?;
        // Not kube's `request_events`: that takes the body of a refusal for events, and logs what it cannot parse.
        match timeout(OPENED, self.client.request_stream(request)).await {
            Ok(Ok(body)) => {
                self.opened.send_replace(self.epoch);
                Ok(body.lines().boxed())
            }
            Ok(Err(kube::Error::Api(status))) if initial && cannot_stream(&status) => Err(Stop::NoStreaming),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(silent()),
        }
    }

    /// Reads a watch to its end. `from` is set as soon as all objects are in, and follows every event.
    async fn read(
        &self,
        mut stream: Changes,
        from: &mut Option<String>,
        seen: &mut bool,
    ) -> Result<(), Stop> {
        loop {
            let line = match timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(line))) => line,
                // Connections end: the next one goes on from here. If it cannot be had, that is said.
                Ok(Some(Err(error))) => {
                    tracing::debug!(kind = %self.kind, %error, "watch broke");
                    return Ok(());
                }
                Ok(None) | Err(_) => return Ok(()),
            };
            let event = match serde_json::from_str::<WatchEvent<Raw>>(&line) {
                Ok(event) => event,
                // Half a line before the end.
                Err(error) if error.is_eof() => return Ok(()),
                Err(error) => return Err(unreadable(&error)),
            };
            *seen |= !matches!(event, WatchEvent::Error(_));
            match event {
                WatchEvent::Added(raw) | WatchEvent::Modified(raw) => {
                    let version = raw.version().map(str::to_owned);
                    self.put(raw).await?;
                    if from.is_some() {
                        *from = version.or_else(|| from.take());
                    }
                }
                WatchEvent::Deleted(raw) => {
                    let version = raw.version().map(str::to_owned);
                    if let Some(key) = admit::key(&raw) {
                        self.say(What::Gone(key)).await?;
                    }
                    if from.is_some() {
                        *from = version.or_else(|| from.take());
                    }
                }
                WatchEvent::Bookmark(mark) => {
                    let complete = mark.metadata.annotations.contains_key("k8s.io/initial-events-end");
                    if from.is_none() && complete {
                        self.say(What::Listed).await?;
                        self.say(What::Up).await?;
                    }
                    if from.is_some() || complete {
                        *from = Some(mark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) if from.is_none() && cannot_stream(&status) => {
                    return Err(Stop::NoStreaming);
                }
                WatchEvent::Error(status) => return Err(self.refused(&status)),
            }
        }
    }

    async fn put(&self, raw: Raw) -> Result<(), Stop> {
        match admit::admit(self.kind, self.version, raw, self.statuses) {
            Some(item) => self.say(What::Put(Box::new(item))).await,
            None => Ok(()),
        }
    }

    async fn say(&self, what: What) -> Result<(), Stop> {
        let event = Event { kind: self.kind, epoch: self.epoch, what };
        // A full queue holds the reader back, and so the server: nothing is dropped.
        self.events.send(event).await.map_err(|_| Stop::Unheard)
    }

    fn refused(&self, status: &Status) -> Stop {
        self.failed(&kube::Error::Api(Box::new(status.clone())))
    }

    fn failed(&self, error: &kube::Error) -> Stop {
        let kube::Error::Api(status) = error else {
            return no_answer(super::retry::unreachable(error));
        };
        if status.code == 410 {
            return Stop::Expired;
        }
        let remedy = match status.code {
            401 => "the API server does not accept Weft's service-account token".to_owned(),
            403 => {
                let (group, plural) = (self.kind.group(), self.kind.plural());
                let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
                format!("grant list and watch on {resource} to Weft's service account: apply its RBAC again")
            }
            404 => "it is followed again when the cluster serves it".to_owned(),
            _ => "the last state stays in effect; it is tried again".to_owned(),
        };
        let said = if status.message.is_empty() { &status.reason } else { &status.message };
        let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
        Stop::Failed(Box::new(Failure {
            fault: fault(&format!("{said} ({})", status.code), &remedy),
            forbidden: status.code == 403,
            missing: status.code == 404,
            unreachable: false,
            retry_after: Duration::from_secs(u64::from(seconds.min(60))),
        }))
    }
}

/// A server without streaming lists calls the parameter invalid; one whose etcd is too old for them (before 3.4.31 and
/// 3.5.13) sends the event "required storage feature RequestWatchProgress is disabled", 500.
const fn cannot_stream(status: &Status) -> bool {
    matches!(status.code, 400 | 422 | 500)
}

fn silent() -> Stop {
    no_answer(fault("the API server does not answer", "the last state stays in effect; it is tried again"))
}

fn unreadable(error: &serde_json::Error) -> Stop {
    let reason = format!("the API server's answer cannot be read: {error}");
    failed(fault(&reason, "is something else answering in its place?"))
}

fn failed(fault: Fault) -> Stop {
    stopped(fault, false)
}

fn no_answer(fault: Fault) -> Stop {
    stopped(fault, true)
}

fn stopped(fault: Fault, unreachable: bool) -> Stop {
    let failure =
        Failure { fault, forbidden: false, missing: false, unreachable, retry_after: Duration::ZERO };
    Stop::Failed(Box::new(failure))
}
