//! The stream: reports up, material down, and what happens when either side goes away.

use super::*;

#[tokio::test]
async fn reports_go_up_and_material_comes_down() {
    let bench = Bench::new();
    bench.material("n1", material(&["infra/cert"], &["infra/ca"]));
    bench.material("n2", material(&["infra/other"], &[]));
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    client.report(applied(&[("infra/edge", 3)]));
    client.captured([(key("shop/web"), capture("u-1")), (key("shop/cart"), capture("u-2"))].into());

    let got = until(&mut client.material(), |m| !m.secrets.is_empty()).await;
    assert_eq!(*got, material(&["infra/cert"], &["infra/ca"]), "and nothing of other nodes");

    let mut agents = running.server.agents();
    let has = |agents: &Arc<crate::Agents>, generation: i64, captured: usize| {
        agents.get("n1").is_some_and(|report| {
            report.applied.get(&key("infra/edge")).is_some_and(|g| g.mark.generation == generation)
                && report.captured.len() == captured
        })
    };
    let all = until(&mut agents, |agents| has(agents, 3, 2)).await;
    assert_eq!((all.len(), &*all["n1"].version, all["n1"].gone), (1, env!("CARGO_PKG_VERSION"), None));

    client.report(applied(&[("infra/edge", 4), ("infra/more", 1)]));
    client.captured([(key("shop/web"), capture("u-1"))].into());
    let all = until(&mut agents, |agents| has(agents, 4, 1) && agents["n1"].applied.len() == 2).await;
    assert_eq!(names(&*all["n1"].captured), ["shop/web"]);

    bench.material("n1", material(&["infra/cert2"], &["infra/ca"]));
    let got = until(&mut client.material(), |m| m.secrets.contains_key(&key("infra/cert2"))).await;
    assert_eq!(names(&got.secrets), ["infra/cert2"]);
    running.stop().await;
}

#[tokio::test]
async fn an_agent_that_leaves_is_gone_and_then_forgotten() {
    let bench = Bench::new();
    let running = bench.serve(Limits { gone: Duration::from_millis(300), ..Limits::default() });
    let mut agents = running.server.agents();
    let client = bench.client("n1");
    client.report(applied(&[("infra/edge", 1)]));
    until(&mut agents, |agents| agents.get("n1").is_some_and(|a| a.reported)).await;
    drop(client);
    until(&mut agents, |agents| agents.is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn while_an_agent_is_replaced_the_old_one_counts_until_the_new_one_serves() {
    let bench = Bench::new();
    let running = bench.serve(Limits { gone: Duration::from_secs(3600), ..Limits::default() });
    let mut agents = running.server.agents();
    let old = ControlClient::start(ClientConfig { instance: "old".into(), ..bench.config("n1") });
    old.report(applied(&[("infra/edge", 1)]));
    until(&mut agents, |agents| agents.get("n1").is_some_and(|a| a.applied.len() == 1)).await;
    let new = ControlClient::start(ClientConfig { instance: "new".into(), ..bench.config("n1") });
    connected(&new).await;
    running.until_counted("streams", 2).await;
    assert_eq!(&*agents.borrow()["n1"].instance, "old");
    new.report(applied(&[("infra/edge", 2)]));
    until(&mut agents, |agents| &*agents["n1"].instance == "new").await;
    drop(new);
    until(&mut agents, |agents| &*agents["n1"].instance == "old").await;
    drop(old);
    until(&mut agents, |agents| agents["n1"].gone.is_some()).await;
    let again = ControlClient::start(ClientConfig { instance: "again".into(), ..bench.config("n1") });
    let last = until(&mut agents, |agents| &*agents["n1"].instance == "again").await;
    assert_eq!(last["n1"].applied[&key("infra/edge")].mark.generation, 1, "what was said last");
    again.report(applied(&[]));
    until(&mut agents, |agents| agents["n1"].applied.is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn after_a_restart_of_the_server_everything_is_said_again() {
    let bench = Bench::new();
    bench.material("n1", material(&["infra/cert"], &[]));
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    client.report(applied(&[("infra/edge", 3)]));
    client.captured([(key("shop/web"), capture("u-1"))].into());
    until(&mut running.server.agents(), |agents| agents.get("n1").is_some_and(|a| a.captured.len() == 1))
        .await;
    running.stop().await;
    until(&mut client.state(), |state| !state.connected).await;
    client.report(applied(&[("infra/edge", 5)]));
    bench.material("n1", material(&["infra/cert3"], &[]));

    let running = bench.serve(Limits::default());
    let all = until(&mut running.server.agents(), |agents| {
        agents.get("n1").is_some_and(|a| a.captured.len() == 1 && a.applied.len() == 1)
    })
    .await;
    assert_eq!(all["n1"].applied[&key("infra/edge")].mark.generation, 5);
    let got = until(&mut client.material(), |m| m.secrets.contains_key(&key("infra/cert3"))).await;
    assert_eq!(names(&got.secrets), ["infra/cert3"]);
    running.stop().await;
}

#[tokio::test]
async fn a_controller_that_knows_nothing_yet_takes_nothing_away() {
    let bench = Bench::new();
    bench.material("n1", material(&["infra/cert"], &[]));
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    until(&mut client.material(), |m| m.secrets.len() == 1).await;
    running.stop().await;
    bench.materials.send_replace(Arc::default());
    let running = bench.serve(Limits::default());
    connected(&client).await;
    client.report(applied(&[]));
    until(&mut running.server.agents(), |agents| agents.get("n1").is_some_and(|a| a.reported)).await;
    assert_eq!(client.material().borrow().secrets.len(), 1);
    bench.material("n1", Material::default());
    until(&mut client.material(), |m| m.secrets.is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn only_the_leader_answers() {
    let bench = Bench::new();
    let running = bench.serve(Limits::default());
    running.server.set_leading(Leading { leader: false, holder: "other".into() });
    let client = bench.client("n1");
    let state = until(&mut client.state(), |state| state.failures > 0).await;
    let error = state.last_error.unwrap();
    assert!(error.contains("not the leader: other is"), "{error}");
    running.server.set_leading(Leading { leader: true, holder: "us".into() });
    connected(&client).await;
    running.server.set_leading(Leading { leader: false, holder: "other".into() });
    let state = until(&mut client.state(), |state| !state.connected).await;
    assert!(state.last_error.unwrap().contains("other"));
    running.stop().await;
}

#[tokio::test]
async fn follows_the_controller_to_another_address_and_root() {
    let (first, second) = (Bench::new(), Bench::new());
    let (one, two) = (first.serve(Limits::default()), second.serve(Limits::default()));
    let address = watch::Sender::new(None);
    let roots = watch::Sender::new(None);
    let config = first.config("n1");
    let _client = ControlClient::start(ClientConfig {
        address: address.subscribe(),
        roots: roots.subscribe(),
        ..config
    });
    roots.send_replace(Some(first.roots()));
    address.send_replace(Some(first.address()));
    until(&mut one.server.agents(), |agents| agents.contains_key("n1")).await;
    roots.send_replace(Some(first.roots().with(&second.roots())));
    address.send_replace(Some(second.address()));
    until(&mut two.server.agents(), |agents| agents.contains_key("n1")).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_server_under_another_root_is_not_trusted() {
    let (bench, stranger) = (Bench::new(), Bench::new());
    let running = bench.serve(Limits::default());
    let client = ControlClient::start(ClientConfig {
        roots: watch::Sender::new(Some(stranger.roots())).subscribe(),
        ..bench.config("n1")
    });
    let state = until(&mut client.state(), |state| state.failures > 0).await;
    assert!(state.last_error.unwrap().contains("does not trust"));
    assert_eq!(running.count("streams"), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_new_ca_changes_the_servers_certificate() {
    let bench = Bench::new();
    let running = bench.serve(Limits::default());
    connected(&bench.client("n1")).await;
    let old = bench.roots();
    bench.ca.send_replace(Some(Arc::new(new_ca().trusting(&old))));
    assert_eq!(bench.roots().roots().len(), 2);
    let new_only = bench.roots().roots()[0].clone();
    let config = bench.config("n2");
    let client = ControlClient::start(ClientConfig {
        roots: watch::Sender::new(Some(TrustBundle::new([new_only]).unwrap())).subscribe(),
        ..config
    });
    connected(&client).await;
    running.stop().await;
}

#[tokio::test]
async fn streams_are_authenticated_anew_in_time() {
    let bench = Bench::new();
    let running = bench.serve(Limits { stream_life: Duration::from_millis(200), ..Limits::default() });
    let client = bench.client("n1");
    connected(&client).await;
    running.until_counted("streams", 3).await;
    bench.write_token("n1", "expired");
    running.until_counted("refused_token_expired", 1).await;
    until(&mut client.state(), |s| s.last_error.as_ref().is_some_and(|e| e.contains("expired"))).await;
    bench.write_token("n1", "agent@n1");
    connected(&client).await;
    running.stop().await;
}

#[tokio::test]
async fn budgets_that_were_reached_are_told_and_taken_back() {
    let bench = Bench::new();
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    let reached = |times| crate::BudgetReached {
        workload: key("shop/cart"),
        gateway: false,
        budget: &weft_core::budget::CONNECTIONS_IN,
        times,
    };
    let mut agents = running.server.agents();
    let told = |agents: &Arc<crate::Agents>| agents.get("n1").map(|agent| (*agent.reached).clone());
    for now in [vec![reached(3)], vec![reached(4)], vec![]] {
        client.reached(now.clone());
        until(&mut agents, |agents| told(agents) == Some(now.clone())).await;
    }
    running.stop().await;
}
