//! What filters do to a request or a response.
//!
//! Order of effect, whatever the order in `filters` (the API says SHOULD; the suite and every peer agree on this
//! one): CORS (a preflight is answered here) → redirect (answers; nothing below runs) → request headers → URL
//! rewrite → mirrors (they copy what the backend would get) → backend. Then, on the way back: response headers →
//! CORS. A backendRef's own filters run after the rule's. All of them act on the head only and never fail a request
//! that was well formed.

pub mod cors;
pub mod headers;
pub mod mirror;
mod path;
pub mod redirect;
pub mod rewrite;

#[cfg(test)]
mod tests;

pub use redirect::{RedirectInput, redirect};
