//! The real binary, CNI JSON on stdin, and an agent that is played by the test.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};
use std::{
    io::{IoSliceMut, Read, Write},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command as Process, Stdio},
    thread::{self, JoinHandle},
};
use tempfile::TempDir;
use weft_cni::protocol::{Command, Request, Response, body_length, decode, encode, socket_path};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

struct Answer {
    success: bool,
    stdout: Value,
}

/// Runs the plugin. `env` is added to a complete environment; an empty value removes a variable.
fn plugin(command: &str, env: &[(&str, &str)], config: &str) -> Answer {
    let mut process = Process::new(env!("CARGO_BIN_EXE_weft-cni"));
    process
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u-1");
    for (name, value) in env {
        if value.is_empty() {
            process.env_remove(name)
        } else {
            process.env(name, value)
        };
    }
    let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let stdout = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    Answer { success: output.status.success(), stdout }
}

fn config(run_dir: &Path, version: &str, more: &Value) -> String {
    let mut config = json!({
        "cniVersion": version, "name": "cluster", "type": "weft-cni", "runDir": run_dir.to_str().unwrap(),
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

/// An agent that takes one question and answers it. Returns the question and how many descriptors came.
fn agent(run_dir: &Path, response: Response) -> JoinHandle<(Request, usize)> {
    let listener = UnixListener::bind(socket_path(run_dir)).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let question = read_request(&mut stream);
        stream.write_all(&encode(&response).unwrap()).unwrap();
        question
    })
}

fn read_request(stream: &mut UnixStream) -> (Request, usize) {
    let mut prefix = [0; 4];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut iov = [IoSliceMut::new(&mut prefix)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()).unwrap();
    let fds: usize = message
        .cmsgs()
        .unwrap()
        .map(|c| if let ControlMessageOwned::ScmRights(fds) = c { fds.len() } else { 0 })
        .sum();
    let mut body = vec![0; body_length(prefix).unwrap()];
    stream.read_exact(&mut body).unwrap();
    (decode(&body).unwrap(), fds)
}

fn prev_result(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [{ "name": "eth0", "mac": "00:11:22:33:44:55", "sandbox": "/run/netns/x", "mtu": 1450 }],
        "ips": [{ "address": "10.1.2.3/24", "interface": 0 }, { "address": "fd00::3/64" }],
        "routes": [{ "dst": "0.0.0.0/0", "priority": 7 }],
        "dns": { "nameservers": ["10.0.0.10"] },
        "vendor.example/unknown": { "deep": [1, 2.5, null, 18446744073709551615u64] },
    })
}

fn enrol(run_dir: &Path, table: &Value) {
    std::fs::write(run_dir.join("enrolment.json"), table.to_string()).unwrap();
}

#[test]
fn add_asks_the_agent_and_passes_the_result_on() {
    for version in VERSIONS {
        let dir = TempDir::new().unwrap();
        let agent = agent(dir.path(), Response::Ok);
        let prev = prev_result(version);
        let answer = plugin("ADD", &[], &config(dir.path(), version, &json!({ "prevResult": prev })));
        assert!(answer.success, "{version}: {}", answer.stdout);
        assert_eq!(answer.stdout, prev, "{version}");
        let (request, fds) = agent.join().unwrap();
        assert_eq!(fds, 1, "the network namespace");
        let Command::Add(attachment) = request.command else { panic!("{request:?}") };
        assert_eq!((attachment.pod.namespace.as_str(), attachment.pod.name.as_str()), ("shop", "cart-1"));
        assert_eq!((attachment.pod.uid.as_str(), attachment.container_id.as_str()), ("u-1", "c0ffee"));
        assert_eq!(
            attachment.ips,
            ["10.1.2.3".parse::<std::net::IpAddr>().unwrap(), "fd00::3".parse().unwrap()]
        );
    }
}

#[test]
fn without_an_agent_the_table_decides() {
    let shop = json!({ "namespaces": ["shop"] });
    // (table, code of the error or 0)
    let cases = [
        (None, 0),
        (Some(json!({ "namespaces": ["other"] })), 0),
        (Some(shop.clone()), 11),
        (Some(json!({ "namespaces": [], "pods": ["shop/cart-1"] })), 11),
        (Some(json!({ "namespaces": ["shop"], "keptOut": ["shop/cart-1"] })), 0),
        (Some(json!("no table")), 11),
    ];
    for (table, code) in cases {
        let dir = TempDir::new().unwrap();
        if let Some(table) = &table {
            enrol(dir.path(), table);
        }
        let prev = prev_result("1.0.0");
        let answer = plugin("ADD", &[], &config(dir.path(), "1.0.0", &json!({ "prevResult": prev })));
        assert_eq!(answer.success, code == 0, "{table:?}: {}", answer.stdout);
        if code == 0 {
            assert_eq!(answer.stdout, prev);
        } else {
            assert_eq!(
                (&answer.stdout["code"], &answer.stdout["cniVersion"]),
                (&json!(code), &json!("1.0.0"))
            );
        }
        let check = plugin("CHECK", &[], &config(dir.path(), "1.0.0", &json!({ "prevResult": prev })));
        assert_eq!(check.success, code == 0);
    }
    // A sandbox that is no Kubernetes pod is none of ours, whatever the table says.
    let dir = TempDir::new().unwrap();
    enrol(dir.path(), &shop);
    let answer = plugin("ADD", &[("CNI_ARGS", "")], &config(dir.path(), "1.0.0", &json!({})));
    assert!(answer.success);
    assert_eq!(answer.stdout, json!({ "cniVersion": "1.0.0" }));
}

#[test]
fn after_a_reboot_the_copy_of_the_table_decides() {
    let (shop, other) = (json!({ "namespaces": ["shop"] }), json!({ "namespaces": ["other"] }));
    let (damaged, none) = (json!("no table"), Value::Null);
    // (table in the run directory, its copy in the state directory, code of the error or 0)
    let cases = [
        (&none, &none, 0),
        (&none, &shop, 11),
        (&none, &other, 0),
        (&other, &shop, 0),
        (&shop, &other, 11),
        (&damaged, &other, 0),
        (&damaged, &shop, 11),
        (&none, &damaged, 11),
        (&damaged, &none, 11),
    ];
    for (run, state, code) in cases {
        let (run_dir, state_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for (dir, table) in [(&run_dir, run), (&state_dir, state)] {
            if !table.is_null() {
                enrol(dir.path(), table);
            }
        }
        let more = json!({ "stateDir": state_dir.path(), "statusFollowsAgent": false });
        let config = config(run_dir.path(), "1.1.0", &more);
        let answer = plugin("ADD", &[], &config);
        let got = if answer.success { json!(0) } else { answer.stdout["code"].clone() };
        assert_eq!(got, json!(code), "{run} and {state}");
        // Whatever the agent does: a deletion goes on, and the node stays ready.
        assert!(plugin("DEL", &[], &config).success && plugin("STATUS", &[], &config).success);
    }
}

#[test]
fn an_agent_that_breaks_off_is_an_agent_that_is_away() {
    for (enrolled, success) in [(false, true), (true, false)] {
        let dir = TempDir::new().unwrap();
        if enrolled {
            enrol(dir.path(), &json!({ "namespaces": ["shop"] }));
        }
        let listener = UnixListener::bind(socket_path(dir.path())).unwrap();
        let breaking = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_request(&mut stream);
            stream.write_all(&[0, 0, 0, 200, b'{']).unwrap();
        });
        let answer = plugin("ADD", &[], &config(dir.path(), "1.1.0", &json!({})));
        assert_eq!(answer.success, success, "{}", answer.stdout);
        breaking.join().unwrap();
    }
}

#[test]
fn the_agents_refusal_becomes_the_error() {
    let refusal = Response::Refused { code: 11, msg: "weft: not yet".into(), details: "certificate".into() };
    for command in ["ADD", "CHECK", "STATUS", "GC"] {
        let dir = TempDir::new().unwrap();
        let agent = agent(dir.path(), refusal.clone());
        let more = json!({ "cni.dev/valid-attachments": [] });
        let answer = plugin(command, &[], &config(dir.path(), "1.1.0", &more));
        assert!(!answer.success, "{command}");
        assert_eq!(
            answer.stdout,
            json!({ "cniVersion": "1.1.0", "code": 11, "msg": "weft: not yet", "details": "certificate" })
        );
        agent.join().unwrap();
    }
}

#[test]
fn del_always_succeeds() {
    let dir = TempDir::new().unwrap();
    let good = config(dir.path(), "1.1.0", &json!({ "prevResult": prev_result("1.1.0") }));
    for (env, config) in [
        (&[][..], good.as_str()),
        (&[("CNI_NETNS", "")], good.as_str()),
        (&[("CNI_NETNS", "/run/netns/gone"), ("CNI_ARGS", "nonsense")], good.as_str()),
        (&[("CNI_CONTAINERID", "")], good.as_str()),
        (&[], "not JSON"),
        (&[], ""),
    ] {
        let answer = plugin("DEL", env, config);
        assert!(answer.success && answer.stdout.is_null(), "{env:?} {config}: {}", answer.stdout);
    }
    let agent = agent(dir.path(), Response::Refused { code: 100, msg: "no".into(), details: String::new() });
    assert!(plugin("DEL", &[], &good).success);
    let (request, fds) = agent.join().unwrap();
    assert_eq!((request.command, fds), (Command::Del { container_id: "c0ffee".into() }, 0));
}

#[test]
fn gc_hands_the_list_on_and_never_invents_one() {
    let dir = TempDir::new().unwrap();
    let more = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    let with_list = config(dir.path(), "1.1.0", &more);
    assert!(plugin("GC", &[], &with_list).success, "nothing to collect without an agent");
    assert!(plugin("GC", &[], &config(dir.path(), "1.1.0", &json!({}))).success);
    let agent = agent(dir.path(), Response::Ok);
    // Without a list the agent is not even asked: the next question is the one with a list.
    assert!(plugin("GC", &[], &config(dir.path(), "1.1.0", &json!({}))).success);
    assert!(plugin("GC", &[], &with_list).success);
    let Command::Gc { valid } = agent.join().unwrap().0.command else { panic!("not GC") };
    assert_eq!((valid.len(), valid[0].container_id.as_str()), (1, "a"));
}

#[test]
fn status_says_whether_the_agent_is_there() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), "1.1.0", &json!({}));
    let bare = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_ARGS", "")];
    let away = plugin("STATUS", &bare, &config);
    assert_eq!((away.success, &away.stdout["code"]), (false, &json!(50)));
    let agent = agent(dir.path(), Response::Ok);
    let there = plugin("STATUS", &bare, &config);
    assert!(there.success && there.stdout.is_null());
    assert_eq!(agent.join().unwrap().0.command, Command::Status);
}

#[test]
fn version_lists_what_we_speak() {
    for (config, version) in
        [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"), ("", "1.1.0")]
    {
        let answer = plugin("VERSION", &[], config);
        assert!(answer.success);
        assert_eq!(answer.stdout, json!({ "cniVersion": version, "supportedVersions": VERSIONS }));
    }
}

#[test]
fn errors_have_the_specifications_codes() {
    let dir = TempDir::new().unwrap();
    let good = config(dir.path(), "1.1.0", &json!({}));
    let with = |more: Value| config(dir.path(), "1.1.0", &more);
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], String, u32);
    let cases: [Case<'_>; 20] = [
        ("", &[], good.clone(), 4),
        ("BREW", &[], good.clone(), 4),
        ("ADD", &[("CNI_CONTAINERID", "")], good.clone(), 4),
        ("ADD", &[("CNI_CONTAINERID", "../up")], good.clone(), 4),
        ("ADD", &[("CNI_NETNS", "")], good.clone(), 4),
        ("ADD", &[("CNI_NETNS", "/run/netns/no-such")], good.clone(), 4),
        ("ADD", &[("CNI_IFNAME", "")], good.clone(), 4),
        ("ADD", &[("CNI_IFNAME", "much-too-long-name")], good.clone(), 4),
        ("ADD", &[("CNI_ARGS", "K8S_POD_NAME")], good.clone(), 4),
        ("ADD", &[("CNI_ARGS", "K8S_POD_NAME=x")], good.clone(), 4),
        ("CHECK", &[("CNI_NETNS", "")], good.clone(), 4),
        ("ADD", &[], "{".into(), 6),
        ("STATUS", &[], "[]".into(), 6),
        ("ADD", &[], config(dir.path(), "0.2.0", &json!({})), 1),
        ("GC", &[], r#"{"name":"x","type":"weft-cni"}"#.into(), 1),
        ("ADD", &[], with(json!({ "runDir": 7 })), 7),
        ("ADD", &[], with(json!({ "runDir": "run/weft" })), 7),
        ("ADD", &[], with(json!({ "stateDir": "lib/weft" })), 7),
        ("STATUS", &[], with(json!({ "statusFollowsAgent": "no" })), 7),
        ("ADD", &[], with(json!({ "prevResult": [] })), 7),
    ];
    for (command, env, config, code) in cases {
        let answer = plugin(command, env, &config);
        assert!(!answer.success, "{command} {env:?} {config}");
        assert_eq!(answer.stdout["code"], json!(code), "{command} {env:?} {config}: {}", answer.stdout);
        assert!(answer.stdout["msg"].as_str().is_some_and(|m| !m.is_empty()));
        assert!(VERSIONS.contains(&answer.stdout["cniVersion"].as_str().unwrap()));
    }
}

#[test]
fn an_older_versions_result_gets_its_address_families() {
    let dir = TempDir::new().unwrap();
    let prev = json!({ "ips": [{ "address": "10.1.2.3/24" }, { "address": "fd00::3/64", "version": "6" }] });
    let answer = plugin("ADD", &[], &config(dir.path(), "0.4.0", &json!({ "prevResult": prev })));
    assert_eq!(
        answer.stdout,
        json!({ "cniVersion": "0.4.0", "ips": [
            { "address": "10.1.2.3/24", "version": "4" }, { "address": "fd00::3/64", "version": "6" }] })
    );
}
