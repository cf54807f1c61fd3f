//! Each store against a bare loop: claims, claims and settles, duplicates.

use std::sync::Arc;
use std::time::Instant;

use hapax::record::SettleOutcome;
use hapax::store::{Ask, Batch, DedupStore, Prechecked};

use crate::bare::Bare;
use crate::data::{BATCH, acquired, duplicates, expect, fresh, rows, settles, terms};
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::kinds::Kind;

pub async fn measure(figures: &mut Figures, kind: &Kind) -> Result<(), Failure> {
    let batches = figures.args.number("batches");
    let name = kind.name();
    let sqlite = matches!(kind, Kind::Sqlite);
    // Redis has one bar for the two together.
    let claim = if matches!(kind, Kind::Redis(_)) { Bar::None } else { Bar::Ratio(if sqlite { 0.65 } else { 0.8 }) };
    figures.measure(&format!("{name}_claim"), claim, async |side| self::claim(kind, side, batches).await).await?;
    let both = Bar::Ratio(if sqlite { 0.6 } else { 0.8 });
    figures
        .measure(&format!("{name}_claim_settle"), both, async |side| claim_settle(kind, side, batches).await)
        .await?;
    let known = Bar::Ratio(if sqlite { 0.4 } else { 0.85 });
    figures.measure(&format!("{name}_duplicates"), known, async |side| known_all(kind, side, batches).await).await
}

/// The first batch of a connection prepares its statements; that is not what is measured.
async fn warm_ours(store: &dyn DedupStore) -> Result<(), Failure> {
    fill(store, &fresh(1)).await
}

async fn warm_bare(bare: &mut dyn Bare) -> Result<(), Failure> {
    for rows in rows(&fresh(1)) {
        bare.insert(&rows).await?;
        bare.update(&rows).await?;
    }
    Ok(())
}

/// Claims and settles, so that all is succeeded.
pub async fn fill(store: &dyn DedupStore, batches: &[Batch<Ask>]) -> Result<(), Failure> {
    for batch in batches {
        let outcomes = store.claim(&terms(1), batch).await?;
        let settled = store.settle(&settles(batch, &outcomes)?).await?;
        expect("settled", settled.iter().filter(|outcome| **outcome == SettleOutcome::Settled).count(), batch.len())?;
    }
    Ok(())
}

async fn claim(kind: &Kind, side: Side, count: usize) -> Result<Run, Failure> {
    let batches = fresh(count);
    let took = match side {
        Side::Ours => {
            let opened = kind.ours().await?;
            let store = &opened.side;
            warm_ours(store).await?;
            let terms = terms(2);
            let started = Instant::now();
            for batch in &batches {
                let outcomes = store.claim(&terms, batch).await?;
                expect("claims", acquired(&outcomes), batch.len())?;
            }
            let took = started.elapsed();
            opened.close().await?;
            took
        }
        Side::Bare => {
            let rows = rows(&batches);
            let mut opened = kind.bare().await?;
            warm_bare(opened.side.as_mut()).await?;
            let started = Instant::now();
            for rows in &rows {
                expect("inserted", opened.side.insert(rows).await?, rows.len())?;
            }
            let took = started.elapsed();
            opened.close().await?;
            took
        }
    };
    Ok(Run { messages: count * BATCH, took })
}

async fn claim_settle(kind: &Kind, side: Side, count: usize) -> Result<Run, Failure> {
    let batches = fresh(count);
    let took = match side {
        Side::Ours => {
            let opened = kind.ours().await?;
            warm_ours(&opened.side).await?;
            let started = Instant::now();
            fill(&opened.side, &batches).await?;
            let took = started.elapsed();
            opened.close().await?;
            took
        }
        Side::Bare => {
            let rows = rows(&batches);
            let mut opened = kind.bare().await?;
            warm_bare(opened.side.as_mut()).await?;
            let started = Instant::now();
            for rows in &rows {
                expect("inserted", opened.side.insert(rows).await?, rows.len())?;
                expect("updated", opened.side.update(rows).await?, rows.len())?;
            }
            let took = started.elapsed();
            opened.close().await?;
            took
        }
    };
    Ok(Run { messages: count * BATCH, took })
}

async fn known_all(kind: &Kind, side: Side, count: usize) -> Result<Run, Failure> {
    let batches = fresh(count);
    let took = match side {
        Side::Ours => {
            let opened = kind.ours().await?;
            let store = Prechecked::new(Arc::clone(&opened.side))?;
            fill(&store, &batches).await?;
            // Another consumer meets them all again; its first batch prepares the statement.
            let terms = terms(2);
            store.claim(&terms, &batches[0]).await?;
            let started = Instant::now();
            for batch in &batches {
                let outcomes = store.claim(&terms, batch).await?;
                expect("duplicates", duplicates(&outcomes), batch.len())?;
            }
            let took = started.elapsed();
            drop(store);
            opened.close().await?;
            took
        }
        Side::Bare => {
            let rows = rows(&batches);
            let mut opened = kind.bare().await?;
            for rows in &rows {
                opened.side.insert(rows).await?;
            }
            let started = Instant::now();
            for rows in &rows {
                expect("inserted", opened.side.insert(rows).await?, 0)?;
            }
            let took = started.elapsed();
            opened.close().await?;
            took
        }
    };
    Ok(Run { messages: count * BATCH, took })
}
