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
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::builder::Mode;
use super::class::{Failure, HandlerError};
use super::done::{At, Done, HandleError, Stage};
use super::keep::Kept;
use super::lane::{Chunk, Halted, Lane, Turn};
use super::one::{Halt, Limits, handle_one};
use super::run::run;
use super::shared::{CLAIMS, Shared};
use super::{Claim, Once};
use crate::message::MessageView;
use crate::record::Origin;

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
    /// Its identity had been used by another message, and [`OnConflict::Skip`](crate::OnConflict::Skip) says to skip it.
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
        let mut lane = Lane::new(shared, stop, messages.len(), finished);
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

fn each_error<M: MessageView, E: HandlerError>(
    shared: &Shared,
    messages: &[M],
    place: usize,
    error: HandleError<E>,
) -> EachError<E> {
    let at = At(messages.get(place).map(|message| shared.origin(message)).unwrap_or_default());
    EachError { place, at, error }
}
