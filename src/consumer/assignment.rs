//! Which partitions are ours, by which epoch, and which of them are paused. Pure: no clock, no Kafka.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::frontier::Epoch;

/// Where every partition is full, nothing can be taken in from any, so that waiting a little holds nobody; pausing costs, since librdkafka
/// throws away what it had fetched. (The engine asks for a pause only of what has been full for a while.)
const PATIENCE: Duration = Duration::from_millis(90);

/// A partition that is ours.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    /// Messages taken from it.
    pub(super) delivered: u64,
    /// Since when the engine wants it paused.
    full: Option<Duration>,
    /// What librdkafka was told.
    pub(super) paused: bool,
}

/// What to tell librdkafka.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pauses {
    /// Partitions to pause.
    pub(super) pause: Vec<Place>,
    /// Partitions to resume.
    pub(super) resume: Vec<Place>,
    /// Come back after this at the latest.
    pub(super) due: Option<Duration>,
    /// Every partition is full: take nothing in until then, since it would only come on top.
    pub(super) hold: bool,
}

/// A topic and a partition.
pub(super) type Place = (Arc<str>, i32);

/// All partitions that are ours.
#[derive(Debug)]
pub(super) struct Assignment {
    /// The epoch that the next assigned partition gets.
    next: Epoch,
    epochs: HashMap<Arc<str>, HashMap<i32, Epoch>>,
    owned: HashMap<Epoch, Owned>,
    /// Nothing may be taken in from any partition.
    shut: bool,
    /// Something may have to be paused or resumed.
    changed: bool,
}

impl Default for Assignment {
    fn default() -> Self {
        Self { next: Epoch::new(1), epochs: HashMap::new(), owned: HashMap::new(), shut: false, changed: false }
    }
}

impl Assignment {
    /// A partition is ours from now on, in a new epoch. Answers also what it was to us before.
    pub(super) fn assign(&mut self, topic: &str, partition: i32) -> (Epoch, Arc<str>, Option<Owned>) {
        let before = self.revoke(topic, partition).map(|(_, owned)| owned);
        let epoch = self.next;
        self.next = epoch.next();
        let topic = self.epochs.get_key_value(topic).map_or_else(|| topic.into(), |(topic, _)| Arc::clone(topic));
        self.epochs.entry(Arc::clone(&topic)).or_default().insert(partition, epoch);
        // librdkafka keeps a pause beyond the assignment: what it was told still holds.
        let paused = before.as_ref().is_some_and(|owned| owned.paused);
        let fresh = Owned { topic: Arc::clone(&topic), partition, delivered: 0, full: None, paused };
        self.owned.insert(epoch, fresh);
        self.changed = true;
        (epoch, topic, before)
    }

    /// A partition is no longer ours: its epoch is over.
    pub(super) fn revoke(&mut self, topic: &str, partition: i32) -> Option<(Epoch, Owned)> {
        let epoch = self.epochs.get_mut(topic)?.remove(&partition)?;
        self.changed = true;
        Some((epoch, self.owned.remove(&epoch)?))
    }

    /// None is ours any more.
    pub(super) fn revoke_all(&mut self) -> Vec<Owned> {
        self.epochs.clear();
        self.owned.drain().map(|(_, owned)| owned).collect()
    }

    /// All that are ours.
    pub(super) fn places(&self) -> impl Iterator<Item = (&str, i32)> {
        self.owned.values().map(|owned| (&*owned.topic, owned.partition))
    }

    /// The epoch of a partition that is ours.
    pub(super) fn epoch(&self, topic: &str, partition: i32) -> Option<Epoch> {
        self.epochs.get(topic)?.get(&partition).copied()
    }

    /// Whether an epoch is not over.
    pub(super) fn is_ours(&self, epoch: Epoch) -> bool {
        self.owned.contains_key(&epoch)
    }

    /// Counts messages taken in.
    pub(super) fn delivered(&mut self, epoch: Epoch, messages: u64) {
        if let Some(owned) = self.owned.get_mut(&epoch) {
            owned.delivered += messages;
        }
    }

    /// The engine wants nothing more from these.
    pub(super) fn pause(&mut self, epochs: &[Epoch], now: Duration) {
        for epoch in epochs {
            if let Some(owned) = self.owned.get_mut(epoch) {
                owned.full.get_or_insert(now);
                self.changed = true;
            }
        }
    }

    /// The engine takes messages of these again.
    pub(super) fn resume(&mut self, epochs: &[Epoch]) {
        for epoch in epochs {
            if let Some(owned) = self.owned.get_mut(epoch) {
                owned.full = None;
                self.changed = true;
            }
        }
    }

    /// Whether nothing may be taken in from any partition, whatever the engine wants.
    pub(super) const fn shut(&mut self, shut: bool) {
        self.changed |= self.shut != shut;
        self.shut = shut;
    }

    /// What to tell librdkafka at `now`; noted as told. A partition is paused as long as there is any reason to.
    pub(super) fn pauses(&mut self, now: Duration) -> Pauses {
        let mut pauses = Pauses::default();
        if !self.changed {
            return pauses;
        }
        self.changed = false;
        pauses.hold = !self.owned.is_empty() && self.owned.values().all(|owned| owned.paused || owned.full.is_some());
        let patience = if pauses.hold { PATIENCE } else { Duration::ZERO };
        for owned in self.owned.values_mut() {
            let left = owned.full.map(|since| patience.saturating_sub(now.saturating_sub(since)));
            let wanted = self.shut || left == Some(Duration::ZERO);
            match left {
                Some(left) if !wanted && !owned.paused => {
                    pauses.due = Some(pauses.due.map_or(left, |due| due.min(left)));
                    self.changed = true;
                }
                _ => {}
            }
            let place = || (Arc::clone(&owned.topic), owned.partition);
            if wanted && !owned.paused {
                pauses.pause.push(place());
                owned.paused = true;
            } else if owned.paused && !self.shut && owned.full.is_none() {
                pauses.resume.push(place());
                owned.paused = false;
            }
        }
        pauses.hold &= pauses.due.is_some();
        pauses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn place(partition: i32) -> Place {
        ("orders".into(), partition)
    }

    fn assigned(partitions: i32) -> (Assignment, Vec<Epoch>) {
        let mut assignment = Assignment::default();
        let epochs = (0..partitions).map(|partition| assignment.assign("orders", partition).0).collect();
        assert_eq!(assignment.pauses(Duration::ZERO), Pauses::default());
        (assignment, epochs)
    }

    #[test]
    fn f10_every_assignment_is_a_new_epoch() {
        let (mut assignment, epochs) = assigned(2);
        assert_eq!(assignment.epoch("orders", 1), Some(epochs[1]));
        // Assigned again without a revoke in between, as after an eager rebalance.
        let (epoch, topic, before) = assignment.assign("orders", 1);
        assert!(epoch > epochs[1] && before.is_some() && &*topic == "orders");
        assert!(!assignment.is_ours(epochs[1]) && assignment.is_ours(epoch));
        assert_eq!(assignment.revoke("orders", 1).map(|(epoch, _)| epoch), Some(epoch));
        assert!(assignment.revoke("orders", 1).is_none() && assignment.epoch("orders", 1).is_none());
        assert!(assignment.assign("orders", 1).0 > epoch);
        assert_eq!(assignment.revoke_all().len(), 2);
        assert!(!assignment.is_ours(epochs[0]));
    }

    #[test]
    fn a_pause_of_an_epoch_that_is_over_does_nothing() {
        let (mut assignment, epochs) = assigned(1);
        let (fresh, ..) = assignment.assign("orders", 0);
        assignment.pause(&epochs, MS);
        assert_eq!(assignment.pauses(MS * 500), Pauses::default());
        assignment.pause(&[fresh], MS);
        assert_eq!(assignment.pauses(MS * 500).pause, [place(0)]);
        assignment.resume(&epochs);
        assert_eq!(assignment.pauses(MS * 500), Pauses::default());
    }

    #[test]
    fn a_full_partition_is_paused_and_others_are_not_held() {
        let (mut assignment, epochs) = assigned(2);
        assignment.pause(&epochs[..1], MS * 100);
        assert_eq!(assignment.pauses(MS * 100), Pauses { pause: vec![place(0)], ..Pauses::default() });
        assert_eq!(assignment.pauses(MS * 900), Pauses::default(), "told once");
        assignment.resume(&epochs[..1]);
        assert_eq!(assignment.pauses(MS * 901), Pauses { resume: vec![place(0)], ..Pauses::default() });
        assignment.pause(&epochs[..1], MS * 1_000);
        assignment.resume(&epochs[..1]);
        assert_eq!(assignment.pauses(MS * 1_100), Pauses::default(), "never resumed what was not paused");
    }

    #[test]
    fn where_all_are_full_they_are_paused_later() {
        let (mut assignment, epochs) = assigned(2);
        assignment.pause(&epochs, MS * 100);
        assert_eq!(assignment.pauses(MS * 120), Pauses { due: Some(MS * 70), hold: true, ..Pauses::default() });
        let pauses = assignment.pauses(MS * 190);
        assert!(pauses.pause.len() == 2 && !pauses.hold && pauses.due.is_none());
    }

    #[test]
    fn both_reasons_have_to_go_before_a_partition_is_resumed() {
        let (mut assignment, epochs) = assigned(2);
        assignment.shut(true);
        assert_eq!(assignment.pauses(MS).pause.len(), 2, "at once: the gate has waited");
        assignment.pause(&epochs[..1], MS * 2);
        assignment.shut(false);
        assert_eq!(assignment.pauses(MS * 3).resume, [place(1)]);
        assignment.shut(true);
        assert_eq!(assignment.pauses(MS * 4).pause, [place(1)]);
        assignment.resume(&epochs[..1]);
        assert_eq!(assignment.pauses(MS * 5), Pauses::default(), "still shut");
        assignment.shut(false);
        assert_eq!(assignment.pauses(MS * 6).resume.len(), 2);
    }

    #[test]
    fn what_is_assigned_while_all_is_shut_is_paused_too() {
        let (mut assignment, _) = assigned(1);
        assignment.shut(true);
        assert_eq!(assignment.pauses(MS).pause, [place(0)]);
        assignment.assign("orders", 7);
        assert_eq!(assignment.pauses(MS).pause, [place(7)]);
        let (_, gone) = assignment.revoke("orders", 7).expect("ours");
        assert!(gone.paused);
    }
}
