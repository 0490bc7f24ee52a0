//! What the retries of one workload may add to its requests.

use super::support::*;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use weft_core::{
    budget::{RETRIES, RETRY_ATTEMPTS},
    config::AppProtocol,
    model::Retry,
};

#[test]
fn retries_of_a_workload_are_bounded_and_its_neighbour_retries() {
    run(async {
        let app = App::start(|_, _| Box::pin(async { text(503, "x") })).await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let attempts = u32::try_from(RETRY_ATTEMPTS.bound).unwrap();
        let retry = Some(Arc::new(Retry { codes: vec![503], attempts, backoff: Some(Duration::ZERO) }));
        let rule = crate::http::tests::support::rule(to(&only));
        let rule = weft_core::config::HttpRule { retry, ..rule };
        let bed = Bed::new(world.frontend(&only, Some(vec![(prefix("/"), rule)])));
        let at = bed.mesh().await;
        // Ten times the budget is asked for.
        let requests = 10 * RETRIES.bound / RETRY_ATTEMPTS.bound;
        let started = Instant::now();
        for _ in 0..requests {
            assert_eq!(get(at, "/").await.0, 503);
        }
        let retries = app.count() as u64 - requests;
        let came = started.elapsed().as_millis() as u64 / 100 + 1;
        assert!(retries >= RETRIES.bound, "small numbers are made: {retries}");
        assert!(retries <= RETRIES.bound + requests / 5 + came, "{retries}");
        let reached = bed.shared.budgets.list(None, Instant::now());
        let told: Vec<String> = reached.iter().map(|r| format!("{} {}", r.budget.name, r.by.key)).collect();
        assert_eq!(told, ["retries client/curl"]);
        // A pod that asks for little gets all of it.
        let before = app.count();
        assert_eq!(get(bed.neighbour().mesh().await, "/").await.0, 503);
        assert_eq!((app.count() - before) as u64, 1 + RETRY_ATTEMPTS.bound);
    });
}
