//! 64 tasks with single calls, joined, against the same messages in batch calls.

use std::sync::Arc;
use std::time::Instant;

use hapax::store::{Ask, Batch, Batched};
use tokio::task::JoinSet;

use crate::data::{BATCH, acquired, expect, fresh, terms};
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::kinds::Kind;
use crate::stores::fill;

const TASKS: usize = 64;

pub async fn measure(figures: &mut Figures, kind: &Kind) -> Result<(), Failure> {
    let count = figures.args.number("batches");
    let name = format!("batched_64_{}", kind.name());
    figures.measure(&name, Bar::Ratio(0.5), async |side| joined(kind, side, count, BATCH).await).await?;
    // What is left of it when the batch calls are as small as the joined ones can be.
    let name = format!("batched_64_{}_to_batches_of_64", kind.name());
    figures.measure(&name, Bar::None, async |side| joined(kind, side, count, TASKS).await).await
}

async fn joined(kind: &Kind, side: Side, count: usize, size: usize) -> Result<Run, Failure> {
    let messages = count * BATCH;
    let asks: Vec<Ask> = fresh(count).iter().flat_map(|batch| batch.items().to_vec()).collect();
    let opened = kind.ours().await?;
    fill(&opened.side, &fresh(1)).await?;
    let took = match side {
        Side::Ours => {
            let store = Batched::new(Arc::clone(&opened.side));
            let share = messages / TASKS;
            let shares: Vec<Vec<Batch<Ask>>> =
                asks.chunks(share).map(|chunk| chunk.iter().cloned().map(Batch::one).collect()).collect();
            let mut tasks = JoinSet::new();
            let started = Instant::now();
            for share in shares {
                let store = store.clone();
                tasks.spawn(async move {
                    let terms = terms(2);
                    let mut done = 0;
                    for one in &share {
                        done += acquired(&hapax::store::DedupStore::claim(&store, &terms, one).await?);
                    }
                    Ok::<_, Failure>(done)
                });
            }
            let mut done = 0;
            while let Some(task) = tasks.join_next().await {
                done += task??;
            }
            let took = started.elapsed();
            expect("claims", done, messages)?;
            took
        }
        Side::Bare => {
            let batches: Vec<Batch<Ask>> = asks.chunks(size).map(|chunk| chunk.iter().cloned().collect()).collect();
            // Off the main thread, as the tasks are.
            let store = Arc::clone(&opened.side);
            let (took, done) = tokio::spawn(async move {
                let terms = terms(2);
                let started = Instant::now();
                let mut done = 0;
                for batch in &batches {
                    done += acquired(&store.claim(&terms, batch).await?);
                }
                Ok::<_, Failure>((started.elapsed(), done))
            })
            .await??;
            expect("claims", done, messages)?;
            took
        }
    };
    opened.close().await?;
    Ok(Run { messages, took })
}
