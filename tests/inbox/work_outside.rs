//! Workers outside of transactions (L1): side by side, under a lease; repeats only where they can be explained.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use hapax::inbox::{Message, Order, WorkSummary};
use hapax::{Claim, Retry, Unavailable};
use sqlx::Pool;
use tokio_util::sync::CancellationToken;

use crate::base::{Base, everywhere, id_of};
use crate::support::{PATIENCE, eventually};
use crate::work::{Boxed, Shop};

/// An effect elsewhere: by a connection that has nothing to do with the worker's.
async fn effect<DB: Base>(pool: &Pool<DB>, table: &str, message: &Message) -> Result<(), Boxed> {
    let mut conn = pool.acquire().await?;
    Ok(DB::effect(&mut conn, table, id_of(message)).await?)
}

everywhere! {
    async fn each_has_one_effect_and_keys_keep_their_order<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 300, 9).await;
        let shutdown = CancellationToken::new();
        let mut workers = Vec::new();
        for _ in 0..2 {
            let (effects, pool) = (shop.effects.clone(), shop.world.pool.clone());
            let worker = shop.worker().await.order(Order::Key).concurrency(16).batch_size(40);
            let handler = move |m: Message, claim: Claim| {
                let (effects, pool) = (effects.clone(), pool.clone());
                async move {
                    assert!(!claim.is_lost() && claim.attempt() == 1 && claim.idempotency_key().len() == 32);
                    effect(&pool, &effects, &m).await
                }
            };
            workers.push(tokio::spawn(worker.run_outside(handler, shutdown.clone())));
        }
        shop.done().await;
        shutdown.cancel();
        let summaries: Vec<WorkSummary> =
            join_all(workers).await.into_iter().map(|ended| ended.unwrap().unwrap()).collect();
        shop.judge(0..300).await;
        shop.judge_order(9).await;
        assert_eq!(summaries.iter().map(|summary| summary.succeeded).sum::<u64>(), 300, "{summaries:?}");
        assert!(summaries.iter().all(|s| s.failed + s.lost + s.late + s.left == 0 && s.drained), "{summaries:?}");
    }
}

everywhere! {
    async fn a_lease_is_prolonged_while_its_handler_runs<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 3, 3).await;
        let shutdown = CancellationToken::new();
        let mut workers = Vec::new();
        for _ in 0..2 {
            let (effects, pool) = (shop.effects.clone(), shop.world.pool.clone());
            let worker = shop.worker().await.lease(Duration::from_secs(3));
            let handler = move |m: Message, claim: Claim| {
                let (effects, pool) = (effects.clone(), pool.clone());
                async move {
                    // Longer than a lease; the other worker looks for what is lost meanwhile.
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    assert!(!claim.is_lost());
                    effect(&pool, &effects, &m).await
                }
            };
            workers.push(tokio::spawn(worker.run_outside(handler, shutdown.clone())));
        }
        shop.done().await;
        shutdown.cancel();
        for ended in join_all(workers).await {
            let summary = ended.unwrap().unwrap();
            assert_eq!((summary.lost, summary.late, summary.swept, summary.failed), (0, 0, 0, 0), "{summary}");
        }
        shop.judge(0..3).await;
    }
}

everywhere! {
    async fn f02_who_lost_its_lease_is_told_and_its_late_success_counts<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 2, 2).await;
        let shutdown = CancellationToken::new();
        let (effects, pool, begun) = (shop.effects.clone(), shop.world.pool.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&begun);
        let handler = move |m: Message, claim: Claim| {
            let (effects, pool, begun) = (effects.clone(), pool.clone(), Arc::clone(&counted));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                claim.lost().await;
                // Too late to stop: its effect happens all the same.
                effect(&pool, &effects, &m).await
            }
        };
        // Nobody tries it again for a while.
        let retry = Retry::fixed(Duration::from_secs(600)).attempts(3);
        let first = tokio::spawn(shop.worker().await.retry(retry).run_outside(handler, shutdown.clone()));
        eventually(PATIENCE, "both run", async || begun.load(Ordering::SeqCst) == 2).await;
        // As if it had stood still for long.
        let lapse = format!("UPDATE {} SET lease = 0", shop.world.table("_runs"));
        shop.world.run(&lapse).await;
        let idle = move |_: Message, _: Claim| async move { Err::<(), _>(Boxed::from("not due")) };
        let second = tokio::spawn(shop.worker().await.retry(retry).run_outside(idle, shutdown.clone()));
        shop.done().await;
        shutdown.cancel();
        let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
        shop.judge(0..2).await;
        // Either found them, or the worker prolonged what nobody had found.
        assert!(first.late == 2 || first.succeeded == 2, "{first} {second}");
        assert_eq!(first.late, first.swept + second.swept, "{first} {second}");
    }
}

everywhere! {
    async fn f36_failures_panics_and_hanging_burn_attempts<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 40, 4).await;
        let shutdown = CancellationToken::new();
        let (effects, pool) = (shop.effects.clone(), shop.world.pool.clone());
        let handler = move |m: Message, claim: Claim| {
            let (effects, pool) = (effects.clone(), pool.clone());
            async move {
                match (id_of(&m), claim.attempt()) {
                    (5, _) => panic!("poison"),
                    (10, 1) => std::future::pending::<()>().await,
                    (15, 1 | 2) => return Err("later".into()),
                    _ => {}
                }
                effect(&pool, &effects, &m).await
            }
        };
        let worker = shop.worker().await.order(Order::Key).handler_timeout(Duration::from_secs(5));
        let run = tokio::spawn(worker.run_outside(handler, shutdown.clone()));
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge((0..40).filter(|id| *id != 5)).await;
        shop.judge_order(4).await;
        assert_eq!((summary.failed, summary.dead, summary.succeeded), (6, 1, 39), "{summary}");
        assert_eq!(shop.world.count("_attempts", "1 = 1").await, 6);
    }
}

everywhere! {
    async fn what_is_down_burns_no_attempt_outside_either<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 60, 60).await;
        let shutdown = CancellationToken::new();
        let (up, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (back, counted, effects, pool) =
            (Arc::clone(&up), Arc::clone(&calls), shop.effects.clone(), shop.world.pool.clone());
        let handler = move |m: Message, claim: Claim| {
            let (up, calls, effects, pool) = (Arc::clone(&back), Arc::clone(&counted), effects.clone(), pool.clone());
            async move {
                assert_eq!(claim.attempt(), 1);
                if !up.load(Ordering::SeqCst) {
                    calls.fetch_add(1, Ordering::SeqCst);
                    return Err(Boxed::from(Unavailable::new("no answer")));
                }
                effect(&pool, &effects, &m).await
            }
        };
        let run = tokio::spawn(shop.worker().await.concurrency(4).run_outside(handler, shutdown.clone()));
        eventually(PATIENCE, "it was found down, and probed", async || calls.load(Ordering::SeqCst) >= 7).await;
        eventually(PATIENCE, "one message finds out", async || shop.world.count("_open", "run <> 0").await <= 1).await;
        up.store(true, Ordering::SeqCst);
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge(0..60).await;
        assert_eq!((summary.failed, summary.succeeded), (0, 60), "{summary}");
    }
}

everywhere! {
    async fn f43_what_runs_at_the_deadline_is_dropped_and_its_attempt_counts<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 20, 20).await;
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        let shutdown = CancellationToken::new();
        let handler = move |_: Message, _: Claim| {
            let begun = Arc::clone(&counted);
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<(), Boxed>>().await
            }
        };
        let worker = shop.worker().await.concurrency(2).drain_deadline(Duration::from_millis(100));
        let run = tokio::spawn(worker.run_outside(handler, shutdown.clone()));
        eventually(PATIENCE, "two run", async || begun.load(Ordering::SeqCst) == 2).await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        assert_eq!((summary.failed, summary.left, summary.drained), (2, 0, false), "{summary}");
        // An effect may have happened: the attempt counts. The others were never begun.
        assert_eq!(shop.world.count("_open", "run = 0 AND attempts = 1").await, 2);
        assert_eq!(shop.world.count("_open", "run = 0 AND attempts = 0 AND lot = 0").await, 18);
    }
}
