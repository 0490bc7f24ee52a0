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
    /// One request.
    Request,
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
    /// Hundredths of what the process may have.
    Percent,
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
    /// The bound of a row in [`Unit::Percent`], of a process that may have `all`.
    #[must_use]
    pub const fn part_of(&self, all: usize) -> usize {
        (all / 100).saturating_mul(self.size())
    }

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

/// Pods of a namespace whose labels and annotations say what is not so, as far as Events tell of it.
pub const REMARKED_PODS: Budget = Budget {
    name: "remarked-pods",
    holds: "pods of which an Event has said that a label or annotation means nothing or is overruled",
    per: Per::Namespace,
    bound: 20,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Controller,
    when_reached: "an Event of the namespace says so; `weft check` goes on naming all",
    flood: "a_flood_of_wrong_labels_is_told_of_a_few_pods_and_of_the_namespace",
};

/// Overlaps of routes that are told of.
pub const OVERLAPS: Budget = Budget {
    name: "overlaps",
    holds: "pairs of routes of different namespaces that take each other's requests, as Events and `weft check` name them",
    per: Per::Process,
    bound: 1_000,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Controller,
    when_reached: "further ones are not looked for; of one route three are named",
    flood: "overlaps_of_one_route_and_of_all_are_bounded",
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

/// Listening sockets of all Gateways.
pub const GATEWAY_SOCKETS: Budget = Budget {
    name: "gateway-sockets",
    holds: "of the agent's file descriptors, the listening sockets of Gateways; those of one namespace half of it",
    per: Per::Process,
    bound: 25,
    unit: Unit::Percent,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "a listener that is not open yet stays closed, and its Gateway's `Programmed` says so",
    flood: "listeners_of_gateways_leave_descriptors_to_pods",
};

/// Connections of all Gateways.
pub const GATEWAY_CONNECTIONS: Budget = Budget {
    name: "gateway-connections",
    holds: "as many clients' connections and UDP sessions of Gateways as make this part of the agent's file descriptors, \
            those to backends come to as much again; one Gateway has half of it",
    per: Per::Process,
    bound: 25,
    unit: Unit::Percent,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "the new connection is reset",
    flood: "connections_to_gateways_leave_descriptors_to_pods",
};

/// Retries of one request.
pub const RETRY_ATTEMPTS: Budget = Budget {
    name: "retry-attempts",
    holds: "tries of a request beyond the first, whatever `retry.attempts` says",
    per: Per::Request,
    bound: 100,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "the last try's answer or error is handed to the client; the route's `Accepted` says the bound",
    flood: "a_request_is_not_retried_without_end",
};

/// Retries of all requests of a workload.
pub const RETRIES: Budget = Budget {
    name: "retries",
    holds: "tries that only a route's `retry` asks for, beside one for every five requests; up to 100 of each are saved up",
    per: Per::Workload,
    bound: 10,
    unit: Unit::PerSecond,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "the last try's answer or error is handed to the client",
    flood: "retries_of_a_workload_do_not_multiply_its_requests",
};

/// Connections to an agent's or the controller's page on the network whose caller is not known to be let in.
pub const PAGE_STRANGERS: Budget = Budget {
    name: "page-strangers",
    holds: "connections to port 15020 that have not shown a right to the page",
    per: Per::Process,
    bound: 64,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the oldest of the address that has the most is closed",
    flood: "half_sent_requests_keep_nobody_from_the_pages",
};

/// The same from one address.
pub const PAGE_STRANGERS_PER_ADDRESS: Budget = Budget {
    name: "page-strangers-per-address",
    holds: "connections of one address to port 15020 that have not shown a right to the page",
    per: Per::Address,
    bound: 4,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the oldest of that address is closed",
    flood: "half_sent_requests_keep_nobody_from_the_pages",
};

/// Questions to the API server about callers of a page, for one address.
pub const PAGE_REVIEWS: Budget = Budget {
    name: "page-reviews",
    holds: "tokens shown at port 15020 about which the API server is asked, after a burst of 32",
    per: Per::Address,
    bound: 2,
    unit: Unit::PerSecond,
    setting: None,
    held_by: HeldBy::Both,
    when_reached: "the request is answered with 429",
    flood: "worthless_tokens_cost_the_api_server_little_and_scrapers_nothing",
};

/// Connections to the controller's port for agents that have shown no good token yet.
pub const AGENT_STRANGERS: Budget = Budget {
    name: "agent-strangers",
    holds: "connections to port 15012 that have shown no good token",
    per: Per::Process,
    bound: 1024,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Controller,
    when_reached: "the oldest of the address that has the most is closed",
    flood: "silent_strangers_keep_no_agent_out",
};

/// The same from one address.
pub const AGENT_STRANGERS_PER_ADDRESS: Budget = Budget {
    name: "agent-strangers-per-address",
    holds: "connections of one address to port 15012 that have shown no good token",
    per: Per::Address,
    bound: 8,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Controller,
    when_reached: "the oldest of that address is closed",
    flood: "silent_strangers_keep_no_agent_out",
};

/// Questions to the API server about agents' tokens, for one address.
pub const AGENT_REVIEWS: Budget = Budget {
    name: "agent-reviews",
    holds: "tokens shown at port 15012 about which the API server is asked, after a burst of 64",
    per: Per::Address,
    bound: 8,
    unit: Unit::PerSecond,
    setting: None,
    held_by: HeldBy::Controller,
    when_reached: "the call is refused and may be tried again",
    flood: "garbage_tokens_keep_no_agent_waiting",
};

/// Streams that a client opens only to reset them.
pub const STREAM_RESETS: Budget = Budget {
    name: "stream-resets",
    holds: "streams of an HTTP/2 connection, most of which its client has reset within a second",
    per: Per::Connection,
    bound: 500,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "the connection is ended with GOAWAY",
    flood: "a_flood_of_resets_ends_its_connection_whatever_its_pace",
};

/// Clients of one UDP listener.
pub const UDP_SESSIONS: Budget = Budget {
    name: "udp-sessions",
    holds: "sessions of one UDP listener on one worker: a client's address and a socket towards its endpoint",
    per: Per::Workload,
    bound: 8192,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "one that was never answered is ended, else the one that has been quiet for longest",
    flood: "five_thousand_udp_sources_a_second_silence_nobody",
};

/// Those of them whose addresses are of one network.
pub const UDP_SESSIONS_OF_NETWORK: Budget = Budget {
    name: "udp-sessions-of-network",
    holds: "sessions of one UDP listener on one worker whose clients are of one network (IPv4 /24, IPv6 /64)",
    per: Per::Address,
    bound: 2048,
    unit: Unit::Count,
    setting: None,
    held_by: HeldBy::Agent,
    when_reached: "one of the same network is ended, chosen in the same way",
    flood: "five_thousand_udp_sources_a_second_silence_nobody",
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
    &REMARKED_PODS,
    &OVERLAPS,
    &TRAFFIC_MEMORY,
    &GATEWAY_SOCKETS,
    &GATEWAY_CONNECTIONS,
    &RETRY_ATTEMPTS,
    &RETRIES,
    &PAGE_STRANGERS,
    &PAGE_STRANGERS_PER_ADDRESS,
    &PAGE_REVIEWS,
    &AGENT_STRANGERS,
    &AGENT_STRANGERS_PER_ADDRESS,
    &AGENT_REVIEWS,
    &STREAM_RESETS,
    &UDP_SESSIONS,
    &UDP_SESSIONS_OF_NETWORK,
    &ROUTES,
    &MATCHES,
    &PATTERN,
    &ROUTE_PATTERNS,
    &NAMESPACE_PATTERNS,
    &CONFIG_TEXT,
    &CONFIG_VALUES,
    &OBJECT_TEXT,
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
        Per::Request => "request",
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
        Unit::Percent => format!("{bound} %"),
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
        check(25, Unit::Percent, "25 %");
    }
}
