//! A backlog that is worked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hapax::Inbox;
use hapax::identity::header;
use hapax::inbox::{Message, Order};
use hapax::message::Parts;
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use crate::data::{BATCH, expect};
use crate::database::Place;
use crate::figures::{Bar, Failure, Figures, Run, Side};
use crate::hand::Hand;
use crate::{PAYLOAD, uuid};

/// How our backlog is worked.
#[derive(Clone, Copy, Debug)]
struct Way {
    order: Order,
    workers: usize,
    /// Succeeded messages that are there.
    grown: usize,
}

const PLAIN: Way = Way { order: Order::Unordered, workers: 1, grown: 0 };

pub async fn measure<B: Hand>(figures: &mut Figures) -> Result<(), Failure> {
    let (messages, grown) = (figures.args.number("messages"), figures.args.number("grown"));
    let embedded = B::WORD == "sqlite";
    let least = if embedded { 0.6 } else { 0.8 };
    let hand = async |side, messages, most| match side {
        Side::Ours => ours::<B>(messages, PLAIN).await,
        // One by one is slow: a part of them tells.
        Side::Bare if most == 1 => by_hand::<B>(messages / 20, most).await,
        Side::Bare => by_hand::<B>(messages, most).await,
    };
    let name = |what: &str| format!("{}_{what}", B::WORD);
    figures.measure(&name("work"), Bar::Ratio(least), async |side| hand(side, messages, BATCH).await).await?;
    let bar = if embedded { Bar::None } else { Bar::Ratio(10.0) };
    figures.measure(&name("work_hand_written"), bar, async |side| hand(side, messages, 1).await).await?;
    let ways = [
        ("by_key", Way { order: Order::Key, ..PLAIN }, Bar::None),
        ("workers_8", Way { workers: 8, ..PLAIN }, Bar::None),
        ("grown", Way { grown, ..PLAIN }, Bar::Ratio(0.7)),
    ];
    for (what, way, bar) in ways {
        let side = async |side| ours::<B>(messages, if side == Side::Ours { way } else { PLAIN }).await;
        figures.measure(&name(what), bar, side).await?;
    }
    Ok(())
}

/// Works a backlog by the inbox, from the start of its workers until they have stopped.
async fn ours<B: Hand>(messages: usize, way: Way) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let inbox =
        Inbox::builder(place.pool.clone()).scope("bench", "work").identify(header("message-id")).build().await?;
    if way.grown > 0 {
        B::script(&mut *place.pool.acquire().await?, B::grown(way.grown)).await?;
    }
    let payload = vec![7_u8; PAYLOAD];
    for first in (0..messages).step_by(BATCH) {
        let batch: Vec<Parts> = (first..messages.min(first + BATCH))
            .map(|n| {
                Parts::new("orders")
                    .at(0, n as i64)
                    .key(format!("key {}", n % 1000))
                    .payload(payload.clone())
                    .header("message-id", uuid(n))
            })
            .collect();
        let accepted = inbox.accept_batch(&batch).await;
        expect("accepted messages", accepted.outcomes.iter().filter(|one| one.is_ok()).count(), batch.len())?;
    }
    let left = Arc::new(AtomicUsize::new(messages));
    let shutdown = CancellationToken::new();
    let started = Instant::now();
    let workers = (0..way.workers).map(|_| {
        let (left, shutdown) = (Arc::clone(&left), shutdown.clone());
        let over = shutdown.clone();
        let handler = async move |batch: &[Message], _: &mut B::Connection| {
            if left.fetch_sub(batch.len(), Ordering::Relaxed) == batch.len() {
                over.cancel();
            }
            Ok::<_, String>(())
        };
        inbox.worker().order(way.order).batch_size(BATCH).concurrency(1).run_batch(handler, shutdown)
    });
    let summaries = futures_util::future::try_join_all(workers).await?;
    let took = started.elapsed();
    let succeeded: u64 = summaries.iter().map(|summary| summary.succeeded).sum();
    expect("messages that succeeded", usize::try_from(succeeded)?, messages)?;
    expect("messages left", place.number("SELECT COUNT(*) FROM hapax_inbox_open").await?, 0)?;
    drop(inbox);
    place.close().await?;
    Ok(Run { messages, took })
}

/// Works a backlog by hand.
async fn by_hand<B: Hand>(messages: usize, most: usize) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    B::script(&mut *place.pool.acquire().await?, B::filled(messages)).await?;
    let started = Instant::now();
    loop {
        let mut conn = place.pool.acquire().await?;
        let mut tx = conn.begin().await?;
        let pulled = B::pull(&mut tx, most).await?;
        if pulled.is_empty() {
            break;
        }
        let ids: Vec<i64> = pulled.iter().map(|message| message.0).collect();
        expect("messages marked", usize::try_from(B::mark(&mut tx, &ids).await?)?, ids.len())?;
        tx.commit().await?;
    }
    let took = started.elapsed();
    expect("messages left", place.number("SELECT COUNT(*) FROM queue WHERE state = 0").await?, 0)?;
    place.close().await?;
    Ok(Run { messages, took })
}
