//! The store under tokio's paused clock: days pass in no time.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    Ca, HandshakeFailure, IdentityState, IssueRequest, IssuedCertificate, LocalIssuer, TokioClock,
    entry::Trust, issue::IssueFuture, key::SecretKey,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A local CA that can be told to misbehave.
struct Tester {
    local: LocalIssuer,
    asked: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    silent: AtomicBool,
    fault: Mutex<Option<Misdeed>>,
}

#[derive(Clone)]
enum Misdeed {
    Fail(IssueError),
    OtherIdentity,
    OtherKey,
    OtherRoot,
    NoChain,
    Panic,
}

impl Tester {
    async fn answer(&self, request: IssueRequest) -> Result<IssuedCertificate, IssueError> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let misdeed = self.fault.lock().clone();
        let mut asked = request.clone();
        match &misdeed {
            Some(Misdeed::Fail(error)) => return Err(error.clone()),
            Some(Misdeed::Panic) => panic!("a bug in the issuer"),
            Some(Misdeed::OtherIdentity) => asked.identity = id("other"),
            Some(Misdeed::OtherKey) => asked.csr = SecretKey::generate().unwrap().csr(&id("web")).unwrap(),
            _ => {}
        }
        let mut answer = self.local.issue(asked).await?;
        match misdeed {
            Some(Misdeed::OtherRoot) => answer.bundle = ca(start()).bundle().clone(),
            Some(Misdeed::NoChain) => answer.chain.clear(),
            _ => {}
        }
        Ok(answer)
    }
}

impl Issuer for Tester {
    fn issue(&self, request: IssueRequest) -> IssueFuture<'_> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(running, Ordering::Relaxed);
            if self.silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let answer = self.answer(request).await;
            self.running.fetch_sub(1, Ordering::Relaxed);
            answer
        })
    }
}

fn start() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn ca(now: Timestamp) -> Ca {
    Ca::create("cluster.local", now).unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account)
}

fn tester(ca: Ca) -> (Arc<Tester>, IdentityStore) {
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(start()));
    let tester = Arc::new(Tester {
        local: LocalIssuer::with_clock(ca, "cluster.local", clock.clone()),
        asked: AtomicUsize::new(0),
        running: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        silent: AtomicBool::new(false),
        fault: Mutex::new(None),
    });
    let config = StoreConfig { clock, concurrent_issues: 2, ..StoreConfig::new("cluster.local") };
    (tester.clone(), IdentityStore::new(tester, config))
}

async fn ready(handle: &IdentityHandle) {
    handle.ready(Instant::now() + Duration::from_secs(300)).await.unwrap();
}

type Pair = (
    tokio_rustls::client::TlsStream<tokio::io::DuplexStream>,
    tokio_rustls::server::TlsStream<tokio::io::DuplexStream>,
);

/// A connection from one handle to the other, both ways verified.
async fn connect(from: &IdentityHandle, to: &IdentityHandle) -> Result<Pair, HandshakeFailure> {
    let (near, far) = duplex(1 << 16);
    let client = from.client_config(&PeerSet::one(to.identity().clone()), Alpn::H2).unwrap();
    let server = to.server_config().unwrap();
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let accept = TlsAcceptor::from(server);
    let (client, server) = tokio::join!(TlsConnector::from(client).connect(name, near), accept.accept(far));
    let server = server.map_err(|e| HandshakeFailure::from_io(&e))?;
    let client = client.map_err(|e| HandshakeFailure::from_io(&e))?;
    let mut pair = (client, server);
    assert_alive(&mut pair).await;
    Ok(pair)
}

async fn assert_alive((client, server): &mut Pair) {
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut four = [0; 4];
    server.read_exact(&mut four).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"pong");
}

#[tokio::test(start_paused = true)]
async fn acquires_at_once_share_one_issue() {
    let (tester, store) = tester(ca(start()));
    let handles: Vec<_> = (0..50).map(|_| store.acquire(id("web"))).collect();
    assert!(!handles[0].is_ready() && handles[0].server_config().is_none());
    assert_eq!(handles[0].info().state, IdentityState::Pending);
    for handle in &handles {
        ready(handle).await;
    }
    assert_eq!(tester.asked.load(Ordering::Relaxed), 1);
    let metrics = store.metrics();
    assert_eq!((metrics.issued, metrics.failed, metrics.identities, metrics.ready), (1, 0, 1, 1));
    // Prebuilt: every call gives the same config.
    let (a, b) = (handles[0].server_config().unwrap(), handles[49].server_config().unwrap());
    assert!(Arc::ptr_eq(&a, &b));
}

#[tokio::test(start_paused = true)]
async fn info_tells_all_but_the_key() {
    let (_tester, store) = tester(ca(start()));
    let handle = store.acquire(id("web"));
    ready(&handle).await;
    let infos = store.infos();
    let info = &infos[0];
    assert_eq!(
        (info.state, info.identity.as_str()),
        (IdentityState::Ready, "spiffe://cluster.local/ns/shop/sa/web")
    );
    assert_eq!(info.not_after, store.metrics().earliest_expiry);
    let json = serde_json::to_value(info).unwrap();
    assert_eq!(json["not_after"], "2026-11-22T10:00:00Z");
    assert_eq!(json["state"], "ready");
    assert_eq!(json["roots"][0]["subject"].as_str(), info.issuer.as_deref());
    let renewal = info.next_renewal.unwrap().duration_since(start()).as_hours();
    assert!((10..=13).contains(&renewal), "{info:?}");
    let text = format!("{store:?} {handle:?} {json} {:?}", handle.server_config());
    assert!(!text.contains("PRIVATE"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_last_drop_forgets() {
    let (tester, store) = tester(ca(start()));
    let first = store.acquire(id("web"));
    ready(&first).await;
    let serial = first.info().serial;
    let second = first.clone();
    drop(first);
    assert!(second.is_ready());
    let entry = Arc::downgrade(&second.held.entry);
    drop(second);
    assert_eq!(store.metrics().identities, 0);
    assert!(store.shared.identities.lock().is_empty());
    tokio::time::sleep(48 * HOUR).await;
    assert!(entry.upgrade().is_none(), "the task is gone");
    assert_eq!(tester.asked.load(Ordering::Relaxed), 1);
    let again = store.acquire(id("web"));
    ready(&again).await;
    assert_ne!(again.info().serial, serial);
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life_and_connections_live_on() {
    let (tester, store) = tester(ca(start()));
    let (web, cart) = (store.acquire(id("web")), store.acquire(id("cart")));
    ready(&web).await;
    ready(&cart).await;
    let before = web.info().serial;
    let mut old = connect(&web, &cart).await.unwrap();
    for _ in 0..72 {
        tokio::time::sleep(HOUR).await;
        assert!(web.is_ready() && cart.is_ready());
    }
    let asked = tester.asked.load(Ordering::Relaxed);
    assert!((12..=16).contains(&asked), "{asked}: two identities, 72 h, every 11 to 13 h");
    assert_ne!(web.info().serial, before);
    assert_alive(&mut old).await;
    connect(&web, &cart).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_matters_only_when_the_certificate_runs_out() {
    let (tester, store) = tester(ca(start()));
    let web = store.acquire(id("web"));
    ready(&web).await;
    let down = IssueError::Unavailable { reason: "connection refused".into() };
    *tester.fault.lock() = Some(Misdeed::Fail(down.clone()));
    tokio::time::sleep(23 * HOUR).await;
    assert!(web.is_ready() && web.server_config().is_some());
    let info = web.info();
    assert_eq!((info.state, info.last_error), (IdentityState::RenewalFailing, Some(down.to_string())));
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(web.info().state, IdentityState::Expired);
    assert!(!web.is_ready() && web.server_config().is_none());
    assert!(web.client_config(&PeerSet::one(id("cart")), Alpn::H2).is_none());
    let error = web.ready(Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.cause, Some(down));
    let failed = store.metrics().failed;
    assert!((300..=460).contains(&failed), "{failed}: about 14 h at 120 to 150 s");
    *tester.fault.lock() = None;
    ready(&web).await;
    assert_eq!((web.info().state, web.info().failures), (IdentityState::Ready, 0));
}

#[tokio::test(start_paused = true)]
async fn a_bad_answer_is_no_certificate() {
    let table = [
        (Misdeed::OtherIdentity, "names spiffe://cluster.local/ns/shop/sa/other"),
        (Misdeed::OtherKey, "another public key"),
        (Misdeed::OtherRoot, "UnknownIssuer"),
        (Misdeed::NoChain, "chain is empty"),
        (Misdeed::Panic, "panicked"),
        (Misdeed::Fail(IssueError::Denied { reason: "no such pod".into() }), "no such pod"),
    ];
    for (misdeed, says) in table {
        let (tester, store) = tester(ca(start()));
        *tester.fault.lock() = Some(misdeed);
        let web = store.acquire(id("web"));
        let error = web.ready(Instant::now() + Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(web.server_config().is_none());
        // The next try is right.
        *tester.fault.lock() = None;
        ready(&web).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_issuer_times_out() {
    let (tester, store) = tester(ca(start()));
    tester.silent.store(true, Ordering::Relaxed);
    let web = store.acquire(id("web"));
    let error = web.ready(Instant::now() + Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(error.cause, Some(IssueError::TimedOut(Duration::from_secs(10))));
    tester.silent.store(false, Ordering::Relaxed);
    ready(&web).await;
}

#[tokio::test(start_paused = true)]
async fn issues_at_once_are_bounded() {
    let (tester, store) = tester(ca(start()));
    let handles: Vec<_> = (0..20).map(|n| store.acquire(id(&format!("s{n}")))).collect();
    for handle in &handles {
        ready(handle).await;
    }
    assert_eq!(tester.most.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn roots_rotate_with_overlap() {
    let (old, new) = (ca(start()), ca(start()));
    let (old_roots, new_roots) = (old.bundle().clone(), new.bundle().clone());
    let both = old_roots.with(&new_roots);
    let (tester, store) = tester(old);
    let (web, cart) = (store.acquire(id("web")), store.acquire(id("cart")));
    ready(&web).await;
    ready(&cart).await;
    let mut standing = connect(&web, &cart).await.unwrap();

    // Everyone learns the new root before anyone uses it.
    store.set_trust_bundle(both);
    assert_eq!(web.info().roots.len(), 2);
    tester.local.replace(new);
    let late = store.acquire(id("late"));
    ready(&late).await;
    assert_ne!(late.info().issuer, web.info().issuer);
    connect(&late, &web).await.unwrap();
    connect(&web, &late).await.unwrap();

    // Only the new root: who still has an old certificate is refused, who renews is not.
    store.set_trust_bundle(new_roots);
    assert_eq!(connect(&web, &late).await.unwrap_err(), HandshakeFailure::UnknownIssuer);
    store.renew_all();
    let mut changes = web.held.entry.changes.subscribe();
    while web.info().issuer != late.info().issuer {
        changes.changed().await.unwrap();
    }
    connect(&web, &late).await.unwrap();
    assert_alive(&mut standing).await;
}

#[tokio::test(start_paused = true)]
async fn the_issuers_new_bundle_reaches_every_identity() {
    let old = ca(start());
    let new = ca(start()).trusting(old.bundle());
    let both = new.bundle().clone();
    let (tester, store) = tester(old);
    let web = store.acquire(id("web"));
    ready(&web).await;
    tester.local.replace(new);
    let late = store.acquire(id("late"));
    ready(&late).await;
    connect(&late, &web).await.unwrap();
    connect(&web, &late).await.unwrap();
    assert_eq!(web.info().roots, both.describe());
    assert_eq!(store.metrics().issued, 2, "the certificate is the old one");
}

#[test]
fn a_late_answer_does_not_bring_back_old_roots() {
    let (old, new) = (ca(start()).bundle().clone(), ca(start()).bundle().clone());
    let mut trust = Trust::default();
    assert!(trust.take(old.clone(), 1));
    assert!(!trust.take(old.clone(), 2));
    assert!(trust.take(new.clone(), 4));
    assert!(!trust.take(old.clone(), 3));
    assert_eq!(trust.bundle, Some(new));
    trust.fixed = true;
    assert!(!trust.take(old, 9));
}

#[test]
fn a_handle_may_be_acquired_outside_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let guard = runtime.enter();
    let local = LocalIssuer::new(ca(Timestamp::now()), "cluster.local");
    let store = IdentityStore::new(Arc::new(local), StoreConfig::new("cluster.local"));
    drop(guard);
    let web = store.acquire(id("web")); // e.g. on a data-plane worker
    runtime.block_on(web.ready(Instant::now() + Duration::from_secs(30))).unwrap();
}

#[test]
fn handles_come_and_go_on_many_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let local = LocalIssuer::new(ca(Timestamp::now()), "cluster.local");
    let store = IdentityStore::new(Arc::new(local), StoreConfig::new("cluster.local"));
    let kept = store.acquire(id("s0"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, runtime) = (&store, &runtime);
            scope.spawn(move || {
                for turn in 0..200 {
                    let handle = store.acquire(id(&format!("s{}", (thread + turn) % 3)));
                    if turn % 20 == 0 {
                        runtime.block_on(ready(&handle));
                        assert!(handle.server_config().is_some());
                    }
                }
            });
        }
    });
    runtime.block_on(ready(&kept));
    assert_eq!(store.shared.identities.lock().len(), 1);
    assert_eq!(store.metrics().identities, 1);
    drop(kept);
    assert!(store.shared.identities.lock().is_empty());
}

fn chain(of: Option<&[CertificateDer<'_>]>) -> Vec<CertificateDer<'static>> {
    of.unwrap().iter().map(|der| der.clone().into_owned()).collect()
}

/// B5: an expired certificate kept its tunnel for new streams.
#[tokio::test(start_paused = true)]
async fn a_connection_begins_nothing_new_when_a_certificate_has_ended() {
    let (tester, store) = tester(ca(start()));
    let (web, cart) = (store.acquire(id("web")), store.acquire(id("cart")));
    ready(&web).await;
    ready(&cart).await;
    let (_, server) = connect(&web, &cart).await.unwrap();
    let by_web = chain(server.get_ref().1.peer_certificates());
    let bond = cart.bond(&by_web).unwrap();
    assert!(bond.holds());
    // Renewed on both sides: what runs goes on, as long as the certificates it was begun with are good.
    tokio::time::sleep(HOUR * 20).await;
    assert!(tester.asked.load(Ordering::Relaxed) >= 4 && bond.holds());
    let over = |margin| tokio::time::timeout(HOUR * 24, bond.ended(margin));
    let before = Instant::now();
    over(HOUR).await.unwrap();
    assert!(bond.holds(), "who begins stops earlier");
    over(Duration::ZERO).await.unwrap();
    assert!(!bond.holds());
    let left = before.elapsed();
    assert!(left >= HOUR * 3 && left <= HOUR * 5, "{left:?}");
    // A session of then is not resumed for it.
    assert!(matches!(cart.bond(&by_web), Err(Unbound::Ended(who)) if who.ends_with("/web")));
    assert_eq!(cart.bond(&[]).unwrap_err(), Unbound::Unreadable);
}

/// B5: so did one whose root was taken out of the bundle.
#[tokio::test(start_paused = true)]
async fn a_connection_begins_nothing_new_when_its_root_is_gone() {
    let (old, new) = (ca(start()), ca(start()));
    let both = old.bundle().with(new.bundle());
    let (_tester, store) = tester(old);
    let (web, cart) = (store.acquire(id("web")), store.acquire(id("cart")));
    ready(&web).await;
    ready(&cart).await;
    let (_, server) = connect(&web, &cart).await.unwrap();
    let bond = Arc::new(cart.bond(&chain(server.get_ref().1.peer_certificates())).unwrap());
    let waiting = tokio::spawn({
        let bond = bond.clone();
        async move { bond.ended(Duration::ZERO).await }
    });
    store.set_trust_bundle(both);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bond.holds() && !waiting.is_finished(), "a root more changes nothing");
    store.set_trust_bundle(new.bundle().clone());
    waiting.await.unwrap();
    assert!(!bond.holds());
}
