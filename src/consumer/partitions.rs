//! What is known of each assigned partition, and what follows from it: which offsets to commit, which partitions to
//! pause and resume. Pure: no clock, no Kafka, no tokio.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::frontier::{Epoch, Finish, Frontier, Slot};

/// A partition that stays full for this long is paused. Pausing costs: librdkafka throws away what it had fetched.
pub(super) const PATIENCE: Duration = Duration::from_millis(10);

/// A partition and an offset in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// One assigned partition, for one epoch.
#[derive(Debug)]
struct Partition {
    topic: Arc<str>,
    partition: i32,
    frontier: Frontier,
    /// Handed to librdkafka for committing; the broker may not have answered yet.
    sent: Option<i64>,
    /// What the broker said yes to.
    committed: Option<i64>,
    intake: Intake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    Open,
    /// Full since then (time passed in).
    Full(Duration),
    Paused,
}

impl Partition {
    fn position(&self, offset: i64) -> Position {
        Position { topic: Arc::clone(&self.topic), partition: self.partition, offset }
    }
}

/// What to do about back-pressure.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    /// Partitions to pause (the offsets mean nothing).
    pub(super) pause: Vec<Position>,
    /// Partitions to resume.
    pub(super) resume: Vec<Position>,
    /// Take nothing in for so long, or until something finished: a partition is full.
    pub(super) hold: Option<Duration>,
    /// So many messages can be taken in, whichever partition they belong to.
    pub(super) room: usize,
}

/// All assigned partitions.
#[derive(Debug)]
pub(super) struct Partitions {
    /// The epoch that the next assigned partition gets.
    next: Epoch,
    /// Unfinished messages that a partition may have.
    intake: usize,
    /// A partition with less room than this is full: smaller batches are not worth it.
    chunk: usize,
    epochs: HashMap<Arc<str>, HashMap<i32, Epoch>>,
    by_epoch: HashMap<Epoch, Partition>,
}

impl Partitions {
    pub(super) fn new(intake: usize) -> Self {
        let chunk = (intake / 4).max(1);
        Self { next: Epoch::new(1), intake, chunk, epochs: HashMap::new(), by_epoch: HashMap::new() }
    }

    /// A partition is ours from now on. Whatever was known of it is forgotten.
    pub(super) fn assign(&mut self, topic: &str, partition: i32) -> Epoch {
        self.revoke(topic, partition);
        let epoch = self.next;
        self.next = epoch.next();
        let topic: Arc<str> = topic.into();
        self.epochs.entry(Arc::clone(&topic)).or_default().insert(partition, epoch);
        let frontier = Frontier::new(epoch);
        let fresh = Partition { topic, partition, frontier, sent: None, committed: None, intake: Intake::Open };
        self.by_epoch.insert(epoch, fresh);
        epoch
    }

    /// A partition is no longer ours. Answers its epoch, if it was, and whether it was paused.
    pub(super) fn revoke(&mut self, topic: &str, partition: i32) -> Option<(Epoch, bool)> {
        let epoch = self.epochs.get_mut(topic)?.remove(&partition)?;
        let gone = self.by_epoch.remove(&epoch)?;
        Some((epoch, gone.intake == Intake::Paused))
    }

    /// The epoch of a partition that is ours.
    pub(super) fn epoch(&self, topic: &str, partition: i32) -> Option<Epoch> {
        self.epochs.get(topic)?.get(&partition).copied()
    }

    /// Topic and partition of an epoch that is not over.
    pub(super) fn place(&self, epoch: Epoch) -> Option<(&Arc<str>, i32)> {
        self.by_epoch.get(&epoch).map(|known| (&known.topic, known.partition))
    }

    /// Notes a message delivered; `None` if the epoch is over or the message has a place already.
    pub(super) fn deliver(&mut self, epoch: Epoch, offset: i64) -> Option<Slot> {
        self.by_epoch.get_mut(&epoch)?.frontier.deliver(offset)
    }

    /// Notes a message finished. [`Finish::Stale`] if its epoch is over.
    pub(super) fn finish(&mut self, slot: Slot) -> Finish {
        self.by_epoch.get_mut(&slot.epoch()).map_or(Finish::Stale, |known| known.frontier.finish(slot))
    }

    /// Offsets that may be committed and have not been handed over, and notes them handed over.
    pub(super) fn take_due(&mut self) -> Vec<Position> {
        let due = |known: &mut Partition| {
            let offset = known.frontier.committable().filter(|offset| Some(*offset) > known.sent)?;
            known.sent = Some(offset);
            Some(known.position(offset))
        };
        self.by_epoch.values_mut().filter_map(due).collect()
    }

    /// Offsets of these partitions, or of all, that may be committed and that the broker has not said yes to.
    pub(super) fn unconfirmed(&self, only: Option<&[Epoch]>) -> Vec<Position> {
        let due = |known: &Partition| {
            let offset = known.frontier.committable().filter(|offset| Some(*offset) > known.committed)?;
            Some(known.position(offset))
        };
        let chosen = |known: &&Partition| only.is_none_or(|only| only.contains(&known.frontier.epoch()));
        self.by_epoch.values().filter(chosen).filter_map(due).collect()
    }

    /// The broker said yes.
    pub(super) fn confirm(&mut self, position: &Position) {
        if let Some(known) = self.known(position) {
            known.committed = known.committed.max(Some(position.offset));
            known.sent = known.sent.max(known.committed);
        }
    }

    /// The broker said no, or was not asked: to be handed over again.
    pub(super) fn refuse(&mut self, position: &Position) {
        if let Some(known) = self.known(position)
            && known.sent == Some(position.offset)
        {
            known.sent = known.committed;
        }
    }

    fn known(&mut self, position: &Position) -> Option<&mut Partition> {
        let epoch = self.epoch(&position.topic, position.partition)?;
        self.by_epoch.get_mut(&epoch)
    }

    /// Decides about back-pressure, and notes it done. `now` is a time since whenever.
    pub(super) fn flow(&mut self, now: Duration) -> Flow {
        let mut flow = Flow { room: self.intake, ..Flow::default() };
        for known in self.by_epoch.values_mut() {
            let unfinished = known.frontier.unfinished();
            let room = self.intake.saturating_sub(unfinished);
            let full = room < self.chunk;
            match known.intake {
                Intake::Paused if unfinished <= self.intake / 2 => {
                    known.intake = Intake::Open;
                    flow.resume.push(known.position(0));
                }
                Intake::Open | Intake::Full(_) if !full => known.intake = Intake::Open,
                Intake::Open => {
                    known.intake = Intake::Full(now);
                    flow.hold = Some(flow.hold.unwrap_or(PATIENCE).min(PATIENCE));
                }
                Intake::Full(since) => match PATIENCE.checked_sub(now.saturating_sub(since)) {
                    Some(left) if !left.is_zero() => flow.hold = Some(flow.hold.unwrap_or(left).min(left)),
                    _ => {
                        known.intake = Intake::Paused;
                        flow.pause.push(known.position(0));
                    }
                },
                Intake::Paused => {}
            }
            if known.intake != Intake::Paused {
                flow.room = flow.room.min(room);
            }
        }
        flow
    }

    /// Whether any partition is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.by_epoch.values().any(|known| known.intake == Intake::Paused)
    }

    /// The epochs that are not over.
    pub(super) fn all(&self) -> Vec<Epoch> {
        self.by_epoch.keys().copied().collect()
    }

    /// Messages delivered and unfinished, in all partitions.
    pub(super) fn unfinished(&self) -> usize {
        self.by_epoch.values().map(|known| known.frontier.unfinished()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(partitions: &mut Partitions, epoch: Epoch, offsets: std::ops::Range<i64>) {
        for offset in offsets {
            let slot = partitions.deliver(epoch, offset).expect("in order");
            assert_eq!(partitions.finish(slot), Finish::Moved);
        }
    }

    fn position(offset: i64) -> Position {
        Position { topic: "orders".into(), partition: 3, offset }
    }

    #[test]
    fn a_commit_is_clean_only_once_the_broker_said_yes() {
        let mut partitions = Partitions::new(100);
        let epoch = partitions.assign("orders", 3);
        assert!(partitions.take_due().is_empty());
        run(&mut partitions, epoch, 0..5);
        assert_eq!(partitions.take_due(), [position(5)]);
        assert!(partitions.take_due().is_empty(), "on its way");
        assert_eq!(partitions.unconfirmed(None), [position(5)], "not clean yet");
        partitions.refuse(&position(5));
        assert_eq!(partitions.take_due(), [position(5)], "again");
        run(&mut partitions, epoch, 5..7);
        assert_eq!(partitions.take_due(), [position(7)]);
        partitions.refuse(&position(5));
        assert!(partitions.take_due().is_empty(), "7 is on its way, whatever became of 5");
        partitions.confirm(&position(7));
        partitions.confirm(&position(5));
        assert!(partitions.unconfirmed(None).is_empty(), "never backwards");
        assert!(partitions.unconfirmed(Some(&[epoch])).is_empty());
    }

    #[test]
    fn f10_a_new_assignment_starts_with_nothing() {
        let mut partitions = Partitions::new(100);
        let early = partitions.assign("orders", 3);
        run(&mut partitions, early, 0..5);
        let late = partitions.deliver(early, 5).expect("in order");
        // Assigned again without a revoke in between, as after an eager rebalance.
        let epoch = partitions.assign("orders", 3);
        assert_ne!(early, epoch);
        assert!(partitions.take_due().is_empty() && partitions.unconfirmed(None).is_empty());
        assert_eq!(partitions.finish(late), Finish::Stale);
        assert!(partitions.deliver(early, 6).is_none());
        partitions.confirm(&position(5));
        run(&mut partitions, epoch, 3..4);
        assert!(partitions.take_due().is_empty(), "the broker has 5: never below it");
        run(&mut partitions, epoch, 4..6);
        assert_eq!(partitions.take_due(), [position(6)]);
    }

    #[test]
    fn full_partitions_wait_then_pause_and_resume_at_half() {
        let ms = Duration::from_millis;
        let mut partitions = Partitions::new(4);
        let epoch = partitions.assign("orders", 3);
        let slots: Vec<Slot> = (0..4).map(|offset| partitions.deliver(epoch, offset).expect("in order")).collect();
        let other = partitions.assign("orders", 4);
        run(&mut partitions, other, 0..10);
        let free = || Flow { room: 4, ..Flow::default() };
        assert_eq!(partitions.flow(ms(100)), Flow { hold: Some(PATIENCE), ..Flow::default() });
        assert_eq!(partitions.flow(ms(104)).hold, Some(ms(6)));
        assert_eq!(partitions.flow(ms(110)), Flow { pause: vec![position(0)], ..free() });
        assert_eq!(partitions.flow(ms(500)), free(), "paused once");
        partitions.finish(slots[0]);
        assert_eq!(partitions.flow(ms(600)), free(), "still above half");
        partitions.finish(slots[2]);
        partitions.finish(slots[1]);
        assert_eq!(partitions.flow(ms(601)), Flow { resume: vec![position(0)], room: 3, ..Flow::default() });
        assert_eq!(partitions.flow(ms(602)), Flow { room: 3, ..Flow::default() }, "resumed once");
        assert_eq!(partitions.unfinished(), 1);
        assert_eq!(partitions.revoke("orders", 3), Some((epoch, false)));
        assert_eq!(partitions.revoke("orders", 3), None);
        assert_eq!(partitions.all(), [other]);
    }

    #[test]
    fn whatever_is_taken_in_fits_every_partition() {
        let mut partitions = Partitions::new(2_048);
        assert_eq!(partitions.flow(Duration::ZERO).room, 2_048);
        let epoch = partitions.assign("orders", 3);
        partitions.assign("orders", 4);
        for offset in 0..1_536 {
            partitions.deliver(epoch, offset).expect("in order");
        }
        assert_eq!(partitions.flow(Duration::ZERO), Flow { room: 512, ..Flow::default() });
        partitions.deliver(epoch, 1_536).expect("in order");
        assert!(partitions.flow(Duration::ZERO).hold.is_some(), "less than a quarter is left");
    }

    #[test]
    fn a_partition_that_was_full_for_a_moment_is_not_paused() {
        let ms = Duration::from_millis;
        let mut partitions = Partitions::new(1);
        let epoch = partitions.assign("orders", 3);
        let slot = partitions.deliver(epoch, 0).expect("in order");
        assert!(partitions.flow(ms(0)).hold.is_some());
        partitions.finish(slot);
        assert_eq!(partitions.flow(ms(5)), Flow { room: 1, ..Flow::default() });
        partitions.deliver(epoch, 1).expect("in order");
        assert_eq!(partitions.flow(ms(50)).hold, Some(PATIENCE), "patience starts anew");
    }
}
