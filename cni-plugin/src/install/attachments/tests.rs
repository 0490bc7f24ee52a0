use super::*;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const WITH: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}},{"type":"weft-cni","runDir":"/run/weft"}]}"#;
const WITHOUT: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

/// As libcni writes it: Go's field order, and numbers that no float holds.
fn attachment(kind: &str, config: &str) -> String {
    let config = STANDARD.encode(config);
    format!(
        r#"{{"kind":"{kind}","containerId":"c1","config":"{config}","ifName":"eth0","networkName":"pods","netns":"/var/run/netns/x","cniArgs":[["K8S_POD_NAME","web"]],"capabilityArgs":{{"portMappings":[]}},"result":{{"cniVersion":"1.0.0","ips":[{{"address":"10.91.1.4/24"}}],"big":12345678901234567890}}}}"#
    )
}

#[test]
fn our_entry_goes_from_a_kept_configuration_and_nothing_else_changes() {
    let check = |text: &str, expected: Option<String>| assert_eq!(without_us(text), expected, "{text}");
    check(&attachment(KIND, WITH), Some(attachment(KIND, WITHOUT)));
    check(&attachment(KIND, WITHOUT), None);
    // A list of our own, made from a single plugin's configuration: the other's plugin is still called.
    let single = r#"{"weft.dev/derivedFrom":"10-x.conf","cniVersion":"0.4.0","name":"x","plugins":[{"type":"ptp"},{"type":"weft-cni"}]}"#;
    check(&attachment(KIND, single), Some(attachment(KIND, &single.replace(r#",{"type":"weft-cni"}"#, ""))));
    // A single plugin that names itself as ours does is nobody's list.
    check(&attachment(KIND, r#"{"cniVersion":"1.0.0","name":"x","type":"weft-cni"}"#), None);
    check(&attachment("cniCacheV2", WITH), None);
    check(&json!({"kind": KIND, "config": "no base64"}).to_string(), None);
    check(&json!({"kind": KIND}).to_string(), None);
    check(r#"{"cniVersion":"0.4.0","ips":[]}"#, None);
    check("no JSON", None);
    check("[]", None);
}

#[test]
fn a_pod_made_while_weft_was_installed_can_be_deleted_after_it_is_gone() {
    let dir = TempDir::new().unwrap();
    let results = dir.path().join(RESULTS);
    assert_eq!(take_out(dir.path()), Vec::<String>::new(), "a runtime that never made a pod");
    fs::create_dir(&results).unwrap();
    let write = |name: &str, text: &[u8]| {
        fs::write(results.join(name), text).unwrap();
        fs::set_permissions(results.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("pods-c1-eth0", attachment(KIND, WITH).as_bytes());
    write("cni-loopback-c1-lo", attachment(KIND, r#"{"type":"loopback"}"#).as_bytes());
    write("binary", &[0xff, 0xfe]);
    fs::create_dir(results.join("folder")).unwrap();
    for _ in 0..2 {
        assert_eq!(take_out(dir.path()), Vec::<String>::new());
        assert_eq!(fs::read_to_string(results.join("pods-c1-eth0")).unwrap(), attachment(KIND, WITHOUT));
    }
    let meta = fs::metadata(results.join("pods-c1-eth0")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600, "the attachment's arguments are root's to read");
    assert_eq!(fs::read_dir(&results).unwrap().count(), 4, "no file of ours is left");
}
