//! The faults, in the order in which they are done, and what each may cost.

use super::{
    inject,
    world::{Class, NODES, World},
};
use anyhow::Result;

/// Whose traffic a fault may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hits {
    /// Nobody's.
    Nothing,
    /// What an agent of the first node carries.
    FirstNode,
    /// What any agent carries.
    EveryNode,
}

/// Breaks something and waits until it is whole again. Returns what is to be said of it.
type Inject = Box<dyn Fn(&World<'_>) -> Result<Vec<String>>>;

/// How something is broken, and what that may cost.
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) hits: Hits,
    pub(super) inject: Inject,
    /// Why a class may fail on a path that crosses what was hit; `None`: it may not.
    pub(super) costs: fn(Class) -> Option<&'static str>,
}

impl Fault {
    /// Why a load may fail; `None`: it may not.
    pub(super) fn cost(&self, path: &super::world::Path, class: Class) -> Option<&'static str> {
        let crossed = match self.hits {
            Hits::Nothing => false,
            Hits::FirstNode => path.crosses(NODES[0]),
            Hits::EveryNode => true,
        };
        if crossed { (self.costs)(class) } else { None }
    }
}

const fn nothing(_: Class) -> Option<&'static str> {
    None
}

/// An agent that ends in order tells whom it can tell.
const fn replaced(class: Class) -> Option<&'static str> {
    match class {
        Class::Kept | Class::New => None,
        Class::Grpc => Some(
            "GOAWAY asks for a new connection; a call that goes on all the same is ended when the drain is over",
        ),
        Class::Tcp => Some("opaque bytes cannot be told to reconnect: cut when the drain is over"),
    }
}

/// An agent's pod that is deleted is replaced only after it has ended.
const fn deleted(class: Class) -> Option<&'static str> {
    match class {
        Class::Kept => Some("a request on its way when the last agent ends"),
        class => replaced(class),
    }
}

const fn killed(class: Class) -> Option<&'static str> {
    Some(match class {
        Class::Kept => "the connection was the dead agent's; the next one waits in the holder's accept queue",
        Class::New => {
            "connections that the dead agent had accepted; those after it wait in the holder's accept queue"
        }
        Class::Grpc | Class::Tcp => "the stream was the dead agent's",
    })
}

/// All of them.
pub(super) fn faults(api_server_away: u64) -> Vec<Fault> {
    let fault = |name, hits, costs, inject: fn(&World<'_>) -> Result<Vec<String>>| Fault {
        name,
        hits,
        inject: Box::new(inject),
        costs,
    };
    vec![
        fault("nothing", Hits::Nothing, nothing, |_| Ok(Vec::new())),
        fault("routes made, changed and deleted", Hits::Nothing, nothing, inject::routes),
        fault("controller: leader killed (-9)", Hits::Nothing, nothing, inject::kill_leader),
        fault("controller: both replaced", Hits::Nothing, nothing, inject::replace_controllers),
        fault("kubelet of n1 restarted", Hits::Nothing, nothing, |w| inject::restart_part(w, "kubelet")),
        fault("containerd of n1 restarted", Hits::Nothing, nothing, |w| {
            inject::restart_part(w, "containerd")
        }),
        fault("kube-proxy of n1 restarted", Hits::Nothing, nothing, |w| {
            inject::restart_part(w, "kube-proxy")
        }),
        fault("holder of n1 killed (-9)", Hits::FirstNode, nothing, |w| inject::kill_container(w, "holder")),
        fault("agent of n1 killed (-9)", Hits::FirstNode, killed, |w| inject::kill_container(w, "agent")),
        fault("agent's pod of n1 deleted", Hits::FirstNode, deleted, inject::delete_agent),
        fault("agents upgraded (rollout)", Hits::EveryNode, replaced, inject::replace_agents),
        Fault {
            name: "API server stopped",
            hits: Hits::Nothing,
            inject: Box::new(move |w| inject::stop_api_server(w, api_server_away)),
            costs: nothing,
        },
    ]
}
