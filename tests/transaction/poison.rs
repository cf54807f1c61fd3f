//! A message that ends the process: its attempts are counted before it runs, and it takes no others with it. And one that waits for long.
//!
//! A process that ends is a batch that is dropped where it waits, and another process is another wrapper: the database sees no difference.

use std::future::pending;

use hapax::identity::{Identify, header, position, sequence};
use hapax::message::Parts;
use hapax::{Done, Retry, TransactError, Transactional, Unavailable};
use tokio::sync::Notify;

use crate::base::{Base, Tables, everywhere, id_of, message};
use crate::{once, tune};

const MESSAGES: i64 = 20;
const BAD: i64 = 7;

fn log() -> Vec<Parts> {
    (0..MESSAGES).map(|n| message(n, 0, n)).collect()
}

/// Handles these, until the bad one ends the process.
async fn live<DB: Base>(
    once: &Transactional<DB>,
    tables: &Tables,
    log: &[Parts],
) -> Option<hapax::TransactBatch<(), sqlx::Error>> {
    let over = Notify::new();
    let batch = once.handle_batch(log, async |message: &Parts, conn: &mut DB::Connection| {
        DB::effect(conn, &tables.effects, id_of(message)).await?;
        if id_of(message) == BAD {
            over.notify_one();
            pending::<()>().await;
        }
        Ok(())
    });
    tokio::select! {
        done = batch => Some(done),
        () = over.notified() => None,
    }
}

everywhere! {
    async fn a_message_that_ends_processes_is_given_up_alone<DB>() {
        for records in [false, true] {
            let site = DB::site();
            let pool = DB::pool(&site, 4).await;
            let mut conn = DB::session(&site).await;
            let tables = Tables::make::<DB>(&mut conn).await;
            let process = async || match records {
                true => once(&pool, &tables, position().and_then(header("id"))).await,
                false => once(&pool, &tables, position()).await,
            };
            let mut deaths = 0;
            let done = loop {
                // Another process takes the partition.
                let once = process().await;
                once.assigned(&[("orders", 0)]).await.unwrap();
                match live(&once, &tables, &log()).await {
                    Some(done) => break done,
                    None => deaths += 1,
                }
                let others = if deaths == 1 { 0 } else { BAD };
                tables.judge::<DB>(&mut conn, 0..others).await;
                assert!(deaths < 10, "it is never given up");
            };
            // Once beside others, which is no attempt of theirs nor of its own; then as often as it may be tried.
            assert_eq!(deaths, 1 + 3, "with records: {records}");
            for (id, outcome) in (0..MESSAGES).zip(done.outcomes()) {
                match (id, outcome) {
                    (BAD, Ok(Done::Dead { attempts: 3, .. })) => {}
                    (0..BAD, Ok(Done::Duplicate { .. })) | (8.., Ok(Done::Handled(()))) => {}
                    _ => panic!("{id}: {outcome:?}"),
                }
            }
            tables.judge::<DB>(&mut conn, (0..MESSAGES).filter(|id| *id != BAD)).await;
            let bare = format!("SELECT COUNT(*) FROM {} WHERE next = {MESSAGES} AND LENGTH(state) = 0", tables.windows);
            assert_eq!(DB::number(&mut conn, &bare).await.unwrap(), 1, "nothing is left of it");
        }
    }
}

everywhere! {
    async fn a_process_that_ends_for_another_reason_burns_no_attempt<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let only_once = async || {
            // One attempt is all that there is.
            let once = tune(&pool, &tables, position()).retry(Retry::none().attempts(1)).build().await.unwrap();
            once.assigned(&[("orders", 0)]).await.unwrap();
            once
        };
        let first = only_once().await;
        assert!(live(&first, &tables, &log()[..1]).await.unwrap().all_finished());
        let noted = format!("SELECT COUNT(*) FROM {} WHERE LENGTH(state) > 0", tables.windows);
        // In the steady state nothing is noted.
        assert!(live(&first, &tables, &log()).await.is_none());
        assert_eq!(DB::number(&mut conn, &noted).await.unwrap(), 0);
        // Whoever comes next notes what it has in hand; others have done nothing wrong, and are handled one by one after that.
        let second = only_once().await;
        assert!(live(&second, &tables, &log()).await.is_none());
        assert_eq!(DB::number(&mut conn, &noted).await.unwrap(), 1);
        let third = only_once().await;
        let others: Vec<Parts> = log().into_iter().filter(|message| id_of(message) != BAD).collect();
        assert!(live(&third, &tables, &others).await.unwrap().all_finished());
        tables.judge::<DB>(&mut conn, (0..MESSAGES).filter(|id| *id != BAD)).await;
    }
}

everywhere! {
    async fn a_number_that_waits_is_not_passed_into_oblivion<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let builder = tune(&pool, &tables, sequence().span(64)).retry(Retry::none().attempts(9));
        let once = builder.stop_batches_at_failure().build().await.unwrap();
        let numbered = |n: i64| message(n, 0, n).header("hapax-source", "outbox").header("hapax-sequence", n.to_string());
        // What the first one needs is down, and the second waits behind it.
        let down = async |_: &Parts, _: &mut DB::Connection| {
            Err::<(), Box<dyn std::error::Error + Send + Sync>>(Unavailable::new("down").into())
        };
        let done = once.handle_batch(&[numbered(0), numbered(1)], down).await;
        let [Err(TransactError::Handler(_)), Err(TransactError::NotBegun)] = done.outcomes() else {
            panic!("{:?}", done.outcomes());
        };
        // Others of the same source, out of other partitions, go far beyond the span; one of them never came.
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let others: Vec<Parts> = (2..200).filter(|n| *n != 3).map(numbered).collect();
        assert!(once.handle_batch(&others, effect).await.all_finished());
        let done = once.handle_batch(&[numbered(0), numbered(1)], effect).await;
        assert!(done.outcomes().iter().all(|done| matches!(done, Ok(Done::Handled(())))), "{:?}", done.outcomes());
        let done = once.handle_batch(&[numbered(3)], effect).await;
        assert!(matches!(done.outcomes(), [Err(TransactError::TooOld { .. })]), "nobody can tell: {:?}", done.outcomes());
        tables.judge::<DB>(&mut conn, (0..200).filter(|n| *n != 3)).await;
    }
}

everywhere! {
    async fn numbers_that_wait_together_are_not_passed_into_oblivion<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, sequence().span(64)).retry(Retry::none().attempts(9)).build().await.unwrap();
        let numbered = |n: i64| message(n, 0, n).header("hapax-source", "outbox").header("hapax-sequence", n.to_string());
        let first: Vec<Parts> = (0..5).map(numbered).collect();
        // A handler of all of them, which is told that what it needs is down: none of the others is begun after that.
        let down = async |_: &[&Parts], _: &mut DB::Connection| {
            Err::<(), Box<dyn std::error::Error + Send + Sync>>(Unavailable::new("down").into())
        };
        let done = once.handle_together(&first, down).await;
        assert!(matches!(done.outcomes()[0], Err(TransactError::Handler(_))), "{:?}", done.outcomes());
        assert!(done.outcomes()[1..].iter().all(|one| matches!(one, Err(TransactError::NotBegun))), "{:?}", done.outcomes());
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let others: Vec<Parts> = (5..200).map(numbered).collect();
        assert!(once.handle_batch(&others, effect).await.all_finished());
        let done = once.handle_batch(&first, effect).await;
        assert!(done.outcomes().iter().all(|done| matches!(done, Ok(Done::Handled(())))), "{:?}", done.outcomes());
        tables.judge::<DB>(&mut conn, 0..200).await;
    }
}
