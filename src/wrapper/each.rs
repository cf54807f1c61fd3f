//! The handler that a consumer runs, one lane at a time.
//!
//! For whoever drives it: a lane owns one or more partitions, or keys, and calls [`Each::handle_each`] with the messages it was
//! given, in order, again and again; never twice at once for one partition. What comes back:
//!
//! - `finished(place, outcome)` for each message as soon as it may be committed, not always in order: feed it to the
//!   partition's frontier.
//! - `Ok(())`: every message finished, or `stop` was cancelled, and some did not.
//! - `Err`: a message that may not be passed (see [`EachError`]): end the consumer.
//!
//! To revoke or shut down: cancel `stop`, and await the future for as long as there is time, then drop it. Dropping is
//! safe at every point: how the claims ended is kept, and told to the store in the background, or by
//! [`Once::settle_pending`](crate::Once::settle_pending).
//!
//! Claims are taken in batches, as many as handlers get through in a quarter of a second; handlers run one by one; a
//! call to settle carries all that has ended since the last one, and travels while the next handler runs.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::builder::{Mode, OnConflict};
use super::class::{Failure, HandlerError};
use super::done::{At, Done, HandleError, Stage};
use super::keep::Kept;
use super::one::{Halt, Limits, handle_one};
use super::registry::Entry;
use super::run::run;
use super::seats::{Next, Seats};
use super::shared::{CLAIMS, Patience, Shared, Subject};
use super::{Claim, Once};
use crate::message::MessageView;
use crate::record::{ClaimOutcome, Origin, SettleOutcome, Verdict};
use crate::store::StoreError;

/// A handler and how often it may run: what a consumer runs. Made by [`Once::each`].
#[derive(Clone)]
pub struct Each<F> {
    once: Once,
    handler: F,
    pace: Arc<Pace>,
}

impl<F> fmt::Debug for Each<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Each").field("once", &self.once).finish_non_exhaustive()
    }
}

/// Why a message is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished<E> {
    /// It was handled now.
    Handled,
    /// It had been handled before.
    Duplicate {
        /// Where the message stood that was handled.
        first: Origin,
    },
    /// Its identity had been used by another message, and [`OnConflict::Skip`] says to skip it.
    Conflict {
        /// Where that one stood.
        first: Origin,
    },
    /// It was given up.
    Dead {
        /// Attempts made.
        attempts: u32,
        /// The last failure, if it happened now.
        failure: Option<Failure<E>>,
    },
}

/// A message that may not be passed. Ends a consumer: what comes after it was not begun.
///
/// Delivered again, the message is handled as if nothing had happened, where [`HandleError::is_retryable`].
#[derive(Clone, Debug)]
pub struct EachError<E: fmt::Debug + fmt::Display> {
    /// Its place in the slice.
    pub place: usize,
    /// Where it stood.
    pub at: At,
    /// What happened.
    pub error: HandleError<E>,
}

impl<E: fmt::Debug + fmt::Display> fmt::Display for EachError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            // These name it themselves.
            HandleError::Identity { .. } | HandleError::Conflict { .. } => self.error.fmt(f),
            HandleError::Handler(_) | HandleError::LeaseLost(_) => {
                write!(f, "{}: {}: `Retry::none` ends the consumer here; set another `Retry`", self.at, self.error)
            }
            HandleError::Store { .. } | HandleError::NotBegun => write!(f, "{}: {}", self.at, self.error),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for EachError<E> {}

/// How many messages are claimed together, so that claims are not held for long before their handlers begin.
#[derive(Debug)]
struct Pace(AtomicU32);

impl Pace {
    const FIRST: u32 = 32;
    const AHEAD: Duration = Duration::from_millis(250);

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed) as usize
    }

    /// Notes how long handlers took: at most four times as many next time.
    fn ran(&self, count: usize, took: Duration) {
        if count == 0 {
            return;
        }
        let each = (took.as_nanos() / count as u128).max(1);
        let fit = Self::AHEAD.as_nanos() / each;
        let most = (count as u128 * 4).min(CLAIMS as u128);
        self.0.store(u32::try_from(fit.clamp(1, most)).unwrap_or(1), Ordering::Relaxed);
    }
}

impl<F> Each<F> {
    pub(super) fn new(once: Once, handler: F) -> Self {
        Self { once, handler, pace: Arc::new(Pace(AtomicU32::new(Pace::FIRST))) }
    }

    /// The wrapper behind it.
    #[must_use]
    pub const fn once(&self) -> &Once {
        &self.once
    }

    /// Handles messages one by one, in order. See the notes at the head of this file.
    ///
    /// Retries in place, waits for messages that others are handling, and asks a store that cannot be reached again, all until `stop` is
    /// cancelled: then no handler is begun, the one that runs is awaited, and claims not begun are given back.
    ///
    /// # Errors
    ///
    /// [`EachError`]: the first message that may not be passed. Those before it were reported.
    ///
    /// # Cancel safety
    ///
    /// Safe: a handler that was running has failed its attempt; nothing is committed that was not reported.
    pub async fn handle_each<M, T, E, Fut>(
        &self,
        messages: &[M],
        stop: &CancellationToken,
        finished: impl FnMut(usize, Finished<E>),
    ) -> Result<(), EachError<E>>
    where
        M: MessageView + Clone,
        F: Fn(M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Kept,
        E: HandlerError,
    {
        let shared = &self.once.shared;
        let mut lane = Lane {
            shared,
            stop,
            seats: Seats::new(shared, messages.len()),
            ended: Vec::new(),
            telling: None,
            broken: None,
            report: finished,
        };
        let ended = self.run_lane(&mut lane, messages).await;
        // What ended is told whatever happened; claims that were not begun are given back.
        lane.release(0);
        lane.flush().await;
        match (ended, lane.broken.take()) {
            (Err(Halted::Error(place, error)), _) => Err(each_error(shared, messages, place, error)),
            (_, Some((place, error))) if !(stop.is_cancelled() && error.is_retryable()) => {
                let error = HandleError::Store { stage: Stage::Settle, error };
                Err(each_error(shared, messages, place, error))
            }
            (Ok(()) | Err(Halted::Stopped), _) => Ok(()),
        }
    }

    async fn run_lane<M, T, E, Fut, R>(&self, lane: &mut Lane<'_, E, R>, messages: &[M]) -> Result<(), Halted<E>>
    where
        M: MessageView + Clone,
        F: Fn(M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Kept,
        E: HandlerError,
        R: FnMut(usize, Finished<E>),
    {
        let config = &lane.shared.config;
        let together = config.mode == Mode::Deduplicated && config.retry.max_attempts().get() > 1;
        let mut next = 0;
        // Messages before this place are claimed one by one.
        let mut single = if together { 0 } else { messages.len() };
        while next < messages.len() && lane.goes_on() {
            if next < single {
                // With nothing else in hand: what runs alone may wait for long, or end the process.
                lane.flush().await;
                if lane.goes_on() {
                    self.alone(lane, messages, next).await?;
                    lane.seats.truncate(next);
                    lane.seats.skip();
                    next += 1;
                }
                continue;
            }
            let end = messages.len().min(next + self.pace.get());
            let chunk = lane.claim(messages, next, end).await?;
            let from = next;
            let began = Instant::now();
            let whole = next + chunk.turns.len();
            (next, single) = self.run_chunk(lane, messages, next, chunk).await?;
            self.pace.ran(next - from, began.elapsed());
            if next < whole {
                lane.release(next);
                lane.flush().await;
                lane.seats.truncate(next);
            }
        }
        Ok(())
    }

    /// Runs what was claimed, in order. Answers which message is next, and up to which they are to be claimed one by one.
    async fn run_chunk<M, T, E, Fut, R>(
        &self,
        lane: &mut Lane<'_, E, R>,
        messages: &[M],
        from: usize,
        chunk: Chunk,
    ) -> Result<(usize, usize), Halted<E>>
    where
        M: MessageView + Clone,
        F: Fn(M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Kept,
        E: HandlerError,
        R: FnMut(usize, Finished<E>),
    {
        let end = from + chunk.turns.len();
        for (at, turn) in (from..).zip(chunk.turns) {
            if !lane.goes_on() {
                return Ok((at, 0));
            }
            match turn {
                Turn::Twin { first } => lane.ended.push((at, Some(Finished::Duplicate { first }))),
                Turn::Found(outcome) => {
                    if !lane.found(at, outcome) {
                        return Ok((at, at + 1));
                    }
                }
                Turn::Run => {
                    let (Some(claim), Some(message)) = (lane.seats.begin(at), messages.get(at)) else { continue };
                    let span = tracing::debug_span!("handle", ?claim);
                    let handler = async { (self.handler)(message.clone(), claim.clone()).await };
                    let running = run(lane.shared, &claim, handler).instrument(span);
                    match lane.drive(running).await {
                        Ok(value) => {
                            lane.seats.over(at, lane.shared.succeeded(&value));
                            lane.ended.push((at, Some(Finished::Handled)));
                        }
                        Err(failure) => return lane.failed(at, failure).await,
                    }
                }
            }
        }
        Ok((end, chunk.single))
    }

    /// Handles one message with nothing else in hand.
    async fn alone<M, T, E, Fut, R>(
        &self,
        lane: &mut Lane<'_, E, R>,
        messages: &[M],
        at: usize,
    ) -> Result<(), Halted<E>>
    where
        M: MessageView + Clone,
        F: Fn(M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Kept,
        E: HandlerError,
        R: FnMut(usize, Finished<E>),
    {
        let Some(message) = messages.get(at) else { return Ok(()) };
        let shared = lane.shared;
        let subject = match shared.subject(message) {
            Ok(subject) => subject,
            Err(error) => {
                shared.counters.rejected.one();
                let error = HandleError::Identity { at: At(shared.origin(message)), error };
                return Err(Halted::Error(at, error));
            }
        };
        let handler = |claim| (self.handler)(message.clone(), claim);
        let finished = match handle_one(shared, subject, Limits::Until(lane.stop), handler).await {
            Ok(Done::Handled(_)) => Finished::Handled,
            Ok(Done::Duplicate { first, .. }) => Finished::Duplicate { first: first.origin },
            Ok(Done::Conflict { first }) => Finished::Conflict { first: first.origin },
            Ok(Done::Dead { attempts, error }) => Finished::Dead { attempts, failure: error },
            Ok(Done::InFlight { .. } | Done::NotDue { .. }) | Err(Halt::Stopped) => return Err(Halted::Stopped),
            Err(halt) => return Err(Halted::Error(at, halt.into_error(shared.origin(message)))),
        };
        (lane.report)(at, finished);
        Ok(())
    }
}

/// Why a lane ends before its messages do.
enum Halted<E: HandlerError> {
    Stopped,
    /// The message at this place may not be passed.
    Error(usize, HandleError<E>),
}

/// Messages that were claimed together.
struct Chunk {
    turns: Vec<Turn>,
    /// Up to which place messages are to be claimed one by one afterwards.
    single: usize,
}

enum Turn {
    /// It is claimed.
    Run,
    /// The same as an earlier one in the slice, which will have been handled by then.
    Twin { first: Origin },
    /// The store said this of it.
    Found(ClaimOutcome),
}

/// Settles on their way to the store.
struct Telling<E> {
    call: Pin<Box<dyn Future<Output = Result<Vec<SettleOutcome>, StoreError>> + Send>>,
    places: Vec<usize>,
    reports: Vec<(usize, Option<Finished<E>>)>,
}

struct Lane<'s, E, R> {
    shared: &'s Arc<Shared>,
    stop: &'s CancellationToken,
    /// One for each message of the slice, as far as it was looked at.
    seats: Seats,
    /// What ended since the last call to settle, with what to report when the store has heard it.
    ended: Vec<(usize, Option<Finished<E>>)>,
    telling: Option<Telling<E>>,
    /// The store could not be told: the place, and its error. Nothing further is begun.
    broken: Option<(usize, StoreError)>,
    report: R,
}

impl<E: HandlerError, R: FnMut(usize, Finished<E>)> Lane<'_, E, R> {
    fn goes_on(&self) -> bool {
        !self.stop.is_cancelled() && self.broken.is_none()
    }

    /// Claims messages from `from` on, as far as they can be claimed together; none if the first one cannot.
    async fn claim<M: MessageView>(&mut self, messages: &[M], from: usize, end: usize) -> Result<Chunk, Halted<E>> {
        for message in messages.get(from..end).unwrap_or_default() {
            match self.shared.subject(message) {
                Ok(Subject::Known(sighting)) => self.seats.push(sighting),
                Ok(Subject::Bare { .. }) | Err(_) => break,
            }
        }
        let twins = self.enter(from);
        let end = self.seats.len();
        if end == from {
            return Ok(Chunk { turns: Vec::new(), single: from + 1 });
        }
        let mut turns: Vec<Turn> = (from..end).map(|_| Turn::Run).collect();
        let (asks, places) = self.seats.asks(from);
        let mut single = 0;
        if !places.is_empty() {
            let sent = Instant::now();
            let (shared, stop) = (self.shared, self.stop);
            let outcomes = match self.drive(shared.claim(&asks, Patience::Until(stop))).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    self.seats.leave(&places);
                    return Err(self.store_failed(from, Stage::Claim, error));
                }
            };
            single = self.claimed(from, &places, outcomes, sent, &mut turns).await;
        }
        for (at, first_at, first) in twins {
            let found = first_at.checked_sub(from).and_then(|first| match turns.get(first) {
                Some(Turn::Found(outcome)) => Some(outcome.clone()),
                _ => None,
            });
            // What was tried before cuts the claims short.
            if let Some(turn) = turns.get_mut(at - from) {
                *turn = found.map_or(Turn::Twin { first }, Turn::Found);
            }
        }
        Ok(Chunk { turns, single })
    }

    /// Takes messages from `from` on in hand, up to the first that cannot be; answers with those that are the same as an
    /// earlier one in hand here, and that one's place and origin.
    fn enter(&mut self, from: usize) -> Vec<(usize, usize, Origin)> {
        let mut refused = Vec::new();
        self.seats.enter(from, |at, entry| {
            refused.push((at, matches!(entry, Entry::Busy(_))));
            true
        });
        let mut twins = Vec::new();
        for (at, busy) in refused {
            let fingerprint = self.seats.sighting(at).map(|sighting| sighting.fingerprint);
            match self.seats.twin_of(at).filter(|_| busy) {
                Some((place, first)) if Some(first.fingerprint) == fingerprint => {
                    twins.push((at, place, first.origin.clone()));
                }
                _ => {
                    let behind = self.seats.unclaimed(at);
                    self.seats.leave(&behind);
                    self.seats.truncate(at);
                    break;
                }
            }
        }
        twins
    }

    /// Notes what the store granted. Answers up to which place messages are to be claimed one by one afterwards.
    async fn claimed(
        &mut self,
        from: usize,
        places: &[usize],
        outcomes: Vec<ClaimOutcome>,
        sent: Instant,
        turns: &mut Vec<Turn>,
    ) -> usize {
        let mut grants = Vec::with_capacity(outcomes.len());
        let mut left = Vec::new();
        let mut suspect = None;
        for (at, outcome) in places.iter().zip(outcomes) {
            match outcome {
                ClaimOutcome::Acquired(grant) => {
                    if grant.attempt > 1 {
                        suspect = Some(suspect.map_or(*at, |first: usize| first.min(*at)));
                    }
                    grants.push((*at, grant));
                }
                other => {
                    left.push(*at);
                    turns[*at - from] = Turn::Found(other);
                }
            }
        }
        if !left.is_empty() {
            self.seats.leave(&left);
        }
        self.seats.granted(&grants, sent);
        let Some(suspect) = suspect.filter(|_| grants.len() > 1) else { return 0 };
        // What was tried before may be what ended the process then. If it does so again, it must not use up attempts of
        // messages that were merely claimed with it: they are given back, and each is claimed at its turn.
        let single = from + turns.len();
        turns.truncate(suspect - from);
        self.release(suspect);
        self.flush().await;
        self.seats.truncate(suspect);
        single
    }

    /// Notes what the store said of a message. `false` if it has to be handled on its own.
    fn found(&mut self, at: usize, outcome: ClaimOutcome) -> bool {
        let counters = &self.shared.counters;
        let finished = match outcome {
            ClaimOutcome::Duplicate { first, .. } => {
                counters.duplicates.one();
                Finished::Duplicate { first: first.origin }
            }
            ClaimOutcome::Dead { attempts } => {
                counters.dead.one();
                Finished::Dead { attempts, failure: None }
            }
            ClaimOutcome::Conflict { first } if self.shared.config.on_conflict == OnConflict::Skip => {
                counters.conflicts.one();
                Finished::Conflict { first: first.origin }
            }
            // Waits, or is a matter of policy.
            _ => return false,
        };
        (self.report)(at, finished);
        true
    }

    /// Notes that a handler failed, with nothing else in hand while it waits. Answers as [`Each::run_chunk`] does.
    async fn failed(&mut self, at: usize, failure: Failure<E>) -> Result<(usize, usize), Halted<E>> {
        self.release(at + 1);
        self.flush().await;
        let next = match self.seats.fail(at, failure.class(), Patience::Until(self.stop)).await {
            Ok(next) => next,
            Err(error) => {
                self.seats.abandon(&[at]);
                return Err(self.store_failed(at, Stage::Settle, error));
            }
        };
        match next {
            Next::Again(pause) => {
                let _ = self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                Ok((at, at + 1))
            }
            Next::Dead { attempts } => {
                (self.report)(at, Finished::Dead { attempts, failure: Some(failure) });
                Ok((at + 1, 0))
            }
            Next::GivenBack => Err(Halted::Error(at, HandleError::Handler(failure))),
            Next::Lost => Err(Halted::Error(at, HandleError::LeaseLost(failure))),
        }
    }

    fn store_failed(&self, at: usize, stage: Stage, error: StoreError) -> Halted<E> {
        if self.stop.is_cancelled() && error.is_retryable() {
            Halted::Stopped
        } else {
            Halted::Error(at, HandleError::Store { stage, error })
        }
    }

    /// Gives back the claims from `from` on whose handlers have not begun, with the next call to settle.
    fn release(&mut self, from: usize) {
        for at in self.seats.unbegun(from) {
            self.seats.over(at, Verdict::Released);
            self.ended.push((at, None));
        }
    }

    /// Awaits `work`; meanwhile tells the store what has ended.
    async fn drive<O>(&mut self, work: impl Future<Output = O>) -> O {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(output),
            Poll::Pending => {
                let _ = self.poll_tell(cx);
                Poll::Pending
            }
        })
        .await
    }

    /// Tells the store all that has ended.
    async fn flush(&mut self) {
        poll_fn(|cx| self.poll_tell(cx)).await;
    }

    /// Ready when there is nothing left to tell, or the store cannot be told.
    fn poll_tell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.broken.is_some() {
                return Poll::Ready(());
            }
            let Some(telling) = &mut self.telling else {
                if self.ended.is_empty() {
                    return Poll::Ready(());
                }
                self.start_telling();
                continue;
            };
            let Poll::Ready(heard) = telling.call.as_mut().poll(cx) else { return Poll::Pending };
            let Some(Telling { places, reports, .. }) = self.telling.take() else { continue };
            match heard {
                Ok(outcomes) => {
                    self.seats.heard(&places, &outcomes);
                    self.report_all(reports);
                }
                Err(error) => self.broken = Some((reports.first().map_or(0, |(at, _)| *at), error)),
            }
        }
    }

    fn start_telling(&mut self) {
        let reports = std::mem::take(&mut self.ended);
        let (settles, places) = self.seats.settles(reports.iter().map(|(at, _)| *at));
        if places.is_empty() {
            // Twins of what the store has heard of.
            self.report_all(reports);
            return;
        }
        let (shared, stop) = (Arc::clone(self.shared), self.stop.clone());
        let call = Box::pin(async move { shared.settle(&settles, Patience::Until(&stop)).await });
        self.telling = Some(Telling { call, places, reports });
    }

    fn report_all(&mut self, reports: Vec<(usize, Option<Finished<E>>)>) {
        let (mut handled, mut duplicates) = (0, 0);
        for (at, report) in reports {
            match report {
                Some(Finished::Handled) => handled += 1,
                Some(Finished::Duplicate { .. }) => duplicates += 1,
                _ => {}
            }
            if let Some(report) = report {
                (self.report)(at, report);
            }
        }
        self.shared.counters.handled.add(handled);
        self.shared.counters.duplicates.add(duplicates);
    }
}

fn each_error<M: MessageView, E: HandlerError>(
    shared: &Shared,
    messages: &[M],
    place: usize,
    error: HandleError<E>,
) -> EachError<E> {
    let at = At(messages.get(place).map(|message| shared.origin(message)).unwrap_or_default());
    EachError { place, at, error }
}
