//! Around any loop: messages in, and what became of them.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Database;
use tokio::time::Instant;

use super::core::Core;
use super::error::{TransactBatch, TransactError, Transacted};
use super::outcome::{Failed, Item, Known, Outcome, Prepared, Spot, Why, Work};
use super::sealed::Sealed;
use super::{Transactional, TransactionalDatabase};
use crate::message::MessageView;
use crate::record::{Origin, Seen};
use crate::wrapper::{At, Done, HandlerError, commits, finished};

/// A handler of one message at a time.
struct Each<'a, M, F, T, E> {
    messages: &'a [M],
    /// For each item, its message.
    places: &'a [usize],
    handler: &'a F,
    answers: PhantomData<fn() -> (T, E)>,
}

impl<DB, M, F, T, E> Work<DB> for Each<'_, M, F, T, E>
where
    DB: Database,
    E: HandlerError,
    F: AsyncFn(&M, &mut DB::Connection) -> Result<T, E>,
{
    type Value = T;
    type Error = E;

    fn together(&self) -> bool {
        false
    }

    async fn run(&self, places: &[usize], conn: &mut DB::Connection, into: &mut Vec<T>) -> Result<(), E> {
        for place in places {
            if let Some(message) = self.places.get(*place).and_then(|place| self.messages.get(*place)) {
                into.push((self.handler)(message, conn).await?);
            }
        }
        Ok(())
    }
}

/// A handler of all messages at once.
struct Together<'a, M, F, E> {
    messages: &'a [M],
    places: &'a [usize],
    handler: &'a F,
    answers: PhantomData<fn() -> E>,
}

impl<DB, M, F, E> Work<DB> for Together<'_, M, F, E>
where
    DB: Database,
    E: HandlerError,
    F: AsyncFn(&[&M], &mut DB::Connection) -> Result<(), E>,
{
    type Value = ();
    type Error = E;

    fn together(&self) -> bool {
        true
    }

    async fn run(&self, places: &[usize], conn: &mut DB::Connection, into: &mut Vec<()>) -> Result<(), E> {
        let message = |place: &usize| self.places.get(*place).and_then(|place| self.messages.get(*place));
        let messages: Vec<&M> = places.iter().filter_map(message).collect();
        (self.handler)(&messages, conn).await?;
        into.resize(places.len(), ());
        Ok(())
    }
}

/// A message on its way to its outcome.
struct Pending {
    place: usize,
    item: Item,
    due: Instant,
}

impl<DB: TransactionalDatabase> Transactional<DB> {
    /// Handles one message: runs `handler` in a transaction if it is new, and says what it came to.
    ///
    /// `handler` is an `async |tx: &mut PgConnection| …` (or the connection of your database). What it writes there commits together with
    /// what is remembered of the message, or not at all. It must not end the transaction; its own `begin` makes a savepoint. It may be
    /// called several times, each time in another transaction.
    ///
    /// A failed message is tried again as [`Retry`](crate::Retry) says, so this may take long; keep it below
    /// `max.poll.interval.ms`. A message that somebody else is handling is [`Done::InFlight`] after the
    /// [lock timeout](super::TransactionalBuilder::lock_timeout): hand it in again.
    ///
    /// # Errors
    ///
    /// [`TransactError`], none of which may be committed to Kafka; [`TransactError::is_retryable`] says whether the same message may be
    /// handed in again.
    ///
    /// # Cancel safety
    ///
    /// Safe. Dropped before the commit is sent, nothing was done: the connection is closed, never returned inside a transaction.
    /// Dropped after it, a task of its own sees it to its end.
    pub async fn handle<M, T, E, F>(&self, message: &M, handler: F) -> Transacted<T, E>
    where
        M: MessageView,
        E: HandlerError,
        F: AsyncFn(&mut DB::Connection) -> Result<T, E>,
    {
        let one = std::slice::from_ref(message);
        let handler = async |_: &M, conn: &mut DB::Connection| handler(conn).await;
        let mut outcomes = self
            .core
            .settle(one, async |items: &[Item], places: &[usize]| {
                let each = Each { messages: one, places, handler: &handler, answers: PhantomData };
                self.core.run(items, &each, self.core.rules()).await
            })
            .await;
        outcomes.pop().unwrap_or(Err(TransactError::NotBegun))
    }

    /// Handles a batch: one transaction for all new messages of it. Each has a savepoint of its own until 256 messages in a row went well; then a
    /// batch runs without, and is run again with savepoints if one of its messages fails.
    ///
    /// `handler` is an `async |message: &M, tx: &mut PgConnection| …`. Batches of more than
    /// [`batch_size`](super::TransactionalBuilder::batch_size) are taken in parts. A message that fails is rolled back alone, its attempt recorded,
    /// and the others commit, though their handlers may have run twice for it; it is tried again after them. Never fails as a whole: each message has its outcome.
    ///
    /// # Cancel safety
    ///
    /// Safe: see [`handle`](Self::handle).
    pub async fn handle_batch<M, T, E, F>(&self, messages: &[M], handler: F) -> TransactBatch<T, E>
    where
        M: MessageView,
        E: HandlerError,
        F: AsyncFn(&M, &mut DB::Connection) -> Result<T, E>,
    {
        let outcomes = self
            .core
            .settle(messages, async |items: &[Item], places: &[usize]| {
                let each = Each { messages, places, handler: &handler, answers: PhantomData };
                self.core.run(items, &each, self.core.rules()).await
            })
            .await;
        self.core.batch(messages, outcomes)
    }

    /// Handles a batch by one call: `handler` is an `async |new: &[&M], tx: &mut PgConnection| …` that gets all new messages at once, for bulk
    /// inserts.
    ///
    /// If it fails, everything is rolled back and it is called with half of them, down to single messages: so one that fails is found,
    /// and the others commit.
    ///
    /// # Cancel safety
    ///
    /// Safe: see [`handle`](Self::handle).
    pub async fn handle_together<M, E, F>(&self, messages: &[M], handler: F) -> TransactBatch<(), E>
    where
        M: MessageView,
        E: HandlerError,
        F: AsyncFn(&[&M], &mut DB::Connection) -> Result<(), E>,
    {
        let outcomes = self
            .core
            .settle(messages, async |items: &[Item], places: &[usize]| {
                let together = Together { messages, places, handler: &handler, answers: PhantomData };
                self.core.run(items, &together, self.core.rules()).await
            })
            .await;
        self.core.batch(messages, outcomes)
    }
}

impl<DB: Sealed> Core<DB> {
    /// Takes messages to their outcomes, with waits for those that are tried again.
    async fn settle<M: MessageView, T, E: HandlerError>(
        &self,
        messages: &[M],
        run: impl AsyncFn(&[Item], &[usize]) -> Vec<Outcome<T, E>>,
    ) -> Vec<Transacted<T, E>> {
        let mut outcomes: Vec<Option<Transacted<T, E>>> = messages.iter().map(|_| None).collect();
        if let Err(error) = self.hold_places(messages).await {
            return messages.iter().map(|_| Err(TransactError::Database(error.clone()))).collect();
        }
        // What is run next, and what waits for its time.
        let mut places: Vec<usize> = Vec::with_capacity(messages.len());
        let mut items: Vec<Item> = Vec::with_capacity(messages.len());
        let mut pending: Vec<Pending> = Vec::new();
        let mut preparing = self.preparing();
        for (place, message) in messages.iter().enumerate() {
            match preparing.prepare(message) {
                Prepared::Item(item) if item.stray => {
                    outcomes[place] = Some(Err(TransactError::OutOfOrder { at: At(item.origin) }));
                }
                Prepared::Item(mut item) => {
                    item.row = self.settings.in_order.then_some(0);
                    places.push(place);
                    items.push(item);
                }
                Prepared::Refused(error, item) => {
                    outcomes[place] = Some(Err(TransactError::Identity { at: At(item.origin), error }));
                }
            }
        }
        // In order, what stands behind a message without an identity waits for somebody to decide about that.
        if self.settings.in_order
            && let Some(first) = outcomes.iter().position(Option::is_some)
        {
            let before = places.partition_point(|place| *place < first);
            places.truncate(before);
            items.truncate(before);
        }
        while !items.is_empty() {
            let ran = run(&items, &places).await;
            let mut stopped = false;
            for ((place, mut item), outcome) in places.drain(..).zip(items.drain(..)).zip(ran) {
                let failed = matches!(outcome, Outcome::Failed(_));
                match self.concluded(&item, outcome) {
                    Ok(outcome) => {
                        stopped |= self.settings.in_order && !finished(&outcome);
                        outcomes[place] = Some(outcome);
                    }
                    Err(_) if stopped => {}
                    Err(wait) => {
                        item.attempt += u32::from(failed);
                        pending.push(Pending { place, item, due: Instant::now() + wait });
                    }
                }
            }
            if stopped {
                break;
            }
            pending.sort_unstable_by_key(|pending| pending.place);
            // In order, nothing is begun before the first of them is due.
            let due = pending.iter().map(|pending| pending.due);
            let Some(first) = (if self.settings.in_order { pending.first().map(|first| first.due) } else { due.min() })
            else {
                break;
            };
            tokio::time::sleep_until(first).await;
            let now = Instant::now();
            let (ready, later): (Vec<Pending>, Vec<Pending>) =
                pending.into_iter().partition(|pending| self.settings.in_order || pending.due <= now);
            pending = later;
            (places, items) = ready.into_iter().map(|pending| (pending.place, pending.item)).unzip();
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(TransactError::NotBegun))).collect()
    }

    /// Takes the partitions of these messages that are not held.
    async fn hold_places<M: MessageView>(&self, messages: &[M]) -> Result<(), crate::store::StoreError> {
        if !self.holds_partitions() {
            return Ok(());
        }
        let mut places: BTreeSet<(Arc<str>, i32)> = BTreeSet::new();
        let mut last: Option<Origin> = None;
        for message in messages {
            let same = |last: &Origin| last.partition == message.partition() && *last.topic == *message.topic();
            if last.as_ref().is_some_and(same) {
                continue;
            }
            let origin = self.origin(message);
            places.insert((Arc::clone(&origin.topic), origin.partition));
            last = Some(origin);
        }
        self.hold(&places).await
    }

    /// What an outcome is to a loop; or how long to wait until the message is tried again.
    fn concluded<T, E: HandlerError>(&self, item: &Item, outcome: Outcome<T, E>) -> Result<Transacted<T, E>, Duration> {
        let at = || At(item.origin.clone());
        let in_place = self.settings.retry.is_in_place();
        Ok(match outcome {
            Outcome::Handled(value) => Ok(Done::Handled(value)),
            Outcome::Known(known) => match known {
                Known::Redelivered(None) if self.is_other(item) => Err(TransactError::OtherMessage { at: at() }),
                Known::Redelivered(first) | Known::SameId(first) => Ok(Done::Duplicate {
                    value: None,
                    first: first.unwrap_or_else(|| Seen { origin: item.origin.clone(), at: 0 }),
                }),
                Known::InFlight { remaining } => Ok(Done::InFlight { remaining }),
                Known::NotDue { remaining } if in_place => return Err(remaining.max(Duration::from_millis(1))),
                Known::NotDue { remaining } => Ok(Done::NotDue { remaining }),
                Known::Dead { attempts } => Ok(Done::Dead { attempts, error: None }),
                Known::Conflict { first } if self.settings.on_conflict == crate::wrapper::OnConflict::Skip => {
                    Ok(Done::Conflict { first })
                }
                Known::Conflict { first } => Err(TransactError::Conflict { at: at(), first }),
                Known::TooOld if self.settings.on_too_old == crate::wrapper::OnConflict::Skip => {
                    Ok(Done::Conflict { first: Seen { origin: item.origin.clone(), at: 0 } })
                }
                Known::TooOld => Err(TransactError::TooOld { at: at() }),
            },
            Outcome::Failed(Failed { why: Why::Misused(misuse @ super::Misuse::Ended), .. }) => {
                Err(TransactError::Misused { at: at(), misuse })
            }
            Outcome::Failed(Failed { why: Why::Handler(failure), attempt, dead: true, .. }) => {
                Ok(Done::Dead { attempts: attempt, error: Some(failure) })
            }
            Outcome::Failed(Failed { retry_in, dead: false, .. }) if in_place => return Err(retry_in),
            Outcome::Failed(Failed { why: Why::Handler(failure), .. }) => Err(TransactError::Handler(failure)),
            Outcome::Failed(Failed { attempt, dead: true, .. }) => Ok(Done::Dead { attempts: attempt, error: None }),
            Outcome::Failed(Failed { why: Why::Misused(misuse), .. }) => {
                Err(TransactError::Misused { at: at(), misuse })
            }
            Outcome::NotBegun if self.settings.in_order && in_place => return Err(Duration::ZERO),
            Outcome::NotBegun => Err(TransactError::NotBegun),
            Outcome::Fenced => Err(TransactError::Fenced { at: at() }),
            Outcome::Unknown(error) => Err(TransactError::Database(error)),
        })
    }

    /// Whether a message whose offset is finished may be another than the one that was.
    pub(crate) fn is_other(&self, item: &Item) -> bool {
        let Some(Spot::Position) = item.spot else { return false };
        let held = self.held_by(item);
        !self.settings.trust_offsets && held.is_some_and(|held| held.doubts(item.origin.offset, item.stamp))
    }

    fn batch<M: MessageView, T, E: HandlerError>(
        &self,
        messages: &[M],
        outcomes: Vec<Transacted<T, E>>,
    ) -> TransactBatch<T, E> {
        let commits = commits(messages, outcomes.iter().map(finished), |message| self.origin(message));
        TransactBatch::new(outcomes, commits)
    }
}
