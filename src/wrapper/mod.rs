//! Claim, handle, settle: around any loop. Knows no Kafka client.
//!
//! ```text
//!   message ─▶ identity ─▶ registry ─▶ store: claim ─▶ handler ─▶ store: settle ─▶ may be committed
//!              key and      in hand here?  new, duplicate,  lease renewed   heard?
//!              fingerprint  owed?          in flight, …     meanwhile
//! ```
//!
//! - [`seats`] are the messages that one call has in hand; dropped, they leave debts in the [`registry`].
//! - [`one`] takes one message through everything that may happen to it; [`batch`] takes the common cases many at a time, and
//!   hands the others to it. [`hand`] is what a consumer's engine decides about instead.
//! - [`renew`] is the one background task: leases, and debts.

mod batch;
mod builder;
mod claim;
mod class;
mod counts;
mod described;
mod done;
#[cfg(feature = "kafka")]
pub(crate) mod drive;
#[cfg(feature = "kafka")]
mod hand;
mod keep;
mod lookup;
mod one;
mod registry;
mod renew;
mod run;
mod seats;
mod shared;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use batch::commits;
pub use builder::{BuildError, Findings, MIN_LEASE, Mode, OnConflict, OnceBuilder};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use builder::{judge, scoped, setters, some_time};
pub use claim::Claim;
#[cfg_attr(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")), allow(unused_imports))]
pub(crate) use claim::{Hold, Slot};
pub use class::{ErrorClass, Failure, Fatal, HandlerError, Unavailable};
#[cfg_attr(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")), allow(unused_imports))]
pub(crate) use counts::Counters;
pub use counts::Counts;
#[cfg_attr(not(feature = "kafka"), allow(unused_imports))]
pub(crate) use described::Described;
#[cfg(feature = "kafka")]
pub(crate) use done::in_conflict;
pub use done::{At, BatchDone, CallError, Commit, Done, HandleError, Stage, Unsettled};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use done::{conflict, finished};
#[cfg(feature = "json")]
pub use keep::AsJson;
pub use keep::{Kept, Unkept};
#[cfg(any(feature = "kafka", feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use run::caught;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use shared::{Topics, pause};

use crate::identity::IntoIdentity;
use crate::level::Level;
use crate::message::MessageView;
use crate::record::{Origin, Owner};
use crate::store::{DedupStore, Report};
use one::handle_one;
use shared::Shared;

/// Handles every message once, around any loop. Cheap to clone; clones share everything.
///
/// ```
/// use hapax::identity::header;
/// use hapax::message::Parts;
/// use hapax::store::MemoryStore;
/// use hapax::{Done, Once};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let once = Once::builder(MemoryStore::new())
///     .scope("payments", "charge")
///     .identify(header("message-id"))
///     .build()
///     .await?;
///
/// let message = Parts::new("orders").at(0, 7).payload("one coffee").header("message-id", "7d0c");
/// let again = Parts::new("orders").at(2, 9).payload("one coffee").header("message-id", "7d0c");
///
/// let done = once.handle(&message, async |_| Ok::<_, String>(())).await?;
/// assert!(matches!(done, Done::Handled(())) && done.may_commit());
///
/// let done = once.handle(&again, async |_| unreachable!("it was handled")).await?;
/// # let _: &Done<(), String> = &done;
/// assert!(matches!(done, Done::Duplicate { .. }) && done.may_commit());
/// # Ok(())
/// # }
/// ```
///
/// The guarantee is that of the [`Mode`] and the store: see [`level`](Self::level).
///
/// # Cancel safety
///
/// Every future of this type may be dropped at any point. A handler that was running has failed its attempt, one that had
/// ended has ended so; the store is told in the background, and before the same message is claimed here again.
/// Nothing is settled while dropping, and nothing may be committed that was not answered.
///
/// # Runtime
///
/// Needs a tokio runtime with time enabled. One background task renews leases and tells the store what it has not heard; it
/// sleeps while there is nothing to do.
#[derive(Clone)]
pub struct Once {
    pub(crate) shared: Arc<Shared>,
}

impl Once {
    /// Starts to configure a wrapper around `store`.
    pub fn builder(store: impl DedupStore + 'static) -> OnceBuilder {
        OnceBuilder::new(Box::new(store))
    }

    pub(crate) fn of(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// Handles one message: runs `handler` if it is new, and says what it came to.
    ///
    /// It waits for a message that another owner is handling, and for a failed one that is not due, and tries
    /// a failed one again as [`Retry`](crate::Retry) says, so it may take long; keep it below `max.poll.interval.ms`.
    /// The handler may be called several times, one after the other.
    ///
    /// # Errors
    ///
    /// [`HandleError`], none of which may be committed; [`HandleError::is_retryable`] says whether the same message
    /// may be handed in again.
    ///
    /// # Cancel safety
    ///
    /// Safe. A handler that was running has failed this attempt.
    pub async fn handle<M, T, E, F, Fut>(&self, message: &M, handler: F) -> Result<Done<T, E>, HandleError<E>>
    where
        M: MessageView,
        T: Kept,
        E: HandlerError,
        F: FnMut(Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let subject = match self.shared.subject(message) {
            Ok(subject) => subject,
            Err(error) => {
                self.shared.counters.rejected.one();
                return Err(HandleError::Identity { at: At(self.shared.origin(message)), error });
            }
        };
        let done = handle_one(&self.shared, subject, handler).await;
        done.map_err(|halt| halt.into_error(self.shared.origin(message)))
    }

    /// Handles a batch: one call to claim all, handlers in order, one call to settle all.
    ///
    /// Batches of more than 512 messages are taken in parts. A failing message does not stop the others, unless
    /// [`stop_batches_at_failure`](OnceBuilder::stop_batches_at_failure) says so; it is tried again after them. Of several
    /// messages with one identity the first is handled, and the others are duplicates once it succeeded. A message that was
    /// tried before is claimed on its own, so that one that ends the process again and again takes no other with it.
    /// Under [`Mode::AtMostOnce`] each message is claimed and settled on its own.
    ///
    /// Never fails as a whole: each message has its outcome, and [`BatchDone::commits`] says what may be committed.
    ///
    /// # Cancel safety
    ///
    /// Safe: see [`Once`].
    pub async fn handle_batch<'m, M, T, E, F, Fut>(&self, messages: &'m [M], handler: F) -> BatchDone<T, E>
    where
        M: MessageView,
        T: Kept,
        E: HandlerError,
        F: Fn(&'m M, Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        batch::handle_batch(&self.shared, messages, handler).await
    }

    /// Answers a call that is no Kafka message: runs `handler` if `identity` is new, else gives the answer it gave then.
    ///
    /// Needs [`keep_results`](OnceBuilder::keep_results). `payload` is what the call says: the same identity with
    /// another payload is a conflict. Identities of calls are unique in the scope, whatever the topic.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    ///
    /// # Cancel safety
    ///
    /// Safe: see [`Once`]. Called again, it answers what was answered, or runs the handler again.
    pub async fn call<T, E, F, Fut>(
        &self,
        identity: impl IntoIdentity,
        payload: impl AsRef<[u8]>,
        handler: F,
    ) -> Result<T, CallError<E>>
    where
        T: Kept,
        E: HandlerError,
        F: FnMut(Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        CallError::answer(self.try_call(identity, payload, handler).await?)
    }

    /// Like [`call`](Self::call), and tells a new answer from a kept one.
    ///
    /// # Errors
    ///
    /// [`HandleError`].
    ///
    /// # Cancel safety
    ///
    /// Safe: see [`call`](Self::call).
    pub async fn try_call<T, E, F, Fut>(
        &self,
        identity: impl IntoIdentity,
        payload: impl AsRef<[u8]>,
        handler: F,
    ) -> Result<Done<T, E>, HandleError<E>>
    where
        T: Kept,
        E: HandlerError,
        F: FnMut(Claim) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let identity = match identity.into_identity() {
            Ok(identity) => identity,
            Err(error) => {
                self.shared.counters.rejected.one();
                return Err(HandleError::Identity { at: At(Origin::default()), error });
            }
        };
        let subject = self.shared.subject_of_call(&identity, payload.as_ref());
        let done = handle_one(&self.shared, subject, handler).await;
        done.map_err(|halt| halt.into_error(Origin::default()))
    }

    /// What was counted since it was built.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counters.snapshot()
    }

    /// What the start-up check of the store found.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.shared.report
    }

    /// The guarantee level of [`Mode::Deduplicated`] with this store; `None` under the other modes.
    #[must_use]
    pub fn level(&self) -> Option<Level> {
        (self.mode() == Mode::Deduplicated).then(|| self.shared.store.describe().level)
    }

    /// When a message counts as handled.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.config.mode
    }

    /// The store, for operators: to look at records, requeue dead ones, purge.
    #[must_use]
    pub fn store(&self) -> &dyn DedupStore {
        &*self.shared.store
    }

    /// Who claims, in the store's records.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.shared.terms.owner
    }

    /// Tells the store what it has not heard, for at most `longest`, and says what is left. For shutdown: call it after
    /// the last handler ended. May be called again.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not heard is still owed.
    pub async fn settle_pending(&self, longest: Duration) -> Unsettled {
        let end = Instant::now() + longest;
        let telling = async {
            loop {
                let left = end.saturating_duration_since(Instant::now());
                match self.shared.tell_debts(None, left).await {
                    Ok(true) => {}
                    Ok(false) => {
                        // The background task may be telling some.
                        let others = self.shared.registry.being_told();
                        if others.is_empty() {
                            return;
                        }
                        for latch in others {
                            latch.cancelled().await;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "ends are left that the store has not heard of");
                        return;
                    }
                }
            }
        };
        let _ = tokio::time::timeout_at(end, telling).await;
        let (handled, claims) = self.shared.registry.debts();
        Unsettled { handled, claims }
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once")
            .field("store", &self.shared.store.describe().store)
            .field("scope", &self.shared.scope)
            .field("mode", &self.shared.config.mode)
            .field("owner", &self.shared.terms.owner)
            .finish_non_exhaustive()
    }
}
