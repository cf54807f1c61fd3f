//! What to do next, and nothing else: events in, commands out.
//!
//! The engine decides what is claimed, run, settled, given up, paused and committed, and when. It has no clock, no randomness, no Kafka, no
//! runtime: time and random numbers come with the events, and thin drivers around it carry the commands out. The same engine
//! runs in production and in the simulator.

mod config;
mod event;

pub use config::{Config, Conflicts, Flaw, OnDead, Order};
pub use event::{
    Answer, Arrival, Assigned, Cause, Command, Ending, Event, Position, Ran, Settled, Start, Subject, Ticket, Time, Verdict,
};

use crate::frontier::Epoch;

/// What is known of a partition that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Its topic.
    pub topic: std::sync::Arc<str>,
    /// Its number.
    pub partition: i32,
    /// The period of owning it.
    pub epoch: Epoch,
    /// Messages delivered and unfinished.
    pub unfinished: usize,
    /// The offset that may be committed.
    pub committable: Option<i64>,
    /// What the broker has as committed, as far as is known.
    pub committed: Option<i64>,
    /// The offset of the last message delivered.
    pub delivered: Option<i64>,
    /// Whether it is paused.
    pub paused: bool,
}

/// The engine's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Partitions that are ours.
    pub partitions: Vec<PartitionState>,
    /// Messages delivered and unfinished.
    pub unfinished: usize,
    /// Handler calls that run.
    pub running: usize,
    /// Claims held whose handlers have not begun.
    pub claimed: usize,
    /// Messages that wait for a retry, or for another owner.
    pub parked: usize,
    /// The store could not be asked the last time.
    pub store_down: bool,
    /// Handlers said that what they need is down.
    pub downstream_down: bool,
}

/// Decides what to do next. See the [module](self).
#[derive(Debug)]
pub struct Engine {
    #[allow(dead_code)]
    config: Config,
}

impl Engine {
    /// An engine that owns nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Takes an event in at time `now`, and appends what to do to `commands`. Time never goes backwards.
    pub fn handle(&mut self, now: Time, event: Event, commands: &mut Vec<Command>) {
        let _ = (now, event, commands);
    }

    /// When to come back with [`Event::Tick`] at the latest; `None` if only an event can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        None
    }

    /// Whether a message is to be committed and no commit is on its way: a commit is due at the next cadence.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}
