//! `RequestMirror`: which requests are copied.

/// Whether this request is copied, for a share of `numerator / denominator` and a uniform `draw`.
/// A denominator of 0 (the schema forbids it) copies nothing.
#[must_use]
pub fn chosen(numerator: u32, denominator: u32, draw: u64) -> bool {
    let at = (u128::from(draw) * u128::from(denominator)) >> 64;
    at < u128::from(numerator) && denominator > 0
}
