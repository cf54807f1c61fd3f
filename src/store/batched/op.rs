//! The four calls that callers can share.

use std::future::Future;
use std::pin::Pin;

use super::Shared;
use super::lane::Lane;
use crate::identity::Key;
use crate::record::{ClaimOutcome, Extend, ExtendOutcome, Record, Settle, SettleOutcome, Terms};
use crate::store::{Ask, Batch, DedupStore, Keyed, StoreError};

/// What a store call answers, as `async_trait` boxes it.
type Answer<'a, O> = Pin<Box<dyn Future<Output = Result<Vec<O>, StoreError>> + Send + 'a>>;

/// One kind of call: what it takes, what it answers, and which of them may share a batch.
pub(super) trait Op: Sized + Send + 'static {
    /// Only calls of one group share a batch.
    type Group: Clone + PartialEq + Send + Sync + 'static;
    type Item: Keyed + Clone + Send + Sync + 'static;
    type Outcome: Send + 'static;

    /// Completes "could not …".
    const NAME: &'static str;

    fn lane<S>(shared: &Shared<S>) -> &Lane<Self>;

    fn call<'a, S: DedupStore>(
        store: &'a S,
        group: &'a Self::Group,
        batch: &'a Batch<Self::Item>,
    ) -> Answer<'a, Self::Outcome>;
}

pub(super) struct Claims;
pub(super) struct Settles;
pub(super) struct Extends;
pub(super) struct Gets;

impl Op for Claims {
    type Group = Terms;
    type Item = Ask;
    type Outcome = ClaimOutcome;

    const NAME: &'static str = "claim";

    fn lane<S>(shared: &Shared<S>) -> &Lane<Self> {
        &shared.claims
    }

    fn call<'a, S: DedupStore>(store: &'a S, terms: &'a Terms, batch: &'a Batch<Ask>) -> Answer<'a, ClaimOutcome> {
        store.claim(terms, batch)
    }
}

impl Op for Settles {
    type Group = ();
    type Item = Settle;
    type Outcome = SettleOutcome;

    const NAME: &'static str = "settle";

    fn lane<S>(shared: &Shared<S>) -> &Lane<Self> {
        &shared.settles
    }

    fn call<'a, S: DedupStore>(store: &'a S, (): &'a (), batch: &'a Batch<Settle>) -> Answer<'a, SettleOutcome> {
        store.settle(batch)
    }
}

impl Op for Extends {
    type Group = ();
    type Item = Extend;
    type Outcome = ExtendOutcome;

    const NAME: &'static str = "extend";

    fn lane<S>(shared: &Shared<S>) -> &Lane<Self> {
        &shared.extends
    }

    fn call<'a, S: DedupStore>(store: &'a S, (): &'a (), batch: &'a Batch<Extend>) -> Answer<'a, ExtendOutcome> {
        store.extend(batch)
    }
}

impl Op for Gets {
    type Group = ();
    type Item = Key;
    type Outcome = Option<Record>;

    const NAME: &'static str = "get";

    fn lane<S>(shared: &Shared<S>) -> &Lane<Self> {
        &shared.gets
    }

    fn call<'a, S: DedupStore>(store: &'a S, (): &'a (), batch: &'a Batch<Key>) -> Answer<'a, Option<Record>> {
        store.get(batch)
    }
}
