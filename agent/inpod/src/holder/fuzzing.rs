//! A conversation with a holder, for the fuzz target `holder`.

use super::{Holder, Peer, Told, protocol::Answer, table::Table};
use crate::{
    fuzzing::{Sent, is_ours, send},
    wire::{FrameReader, Step},
};
use std::{
    net::Shutdown,
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::LazyLock,
};

/// What a holder has after a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Frames that were answered.
    pub answered: usize,
    /// Pods held.
    pub pods: usize,
    /// Pods whose listeners are open.
    pub listening: usize,
    /// Pods whose rules are said to be in place.
    pub captured: usize,
    /// Sockets of each group.
    pub groups: Vec<usize>,
}

/// Nobody comes to these; a holder has them.
static DOORS: LazyLock<UnixListener> = LazyLock::new(|| {
    let name = format!("weft-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    UnixListener::bind_addr(&address).expect("a listener")
});

/// Says `all` to a new holder, then hangs up. Each question must get exactly its answers.
#[must_use]
pub fn converse(all: &[Sent<'_>]) -> Conversation {
    let (agent, stream) = UnixStream::pair().expect("a pair of sockets");
    agent.set_nonblocking(true).expect("a socket");
    let door = || DOORS.try_clone().expect("a duplicate");
    let mut holder = Holder {
        table: Table::default(),
        agents: door(),
        successors: door(),
        peers: vec![Peer { stream, started: None }],
        stop: None,
        told: Told::AtOnce,
        stopping: false,
        agent_left: false,
    };
    for sent in all {
        if !send(agent.as_fd(), sent) {
            break;
        }
    }
    agent.shutdown(Shutdown::Write).expect("a socket");
    let mut seen = Conversation::default();
    while !holder.peers.is_empty() {
        holder.serve(0);
        let answers = answers(&agent);
        assert!(holder.peers.is_empty() || answers == 1, "one question, {answers} answers");
        seen.answered += answers;
    }
    for pod in holder.table.pods() {
        assert!(is_ours(&pod.netns), "a namespace that nobody gave");
        seen.pods += 1;
        seen.listening += usize::from(pod.listeners.is_some());
        seen.captured += usize::from(pod.captured);
    }
    seen.groups = holder.table.group_sizes();
    seen
}

/// Answers that lie ready; a snapshot counts as one with its items.
fn answers(agent: &UnixStream) -> usize {
    let (mut reader, mut answers, mut items) = (FrameReader::default(), 0, 0);
    loop {
        match reader.step(agent.as_fd()) {
            Ok(Step::More) => {}
            Ok(Step::Done(frame)) if items > 0 => {
                items -= 1;
                super::HeldItem::from_frame(frame).expect("an item");
            }
            Ok(Step::Done(frame)) => {
                answers += 1;
                if let Answer::Snapshot { items: following } = frame.message().expect("an answer") {
                    items = following;
                }
            }
            Ok(Step::Closed) | Err(_) => {
                assert_eq!(items, 0, "items are missing");
                return answers;
            }
        }
    }
}
