//! Big worlds: work and sharing are what an edit touches. Times are measured elsewhere.

use super::{incremental::big, world::*};
use crate::engine::{Engine, Feedback};

/// Ten thousand routes on one listener: an edit resolves one route and compiles one table, and all others' statuses
/// are the same values as before.
#[test]
fn one_route_of_ten_thousand() {
    let mut w = big(1, 10_000);
    let mut engine = Engine::new(settings());
    let feedback = Feedback::default();
    let first = engine.apply(w.0.clone(), &feedback);
    let before = engine.work();
    w.route(http_route("shop/r7", &["Gateway infra/g0#http"], vec![rule("/r7/new", &["web"])]));
    let second = engine.apply(w.0.clone(), &feedback);
    assert_eq!(engine.work().routes - before.routes, 1);
    assert_eq!(engine.work().tables - before.tables, 1);
    assert!(second.changed.is_empty(), "the conditions say the same");
    assert_eq!(second.config.version, first.config.version + 1);
    let shared = first.statuses.iter().all(|(o, s)| std::sync::Arc::ptr_eq(s, &second.statuses[o]));
    assert!(shared);
    assert_eq!(Applied(second).get("infra/g0", 80, "a/r7/new"), "shop/r7[0] shop/web:80=1");
}
