//! Futures dropped at every await: nothing half done, and no connection in the pool that is inside a transaction.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use hapax::{Done, TransactError};

use crate::base::{Tables, everywhere, id_of, message};
use crate::once;
use crate::support::{PATIENCE, eventually};

/// Drops the future when it has waited so often.
async fn dropped_after<F: Future>(future: F, waits: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut waited = 0;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if waited == waits => Poll::Ready(None),
        Poll::Pending => {
            waited += 1;
            Poll::Pending
        }
    })
    .await
}

everywhere! {
    async fn a_future_dropped_at_any_await_leaves_nothing_half_done<DB>() {
        let site = DB::site();
        // Few connections: each is used again after a drop.
        let pool = DB::pool(&site, 2).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let canary = Tables::make::<DB>(&mut conn).await.effects;
        let once = once(&pool, &tables, position().and_then(header("id"))).await;
        let effect = async |message: &Parts, conn: &mut DB::Connection| {
            DB::effect(conn, &tables.effects, id_of(message)).await?;
            if id_of(message) % 7 == 3 { Err(sqlx::Error::RowNotFound) } else { Ok(()) }
        };
        let (mut dropped, mut ended, mut round) = (0, 0, 0_i64);
        // Until it ends by itself, again and again: then every await was met.
        while ended < 3 {
            let log: Vec<Parts> = (round * 4..round * 4 + 4).map(|n| message(n, 0, n).timestamp(n)).collect();
            match dropped_after(once.handle_batch(&log, effect), usize::try_from(round).unwrap()).await {
                Some(_) => ended += 1,
                None => dropped += 1,
            }
            // What a connection of the pool writes by itself is there at once: it is in no transaction.
            for _ in 0..2 {
                let mut pooled = pool.acquire().await.unwrap();
                eventually(PATIENCE, "the other one lets go of the file", async || {
                    DB::effect(&mut pooled, &canary, round).await.is_ok()
                })
                .await;
            }
            let found = DB::number(&mut conn, &format!("SELECT count(*) FROM {canary} WHERE message = {round}")).await.unwrap();
            assert_eq!(found, 2, "after {round} waits");
            // Handed in again, everything is handled; a dropped commit was made or not, and that is known.
            eventually(PATIENCE, "all of the batch is finished", async || {
                let done = once
                    .handle_batch(&log, async |message, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await)
                    .await;
                for outcome in done.outcomes() {
                    assert!(
                        matches!(outcome, Ok(Done::Handled(()) | Done::Duplicate { .. } | Done::InFlight { .. } | Done::Dead { .. }) | Err(TransactError::Database(_))),
                        "{outcome:?}"
                    );
                }
                done.all_finished()
            })
            .await;
            round += 1;
        }
        // How many there are depends on how often an answer is there before it is asked for.
        assert!(dropped > 3, "{dropped}");
        let dead = DB::numbers(&mut conn, &format!("SELECT count(*) FROM {} WHERE state = 4", tables.records)).await.unwrap()[0];
        let effects = DB::numbers(&mut conn, &format!("SELECT message FROM {} ORDER BY message", tables.effects)).await.unwrap();
        let mut distinct = effects.clone();
        distinct.dedup();
        assert_eq!(effects, distinct, "doubled");
        assert_eq!(i64::try_from(effects.len()).unwrap() + dead, round * 4, "lost");
    }
}
