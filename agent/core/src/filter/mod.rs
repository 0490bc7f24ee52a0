//! What filters do to a request or a response.
//!
//! Order of effect, whatever the order in `filters` (the API asks for the list's order where possible and lets an
//! implementation document another): CORS, which answers a preflight → redirect, which answers → request headers → URL
//! rewrite → mirrors, which copy what the backend would get → backend. A backendRef's own filters come after the
//! rule's. On the way back: response headers of the backendRef, then of the rule → CORS.
//!
//! All of them act on the head only; the one failure is a rewritten target that grows beyond 64 KiB.

pub mod cors;
pub mod headers;
pub mod mirror;
mod path;
pub mod redirect;
pub mod rewrite;

#[cfg(test)]
mod tests;

pub use redirect::{RedirectInput, redirect};
