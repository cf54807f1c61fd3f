//! What the Kafka thread and the pump say to each other.
//!
//! ```text
//!   Kafka thread ── Input (tokio channel) ──▶ pump: engine, store, handlers
//!                ◀─ Request (bell) ─────────
//!                ◀─ Gate: what came back ───
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use super::handling::Failure;
use super::message::Message;
use crate::engine::{Assigned, Position};
use crate::frontier::Epoch;

/// A message, and the assignment it was polled in.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) message: Message,
    pub(super) epoch: Epoch,
}

/// What the pump hears from the Kafka thread.
#[derive(Debug)]
pub(super) enum Input {
    /// Partitions are ours.
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
    /// The broker answered a commit asked for by [`Request::Commit`].
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

/// How much of what was sent to the pump has come back: finished or dropped. Bounds what is in between.
#[derive(Debug, Default)]
pub(super) struct Gate {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Gate {
    /// The pump put messages down.
    pub(super) fn give_back(&self, messages: u64, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.messages.fetch_add(messages, Ordering::Release);
    }

    /// Messages and bytes that came back since the beginning.
    pub(super) fn returned(&self) -> (u64, u64) {
        let messages = self.messages.load(Ordering::Acquire);
        (messages, self.bytes.load(Ordering::Relaxed))
    }
}
