//! Many sessions on the same messages, deadlocks, and locks that somebody else holds.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::join_all;
use hapax::identity::header;
use hapax::message::Parts;
use hapax::{Done, Misuse, Retry, TransactError, Transacted};
use sqlx::{MySql, Sqlite};

use crate::base::{Base, Tables, everywhere, id_of, message};
use crate::support::{PATIENCE, eventually, random};
use crate::{once, tune};

/// A die that is not the same in two runs.
fn dice() -> impl FnMut(i64) -> i64 {
    let mut state = random();
    move |sides| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(state >> 33).unwrap() % sides
    }
}

everywhere! {
    async fn f33_eight_sessions_on_hot_keys_handle_each_message_once<DB>() {
        const MESSAGES: i64 = 120;
        let site = DB::site();
        let pool = DB::pool(&site, 8).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let sessions = join_all((0..8).map(async |session| {
            // Each is a process of its own, as far as the database can tell.
            let once = once(&pool, &tables, header("id")).await;
            let mut roll = dice();
            let mut left: Vec<i64> = (0..MESSAGES).collect();
            let mut handled = 0;
            let mut offset = 0;
            while !left.is_empty() {
                // In any order, some twice in a batch.
                let batch: Vec<_> = (0..30)
                    .map(|_| {
                        offset += 1;
                        let place = usize::try_from(roll(i64::try_from(left.len()).unwrap())).unwrap();
                        message(left[place], session, offset)
                    })
                    .collect();
                let done = once
                    .handle_batch(&batch, async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await)
                    .await;
                for (message, outcome) in batch.iter().zip(done.outcomes()) {
                    let outcome = outcome.as_ref().unwrap();
                    handled += i64::from(matches!(outcome, Done::Handled(())));
                    if outcome.may_commit() {
                        left.retain(|id| *id != id_of(message));
                    }
                }
            }
            handled
        }))
        .await;
        assert_eq!(sessions.iter().sum::<i64>(), MESSAGES, "{sessions:?}");
        tables.judge::<DB>(&mut conn, 0..MESSAGES).await;
    }
}

everywhere! {
    async fn f34_a_message_that_somebody_else_handles_waits_a_moment_and_the_others_go_on<DB>() {
        if DB::KIND == "sqlite" {
            // One writer: nothing goes on beside it. See `an_outside_writer_of_the_file_is_waited_for`.
            return;
        }
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let (slow, quick) = (once(&pool, &tables, header("id")).await, once(&pool, &tables, header("id")).await);
        let (began, begun) = tokio::sync::oneshot::channel();
        let (let_go, gone) = tokio::sync::oneshot::channel::<()>();
        let (began, gone) = (Cell::new(Some(began)), Cell::new(Some(gone)));
        let holding = async {
            let held = message(5, 0, 5);
            let done = slow
                .handle(&held, async |conn: &mut DB::Connection| {
                    DB::effect(conn, &tables.effects, 5).await?;
                    if let Some(began) = began.take() {
                        began.send(()).unwrap();
                    }
                    if let Some(gone) = gone.take() {
                        gone.await.unwrap();
                    }
                    Ok::<_, sqlx::Error>(())
                })
                .await;
            assert!(matches!(done.unwrap(), Done::Handled(())));
        };
        let passing = async {
            begun.await.unwrap();
            let batch: Vec<_> = (0..10).map(|id| message(id, 1, id)).collect();
            let effect = async |message: &Parts, conn: &mut DB::Connection| {
                DB::effect(conn, &tables.effects, id_of(message)).await
            };
            let done = quick.handle_batch(&batch, effect).await;
            for (id, outcome) in (0..).zip(done.outcomes()) {
                let outcome = outcome.as_ref().unwrap();
                if id == 5 {
                    assert!(matches!(outcome, Done::InFlight { .. }), "{outcome:?}");
                } else {
                    assert!(matches!(outcome, Done::Handled(())), "{id}: {outcome:?}");
                }
            }
            let_go.send(()).unwrap();
        };
        tokio::join!(holding, passing);
        let done = quick.handle(&message(5, 1, 5), async |_: &mut DB::Connection| Ok::<_, sqlx::Error>(())).await;
        assert!(matches!(done.unwrap(), Done::Duplicate { .. }));
        tables.judge::<DB>(&mut conn, 0..10).await;
    }
}

/// A handler that meets a deadlock on its second statement, and returns that error, or goes on as if nothing were. Answers with what became of its
/// message, how often it ran, and which effects stand.
async fn deadlocked(overlook: bool) -> (Transacted<(), sqlx::Error>, u32, Vec<i64>) {
    type Db = MySql;
    let site = Db::site();
    let pool = Db::pool(&site, 2).await;
    let mut conn = Db::session(&site).await;
    let tables = Tables::make::<Db>(&mut conn).await;
    let accounts = format!("{}_a", tables.effects);
    Db::run(&mut conn, &format!("CREATE TABLE {accounts} (id INT PRIMARY KEY, amount INT NOT NULL)")).await.unwrap();
    let rows: Vec<_> = (1..=400).map(|id| format!("({id}, 0)")).collect();
    Db::run(&mut conn, &format!("INSERT INTO {accounts} VALUES {}", rows.join(","))).await.unwrap();

    let once = tune(&pool, &tables, header("id")).lock_timeout(PATIENCE).build().await.unwrap();
    let runs = Cell::new(0);
    let (ready, wait) = tokio::sync::oneshot::channel();
    let ready = Cell::new(Some(ready));
    let handling = async {
        once.handle(&message(1, 0, 0), async |conn: &mut sqlx::MySqlConnection| {
            runs.set(runs.get() + 1);
            Db::effect(conn, &tables.effects, 1).await?;
            Db::run(conn, &format!("UPDATE {accounts} SET amount = amount + 1 WHERE id = 1")).await?;
            if let Some(ready) = ready.take() {
                ready.send(()).unwrap();
                let mut watcher = Db::session(&site).await;
                eventually(PATIENCE, "the other one waits for our row", async || {
                    // Whoever looks more often than ten times a second sees the same for ever.
                    tokio::time::sleep(Duration::from_millis(150)).await;
                    let waits = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' \
                                 AND trx_rows_modified > 300";
                    Db::number(&mut watcher, waits).await.unwrap() > 0
                })
                .await;
                let lost =
                    Db::run(conn, &format!("UPDATE {accounts} SET amount = 0 WHERE id = 400")).await.unwrap_err();
                assert!(lost.to_string().contains("eadlock"), "{lost}");
                if !overlook {
                    return Err(lost);
                }
            }
            Db::effect(conn, &tables.effects, 2).await
        })
        .await
    };
    let other = async {
        // Somebody with much more to lose holds row 400 and wants row 1: the handler is the one to give up.
        let mut other = Db::session(&site).await;
        Db::run(&mut other, "SET SESSION innodb_lock_wait_timeout = 60").await.unwrap();
        Db::run(&mut other, "BEGIN").await.unwrap();
        Db::run(&mut other, &format!("UPDATE {accounts} SET amount = amount + 5 WHERE id > 1")).await.unwrap();
        wait.await.unwrap();
        Db::run(&mut other, &format!("UPDATE {accounts} SET amount = amount + 5 WHERE id = 1")).await.unwrap();
        Db::run(&mut other, "COMMIT").await.unwrap();
    };
    let (done, ()) = tokio::join!(handling, other);
    let effects = Db::numbers(&mut conn, &format!("SELECT message FROM {} ORDER BY message", tables.effects)).await;
    (done, runs.get(), effects.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_in_the_handler_is_run_again() {
    let (done, runs, effects) = deadlocked(false).await;
    assert!(matches!(done, Ok(Done::Handled(()))), "{done:?}");
    assert_eq!((runs, effects), (2, vec![1, 2]));
}

/// The deadlock rolled everything back, and MySQL goes on as if nothing were, statement by statement: what the handler writes then must
/// not stand without our record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_that_the_handler_overlooks_leaves_nothing_behind() {
    let (done, runs, effects) = deadlocked(true).await;
    assert!(matches!(done, Err(TransactError::Misused { misuse: Misuse::Ended, .. })), "{done:?}");
    assert_eq!((runs, effects), (1, vec![]));
}

/// What the transaction needs of its session is gone when the connection is back in its pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_connection_goes_back_as_it_came() {
    type Db = MySql;
    let site = Db::site();
    let pool = Db::pool(&site, 1).await;
    let mut conn = Db::session(&site).await;
    let tables = Tables::make::<Db>(&mut conn).await;
    let once = tune(&pool, &tables, header("id")).retry(Retry::none()).build().await.unwrap();
    const SETTINGS: &str = "SELECT CAST(CONCAT_WS(' ', CONNECTION_ID(), @@autocommit + 0, @@innodb_lock_wait_timeout, \
                            @@lock_wait_timeout, @@completion_type) AS CHAR)";
    {
        let mut own = pool.acquire().await.unwrap();
        Db::run(
            &mut own,
            "SET SESSION innodb_lock_wait_timeout = 17, SESSION lock_wait_timeout = 18, SESSION completion_type = 1",
        )
        .await
        .unwrap();
    }
    let before = Db::text(&mut pool.acquire().await.unwrap(), SETTINGS).await.unwrap();
    assert!(before.ends_with(" 1 17 18 CHAIN"), "{before}");
    for id in 0..3 {
        let inside = once
            .handle(&message(id, 0, id), async |conn: &mut sqlx::MySqlConnection| {
                Db::effect(conn, &tables.effects, id).await?;
                let settings = Db::text(conn, SETTINGS).await?;
                if id == 1 { Err(sqlx::Error::RowNotFound) } else { Ok(settings) }
            })
            .await;
        if let Ok(Done::Handled(inside)) = inside {
            assert!(inside.ends_with(" 0 1 1 NO_CHAIN"), "{inside}");
        }
        let mut own = pool.acquire().await.unwrap();
        assert_eq!(Db::text(&mut own, SETTINGS).await.unwrap(), before);
        // And in no transaction: what it writes is there at once, for everybody.
        Db::run(&mut own, &format!("DELETE FROM {} WHERE message = {id}", tables.effects)).await.unwrap();
        let left = format!("SELECT COUNT(*) FROM {} WHERE message = {id}", tables.effects);
        assert_eq!(Db::number(&mut conn, &left).await.unwrap(), 0);
    }
}

/// `completion_type = CHAIN`: each commit begins another transaction, and one that is open refuses to be told its isolation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_session_that_chains_transactions_is_served() {
    type Db = MySql;
    const CHAIN: &str = "SET SESSION completion_type = 'CHAIN'";
    let site = Db::site();
    let pool = Db::pool(&site, 2).await;
    let mut conn = Db::session(&site).await;
    let tables = Tables::make::<Db>(&mut conn).await;
    let once = tune(&pool, &tables, header("id")).retry(Retry::none()).build().await.unwrap();
    let mut own = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    for own in &mut own {
        // As the server's default would be; and a commit of the user's own has left one open.
        Db::run(&mut *own, CHAIN).await.unwrap();
        Db::run(&mut *own, "BEGIN; COMMIT").await.unwrap();
    }
    drop(own);
    // The first ones as the session was found, the others as a handler leaves it, each right behind the one before.
    for id in 0..20 {
        let done = once
            .handle(&message(id, 0, id), async |conn: &mut sqlx::MySqlConnection| {
                if id >= 10 {
                    Db::run(conn, CHAIN).await?;
                }
                Db::effect(conn, &tables.effects, id).await
            })
            .await;
        assert!(matches!(done, Ok(Done::Handled(()))), "{id}: {done:?}");
    }
    tables.judge::<Db>(&mut conn, 0..20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outside_writer_of_the_file_is_waited_for() {
    type Db = Sqlite;
    let site = Db::site();
    let pool = Db::pool(&site, 4).await;
    let mut conn = Db::session(&site).await;
    let tables = Tables::make::<Db>(&mut conn).await;
    let once = tune(&pool, &tables, header("id")).store_patience(Duration::from_millis(500)).build().await.unwrap();
    // Of the user's own connections: how long each waits is theirs to say.
    let mut own = Vec::new();
    for _ in 0..4 {
        let mut conn = pool.acquire().await.unwrap();
        Db::run(&mut conn, "PRAGMA busy_timeout = 50").await.unwrap();
        own.push(conn);
    }
    drop(own);
    Db::run(&mut conn, "BEGIN IMMEDIATE").await.unwrap();
    let runs = Cell::new(0);
    // Nothing is handled, nothing is lost: the message waits, or the call says that it may be asked again.
    let done = once
        .handle(&message(1, 0, 1), async |conn: &mut sqlx::SqliteConnection| {
            runs.set(runs.get() + 1);
            Db::effect(conn, &tables.effects, 1).await
        })
        .await;
    match &done {
        Ok(done) => assert!(!done.may_commit(), "{done:?}"),
        Err(error) => assert!(error.is_retryable(), "{error}"),
    }
    Db::run(&mut conn, "COMMIT").await.unwrap();
    assert_eq!(runs.get(), 0, "the handler is not begun without the lock");
    // Batches of many partitions take turns.
    let batches = join_all((0..8).map(async |partition| {
        let batch: Vec<_> =
            (0..20).map(|offset| message(i64::from(partition) * 20 + offset, partition, offset)).collect();
        let done = once
            .handle_batch(&batch, async |message: &Parts, conn: &mut sqlx::SqliteConnection| {
                Db::effect(conn, &tables.effects, id_of(message)).await
            })
            .await;
        assert!(done.outcomes().iter().all(|outcome| matches!(outcome, Ok(Done::Handled(())))), "{done:?}");
    }));
    batches.await;
    tables.judge::<Db>(&mut conn, 0..160).await;
}
