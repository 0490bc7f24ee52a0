//! The world as Weft sees it: one Rust type per thing of the API, every field of Gateway API v1.6.1.
//!
//! Values are made by `weft-k8s` from YAML or watches, already defaulted and validated: no
//! `Option<String>` of a CRD passes this border. Types hold what the user wrote, never what follows
//! from it (that is `crate::resolve`).

mod filter;
mod gateway;
mod grant;
mod hostname;
mod identity;
mod meta;
mod names;
mod parameters;
mod pattern;
mod placement;
mod probe;
mod route;
mod secret;
mod service;
mod snapshot;
mod tls_options;
mod tls_policy;
mod tunnel;
mod workload;

pub use filter::*;
pub use gateway::*;
pub use grant::*;
pub use hostname::*;
pub use identity::*;
pub use meta::*;
pub use names::*;
pub use parameters::*;
pub use pattern::*;
pub use placement::*;
pub use probe::*;
pub use route::*;
pub use secret::*;
pub use service::*;
pub use snapshot::*;
pub use tls_options::*;
pub use tls_policy::*;
pub use tunnel::*;
pub use workload::*;
