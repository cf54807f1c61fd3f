//! A store that passes every call on to another one, and lets a test in before and after those that count.

use std::fmt;

use async_trait::async_trait;
use hapax::identity::Key;
use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};
use hapax::store::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError};

/// What a test does at a store's calls.
pub trait Looks: Send + Sync + 'static {
    /// Before a call to claim.
    fn claiming(&self, _: &Batch<Ask>) {}

    /// After one that was answered.
    fn claimed(&self, _: &Batch<Ask>) {}

    /// Before a call to settle.
    fn settling(&self, _: &Batch<Settle>) {}

    /// After one that was answered.
    fn settled(&self, _: &Batch<Settle>) {}
}

/// A store that is looked at.
pub struct Watched<L> {
    inner: Box<dyn DedupStore>,
    looks: L,
}

impl<L: Looks> Watched<L> {
    pub fn new(inner: impl DedupStore + 'static, looks: L) -> Self {
        Self { inner: Box::new(inner), looks }
    }
}

impl<L> fmt::Debug for Watched<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<L: Looks> DedupStore for Watched<L> {
    fn describe(&self) -> Description {
        self.inner.describe()
    }

    fn retention(&self) -> Retention {
        self.inner.retention()
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.looks.claiming(asks);
        let outcomes = self.inner.claim(terms, asks).await?;
        self.looks.claimed(asks);
        Ok(outcomes)
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        self.looks.settling(settles);
        let outcomes = self.inner.settle(settles).await?;
        self.looks.settled(settles);
        Ok(outcomes)
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        self.inner.extend(claims).await
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        self.inner.get(keys).await
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        self.inner.requeue(keys).await
    }

    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.inner.purge(limit).await
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.inner.ensure_schema().await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.inner.check().await
    }
}
