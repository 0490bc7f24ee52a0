//! The manager's task: one event at a time into [`crate::state`], its actions out into [`super::work`].

use super::{
    Ask, Captured, Counts, Enrolment, Groups, PodEvent,
    enrolment_file::EnrolmentFile,
    work::{self, Kit, Sandbox},
};
use crate::{
    cni_server::{Call, refuse},
    holder::{GroupKey, Held, HeldPod, HolderEvent, PodRecord, Request},
    netns::Netns,
    state::{Action, Event, Pods, Ticket},
};
use futures_util::FutureExt;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_cni::{
    protocol::{Attachment, Command, Response},
    spec::Code,
};
use weft_core::model::ObjectKey;

/// How long an ADD waits to learn whether its pod is enrolled (the watch is behind the kubelet).
const DECISION_PATIENCE: Duration = Duration::from_secs(5);
/// How long an ADD waits altogether; less than the plugin's 20 s.
const ADD_PATIENCE: Duration = Duration::from_secs(15);
/// How long the holder may take for what it must still hear when the manager ends.
const LAST_WORDS: Duration = Duration::from_secs(3);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(30);

pub(super) struct Sources {
    pub(super) holder_events: mpsc::Receiver<HolderEvent>,
    pub(super) called: mpsc::Receiver<Call>,
    pub(super) asked: mpsc::Receiver<Ask>,
    pub(super) stop: CancellationToken,
}

/// What is shown to the binary.
pub(super) struct Shown {
    pub(super) counts: watch::Sender<Counts>,
    pub(super) captured: watch::Sender<Arc<BTreeMap<ObjectKey, Captured>>>,
    pub(super) last_add: watch::Sender<Option<SystemTime>>,
}

/// The task behind a [`super::ManagerHandle`].
pub(super) struct Manager {
    table: EnrolmentFile,
    enrolment: Arc<dyn Enrolment>,
    kit: Arc<Kit>,
    pods: Pods,
    sandboxes: HashMap<String, Sandbox>,
    /// What was read in each sandbox's namespace, also while work has the sandbox.
    addresses: HashMap<String, Vec<IpAddr>>,
    waiting: HashMap<Ticket, Waiting>,
    next_ticket: Ticket,
    /// Ends with an event.
    work: JoinSet<Ended>,
    /// Tells the holder or the data plane, and ends by itself.
    telling: TaskTracker,
    groups: Groups,
    connected: bool,
    shown: Shown,
}

/// Who waits for a ticket.
enum Waiting {
    Plugin(oneshot::Sender<Response>),
    Binary(oneshot::Sender<Result<(), String>>),
}

/// How a task ended: the machine hears of it, and the sandbox that it had comes back.
struct Ended {
    sandbox: Option<(String, Sandbox)>,
    event: Event,
}

impl Manager {
    pub(super) fn new(
        table: EnrolmentFile,
        enrolment: Arc<dyn Enrolment>,
        kit: Kit,
        groups: Groups,
        shown: Shown,
    ) -> Self {
        Self {
            table,
            enrolment,
            kit: Arc::new(kit),
            pods: Pods::default(),
            sandboxes: HashMap::new(),
            addresses: HashMap::new(),
            waiting: HashMap::new(),
            next_ticket: 0,
            work: JoinSet::new(),
            telling: TaskTracker::new(),
            groups,
            connected: false,
            shown,
        }
    }

    pub(super) async fn run(mut self, mut sources: Sources) {
        let mut changed = self.enrolment.changed();
        self.table.write(self.enrolment.table(), &self.telling);
        loop {
            tokio::select! {
                () = sources.stop.cancelled() => break,
                event = sources.holder_events.recv() => match event {
                    Some(HolderEvent::Connected(items)) => self.adopt(items),
                    Some(HolderEvent::Lost) => self.connected = false,
                    Some(HolderEvent::Superseded) | None => {
                        tracing::info!("a newer agent has taken over");
                        sources.stop.cancel();
                        // A data plane that does not take events is ending already.
                        let _ = work::emit(&self.kit, PodEvent::Superseded).await;
                        break;
                    }
                },
                Some(call) = sources.called.recv() => self.call(call),
                Some(ask) = sources.asked.recv() => self.asked(ask),
                Ok(()) = changed.changed() => {
                    changed.mark_unchanged();
                    self.table.write(self.enrolment.table(), &self.telling);
                    self.on(Event::EnrolmentChanged);
                }
                Some(ended) = self.work.join_next() => self.ended(ended),
            }
            self.show();
        }
        // Work is dropped, not awaited: each step is a transaction, and the next agent starts from the holder's
        // record of what is done. What that record lacks is still told.
        self.work.shutdown().await;
        self.telling.close();
        if timeout(LAST_WORDS, self.telling.wait()).await.is_err() {
            tracing::warn!("the holder did not take the last changes");
        }
    }

    fn show(&self) {
        let (captured, pending, known) = self.pods.counts();
        let now = Counts { captured, pending, known, holder: self.connected };
        // First, so that whoever waits for counts finds the pods that they count.
        let standing = self.pods.standing().map(|(record, tunnel)| {
            let key = ObjectKey::new(record.namespace.as_str(), record.name.as_str());
            let addresses = self.addresses.get(&record.container_id).cloned().unwrap_or_default();
            (key, Captured { uid: record.uid.clone(), addresses, tunnel })
        });
        let standing: BTreeMap<ObjectKey, Captured> = standing.collect();
        self.shown.captured.send_if_modified(|shown| {
            let differs = **shown != standing;
            if differs {
                *shown = Arc::new(standing);
            }
            differs
        });
        self.shown.counts.send_if_modified(|counts| std::mem::replace(counts, now) != now);
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Add(record, netns, reply) => self.add(record, netns, Waiting::Binary(reply)),
            Ask::Records(reply) => drop(reply.send(self.pods.records().cloned().collect())),
            Ask::Forget(id) => self.on(Event::Deleted { id }),
        }
    }

    /// After a (re)connect: learn what the holder has, and give it what it lost.
    fn adopt(&mut self, items: Vec<Held>) {
        self.connected = true;
        let mut held = Vec::new();
        let mut groups = Vec::new();
        for item in items {
            match item {
                Held::Pod(pod) => {
                    held.push(pod.record.container_id.clone());
                    self.found(pod);
                }
                Held::Group { key, sockets } => {
                    groups.push(key.clone());
                    self.groups.lock().entry(key).or_insert(sockets);
                }
            }
        }
        self.give_back(&held, &groups);
    }

    fn found(&mut self, pod: HeldPod) {
        let (record, id) = (pod.record.clone(), pod.record.container_id.clone());
        // Listeners without rules: an agent died on the way. Either way there is something to take back.
        let captured = pod.captured || pod.listeners.is_some();
        if self.pods.records().any(|known| known.container_id == id) {
            // Ours since before the connection broke. The holder may have taken us for gone.
            return if pod.past_capture {
                self.on(Event::TableOutdated { id })
            };
        }
        self.sandboxes.insert(id, Sandbox::found(HeldPod { captured, ..pod }));
        self.on(Event::Found { record, captured });
    }

    /// A holder that crashed and came back empty gets the same sockets again: no accept queue is lost as long as
    /// one of the two lives. Those in work are given by their work's next step, which fails and is tried again.
    fn give_back(&mut self, held: &[String], groups: &[GroupKey]) {
        let missing = self.sandboxes.values().filter(|s| !held.contains(&s.record.container_id));
        for sandbox in missing {
            self.tell(&sandbox.record.container_id, Request::Adopt(sandbox.held()));
        }
        let lost: Vec<(GroupKey, Vec<OwnedFd>)> = self
            .groups
            .lock()
            .iter()
            .filter(|(key, _)| !groups.contains(key))
            .filter_map(|(key, fds)| {
                let copies: io::Result<Vec<OwnedFd>> = fds.iter().map(OwnedFd::try_clone).collect();
                Some((key.clone(), copies.ok()?))
            })
            .collect();
        for (key, sockets) in lost {
            self.tell(&key.address.to_string(), Request::AdoptGroup(key.clone(), sockets));
        }
    }

    fn call(&mut self, call: Call) {
        match call.command {
            Command::Add(attachment) => match call.netns {
                Some(netns) => {
                    self.shown.last_add.send_replace(Some(SystemTime::now()));
                    self.add(record(attachment), netns, Waiting::Plugin(call.reply));
                }
                None => answer(call.reply, refuse(Code::InvalidEnvironment, "no network namespace".into())),
            },
            Command::Check(attachment) => {
                let record = record(attachment);
                let checked = self.pods.check(&record.container_id, &record, &|r| {
                    self.enrolment.decide(&r.namespace, &r.name, &r.uid)
                });
                answer(call.reply, response(checked));
            }
            Command::Del { container_id } => {
                self.on(Event::Deleted { id: container_id });
                answer(call.reply, Response::Ok);
            }
            Command::Gc { valid } => {
                self.on(Event::OnlyThese(valid.into_iter().map(|v| v.container_id).collect()));
                answer(call.reply, Response::Ok);
            }
            Command::Status => answer(call.reply, self.status()),
        }
    }

    fn status(&self) -> Response {
        let not_ready = |msg: &str| refuse(Code::NotAvailable, msg.into());
        match (self.connected, self.enrolment.table().is_some()) {
            (true, true) => Response::Ok,
            (false, _) => not_ready("the agent has no connection to its holder"),
            (_, false) => not_ready("the agent does not know yet which pods are enrolled"),
        }
    }

    fn add(&mut self, record: PodRecord, netns: Netns, waiting: Waiting) {
        let id = record.container_id.clone();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let runs = matches!(waiting, Waiting::Binary(_));
        self.waiting.insert(ticket, waiting);
        for (patience, event) in
            [(DECISION_PATIENCE, Event::DecisionOverdue(ticket)), (ADD_PATIENCE, Event::Overdue(ticket))]
        {
            self.after(patience, event);
        }
        let known = self.pods.records().any(|r| r.container_id == id);
        if !known {
            let sandbox = Sandbox::new(record.clone(), netns, runs);
            // So that the next agent knows the pod too, enrolled or not. Not waited for: capture asks again.
            self.tell(&id, Request::Adopt(sandbox.held()));
            self.sandboxes.insert(id, sandbox);
        }
        self.on(Event::Added { record, ticket });
    }

    fn on(&mut self, event: Event) {
        let enrolment = self.enrolment.clone();
        let actions =
            self.pods.on(event, &|record| enrolment.decide(&record.namespace, &record.name, &record.uid));
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Capture { id, config } => {
                let lost = Event::CaptureEnded { id: id.clone(), result: Err("no network namespace".into()) };
                let Some(mut sandbox) = self.sandboxes.remove(&id) else {
                    return self.after(RETRY_FIRST, lost);
                };
                let kit = self.kit.clone();
                self.work.spawn(async move {
                    let result = guarded(work::capture(&kit, &mut sandbox, &config)).await;
                    let event = Event::CaptureEnded { id: id.clone(), result };
                    Ended { sandbox: Some((id, sandbox)), event }
                });
            }
            Action::Release { id } => {
                let lost = Event::ReleaseEnded { id: id.clone(), result: Ok(()) };
                let Some(mut sandbox) = self.sandboxes.remove(&id) else {
                    return self.after(RETRY_FIRST, lost);
                };
                let kit = self.kit.clone();
                self.work.spawn(async move {
                    let result = guarded(work::release(&kit, &mut sandbox)).await;
                    let event = Event::ReleaseEnded { id: id.clone(), result };
                    Ended { sandbox: Some((id, sandbox)), event }
                });
            }
            Action::Forget { id } => {
                // The holder first: what it keeps outlives us.
                self.tell(&id, Request::Remove(id.clone()));
                self.addresses.remove(&id);
                if let Some(event) = self.sandboxes.remove(&id).and_then(work::farewell) {
                    self.emit(event);
                }
            }
            Action::Reply { ticket, result } => match self.waiting.remove(&ticket) {
                Some(Waiting::Plugin(reply)) => answer(reply, response(result)),
                Some(Waiting::Binary(reply)) => drop(reply.send(result)),
                None => {}
            },
            Action::RetryLater { id, attempt } => {
                let pause = RETRY_FIRST.saturating_mul(1 << attempt.min(16)).min(RETRY_LAST);
                self.after(pause, Event::Retry { id });
            }
        }
    }

    /// At once if there is room, so that a pod's old sandbox goes before its new one comes.
    fn emit(&self, event: PodEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.kit.events.try_send(event) {
            self.telling.spawn(work::emit_late(self.kit.clone(), event));
        }
    }

    /// Tells the holder: queued now, in order; only the answer is waited for elsewhere.
    fn tell(&self, what: &str, request: Request) {
        self.telling.spawn(work::told(what.to_owned(), self.kit.link.post(request)));
    }

    fn after(&mut self, pause: Duration, event: Event) {
        self.work.spawn(async move {
            sleep(pause).await;
            Ended { sandbox: None, event }
        });
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok(Ended { sandbox, event }) = ended else {
            // Work is guarded, and a pause has nothing that panics.
            tracing::error!("a task of the manager panicked");
            return;
        };
        if let Some((id, sandbox)) = sandbox {
            self.addresses.insert(id.clone(), sandbox.addresses.clone());
            self.sandboxes.insert(id, sandbox);
        }
        if let Event::CaptureEnded { id, result: Err(reason) }
        | Event::ReleaseEnded { id, result: Err(reason) } = &event
        {
            tracing::warn!(sandbox = %id, %reason, "a pod is not as it should be; trying again");
        }
        self.on(event);
    }
}

/// A panic in work on one pod is that pod's failure, and tried again like any other: each step of the work may be repeated,
/// and the sandbox that it was done on is still there.
async fn guarded(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err("work on the pod panicked".into()))
}

fn record(attachment: Attachment) -> PodRecord {
    PodRecord {
        container_id: attachment.container_id,
        namespace: attachment.pod.namespace,
        name: attachment.pod.name,
        uid: attachment.pod.uid,
        ips: attachment.ips,
        annotations: BTreeMap::new(),
    }
}

fn response(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::Ok,
        Err(reason) => refuse(Code::TryAgainLater, format!("weft: {reason}")),
    }
}

fn answer(reply: oneshot::Sender<Response>, response: Response) {
    let _ = reply.send(response); // a plugin that gave up needs no answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_work_is_a_failure_of_its_pod() {
        let mut touched = false;
        let work = async {
            touched = true;
            tokio::task::yield_now().await;
            panic!("a bug")
        };
        assert_eq!(guarded(work).await, Err("work on the pod panicked".into()));
        assert!(touched);
        assert_eq!(guarded(async { Ok(()) }).await, Ok(()));
    }
}
