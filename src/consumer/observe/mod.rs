//! How the consumer tells what happens: nothing is computed where nobody listens.
//!
//! A [`Probe`] is what every part holds; a [`Watch`] is the pump's own, which gathers a turn's worth before it tells; a [`Sight`](sight::Sight) is one look at a
//! handler call.

mod sight;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::sight::RunRecord;
pub(super) use self::watch::Watch;
use super::monitor::{Board, Monitor};
use crate::observe::{Observed, Observer, Phase, Place};

/// A topic's name and a partition.
pub(super) type Spot = (Arc<str>, i32);

/// Tells observers and the monitor. Cheap to clone. By default nobody listens.
#[derive(Clone, Default)]
pub(super) struct Probe {
    observers: Arc<[Arc<dyn Observer>]>,
    group: Arc<str>,
    /// Whether claims have keys worth telling: not without a store.
    keyed: bool,
    board: Arc<Board>,
    /// Handler calls that ended, wherever they did, until the pump tells.
    runs: Arc<Mutex<Vec<RunRecord>>>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("observers", &self.observers.len()).finish_non_exhaustive()
    }
}

impl Probe {
    /// Adds an observer.
    pub(super) fn add(&mut self, observer: impl Observer) {
        let more: Arc<dyn Observer> = Arc::new(observer);
        self.observers = self.observers.iter().cloned().chain([more]).collect();
        self.board.watch();
    }

    /// The same observers, for another consumer.
    pub(super) fn another(&self) -> Self {
        let other = Self { observers: Arc::clone(&self.observers), ..Self::default() };
        if other.is_on() {
            other.board.watch();
        }
        other
    }

    /// A monitor of this consumer.
    pub(super) fn monitor(&self) -> Monitor {
        self.board.watch();
        Monitor { board: Arc::clone(&self.board) }
    }

    /// Whether anybody wants to see the consumer's state now and then.
    pub(super) fn is_watched(&self) -> bool {
        self.board.is_watched()
    }

    /// Whether anybody hears of what happens.
    pub(super) fn is_on(&self) -> bool {
        !self.observers.is_empty()
    }

    fn tell(&self, event: &Observed<'_>) {
        self.observers.iter().for_each(|observer| observer.on(event));
    }

    fn tell_places(&self, spots: &[Spot], event: impl FnOnce(&[Place<'_>])) {
        if self.is_on() && !spots.is_empty() {
            let places: Vec<Place<'_>> =
                spots.iter().map(|(topic, partition)| Place { topic, partition: *partition }).collect();
            event(&places);
        }
    }

    /// The consumer starts; `handler` is `None` without a store.
    pub(super) fn started(&mut self, group: &str, handler: Option<&str>) {
        self.group = group.into();
        self.keyed = handler.is_some();
        let handler = handler.unwrap_or_default();
        self.board.begin(group, Instant::now());
        self.tell(&Observed::Started { group, handler });
    }

    /// The consumer was told to end.
    pub(super) fn closing(&self) {
        self.board.enter(Phase::Closing);
    }

    /// The consumer has ended.
    pub(super) fn ended(&self) {
        self.board.enter(Phase::Ended);
    }

    /// Kafka was polled.
    pub(super) fn polled(&self, now: Instant) {
        self.board.polled(now);
    }

    /// What the Kafka thread has counted so far.
    pub(super) fn totals(&self, delivered: u64, commits: u64, failed_commits: u64) {
        self.board.totals(delivered, commits, failed_commits);
    }

    /// The offset behind a partition's last message.
    pub(super) fn watermark(&self, topic: &str, partition: i32, offset: i64) {
        self.board.watermark(topic, partition, offset);
    }

    /// Messages of one partition came.
    pub(super) fn delivered(&self, topic: &str, partition: i32, messages: u64, bytes: u64) {
        if self.is_on() {
            self.tell(&Observed::Delivered { place: Place { topic, partition }, messages, bytes });
        }
    }

    /// Partitions are ours.
    pub(super) fn assigned(&self, spots: &[Spot]) {
        self.tell_places(spots, |places| self.tell(&Observed::Assigned(places)));
    }

    /// Partitions went.
    pub(super) fn revoked(&self, spots: &[Spot], lost: bool, left: u64, took: Duration) {
        self.tell_places(spots, |places| self.tell(&Observed::Revoked { places, lost, left, took }));
    }

    /// Partitions take nothing in.
    pub(super) fn paused(&self, spots: &[Spot]) {
        self.tell_places(spots, |places| self.tell(&Observed::Paused(places)));
    }

    /// Partitions take messages in again.
    pub(super) fn resumed(&self, spots: &[Spot]) {
        self.tell_places(spots, |places| self.tell(&Observed::Resumed(places)));
    }

    /// The broker answered a commit, or did not in time.
    pub(super) fn committed(&self, partitions: usize, accepted: bool) {
        if self.is_on() {
            self.tell(&Observed::Committed { partitions: partitions as u64, accepted });
        }
    }
}
