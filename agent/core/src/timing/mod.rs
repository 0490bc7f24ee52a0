//! Deadlines, retries, signs of life, quiet moments, rate limits and durations. Time and draws are arguments.

pub mod duration;
pub mod limit;
pub mod liveness;
pub mod quiet;
pub mod resets;
pub mod retry;
pub mod timeouts;

pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use limit::RateLimit;
pub use liveness::{Check, Liveness, Silence};
pub use resets::Resets;
pub use retry::{Attempt, Decision, Outcome, decide};
pub use timeouts::{Deadline, Deadlines, TimeoutKind};

#[cfg(test)]
mod tests;
