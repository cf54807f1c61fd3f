//! A batch of messages: one call to claim them, their handlers in order, one call to settle them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::Claim;
use super::builder::{Mode, OnConflict};
use super::class::HandlerError;
use super::done::{At, BatchDone, Commit, Done, HandleError, Stage, finished};
use super::keep::Kept;
use super::one::handle_one;
use super::run::run;
use super::seats::{Next, Seats};
use super::shared::{CLAIMS, Shared, Subject};
use crate::message::MessageView;
use crate::record::{ClaimOutcome, Origin, Verdict};

type Outcome<T, E> = Result<Done<T, E>, HandleError<E>>;

/// Handles a batch, in parts of at most [`CLAIMS`].
pub(super) async fn handle_batch<'m, M, T, E, F, Fut>(
    shared: &Arc<Shared>,
    messages: &'m [M],
    handler: F,
) -> BatchDone<T, E>
where
    M: MessageView,
    T: Kept,
    E: HandlerError,
    F: Fn(&'m M, Claim) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut outcomes: Vec<Option<Outcome<T, E>>> = Vec::with_capacity(messages.len());
    let mut halted = false;
    for messages in messages.chunks(CLAIMS) {
        let mut part = Part::new(shared, messages);
        if halted {
            part.outcomes.iter_mut().for_each(|outcome| *outcome = Some(Err(HandleError::NotBegun)));
        } else {
            halted = part.handle(&handler).await;
        }
        outcomes.append(&mut part.outcomes);
    }
    // Every place was filled: what could not be begun says so.
    let outcomes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(HandleError::NotBegun))).collect();
    let commits = commits(messages, outcomes.iter().map(finished), |message| shared.origin(message));
    BatchDone::new(outcomes, commits)
}

/// The finished prefix of each partition, in delivered order.
pub(crate) fn commits<M: MessageView>(
    messages: &[M],
    finished: impl Iterator<Item = bool>,
    origin: impl Fn(&M) -> Origin,
) -> Vec<Commit> {
    struct Prefix {
        origin: Origin,
        any: bool,
        open: bool,
    }
    let mut prefixes: Vec<Prefix> = Vec::new();
    let mut last = 0;
    for (message, finished) in messages.iter().zip(finished) {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        if partition < 0 || offset < 0 {
            continue;
        }
        let is_it = |prefix: &Prefix| prefix.origin.partition == partition && *prefix.origin.topic == *topic;
        let at = match prefixes.get(last) {
            Some(prefix) if is_it(prefix) => last,
            _ => prefixes.iter().position(is_it).unwrap_or_else(|| {
                let origin = Origin { offset: 0, ..origin(message) };
                prefixes.push(Prefix { origin, any: false, open: true });
                prefixes.len() - 1
            }),
        };
        last = at;
        let Some(prefix) = prefixes.get_mut(at) else { continue };
        prefix.open &= finished;
        if prefix.open {
            prefix.any = true;
            prefix.origin.offset = prefix.origin.offset.max(offset.saturating_add(1));
        }
    }
    let named = prefixes.into_iter().filter(|prefix| prefix.any);
    named
        .map(|Prefix { origin, .. }| Commit { topic: origin.topic, partition: origin.partition, offset: origin.offset })
        .collect()
}

/// What is known of a message before its turn.
enum Turn {
    /// It is claimed: run it.
    Run,
    /// The store said this of it.
    Found(ClaimOutcome),
    /// It has no record, or is claimed at its turn.
    Alone(Subject),
    /// A twin is in the batch, or another task has it in hand.
    Behind,
    /// Nothing: its outcome is there.
    Over,
}

/// A part of a batch that is claimed together.
struct Part<'s, 'm, M, T, E: HandlerError> {
    shared: &'s Arc<Shared>,
    messages: &'m [M],
    outcomes: Vec<Option<Outcome<T, E>>>,
    seats: Seats,
    /// Messages that were handled and that the store has not heard of, with what they came to.
    handled: Vec<(usize, T)>,
}

impl<'s, 'm, M, T, E> Part<'s, 'm, M, T, E>
where
    M: MessageView,
    T: Kept,
    E: HandlerError,
{
    fn new(shared: &'s Arc<Shared>, messages: &'m [M]) -> Self {
        let outcomes = messages.iter().map(|_| None).collect();
        let seats = Seats::new(shared, messages.len());
        Self { shared, messages, outcomes, seats, handled: Vec::new() }
    }

    /// Fills in the outcomes. `true`: what follows is not to be begun.
    async fn handle<F, Fut>(&mut self, handler: &F) -> bool
    where
        F: Fn(&'m M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let ordered = self.shared.config.stop_batches;
        let turns = self.claim().await;
        // Messages that wait for something: where order counts at their turn, else after all others.
        let mut later = Vec::new();
        for (at, turn) in turns.into_iter().enumerate() {
            let waits = match turn {
                Turn::Over => None,
                Turn::Run => self.run(at, handler).await,
                Turn::Found(outcome) => self.note(at, outcome),
                Turn::Behind => self.subject(at),
                Turn::Alone(subject) => {
                    self.settle().await;
                    self.alone(at, subject, handler).await;
                    None
                }
            };
            match waits {
                Some(subject) if ordered => {
                    self.settle().await;
                    self.alone(at, subject, handler).await;
                }
                Some(subject) => later.push((at, subject)),
                None => {}
            }
            if ordered && self.is_unfinished(at) {
                self.stop(at + 1).await;
                return true;
            }
        }
        self.settle().await;
        for (at, subject) in later {
            self.alone(at, subject, handler).await;
        }
        ordered && self.outcomes.iter().flatten().any(|outcome| !finished(outcome))
    }

    /// Claims what can be claimed together.
    async fn claim(&mut self) -> Vec<Turn> {
        let together = self.shared.config.mode == Mode::Deduplicated && self.shared.terms.max_attempts.get() > 1;
        let mut turns = Vec::with_capacity(self.messages.len());
        for (at, message) in self.messages.iter().enumerate() {
            let turn = match self.shared.subject(message) {
                Ok(Subject::Known(sighting)) if together => {
                    self.seats.push(sighting);
                    turns.push(Turn::Behind);
                    continue;
                }
                Ok(subject) => Turn::Alone(subject),
                Err(error) => {
                    self.shared.counters.rejected.one();
                    let at_origin = At(self.shared.origin(message));
                    self.outcomes[at] = Some(Err(HandleError::Identity { at: at_origin, error }));
                    Turn::Over
                }
            };
            self.seats.skip();
            turns.push(turn);
        }
        self.seats.enter(0, |_, _| true);
        let (asks, places) = self.seats.asks(0);
        if places.is_empty() {
            return turns;
        }
        let sent = Instant::now();
        match self.shared.claim(&asks, self.patience()).await {
            Ok(outcomes) => self.claimed(places, outcomes, sent, &mut turns).await,
            Err(error) => {
                self.seats.leave(&places);
                for at in places {
                    self.outcomes[at] = Some(Err(HandleError::Store { stage: Stage::Claim, error: error.clone() }));
                    turns[at] = Turn::Over;
                }
            }
        }
        turns
    }

    async fn claimed(&mut self, places: Vec<usize>, outcomes: Vec<ClaimOutcome>, sent: Instant, turns: &mut [Turn]) {
        let mut grants = Vec::with_capacity(outcomes.len());
        let mut left = Vec::new();
        for (at, outcome) in places.into_iter().zip(outcomes) {
            turns[at] = match outcome {
                ClaimOutcome::Acquired(grant) => {
                    grants.push((at, grant));
                    Turn::Run
                }
                other => {
                    left.push(at);
                    Turn::Found(other)
                }
            };
        }
        self.seats.leave(&left);
        self.seats.granted(&grants, sent);
        if grants.len() < 2 {
            return;
        }
        // One of those that were tried before may be what ended the process then. If it does so again, it must not use
        // up attempts of messages that were merely claimed with it: so they are given back, and claimed at their turn.
        let suspects: Vec<usize> = grants.iter().filter(|(_, grant)| grant.attempt > 1).map(|(at, _)| *at).collect();
        for at in &suspects {
            if let Some(subject) = self.subject(*at) {
                turns[*at] = Turn::Alone(subject);
            }
        }
        self.release(suspects).await;
    }

    /// Runs a claimed message. Answers with it if it has to be handled again, on its own.
    async fn run<F, Fut>(&mut self, at: usize, handler: &F) -> Option<Subject>
    where
        F: Fn(&'m M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let (claim, message) = (self.seats.begin(at)?, self.messages.get(at)?);
        let span = tracing::debug_span!("handle", ?claim);
        let running = run(self.shared, &claim, async { handler(message, claim.clone()).await }).instrument(span);
        let failure = match running.await {
            Ok(value) => {
                self.seats.over(at, self.shared.succeeded(&value));
                self.handled.push((at, value));
                return None;
            }
            Err(failure) => failure,
        };
        let outcome = match self.seats.fail(at, failure.class(), self.patience()).await {
            Ok(Next::Again(_)) => return self.subject(at),
            Ok(Next::Dead { attempts }) => Ok(Done::Dead { attempts, error: Some(failure) }),
            Ok(Next::GivenBack) => Err(HandleError::Handler(failure)),
            Ok(Next::Lost) => Err(HandleError::LeaseLost(failure)),
            Err(error) => {
                self.seats.abandon(&[at]);
                Err(HandleError::Store { stage: Stage::Settle, error })
            }
        };
        self.outcomes[at] = Some(outcome);
        None
    }

    /// Notes what the store said of a message. Answers with it if it has to be handled on its own.
    fn note(&mut self, at: usize, outcome: ClaimOutcome) -> Option<Subject> {
        let counters = &self.shared.counters;
        let done = match outcome {
            ClaimOutcome::Duplicate { result, first } => {
                counters.duplicates.one();
                Done::Duplicate { value: result.as_ref().and_then(T::from_kept), first }
            }
            ClaimOutcome::Dead { attempts } => {
                counters.dead.one();
                Done::Dead { attempts, error: None }
            }
            ClaimOutcome::Conflict { first } if self.shared.config.on_conflict == OnConflict::Skip => {
                counters.conflicts.one();
                Done::Conflict { first }
            }
            // Waits, or is a matter of policy.
            _ => return self.subject(at),
        };
        self.outcomes[at] = Some(Ok(done));
        None
    }

    async fn alone<F, Fut>(&mut self, at: usize, subject: Subject, handler: &F)
    where
        F: Fn(&'m M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let Some(message) = self.messages.get(at) else { return };
        let run = |claim| handler(message, claim);
        let done = handle_one(self.shared, subject, run).await;
        self.outcomes[at] = Some(done.map_err(|halt| halt.into_error(self.shared.origin(message))));
    }

    /// Settles what was handled.
    async fn settle(&mut self) {
        if self.handled.is_empty() {
            return;
        }
        let (settles, places) = self.seats.settles(self.handled.iter().map(|(at, _)| *at));
        let heard = self.shared.settle(&settles, self.patience()).await;
        match &heard {
            Ok(outcomes) => {
                self.seats.heard(&places, outcomes);
                self.shared.counters.handled.add(places.len() as u64);
            }
            Err(_) => self.seats.abandon(&places),
        }
        for (at, value) in self.handled.drain(..) {
            self.outcomes[at] = Some(match &heard {
                Ok(_) => Ok(Done::Handled(value)),
                Err(error) => Err(HandleError::Store { stage: Stage::Settle, error: error.clone() }),
            });
        }
    }

    /// Gives claims back whose handlers have not begun.
    async fn release(&mut self, places: Vec<usize>) {
        if places.is_empty() {
            return;
        }
        for at in &places {
            self.seats.over(*at, Verdict::Released);
        }
        let (settles, places) = self.seats.settles(places);
        match self.shared.settle(&settles, self.patience()).await {
            Ok(outcomes) => self.seats.heard(&places, &outcomes),
            Err(_) => self.seats.abandon(&places),
        }
    }

    /// Ends an ordered batch: nothing from `from` on is begun.
    async fn stop(&mut self, from: usize) {
        self.settle().await;
        let unbegun = self.seats.unbegun(from);
        self.release(unbegun).await;
    }

    fn is_unfinished(&self, at: usize) -> bool {
        matches!(self.outcomes.get(at), Some(Some(outcome)) if !finished(outcome))
    }

    fn subject(&self, at: usize) -> Option<Subject> {
        self.seats.sighting(at).cloned().map(Subject::Known)
    }

    fn patience(&self) -> Duration {
        self.shared.config.store_patience
    }
}
