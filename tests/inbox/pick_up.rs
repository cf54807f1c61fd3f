//! What workers get: new messages as soon as they are there, payloads as operators left them, keys in order whichever partition they come from.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use hapax::inbox::{Accepted, By, Form, Message, Order, Requeued, State, Which};
use hapax::{Claim, Fatal};
use sqlx::Postgres;
use tokio_util::sync::CancellationToken;

use crate::base::{Base, everywhere, id_of};
use crate::support::{PATIENCE, eventually};
use crate::work::{Boxed, Shop};
use crate::world::message;

/// The database tells: of what was accepted, requeued, replayed and resumed. Nobody looks of himself for ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_is_told_and_not_looked_for() {
    let shop = Shop::<Postgres>::open().await;
    let (effects, shutdown) = (shop.effects.clone(), CancellationToken::new());
    let handler = async move |m: Message, tx: &mut sqlx::PgConnection| {
        if id_of(&m) == 3 && m.generation() == 1 {
            return Err(Boxed::from(Fatal::new("not yet")));
        }
        Ok(Postgres::effect(tx, &effects, id_of(&m)).await?)
    };
    let worker = shop.worker().await.poll(Duration::from_secs(600));
    let run = tokio::spawn(worker.run(handler, shutdown.clone()));
    let effects = async |wanted: usize, what: &str| {
        eventually(PATIENCE, what, async || shop.history().await.len() == wanted).await;
    };
    // Each time it has found nothing more before: after an effect it looks once more.
    for (id, wanted) in [(0, 1), (1, 2), (2, 3)] {
        shop.stock(id, id + 1, 9).await;
        effects(wanted, "it was told of a message").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    shop.stock(3, 4, 9).await;
    eventually(PATIENCE, "it is dead", async || shop.world.count("_open", "lot = 2").await == 1).await;
    let by = || By::new("ada", "a test");
    let dead = shop.inbox.list(State::Dead).await.unwrap()[0].id;
    assert_eq!(shop.inbox.requeue(dead, by()).await.unwrap(), Requeued::Requeued { generation: 2 });
    effects(4, "it was told of a message that was requeued").await;
    assert_eq!(shop.inbox.replay(Which::ids([dead]), by()).await.unwrap().replayed, 1);
    effects(5, "it was told of a message that was replayed").await;
    shop.inbox.pause(by()).await.unwrap();
    shop.stock(4, 5, 9).await;
    shop.inbox.resume(by()).await.unwrap();
    effects(6, "it was told that it may go on").await;
    shutdown.cancel();
    run.await.unwrap().unwrap();
}

/// Message, generation, attempt, form and payload, as a handler was given them.
type Seen = Vec<(i64, u32, u32, Form, String)>;

everywhere! {
    async fn a_worker_gets_the_payload_that_an_operator_left<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 3, 3).await;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (effects, notes) = (shop.effects.clone(), Arc::clone(&seen));
        let handler = async move |m: Message, tx: &mut DB::Connection| {
            let payload = String::from_utf8(m.payload().unwrap().to_vec()).unwrap();
            let amiss = payload == "order 1";
            notes.lock().unwrap().push((id_of(&m), m.generation(), m.attempt(), m.form(), payload));
            match amiss {
                true => Err(Boxed::from(Fatal::new("no amount"))),
                false => Ok(DB::effect(tx, &effects, id_of(&m)).await?),
            }
        };
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(shop.worker().await.order(Order::Key).run(handler, shutdown.clone()));
        eventually(PATIENCE, "one is dead", async || shop.world.count("_open", "lot = 2").await == 1).await;
        shop.done().await;
        let dead = shop.inbox.list(State::Dead).await.unwrap()[0].id;
        let edited = shop.inbox.edit_and_requeue(dead, "order 1, mended", By::new("ada", "by hand")).await.unwrap();
        assert_eq!(edited, Requeued::Requeued { generation: 2 });
        eventually(PATIENCE, "it is done", async || shop.world.count("_open", "1 = 1").await == 0).await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge(0..3).await;
        assert_eq!((summary.succeeded, summary.dead), (3, 1), "{summary}");
        let seen = seen.lock().unwrap();
        let of_one: Vec<_> = seen.iter().filter(|seen| seen.0 == 1).cloned().collect();
        let wanted = [
            (1, 1, 1, Form::Whole, "order 1".to_owned()),
            (1, 2, 1, Form::Edited, "order 1, mended".to_owned()),
        ];
        assert_eq!(of_one, wanted);
        assert!(seen.iter().filter(|seen| seen.0 != 1).all(|seen| seen.3 == Form::Whole && seen.4 == format!("order {}", seen.0)));
    }
}

everywhere! {
    /// One key in two partitions, taken in by two processes, worked by three: one at a time, and each partition in its order.
    async fn a_key_that_spans_partitions_is_worked_one_at_a_time<DB>() {
        const KEYS: i64 = 3;
        let shop = Shop::<DB>::open().await;
        let other = shop.world.inbox().await;
        let accept = async |inbox: &hapax::Inbox<DB>, partition: i64, from: i64, to: i64| {
            // Ids are even in one partition, and odd in the other.
            let one = |offset: i64| {
                message(2 * offset + partition, &format!("k{}", offset % KEYS), i32::try_from(partition).unwrap(), offset)
            };
            let done = inbox.accept_batch(&(from..to).map(one).collect::<Vec<_>>()).await;
            assert!(done.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::New(_)))), "{done:?}");
        };
        let at_once: Arc<Vec<AtomicUsize>> = Arc::new((0..KEYS).map(|_| AtomicUsize::new(0)).collect());
        let shutdown = CancellationToken::new();
        let mut workers = Vec::new();
        for _ in 0..3 {
            let (effects, pool, at_once) = (shop.effects.clone(), shop.world.pool.clone(), Arc::clone(&at_once));
            let handler = move |m: Message, _: Claim| {
                let (effects, pool, at_once) = (effects.clone(), pool.clone(), Arc::clone(&at_once));
                async move {
                    let key = &at_once[usize::try_from(id_of(&m) / 2 % KEYS).unwrap()];
                    assert_eq!(key.fetch_add(1, Ordering::SeqCst), 0, "two of one key at once");
                    let mut conn = pool.acquire().await?;
                    DB::effect(&mut conn, &effects, id_of(&m)).await?;
                    key.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Boxed>(())
                }
            };
            let worker = shop.worker().await.order(Order::Key).concurrency(8).batch_size(12);
            workers.push(tokio::spawn(worker.run_outside(handler, shutdown.clone())));
        }
        for from in (0..60).step_by(20) {
            tokio::join!(accept(&shop.inbox, 0, from, from + 20), accept(&other, 1, from, from + 20));
        }
        shop.done().await;
        shutdown.cancel();
        let summaries = join_all(workers).await;
        for summary in summaries {
            let summary = summary.unwrap().unwrap();
            assert_eq!((summary.failed, summary.lost, summary.late), (0, 0, 0), "{summary}");
        }
        shop.judge(0..120).await;
        let mut last: HashMap<(i64, i64), i64> = HashMap::new();
        for id in shop.history().await {
            let before = last.insert((id % 2, id / 2 % KEYS), id);
            assert!(before.is_none_or(|before| before < id), "{}: {id} came after {before:?}", DB::KIND);
        }
    }
}

everywhere! {
    /// Neither redelivery nor a second production brings back what was erased, and what it said is not needed to know it.
    async fn f24_what_was_erased_is_known_when_it_comes_again<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 4, 2).await;
        let effects = shop.effects.clone();
        shop.work(shop.worker().await, async move |m: Message, tx: &mut DB::Connection| {
            Ok(DB::effect(tx, &effects, id_of(&m)).await?)
        })
        .await;
        let by = || By::new("ada", "their right");
        assert_eq!(shop.inbox.erase(Which::keys(["k1"]), by()).await.unwrap().erased, 2);
        let again: Vec<_> = (0..4).map(|id| message(id, &format!("k{}", id % 2), 0, id)).collect();
        let other = shop.world.inbox().await;
        let done = other.accept_batch(&again).await;
        assert!(done.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::Redelivered))), "{done:?}");
        let again: Vec<_> = (0..4).map(|id| message(id, &format!("k{}", id % 2), 1, id)).collect();
        let done = other.accept_batch(&again).await;
        assert!(done.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::Duplicate(_)))), "{done:?}");
        // With something else under its identity it is a conflict, erased or not.
        let clash = message(1, "k1", 1, 4).payload("something else");
        let done = other.accept_batch(&[clash]).await;
        assert!(matches!(done.outcomes[0], Err(hapax::inbox::AcceptError::Conflict { .. })), "{done:?}");
        assert_eq!(shop.world.count("", "form = 2 AND payload IS NULL AND record_key IS NULL AND headers IS NULL").await, 2);
        assert_eq!((shop.world.count("", "1 = 1").await, shop.world.count("_open", "1 = 1").await), (4, 0));
        shop.judge(0..4).await;
    }
}
