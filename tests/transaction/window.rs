//! Windows of partitions: redelivery, fences, zombies, and offsets that are not what they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use hapax::{Done, TransactError};
use tokio::sync::Notify;

use crate::base::{Tables, everywhere, id_of, message};
use crate::{once, tune};

fn at(offset: i64) -> Parts {
    message(offset, 0, offset).timestamp(1_000_000 + offset)
}

everywhere! {
    async fn redelivery_is_stopped_by_one_row<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let first = once(&pool, &tables, position()).await;
        // Offsets are sparse, and come in several batches.
        let log: Vec<Parts> = (0..60).map(|n| at(n * 3)).collect();
        for batch in log[..40].chunks(7) {
            assert!(first.handle_batch(batch, effect).await.all_finished());
        }
        let done = first.handle_batch(&log[30..45], effect).await;
        assert_eq!(done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Duplicate { .. }))).count(), 10);
        // Another process is told where to go on, and knows what it gets all the same.
        let second = once(&pool, &tables, position()).await;
        let assigned = second.assigned(&[("orders", 0), ("orders", 1)]).await.unwrap();
        assert_eq!((assigned[0].seek, assigned[1].seek), (Some(44 * 3 + 1), None));
        let done = second.handle_batch(&log, effect).await;
        assert!(done.all_finished(), "{:?}", done.outcomes());
        assert_eq!(done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count(), 15);
        tables.judge::<DB>(&mut conn, (0..60).map(|n| n * 3)).await;
        assert_eq!(DB::number(&mut conn, &format!("SELECT count(*) FROM {}", tables.windows)).await.unwrap(), 2);
    }
}

everywhere! {
    async fn f08_a_zombie_commits_nothing_once_its_fence_is_raised<DB>() {
        for kept in [false, true] {
            let site = DB::site();
            let pool = DB::pool(&site, 4).await;
            let mut conn = DB::session(&site).await;
            let tables = Tables::make::<DB>(&mut conn).await;
            let process = async || match kept {
                true => once(&pool, &tables, position().and_then(header("id"))).await,
                false => once(&pool, &tables, position()).await,
            };
            let (old, new) = (process().await, process().await);
            old.assigned(&[("orders", 0)]).await.unwrap();
            let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
            assert!(old.handle_batch(&[at(0)], effect).await.all_finished());
            if DB::KIND == "sqlite" {
                // One writer: the fence can only be raised between its transactions.
                assert_eq!(new.assigned(&[("orders", 0)]).await.unwrap()[0].seek, Some(1));
                let done = old.handle_batch(&[at(1), at(2)], effect).await;
                assert!(done.outcomes().iter().all(|done| matches!(done, Err(TransactError::Fenced { .. }))), "{:?}", done.outcomes());
            } else {
                let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
                let slow = async {
                    old.handle_batch(&[at(1), at(2)], async |message, conn: &mut DB::Connection| {
                        DB::effect(conn, &tables.effects, id_of(message)).await?;
                        if id_of(message) == 1 {
                            begun.notify_one();
                            go_on.notified().await;
                        }
                        Ok::<_, sqlx::Error>(())
                    })
                    .await
                };
                let takes_over = async {
                    begun.notified().await;
                    // It stands still in the middle, and does not know.
                    assert_eq!(new.assigned(&[("orders", 0)]).await.unwrap()[0].seek, Some(1));
                    go_on.notify_one();
                };
                let (done, ()) = tokio::join!(slow, takes_over);
                assert!(done.outcomes().iter().all(|done| matches!(done, Err(TransactError::Fenced { .. }))), "{:?}", done.outcomes());
            }
            tables.judge::<DB>(&mut conn, 0..1).await;
            assert!(done_all(&new.handle_batch(&[at(1), at(2)], effect).await));
            // Not before it is told that the partition is its own again.
            let done = old.handle_batch(&[at(3)], effect).await;
            assert!(matches!(done.outcomes()[0], Err(TransactError::Fenced { .. })), "{:?}", done.outcomes());
            assert_eq!(old.assigned(&[("orders", 0)]).await.unwrap()[0].seek, Some(3));
            assert!(done_all(&old.handle_batch(&[at(3)], effect).await));
            tables.judge::<DB>(&mut conn, 0..4).await;
        }
    }
}

everywhere! {
    async fn a_zombie_that_has_committed_nothing_runs_nothing<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let (old, new) = (once(&pool, &tables, position()).await, once(&pool, &tables, position()).await);
        old.assigned(&[("orders", 0)]).await.unwrap();
        new.assigned(&[("orders", 0)]).await.unwrap();
        let runs = AtomicU64::new(0);
        let effect = async |message: &Parts, conn: &mut DB::Connection| {
            runs.fetch_add(1, Ordering::SeqCst);
            DB::effect(conn, &tables.effects, id_of(message)).await
        };
        // It hears that it is fenced as it notes what is about to run.
        let done = old.handle_batch(&[at(0), at(1)], effect).await;
        assert!(done.outcomes().iter().all(|done| matches!(done, Err(TransactError::Fenced { .. }))), "{:?}", done.outcomes());
        assert_eq!((runs.load(Ordering::SeqCst), old.counts().fenced), (0, 2));
        assert!(done_all(&new.handle_batch(&[at(0), at(1)], effect).await));
        assert_eq!((runs.load(Ordering::SeqCst), new.counts().fenced), (2, 0));
        tables.judge::<DB>(&mut conn, 0..2).await;
    }
}

fn done_all<T, E: std::fmt::Debug + std::fmt::Display>(done: &hapax::TransactBatch<T, E>) -> bool {
    done.all_finished()
}

everywhere! {
    async fn window_and_records_stop_redelivery_and_copies<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, position().and_then(header("id"))).await;
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let original: Vec<Parts> = (0..10).map(|n| message(n, 0, n).timestamp(n)).collect();
        // Produced again, at other offsets.
        let copies: Vec<Parts> = (0..10).map(|n| message(n, 0, 10 + n).timestamp(10 + n)).collect();
        assert!(done_all(&once.handle_batch(&original, effect).await));
        let done = once.handle_batch(&copies, effect).await;
        assert!(done.outcomes().iter().all(|done| matches!(done, Ok(Done::Duplicate { .. }))), "{:?}", done.outcomes());
        // Copies are finished offsets, too.
        assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 20);
        // The window answers even where the records are gone.
        DB::run(&mut conn, &format!("DELETE FROM {}", tables.records)).await.unwrap();
        assert!(done_all(&once.handle_batch(&original, effect).await));
        tables.judge::<DB>(&mut conn, 0..10).await;
    }
}

everywhere! {
    async fn f21_a_topic_that_was_made_again_is_not_skipped_in_silence<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let first = once(&pool, &tables, position()).await;
        let log: Vec<Parts> = (0..10).map(at).collect();
        assert!(done_all(&first.handle_batch(&log, effect).await));
        let second = once(&pool, &tables, position()).await;
        // Offset 4 again, younger than all that were finished; and one without a time.
        let younger = message(104, 0, 4).timestamp(2_000_000);
        let timeless = message(104, 0, 4);
        for other in [younger, timeless] {
            let done = second.handle_batch(&[other], effect).await;
            assert!(matches!(done.outcomes()[0], Err(TransactError::OtherMessage { .. })), "{:?}", done.outcomes());
            assert!(done.commits().is_empty());
        }
        assert!(done_all(&second.handle_batch(&log, effect).await));
        let trusting = tune(&pool, &tables, position()).trust_offsets().build().await.unwrap();
        assert!(done_all(&trusting.handle_batch(&[message(104, 0, 4)], effect).await));
        tables.judge::<DB>(&mut conn, 0..10).await;
    }
}

everywhere! {
    async fn batches_side_by_side_of_one_partition_leave_one_window<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 6).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, position()).await;
        let log: Vec<Parts> = (0..200).map(at).collect();
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        // Every batch overlaps with its neighbours: whoever is second finds out before it commits.
        let batches = (0..20_usize).map(|n| &log[n * 10..(n * 10 + 15).min(200)]);
        let done = futures_util::future::join_all(batches.map(|batch| once.handle_batch(batch, effect))).await;
        for done in &done {
            for outcome in done.outcomes() {
                assert!(matches!(outcome, Ok(Done::Handled(()) | Done::Duplicate { .. } | Done::InFlight { .. })), "{outcome:?}");
            }
        }
        assert!(done_all(&once.handle_batch(&log, effect).await));
        tables.judge::<DB>(&mut conn, 0..200).await;
        assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 200);
    }
}

everywhere! {
    async fn a_message_that_comes_too_late_is_not_skipped_in_silence<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, position()).await;
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        assert!(done_all(&once.handle_batch(&[at(0), at(5)], effect).await));
        let done = once.handle_batch(&[at(3), at(5), at(6)], effect).await;
        assert!(matches!(done.outcomes()[0], Err(TransactError::OutOfOrder { .. })), "{:?}", done.outcomes());
        assert!(matches!(done.outcomes()[1], Ok(Done::Duplicate { .. })));
        assert!(matches!(done.outcomes()[2], Ok(Done::Handled(()))));
        // Nor when it is handed in once more.
        let again = once.handle_batch(&[at(3)], effect).await;
        assert!(matches!(again.outcomes()[0], Err(TransactError::OutOfOrder { .. })), "{:?}", again.outcomes());
        assert!(again.commits().is_empty(), "{:?}", again.commits());
        tables.judge::<DB>(&mut conn, [0, 5, 6].into_iter()).await;
    }
}

everywhere! {
    async fn what_is_unfinished_holds_the_window_and_is_found_after_a_restart<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let log: Vec<Parts> = (0..10).map(at).collect();
        let first = tune(&pool, &tables, position()).retry(hapax::Retry::none().attempts(9)).build().await.unwrap();
        let done = first
            .handle_batch(&log, async |message, conn: &mut DB::Connection| match id_of(message) {
                2 | 6 => Err("no".to_owned()),
                id => DB::effect(conn, &tables.effects, id).await.map_err(|error| error.to_string()),
            })
            .await;
        assert_eq!(done.commits()[0].offset, 2);
        let second = once(&pool, &tables, position()).await;
        assert_eq!(second.assigned(&[("orders", 0)]).await.unwrap()[0].seek, Some(2));
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let done = second.handle_batch(&log[2..], effect).await;
        assert!(done_all(&done));
        assert_eq!(done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count(), 2);
        tables.judge::<DB>(&mut conn, 0..10).await;
        assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 10);
    }
}
