//! Known duplicates, answered in process.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use tokio::time::Instant;

use super::{Ask, Batch, DedupStore, Keyed, StoreError, forward};
use crate::identity::{Fingerprint, Key};
use crate::record::{self, ClaimOutcome, Fence, Millis, Origin, Seen, Settle, SettleOutcome, Terms, Verdict};

/// What an entry takes beside its kept result, in bytes: key, fields, and the cache's own bookkeeping.
const ENTRY_BYTES: u64 = 192;

/// Topics that are kept once for all entries. More than these are kept with each entry.
const MAX_TOPICS: usize = 1024;

/// After this long, the store's clock is looked at again.
const CLOCK_STALE: Millis = 60_000;

/// Answers known duplicates without asking the store.
///
/// It keeps messages that the *store* said are succeeded: by answering a claim with
/// [`ClaimOutcome::Duplicate`], or by confirming a success reported through this layer ([`SettleOutcome::Settled`] of a first
/// attempt). Nothing else is ever kept: no claim, failure, dead record or late success. Succeeded is final, so
/// the answer stays true. A claim with another fingerprint always goes to the store, which answers
/// [`ClaimOutcome::Conflict`].
///
/// Outcomes and guarantee level are the store's own. Errors are the store's; what the cache answers cannot fail. In a
/// batch, only what the cache does not know goes to the store; a batch that it knows whole costs no store call.
///
/// # When the store forgets
///
/// A store may be flushed, restored from a backup, or purged. The cache then answers "duplicate" for what it still
/// knows, at most for [`CacheLimits::ttl`], which never exceeds the store's [`Retention::succeeded`](super::Retention::succeeded). Call
/// [`clear`](Self::clear) after such an operation, and when partitions are revoked if other members could have
/// changed the store. `get`, `requeue` and `purge` always go to the store.
///
/// # What a duplicate is told
///
/// [`Seen::origin`](crate::record::Seen::origin) and the kept result are those of the message handled. For a success reported through
/// this layer, [`Seen::at`](crate::record::Seen::at) is reckoned from this process's monotonic clock and the
/// store's clock, looked at about once a minute by letting one duplicate through: it may be off by the length of a store call.
///
/// # Cost
///
/// Below 200 ns for a duplicate in a batch of 512 (`cached_duplicate_ns` in `benches/ratios`), where a store takes
/// microseconds; about as much for a message that is not in it, and twice that for one that is put in.
///
/// # Cancel safety
///
/// As for the store. A dropped future puts nothing in.
pub struct Cached<S> {
    store: S,
    cache: Cache<Key, Entry, Weigh, foldhash::quality::RandomState, DefaultLifecycle<Key, Entry>>,
    topics: Mutex<HashSet<Arc<str>>>,
    clock: Mutex<Clock>,
    ttl: Millis,
    born: Instant,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What [`Cached`] may hold, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheLimits {
    /// Messages. Default: 100,000.
    pub entries: usize,
    /// Bytes, kept results included; about 192 for a message without a result. Default: 64 MiB.
    ///
    /// The cache is split into shards, and a result that is larger than a shard is not kept.
    pub bytes: usize,
    /// How long an entry is used. Never longer than the store's [`Retention::succeeded`](super::Retention::succeeded). Default: 10 minutes.
    pub ttl: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { entries: 100_000, bytes: 64 * 1024 * 1024, ttl: Duration::from_secs(600) }
    }
}

impl CacheLimits {
    /// Sets how many messages are kept; 0 keeps none. Default: 100,000.
    #[must_use]
    pub const fn entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// Sets how many bytes are kept, results included. Default: 64 MiB.
    #[must_use]
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets how long an entry is used. Default: 10 minutes.
    #[must_use]
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// How a [`Cached`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CacheStats {
    /// Messages in it, those past their time included.
    pub entries: usize,
    /// Claims it answered.
    pub hits: u64,
    /// Claims it passed on to the store.
    pub misses: u64,
}

/// One succeeded message.
#[derive(Clone)]
struct Entry {
    fingerprint: Fingerprint,
    origin: Origin,
    at: When,
    /// When it is no longer used, on the local clock.
    expires: Millis,
    result: Option<Bytes>,
}

/// When a message became succeeded.
#[derive(Clone, Copy)]
enum When {
    /// On the store's clock, as the store said.
    Store(Millis),
    /// On the local clock.
    Local(Millis),
}

/// What must be added to local time to get the store's.
#[derive(Default)]
struct Clock {
    offset: Option<Millis>,
    /// Local time of the last look.
    looked: Millis,
}

/// An entry weighs its bytes, or its share of all if that is more: so the one weight bounds both bytes and entries.
#[derive(Clone)]
struct Weigh {
    least: u64,
}

impl Weighter<Key, Entry> for Weigh {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        let result = entry.result.as_ref().map_or(0, |result| result.len() as u64);
        ENTRY_BYTES.saturating_add(result).max(self.least)
    }
}

/// Why an ask goes to the store.
enum Miss {
    Unknown,
    /// Known, and let through to learn the store's clock: it was confirmed at this local time.
    Probe(Millis),
    /// Known with another fingerprint: the store's to say.
    Other,
}

/// A batch, looked up.
struct Looked {
    /// The answers that the cache knows, in the order of the batch.
    hits: Vec<ClaimOutcome>,
    /// The others, by their place in the batch, in order.
    misses: Vec<(usize, Miss)>,
}

impl<S: DedupStore> Cached<S> {
    /// Keeps what `store` confirms, with the default [`CacheLimits`].
    #[must_use]
    pub fn new(store: S) -> Self {
        Self::with_limits(store, CacheLimits::default())
    }

    /// Keeps what `store` confirms.
    #[must_use]
    pub fn with_limits(store: S, limits: CacheLimits) -> Self {
        let (entries, bytes) = (limits.entries.max(1), limits.bytes as u64);
        let least = bytes.div_ceil(entries as u64);
        let holds = usize::try_from(bytes / least.max(ENTRY_BYTES)).unwrap_or(entries).clamp(1, entries);
        let ttl = limits.ttl.min(store.retention().succeeded);
        Self {
            cache: Cache::with(holds, bytes, Weigh { least }, Default::default(), Default::default()),
            store,
            topics: Mutex::default(),
            clock: Mutex::default(),
            ttl: if limits.entries == 0 || limits.bytes == 0 { 0 } else { record::millis(ttl) },
            born: Instant::now(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Forgets everything. Call it when the store was flushed or restored, and on revoke.
    pub fn clear(&self) {
        self.cache.clear();
        open(&self.topics).clear();
    }

    /// How it is doing.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            entries: self.cache.len(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    /// Time on the local monotonic clock.
    fn now(&self) -> Millis {
        record::millis(self.born.elapsed())
    }

    /// Looks a batch up.
    fn look(&self, asks: &Batch<Ask>, now: Millis) -> Looked {
        let (offset, mut stale) = {
            let clock = open(&self.clock);
            (clock.offset, now.saturating_sub(clock.looked) >= CLOCK_STALE)
        };
        let mut looked = Looked { hits: Vec::with_capacity(asks.len()), misses: Vec::new() };
        for (place, ask) in asks.items().iter().enumerate() {
            let key = ask.key();
            let miss = match self.cache.get(&key) {
                None => Miss::Unknown,
                Some(entry) if now >= entry.expires => {
                    self.cache.remove(&key);
                    Miss::Unknown
                }
                Some(entry) if entry.fingerprint != ask.sighting.fingerprint => Miss::Other,
                Some(entry) => {
                    let at = match (entry.at, offset) {
                        (When::Store(at), _) => Ok(at),
                        (When::Local(at), Some(offset)) if !stale => Ok(at.saturating_add(offset)),
                        (When::Local(at), _) => Err(at),
                    };
                    match at {
                        Ok(at) => {
                            let first = Seen { origin: entry.origin, at };
                            looked.hits.push(ClaimOutcome::Duplicate { result: entry.result, first });
                            continue;
                        }
                        Err(at) => {
                            // One probe is enough, unless nothing is known yet.
                            stale = offset.is_none();
                            Miss::Probe(at)
                        }
                    }
                }
            };
            looked.misses.push((place, miss));
        }
        looked
    }

    /// Keeps what the store said of an ask.
    fn learn(&self, ask: &Ask, miss: &Miss, outcome: &ClaimOutcome, now: Millis) {
        match (outcome, miss) {
            (ClaimOutcome::Duplicate { result, first }, miss) => {
                if let Miss::Probe(local) = miss {
                    *open(&self.clock) = Clock { offset: Some(first.at.saturating_sub(*local)), looked: now };
                }
                let at = When::Store(first.at);
                self.keep(ask.key(), ask.sighting.fingerprint, &first.origin, at, result.as_ref(), now);
            }
            (ClaimOutcome::Conflict { .. }, Miss::Other) | (_, Miss::Unknown) => {}
            // The store has forgotten it.
            (_, Miss::Probe(_) | Miss::Other) => drop(self.cache.remove(&ask.key())),
        }
    }

    fn keep(&self, key: Key, fingerprint: Fingerprint, origin: &Origin, at: When, result: Option<&Bytes>, now: Millis) {
        if self.ttl == 0 {
            return;
        }
        let origin = Origin { topic: self.topic(&origin.topic), ..*origin };
        // Copied: a slice would keep the whole buffer it was read into.
        let result = result.map(|result| Bytes::copy_from_slice(result));
        let expires = now.saturating_add(self.ttl);
        self.cache.insert(key, Entry { fingerprint, origin, at, expires, result });
    }

    /// One copy of each topic for all entries.
    fn topic(&self, topic: &Arc<str>) -> Arc<str> {
        let mut topics = open(&self.topics);
        if let Some(known) = topics.get(topic) {
            return Arc::clone(known);
        }
        if topics.len() < MAX_TOPICS {
            topics.insert(Arc::clone(topic));
        }
        Arc::clone(topic)
    }

    fn count(&self, hits: usize, misses: usize) {
        self.hits.fetch_add(hits as u64, Ordering::Relaxed);
        self.misses.fetch_add(misses as u64, Ordering::Relaxed);
    }
}

/// The part of a batch that the store is asked for.
fn missed(asks: &Batch<Ask>, misses: &[(usize, Miss)]) -> Batch<Ask> {
    let mut places = 0..asks.len();
    let mut misses = misses.iter().map(|(place, _)| *place).peekable();
    asks.filter(|_| places.next().is_some_and(|place| misses.next_if_eq(&place).is_some()))
}

/// What is locked is whole after a panic too: every change is a single assignment.
fn open<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: fmt::Debug> fmt::Debug for Cached<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached")
            .field("store", &self.store)
            .field("entries", &self.cache.len())
            .field("ttl_ms", &self.ttl)
            .finish_non_exhaustive()
    }
}

impl<S: DedupStore> Cached<S> {
    async fn claim_the_rest(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        // Taken before the store is asked, so that an entry's time is over no later than counted from the store's answer.
        let now = self.now();
        let Looked { hits, misses } = self.look(asks, now);
        self.count(hits.len(), misses.len());
        if misses.is_empty() {
            return Ok(hits);
        }
        let answers = if hits.is_empty() {
            self.store.claim(terms, asks).await?
        } else {
            let rest = missed(asks, &misses);
            self.store.claim(terms, &rest).await?
        };
        if answers.len() != misses.len() {
            let message = format!("it answered {} of {} items", answers.len(), misses.len());
            return Err(StoreError::corrupt(self.describe().store, "claim", message));
        }
        let mut outcomes = Vec::with_capacity(asks.len());
        let mut hits = hits.into_iter();
        for ((place, miss), answer) in misses.into_iter().zip(answers) {
            outcomes.extend(hits.by_ref().take(place - outcomes.len()));
            self.learn(&asks.items()[place], &miss, &answer, now);
            outcomes.push(answer);
        }
        outcomes.extend(hits);
        Ok(outcomes)
    }

    async fn settle_and_keep(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        let before = self.now();
        let outcomes = self.store.settle(settles).await?;
        let during = before + (self.now() - before) / 2;
        for (settle, outcome) in settles.items().iter().zip(&outcomes) {
            // Only a first attempt made the record, so only then is its origin that of the message at hand.
            let first = settle.token.fence == Fence::FIRST && settle.attempt == 1;
            if let (Verdict::Succeeded { result }, SettleOutcome::Settled, true) = (&settle.verdict, outcome, first) {
                let Settle { sighting, .. } = settle;
                // Reported again: the store keeps what it was told first.
                if self.cache.peek(&sighting.key).is_some_and(|entry| before < entry.expires) {
                    continue;
                }
                let at = When::Local(during);
                self.keep(sighting.key, sighting.fingerprint, &sighting.origin, at, result.as_ref(), before);
            }
        }
        Ok(outcomes)
    }
}

forward! {
    [S: DedupStore] Cached<S>, |this| this.store,
    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.claim_the_rest(terms, asks).await
    }
    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        self.settle_and_keep(settles).await
    }
}
