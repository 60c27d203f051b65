//! [`Series`]: one figure of many rounds.

/// A figure as it was in each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value that this part of the rounds did not exceed; 0 if there were none.
    fn percentile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        sorted.get(at).copied().unwrap_or_default()
    }

    /// Median, lowest and highest.
    pub(crate) fn spread(&self, decimals: usize) -> String {
        let [median, lowest, highest] = [0.5, 0.0, 1.0].map(|part| self.percentile(part));
        format!("{median:.decimals$} ({lowest:.decimals$} to {highest:.decimals$})")
    }

    /// Of latencies, what half and nearly all of the rounds kept to.
    pub(crate) fn percentiles(&self) -> String {
        format!("p50 {:.0}, p99 {:.0}", self.percentile(0.5), self.percentile(0.99))
    }
}
