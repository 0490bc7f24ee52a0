//! The plugin's configuration on stdin, and the variables that a runtime sets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use weft_cni::{
    plugin::run,
    protocol::socket_path,
    spec::{NetConf, SUPPORTED_VERSIONS},
};
use weft_fuzz::{Bytes, planted};

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let command =
        ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "add", ""][usize::from(input.byte() % 8)];
    let length = usize::from(input.byte());
    let args = String::from_utf8_lossy(input.take(length)).into_owned();
    let stdin = input.0;
    let conf = NetConf::parse(stdin);
    // An agent that runs here is not to be asked.
    if conf.as_ref().is_ok_and(|conf| socket_path(&conf.run_dir).exists()) {
        return;
    }
    let env = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_CONTAINERID" => "0123456789abcdef",
            "CNI_NETNS" => "/proc/self/ns/net",
            "CNI_IFNAME" => "eth0",
            "CNI_ARGS" => args.as_str(),
            _ => return None,
        };
        Some(value.to_owned())
    };
    let outcome = run(&env, stdin);
    if outcome.stdout.is_empty() {
        assert!(outcome.success, "a failure without a word");
        return;
    }
    let said: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let version = said["cniVersion"].as_str().expect("a version");
    assert!(SUPPORTED_VERSIONS.contains(&version), "version {version}");
    if !outcome.success {
        assert!(said["code"].as_u64().is_some_and(|code| code > 0) && said["msg"].is_string(), "{said}");
        return;
    }
    if command == "ADD" {
        let conf = conf.expect("a configuration that was served");
        // The result of the plugin before us goes on, whatever it holds.
        for (key, value) in
            conf.prev_result.iter().flatten().filter(|(k, _)| !["cniVersion", "ips"].contains(&k.as_str()))
        {
            assert_eq!(said[key], *value, "{key}");
        }
        let nowhere = conf.prev_result.is_some() && conf.addresses().is_empty();
        planted(nowhere, "no address that can be read");
    }
});
