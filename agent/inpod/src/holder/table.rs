//! What a holder owns: a plain table. Dropping an entry closes its descriptors.

use super::protocol::{Answer, GroupKey, Item, MAX_MEMBERS, PodRecord, Transport};
use crate::{
    netns::Netns,
    socket::{Listeners, bind_udp, bindable, listen, open_listeners},
    wire::{Frame, WireError, send_message},
};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// More sandboxes than any node runs: bounds what a confused agent can make a holder keep.
const MAX_PODS: usize = 4096;
const MAX_GROUPS: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Table {
    pods: BTreeMap<String, HeldPod>,
    groups: BTreeMap<GroupKey, Vec<OwnedFd>>,
}

/// What is held of one pod.
#[derive(Debug)]
pub(crate) struct HeldPod {
    pub(crate) record: PodRecord,
    pub(crate) netns: Netns,
    pub(crate) listeners: Option<Listeners>,
    pub(crate) captured: bool,
    /// Whether its rules let the node's kubelet past capture, since the node has no agent.
    pub(crate) past_capture: bool,
}

/// An answer and the descriptors that go with it.
pub(crate) type Reply<'a> = (Answer, Vec<BorrowedFd<'a>>);

impl Table {
    /// Puts an item in the table. A pod that is there already (the runtime repeats ADD, an agent repeats what it
    /// knows) keeps its sockets.
    pub(crate) fn adopt(&mut self, item: HeldItem) -> Result<(), String> {
        match item {
            HeldItem::Pod(new) => {
                let full = self.pods.len() >= MAX_PODS;
                match self.pods.get_mut(&new.record.container_id) {
                    Some(held) if held.netns.inode() == new.netns.inode() => {
                        held.record = new.record;
                        held.listeners = held.listeners.take().or(new.listeners);
                    }
                    _ if full => return Err(format!("already {MAX_PODS} pods")),
                    _ => {
                        self.pods.insert(new.record.container_id.clone(), new);
                    }
                }
            }
            HeldItem::Group { .. } if self.groups.len() >= MAX_GROUPS => {
                return Err(format!("already {MAX_GROUPS} groups"));
            }
            HeldItem::Group { key, sockets } => {
                self.groups.entry(key).or_insert(sockets);
            }
        }
        Ok(())
    }

    pub(crate) fn open_pod(&mut self, id: &str) -> Result<Reply<'_>, String> {
        let held = self.pods.get_mut(id).ok_or_else(|| format!("no pod {id}"))?;
        if held.listeners.is_none() {
            held.listeners = Some(open_listeners(&held.netns).map_err(|e| e.to_string())?);
        }
        Ok((Answer::Ok, held.listeners.as_ref().map(listener_fds).unwrap_or_default()))
    }

    pub(crate) fn set_captured(&mut self, id: &str, captured: bool) -> Result<Reply<'_>, String> {
        let held = self.pods.get_mut(id).ok_or_else(|| format!("no pod {id}"))?;
        held.captured = captured;
        held.past_capture = false; // its table has just been replaced
        Ok((Answer::Ok, Vec::new()))
    }

    pub(crate) fn close_pod(&mut self, id: &str) -> Reply<'_> {
        if let Some(held) = self.pods.get_mut(id) {
            held.listeners = None;
            held.past_capture = false;
        }
        (Answer::Ok, Vec::new())
    }

    pub(crate) fn remove_pod(&mut self, id: &str) -> Reply<'_> {
        self.pods.remove(id);
        (Answer::Ok, Vec::new())
    }

    pub(crate) fn listen_group(&mut self, key: &GroupKey, members: usize) -> Result<Reply<'_>, String> {
        if !(1..=MAX_MEMBERS).contains(&members) {
            return Err(format!("want 1 to {MAX_MEMBERS} members, not {members}"));
        }
        if !self.groups.contains_key(key) {
            if self.groups.len() >= MAX_GROUPS {
                return Err(format!("already {MAX_GROUPS} groups"));
            }
            let opened = open_group(key, members).map_err(|e| format!("{}: {e}", key.address))?;
            self.groups.insert(key.clone(), opened);
        }
        // The group keeps the size that it was opened with; the agent spreads it over its workers.
        let fds = self.groups.get(key).into_iter().flatten().map(AsFd::as_fd).collect();
        Ok((Answer::Ok, fds))
    }

    pub(crate) fn close_group(&mut self, key: &GroupKey) -> Reply<'_> {
        self.groups.remove(key);
        (Answer::Ok, Vec::new())
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &HeldPod> {
        self.pods.values()
    }

    pub(crate) fn pods_mut(&mut self) -> impl Iterator<Item = &mut HeldPod> {
        self.pods.values_mut()
    }

    /// Sends everything: a count, then one message per pod and group with its descriptors.
    pub(crate) fn send_all(&self, peer: BorrowedFd<'_>) -> Result<(), WireError> {
        let items = self.pods.len() + self.groups.len();
        send_message(peer, &Answer::Snapshot { items }, &[])?;
        for held in self.pods.values() {
            let (item, fds) = held.to_item();
            send_message(peer, &item, &fds)?;
        }
        for (key, sockets) in &self.groups {
            let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            send_message(peer, &Item::Group { key: key.clone(), members: fds.len() }, &fds)?;
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.pods.len() + self.groups.len()
    }

    #[cfg(fuzzing)]
    pub(crate) fn group_sizes(&self) -> Vec<usize> {
        self.groups.values().map(Vec::len).collect()
    }
}

impl HeldPod {
    /// The message that carries it.
    pub(crate) fn to_item(&self) -> (Item, Vec<BorrowedFd<'_>>) {
        let mut fds = vec![self.netns.as_fd()];
        fds.extend(self.listeners.iter().flat_map(listener_fds));
        let item = Item::Pod {
            record: self.record.clone(),
            captured: self.captured,
            listening: self.listeners.is_some(),
            past_capture: self.past_capture,
        };
        (item, fds)
    }
}

/// An [`Item`] with its descriptors.
#[derive(Debug)]
pub(crate) enum HeldItem {
    Pod(HeldPod),
    Group { key: GroupKey, sockets: Vec<OwnedFd> },
}

impl HeldItem {
    pub(crate) fn from_frame(frame: Frame) -> Result<Self, WireError> {
        let item = frame.message()?;
        Self::new(item, frame.fds)
    }

    /// Puts a message and the descriptors that came with it together, if they fit.
    pub(crate) fn new(item: Item, mut fds: Vec<OwnedFd>) -> Result<Self, WireError> {
        let found = fds.len();
        let wanted = match &item {
            Item::Pod { listening, .. } => 1 + 3 * usize::from(*listening),
            // As many as `listen_group` opens: one of none would be served by nobody for ever.
            Item::Group { members, .. } => (*members).clamp(1, MAX_MEMBERS),
        };
        if found != wanted {
            return Err(WireError::Descriptors { wanted, found });
        }
        match item {
            Item::Group { key, .. } => Ok(Self::Group { key, sockets: fds }),
            Item::Pod { record, captured, past_capture, .. } => {
                let netns = Netns::from_fd(fds.remove(0)).map_err(io::Error::other)?;
                let listeners = <[OwnedFd; 3]>::try_from(fds).ok().map(Listeners::from_fds);
                Ok(Self::Pod(HeldPod { record, netns, listeners, captured, past_capture }))
            }
        }
    }
}

fn listener_fds(listeners: &Listeners) -> Vec<BorrowedFd<'_>> {
    vec![listeners.outbound.as_fd(), listeners.inbound.as_fd(), listeners.hbone.as_fd()]
}

fn open_group(key: &GroupKey, members: usize) -> io::Result<Vec<OwnedFd>> {
    bindable(key.address, key.transport == Transport::Tcp)?;
    (0..members)
        .map(|_| match key.transport {
            Transport::Tcp => listen(key.address, true).map(OwnedFd::from),
            Transport::Udp => bind_udp(key.address, true).map(OwnedFd::from),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_none_or_of_too_many_is_not_adopted() {
        let key = GroupKey { address: "0.0.0.0:80".parse().unwrap(), transport: Transport::Tcp };
        for (members, fits) in [(0, false), (1, true), (MAX_MEMBERS, true), (MAX_MEMBERS + 1, false)] {
            let fds = (0..members).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
            let held = HeldItem::new(Item::Group { key: key.clone(), members }, fds);
            assert_eq!(held.is_ok(), fits, "{members}");
        }
    }

    #[test]
    fn a_group_is_not_shared_with_a_foreign_process() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let open = |key: &GroupKey| open_group(key, 2);
            let any = GroupKey { address: "127.0.0.1:0".parse().unwrap(), transport };
            let foreign = open_group(&any, 1).unwrap().remove(0);
            let address = socket2::SockRef::from(&foreign).local_addr().unwrap().as_socket().unwrap();
            let key = GroupKey { address, transport };
            assert_eq!(open(&key).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{transport:?}");
            drop(foreign);
            assert_eq!(open(&key).unwrap().len(), 2, "{transport:?}");
        }
    }
}
