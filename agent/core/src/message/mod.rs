//! What a message says about itself, judged before anybody acts on it: its target, its authority, its length.
//!
//! ```text
//! first bytes ─▶ head::admits ─▶ HTTP, or bytes          (a port where nobody said what is spoken)
//! head ─▶ check ─▶ normal_path ─▶ route table ─▶ the form that was matched is the form that is forwarded
//! ```
//!
//! Two readers of one message must not read two messages: what an agent matches, its backend must see. So a head that
//! can be read in two ways is refused, and a path that can be written in two ways is written in one before it is matched.
//! Nothing here allocates for a usual request: each check looks once at each byte.

mod authority;
pub mod head;
mod path;
pub mod proxy;
mod request;

#[cfg(test)]
mod tests;

pub use authority::is_authority;
pub use path::{PathAction, PathRules, UnwantedPath, normal_path};
pub use request::{Refusal, check, check_authority, keep_tokens, trailers};
