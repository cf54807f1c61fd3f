//! What a consumer did, for whoever asked it to run.

use std::collections::BTreeMap;
use std::fmt;

use super::finding::Found;
use crate::engine::Position;

/// What a [`Consumer`](super::Consumer) did from start to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Messages taken from Kafka.
    pub delivered: u64,
    /// Messages whose handler succeeded.
    pub handled: u64,
    /// Messages not handled because the same message, at the same topic, partition and offset, had been handled: redelivered.
    pub redelivered: u64,
    /// Messages not handled because another message with the same identity had been handled: produced again.
    pub same_id: u64,
    /// Messages not handled because another message with the same identity says something else.
    pub conflicts: u64,
    /// Messages given up.
    pub dead: u64,
    /// Messages whose handlers ended after their partition was gone: their results move no frontier.
    pub late: u64,
    /// Messages left to another process that had taken their partition: what was done of them here was rolled back (level L2), or is not
    /// remembered (windows at level L1).
    pub fenced: u64,
    /// Commits that the broker said yes to.
    pub commits: u64,
    /// Commits that failed, or were not answered in time.
    pub failed_commits: u64,
    /// Messages that were delivered and not finished at the end: they will be delivered again.
    pub left: u64,
    /// Messages whose end the store could not be told of. They are claimed until their leases run out, and those whose handlers
    /// succeeded may be handled again.
    pub unsettled: u64,
    /// Most messages that were delivered and unfinished at one time.
    pub most_unfinished: u64,
    /// Whether the group was left in good order. If not, the session has to time out before others get the partitions.
    pub closed: bool,
    /// What was found where partitions went on, once each.
    pub found: Vec<Found>,
    /// What became of each partition that was ever assigned.
    pub partitions: BTreeMap<(String, i32), PartitionSummary>,
}

/// What became of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionSummary {
    /// How often it was assigned.
    pub assigned: u64,
    /// Messages taken from it.
    pub delivered: u64,
    /// The highest offset committed that the broker said yes to: where the next owner begins.
    pub committed: Option<i64>,
}

/// What the pump counted: see [`Summary`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) handled: u64,
    pub(super) redelivered: u64,
    pub(super) same_id: u64,
    pub(super) conflicts: u64,
    pub(super) dead: u64,
    pub(super) late: u64,
    pub(super) fenced: u64,
    pub(super) unsettled: u64,
}

impl Summary {
    /// Messages not handled because they had been: [`redelivered`](Self::redelivered) and [`same_id`](Self::same_id).
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.redelivered + self.same_id
    }

    pub(super) fn partition(&mut self, topic: &str, partition: i32) -> &mut PartitionSummary {
        self.partitions.entry((topic.to_owned(), partition)).or_default()
    }

    /// Adds what the pump counted.
    pub(super) const fn add(&mut self, tally: &Tally) {
        self.handled += tally.handled;
        self.redelivered += tally.redelivered;
        self.same_id += tally.same_id;
        self.conflicts += tally.conflicts;
        self.dead += tally.dead;
        self.late += tally.late;
        self.fenced += tally.fenced;
        self.unsettled += tally.unsettled;
    }

    /// Notes that the broker said yes.
    pub(super) fn committed(&mut self, position: &Position) {
        let known = &mut self.partition(&position.topic, position.partition).committed;
        *known = (*known).max(Some(position.offset));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "delivered={} handled={} redelivered={} same_id={} conflicts={} dead={} left={} commits={}",
            self.delivered,
            self.handled,
            self.redelivered,
            self.same_id,
            self.conflicts,
            self.dead,
            self.left,
            self.commits
        )?;
        for (name, count) in [("fenced", self.fenced), ("unsettled", self.unsettled)] {
            if count > 0 {
                write!(f, " {name}={count}")?;
            }
        }
        Ok(())
    }
}
