//! What the Kafka thread and the pump say to each other.
//!
//! ```text
//!   Kafka thread ── Input (tokio channel) ──▶ pump: engine, store, handlers
//!                ◀─ Request (bell) ─────────
//!                ◀─ Gate: what came back ───
//! ```

use std::sync::{Arc, mpsc};
use std::time::Instant;

use super::bell::{Bell, Word};
use super::gate::Gate;
use super::handling::Failure;
use super::message::Row;
use crate::engine::{Assigned, Position};
use crate::frontier::Epoch;

/// Messages of one partition, and the assignment they were polled in.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) row: Row,
    pub(super) epoch: Epoch,
}

/// What the pump hears from the Kafka thread.
#[derive(Debug)]
pub(super) enum Input {
    /// Partitions are ours. One that was already ours begins anew: its earlier epoch is over.
    Assigned(Vec<Assigned>),
    /// Messages, in the order polled.
    Delivered(Vec<Delivered>),
    /// Partitions go. The Kafka thread waits for the answer, inside librdkafka's callback, unless they are lost.
    Revoke {
        epochs: Vec<Epoch>,
        lost: bool,
        /// Until when handlers may run.
        by: Instant,
        answer: mpsc::Sender<Drained>,
    },
    /// The broker answered a commit asked for by [`Request::Commit`]: once for each, with all of its positions. What was asked of an
    /// assignment that is over is not accepted.
    Committed { positions: Vec<Position>, accepted: bool },
    /// The consumer ends. The Kafka thread waits for the answer.
    Close { by: Instant, answer: mpsc::Sender<Drained> },
}

/// What is left to do when partitions have been drained.
#[derive(Debug)]
pub(super) struct Drained {
    /// To be committed, and waited for.
    pub(super) commit: Vec<Position>,
    /// Messages or handlers that were not finished.
    pub(super) left: usize,
}

/// What the Kafka thread is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// Take nothing in from these; what is asked of an assignment that is over is passed over.
    Pause(Vec<Epoch>),
    /// Take messages in again.
    Resume(Vec<Epoch>),
    /// Commit these, and answer with [`Input::Committed`].
    Commit(Vec<Position>),
    /// A message may not be passed: end.
    Stop { topic: String, partition: i32, offset: i64, failure: Failure },
    /// The pump is gone, however it went. The last thing it says.
    Gone,
}

/// The pump's end of the line to the Kafka thread.
#[derive(Clone, Debug)]
pub(super) struct Line {
    bell: Arc<Bell>,
    gate: Arc<Gate>,
}

impl Line {
    pub(super) const fn new(bell: Arc<Bell>, gate: Arc<Gate>) -> Self {
        Self { bell, gate }
    }

    /// Asks for something, and wakes the Kafka thread for it: not to be done for every message.
    pub(super) fn ask(&self, request: Request) {
        self.bell.tell(Word::Request(request));
    }

    /// Says that so many messages are finished or dropped. Their bytes come back by themselves, when their buffers are dropped.
    pub(super) fn give_back(&self, messages: u64) {
        self.gate.give_back(messages);
    }
}
