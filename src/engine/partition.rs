//! One partition, for one assignment epoch: its frontier, what of it is committed, whether it is paused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::event::{Assigned, Position, Time};
use super::table::NONE;
use super::{Config, Flaw, PartitionState};
use crate::frontier::{Frontier, Slot};

/// A partition that is full for this long is looked at: see [`Partition::flow`].
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// It stands still if it finishes less than this part of what it may hold meanwhile.
const STILL: usize = 16;
/// It takes the room of the others if it holds three quarters of all room, and finishes less than this part of what it may hold meanwhile.
const SLOW: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Ours: messages come and go.
    Live,
    /// About to go: nothing is begun, what ends counts.
    Draining,
    /// Gone: what ends moves nothing.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    Open,
    /// Since then, and with so many finished before.
    Full(Time, u64),
    Paused,
}

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) frontier: Frontier,
    pub(super) stage: Stage,
    /// Messages that are more than waiting: claimed, running, being settled.
    pub(super) in_hand: usize,
    /// By hash of the record key.
    pub(super) lanes: HashMap<u64, u32, foldhash::fast::RandomState>,
    /// Handed over for committing; the broker may not have answered yet.
    sent: Option<i64>,
    /// What the broker said yes to.
    committed: Option<i64>,
    intake: Intake,
    /// It is in the engine's list of those to look at.
    pub(super) watched: bool,
    /// The one lane of a partition that has no others; [`NONE`] before its first message.
    pub(super) lane: u32,
    /// Messages finished.
    finished: u64,
    /// One above the highest offset that finished, for [`Flaw::CommitPastGap`] and [`Flaw::LateResultsCount`] alone.
    highest: Option<i64>,
}

impl Partition {
    pub(super) fn new(assigned: Assigned) -> Self {
        let Assigned { topic, partition, epoch, committed } = assigned;
        Self {
            topic,
            partition,
            frontier: Frontier::new(epoch),
            stage: Stage::Live,
            in_hand: 0,
            lanes: HashMap::default(),
            sent: committed,
            committed,
            intake: Intake::Open,
            watched: false,
            lane: NONE,
            finished: 0,
            highest: None,
        }
    }

    /// A message finished.
    pub(super) fn finish(&mut self, slot: Slot) {
        self.frontier.finish(slot);
        self.finished += 1;
    }

    /// Notes an offset finished that a flawed engine counts.
    pub(super) fn finished_beyond(&mut self, offset: i64) {
        self.highest = self.highest.max(Some(offset + 1));
    }

    fn committable(&self, config: &Config) -> Option<i64> {
        if config.has(Flaw::CommitPastGap) || config.has(Flaw::LateResultsCount) {
            return self.frontier.committable().max(self.highest);
        }
        self.frontier.committable()
    }

    fn position(&self, offset: i64) -> Position {
        Position { topic: Arc::clone(&self.topic), partition: self.partition, epoch: self.frontier.epoch(), offset }
    }

    /// What may be committed and was not handed over; notes it handed over.
    pub(super) fn take_due(&mut self, config: &Config) -> Option<Position> {
        let offset = self.committable(config).filter(|offset| Some(*offset) > self.sent)?;
        self.sent = Some(offset);
        Some(self.position(offset))
    }

    /// What may be committed and the broker has not said yes to.
    pub(super) fn unconfirmed(&self, config: &Config) -> Option<Position> {
        let offset = self.committable(config).filter(|offset| Some(*offset) > self.committed)?;
        Some(self.position(offset))
    }

    /// The broker answered.
    pub(super) fn answered(&mut self, offset: i64, accepted: bool) {
        if accepted {
            self.committed = self.committed.max(Some(offset));
            self.sent = self.sent.max(self.committed);
        } else if self.sent == Some(offset) {
            self.sent = self.committed;
        }
    }

    /// Whether it holds as much as it may.
    pub(super) fn is_full(&self, config: &Config) -> bool {
        self.frontier.unfinished() >= config.partition_messages || self.frontier.span() >= config.span
    }

    /// Whether nothing about its intake is to be decided until it is full.
    pub(super) fn is_open(&self) -> bool {
        self.intake == Intake::Open
    }

    /// Decides about back-pressure. `Some(true)`: pause it now; `Some(false)`: resume it.
    ///
    /// Pausing costs: librdkafka throws away what it had fetched, up to a hundred thousand messages. So what is full is not paused while it moves
    /// on: where all room is taken, the Kafka thread takes in no more than comes back. Only what stands still is, and what is slow where full
    /// partitions, which hold `taken` messages together, take the others' room.
    pub(super) fn flow(&mut self, now: Time, config: &Config, is_down: bool, taken: usize) -> Option<bool> {
        let unfinished = self.frontier.unfinished();
        let span = self.frontier.span();
        // Something has to come in to try with whether it is back.
        let is_down = is_down && unfinished > 0;
        let full = is_down || self.is_full(config);
        match self.intake {
            Intake::Paused => {
                let roomy = !is_down && unfinished <= config.partition_messages / 2 && span <= config.span / 2;
                if roomy {
                    self.intake = Intake::Open;
                }
                roomy.then_some(false)
            }
            _ if !full => {
                self.intake = Intake::Open;
                None
            }
            Intake::Open => {
                self.intake = Intake::Full(now, self.finished);
                None
            }
            Intake::Full(since, before) if now >= since + PATIENCE => {
                let finished = usize::try_from(self.finished - before).unwrap_or(usize::MAX);
                let part = |of: usize| finished < (config.partition_messages / of).max(1);
                let hogs = taken >= config.messages.saturating_sub(config.messages / 4) && part(SLOW);
                let slow = is_down || span >= config.span || hogs || part(STILL);
                self.intake = if slow { Intake::Paused } else { Intake::Full(now, self.finished) };
                slow.then_some(true)
            }
            Intake::Full(..) => None,
        }
    }

    /// When [`flow`](Self::flow) may decide something without an event.
    pub(super) fn wake_at(&self) -> Option<Time> {
        match self.intake {
            Intake::Full(since, _) => Some(since + PATIENCE),
            Intake::Open | Intake::Paused => None,
        }
    }

    pub(super) fn state(&self) -> PartitionState {
        PartitionState {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            epoch: self.frontier.epoch(),
            unfinished: self.frontier.unfinished(),
            committable: self.frontier.committable(),
            committed: self.committed,
            delivered: self.frontier.delivered(),
            paused: self.intake == Intake::Paused,
        }
    }
}
