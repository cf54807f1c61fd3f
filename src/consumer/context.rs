//! The Kafka side of the bookkeeping: what rdkafka calls back, and what is asked of it.
//!
//! All of it runs on the Kafka thread, inside `poll` or beside it. The lock is never held while librdkafka or a lane is waited for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tracing::{debug, error, info, warn};

use super::bell::{Bell, Wait};
use super::committer::{CommitOutcome, Committer, Ticket, is_ownership_gone};
use super::config::Settings;
use super::handling::Failure;
use super::lane::{Delivered, Lane, Report};
use super::message::{Filling, Message};
use super::partitions::{Flow, Partitions, Position};
use super::summary::Summary;
use crate::frontier::{Epoch, Finish};

/// rdkafka's consumer with our callbacks.
pub(super) type Client = BaseConsumer<Context>;

/// Why the consumer ends by itself.
#[derive(Debug)]
pub(super) enum End {
    Message { topic: String, partition: i32, offset: i64, failure: Failure },
    Lane { topic: String, partition: i32 },
    Kafka { reason: String, source: KafkaError },
}

/// What changes.
struct State {
    partitions: Partitions,
    lanes: HashMap<Epoch, Lane>,
    /// Lanes of partitions that are gone, and when they are dropped at the latest.
    leaving: Vec<(Instant, Lane)>,
    summary: Summary,
    end: Option<End>,
    /// librdkafka's last words about an error; they name the topic.
    reason: String,
    finished_since_commit: u64,
    /// The last commit asked for.
    asked: Ticket,
    /// The last commit answered.
    answered: Ticket,
    scratch: Vec<Report>,
}

/// Starts the lane of an epoch.
pub(super) type StartLane = Box<dyn Fn(Epoch) -> Lane + Send + Sync>;

pub(super) struct Context {
    settings: Settings,
    bell: Arc<Bell>,
    start_lane: StartLane,
    state: Mutex<State>,
    /// Grows with every callback: what was an empty poll, and what was not.
    events: AtomicU64,
    /// Made after the client, which it needs.
    committer: OnceLock<Committer>,
}

impl Context {
    pub(super) fn new(settings: Settings, bell: Arc<Bell>, start_lane: StartLane) -> Self {
        let state = Mutex::new(State {
            partitions: Partitions::new(settings.intake),
            lanes: HashMap::new(),
            leaving: Vec::new(),
            summary: Summary::default(),
            end: None,
            reason: String::new(),
            finished_since_commit: 0,
            asked: 0,
            answered: 0,
            scratch: Vec::new(),
        });
        Self { settings, bell, start_lane, state, events: AtomicU64::new(0), committer: OnceLock::new() }
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

    /// Gives a batch to the lanes. What was polled before its partition went away is dropped: it will be delivered again.
    pub(super) fn dispatch(&self, filling: &mut Filling) {
        if filling.is_empty() {
            return;
        }
        let mut state = self.lock();
        let state = &mut *state;
        let mut runs: Vec<(Epoch, Vec<Delivered>)> = Vec::new();
        let mut last: Option<(usize, i32)> = None;
        for message in filling.seal() {
            // Messages of one partition come in a row: look it up once for the row.
            let at = match last {
                Some((at, partition)) if partition == message.partition() && same_topic(&runs[at].1, &message) => at,
                _ => {
                    let Some(epoch) = state.partitions.epoch(message.topic(), message.partition()) else { continue };
                    runs.iter().position(|(own, _)| *own == epoch).unwrap_or_else(|| {
                        runs.push((epoch, Vec::new()));
                        runs.len() - 1
                    })
                }
            };
            last = Some((at, message.partition()));
            let (epoch, run) = &mut runs[at];
            match state.partitions.deliver(*epoch, message.offset()) {
                Some(slot) => run.push(Delivered { message, slot }),
                None => debug!(?message, "delivered twice in one assignment epoch; passed over"),
            }
        }
        for (epoch, run) in runs {
            let Some(first) = run.first() else { continue };
            let count = run.len() as u64;
            state.summary.partition(first.message.topic(), first.message.partition()).delivered += count;
            state.summary.delivered += count;
            state.lanes.entry(epoch).or_insert_with(|| (self.start_lane)(epoch)).send(run);
        }
        state.summary.most_unfinished = state.summary.most_unfinished.max(state.partitions.unfinished() as u64);
    }

    /// Takes in what lanes reported. Answers whether the consumer has to end.
    pub(super) fn collect(&self) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let mut reports = std::mem::take(&mut state.scratch);
        self.bell.take(&mut reports);
        for report in reports.drain(..) {
            match report {
                Report::Finished { slot, ending } => {
                    state.summary.count(ending);
                    match state.partitions.finish(slot) {
                        Finish::Stale => state.summary.late += 1,
                        Finish::Moved | Finish::Waiting => state.finished_since_commit += 1,
                        Finish::Again => {}
                    }
                }
                Report::Failed { slot, offset, failure } => {
                    if let Some((topic, partition)) = state.partitions.place(slot.epoch()) {
                        let topic = topic.to_string();
                        error!(topic, partition, offset, error = %failure, "a message cannot be finished; the consumer ends");
                        state.end.get_or_insert(End::Message { topic, partition, offset, failure });
                    } else {
                        debug!(offset, error = %failure, "a message of a partition that is gone failed");
                    }
                }
                Report::Committed { ticket, outcomes } => {
                    state.answered = ticket;
                    outcomes.into_iter().for_each(|outcome| state.learn(outcome));
                }
                Report::Ended { epoch } => {
                    let Some(lane) = state.lanes.get_mut(&epoch) else { continue };
                    lane.ended = true;
                    if !lane.is_stopped()
                        && state.end.is_none()
                        && let Some((topic, partition)) = state.partitions.place(epoch)
                    {
                        state.end = Some(End::Lane { topic: topic.to_string(), partition });
                    }
                }
            }
        }
        state.scratch = reports;
        let now = Instant::now();
        state.leaving.retain(|(deadline, lane)| {
            if *deadline <= now {
                lane.abort();
            }
            *deadline > now
        });
        state.end.is_some()
    }

    /// Decides about back-pressure and does it. Answers how many messages may be taken in, or for how long none.
    pub(super) fn flow(&self, client: &Client, now: Duration) -> Result<usize, Duration> {
        let Flow { pause, resume, hold, room } = self.lock().partitions.flow(now);
        if !pause.is_empty() {
            debug!(partitions = %Places(&pause), "paused: handlers are slower than Kafka");
            if let Err(error) = client.pause(&list(&pause)) {
                warn!(%error, "partitions could not be paused");
            }
        }
        self.resume(client, &resume);
        hold.map_or(Ok(room), Err)
    }

    fn resume(&self, client: &Client, positions: &[Position]) {
        if !positions.is_empty() {
            debug!(partitions = %Places(positions), "resumed");
            if let Err(error) = client.resume(&list(positions)) {
                warn!(%error, "partitions could not be resumed");
            }
        }
    }

    /// What to wait for where nothing can be polled: enough room to be worth it.
    pub(super) fn waits_for_room(&self) -> Wait {
        Wait::Reports((self.settings.intake / 4).max(1))
    }

    /// Whether a partition is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.lock().partitions.is_paused()
    }

    /// Whether so much finished that a commit is due before its time.
    pub(super) fn commit_is_due(&self) -> bool {
        self.lock().finished_since_commit >= self.settings.commit_after
    }

    /// Has committed what is finished and was not handed over, unless the broker still owes an answer.
    pub(super) fn commit(&self, client: &Client) {
        let positions = {
            let mut state = self.lock();
            if state.answered < state.asked {
                return;
            }
            state.finished_since_commit = 0;
            state.partitions.take_due()
        };
        if positions.is_empty() {
            return;
        }
        // Storing is refused, partition by partition, where librdkafka knows that we are not the owner; committing is not.
        let stored = list(&positions);
        let result = client.store_offsets(&stored);
        let refused: HashSet<(String, i32)> = stored
            .elements()
            .iter()
            .filter(|element| result.is_err() || element.error().is_err())
            .map(|element| (element.topic().to_owned(), element.partition()))
            .collect();
        let (not_ours, ours): (Vec<_>, Vec<_>) = positions
            .into_iter()
            .partition(|position| refused.contains(&(position.topic.to_string(), position.partition)));
        not_ours.iter().for_each(|position| self.lock().partitions.refuse(position));
        self.ask(ours);
    }

    /// Asks for a commit. Answers its number.
    fn ask(&self, positions: Vec<Position>) -> Option<Ticket> {
        let committer = self.committer.get().filter(|_| !positions.is_empty())?;
        let mut state = self.lock();
        state.asked += 1;
        committer.ask(state.asked, positions);
        Some(state.asked)
    }

    /// Commits and waits for the broker's answer, but not for ever: librdkafka itself would wait until the coordinator is back.
    fn commit_and_wait(&self, positions: Vec<Position>) {
        let Some(ticket) = self.ask(positions) else { return };
        let deadline = Instant::now() + self.settings.commit_wait;
        loop {
            self.collect();
            let left = deadline.saturating_duration_since(Instant::now());
            let mut state = self.lock();
            if state.answered >= ticket {
                return;
            }
            if left.is_zero() {
                state.summary.failed_commits += 1;
                warn!(waited = ?self.settings.commit_wait, "a last commit was not answered; what it was about may be delivered again");
                return;
            }
            drop(state);
            self.bell.wait(Wait::Reports(1), left);
        }
    }

    /// Stops lanes and waits until they are gone, at most for `deadline`; then drops what still runs.
    fn drain(&self, epochs: &[Epoch], deadline: Duration) {
        {
            let state = self.lock();
            epochs.iter().filter_map(|epoch| state.lanes.get(epoch)).for_each(Lane::stop);
        }
        let end = Instant::now() + deadline;
        loop {
            self.collect();
            let mut state = self.lock();
            let running = |state: &State, epoch: &Epoch| state.lanes.get(epoch).is_some_and(|lane| !lane.ended);
            let left = epochs.iter().filter(|epoch| running(&state, epoch)).count();
            let wait = end.saturating_duration_since(Instant::now());
            if left == 0 || wait.is_zero() {
                if left > 0 {
                    warn!(
                        handlers = left,
                        ?deadline,
                        "handlers did not finish in time; they are dropped and delivered again"
                    );
                }
                for epoch in epochs {
                    if let Some(lane) = state.lanes.remove(epoch) {
                        lane.abort();
                    }
                }
                return;
            }
            drop(state);
            self.bell.wait(Wait::Reports(1), wait);
        }
    }

    /// Partitions are ours from now on.
    fn assigned(&self, partitions: &TopicPartitionList) {
        let mut state = self.lock();
        let state = &mut *state;
        for element in partitions.elements() {
            let epoch = state.partitions.assign(element.topic(), element.partition());
            state.summary.partition(element.topic(), element.partition()).assigned += 1;
            debug!(topic = element.topic(), partition = element.partition(), epoch = epoch.get(), "assigned");
        }
    }

    /// Partitions go: finish what runs, commit what is finished. Those that are lost may be somebody else's by now: commit nothing.
    fn revoked(&self, client: &Client, partitions: &TopicPartitionList, lost: bool) {
        let places: Vec<(String, i32)> =
            partitions.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        let epochs: Vec<Epoch> = {
            let state = self.lock();
            places.iter().filter_map(|(topic, partition)| state.partitions.epoch(topic, *partition)).collect()
        };
        if epochs.is_empty() {
            return;
        }
        if !lost {
            self.drain(&epochs, self.settings.drain);
            let positions = self.lock().partitions.unconfirmed(Some(&epochs));
            self.commit_and_wait(positions);
        }
        let mut paused = Vec::new();
        {
            let mut state = self.lock();
            // Running handlers of lost partitions go on for a while: an effect that is half done is better finished and
            // remembered, under its own token, than dropped and done again. Their results move no frontier.
            let deadline = Instant::now() + self.settings.drain;
            for epoch in &epochs {
                if let Some(lane) = state.lanes.remove(epoch) {
                    lane.stop();
                    state.leaving.push((deadline, lane));
                }
            }
            for (topic, partition) in &places {
                if let Some((_, true)) = state.partitions.revoke(topic, *partition) {
                    paused.push(Position { topic: topic.as_str().into(), partition: *partition, offset: 0 });
                }
            }
        }
        self.resume(client, &paused);
    }

    /// Ends everything: stops the lanes, waits for what runs, commits what is finished, forgets all partitions.
    pub(super) fn finish(&self, deadline: Duration, lost: bool) {
        let epochs = self.lock().partitions.all();
        self.drain(&epochs, deadline);
        let unfinished = self.lock().partitions.unfinished() as u64;
        if !lost {
            let positions = self.lock().partitions.unconfirmed(None);
            self.commit_and_wait(positions);
        }
        let mut state = self.lock();
        state.summary.left = unfinished;
        state.partitions = Partitions::new(self.settings.intake);
        for (_, lane) in state.leaving.drain(..) {
            lane.abort();
        }
    }

    /// The end of it: what was done, and why it ended by itself, if it did.
    pub(super) fn outcome(&self, closed: bool) -> (Summary, Option<End>) {
        let mut state = self.lock();
        state.summary.closed = closed;
        (std::mem::take(&mut state.summary), state.end.take())
    }

    /// Notes that Kafka refuses for good.
    pub(super) fn end(&self, source: KafkaError, cure: Option<&str>) {
        let mut state = self.lock();
        let mut reason = std::mem::take(&mut state.reason);
        if let Some(cure) = cure {
            reason = if reason.is_empty() { cure.to_owned() } else { format!("{reason}: {cure}") };
        }
        state.end.get_or_insert(End::Kafka { reason, source });
    }
}

impl State {
    /// Takes in what the broker said to a commit.
    fn learn(&mut self, outcome: CommitOutcome) {
        let CommitOutcome { positions, result } = outcome;
        match result {
            Ok(()) => {
                for position in &positions {
                    self.partitions.confirm(position);
                    self.summary.committed(position);
                }
                self.summary.commits += 1;
            }
            Err(error) => {
                self.summary.failed_commits += 1;
                for position in &positions {
                    self.partitions.refuse(position);
                }
                let partitions = Places(&positions);
                if is_ownership_gone(&error) {
                    info!(%error, %partitions, "not committed: the group is changing; what is not committed is delivered again");
                } else {
                    warn!(%error, %partitions, "not committed; tried again as long as the partitions are owned");
                }
            }
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, client: &Client, rebalance: &Rebalance<'_>) {
        self.count_event();
        match rebalance {
            Rebalance::Assign(partitions) => {
                info!(partitions = %List(partitions), "assigned");
                self.assigned(partitions);
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

    fn error(&self, error: KafkaError, reason: &str) {
        self.count_event();
        warn!(%error, "Kafka: {reason}");
        reason.clone_into(&mut self.lock().reason);
    }
}

fn same_topic(run: &[Delivered], message: &Message) -> bool {
    run.last().is_some_and(|last| last.message.topic() == message.topic())
}

/// librdkafka's form of it.
pub(super) fn list(positions: &[Position]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for position in positions {
        let _ = list.add_partition_offset(&position.topic, position.partition, Offset::Offset(position.offset));
    }
    list
}

/// `orders[0,3] refunds[1]`
struct Places<'a>(&'a [Position]);

impl fmt::Display for Places<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0.iter().map(|position| (&*position.topic, position.partition)))
    }
}

struct List<'a>(&'a TopicPartitionList);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements = self.0.elements();
        show(f, elements.iter().map(|element| (element.topic(), element.partition())))
    }
}

fn show<'a>(f: &mut fmt::Formatter<'_>, places: impl Iterator<Item = (&'a str, i32)>) -> fmt::Result {
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    if places.is_empty() {
        return f.write_str("none");
    }
    for (at, run) in places.chunk_by(|a, b| a.0 == b.0).enumerate() {
        let partitions: Vec<String> = run.iter().map(|(_, partition)| partition.to_string()).collect();
        write!(f, "{}{}[{}]", if at == 0 { "" } else { " " }, run[0].0, partitions.join(","))?;
    }
    Ok(())
}
