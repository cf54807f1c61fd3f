//! Records in the process's own memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;

use super::{Ask, Batch, DedupStore, Description, Keyed, Purged, Report, Retention, StoreError};
use crate::identity::Key;
use crate::level::Level;
use crate::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Millis, Record, RequeueOutcome, Settle, SettleOutcome, Step, Terms,
};

const SHARDS: usize = 16;
const NAME: &str = "memory";

type Shard = HashMap<Key, Record, foldhash::fast::RandomState>;

/// Keeps records in this process: level L0, and everything is forgotten when it ends.
///
/// For tests, for at-least-once consumers that only want to drop what repeats within one run, and as the
/// plainest example of a store. Clones share their records. It grows until [`purge`](DedupStore::purge) is called.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    retention: Retention,
}

struct Shared {
    shards: [Mutex<Shard>; SHARDS],
    born: Instant,
}

impl MemoryStore {
    /// An empty store with the default [`Retention`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_retention(Retention::default())
    }

    /// An empty store that [`purge`](DedupStore::purge) empties by this retention.
    #[must_use]
    pub fn with_retention(retention: Retention) -> Self {
        let shared = Shared { shards: Default::default(), born: Instant::now() };
        Self { shared: Arc::new(shared), retention }
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.shards.iter().map(|shard| open(shard).len()).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn now(&self) -> Millis {
        record::millis(self.shared.born.elapsed())
    }

    /// The key is a digest: any of its bytes spreads well. By the first one, a batch in ascending order opens each shard once.
    fn place(key: &Key) -> usize {
        usize::from(key.as_bytes()[0]) * SHARDS / 256
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        open(&self.shared.shards[Self::place(key)])
    }

    fn move_each<T: Keyed, O>(
        &self,
        batch: &Batch<T>,
        mut decide: impl FnMut(Option<&Record>, &T, Millis) -> Step<O>,
    ) -> Vec<O> {
        let now = self.now();
        let mut outcomes = Vec::with_capacity(batch.len());
        for run in batch.items().chunk_by(|a, b| Self::place(&a.key()) == Self::place(&b.key())) {
            let Some(first) = run.first() else { continue };
            let mut shard = self.shard(&first.key());
            for item in run {
                let step = match shard.entry(item.key()) {
                    Entry::Occupied(mut stands) => {
                        let step = decide(Some(stands.get()), item, now);
                        if let Some(record) = step.write {
                            stands.insert(record);
                        }
                        step.outcome
                    }
                    Entry::Vacant(free) => {
                        let step = decide(None, item, now);
                        if let Some(record) = step.write {
                            free.insert(record);
                        }
                        step.outcome
                    }
                };
                outcomes.push(step);
            }
        }
        outcomes
    }
}

/// A panic while a shard was open leaves it whole: every write is a single insert.
fn open(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("retention", &self.retention).finish_non_exhaustive()
    }
}

#[async_trait]
impl DedupStore for MemoryStore {
    fn describe(&self) -> Description {
        Description::new(NAME, Level::L0)
    }

    fn retention(&self) -> Retention {
        self.retention
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        Ok(self.move_each(asks, |record, ask, now| record::claim(record, &ask.sighting, terms, now)))
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        Ok(self.move_each(settles, record::settle))
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        Ok(self.move_each(claims, record::extend))
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        Ok(keys.keys().map(|key| self.shard(&key).get(&key).cloned()).collect())
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        Ok(self.move_each(keys, |record, _, now| record::requeue(record, now)))
    }

    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        let now = self.now();
        let mut removed = 0;
        for shard in &self.shared.shards {
            let mut shard = open(shard);
            let old: Vec<Key> = shard
                .iter()
                .filter(|(_, record)| record::after(record.state.time(), self.retention.of(record.state)) <= now)
                .map(|(key, _)| *key)
                .take(limit - removed)
                .collect();
            removed += old.len();
            for key in old {
                shard.remove(&key);
            }
        }
        Ok(Purged::new(removed, removed == limit && limit > 0))
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn check(&self) -> Result<Report, StoreError> {
        let mut report = Report::new();
        report.warning(
            "memory",
            "records live in this process only: a restart or another member handles everything again (L0).",
            "Use SqliteStore, PostgresStore, MysqlStore or RedisStore where that matters.",
        );
        Ok(report)
    }
}
