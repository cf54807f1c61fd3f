//! The Kafka thread: one loop that polls, hands batches to the pump, and does what the pump asks for.
//!
//! It is an OS thread of its own because librdkafka's calls block, its callbacks must be free to wait for handlers, and
//! a consumer that is dropped blocks until it has left its group.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, warn};

use super::bell::Bell;
use super::context::{Client, Context, End, Flow};
use super::gate::Gate;
use super::joining::{self, CHANGE, Strangers};
use super::message::Filling;
use super::summary::Summary;

/// The longest wait without a poll where nothing is heard of: a safety net, since librdkafka rings.
const IDLE: Duration = Duration::from_millis(50);
/// For how long leaving the group is waited for.
const LEAVE: Duration = Duration::from_secs(10);

/// Time between two tries to join while the broker still keeps the place of a static member that was killed.
const AGAIN: Duration = Duration::from_secs(1);

/// How the thread is told to end. Its value only grows.
#[derive(Default)]
pub(super) struct Stop {
    wish: AtomicU8,
    pub(super) bell: Arc<Bell>,
}

impl Stop {
    const DRAIN: u8 = 1;
    const ABORT: u8 = 2;

    /// Finish what runs, commit, leave.
    pub(super) fn drain(&self) {
        self.wish.fetch_max(Self::DRAIN, Ordering::AcqRel);
        self.bell.ring();
    }

    /// Drop what runs, commit, leave.
    pub(super) fn abort(&self) {
        self.wish.fetch_max(Self::ABORT, Ordering::AcqRel);
        self.bell.ring();
    }

    fn wish(&self) -> u8 {
        self.wish.load(Ordering::Acquire)
    }
}

/// What came of the poll.
enum Filled {
    /// There may be more at once.
    More,
    /// Nothing was there.
    Dry,
}

/// What came of a client.
pub(super) enum Came {
    /// The consumer is to end, or was told to.
    Ended(Box<(Summary, Option<End>)>),
    /// The broker did not let it in, and may let another one in: it still keeps the place of a static member that was killed.
    Refused(Arc<Client>),
    /// The broker has taken the member for dead, and librdkafka cannot make it come back; another client can join.
    Outlived(Arc<Client>),
}

pub(super) struct KafkaThread {
    client: Arc<Client>,
    gate: Arc<Gate>,
    /// For how long running handlers are waited for at the end.
    drain: Duration,
    stop: Arc<Stop>,
    /// Until when a static member may be refused before that ends the consumer; `None` if it has not been yet.
    patience: Option<Instant>,
    /// With what it was refused.
    refused: Cell<Option<KafkaError>>,
    /// The group went on without it, and does not let this client in again.
    outlived: Cell<bool>,
    /// How it is refused for its assignors.
    strangers: Cell<Strangers>,
}

impl KafkaThread {
    pub(super) const fn new(
        client: Arc<Client>,
        gate: Arc<Gate>,
        drain: Duration,
        stop: Arc<Stop>,
        patience: Option<Instant>,
    ) -> Self {
        let strangers = Cell::new(Strangers::NONE);
        Self { client, gate, drain, stop, patience, refused: Cell::new(None), outlived: Cell::new(false), strangers }
    }

    fn context(&self) -> &Context {
        self.client.context()
    }

    /// Polls until told to stop, or until nothing can go on.
    pub(super) fn run(self) -> Came {
        let mut filling = Filling::new(Arc::clone(&self.gate));
        while self.stop.wish() == 0 {
            let context = self.context();
            if context.serve() {
                break;
            }
            if let Some(error) = self.refused.take() {
                if self.patience.is_some_and(|until| until <= Instant::now()) {
                    context.refused(error);
                } else if self.pause(AGAIN) {
                    return Came::Refused(self.client);
                }
                continue;
            }
            if self.outlived.take() {
                filling.clear();
                context.lose(&self.client);
                if self.pause(AGAIN) {
                    return Came::Outlived(self.client);
                }
                continue;
            }
            context.show();
            match context.flow(&self.client) {
                Flow::Hold(wait) => {
                    self.stop.bell.wait(wait);
                }
                Flow::Take { messages, bytes, wait } => {
                    let filled = self.fill(&mut filling, messages, bytes);
                    context.dispatch(&mut filling);
                    context.go_on(&self.client);
                    if matches!(filled, Filled::Dry) {
                        self.stop.bell.wait(wait.unwrap_or(IDLE).min(IDLE));
                    }
                }
            }
        }
        filling.clear();
        Came::Ended(Box::new(self.close()))
    }

    /// Waits without polling. `false` if the consumer was told to end meanwhile.
    fn pause(&self, longest: Duration) -> bool {
        let until = Instant::now() + longest;
        while self.stop.wish() == 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            self.stop.bell.wait(left);
        }
        false
    }

    /// Polls until the batch is full, nothing is left, or a callback ran: what it changed comes first.
    fn fill(&self, filling: &mut Filling, messages: usize, bytes: usize) -> Filled {
        loop {
            let before = self.context().events();
            match self.client.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    filling.push(&message);
                    if filling.is_full(messages, bytes) {
                        return Filled::More;
                    }
                }
                Some(Err(error)) => {
                    self.judge(error);
                    return Filled::More;
                }
                // Nothing, or a callback: rdkafka answers both alike.
                None if self.context().events() == before => return Filled::Dry,
                None => return Filled::More,
            }
        }
    }

    /// Decides whether an error of a poll ends the consumer. Most do not: librdkafka goes on trying by itself.
    fn judge(&self, error: KafkaError) {
        use RDKafkaErrorCode as Code;
        let code = error.rdkafka_error_code();
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match (&error, code) {
            (KafkaError::PartitionEOF(_), _) => return,
            // A client that was refused is of no use any more, but there may be nothing wrong with the member.
            (_, Some(Code::UnreleasedInstanceId)) if fatal && self.context().is_new() => {
                return self.refused.set(Some(error));
            }
            // A member of KIP-848's protocol that stood still for longer than its session asks to be let in again as the broker allows nobody to.
            (_, Some(Code::InvalidRequest)) if fatal && self.context().joined() => {
                warn!(
                    "the group went on without this member, which stood still for longer than its session: a new client joins"
                );
                return self.outlived.set(true);
            }
            // The others may be leaving for members like this one.
            (_, Some(Code::InconsistentGroupProtocol)) if !fatal && !self.has_lasted() => return,
            // Decided once what was polled before has been taken in.
            (_, Some(Code::AutoOffsetReset)) => return self.context().continuity().stopped(),
            (_, Some(Code::PollExceeded)) => {
                warn!(
                    "max.poll.interval.ms passed between two polls: partitions were lost, and come back at the next rebalance"
                );
                return;
            }
            (_, Some(code)) if fatal || joining::cure(code, fatal, |_| None).is_some() => {}
            // Where librdkafka would stay for ever, or go on behind them.
            (_, Some(code)) if self.context().is_unreadable(code) => {}
            _ => {
                debug!(%error, "polling goes on");
                return;
            }
        }
        self.context().refused(error);
    }

    /// Whether this member, which has never joined, has been refused for its assignors for long enough.
    fn has_lasted(&self) -> bool {
        let context = self.context();
        let mut strangers = self.strangers.get();
        if strangers.is_new() {
            warn!(
                "the other members of the group know none of this one's assignors: it joins when the last of them has left; if it never \
                 joined, that is tried for {} s",
                CHANGE.as_secs()
            );
        }
        let lasted = strangers.refused(Instant::now());
        self.strangers.set(strangers);
        lasted && context.is_new() && !context.joined()
    }

    /// Drains, commits, leaves the group.
    fn close(self) -> (Summary, Option<End>) {
        let abort = self.stop.wish() == Stop::ABORT;
        let drain = if abort { Duration::ZERO } else { self.drain };
        self.context().finish(&self.client, drain);
        let mut closed = false;
        match self.client.close_queue() {
            Ok(()) => {
                let deadline = Instant::now() + LEAVE;
                while !closed && Instant::now() < deadline {
                    drop(self.client.poll(Duration::from_millis(20)));
                    closed = self.client.closed();
                }
            }
            Err(error) => warn!(%error, "the group could not be left"),
        }
        let outcome = self.context().outcome(closed);
        if !closed {
            leave(self.client);
        }
        outcome
    }
}

/// Drops a client that has not left its group: that may wait for ever, and nobody has to wait for it.
pub(super) fn leave(client: Arc<Client>) {
    let _ = thread::Builder::new().name("hapax-leave".into()).spawn(move || drop(client));
}
