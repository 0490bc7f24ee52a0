//! Weighted choice.

/// Values with positive weights. Never empty.
#[derive(Clone, Debug)]
pub struct Weighted<T> {
    /// (upper bound of the cumulative weight, value), ascending.
    items: Vec<(u64, T)>,
}

impl<T> Weighted<T> {
    /// Builds; entries of weight 0 are left out. `None` if nothing is left.
    #[must_use]
    pub fn build(entries: impl IntoIterator<Item = (u32, T)>) -> Option<Self> {
        let mut sum = 0_u64;
        let mut items = Vec::new();
        for (weight, value) in entries.into_iter().filter(|(w, _)| *w > 0) {
            sum += u64::from(weight);
            items.push((sum, value));
        }
        (!items.is_empty()).then_some(Self { items })
    }

    /// Picks with a uniform `draw` over all of `u64`.
    #[must_use]
    pub fn pick(&self, draw: u64) -> &T {
        let total = self.items[self.items.len() - 1].0;
        // Lemire's multiply-shift: uniform to 1/2^44 for sums up to 2^20, without a division.
        let at = ((u128::from(draw) * u128::from(total)) >> 64) as u64;
        let index = self.items.partition_point(|(bound, _)| *bound <= at);
        &self.items[index].1
    }

    /// Values with their weights.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let mut before = 0;
        self.items.iter().map(move |(bound, value)| {
            let weight = bound - before;
            before = *bound;
            (weight, value)
        })
    }
}
