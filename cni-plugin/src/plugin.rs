//! What each CNI command does. Fail closed for enrolled pods, open for the others, and never stand in the
//! way of a deletion.

use crate::{
    client::{self, AskError},
    protocol::{self, Attachment, Command, Enrolled, PROTOCOL_VERSION, Request, Response},
    spec::{
        CniError, Code, NetConf, PodArgs, Verb, answer_version, is_container_id, is_interface_name,
        version_answer,
    },
};
use serde_json::Value;
use std::{fs::File, io, os::fd::AsFd, path::Path, time::Duration};

/// ADD waits for listeners, rules and a certificate; kubelet's own limit is minutes.
const ADD_DEADLINE: Duration = Duration::from_secs(20);
const CHECK_DEADLINE: Duration = Duration::from_secs(5);
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
const GC_DEADLINE: Duration = Duration::from_secs(5);
/// DEL only tells: pod deletion must not wait for us (istio.io#16748).
const DEL_DEADLINE: Duration = Duration::from_secs(1);

/// Looks up an environment variable. An argument, so that tests need not touch the process' own.
pub type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What the process prints and how it exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// JSON result or error for stdout; empty for commands that print nothing on success.
    pub stdout: String,
    /// Exit status 0 or not.
    pub success: bool,
}

/// Does what `CNI_COMMAND` says.
#[must_use]
pub fn run(env: &Env<'_>, stdin: &[u8]) -> Outcome {
    match serve(env, stdin) {
        Ok(None) => Outcome { stdout: String::new(), success: true },
        Ok(Some(result)) => Outcome { stdout: result.to_string(), success: true },
        Err(error) => Outcome { stdout: error.to_json(&answer_version(stdin)).to_string(), success: false },
    }
}

fn serve(env: &Env<'_>, stdin: &[u8]) -> Result<Option<Value>, CniError> {
    match Verb::parse(&required(env, "CNI_COMMAND")?)? {
        Verb::Version => Ok(Some(version_answer(&answer_version(stdin)))),
        Verb::Add => add(env, &NetConf::parse(stdin)?).map(Some),
        Verb::Check => check(env, &NetConf::parse(stdin)?).map(|()| None),
        Verb::Status => status(&NetConf::parse(stdin)?).map(|()| None),
        Verb::Gc => gc(&NetConf::parse(stdin)?).map(|()| None),
        Verb::Del => {
            del(env, stdin);
            Ok(None)
        }
    }
}

fn add(env: &Env<'_>, conf: &NetConf) -> Result<Value, CniError> {
    let Some(attachment) = attachment(env, conf)? else {
        return Ok(conf.result()); // no Kubernetes pod (ctr, podman): nothing of ours
    };
    let netns = File::open(&attachment.netns).map_err(|e| {
        CniError::new(Code::InvalidEnvironment, format!("CNI_NETNS={} cannot be opened", attachment.netns))
            .with_details(e.to_string())
    })?;
    let pod = attachment.pod.clone();
    let request = request(Command::Add(attachment));
    let socket = protocol::socket_path(&conf.run_dir);
    match client::ask(&socket, &request, Some(netns.as_fd()), ADD_DEADLINE) {
        Ok(answer) => accepted(answer).map(|()| conf.result()),
        Err(error) => without_agent(conf, &pod, &error).map(|()| conf.result()),
    }
}

/// The agent is away. An enrolled pod must not start unprotected; another pod must start all the same.
fn without_agent(conf: &NetConf, pod: &PodArgs, error: &AskError) -> Result<(), CniError> {
    if !read_table(conf)?.contains(&pod.namespace, &pod.name) {
        return Ok(());
    }
    Err(CniError::new(
        Code::TryAgainLater,
        format!(
            "pod {}/{} is enrolled in the mesh and the weft agent of this node is not there: not starting it unprotected",
            pod.namespace, pod.name
        ),
    )
    .with_details(error.to_string()))
}

/// The agent's table: as it left it, or after a reboot the copy that outlived that. A table that is damaged is as good as
/// one that is not there as long as the other is whole.
fn read_table(conf: &NetConf) -> Result<Enrolled, CniError> {
    let mut damaged = None;
    for dir in [Some(&conf.run_dir), conf.state_dir.as_ref()].into_iter().flatten() {
        let path = protocol::enrolment_path(dir);
        match table_at(&path) {
            Ok(Some(table)) => return Ok(table),
            Ok(None) => {}
            Err(error) => damaged = Some((path, error)),
        }
    }
    match damaged {
        // Not knowing is not "not enrolled".
        Some((path, error)) => {
            Err(CniError::new(Code::TryAgainLater, format!("{} cannot be read", path.display()))
                .with_details(error.to_string()))
        }
        // No agent was ever ready here, so none has promised anything to any pod of this node: with a mesh that never came
        // up the node must still work.
        None => Ok(Enrolled::default()),
    }
}

fn table_at(path: &Path) -> io::Result<Option<Enrolled>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn check(env: &Env<'_>, conf: &NetConf) -> Result<(), CniError> {
    let Some(attachment) = attachment(env, conf)? else { return Ok(()) };
    let pod = attachment.pod.clone();
    let request = request(Command::Check(attachment));
    match client::ask(&protocol::socket_path(&conf.run_dir), &request, None, CHECK_DEADLINE) {
        Ok(answer) => accepted(answer),
        Err(error) => without_agent(conf, &pod, &error),
    }
}

fn status(conf: &NetConf) -> Result<(), CniError> {
    if !conf.status_follows_agent {
        return Ok(()); // pods that are not enrolled can be served whatever the agent does
    }
    let socket = protocol::socket_path(&conf.run_dir);
    let answer = client::ask(&socket, &request(Command::Status), None, STATUS_DEADLINE).map_err(|e| {
        CniError::new(Code::NotAvailable, "the weft agent of this node is not there")
            .with_details(e.to_string())
    })?;
    accepted(answer)
}

fn gc(conf: &NetConf) -> Result<(), CniError> {
    // Absent is not empty: only a list that is there says that everything else is gone.
    let Some(valid) = conf.valid_attachments.clone() else { return Ok(()) };
    let socket = protocol::socket_path(&conf.run_dir);
    match client::ask(&socket, &request(Command::Gc { valid }), None, GC_DEADLINE) {
        Ok(answer) => accepted(answer),
        Err(_) => Ok(()), // what is left over is the agent's own state: nothing to collect without it
    }
}

/// Tells the agent if it can, and succeeds whatever happens: the sandbox goes either way.
fn del(env: &Env<'_>, stdin: &[u8]) {
    let (Ok(conf), Some(container_id)) = (NetConf::parse(stdin), env("CNI_CONTAINERID")) else { return };
    let socket = protocol::socket_path(&conf.run_dir);
    let _ = client::ask(&socket, &request(Command::Del { container_id }), None, DEL_DEADLINE);
}

fn attachment(env: &Env<'_>, conf: &NetConf) -> Result<Option<Attachment>, CniError> {
    let container_id = required(env, "CNI_CONTAINERID")?;
    let netns = required(env, "CNI_NETNS")?;
    let ifname = required(env, "CNI_IFNAME")?;
    if !is_container_id(&container_id) {
        return Err(CniError::new(Code::InvalidEnvironment, "CNI_CONTAINERID is not a container ID"));
    }
    if !is_interface_name(&ifname) {
        return Err(CniError::new(Code::InvalidEnvironment, "CNI_IFNAME is not an interface name"));
    }
    let pod = PodArgs::parse(&env("CNI_ARGS").unwrap_or_default())?;
    Ok(pod.map(|pod| Attachment { container_id, ifname, netns, pod, ips: conf.addresses() }))
}

fn required(env: &Env<'_>, name: &str) -> Result<String, CniError> {
    env(name)
        .filter(|v| !v.is_empty())
        .ok_or_else(|| CniError::new(Code::InvalidEnvironment, format!("{name} is not set")))
}

const fn request(command: Command) -> Request {
    Request { version: PROTOCOL_VERSION, command }
}

fn accepted(answer: Response) -> Result<(), CniError> {
    match answer {
        Response::Ok => Ok(()),
        Response::Refused { code, msg, details } => Err(CniError { code, msg, details }),
    }
}
