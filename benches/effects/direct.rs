//! Batches handed in by hand, without Kafka: the cost of the transaction's own bookkeeping.

use std::time::{Duration, Instant};

use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use hapax::{Once, Transactional};
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Pool};
use tokio::sync::Mutex;

use crate::batches::fresh;
use crate::data::{BATCH, expect};
use crate::database::{Base, Place, Row, rows};
use crate::figures::{Bar, Failure, Figures, Run, Side};

/// What is remembered of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Window,
    Records,
    Both,
}

/// What a loop by hand does for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// One insert of all effects.
    Effects,
    /// One of all ids, and one of all effects.
    Both,
    /// One insert for each effect; with a savepoint around each, or without.
    Each { savepoints: bool },
}

pub async fn measure<B: Base>(figures: &mut Figures) -> Result<(), Failure> {
    let messages = figures.args.number("messages");
    let bulk = [
        ("window", Kept::Window, Hand::Effects, 0.9),
        ("records", Kept::Records, Hand::Both, 0.85),
        ("window_records", Kept::Both, Hand::Both, 0.8),
    ];
    for (name, kept, hand, least) in bulk {
        let side = async |side| match side {
            Side::Ours => timed::<B>(messages, Way::Together(kept)).await,
            Side::Bare => timed::<B>(messages, Way::Hand(hand)).await,
        };
        figures.measure(&format!("{}_{name}", B::WORD), Bar::Ratio(least), side).await?;
    }
    let (messages, bare) = (messages / 4, Way::Hand(Hand::Each { savepoints: false }));
    let single = [
        ("each", Way::Each(Kept::Window)),
        ("each_records", Way::Each(Kept::Records)),
        ("savepoints", Way::Hand(Hand::Each { savepoints: true })),
    ];
    for (name, ours) in single {
        let side = async |side| timed::<B>(messages, if side == Side::Ours { ours } else { bare }).await;
        figures.measure(&format!("{}_{name}", B::WORD), Bar::None, side).await?;
    }
    Ok(())
}

/// How a batch is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By one call of a handler.
    Together(Kept),
    /// By a call for each message.
    Each(Kept),
    Hand(Hand),
}

/// What handles batches.
pub enum Worker<B: Base> {
    Ours {
        once: Transactional<B>,
        together: bool,
    },
    /// A loop keeps its connection.
    Bare {
        conn: Mutex<PoolConnection<B>>,
        hand: Hand,
    },
}

pub async fn transactional<B: Base>(pool: &Pool<B>, kept: Kept) -> Result<Transactional<B>, Failure> {
    async fn build<B: Base>(pool: &Pool<B>, identify: impl Identify + 'static) -> Result<Transactional<B>, Failure> {
        Ok(Once::transactional(pool.clone()).scope("bench", "effects").identify(identify).build().await?)
    }
    match kept {
        Kept::Window => build(pool, position()).await,
        Kept::Records => build(pool, header("message-id")).await,
        Kept::Both => build(pool, position().and_then(header("message-id"))).await,
    }
}

impl<B: Base> Worker<B> {
    pub async fn new(pool: &Pool<B>, way: Way) -> Result<Self, Failure> {
        Ok(match way {
            Way::Together(kept) => Self::Ours { once: transactional(pool, kept).await?, together: true },
            Way::Each(kept) => Self::Ours { once: transactional(pool, kept).await?, together: false },
            Way::Hand(hand) => Self::Bare { conn: Mutex::new(pool.acquire().await?), hand },
        })
    }

    pub async fn handle(&self, batch: &[Parts]) -> Result<(), Failure> {
        match self {
            Self::Ours { once, together: true } => {
                let handler =
                    async |new: &[&Parts], tx: &mut B::Connection| B::effects(tx, &rows(new.iter().copied())).await;
                handled(&once.handle_together(batch, handler).await.all_finished())
            }
            Self::Ours { once, together: false } => {
                let handler = async |message: &Parts, tx: &mut B::Connection| B::effect(tx, Row::of(message)).await;
                handled(&once.handle_batch(batch, handler).await.all_finished())
            }
            Self::Bare { conn, hand } => Ok(by_hand::<B>(&mut *conn.lock().await, *hand, batch).await?),
        }
    }
}

fn handled(all: &bool) -> Result<(), Failure> {
    if *all { Ok(()) } else { Err("a message was not handled".into()) }
}

async fn by_hand<B: Base>(conn: &mut B::Connection, hand: Hand, batch: &[Parts]) -> sqlx::Result<()> {
    let mut tx = conn.begin().await?;
    match hand {
        Hand::Effects => B::effects(&mut tx, &rows(batch)).await?,
        Hand::Both => {
            let rows = rows(batch);
            remembered::<B>(&mut tx, &rows).await?;
        }
        Hand::Each { savepoints } => {
            for message in batch {
                if savepoints {
                    B::run(&mut tx, "SAVEPOINT one").await?;
                }
                B::effect(&mut tx, Row::of(message)).await?;
                if savepoints {
                    B::run(&mut tx, "RELEASE SAVEPOINT one").await?;
                }
            }
        }
    }
    tx.commit().await
}

/// Ids that are unique, and the effects of those that were new. Answers how many.
pub async fn remembered<B: Base>(conn: &mut B::Connection, rows: &[Row<'_>]) -> sqlx::Result<usize> {
    let new = B::process(conn, rows).await?;
    if new.len() == rows.len() {
        B::effects(conn, rows).await?;
    } else if !new.is_empty() {
        let new: std::collections::HashSet<&[u8]> = new.iter().map(Vec::as_slice).collect();
        let rows: Vec<Row<'_>> = rows.iter().filter(|row| new.contains(row.id)).copied().collect();
        B::effects(conn, &rows).await?;
    }
    Ok(new.len())
}

/// Messages in a place of their own.
async fn timed<B: Base>(messages: usize, way: Way) -> Result<Run, Failure> {
    let place = Place::<B>::new().await?;
    let worker = Worker::new(&place.pool, way).await?;
    let run = work(&place, &worker, messages).await?;
    drop(worker);
    place.close().await?;
    Ok(run)
}

/// Handles new messages. The first batch prepares statements and grows the pool: that is not what is measured.
pub async fn work<B: Base>(place: &Place<B>, worker: &Worker<B>, messages: usize) -> Result<Run, Failure> {
    let batches = fresh(messages + BATCH);
    let before = place.effects().await?;
    let (first, rest) = batches.split_first().ok_or("no messages")?;
    worker.handle(first).await?;
    let started = Instant::now();
    for batch in rest {
        worker.handle(batch).await?;
    }
    let took: Duration = started.elapsed();
    let handled = rest.iter().map(Vec::len).sum();
    expect("effects", place.effects().await? - before, handled + first.len())?;
    Ok(Run { messages: handled, took })
}
