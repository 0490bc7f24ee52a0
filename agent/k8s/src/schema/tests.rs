use super::*;
use std::collections::BTreeSet;

#[test]
fn every_rule_of_the_data_has_a_function_and_the_other_way_round() {
    let data: BTreeSet<&str> =
        gateway_api().nodes.iter().flat_map(|n| &n.rules).map(String::as_str).collect();
    let code: BTreeSet<&str> = rules::RULES.iter().map(|(name, _)| *name).collect();
    assert_eq!(data, code);
}

#[test]
fn every_pattern_of_the_data_compiles() {
    for pattern in gateway_api().nodes.iter().filter_map(|n| n.pattern.as_deref()) {
        assert!(Regex::new(pattern).is_ok(), "{pattern}");
    }
}

#[test]
fn every_kind_of_the_group_has_a_schema() {
    let kinds: Vec<&str> = gateway_api().kinds.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "BackendTLSPolicy",
            "GRPCRoute",
            "Gateway",
            "GatewayClass",
            "HTTPRoute",
            "ListenerSet",
            "ReferenceGrant",
            "TCPRoute",
            "TLSRoute",
            "UDPRoute",
        ]
    );
}
