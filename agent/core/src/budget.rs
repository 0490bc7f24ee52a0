//! Everything that a tenant may make Weft hold, in one table.
//!
//! A *tenant* is a namespace; a *workload* is a pod or a Gateway. Whatever a tenant's objects, connections or bytes can
//! make grow in an agent or in the controller has a row in [`ALL`]: what it is, how much of it, for whom it is counted.
//! Code that holds such a thing takes its bound from the row, so the table cannot say another number than the code.
//! When a bound is reached, the tenant that reached it is told, by the row's name, and nobody else notices.
//!
//! Each row names the test that asks for ten times as much. `tests/tests/house.rs` fails when that test is not there,
//! and when `docs/budgets.md` does not show this table.

/// A bound on one thing that a tenant can make Weft hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Budget {
    /// The word for it in conditions, Events, logs and the label `budget` of `weft_budget_reached_total`.
    pub name: &'static str,
    /// What is held, in plain words.
    pub holds: &'static str,
    /// Whose amount is counted.
    pub per: Per,
    /// The most that may be held; where the operator may set it, the default.
    pub bound: u64,
    /// What `bound` counts.
    pub unit: Unit,
    /// The field of `AgentConfig` that sets it, if one does.
    pub setting: Option<&'static str>,
    /// Which process holds it.
    pub held_by: HeldBy,
    /// What happens to what would exceed it.
    pub when_reached: &'static str,
    /// The test that asks for ten times as much: the name of its function.
    pub flood: &'static str,
}

/// Whose amount a [`Budget`] bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// One object of the API.
    Object,
    /// All objects of a namespace.
    Namespace,
    /// A pod or a Gateway on one worker thread of an agent.
    Workload,
    /// One connection.
    Connection,
    /// One address, or network prefix, that connections or datagrams come from.
    Address,
    /// One process, whoever asks: a sum.
    Process,
}

/// What a [`Budget`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of memory.
    Bytes,
    /// Things.
    Count,
    /// Things in a second.
    PerSecond,
}

/// Which process holds what a [`Budget`] bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// Each node's agent.
    Agent,
    /// The controller.
    Controller,
    /// Both: they read the same objects.
    Both,
}

impl Budget {
    /// The bound as a size of something in memory.
    #[must_use]
    pub const fn size(&self) -> usize {
        // Rows are far below what 32 bits hold.
        self.bound as usize
    }
}

/// Connections that a workload has accepted from captured applications, or at a Gateway's listeners.
pub const CONNECTIONS_OUT: Budget = Budget {
    name: "connections-out",
    holds: "open connections that the workload's application has made, or that a Gateway's clients have",
    per: Per::Workload,
    bound: 16_384,
    unit: Unit::Count,
    setting: Some("limits.connections"),
    held_by: HeldBy::Agent,
    when_reached: "the new connection is reset",
    flood: "connections_out_and_in_are_counted_apart",
};

/// Connections that others have made to a pod.
pub const CONNECTIONS_IN: Budget = Budget {
    name: "connections-in",
    holds: "open connections to the pod's application: streams of tunnels, and plaintext",
    per: Per::Workload,
    bound: 16_384,
    unit: Unit::Count,
    setting: Some("limits.connections"),
    held_by: HeldBy::Agent,
    when_reached: "the new connection is reset",
    flood: "connections_out_and_in_are_counted_apart",
};

/// Tunnels that other agents have opened to a pod.
pub const TUNNELS_IN: Budget = Budget {
    name: "tunnels-in",
    holds: "tunnels to the pod whose client has shown its certificate",
    per: Per::Workload,
    bound: 16_384,
    unit: Unit::Count,
    setting: Some("limits.connections"),
    held_by: HeldBy::Agent,
    when_reached: "the new tunnel is ended",
    flood: "tunnels_to_a_pod_are_bounded_and_leave_it_its_own_calls",
};

/// Connections whose peer has not yet shown a certificate.
pub const CONNECTIONS_UNPROVED: Budget = Budget {
    name: "connections-unproved",
    holds: "connections to a pod's HBONE port whose TLS handshake is not over",
    per: Per::Workload,
    bound: 256,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "of the address that has the most, the one that has waited longest is ended",
    flood: "silent_connections_to_hbone_cost_a_pod_nothing",
};

/// What the connections of all workloads of a node hold together.
pub const TRAFFIC_MEMORY: Budget = Budget {
    name: "traffic-memory",
    holds: "what connections, tunnels and streams hold, reckoned by kind, and bytes that were read and not written yet",
    per: Per::Process,
    bound: 512 << 20,
    unit: Unit::Bytes,
    setting: Some("limits.trafficBytes"),
    held_by: HeldBy::Agent,
    when_reached: "the workload that holds most gets no new connection, and those of its connections that were quiet for \
                   longest are ended",
    flood: "the_largest_workload_yields_when_the_nodes_memory_is_spent",
};

/// Routes of a namespace that are served.
pub const ROUTES: Budget = Budget {
    name: "routes",
    holds: "routes with a parent that Weft serves, of all kinds",
    per: Per::Namespace,
    bound: 10_000,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the newest are not served and get `Accepted=False/UnsupportedValue`",
    flood: "routes_of_a_namespace_are_bounded_and_the_newest_are_left_out",
};

/// Entries of the tables made of them.
pub const MATCHES: Budget = Budget {
    name: "matches",
    holds: "matches of such routes; a rule without any counts as one",
    per: Per::Namespace,
    bound: 20_000,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the newest routes are not served and get `Accepted=False/UnsupportedValue`",
    flood: "matches_of_a_namespace_are_bounded_and_neighbours_are_served",
};

/// One regular expression.
pub const PATTERN: Budget = Budget {
    name: "pattern",
    holds: "the program of a regular expression; three times `\\w` fit",
    per: Per::Object,
    bound: 64 << 10,
    unit: Unit::Bytes,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "its rule is not served: requests that meet the rest of the match get 500",
    flood: "what_is_wrong_is_said_in_one_line",
};

/// The regular expressions of a route.
pub const ROUTE_PATTERNS: Budget = Budget {
    name: "route-patterns",
    holds: "programs of the regular expressions of a route; equal ones count once",
    per: Per::Object,
    bound: 1 << 20,
    unit: Unit::Bytes,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the route gets `Accepted=False/UnsupportedValue`, and requests that it might match get 500",
    flood: "patterns_of_a_route_are_bounded",
};

/// The regular expressions of a namespace.
pub const NAMESPACE_PATTERNS: Budget = Budget {
    name: "namespace-patterns",
    holds: "programs of the regular expressions of its routes; equal ones count once",
    per: Per::Namespace,
    bound: 1 << 20,
    unit: Unit::Bytes,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the newest routes with such get `Accepted=False/UnsupportedValue`, and requests that they might match \
                   get 500",
    flood: "patterns_of_a_namespace_are_bounded_and_neighbours_are_served",
};

/// Tries of one request after the first.
pub const RETRY_ATTEMPTS: Budget = Budget {
    name: "retry-attempts",
    holds: "tries after the first that a route's `retry.attempts` gets for a request",
    per: Per::Object,
    bound: 100,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "no more are made; the message of `Accepted` says so",
    flood: "attempts_are_capped_and_it_is_said",
};

/// Such tries of all requests of a workload.
pub const RETRIES: Budget = Budget {
    name: "retries",
    holds: "retries that `retry` asks for beyond a fifth of the workload's requests; ten a second come back",
    per: Per::Workload,
    bound: 500,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "the request is not tried again: its client gets what the last try gave",
    flood: "retries_of_a_workload_are_bounded_and_its_neighbour_retries",
};

/// File descriptors of connections at Gateways.
pub const GATEWAY_DESCRIPTORS: Budget = Budget {
    name: "gateway-descriptors",
    holds: "file descriptors of connections at all Gateways, two for each, in hundredths of those that the process may \
            have; the rest is the pods'",
    per: Per::Process,
    bound: 75,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "a new connection to a Gateway is reset",
    flood: "gateways_leave_file_descriptors_to_pods",
};

/// The text of a `config.yaml`, which any ConfigMap may have.
pub const CONFIG_TEXT: Budget = Budget {
    name: "config-text",
    holds: "the text of a ConfigMap's `config.yaml`, not read unless a GatewayClass or Gateway names the ConfigMap",
    per: Per::Object,
    bound: 64 << 10,
    unit: Unit::Bytes,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the text is not kept, and who names it gets `InvalidParameters` with its size",
    flood: "config_maps_cost_no_more_than_their_text",
};

/// What reading such a text may need.
pub const CONFIG_VALUES: Budget = Budget {
    name: "config-values",
    holds: "the values of a `config.yaml` while it is read, reckoned by their kind; it has no anchors or aliases",
    per: Per::Object,
    bound: 1 << 20,
    unit: Unit::Bytes,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "it is refused, and who names it gets `InvalidParameters` with the line",
    flood: "texts_from_the_cluster_need_no_more_than_their_budget",
};

/// An object, as far as Weft reads it.
pub const OBJECT_TEXT: Budget = Budget {
    name: "object-text",
    holds: "an object that is watched, as JSON and without what Weft does not read",
    per: Per::Object,
    bound: 512 << 10,
    unit: Unit::Bytes,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the object is refused by name before it is read; its last good version stays in effect",
    flood: "objects_larger_than_their_budget_are_refused_by_name",
};

/// All rows, in the order in which they are shown.
pub static ALL: &[&Budget] = &[
    &CONNECTIONS_OUT,
    &CONNECTIONS_IN,
    &TUNNELS_IN,
    &CONNECTIONS_UNPROVED,
    &TRAFFIC_MEMORY,
    &OBJECT_TEXT,
    &CONFIG_TEXT,
    &CONFIG_VALUES,
    &ROUTES,
    &MATCHES,
    &PATTERN,
    &ROUTE_PATTERNS,
    &NAMESPACE_PATTERNS,
    &RETRY_ATTEMPTS,
    &RETRIES,
    &GATEWAY_DESCRIPTORS,
];

/// A row by its name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Budget> {
    ALL.iter().find(|budget| budget.name == name).copied()
}

/// The table as Markdown, one row for each budget.
#[must_use]
pub fn table() -> String {
    let mut text = String::from(
        "| budget | what is held | at most | set by | held by | when reached | test |\n|---|---|---|---|---|---|---|\n",
    );
    for budget in ALL {
        text.push_str(&row(budget));
    }
    text
}

fn row(budget: &Budget) -> String {
    let per = match budget.per {
        Per::Object => "object",
        Per::Namespace => "namespace",
        Per::Workload => "workload and worker",
        Per::Connection => "connection",
        Per::Address => "address",
        Per::Process => "process",
    };
    let held_by = match budget.held_by {
        HeldBy::Agent => "agent",
        HeldBy::Controller => "controller",
        HeldBy::Both => "agent, controller",
    };
    let setting = budget.setting.map_or_else(|| "fixed".to_owned(), |field| format!("`{field}`"));
    let Budget { name, holds, when_reached, flood, .. } = budget;
    let amount = amount(budget);
    format!(
        "| `{name}` | {holds} | {amount} for each {per} | {setting} | {held_by} | {when_reached} | `{flood}` |\n"
    )
}

/// `64 KiB`, `256`, `100/s`.
#[must_use]
pub fn amount(budget: &Budget) -> String {
    let Budget { bound, unit, .. } = budget;
    match unit {
        Unit::Bytes if bound % (1 << 20) == 0 => format!("{} MiB", bound >> 20),
        Unit::Bytes if bound % (1 << 10) == 0 => format!("{} KiB", bound >> 10),
        Unit::Bytes => format!("{bound} bytes"),
        Unit::Count => bound.to_string(),
        Unit::PerSecond => format!("{bound}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_words_and_differ() {
        let names: BTreeSet<&str> = ALL.iter().map(|b| b.name).collect();
        assert_eq!(names.len(), ALL.len(), "two rows of one name");
        for name in names {
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{name}: not a word of a-z and '-'"
            );
            assert_eq!(named(name).map(|b| b.name), Some(name));
        }
    }

    #[test]
    fn amounts_read_well() {
        let check = |bound, unit, want: &str| {
            assert_eq!(amount(&Budget { bound, unit, ..CONNECTIONS_OUT }), want);
        };
        check(1 << 20, Unit::Bytes, "1 MiB");
        check(24 << 10, Unit::Bytes, "24 KiB");
        check(1000, Unit::Bytes, "1000 bytes");
        check(256, Unit::Count, "256");
        check(100, Unit::PerSecond, "100/s");
    }
}
