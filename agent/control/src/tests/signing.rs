//! The CA's service: who gets which identity.

use weft_certs::{IdentityStore, IssueError, SpiffeId, StoreConfig};

use super::*;

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", namespace, account)
}

fn store(client: &ControlClient) -> IdentityStore {
    let config = StoreConfig { issue_timeout: SOON, ..StoreConfig::new("cluster.local") };
    IdentityStore::new(client.issuer(), config)
}

/// Asks until the issuer has answered once; gives its refusal.
async fn ask(client: &ControlClient, identity: SpiffeId) -> Result<(), IssueError> {
    let store = store(client);
    let handle = store.acquire(identity);
    let end = tokio::time::Instant::now() + SOON;
    while tokio::time::Instant::now() < end {
        let metrics = store.metrics();
        if metrics.issued > 0 {
            return Ok(());
        }
        if metrics.failed > 0 {
            let soon = tokio::time::Instant::now();
            return Err(handle.ready(soon).await.unwrap_err().cause.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the issuer did not answer");
}

#[tokio::test]
async fn gives_a_node_the_identities_of_its_pods_and_gateways_and_no_others() {
    let bench = Bench::new();
    bench.pods(&[("shop/web-1", "web", "n1"), ("shop/cart-1", "cart", "n2"), ("shop/new", "new", "")]);
    bench.worlds.send_modify(|world| {
        let mut changed = (**world).clone();
        for (name, edit) in [("host", true), ("done", false)] {
            let mut pod = pod(&format!("shop/{name}"), name, "n1");
            (pod.host_network, pod.finished) = (edit, !edit);
            changed.pods.insert(pod.meta.key.clone(), Arc::new(pod));
        }
        let mut apart = pod("shop/mirror", "default", "n1");
        apart.meta.labels.insert("weft.dev/mesh".into(), "disabled".into());
        changed.pods.insert(apart.meta.key.clone(), Arc::new(apart));
        for name in ["edge", "inner"] {
            let gateway = gateway(&format!("infra/{name}"), 1);
            changed.gateways.insert(gateway.meta.key.clone(), Arc::new(gateway));
        }
        *world = Arc::new(changed);
    });
    let serving: Serving =
        [(key("infra/edge"), [node("n1"), node("n2")].into()), (key("infra/inner"), [node("n2")].into())]
            .into();
    bench.serving.send_replace(Arc::new(serving));
    let running = bench.serve(Limits { early: Duration::ZERO, ..Limits::default() });
    let client = bench.client("n1");
    connected(&client).await;
    let other_domain = SpiffeId::new("elsewhere.org", "shop", "web");
    let table = [
        ("agent@n1", id("shop", "web"), None),
        ("agent@n1", id("infra", "edge-weft"), None),
        ("agent@n1", id("shop", "cart"), Some("pod_on_other_node")),
        ("agent@n1", id("shop", "new"), Some("no_such_pod")),
        ("agent@n1", id("shop", "host"), Some("no_such_pod")),
        ("agent@n1", id("shop", "done"), Some("no_such_pod")),
        ("agent@n1", id("shop", "default"), Some("no_such_pod")),
        ("agent@n1", id("other", "web"), Some("no_such_pod")),
        ("agent@n1", id("infra", "inner-weft"), Some("gateway_not_served")),
        ("agent@n1", id("infra", "unknown-weft"), Some("no_such_pod")),
        ("agent@n1", id("weft-system", "weft-agent"), Some("no_such_pod")),
        ("agent@n1", other_domain, Some("other_trust_domain")),
        ("agent@n2", id("shop", "web"), Some("pod_on_other_node")),
        ("expired", id("shop", "web"), Some("token_expired")),
        ("audience", id("shop", "web"), Some("token_wrong_audience")),
        ("unbound", id("shop", "web"), Some("token_unbound")),
        ("garbage", id("shop", "web"), Some("token_invalid")),
        ("shop/web@n1", id("shop", "web"), Some("not_an_agent")),
        ("away", id("shop", "web"), Some("token_review_unavailable")),
    ];
    for (token, identity, refused) in table {
        bench.write_token("n1", token);
        let counted = |reason: &str| running.count(&format!("refused_{reason}"));
        let before = refused.map(counted);
        let answer = ask(&client, identity.clone()).await;
        match (refused, &answer) {
            (None, Ok(())) => {}
            (Some("token_review_unavailable"), Err(IssueError::Unavailable { .. })) => {}
            (Some(_), Err(IssueError::Denied { .. })) => {}
            _ => panic!("{token} {identity}: {answer:?}"),
        }
        assert!(refused.map(counted) >= before.map(|n| n + 1), "{token} {identity}: {refused:?} is counted");
    }
    assert_eq!(running.count("signed"), 2);
    running.stop().await;
}

/// The agent has seen its Gateway's placement, the controller has not yet.
#[tokio::test]
async fn a_gateway_that_is_asked_for_early_is_waited_for() {
    let bench = Bench::new();
    bench.worlds.send_modify(|world| {
        let mut changed = (**world).clone();
        let gateway = gateway("infra/edge", 1);
        changed.gateways.insert(gateway.meta.key.clone(), Arc::new(gateway));
        *world = Arc::new(changed);
    });
    let running = bench.serve(Limits { early: Duration::from_secs(60), ..Limits::default() });
    let client = bench.client("n1");
    connected(&client).await;
    let asked = tokio::spawn(async move { ask(&client, id("infra", "edge-weft")).await });
    // Whether it comes before or after the question: there is no refusal.
    bench.serving.send_replace(Arc::new([(key("infra/edge"), [node("n1")].into())].into()));
    asked.await.unwrap().unwrap();
    assert_eq!((running.count("signed"), running.count("refused_gateway_not_served")), (1, 0));
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_from_the_controller_works_between_peers() {
    let bench = Bench::new();
    bench.pods(&[("shop/web-1", "web", "n1")]);
    let old = bench.roots();
    bench.ca.send_replace(Some(Arc::new(new_ca().trusting(&old))));
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    let store = store(&client);
    let web = store.acquire(id("shop", "web"));
    web.ready(tokio::time::Instant::now() + SOON).await.unwrap();
    assert_eq!(web.info().roots.len(), 2, "old and new root while one is replaced");
    assert!(web.server_config().is_some());
    running.stop().await;
}

#[tokio::test]
async fn without_a_ca_and_without_a_connection_it_says_so() {
    let bench = Bench::new();
    bench.pods(&[("shop/web-1", "web", "n1")]);
    let roots = bench.roots();
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    connected(&client).await;
    bench.ca.send_replace(None);
    let refused = ask(&client, id("shop", "web")).await.unwrap_err();
    assert!(matches!(&refused, IssueError::Unavailable { reason } if reason.contains("no CA")), "{refused}");
    drop(client);

    let nowhere = watch::Sender::new(None).subscribe();
    let timing = crate::Timing { connection: Duration::from_millis(50), ..crate::Timing::default() };
    let roots = watch::Sender::new(Some(roots)).subscribe();
    let client = ControlClient::start(ClientConfig { timing, ..ClientConfig::new(nowhere, roots, "n1") });
    let refused = ask(&client, id("shop", "web")).await.unwrap_err();
    assert!(matches!(&refused, IssueError::Unavailable { reason } if reason.contains("no connection")));
    running.stop().await;
}

#[tokio::test]
async fn a_node_that_asks_too_much_is_put_off() {
    let bench = Bench::new();
    bench.pods(&[("shop/web-1", "web", "n1"), ("shop/web-2", "web", "n2")]);
    let limits = Limits { burst_per_node: 2, rate_per_node: 0, ..Limits::default() };
    let running = bench.serve(limits);
    let (one, two) = (bench.client("n1"), bench.client("n2"));
    for _ in 0..2 {
        ask(&one, id("shop", "web")).await.unwrap();
    }
    let refused = ask(&one, id("shop", "web")).await.unwrap_err();
    assert!(
        matches!(&refused, IssueError::Unavailable { reason } if reason.contains("too many")),
        "{refused}"
    );
    ask(&two, id("shop", "web")).await.unwrap();
    assert_eq!((running.count("signed"), running.count("refused_too_many")), (3, 1));
    running.stop().await;
}
