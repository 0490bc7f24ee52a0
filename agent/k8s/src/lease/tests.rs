use super::*;
use crate::apiserver::{ApiServer, refuse};
use serde_json::{Value, json};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-controller";

fn stand(server: &ApiServer, identity: &str) -> Election {
    lead(server.client(), LeaseConfig::new("weft-system", "weft-controller", identity))
}

fn spec(server: &ApiServer) -> Value {
    server.at(PATH).map_or(Value::Null, |lease| lease["spec"].clone())
}

async fn until_leads(election: &Election, leads: bool) {
    let mut leadership = election.leadership();
    let wait = leadership.wait_for(|l| l.leads() == leads);
    tokio::time::timeout(Duration::from_secs(600), wait).await.expect("in time").expect("the elector lives");
}

fn holder(election: &Election) -> Option<String> {
    match &*election.leadership().borrow() {
        Leadership::Follower { holder } => holder.as_deref().map(str::to_owned),
        Leadership::Leader { .. } => None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_and_the_second_follows() {
    let server = ApiServer::new();
    let a = stand(&server, "a");
    until_leads(&a, true).await;
    let b = stand(&server, "b");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(a.leadership().borrow().leads() && !b.leadership().borrow().leads());
    assert_eq!(holder(&b).as_deref(), Some("a"));
    let spec = spec(&server);
    assert_eq!((&spec["holderIdentity"], &spec["leaseTransitions"]), (&json!("a"), &json!(0)));
    assert_eq!(spec["leaseDurationSeconds"], 10);
    assert!(spec["acquireTime"].is_string() && spec["acquireTime"] != spec["renewTime"]);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_leader_is_replaced_within_fifteen_seconds() {
    // At different moments between two renewals.
    for millis in [0, 700, 1900, 2900] {
        let server = ApiServer::new();
        let a = stand(&server, "a");
        until_leads(&a, true).await;
        let b = stand(&server, "b");
        tokio::time::sleep(Duration::from_millis(30_000 + millis)).await;
        drop(a);
        let crashed = Instant::now();
        until_leads(&b, true).await;
        let took = crashed.elapsed();
        assert!(took < Duration::from_secs(15) && took > Duration::from_secs(6), "{took:?}");
        assert_eq!(
            (&spec(&server)["holderIdentity"], &spec(&server)["leaseTransitions"]),
            (&json!("b"), &json!(1))
        );
        let Leadership::Leader { term } = b.leadership().borrow().clone() else { panic!("b leads") };
        assert_eq!(term.number(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_hands_over_at_once() {
    let server = ApiServer::new();
    let a = stand(&server, "a");
    until_leads(&a, true).await;
    let Leadership::Leader { term } = a.leadership().borrow().clone() else { panic!("a leads") };
    let b = stand(&server, "b");
    tokio::time::sleep(Duration::from_secs(30)).await;
    a.release().await;
    assert!(!term.stands());
    assert_eq!(spec(&server)["holderIdentity"], "");
    let released = Instant::now();
    until_leads(&b, true).await;
    assert!(released.elapsed() < Duration::from_secs(3), "{:?}", released.elapsed());
    assert_eq!(spec(&server)["leaseTransitions"], 1);
    assert_eq!(spec(&server)["leaseDurationSeconds"], 10);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_before_another_may_lead() {
    let server = ApiServer::new();
    let a = stand(&server, "a");
    until_leads(&a, true).await;
    let Leadership::Leader { term } = a.leadership().borrow().clone() else { panic!("a leads") };
    let b = stand(&server, "b");
    tokio::time::sleep(Duration::from_secs(30)).await;
    // The API server answers only b.
    server.set_fault(|request| {
        let of_a = request.method == "PUT" && request.body["spec"]["holderIdentity"] == "a";
        of_a.then(|| refuse(500, "down"))
    });
    let cut = Instant::now();
    term.ended().await;
    let stopped = cut.elapsed();
    assert!(!b.leadership().borrow().leads() && !term.stands());
    until_leads(&a, false).await;
    until_leads(&b, true).await;
    let taken = cut.elapsed();
    assert!(
        stopped <= Duration::from_secs(8) && taken - stopped >= Duration::from_secs(1),
        "{stopped:?} {taken:?}"
    );
    assert_eq!(holder(&a).as_deref().unwrap_or("b"), "b");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_api_server_does_not_keep_a_leader_in_office() {
    let server = ApiServer::new();
    let a = stand(&server, "a");
    until_leads(&a, true).await;
    server.set_latency(Duration::from_secs(3600));
    let cut = Instant::now();
    until_leads(&a, false).await;
    assert!(cut.elapsed() <= Duration::from_secs(8), "{:?}", cut.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_edited_or_taken_by_another() {
    let server = ApiServer::new();
    let a = stand(&server, "a");
    until_leads(&a, true).await;
    let edit = |edit: &dyn Fn(&mut Value)| {
        let mut lease = server.at(PATH).expect("a Lease");
        edit(&mut lease);
        server.store(PATH, lease);
    };
    // A label costs a conflict, not the term.
    edit(&|lease| lease["metadata"]["labels"] = json!({"seen": "yes"}));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(a.leadership().borrow().leads());
    assert_eq!(spec(&server)["leaseTransitions"], 0);
    // Another holder ends it at the next renewal.
    edit(&|lease| lease["spec"]["holderIdentity"] = json!("b"));
    until_leads(&a, false).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(holder(&a).as_deref(), Some("b"));
    // Nobody renews it: it is ours again, and the holder has changed once more.
    until_leads(&a, true).await;
    assert_eq!(spec(&server)["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_process_takes_its_own_lease_back_at_once() {
    let server = ApiServer::new();
    let a = stand(&server, "a");
    until_leads(&a, true).await;
    drop(a);
    let restarted = Instant::now();
    let again = stand(&server, "a");
    until_leads(&again, true).await;
    assert!(restarted.elapsed() < Duration::from_secs(1));
    assert_eq!(spec(&server)["leaseTransitions"], 0);
}

#[tokio::test(start_paused = true)]
async fn other_clocks_do_not_matter() {
    let server = ApiServer::new();
    // A holder whose clock is years ahead, or behind, and who is gone.
    for time in ["2099-01-01T00:00:00.000000Z", "1999-01-01T00:00:00.000000Z"] {
        server.store(
            PATH,
            json!({"metadata": {}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 10, "renewTime": time,
                "acquireTime": time, "leaseTransitions": 4}}),
        );
        let began = Instant::now();
        let a = stand(&server, "a");
        until_leads(&a, true).await;
        assert!((10..12).contains(&began.elapsed().as_secs()), "{time}: {:?}", began.elapsed());
        assert_eq!(spec(&server)["leaseTransitions"], 5);
        a.release().await;
    }
}
