//! Deadlines, retries, signs of life, quiet moments, rate limits and durations. Time and draws are arguments.

pub mod duration;
pub mod limit;
pub mod liveness;
pub mod quiet;
pub mod retry;
pub mod retry_budget;
pub mod timeouts;

pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use limit::RateLimit;
pub use liveness::{Check, Liveness, Silence};
pub use retry::{Attempt, Decision, Outcome, decide};
pub use retry_budget::RetryBudget;
pub use timeouts::{Deadline, Deadlines, TimeoutKind};

#[cfg(test)]
mod tests;
