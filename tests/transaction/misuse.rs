//! Handlers that do with their transaction what they must not: found out, whatever the database.

use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use hapax::{Done, Misuse, TransactError};
use sqlx::Connection;

use crate::base::{Tables, everywhere, id_of, message};
use crate::once;

everywhere! {
    async fn a_handler_that_commits_by_itself_is_found_out_and_nothing_is_lost<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let batch: Vec<Parts> = (0..8).map(|n| message(n, 0, n)).collect();
        for bad in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN"] {
            let tables = Tables::make::<DB>(&mut conn).await;
            let once = once(&pool, &tables, position().and_then(header("id"))).await;
            let done = once
                .handle_batch(&batch, async |message, conn| {
                    if id_of(message) == 3 {
                        // Of all that was remembered in this transaction, most has not been handled.
                        return DB::run(conn, bad).await.map(drop);
                    }
                    DB::effect(conn, &tables.effects, id_of(message)).await
                })
                .await;
            assert!(
                matches!(done.outcomes()[3], Err(TransactError::Misused { misuse: Misuse::Ended, .. })),
                "{bad}: {:?}",
                done.outcomes()
            );
            assert_eq!(done.first_unfinished(), Some(3));
            assert_eq!(done.outcomes().iter().filter(|done| done.is_ok()).count(), 7, "{bad}: {:?}", done.outcomes());
            // None of the others is lost, and none doubled, although hapax had remembered all of them when it was committed.
            tables.judge::<DB>(&mut conn, (0..8).filter(|n| *n != 3)).await;
            // Mended, it is handled.
            let mended = once.handle(&batch[3], async |conn| DB::effect(conn, &tables.effects, 3).await).await.unwrap();
            assert!(matches!(mended, Done::Handled(())), "{mended:?}");
            tables.judge::<DB>(&mut conn, 0..8).await;
        }
    }
}

everywhere! {
    async fn with_a_window_alone_a_handler_that_commits_by_itself_loses_nothing_and_says_so<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let batch: Vec<Parts> = (0..8).map(|n| message(n, 0, n)).collect();
        for bad in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN"] {
            let tables = Tables::make::<DB>(&mut conn).await;
            let once = once(&pool, &tables, position()).await;
            let done = once
                .handle_batch(&batch, async |message, conn| {
                    if id_of(message) == 3 {
                        return DB::run(conn, bad).await.map(drop);
                    }
                    DB::effect(conn, &tables.effects, id_of(message)).await
                })
                .await;
            let misused = matches!(done.outcomes()[3], Err(TransactError::Misused { misuse: Misuse::Ended, .. }));
            assert!(misused, "{bad}: {:?}", done.outcomes());
            assert_eq!(done.first_unfinished(), Some(3), "{bad}: {:?}", done.outcomes());
            // Nothing is lost, and the window does not pass the one that is to blame. What it committed of those before it is known to nobody, and may
            // stand twice: that is what the documentation says of a window alone.
            let ids = format!("SELECT message FROM {} ORDER BY message", tables.effects);
            let stand = DB::numbers(&mut conn, &ids).await.unwrap();
            for (id, outcome) in (0..8).zip(done.outcomes()) {
                let times = stand.iter().filter(|own| **own == id).count();
                let most = if bad.starts_with("COMMIT") && id < 3 { 2 } else { 1 };
                match id {
                    3 => assert_eq!(times, 0, "{bad}"),
                    _ => assert!(outcome.is_ok() && (1..=most).contains(&times), "{bad}: {id} stands {times} times: {outcome:?}"),
                }
            }
            assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 3, "{bad}");
            let mended = once.handle(&batch[3], async |conn| DB::effect(conn, &tables.effects, 3).await).await.unwrap();
            assert!(matches!(mended, Done::Handled(())), "{mended:?}");
            assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 8, "{bad}");
        }
    }
}

everywhere! {
    async fn a_handler_may_nest_transactions_of_its_own<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, header("id")).await;
        let batch: Vec<Parts> = (0..6).map(|n| message(n, 0, n)).collect();
        let done = once
            .handle_batch(&batch, async |message, conn| {
                let mut inner = conn.begin().await?;
                DB::effect(&mut inner, &tables.effects, id_of(message)).await?;
                match id_of(message) % 3 {
                    0 => inner.commit().await?,
                    1 => inner.rollback().await?,
                    _ => drop(inner),
                }
                Ok::<_, sqlx::Error>(())
            })
            .await;
        assert!(done.outcomes().iter().all(|done| matches!(done, Ok(Done::Handled(())))), "{:?}", done.outcomes());
        tables.judge::<DB>(&mut conn, [0, 3].into_iter()).await;
    }
}

everywhere! {
    async fn a_transaction_left_open_is_found_out<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, header("id")).await;
        let done = once
            .handle(&message(1, 0, 1), async |conn| {
                let mut inner = conn.begin().await?;
                DB::effect(&mut inner, &tables.effects, 1).await?;
                std::mem::forget(inner);
                Ok::<_, sqlx::Error>(())
            })
            .await;
        assert!(matches!(done, Err(TransactError::Misused { misuse: Misuse::Ended, .. })), "{done:?}");
        tables.judge::<DB>(&mut conn, 0..0).await;
        let done = once.handle(&message(1, 0, 1), async |conn| DB::effect(conn, &tables.effects, 1).await).await.unwrap();
        assert!(matches!(done, Done::Handled(())), "{done:?}");
        tables.judge::<DB>(&mut conn, 1..2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_statement_that_is_overlooked_commits_nothing_in_postgres() {
    type Db = sqlx::Postgres;
    use crate::base::Base;
    let site = Db::site();
    let pool = Db::pool(&site, 4).await;
    let mut conn = Db::session(&site).await;
    let tables = Tables::make::<Db>(&mut conn).await;
    let once = crate::tune(&pool, &tables, header("id")).retry(hapax::Retry::none().attempts(9)).build().await.unwrap();
    let batch: Vec<Parts> = (0..3).map(|n| message(n, 0, n)).collect();
    let done = once
        .handle_batch(&batch, async |message, conn: &mut sqlx::PgConnection| {
            Db::effect(conn, &tables.effects, id_of(message)).await?;
            if id_of(message) == 1 {
                let _ = Db::run(conn, "SELECT 1 / 0").await;
            }
            Ok::<_, sqlx::Error>(())
        })
        .await;
    assert!(
        matches!(done.outcomes()[1], Err(TransactError::Misused { misuse: Misuse::Swallowed, .. })),
        "{:?}",
        done.outcomes()
    );
    tables.judge::<Db>(&mut conn, [0, 2].into_iter()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_committed_is_found_among_the_others_in_postgres() {
    type Db = sqlx::Postgres;
    use crate::base::Base;
    let site = Db::site();
    let pool = Db::pool(&site, 4).await;
    let mut conn = Db::session(&site).await;
    let tables = Tables::make::<Db>(&mut conn).await;
    let deferred = format!(
        "ALTER TABLE {} ADD CONSTRAINT {0}_once UNIQUE (message) DEFERRABLE INITIALLY DEFERRED",
        tables.effects
    );
    Db::run(&mut conn, &deferred).await.unwrap();
    let once = crate::tune(&pool, &tables, header("id")).retry(hapax::Retry::none().attempts(9)).build().await.unwrap();
    let batch: Vec<Parts> = (0..9).map(|n| message(n, 0, n)).collect();
    let done = once
        .handle_batch(&batch, async |message, conn: &mut sqlx::PgConnection| {
            Db::effect(conn, &tables.effects, id_of(message)).await?;
            if id_of(message) == 6 {
                Db::effect(conn, &tables.effects, 6).await?;
            }
            Ok::<_, sqlx::Error>(())
        })
        .await;
    assert!(
        matches!(done.outcomes()[6], Err(TransactError::Misused { misuse: Misuse::Refused, .. })),
        "{:?}",
        done.outcomes()
    );
    assert_eq!(done.outcomes().iter().filter(|done| done.is_ok()).count(), 8);
    tables.judge::<Db>(&mut conn, (0..9).filter(|n| *n != 6)).await;
}
