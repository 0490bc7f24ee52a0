//! Whether a connection from outside the mesh is the kubelet's of the pod's node.

use std::{fmt::Debug, net::SocketAddr, pin::Pin};

/// What [`Kubelet::recognise`] gives.
pub type Recognition<'a> = Pin<Box<dyn Future<Output = Result<(), NotKubelet>> + Send + 'a>>;

/// Knows the kubelet of this node. Implemented by the binary over `weft-inpod`, and by tests.
pub trait Kubelet: Send + Sync + Debug {
    /// Whether the kubelet holds the other end of the connection from `client` to a pod. Answers within some seconds.
    /// The addresses name a connection only while it stands: see afterwards whether it still does.
    fn recognise(&self, client: SocketAddr, pod: SocketAddr) -> Recognition<'_>;
}

/// Why a connection is not known to be the kubelet's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKubelet {
    /// It came from the node and its other end is closed: nobody can tell whose it was.
    #[error("closed by its client")]
    Closed,
    /// Somebody else's, or not to be found out. Why.
    #[error("{0}")]
    Other(String),
}

/// Where there is no kubelet: nothing is its.
#[derive(Clone, Copy, Debug)]
pub struct NoKubelet;

impl Kubelet for NoKubelet {
    fn recognise(&self, _: SocketAddr, _: SocketAddr) -> Recognition<'_> {
        Box::pin(std::future::ready(Err(NotKubelet::Other("there is no kubelet here".to_owned()))))
    }
}
