//! One store call for many callers.

mod lane;
mod op;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use self::lane::{Lane, join};
use self::op::{Claims, Extends, Gets, Settles};
use super::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError};
use crate::identity::Key;
use crate::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};

/// Joins the calls of many tasks into batches.
///
/// For handlers that work one message at a time: 64 tasks that each claim one message cost a few store calls,
/// not 64. A call to an idle store goes out at once. While the store is busy, calls wait, and go out together when it is
/// free. There is no timer, so nothing waits longer than for the call before it.
///
/// Outcomes and guarantee level are the store's own. What differs:
///
/// - Claims on different [`Terms`] never share a batch; their groups take turns.
/// - Two calls for one key never share a batch: the second goes out after the first was answered.
/// - An error reaches every caller of its batch, and says nothing about what was done, as always. A store that panics
///   gives an error ([`StoreErrorKind::Unavailable`](super::StoreErrorKind::Unavailable)); nobody hangs.
/// - `claim`, `settle`, `extend` and `get` each have a queue of their own: leases are prolonged while claims wait.
///   Everything else goes straight to the store.
///
/// # Cancel safety
///
/// Dropping a future disturbs no other caller. If its call had not gone out yet, it never does. Otherwise the record
/// was moved or not, as for any store: a claim that was granted to nobody is granted again to the same owner, or runs out.
///
/// # Runtime
///
/// The store is called by tasks on the tokio runtime of the caller that found it idle, so that it does not matter whose future is
/// dropped. If that runtime is shut down, its callers get an error. Outside tokio every call goes straight to the store.
///
/// # Over or under other layers
///
/// Any order gives the same outcomes. [`Cached`](super::Cached) belongs outside, so that what it answers never queues:
/// `Cached::new(Batched::new(store))`.
pub struct Batched<S> {
    shared: Arc<Shared<S>>,
}

/// How much [`Batched`] asks for at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchLimits {
    /// Items in one store call; a longer call of one caller is cut. Default: 512.
    pub max_batch: usize,
    /// Store calls of one kind at a time. Default: 1, which makes the largest batches.
    pub max_calls: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { max_batch: 512, max_calls: 1 }
    }
}

impl BatchLimits {
    /// Sets how many items one store call may have; 0 counts as 1. Default: 512.
    #[must_use]
    pub const fn max_batch(mut self, items: usize) -> Self {
        self.max_batch = if items == 0 { 1 } else { items };
        self
    }

    /// Sets how many store calls of one kind may run at a time; 0 counts as 1. Default: 1.
    ///
    /// More of them help where the store is far away, and make each batch smaller. Each takes a connection of a SQL store.
    #[must_use]
    pub const fn max_calls(mut self, calls: usize) -> Self {
        self.max_calls = if calls == 0 { 1 } else { calls };
        self
    }
}

struct Shared<S> {
    store: S,
    limits: BatchLimits,
    claims: Lane<Claims>,
    settles: Lane<Settles>,
    extends: Lane<Extends>,
    gets: Lane<Gets>,
}

impl<S: DedupStore> Batched<S> {
    /// Joins calls to `store`, with the default [`BatchLimits`].
    #[must_use]
    pub fn new(store: S) -> Self {
        Self::with_limits(store, BatchLimits::default())
    }

    /// Joins calls to `store`.
    #[must_use]
    pub fn with_limits(store: S, limits: BatchLimits) -> Self {
        // The fields are public: a zero may come in without the setters.
        let limits = limits.max_batch(limits.max_batch).max_calls(limits.max_calls);
        let shared = Shared {
            store,
            limits,
            claims: Lane::default(),
            settles: Lane::default(),
            extends: Lane::default(),
            gets: Lane::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.shared.store
    }
}

/// Clones share one queue.
impl<S> Clone for Batched<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: fmt::Debug> fmt::Debug for Batched<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batched")
            .field("store", &self.shared.store)
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<S: DedupStore + 'static> DedupStore for Batched<S> {
    fn describe(&self) -> Description {
        self.shared.store.describe()
    }

    fn retention(&self) -> Retention {
        self.shared.store.retention()
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        join::<Claims, S>(&self.shared, terms, asks).await
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        join::<Settles, S>(&self.shared, &(), settles).await
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        join::<Extends, S>(&self.shared, &(), claims).await
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        join::<Gets, S>(&self.shared, &(), keys).await
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        self.shared.store.requeue(keys).await
    }

    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.shared.store.purge(limit).await
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.shared.store.ensure_schema().await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.shared.store.check().await
    }
}
