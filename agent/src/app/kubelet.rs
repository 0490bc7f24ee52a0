//! The node's kubelet, as the data plane asks for it.

use super::{cluster::Task, enrolment::WorldEnrolment};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};
use weft_core::model::Snapshot;
use weft_inpod::{KubeletWatch, node_addresses};
use weft_proxy::kubelet::{Kubelet, NoKubelet, NotKubelet, Recognition};

/// Knows the kubelet by what `weft-inpod` sees on the node.
#[derive(Clone, Debug)]
pub(super) struct NodeKubelet(Option<Arc<KubeletWatch>>);

impl NodeKubelet {
    /// Of this machine. Where it cannot be known, nothing is a probe, and that is said.
    pub(super) fn start() -> Self {
        match KubeletWatch::start(Path::new("/proc").to_owned()) {
            Ok(watch) => Self(Some(Arc::new(watch))),
            Err(error) => {
                tracing::error!(%error, "the kubelet cannot be recognised (sock_diag): strict pods refuse its probes");
                Self(None)
            }
        }
    }

    /// As the data plane takes it.
    pub(super) fn shared(&self) -> Arc<dyn Kubelet> {
        match &self.0 {
            Some(watch) => Arc::new(Watch(watch.clone())),
            None => Arc::new(NoKubelet),
        }
    }

    /// Why the node's kubelet is not known, so that strict pods refuse its probes; empty when it is, or nobody has asked.
    pub(super) fn unknown(&self) -> String {
        self.0.as_ref().map_or_else(|| "the kernel has no sock_diag".to_owned(), |watch| watch.unknown())
    }

    /// Takes from the node's own Node where its kubelet listens. Without one, as with files, there is none.
    pub(super) fn update(&self, snapshot: &Snapshot, node: &str) {
        if let Some(watch) = &self.0 {
            watch.set_port(snapshot.nodes.get(node).map(|node| node.kubelet_port));
        }
    }
}

#[derive(Debug)]
struct Watch(Arc<KubeletWatch>);

impl Kubelet for Watch {
    fn recognise(&self, client: SocketAddr, pod: SocketAddr) -> Recognition<'_> {
        // At once, while the connection stands: a microsecond or two.
        let socket = self.0.socket(client, pod);
        Box::pin(async move {
            match socket {
                Ok(Some(socket)) => {
                    let Err(why) = self.0.recognise(socket).await else { return Ok(()) };
                    // A probe is over in a moment: its socket may have been closed before those of the kubelet were read.
                    let gone = self.0.socket(client, pod).is_ok_and(|now| now != Some(socket));
                    let closed = gone && socket.is_of_root();
                    Err(if closed { NotKubelet::Closed } else { NotKubelet::Other(why.to_string()) })
                }
                Ok(None) if is_ours(client.ip()) => Err(NotKubelet::Closed),
                Ok(None) => Err(NotKubelet::Other("it is not of this node".to_owned())),
                Err(error) => Err(NotKubelet::Other(format!("its other end cannot be looked up: {error}"))),
            }
        })
    }
}

/// How soon pods' rules know of another address of the node. They need it only while no agent is there.
const ADDRESSES_EVERY: Duration = Duration::from_secs(30);

/// Tells from which addresses the node's kubelet may come: once before this returns, then for as long as the task lives.
pub(super) fn tell_addresses(enrolment: &Arc<WorldEnrolment>) -> Task {
    let tell = |enrolment: &WorldEnrolment| match node_addresses() {
        Ok(addresses) => enrolment.set_addresses(addresses),
        Err(error) => tracing::warn!(%error, "the node's own addresses are not known"),
    };
    tell(enrolment);
    let enrolment = enrolment.clone();
    Task::spawn(async move {
        loop {
            tokio::time::sleep(ADDRESSES_EVERY).await;
            tell(&enrolment);
        }
    })
}

/// Whether it is an address of this machine, whose network namespace is ours.
pub(super) fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// Probes of permissive pods by HTTP, which are over in a moment, were listed as callers in clear now and then: their
    /// sockets had been closed when those of the kubelet were read. Needs root, as a kubelet is.
    #[tokio::test]
    async fn a_connection_that_closes_while_it_is_looked_up_is_nobodys() {
        let watch = Watch(Arc::new(KubeletWatch::start("/proc".into()).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pod = listener.local_addr().unwrap();
        for stays in [true, false] {
            let stream = TcpStream::connect(pod).unwrap();
            let client = stream.local_addr().unwrap();
            let accepted = listener.accept().unwrap();
            // The socket is found at once; who holds it is seen when this is awaited.
            let recognition = watch.recognise(client, pod);
            let stream = stays.then_some(stream);
            let found = recognition.await;
            assert_eq!(found == Err(NotKubelet::Closed), !stays, "{found:?}");
            drop((stream, accepted));
        }
    }
}
