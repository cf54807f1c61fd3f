//! A known duplicate, answered by the cache, against a bare look into the same kind of cache.

use std::hint::black_box;
use std::time::Instant;

use hapax::identity::Key;
use hapax::store::{Cached, DedupStore, MemoryStore};

use crate::data::{BATCH, duplicates, expect, fresh, terms};
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::stores::fill;

const BATCHES: usize = 64;
const PASSES: usize = 20;

pub async fn duplicate(figures: &mut Figures) -> Result<(), Failure> {
    figures.measure("cached_duplicate_ns", Bar::Nanos(200.0), async |side| run(side).await).await
}

async fn run(side: Side) -> Result<Run, Failure> {
    let batches = fresh(BATCHES);
    let messages = BATCHES * BATCH * PASSES;
    let took = match side {
        Side::Ours => {
            let store = Cached::new(MemoryStore::new());
            fill(&store, &batches).await?;
            let terms = terms(2);
            // The first pass lets the cache look at the store's clock.
            for batch in &batches {
                store.claim(&terms, batch).await?;
            }
            let before = store.stats().hits;
            let started = Instant::now();
            for _ in 0..PASSES {
                for batch in &batches {
                    let outcomes = store.claim(&terms, batch).await?;
                    expect("duplicates", duplicates(&outcomes), batch.len())?;
                }
            }
            let took = started.elapsed();
            expect("hits", (store.stats().hits - before) as usize, messages)?;
            took
        }
        Side::Bare => {
            let cache = quick_cache::sync::Cache::<Key, u64>::new(100_000);
            for key in batches.iter().flat_map(|batch| batch.keys()) {
                cache.insert(key, 1);
            }
            let started = Instant::now();
            let mut found = 0;
            for _ in 0..PASSES {
                for batch in &batches {
                    found += batch.keys().filter_map(|key| cache.get(&black_box(key))).sum::<u64>();
                }
            }
            let took = started.elapsed();
            expect("hits", found as usize, messages)?;
            took
        }
    };
    Ok(Run { messages, took })
}
