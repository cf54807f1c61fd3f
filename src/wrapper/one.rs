//! One message, from identity to outcome: claims it, waits where it has to, settles it, tries it again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Claim;
use super::builder::{Mode, OnConflict};
use super::class::{ErrorClass, Failure, HandlerError};
use super::done::{At, Done, HandleError, Stage};
use super::keep::Kept;
use super::registry::Entry;
use super::run::run;
use super::seats::{Next, Seats};
use super::shared::{Shared, Subject};
use crate::identity::Key;
use crate::record::{ClaimOutcome, Origin, Seen, SettleOutcome, Verdict};
use crate::store::StoreError;

/// Why a message was not finished.
#[derive(Debug)]
pub(super) enum Halt<E> {
    Handler(Failure<E>),
    LeaseLost(Failure<E>),
    Store { stage: Stage, error: StoreError },
    Conflict { first: Seen },
}

impl<E: HandlerError> Halt<E> {
    /// The error for a user's own loop.
    pub(super) fn into_error(self, origin: Origin) -> HandleError<E> {
        match self {
            Self::Handler(failure) => HandleError::Handler(failure),
            Self::LeaseLost(failure) => HandleError::LeaseLost(failure),
            Self::Store { stage, error } => HandleError::Store { stage, error },
            Self::Conflict { first } => HandleError::Conflict { at: At(origin), first },
        }
    }
}

/// Handles one message with everything that may take.
pub(super) async fn handle_one<T, E, F, Fut>(
    shared: &Arc<Shared>,
    subject: Subject,
    mut handler: F,
) -> Result<Done<T, E>, Halt<E>>
where
    T: Kept,
    E: HandlerError,
    F: FnMut(Claim) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut one = One::new(shared, subject);
    loop {
        let claim = match one.begin().await? {
            Begun::Run(claim) => claim,
            Begun::Duplicate { result, first } => {
                shared.counters.duplicates.one();
                let value = result.as_ref().and_then(T::from_kept);
                return Ok(Done::Duplicate { value, first });
            }
            Begun::Conflict { first } => {
                return match shared.config.on_conflict {
                    OnConflict::Skip => Ok(Done::Conflict { first }),
                    OnConflict::Stop | OnConflict::Handle => Err(Halt::Conflict { first }),
                };
            }
            Begun::Dead { attempts } => return Ok(Done::Dead { attempts, error: None }),
            Begun::InFlight { remaining } => return Ok(Done::InFlight { remaining }),
            Begun::NotDue { remaining } => return Ok(Done::NotDue { remaining }),
        };
        let span = tracing::debug_span!("handle", ?claim);
        let running = run(shared, &claim, async { handler(claim.clone()).await }).instrument(span);
        match running.await {
            Ok(value) => {
                if one.has_claim() {
                    let verdict = shared.succeeded(&value);
                    one.settle(verdict).await?;
                }
                shared.counters.handled.one();
                return Ok(Done::Handled(value));
            }
            Err(failure) => match one.failed(failure.class()).await? {
                Next::Again(pause) => one.pause = Some(pause),
                Next::Dead { attempts } => return Ok(Done::Dead { attempts, error: Some(failure) }),
                Next::GivenBack => return Err(Halt::Handler(failure)),
                Next::Lost => return Err(Halt::LeaseLost(failure)),
            },
        }
    }
}

/// One message on its way.
struct One<'a> {
    shared: &'a Arc<Shared>,
    /// The message, if it has a record.
    seats: Seats,
    /// The key and the attempts begun, if it has none.
    bare: Option<(Key, u32)>,
    /// Pause before the next claim.
    pause: Option<Duration>,
    /// When waiting for another owner began, and how long the next wait may be.
    waiting: Option<(Instant, Duration)>,
}

enum Begun {
    Run(Claim),
    Duplicate { result: Option<Bytes>, first: Seen },
    Conflict { first: Seen },
    Dead { attempts: u32 },
    InFlight { remaining: Duration },
    NotDue { remaining: Duration },
}

/// The first wait for a message that another owner holds; each next one is twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(1);

impl<'a> One<'a> {
    fn new(shared: &'a Arc<Shared>, subject: Subject) -> Self {
        let mut seats = Seats::new(shared, 0);
        let bare = match subject {
            Subject::Known(sighting) => {
                seats.push(sighting);
                None
            }
            Subject::Bare { key, anonymous } => {
                shared.counters.without_identity.add(u64::from(anonymous));
                Some((key, 0))
            }
        };
        Self { shared, seats, bare, pause: None, waiting: None }
    }

    fn patience(&self) -> Duration {
        self.shared.config.store_patience
    }

    /// Gets the message to where its handler may run, or is not needed.
    async fn begin<E>(&mut self) -> Result<Begun, Halt<E>> {
        if let Some(pause) = self.pause.take() {
            tokio::time::sleep(pause).await;
        }
        let Some(key) = self.seats.sighting(0).map(|sighting| sighting.key) else {
            let (key, attempts) = self.bare.as_mut().map_or((Key::from_bytes([0; 16]), 1), |(key, attempts)| {
                *attempts += 1;
                (*key, *attempts)
            });
            return Ok(Begun::Run(Claim::bare(key, attempts)));
        };
        loop {
            match self.shared.registry.enter(key) {
                Entry::Entered => self.seats.entered(0),
                Entry::Busy(latch) => {
                    if !self.wait_for(latch).await {
                        return Ok(Begun::InFlight { remaining: Duration::ZERO });
                    }
                    continue;
                }
                Entry::Owed => {
                    let told = self.shared.tell_debts(Some(key), self.patience()).await;
                    told.map_err(|error| Halt::Store { stage: Stage::Settle, error })?;
                    continue;
                }
            }
            match self.claim(key).await? {
                Some(Begun::InFlight { remaining }) if self.look_again(remaining).await => {}
                Some(Begun::NotDue { remaining }) if self.shared.config.retry.is_in_place() => {
                    tokio::time::sleep(remaining.max(Duration::from_millis(1))).await;
                }
                Some(begun) => return Ok(begun),
                None => {}
            }
        }
    }

    /// Claims the message, which is entered. `None`: ask again.
    async fn claim<E>(&mut self, key: Key) -> Result<Option<Begun>, Halt<E>> {
        let (asks, _) = self.seats.asks(0);
        let sent = Instant::now();
        let outcome = match self.shared.claim(&asks, self.patience()).await {
            Ok(mut outcomes) => outcomes.pop(),
            Err(error) => {
                self.seats.leave(&[0]);
                return Err(Halt::Store { stage: Stage::Claim, error });
            }
        };
        let Some(ClaimOutcome::Acquired(grant)) = outcome else {
            self.seats.leave(&[0]);
            return Ok(outcome.and_then(|outcome| self.not_acquired(outcome)));
        };
        self.seats.granted(&[(0, grant)], sent);
        tracing::debug!(%key, attempt = grant.attempt, took_over = grant.took_over, "claimed");
        if self.shared.config.mode == Mode::AtMostOnce {
            let claim = self.seats.begin(0).map(Claim::spent);
            let outcome = self.settle(Verdict::Succeeded { result: None }).await?;
            // Anything else: the claim had been taken over, and another owner may have run it.
            return Ok(claim.filter(|_| outcome == SettleOutcome::Settled).map(Begun::Run));
        }
        Ok(self.seats.begin(0).map(Begun::Run))
    }

    fn not_acquired(&mut self, outcome: ClaimOutcome) -> Option<Begun> {
        match outcome {
            ClaimOutcome::Acquired(_) => None,
            ClaimOutcome::Duplicate { result, first } => Some(Begun::Duplicate { result, first }),
            ClaimOutcome::InFlight { remaining } => Some(Begun::InFlight { remaining }),
            ClaimOutcome::NotDue { remaining } => Some(Begun::NotDue { remaining }),
            ClaimOutcome::Dead { attempts } => {
                self.shared.counters.dead.one();
                Some(Begun::Dead { attempts })
            }
            ClaimOutcome::Conflict { first } => {
                self.shared.counters.conflicts.one();
                tracing::debug!(first = ?first.origin, "a conflict: the identity was used by another message");
                if self.shared.config.on_conflict != OnConflict::Handle {
                    return Some(Begun::Conflict { first });
                }
                let key = self.seats.sighting(0).map(|sighting| sighting.key)?;
                self.seats.truncate(0);
                self.bare = Some((key, 1));
                Some(Begun::Run(Claim::bare(key, 1)))
            }
        }
    }

    /// Waits for a message in another hand of this process. `false` if that may not take any longer.
    async fn wait_for(&mut self, latch: CancellationToken) -> bool {
        let (began, _) = self.wait_began();
        let end = began + self.shared.config.wait_in_flight;
        tokio::time::timeout_at(end, latch.cancelled()).await.is_ok()
    }

    /// Waits for a message that another owner holds. `false` if that may not take any longer.
    async fn look_again(&mut self, remaining: Duration) -> bool {
        let (began, step) = self.wait_began();
        self.waiting = Some((began, (step * 2).min(LAST_LOOK)));
        let left = self.shared.config.wait_in_flight.saturating_sub(began.elapsed());
        if left.is_zero() {
            return false;
        }
        tokio::time::sleep(remaining.max(Duration::from_millis(1)).min(step).min(left)).await;
        true
    }

    fn wait_began(&mut self) -> (Instant, Duration) {
        *self.waiting.get_or_insert_with(|| {
            self.shared.counters.waited.one();
            (Instant::now(), FIRST_LOOK)
        })
    }

    /// The handler failed: remembers it, and says what follows.
    async fn failed<E>(&mut self, class: ErrorClass) -> Result<Next, Halt<E>> {
        if self.has_claim() {
            let next = self.seats.fail(0, class, self.patience()).await;
            return next.map_err(|error| Halt::Store { stage: Stage::Settle, error });
        }
        self.shared.counters.failed.one();
        let Some((_, attempt)) = self.bare else {
            // At most once: it was settled before it ran.
            self.shared.counters.dead.one();
            return Ok(Next::Dead { attempts: 1 });
        };
        let pause = self.shared.config.retry.delay(attempt, self.shared.random());
        Ok(self.shared.next(attempt, class == ErrorClass::Fatal, false, pause))
    }

    fn has_claim(&self) -> bool {
        self.seats.attempt(0) > 0
    }

    async fn settle<E>(&mut self, verdict: Verdict) -> Result<SettleOutcome, Halt<E>> {
        let settled = self.seats.settle_one(0, verdict, self.patience()).await;
        settled.map_err(|error| Halt::Store { stage: Stage::Settle, error })
    }
}
