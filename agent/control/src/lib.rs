//! What agents and the controller say to each other: one stream per agent, and the CA's issuing service.
//!
//! - [`ControlServer`] is the controller's side. Agents report what they serve and which pods they have captured
//!   ([`ControlServer::agents`]) and get the key pairs that their Gateways need; nobody else does.
//! - [`ControlClient`] is the agent's side: one connection, kept; what came is kept in a tmpfs too, so that a restart
//!   survives the controller's absence. [`ControlClient::issuer`] asks for certificates by Istio's CA protocol.
//! - [`Authenticate`] and [`Authorize`] decide who may have what; [`WorldAuthorizer`] gives a node the identities of
//!   the pods and Gateways on it.
//! - [`Door`] and [`Quotas`] bound what callers cost before and after it is known who they are.
//! - [`feedback`] turns reports into what the engine needs to say `Programmed`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod auth;
mod client;
mod convert;
mod delta;
mod door;
mod feedback;
#[cfg(fuzzing)]
pub mod fuzzing;
mod istio;
mod parameters;
mod quota;
mod report;
mod server;
mod wire;

pub use auth::{
    AuthFuture, Authenticate, Authorize, Caller, Denied, GatewayAccount, Refusal, Serving, WorldAuthorizer,
};
pub use client::{ClientConfig, ClientState, ControlClient, Timing};
pub use delta::Bounds;
pub use door::{Budgets, Door, Stranger};
pub use feedback::{Expected, feedback, placement_hash, watermarks};
pub use quota::{Quota, Quotas};
pub use report::{Applied, AppliedGateway, BudgetReached, Captured, Material, Materials, Reached, Watermark};
pub use server::{AgentReport, Agents, ControlServer, Leading, Limits, ServerConfig};

/// How a replica that does not lead begins its refusal; the client then tries another connection at once.
const NOT_THE_LEADER: &str = "not the leader";
/// Who leads, where it is not known.
const NOBODY: &str = "nobody that we know of";

#[cfg(test)]
mod tests;
