//! How much is between the Kafka thread and the handlers, and when that is too much.
//!
//! The [`Gate`] counts what came back, and is shared: the pump gives messages back in batches, buffers give their bytes back when
//! the last message in them is dropped. The [`Valve`] is the Kafka thread's own: what it sent, and whether it may send more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::bell::Bell;

/// What stays full for so long is paused. Pausing costs: librdkafka throws away what it had fetched. While the gate is full
/// there is nothing to take from any partition, so that waiting holds nobody.
const PATIENCE: Duration = Duration::from_millis(50);
/// Room for fewer messages is not worth a batch.
const WORTHWHILE_MESSAGES: u64 = 512;
/// Room for fewer bytes is not worth a batch.
const WORTHWHILE_BYTES: u64 = 1 << 20;
/// Nobody waits.
const NEVER: u64 = u64::MAX;

/// Counts what came back.
#[derive(Debug)]
pub(super) struct Gate {
    bell: Arc<Bell>,
    returned: AtomicU64,
    /// Of all buffers that live.
    bytes: AtomicU64,
    /// The Kafka thread wants to be woken when so many messages came back …
    enough: AtomicU64,
    /// … and no more than so many bytes live.
    little: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Gate {
    pub(super) const fn new(bell: Arc<Bell>) -> Self {
        Self {
            bell,
            returned: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            enough: AtomicU64::new(NEVER),
            little: AtomicU64::new(0),
        }
    }

    /// Messages came back: finished or dropped.
    pub(super) fn give_back(&self, messages: u64) {
        self.returned.fetch_add(messages, Ordering::SeqCst);
        self.ring_if_open();
    }

    /// A buffer of so many bytes went out.
    pub(super) fn hold(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// A buffer of so many bytes is gone.
    pub(super) fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.ring_if_open();
    }

    /// Messages that came back since the beginning.
    pub(super) fn returned(&self) -> u64 {
        self.returned.load(Ordering::SeqCst)
    }

    /// Bytes of the buffers that live.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Asks for a ring, once, when so many messages came back and no more than so many bytes live.
    fn ring_when(&self, returned: u64, bytes: u64) {
        self.little.store(bytes, Ordering::SeqCst);
        self.enough.store(returned, Ordering::SeqCst);
        // What came back before this is seen here, and what comes back after it sees this: all of it is in one order.
        self.ring_if_open();
    }

    fn ring_never(&self) {
        self.enough.store(NEVER, Ordering::SeqCst);
    }

    fn ring_if_open(&self) {
        let enough = self.enough.load(Ordering::SeqCst);
        if enough != NEVER && self.returned() >= enough && self.bytes() <= self.little.load(Ordering::SeqCst) {
            self.ring_never();
            self.bell.ring();
        }
    }
}

/// Whether messages may be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// So many.
    Open {
        /// Messages, at most.
        messages: usize,
        /// Bytes; the message that goes beyond is the last.
        bytes: usize,
    },
    /// None, for so long; there may be room before.
    Hold(Duration),
    /// None: everything is to be paused.
    Shut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Open,
    /// Full since then.
    Full(Duration),
    Shut,
}

/// Lets messages through to the pump, up to a bound.
#[derive(Debug)]
pub(super) struct Valve {
    gate: Arc<Gate>,
    max_messages: u64,
    max_bytes: u64,
    sent: u64,
    position: Position,
    /// Handlers keep messages that are finished: said once.
    warned: bool,
}

impl Valve {
    pub(super) const fn new(gate: Arc<Gate>, max_messages: u64, max_bytes: u64) -> Self {
        Self { gate, max_messages, max_bytes, sent: 0, position: Position::Open, warned: false }
    }

    /// Messages went to the pump.
    pub(super) const fn sent(&mut self, messages: u64) {
        self.sent += messages;
    }

    /// Messages that are out.
    pub(super) fn out(&self) -> u64 {
        self.sent.saturating_sub(self.gate.returned())
    }

    /// Decides at `now`, a time since whenever.
    pub(super) fn room(&mut self, now: Duration) -> Room {
        let (out, bytes) = (self.out(), self.gate.bytes());
        let messages = self.max_messages.saturating_sub(out);
        // Where nothing is unfinished, the bytes are those of messages that handlers kept: to wait for those might be for ever.
        let kept = out == 0 && bytes > self.max_bytes / 2;
        if kept && !self.warned {
            self.warned = true;
            tracing::warn!(
                bytes,
                max_bytes = self.max_bytes,
                "handlers keep messages after they finished them, and with each the buffer of its batch; copy out what is to be kept"
            );
        }
        let bytes_left = if out == 0 { self.max_bytes } else { self.max_bytes.saturating_sub(bytes) };
        let (enough_messages, enough_bytes) = match self.position {
            Position::Shut => (self.max_messages - self.max_messages / 2, self.max_bytes - self.max_bytes / 2),
            Position::Open | Position::Full(_) => self.worthwhile(),
        };
        if messages >= enough_messages && bytes_left >= enough_bytes {
            self.position = Position::Open;
            self.gate.ring_never();
            let small = |number| usize::try_from(number).unwrap_or(usize::MAX);
            return Room::Open { messages: small(messages), bytes: small(bytes_left) };
        }
        let room = match self.position {
            Position::Open => {
                self.position = Position::Full(now);
                Room::Hold(PATIENCE)
            }
            Position::Full(since) => match PATIENCE.saturating_sub(now.saturating_sub(since)) {
                Duration::ZERO => {
                    self.position = Position::Shut;
                    Room::Shut
                }
                left => Room::Hold(left),
            },
            Position::Shut => Room::Shut,
        };
        let (free_messages, free_bytes) = match self.position {
            Position::Shut => (self.max_messages - self.max_messages / 2, self.max_bytes - self.max_bytes / 2),
            Position::Open | Position::Full(_) => self.worthwhile(),
        };
        let full_messages = self.max_messages.saturating_sub(free_messages);
        self.gate.ring_when(self.sent.saturating_sub(full_messages), self.max_bytes.saturating_sub(free_bytes));
        room
    }

    /// Room that is worth a batch.
    fn worthwhile(&self) -> (u64, u64) {
        ((self.max_messages / 4).clamp(1, WORTHWHILE_MESSAGES), (self.max_bytes / 4).clamp(1, WORTHWHILE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn valve(messages: u64, bytes: u64) -> (Arc<Gate>, Valve) {
        let gate = Arc::new(Gate::default());
        (Arc::clone(&gate), Valve::new(gate, messages, bytes))
    }

    /// Whether a wait would end at once.
    fn rung(gate: &Gate) -> bool {
        gate.bell.wait(Duration::ZERO)
    }

    #[test]
    fn it_holds_then_shuts_and_opens_at_half() {
        let (gate, mut valve) = valve(16, 1_000);
        assert_eq!(valve.room(MS), Room::Open { messages: 16, bytes: 1_000 });
        valve.sent(13);
        assert_eq!(valve.room(MS * 100), Room::Hold(PATIENCE), "less than a quarter is left");
        assert_eq!(valve.room(MS * 120), Room::Hold(PATIENCE - MS * 20));
        assert_eq!(valve.room(MS * 150), Room::Shut);
        assert!(!rung(&gate));
        gate.give_back(4);
        assert!(!rung(&gate));
        assert_eq!(valve.room(MS * 151), Room::Shut, "9 of 16 are out");
        gate.give_back(1);
        assert!(rung(&gate), "8 of 16 are out");
        assert_eq!(valve.room(MS * 152), Room::Open { messages: 8, bytes: 1_000 });
        gate.give_back(8);
        assert!(!rung(&gate), "nobody waits");
    }

    #[test]
    fn what_was_full_for_a_moment_is_not_shut() {
        let (gate, mut valve) = valve(4, 1_000);
        valve.sent(4);
        assert_eq!(valve.room(MS), Room::Hold(PATIENCE));
        gate.give_back(1);
        assert!(rung(&gate), "one is a quarter");
        assert_eq!(valve.room(MS * 2), Room::Open { messages: 1, bytes: 1_000 });
        valve.sent(1);
        assert_eq!(valve.room(MS * 60), Room::Hold(PATIENCE), "patience starts anew");
    }

    #[test]
    fn bytes_shut_it_as_messages_do() {
        let (gate, mut valve) = valve(1_000, 100);
        valve.sent(2);
        gate.hold(76);
        assert_eq!(valve.room(MS), Room::Hold(PATIENCE));
        assert_eq!(valve.room(MS * 60), Room::Shut);
        gate.give_back(1);
        assert!(!rung(&gate), "the buffer lives");
        gate.release(26);
        assert!(rung(&gate));
        assert_eq!(valve.room(MS * 61), Room::Open { messages: 999, bytes: 50 });
    }

    #[test]
    fn one_message_larger_than_the_bound_passes_alone() {
        let (gate, mut valve) = valve(1, 10);
        assert_eq!(valve.room(MS), Room::Open { messages: 1, bytes: 10 });
        valve.sent(1);
        gate.hold(5_000);
        assert_eq!(valve.room(MS), Room::Hold(PATIENCE));
        gate.give_back(1);
        gate.release(5_000);
        assert!(rung(&gate));
        assert_eq!(valve.room(MS), Room::Open { messages: 1, bytes: 10 });
    }

    #[test]
    fn messages_that_handlers_keep_do_not_stop_it_for_ever() {
        let (gate, mut valve) = valve(10, 10);
        valve.sent(5);
        gate.hold(5_000);
        assert_eq!(valve.room(MS), Room::Hold(PATIENCE));
        assert_eq!(valve.room(MS * 60), Room::Shut);
        gate.give_back(5);
        assert_eq!(valve.room(MS * 61), Room::Open { messages: 10, bytes: 10 });
        assert!(valve.warned);
    }
}
