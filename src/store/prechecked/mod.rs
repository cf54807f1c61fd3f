//! A filter that chooses, message by message, between reading first and inserting first.

mod bloom;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::bloom::{BloomFilter, FilterStats};
use super::{Ask, Batch, DedupStore, Keyed, StoreError, forward};
use crate::identity::Key;
use crate::record::{ClaimOutcome, Settle, SettleOutcome, Terms};

/// "Maybe seen" for at most one message in so many is taken for chance, and changes nothing.
const CHANCE: usize = 32;

/// Guesses which keys a store knows.
///
/// A guess may be wrong either way; it changes how fast a claim is, never what it comes to.
pub trait Precheck: Send + Sync + fmt::Debug {
    /// Whether the store may know the key.
    fn maybe_seen(&self, key: &Key) -> bool;

    /// Takes note of a key that the store knows.
    fn learn(&self, key: &Key);
}

impl<P: Precheck + ?Sized> Precheck for Arc<P> {
    fn maybe_seen(&self, key: &Key) -> bool {
        (**self).maybe_seen(key)
    }

    fn learn(&self, key: &Key) {
        (**self).learn(key);
    }
}

/// Reads what was probably seen before it inserts, and inserts the rest at once.
///
/// The filter decides nothing. Every claim goes to the store, which answers what it answers without a filter; only
/// [`Ask::read_first`] differs. A filter that always says yes, one that always says no, and one that is emptied or saturated give the same
/// outcomes. Guarantee level, errors and cancel safety are the store's own.
///
/// A key is learned once the store has answered a claim of it, so the filter never knows more than the store does,
/// unless the store forgot. After a restart it is empty, which means "not known", and fills again.
///
/// In a batch, "maybe seen" is acted upon only where it is more than one message in 32: fewer are what a filter
/// says by mistake, and reading those first would cost a batch of new messages a round trip.
///
/// # Where it pays, and where it costs
///
/// A claim inserts at once, and a store that refuses the insert must then read: for a duplicate, the insert was in vain. The filter saves
/// that insert. It has nothing to save for new messages, which must be inserted anyway.
pub struct Prechecked<S, F = BloomFilter> {
    store: S,
    filter: F,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    asked: AtomicU64,
    maybe_seen: AtomicU64,
    wrong: AtomicU64,
}

/// How well a [`Prechecked`]'s filter guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PrecheckStats {
    /// Claims that went through.
    pub asked: u64,
    /// Those of them of which the filter said "maybe seen".
    pub maybe_seen: u64,
    /// Those of them that the store had never seen all the same.
    pub wrong: u64,
}

impl<S: DedupStore> Prechecked<S> {
    /// Puts a Bloom filter with its default size before `store`.
    ///
    /// # Errors
    ///
    /// As for [`BloomFilter::new`].
    pub fn new(store: S) -> Result<Self, StoreError> {
        let filter = BloomFilter::new(BloomFilter::CAPACITY, BloomFilter::FALSE_POSITIVE_RATE)?;
        Ok(Self::with_filter(store, filter))
    }
}

impl<S: DedupStore, F: Precheck> Prechecked<S, F> {
    /// Puts a filter before `store`.
    #[must_use]
    pub fn with_filter(store: S, filter: F) -> Self {
        Self { store, filter, counts: Counts::default() }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The filter.
    #[must_use]
    pub fn filter(&self) -> &F {
        &self.filter
    }

    /// How well the filter guesses.
    #[must_use]
    pub fn stats(&self) -> PrecheckStats {
        PrecheckStats {
            asked: self.counts.asked.load(Ordering::Relaxed),
            maybe_seen: self.counts.maybe_seen.load(Ordering::Relaxed),
            wrong: self.counts.wrong.load(Ordering::Relaxed),
        }
    }

    /// Learns what the store answered for, but for what the filter knew.
    fn learn(&self, asks: &Batch<Ask>, seen: &[bool], outcomes: &[ClaimOutcome]) {
        let mut wrong = 0;
        for ((ask, seen), outcome) in asks.items().iter().zip(seen).zip(outcomes) {
            if !*seen {
                self.filter.learn(&ask.key());
            } else if matches!(outcome, ClaimOutcome::Acquired(grant) if grant.attempt == 1) {
                wrong += 1;
            }
        }
        self.counts.wrong.fetch_add(wrong, Ordering::Relaxed);
    }
}

impl<S: fmt::Debug, F: fmt::Debug> fmt::Debug for Prechecked<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prechecked").field("store", &self.store).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl<S: DedupStore, F: Precheck> Prechecked<S, F> {
    async fn claim_with_hints(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        let seen: Vec<bool> = asks.items().iter().map(|ask| self.filter.maybe_seen(&ask.key())).collect();
        let maybe = seen.iter().filter(|seen| **seen).count();
        self.counts.asked.fetch_add(asks.len() as u64, Ordering::Relaxed);
        self.counts.maybe_seen.fetch_add(maybe as u64, Ordering::Relaxed);
        let outcomes = if maybe * CHANCE <= asks.len() {
            self.store.claim(terms, asks).await?
        } else {
            let mut known = seen.iter();
            let hinted = asks.map(|ask| Ask {
                sighting: ask.sighting.clone(),
                read_first: known.next().is_some_and(|seen| *seen) || ask.read_first,
            });
            self.store.claim(terms, &hinted).await?
        };
        self.learn(asks, &seen, &outcomes);
        Ok(outcomes)
    }
}

forward! {
    [S: DedupStore, F: Precheck] Prechecked<S, F>, |this| this.store,
    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.claim_with_hints(terms, asks).await
    }
    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        self.store.settle(settles).await
    }
}
