//! What one lane has in hand: it claims, remembers what ended, and tells the store while handlers run.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::builder::OnConflict;
use super::class::{Failure, HandlerError};
use super::done::{HandleError, Stage};
use super::each::Finished;
use super::registry::Entry;
use super::seats::{Next, Seats};
use super::shared::{Patience, Shared, Subject};
use crate::message::MessageView;
use crate::record::{ClaimOutcome, Origin, SettleOutcome, Verdict};
use crate::store::StoreError;

/// Why a lane ends before its messages do.
pub(super) enum Halted<E: HandlerError> {
    Stopped,
    /// The message at this place may not be passed.
    Error(usize, HandleError<E>),
}

/// Messages that were claimed together.
pub(super) struct Chunk {
    pub(super) turns: Vec<Turn>,
    /// Up to which place messages are to be claimed one by one afterwards.
    pub(super) single: usize,
}

pub(super) enum Turn {
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

pub(super) struct Lane<'s, E, R> {
    pub(super) shared: &'s Arc<Shared>,
    pub(super) stop: &'s CancellationToken,
    /// One for each message of the slice, as far as it was looked at.
    pub(super) seats: Seats,
    /// What ended since the last call to settle, with what to report when the store has heard it.
    pub(super) ended: Vec<(usize, Option<Finished<E>>)>,
    telling: Option<Telling<E>>,
    /// The store could not be told: the place, and its error. Nothing further is begun.
    pub(super) broken: Option<(usize, StoreError)>,
    pub(super) report: R,
}

impl<'s, E: HandlerError, R: FnMut(usize, Finished<E>)> Lane<'s, E, R> {
    /// A lane for a slice of so many messages; `report` is told what may be committed.
    pub(super) fn new(shared: &'s Arc<Shared>, stop: &'s CancellationToken, messages: usize, report: R) -> Self {
        let seats = Seats::new(shared, messages);
        Self { shared, stop, seats, ended: Vec::new(), telling: None, broken: None, report }
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.stop.is_cancelled() && self.broken.is_none()
    }

    /// Claims messages from `from` on, as far as they can be claimed together; none if the first one cannot.
    pub(super) async fn claim<M: MessageView>(
        &mut self,
        messages: &[M],
        from: usize,
        end: usize,
    ) -> Result<Chunk, Halted<E>> {
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
    pub(super) fn found(&mut self, at: usize, outcome: ClaimOutcome) -> bool {
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

    /// Notes that a handler failed, with nothing else in hand while it waits. Answers as `Each::run_chunk` does.
    pub(super) async fn failed(&mut self, at: usize, failure: Failure<E>) -> Result<(usize, usize), Halted<E>> {
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
    pub(super) fn release(&mut self, from: usize) {
        for at in self.seats.unbegun(from) {
            self.seats.over(at, Verdict::Released);
            self.ended.push((at, None));
        }
    }

    /// Awaits `work`; meanwhile tells the store what has ended.
    pub(super) async fn drive<O>(&mut self, work: impl Future<Output = O>) -> O {
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
    pub(super) async fn flush(&mut self) {
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
