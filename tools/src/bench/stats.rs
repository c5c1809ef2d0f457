//! Medians, percentiles, and the samples of a run.

use super::lanes::LANES;
use super::metric::Metric;
use std::collections::BTreeMap;

/// The middle value, or the mean of the two middle ones. `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(middle)) {
        (_, None) => None,
        (1, Some(value)) => Some(*value),
        (_, Some(upper)) => Some((sorted[middle - 1] + upper) / 2.0),
    }
}

/// The smallest value that `percent` of the values do not exceed (nearest rank). `None` of none.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let sorted = sorted(values);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The smallest and the largest value.
pub fn extent(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    Some((*sorted.first()?, *sorted.last()?))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// What a sample is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Name of the underlay.
    pub underlay: String,
    /// Name of the lane.
    pub lane: String,
    /// What was measured.
    pub metric: Metric,
}

/// All values of a run, one for each round.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<Key, Vec<f64>>);

impl Samples {
    /// Adds the value of a round.
    pub fn add(&mut self, underlay: &str, lane: &str, metric: Metric, value: f64) {
        self.0.entry(Key { underlay: underlay.into(), lane: lane.into(), metric }).or_default().push(value);
    }

    /// The values of all rounds; empty when it was not measured.
    pub fn values(&self, underlay: &str, lane: &str, metric: Metric) -> &[f64] {
        self.0.get(&Key { underlay: underlay.into(), lane: lane.into(), metric }).map_or(&[], Vec::as_slice)
    }

    /// Their median.
    pub fn median(&self, underlay: &str, lane: &str, metric: Metric) -> Option<f64> {
        median(self.values(underlay, lane, metric))
    }

    /// The lanes that were measured, in the order of the report.
    pub fn lanes(&self) -> Vec<String> {
        let mut lanes: Vec<String> = self.0.keys().map(|key| key.lane.clone()).collect();
        let place = |lane: &str| {
            let (name, number) = lane.split_once('.').unwrap_or((lane, ""));
            (LANES.iter().position(|known| *known == name), number.to_owned())
        };
        lanes.sort_by_key(|lane| place(lane));
        lanes.dedup();
        lanes
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &[f64])> {
        self.0.iter().map(|(key, values)| (key, values.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50.0), Some(100.0));
        assert_eq!(percentile(&values, 99.0), Some(198.0));
        assert_eq!(percentile(&values, 100.0), Some(200.0));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[], 99.0), None);
        assert_eq!(extent(&values), Some((1.0, 200.0)));
        assert_eq!(extent(&[]), None);
    }

    #[test]
    fn samples_are_kept_apart() {
        let mut samples = Samples::default();
        samples.add("gso", "vxlan", Metric::Tcp, 1.0);
        samples.add("gso", "vxlan", Metric::Tcp, 3.0);
        samples.add("wire", "vxlan", Metric::Tcp, 9.0);
        samples.add("gso", "vxlan", Metric::Tcp4, 9.0);
        assert_eq!(samples.median("gso", "vxlan", Metric::Tcp), Some(2.0));
        assert_eq!(samples.median("gso", "formic", Metric::Tcp), None);
        assert_eq!(samples.iter().count(), 3);
        samples.add("wire", "formic.2", Metric::Tcp, 9.0);
        samples.add("gso", "formic", Metric::Tcp, 9.0);
        assert_eq!(samples.lanes(), ["vxlan", "formic", "formic.2"]);
    }
}
