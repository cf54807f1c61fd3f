//! The Kafka side of the bookkeeping: what rdkafka calls back, what the pump asks for, and what is asked of rdkafka.
//!
//! All of it runs on the Kafka thread, inside `poll` or beside it. The lock is never held while librdkafka or the pump is waited for.

mod rebalance;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, info, warn};

use super::assignment::{Assignment, Pauses, Place};
use super::bell::{Bell, Word};
use super::committer::{Answered, Committer, Ticket, is_ownership_gone};
use super::config::Settings;
use super::continuity::{Continuity, Discontinuity};
use super::error::{Here, unreadable};
use super::finding::OnReset;
use super::gate::{Gate, Room, Valve};
use super::handling::Failure;
use super::hush::Hush;
use super::joining;
use super::letter::LetterError;
use super::link::{Delivered, Input, Request};
use super::message::Filling;
use super::observe::Probe;
use super::places::{List, Places, Positions, list};
use super::summary::Summary;
use crate::engine::Position;
use crate::frontier::Epoch;
use crate::store::StoreError;

/// rdkafka's consumer with our callbacks.
pub(super) type Client = BaseConsumer<Context>;

/// Why the consumer ends by itself.
#[derive(Debug)]
pub(super) enum End {
    Message { topic: String, partition: i32, offset: i64, failure: Failure },
    Gone,
    DeadLetter(LetterError),
    Discontinuity(Discontinuity),
    Windows(StoreError),
    Kafka { reason: String, source: KafkaError },
}

/// Positions that the broker refused together.
type Refused = (Vec<Position>, KafkaError);

/// What changes.
struct State {
    assignment: Assignment,
    valve: Valve,
    summary: Summary,
    end: Option<End>,
    /// The pump was told to end.
    closing: bool,
    /// The pump said that it is gone: nothing of it is waited for.
    gone: bool,
    /// librdkafka's last words about an error; they name the topic.
    reason: String,
    /// The last commit asked for.
    asked: Ticket,
    /// The last commit answered.
    answered: Ticket,
    /// The commit that is waited for, and what of it the broker refused: whoever waits decides what that means.
    awaited: Option<(Ticket, Vec<Refused>)>,
    scratch: Vec<Word>,
}

pub(super) struct Context {
    settings: Settings,
    bell: Arc<Bell>,
    inputs: UnboundedSender<Input>,
    probe: Probe,
    started: Instant,
    /// Shared with the client that comes after this one, if one has to.
    state: Arc<Mutex<State>>,
    continuity: Arc<Continuity>,
    /// This client was let into its group.
    joined: AtomicBool,
    /// Another client goes on: what this one hears while it is let go means nothing.
    over: AtomicBool,
    /// Grows with every callback: what was an empty poll, and what was not.
    events: AtomicU64,
    /// Made after the client, which it needs.
    committer: OnceLock<Committer>,
    hush: Hush,
}

/// What the Kafka thread may do next.
pub(super) enum Flow {
    /// Poll, and take in so much.
    Take {
        /// Messages, at most.
        messages: usize,
        /// Bytes; the message that goes beyond is the last.
        bytes: usize,
        /// If nothing is there, wait for so long at most.
        wait: Option<Duration>,
    },
    /// Wait for so long, or until the bell rings.
    Hold(Duration),
}

impl Context {
    pub(super) fn new(
        settings: Settings,
        bell: Arc<Bell>,
        gate: Arc<Gate>,
        inputs: UnboundedSender<Input>,
        probe: Probe,
    ) -> Self {
        let state = Arc::new(Mutex::new(State {
            assignment: Assignment::default(),
            valve: Valve::new(gate, settings.options.max_messages as u64, settings.options.max_bytes as u64),
            summary: Summary::default(),
            end: None,
            closing: false,
            gone: false,
            reason: String::new(),
            asked: 0,
            answered: 0,
            awaited: None,
            scratch: Vec::new(),
        }));
        let policy = settings.options.on_reset.unwrap_or(OnReset::Refuse);
        let windows = settings.windows.clone();
        let continuity = Arc::new(Continuity::new(&settings.client, settings.reset, policy, settings.look, windows));
        let (started, events) = (Instant::now(), AtomicU64::new(0));
        let (joined, over, committer) = (AtomicBool::new(false), AtomicBool::new(false), OnceLock::new());
        let hush = Hush::default();
        Self { settings, bell, inputs, probe, started, state, continuity, joined, over, events, committer, hush }
    }

    /// That of a client which goes on where this one's could not. This one is over.
    pub(super) fn again(&self) -> Self {
        self.over.store(true, Ordering::Relaxed);
        Self {
            settings: self.settings.clone(),
            bell: Arc::clone(&self.bell),
            inputs: self.inputs.clone(),
            probe: self.probe.clone(),
            started: self.started,
            state: Arc::clone(&self.state),
            continuity: Arc::clone(&self.continuity),
            joined: AtomicBool::new(false),
            over: AtomicBool::new(false),
            events: AtomicU64::new(0),
            committer: OnceLock::new(),
            hush: Hush::default(),
        }
    }

    /// Whether this client was ever let into its group.
    pub(super) fn joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Says that Kafka is polled, and what was counted, to whoever looks.
    pub(super) fn show(&self) {
        if self.probe.is_watched() {
            let summary = &self.lock().summary;
            self.probe.polled(Instant::now());
            self.probe.totals(summary.delivered, summary.commits, summary.failed_commits);
        }
    }

    pub(super) fn attach(&self, committer: Committer) {
        let _ = self.committer.set(committer);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that changes with every callback.
    pub(super) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    fn count_event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether an epoch is not over.
    pub(super) fn is_ours(&self, epoch: Epoch) -> bool {
        self.lock().assignment.is_ours(epoch)
    }

    /// Whether no partition was ever assigned.
    pub(super) fn is_new(&self) -> bool {
        self.lock().summary.partitions.is_empty()
    }

    /// Gives a batch to the pump. What was polled before its partition went away is dropped: it will be delivered again.
    pub(super) fn dispatch(&self, filling: &mut Filling) {
        if filling.is_empty() {
            return;
        }
        let mut state = self.lock();
        let mut delivered: Vec<Delivered> = Vec::new();
        let mut count = 0;
        for row in filling.seal() {
            let last = row.last();
            let Some(epoch) = state.assignment.epoch(last.topic(), last.partition()) else { continue };
            state.assignment.delivered(epoch, row.len());
            self.continuity.took(epoch, &last);
            if self.probe.is_on() {
                self.probe.delivered(last.topic(), last.partition(), row.len(), row.bytes());
            }
            count += row.len();
            delivered.push(Delivered { row, epoch });
        }
        if delivered.is_empty() {
            return;
        }
        state.valve.sent(count);
        state.summary.delivered += count;
        state.summary.most_unfinished = state.summary.most_unfinished.max(state.valve.out());
        // If the pump is gone, it has said so, or will.
        let _ = self.inputs.send(Input::Delivered(delivered));
    }

    /// Does what the pump asked for, and takes in what the broker said. Answers whether the consumer has to end.
    pub(super) fn serve(&self) -> bool {
        let now = self.started.elapsed();
        let mut state = self.lock();
        let mut words = std::mem::take(&mut state.scratch);
        self.bell.take(&mut words);
        for word in words.drain(..) {
            match word {
                Word::Request(Request::Pause(epochs)) => state.assignment.pause(&epochs, now),
                Word::Request(Request::Resume(epochs)) => state.assignment.resume(&epochs),
                Word::Request(Request::Commit(positions)) => {
                    self.ask(&mut state, positions, true);
                }
                Word::Request(Request::Stop { topic, partition, offset, failure }) => {
                    error!(topic, partition, offset, error = %Here(&*failure), "a message cannot be finished; the consumer ends");
                    state.end.get_or_insert(End::Message { topic, partition, offset, failure });
                }
                Word::Request(Request::Gone) => {
                    state.gone = true;
                    if !state.closing {
                        state.end.get_or_insert(End::Gone);
                    }
                }
                Word::Committed(answered) => self.learn(&mut state, answered),
            }
        }
        state.scratch = words;
        state.end.is_some()
    }

    /// Pauses and resumes what has to be, and decides what may be taken in.
    pub(super) fn flow(&self, client: &Client) -> Flow {
        let now = self.started.elapsed();
        let (room, Pauses { pause, resume, due, hold }) = {
            let mut state = self.lock();
            let room = state.valve.room(now);
            state.assignment.shut(room == Room::Shut);
            (room, state.assignment.pauses(now))
        };
        if !pause.is_empty() {
            debug!(partitions = %Places(&pause), "paused: handlers are slower than Kafka");
            if let Err(error) = client.pause(&list(&pause)) {
                warn!(%error, "partitions could not be paused");
            }
            self.probe.paused(&pause);
        }
        self.resume(client, &resume);
        match (room, due) {
            (Room::Hold(wait), _) => Flow::Hold(wait),
            (_, Some(wait)) if hold => Flow::Hold(wait),
            (Room::Open { messages, bytes }, wait) => Flow::Take { messages, bytes, wait },
            // All is paused; should a message come all the same, it is taken.
            (Room::Shut, wait) => Flow::Take { messages: 1, bytes: 1, wait },
        }
    }

    fn resume(&self, client: &Client, places: &[Place]) {
        if !places.is_empty() {
            debug!(partitions = %Places(places), "resumed");
            if let Err(error) = client.resume(&list(places)) {
                warn!(%error, "partitions could not be resumed");
            }
            self.probe.resumed(places);
        }
    }

    /// Asks for a commit. Answers its number.
    fn ask(&self, state: &mut State, positions: Vec<Position>, tell: bool) -> Ticket {
        state.asked += 1;
        match self.committer.get() {
            Some(committer) if !positions.is_empty() => committer.ask(state.asked, positions, tell),
            // Nothing to commit is soon done. There is no committer only before the first poll.
            _ => self.bell.tell(Word::Committed(Answered { ticket: state.asked, tell, ..Answered::default() })),
        }
        state.asked
    }

    /// Takes in what the broker said to a commit, and tells the pump.
    fn learn(&self, state: &mut State, answered: Answered) {
        let Answered { ticket, tell, accepted, mut refused, over } = answered;
        // The thread of a client before this one may answer late.
        state.answered = state.answered.max(ticket);
        for position in &accepted {
            state.summary.committed(position);
            self.continuity.committed(&position.topic, position.partition, position.offset);
        }
        state.summary.commits += u64::from(!accepted.is_empty());
        if !accepted.is_empty() {
            self.probe.committed(accepted.len(), true);
        }
        match &mut state.awaited {
            Some((awaited, of_it)) if *awaited == ticket => *of_it = std::mem::take(&mut refused),
            _ => refused.iter().for_each(|refused| self.not_committed(&mut state.summary, refused)),
        }
        if !over.is_empty() {
            debug!(partitions = %Positions(&over), "not committed: no longer ours");
        }
        if tell {
            let yes = refused.is_empty() && over.is_empty();
            let refused = refused.into_iter().flat_map(|(positions, _)| positions);
            let positions = accepted.into_iter().chain(refused).chain(over).collect();
            let _ = self.inputs.send(Input::Committed { positions, accepted: yes });
        }
    }

    /// Counts and tells what the broker did not take.
    fn not_committed(&self, summary: &mut Summary, (positions, error): &Refused) {
        summary.failed_commits += 1;
        self.probe.committed(positions.len(), false);
        let partitions = Positions(positions);
        if is_ownership_gone(error) {
            info!(%error, %partitions, "not committed: the group is changing; what is not committed is delivered again");
        } else {
            warn!(%error, %partitions, "not committed; tried again as long as the partitions are owned");
        }
    }

    /// Where partitions go on.
    pub(super) fn continuity(&self) -> &Continuity {
        &self.continuity
    }

    /// The end of it: what was done, and why it ended by itself, if it did.
    pub(super) fn outcome(&self, closed: bool) -> (Summary, Option<End>) {
        let mut state = self.lock();
        state.summary.closed = closed;
        state.summary.found = self.continuity.found();
        (std::mem::take(&mut state.summary), state.end.take())
    }

    /// Whether what librdkafka said last, with that code, is that messages cannot be read.
    pub(super) fn is_unreadable(&self, code: RDKafkaErrorCode) -> bool {
        unreadable(code, &self.lock().reason).is_some()
    }

    /// Notes that Kafka refuses for good, and what would cure that.
    pub(super) fn refused(&self, source: KafkaError) {
        let fatal = matches!(source, KafkaError::MessageConsumptionFatal(_));
        let setting = |name: &str| self.settings.client.get(name);
        let code = source.rdkafka_error_code();
        let mut state = self.lock();
        let mut reason = std::mem::take(&mut state.reason);
        let cure = code.and_then(|code| {
            joining::cure(code, fatal, setting).or_else(|| unreadable(code, &reason).map(str::to_owned))
        });
        if let Some(cure) = cure {
            reason = if reason.is_empty() { cure } else { format!("{reason}: {cure}") };
        }
        state.end.get_or_insert(End::Kafka { reason, source });
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, client: &Client, rebalance: &Rebalance<'_>) {
        self.count_event();
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        match rebalance {
            Rebalance::Assign(partitions) => {
                info!(partitions = %List(partitions), "assigned");
                self.joined.store(true, Ordering::Relaxed);
                self.assigned(client, partitions);
            }
            Rebalance::Revoke(partitions) => {
                let lost = client.assignment_lost();
                info!(partitions = %List(partitions), lost, "revoked");
                self.revoked(client, partitions, lost);
            }
            Rebalance::Error(error) => warn!(%error, "rebalance failed"),
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                error!(facility, "librdkafka: {message}");
            }
            RDKafkaLogLevel::Warning => warn!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => info!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Debug => debug!(facility, "librdkafka: {message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        // An empty poll that was none.
        self.count_event();
        for (name, topic) in &statistics.topics {
            for (number, partition) in topic.partitions.iter().filter(|(_, partition)| partition.hi_offset >= 0) {
                self.probe.watermark(name, *number, partition.hi_offset);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.count_event();
        self.hush.kafka(&error, reason);
        reason.clone_into(&mut self.lock().reason);
    }
}
