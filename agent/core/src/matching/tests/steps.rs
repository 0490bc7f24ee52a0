//! The cost of a lookup does not depend on the size of the table. Counted in steps, so the test cannot flake.

use super::world::{Request, entry};
use crate::matching::{Entry, RouteTable, words::steps};

/// Steps of one lookup among `count` rules made by `rule`.
fn cost(count: u16, rule: impl Fn(u16) -> String, request: &str) -> usize {
    let entries: Vec<Entry<u16>> = (0..count).map(|i| entry(i, &rule(i))).collect();
    let table = RouteTable::build(entries);
    let request = Request::parse(request);
    let (found, steps) = steps::of(|| table.select(&request.head()).map(|s| s.entry.policy));
    assert_eq!(found, Some(0));
    steps
}

#[test]
fn ten_thousand_rules_cost_what_one_costs() {
    type Rule = fn(u16) -> String;
    let worlds: [(Rule, &str); 6] = [
        (|i| format!("h{i}.com /"), "GET h0.com /a/b/c"),
        (|i| format!("*.h{i}.com /"), "GET x.y.h0.com /a/b/c"),
        (|i| format!("- =/a/{i}"), "GET h /a/0"),
        (|i| format!("- /a/{i}"), "GET h /a/0/x/y"),
        (|i| format!("- grpc:S{i}/M"), "POST h /S0/M"),
        (|i| format!("h{i}.com /a/{i} GET h:x=1 q:y=1"), "GET h0.com /a/0/b?y=1 h:x=1"),
    ];
    for (rule, request) in worlds {
        let (one, many) = (cost(1, rule, request), cost(10_000, rule, request));
        assert!(one <= 8, "{request}: {one} steps");
        assert_eq!(one, many, "{request}");
    }
}
