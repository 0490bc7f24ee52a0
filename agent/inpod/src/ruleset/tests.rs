use super::*;

/// A compact text of the transaction: one line per command.
fn text(rules: &Nftables<'_>) -> Vec<String> {
    let json = serde_json::to_value(rules).unwrap();
    let commands = json["nftables"].as_array().unwrap();
    commands.iter().map(line).collect()
}

fn line(command: &serde_json::Value) -> String {
    let (verb, object) = command.as_object().unwrap().iter().next().unwrap();
    let (kind, fields) = object.as_object().unwrap().iter().next().unwrap();
    assert_eq!(fields["family"], "inet");
    match kind.as_str() {
        "table" => format!("{verb} table {}", fields["name"]),
        "chain" if fields["hook"].is_null() => format!("{verb} chain {}", fields["name"]),
        "chain" => format!(
            "{verb} chain {} {} {} {}",
            fields["name"], fields["type"], fields["hook"], fields["prio"]
        ),
        _ => format!("{} {}", fields["chain"], fields["expr"]),
    }
    .replace('"', "")
}

fn rules_of<'a>(lines: &'a [String], chain: &str) -> Vec<&'a str> {
    let prefix = format!("{chain} ");
    lines.iter().filter_map(|l| l.strip_prefix(prefix.as_str())).collect()
}

#[test]
fn the_table_is_replaced_in_one_transaction() {
    let lines = text(&ruleset(&CaptureConfig::default(), Mode::Capture, true));
    assert_eq!(&lines[..3], ["add table weft", "delete table weft", "add table weft"]);
    assert_eq!(text(&removal()), ["add table weft", "delete table weft"]);
    for chain in [
        "add chain mangle_prerouting filter prerouting -150",
        "add chain mangle_output route output -150",
        "add chain nat_prerouting nat prerouting -100",
        "add chain nat_output nat output -100",
        "add chain guard_input filter input 0",
        "add chain guard_output filter postrouting 0",
    ] {
        assert!(lines.iter().any(|l| l == chain), "{chain} is missing in {lines:#?}");
    }
}

#[test]
fn redirect_and_guard_share_their_exemptions() {
    let lines = text(&ruleset(&CaptureConfig::default(), Mode::Capture, true));
    let first_syn = "{match:{left:{&:[{payload:{field:flags,protocol:tcp}},23]},op:==,right:2}}";
    for (nat, guard, exempt, port) in [
        ("nat_prerouting", "guard_input", "exempt_inbound", 15006),
        ("nat_output", "guard_output", "exempt_outbound", 15001),
    ] {
        let jump = format!("[{first_syn},{{jump:{{target:{exempt}}}}}]");
        assert_eq!(
            rules_of(&lines, nat),
            [jump.clone(), format!("[{first_syn},{{redirect:{{port:{port}}}}}]")]
        );
        let guards = rules_of(&lines, guard);
        assert!(guards.ends_with(&[&jump, &format!("[{first_syn},{{drop:null}}]")]), "{guards:#?}");
    }
}

#[test]
fn draining_redirects_nothing_but_keeps_translation_and_marks() {
    let lines = text(&ruleset(&CaptureConfig::default(), Mode::Drain, true));
    let full = text(&ruleset(&CaptureConfig::default(), Mode::Capture, true));
    assert!(lines.iter().any(|l| l.starts_with("add chain nat_output")));
    assert!(lines.iter().any(|l| l.starts_with("add chain nat_prerouting")));
    assert!(!lines.iter().any(|l| l.contains("redirect") || l.contains("drop") || l.contains("reject")));
    assert_eq!(rules_of(&lines, "mangle_output"), rules_of(&full, "mangle_output"));
    assert!(full.iter().any(|l| l.contains(&lines[lines.len() - 1])), "marks are the same");
}

#[test]
fn exclusions_become_accepts() {
    let (config, invalid) = CaptureConfig::from_annotations([
        ("weft.dev/exclude-inbound-ports", "9090,80"),
        ("weft.dev/exclude-outbound-cidrs", "10.1.2.3/8, fd00::1"),
    ]);
    assert!(invalid.is_empty());
    let expected = [
        ("exempt_inbound", "tcp}},op:==,right:{set:[80,9090]}}},{accept:null}]", true),
        ("exempt_outbound", "right:{prefix:{addr:10.0.0.0,len:8}}}},{accept:null}]", true),
        ("exempt_outbound", "right:{prefix:{addr:fd00::1,len:128}}}},{accept:null}]", true),
        ("exempt_inbound", "prefix", false),
    ];
    let lines = text(&ruleset(&config, Mode::Capture, true));
    for (chain, part, there) in expected {
        let found = rules_of(&lines, chain).iter().any(|l| l.contains(part));
        assert_eq!(found, there, "{part} in {:#?}", rules_of(&lines, chain));
    }
    let without_ipv6 = text(&ruleset(&config, Mode::Capture, false));
    assert!(!without_ipv6.iter().any(|l| l.contains("fd00")), "an IPv6 rule in a pod without IPv6");
}

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

proptest::proptest! {
    #[test]
    fn no_annotation_panics_or_grows(value in ".{0,400}") {
        for name in ["weft.dev/exclude-inbound-ports", "weft.dev/exclude-outbound-cidrs"] {
            let (config, _) = CaptureConfig::from_annotations([(name, value.as_str())]);
            let _ = ruleset(&config, Mode::Capture, true);
        }
    }
}
