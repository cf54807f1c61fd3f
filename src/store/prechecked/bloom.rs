//! A Bloom filter that forgets by rotating two generations.

use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bloomfilter::Bloom;

use super::Precheck;
use crate::identity::Key;
use crate::store::StoreError;

const SHARDS: usize = 16;

/// Two Bloom filters, of which the older is emptied when the younger is full.
///
/// It remembers the last `capacity` keys for certain, and up to twice as many. Its hash seeds are random, so that nobody
/// can prepare keys that it takes for known.
///
/// About 10 bits for each key and generation at a rate of 1 %, 14 at 0.1 %: with the defaults, 3.6 MB in all.
pub struct BloomFilter {
    shards: [Mutex<Generations>; SHARDS],
    /// Keys that each shard's younger filter takes.
    shard_capacity: usize,
}

struct Generations {
    young: Filter,
    old: Filter,
    rotations: u64,
}

struct Filter {
    bloom: Bloom<Key>,
    keys: usize,
}

/// How full a [`BloomFilter`] is.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct FilterStats {
    /// Keys that the younger generation takes.
    pub capacity: usize,
    /// Keys in the younger generation.
    pub young: usize,
    /// Keys in the older generation.
    pub old: usize,
    /// How often the older generation was emptied; each of the 16 shards does so by itself.
    pub rotations: u64,
    /// Rate at which it says "maybe seen" of a key it was never told, as both generations stand now, from 0 to 1.
    pub false_positive_rate: f64,
    /// Bytes that it takes.
    pub bytes: usize,
}

impl FilterStats {
    /// How full the younger generation is, from 0 to 1.
    #[must_use]
    pub fn saturation(&self) -> f64 {
        if self.capacity == 0 { 0.0 } else { self.young as f64 / self.capacity as f64 }
    }
}

impl BloomFilter {
    /// Keys by default: one million.
    pub const CAPACITY: usize = 1_000_000;
    /// Rate of false positives by default: 0.1 %.
    pub const FALSE_POSITIVE_RATE: f64 = 0.001;

    /// An empty filter for `capacity` keys in a generation, that takes at most `false_positive_rate` of unknown keys
    /// for known in each generation. The rate is kept within 1e-9 and 0.5, the capacity at 1,024 or more.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Unavailable`](crate::store::StoreErrorKind::Unavailable) where the system gives no random numbers.
    pub fn new(capacity: usize, false_positive_rate: f64) -> Result<Self, StoreError> {
        let rate = if false_positive_rate.is_nan() { Self::FALSE_POSITIVE_RATE } else { false_positive_rate };
        let rate = rate.clamp(1e-9, 0.5);
        let shard_capacity = capacity.max(1024).div_ceil(SHARDS);
        let mut shards = Vec::with_capacity(SHARDS);
        for _ in 0..SHARDS {
            let young = Filter::new(shard_capacity, rate)?;
            let old = Filter::new(shard_capacity, rate)?;
            shards.push(Mutex::new(Generations { young, old, rotations: 0 }));
        }
        let shards = shards.try_into().map_err(|_| refused("it has another number of shards than it was made for"))?;
        Ok(Self { shards, shard_capacity })
    }

    /// Forgets every key. Nothing depends on it; until it has learned again, duplicates are inserted first.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = open(shard);
            shard.young.clear();
            shard.old.clear();
        }
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> FilterStats {
        let mut stats = FilterStats { capacity: self.shard_capacity * SHARDS, ..FilterStats::default() };
        for shard in &self.shards {
            let shard = open(shard);
            stats.young += shard.young.keys;
            stats.old += shard.old.keys;
            stats.rotations += shard.rotations;
            let (young, old) = (shard.young.false_positive_rate(), shard.old.false_positive_rate());
            stats.false_positive_rate += (young + old - young * old) / SHARDS as f64;
            stats.bytes += shard.young.bloom.as_slice().len() + shard.old.bloom.as_slice().len();
        }
        stats
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Generations> {
        // The key is a digest: any of its bytes spreads well.
        open(&self.shards[usize::from(key.as_bytes()[15]) % SHARDS])
    }
}

impl Precheck for BloomFilter {
    fn maybe_seen(&self, key: &Key) -> bool {
        let shard = self.shard(key);
        shard.young.bloom.check(key) || (shard.old.keys > 0 && shard.old.bloom.check(key))
    }

    fn learn(&self, key: &Key) {
        let mut shard = self.shard(key);
        if shard.young.bloom.check_and_set(key) {
            return;
        }
        shard.young.keys += 1;
        if shard.young.keys >= self.shard_capacity {
            let Generations { young, old, rotations } = &mut *shard;
            mem::swap(young, old);
            young.clear();
            *rotations += 1;
        }
    }
}

impl Filter {
    fn new(capacity: usize, rate: f64) -> Result<Self, StoreError> {
        let bloom = Bloom::new_for_fp_rate(capacity, rate).map_err(refused)?;
        Ok(Self { bloom, keys: 0 })
    }

    fn clear(&mut self) {
        if self.keys > 0 {
            self.bloom.clear();
            self.keys = 0;
        }
    }

    fn false_positive_rate(&self) -> f64 {
        let hashes = f64::from(self.bloom.number_of_hash_functions());
        let fill = 1.0 - (-hashes * self.keys as f64 / self.bloom.len() as f64).exp();
        fill.powf(hashes)
    }
}

fn refused(reason: &str) -> StoreError {
    StoreError::unavailable("prechecked", "make a Bloom filter", reason)
}

/// Setting bits is never half done in a way that matters: a lost bit is a key that is inserted first.
fn open(shard: &Mutex<Generations>) -> MutexGuard<'_, Generations> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for BloomFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BloomFilter").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
