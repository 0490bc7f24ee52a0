use super::*;

#[test]
fn annotations_are_read_entry_by_entry() {
    fn check(annotation: &str, value: &str, want: &[&str], bad: &[&str]) {
        let (config, invalid) = CaptureConfig::from_annotations([(annotation, value), ("other", "1")]);
        let ports = config.inbound_ports.iter().chain(&config.outbound_ports).map(ToString::to_string);
        let cidrs = config.inbound_cidrs.iter().chain(&config.outbound_cidrs).map(ToString::to_string);
        assert_eq!(ports.chain(cidrs).collect::<Vec<_>>(), want, "{annotation}={value}");
        let reported: Vec<&str> = invalid.iter().map(|i| i.entry.as_str()).collect();
        assert_eq!(reported, bad, "{annotation}={value}");
    }
    let ports = "weft.dev/exclude-outbound-ports";
    check(ports, "", &[], &[]);
    check(ports, " 443 ,5432,443,", &["443", "5432"], &[]);
    check(ports, "0,65536,-1,http,80", &["80"], &["0", "65536", "-1", "http"]);
    let cidrs = "weft.dev/exclude-inbound-cidrs";
    check(cidrs, "10.0.0.7/8,1.2.3.4,fd00::/8", &["1.2.3.4/32", "10.0.0.0/8", "fd00::/8"], &[]);
    check(cidrs, "10.0.0.0/33,shop,::1", &["::1/128"], &["10.0.0.0/33", "shop"]);
}

#[test]
fn too_many_entries_are_reported_once() {
    let many: Vec<String> = (1..=300).map(|p| p.to_string()).collect();
    let (config, invalid) =
        CaptureConfig::from_annotations([("weft.dev/exclude-inbound-ports", many.join(",").as_str())]);
    assert_eq!((config.inbound_ports.len(), invalid.len()), (256, 1));
}

/// B6: a pod's annotation opened what its namespace's strict had closed.
#[test]
fn under_a_namespaces_strict_only_its_own_annotations_open_a_pod() {
    let read = |annotations: &[(&str, &str)]| CaptureConfig::from_annotations(annotations.iter().copied()).0;
    let pod = read(&[
        ("weft.dev/exclude-inbound-ports", "22"),
        ("weft.dev/exclude-inbound-cidrs", "0.0.0.0/0"),
        ("weft.dev/exclude-outbound-ports", "5432"),
    ]);
    let namespace = read(&[
        ("weft.dev/exclude-inbound-ports", "9090"),
        ("weft.dev/exclude-outbound-cidrs", "192.0.2.0/24"),
    ]);
    let check = |strict: bool, inbound: &[u16], open: bool| {
        let config = pod.clone().within(namespace.clone(), strict);
        assert_eq!(config.inbound_ports, inbound.iter().copied().collect(), "strict: {strict}");
        assert_eq!(!config.inbound_cidrs.is_empty(), open, "strict: {strict}");
        // Calls of the pod's own are no hole in what the namespace lets in.
        assert_eq!(config.outbound_ports, [5432].into(), "strict: {strict}");
        assert_eq!(config.outbound_cidrs.len(), 1, "strict: {strict}");
    };
    check(true, &[9090], false);
    check(false, &[22, 9090], true);
}
