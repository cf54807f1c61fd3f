//! Each store with the filter against itself without: at 1 %, 50 % and 99 % duplicates.

use std::sync::Arc;
use std::time::Instant;

use hapax::record::Sighting;
use hapax::store::{Ask, Batch, DedupStore, Prechecked};

use crate::data::{BATCH, acquired, batches, duplicates, expect, sightings, terms};
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::kinds::Kind;
use crate::stores::fill;

pub async fn measure(figures: &mut Figures, kind: &Kind) -> Result<(), Failure> {
    let count = figures.args.number("batches");
    for percent in [1, 50, 99] {
        let name = format!("{}_filter_{percent}", kind.name());
        figures.measure(&name, Bar::None, async |side| mixed(kind, side, count, percent).await).await?;
    }
    Ok(())
}

/// What a consumer handled before, and batches of which so much is of that.
fn mix(count: usize, percent: usize) -> (Vec<Batch<Ask>>, Vec<Batch<Ask>>, usize) {
    let known_each = (BATCH * percent).div_ceil(100);
    let old = sightings(count * known_each);
    let new = sightings(count * (BATCH - known_each));
    let mixed: Vec<Sighting> = (0..count)
        .flat_map(|batch| {
            let old = &old[batch * known_each..(batch + 1) * known_each];
            let new = &new[batch * (BATCH - known_each)..(batch + 1) * (BATCH - known_each)];
            old.iter().chain(new).cloned()
        })
        .collect();
    (batches(&old), batches(&mixed), known_each)
}

async fn mixed(kind: &Kind, side: Side, count: usize, percent: usize) -> Result<Run, Failure> {
    let (before, mixed, known_each) = mix(count, percent);
    let opened = kind.ours().await?;
    let store: Arc<dyn DedupStore> = match side {
        Side::Ours => Arc::new(Prechecked::new(Arc::clone(&opened.side))?),
        Side::Bare => Arc::clone(&opened.side),
    };
    fill(&store, &before).await?;
    // Prepares the statements of both ways: some known, some new.
    let warm = mix(1, 50);
    fill(&store, &warm.0).await?;
    let terms = terms(2);
    for batch in &warm.1 {
        store.claim(&terms, batch).await?;
    }
    let started = Instant::now();
    for batch in &mixed {
        let outcomes = store.claim(&terms, batch).await?;
        expect("duplicates", duplicates(&outcomes), known_each)?;
        expect("claims", acquired(&outcomes), BATCH - known_each)?;
    }
    let took = started.elapsed();
    drop(store);
    opened.close().await?;
    Ok(Run { messages: count * BATCH, took })
}
