//! Calls of a plugin, for the fuzz target `cni_socket`.

use super::{Call, serve_one};
use crate::{
    CaptureConfig,
    fuzzing::{Sent, send},
    holder::PodRecord,
    state::{Action, Decision, Event, Pods},
};
use std::{collections::BTreeSet, os::fd::AsFd};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
};
use weft_cni::protocol::{Command, HEADER_BYTES, Response, body_length, decode};

/// What the agent made of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What reached the manager.
    pub command: Option<Command>,
    /// What the plugin was told; none: the connection was closed.
    pub response: Option<Response>,
    /// What the manager would do.
    pub actions: Vec<Action>,
}

/// One connection for each of `all`, to an agent that remembers its pods.
pub async fn cni_calls(all: &[Sent<'_>]) -> Vec<Asked> {
    let mut pods = Pods::default();
    let mut asked = Vec::new();
    for (ticket, sent) in all.iter().enumerate() {
        let (mut plugin, stream) = UnixStream::pair().expect("a pair of sockets");
        let (calls, mut received) = mpsc::channel(1);
        if !send(plugin.as_fd(), sent) {
            continue;
        }
        plugin.shutdown().await.expect("a socket");
        let manager = async {
            let call: Call = received.recv().await?;
            let actions = work(&mut pods, ticket as u64, &call);
            // It may have been given up.
            let _ = call.reply.send(Response::Ok);
            Some((call.command, actions))
        };
        let ((), worked) = tokio::join!(
            async {
                // Refused or understood: that is in the answer.
                let _ = serve_one(stream, calls).await;
            },
            manager
        );
        let (command, actions) = worked.unzip();
        let response = answer(&mut plugin).await;
        assert!(command.is_none() || response == Some(Response::Ok), "{command:?} got {response:?}");
        asked.push(Asked { command, response, actions: actions.unwrap_or_default() });
    }
    asked
}

/// As the manager does, without the work itself.
fn work(pods: &mut Pods, ticket: u64, call: &Call) -> Vec<Action> {
    let decide = |record: &PodRecord| match record.namespace.len() % 3 {
        0 => Decision::Unknown,
        1 => Decision::NotEnrolled,
        _ => Decision::Enrolled(CaptureConfig::default()),
    };
    match call.command.clone() {
        Command::Add(a) => {
            assert!(call.netns.is_some(), "an ADD without a namespace");
            let record = PodRecord {
                container_id: a.container_id,
                namespace: a.pod.namespace,
                name: a.pod.name,
                uid: a.pod.uid,
                ips: a.ips,
                annotations: Default::default(),
            };
            pods.on(Event::Added { record, ticket }, &decide)
        }
        Command::Del { container_id } => pods.on(Event::Deleted { id: container_id }, &decide),
        Command::Gc { valid } => {
            let valid: BTreeSet<String> = valid.into_iter().map(|v| v.container_id).collect();
            pods.on(Event::OnlyThese(valid), &decide)
        }
        Command::Check(_) | Command::Status => Vec::new(),
    }
}

async fn answer(plugin: &mut UnixStream) -> Option<Response> {
    let mut bytes = Vec::new();
    plugin.read_to_end(&mut bytes).await.ok()?;
    let prefix = *bytes.first_chunk::<HEADER_BYTES>()?;
    let body = &bytes[HEADER_BYTES..];
    assert_eq!(body_length(prefix).expect("a length"), body.len(), "one answer");
    Some(decode(body).expect("an answer"))
}
