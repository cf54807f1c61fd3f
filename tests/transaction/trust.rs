//! Handlers that went well for long run without a savepoint for each; what happens when one fails then. And connections that stay in hand.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use hapax::{Done, Failure, Misuse, Retry, TransactError};

use crate::base::{Base, Tables, everywhere, everywhere_served, id_of, message};
use crate::support::{PATIENCE, eventually};
use crate::{once, tune};

/// As many as have to go well.
const WELL: i64 = 300;

async fn trusted<DB: Base>(once: &hapax::Transactional<DB>, tables: &Tables) -> Vec<Parts> {
    let batch: Vec<Parts> = (0..WELL).map(|n| message(n, 0, n)).collect();
    let effect = async |message: &Parts, conn: &mut DB::Connection| {
        DB::effect(conn, &tables.effects, id_of(message)).await.map_err(|error| error.to_string())
    };
    assert!(once.handle_batch(&batch, effect).await.all_finished());
    batch
}

everywhere! {
    async fn one_that_fails_without_a_savepoint_is_found_and_the_others_are_once<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        for records in [false, true] {
            let tables = Tables::make::<DB>(&mut conn).await;
            let identify: Box<dyn Identify> = match records {
                true => Box::new(position().and_then(header("id"))),
                false => Box::new(position()),
            };
            let once = tune(&pool, &tables, identify).retry(Retry::none().attempts(9)).build().await.unwrap();
            trusted(&once, &tables).await;
            let calls: RefCell<HashMap<i64, u32>> = RefCell::default();
            let batch: Vec<Parts> = (WELL..WELL + 20).map(|n| message(n, 0, n)).collect();
            let effect = async |message: &Parts, conn: &mut DB::Connection| {
                let id = id_of(message);
                *calls.borrow_mut().entry(id).or_default() += 1;
                DB::effect(conn, &tables.effects, id).await.map_err(|error| error.to_string())?;
                if id == WELL + 5 || id == WELL + 9 { Err("no".to_owned()) } else { Ok(()) }
            };
            let done = once.handle_batch(&batch, effect).await;
            for (outcome, id) in done.outcomes().iter().zip(WELL..) {
                match id - WELL {
                    5 | 9 => assert!(matches!(outcome, Err(TransactError::Handler(Failure::Error(_)))), "{id}: {outcome:?}"),
                    _ => assert!(matches!(outcome, Ok(Done::Handled(()))), "{id}: {outcome:?}"),
                }
            }
            tables.judge::<DB>(&mut conn, (0..WELL + 20).filter(|n| ![5, 9].contains(&(n - WELL)))).await;
            // The first that failed took those before it back; from then on each has a savepoint.
            let calls = calls.into_inner();
            assert_eq!(calls[&WELL], 2, "it ran without a savepoint first");
            assert_eq!(calls[&(WELL + 9)], 1);
            if records {
                let attempts = format!("SELECT count(*) FROM {} WHERE state = 1 AND attempts = 1", tables.records);
                assert_eq!(DB::number(&mut conn, &attempts).await.unwrap(), 2, "each attempt is counted once");
            }
        }
    }
}

everywhere! {
    async fn a_first_message_that_fails_without_a_savepoint_runs_once<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id")).retry(Retry::none().attempts(9)).build().await.unwrap();
        trusted(&once, &tables).await;
        let calls = RefCell::new(0);
        let failed = once
            .handle(&message(WELL, 0, WELL), async |conn: &mut DB::Connection| {
                *calls.borrow_mut() += 1;
                DB::effect(conn, &tables.effects, WELL).await.map_err(|error| error.to_string())?;
                Err::<(), _>("no".to_owned())
            })
            .await;
        assert!(matches!(failed, Err(TransactError::Handler(_))), "{failed:?}");
        assert_eq!(calls.into_inner(), 1);
        tables.judge::<DB>(&mut conn, 0..WELL).await;
    }
}

everywhere! {
    async fn a_handler_that_ends_its_transaction_without_a_savepoint_is_found_out<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        for bad in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
            let tables = Tables::make::<DB>(&mut conn).await;
            let once = once(&pool, &tables, position().and_then(header("id"))).await;
            trusted(&once, &tables).await;
            let batch: Vec<Parts> = (WELL..WELL + 8).map(|n| message(n, 0, n)).collect();
            let done = once
                .handle_batch(&batch, async |message, conn| {
                    if id_of(message) == WELL + 3 {
                        return DB::run(conn, bad).await.map(drop);
                    }
                    DB::effect(conn, &tables.effects, id_of(message)).await
                })
                .await;
            let misused = |outcome: &Result<_, _>| matches!(outcome, Err(TransactError::Misused { misuse: Misuse::Ended, .. }));
            assert!(misused(&done.outcomes()[3]), "{bad}: {:?}", done.outcomes());
            // Of the others, each is told of as handled, and stands, or is given up with it: none is lost in silence, none stands twice.
            let ids = format!("SELECT message FROM {}", tables.effects);
            let mut stand = DB::numbers(&mut conn, &ids).await.unwrap();
            stand.sort_unstable();
            let all = stand.len();
            stand.dedup();
            assert_eq!(stand.len(), all, "{bad}: something stands twice");
            for (outcome, id) in done.outcomes().iter().zip(WELL..) {
                let stands = stand.binary_search(&id).is_ok();
                assert!(misused(outcome) || (outcome.is_ok() && stands), "{bad}: {id}: {outcome:?}, stands: {stands}");
            }
        }
    }
}

everywhere! {
    async fn a_connection_in_hand_is_nobody_elses_loss<DB>() {
        let site = DB::site();
        let mut conn = DB::session(&site).await;
        for size in [1, 2] {
            let pool = DB::pool(&site, size).await;
            let fresh = settings::<DB>(&mut *pool.acquire().await.unwrap()).await;
            let tables = Tables::make::<DB>(&mut conn).await;
            let once = once(&pool, &tables, position()).await;
            for n in 0..20 {
                let done = once.handle(&message(n, 0, n), async |conn| DB::effect(conn, &tables.effects, n).await).await;
                assert!(matches!(done, Ok(Done::Handled(()))), "{done:?}");
                // With one connection, it is there for others at once; with two, there is another.
                let held = tokio::time::timeout(Duration::from_secs(30), pool.acquire()).await.unwrap().unwrap();
                drop(held);
            }
            // All of them, once nothing needs one.
            let mut all = Vec::new();
            for _ in 0..size {
                all.push(tokio::time::timeout(Duration::from_secs(30), pool.acquire()).await.unwrap().unwrap());
            }
            for conn in &mut all {
                assert_eq!(settings::<DB>(&mut *conn).await, fresh, "{}: as they came", DB::KIND);
                DB::run(&mut *conn, "BEGIN").await.unwrap();
                DB::run(&mut *conn, "ROLLBACK").await.unwrap();
            }
            drop(all);
            let done = once.handle(&message(20, 0, 20), async |conn| DB::effect(conn, &tables.effects, 20).await).await;
            assert!(matches!(done, Ok(Done::Handled(()))), "{done:?}");
            tables.judge::<DB>(&mut conn, 0..21).await;
            tokio::time::timeout(Duration::from_secs(30), pool.close()).await.expect("closed with one in hand");
        }
    }
}

/// What a transaction of ours sets, as a session has it.
async fn settings<DB: Base>(conn: &mut DB::Connection) -> String {
    let text = match DB::KIND {
        "postgres" => {
            "SELECT concat_ws(' ', current_setting('lock_timeout'), current_setting('statement_timeout'), \
             current_setting('transaction_isolation'), current_setting('synchronous_commit'))"
        }
        "mysql" => {
            "SELECT CONCAT_WS(' ', @@SESSION.autocommit, @@SESSION.innodb_lock_wait_timeout, @@SESSION.lock_wait_timeout, \
             @@SESSION.tx_isolation)"
        }
        _ => {
            "SELECT group_concat(x, ' ') FROM (SELECT timeout AS x FROM pragma_busy_timeout UNION ALL SELECT foreign_keys FROM pragma_foreign_keys)"
        }
    };
    DB::text(conn, text).await.unwrap()
}

everywhere_served! {
    async fn batches_that_follow_each_other_have_the_same_connection<DB>() {
        let site = DB::site();
        let mut conn = DB::session(&site).await;
        // All there: the pool would give out the one that rested longest, each in its turn.
        let pool = DB::pool(&site, 3).await;
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(pool.acquire().await.unwrap());
        }
        drop(all);
        eventually(PATIENCE, "they are back", async || pool.num_idle() == 3).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, position()).await;
        let id = if DB::KIND == "postgres" { "SELECT pg_backend_pid()::bigint" } else { "SELECT CAST(connection_id() AS SIGNED)" };
        let mut had = Vec::new();
        for n in 0..60 {
            let one = message(n, 0, n);
            let served = once.handle(&one, async |conn: &mut DB::Connection| {
                DB::effect(conn, &tables.effects, n).await?;
                DB::number(conn, id).await
            });
            match served.await {
                Ok(Done::Handled(id)) => had.push(id),
                other => panic!("{other:?}"),
            }
        }
        let kept = had.windows(2).filter(|pair| pair[0] == pair[1]).count();
        // On a machine that is busy, it may now and then rest for so long that it is given back.
        assert!(kept >= 20, "kept {kept} times of 59: {had:?}");
        had.sort_unstable();
        had.dedup();
        assert!(had.len() <= 3, "no connection was opened beside those of the pool: {had:?}");
        tables.judge::<DB>(&mut conn, 0..60).await;
    }
}
