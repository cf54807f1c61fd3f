//! Duplicates, redelivery, conflicts, and records shared with a store.

use std::cell::Cell;

use hapax::identity::{Identify, header, position, sequence};
use hapax::message::Parts;
use hapax::record::State;
use hapax::store::{Batch, DedupStore, MysqlStore, PostgresStore, SqliteStore};
use hapax::{Done, Level, OnConflict, Retry, TransactError};
use sqlx::Pool;

use crate::base::{Base, Tables, everywhere, id_of, message};
use crate::{once, tune};

everywhere! {
    async fn duplicates_by_id_have_no_second_effect<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, header("id")).await;
        assert_eq!(once.level(), Level::L2);
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        // Twice in one batch, again in the next one, and by another process.
        let batch: Vec<Parts> = (0..20).map(|n| message(n % 10, 0, n)).collect();
        let done = once.handle_batch(&batch, effect).await;
        let handled = done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count();
        assert_eq!((handled, done.all_finished()), (10, true), "{:?}", done.outcomes());
        assert_eq!(done.commits()[0].offset, 20);
        for n in 0..10 {
            let Ok(Done::Duplicate { first, .. }) = &done.outcomes()[n + 10] else { panic!("{:?}", done.outcomes()) };
            assert_eq!(first.origin.offset, i64::try_from(n).unwrap());
        }
        let other = crate::once(&pool, &tables, header("id")).await;
        let again: Vec<Parts> = (0..15).map(|n| message(n, 3, 100 + n)).collect();
        let done = other.handle_batch(&again, effect).await;
        let handled = done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count();
        assert_eq!(handled, 5);
        let done = other.handle(&message(3, 0, 3), async |conn: &mut DB::Connection| effect(&message(3, 0, 3), conn).await).await.unwrap();
        assert!(matches!(done, Done::Duplicate { .. }), "{done:?}");
        tables.judge::<DB>(&mut conn, 0..15).await;
        assert_eq!((once.counts().handled, once.counts().duplicates, other.counts().handled), (10, 10, 5));
    }
}

everywhere! {
    async fn a_conflict_is_named_and_goes_by_policy<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, header("id")).await;
        let first = message(1, 0, 7);
        let other = message(1, 0, 8).payload("something else");
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, message_number(message)).await;
        let done = once.handle_batch(&[first.clone(), other.clone(), message(2, 0, 9)], effect).await;
        assert!(matches!(done.outcomes()[0], Ok(Done::Handled(()))));
        assert!(matches!(&done.outcomes()[1], Err(TransactError::Conflict { first, .. }) if first.origin.offset == 7), "{:?}", done.outcomes());
        assert!(matches!(done.outcomes()[2], Ok(Done::Handled(()))));
        assert_eq!(done.first_unfinished(), Some(1));
        assert_eq!(done.commits()[0].offset, 8);
        let skip = tune(&pool, &tables, header("id")).on_conflict(OnConflict::Skip).build().await.unwrap();
        let done = skip.handle_batch(std::slice::from_ref(&other), effect).await;
        assert!(matches!(done.outcomes()[0], Ok(Done::Conflict { .. })));
        let handle = tune(&pool, &tables, header("id")).on_conflict(OnConflict::Handle).build().await.unwrap();
        let done = handle.handle_batch(std::slice::from_ref(&other), effect).await;
        assert!(matches!(done.outcomes()[0], Ok(Done::Handled(()))));
        // Those of offsets 7, 9, and 8 by the last one.
        tables.judge::<DB>(&mut conn, 7..10).await;
    }
}

/// By where it stood.
fn message_number(message: &Parts) -> i64 {
    hapax::message::MessageView::offset(message)
}

everywhere! {
    async fn all_at_once_gets_only_what_is_new<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id")).batch_size(64).build().await.unwrap();
        let calls = Cell::new(0);
        let bulk = async |new: &[&Parts], conn: &mut DB::Connection| {
            calls.set(calls.get() + 1);
            for message in new {
                DB::effect(conn, &tables.effects, id_of(*message)).await?;
            }
            Ok::<_, sqlx::Error>(())
        };
        let batch: Vec<Parts> = (0..100).map(|n| message(n, 0, n)).collect();
        assert!(once.handle_together(&batch[..50], bulk).await.all_finished());
        assert_eq!(calls.get(), 1);
        let done = once.handle_together(&batch, bulk).await;
        assert!(done.all_finished());
        assert_eq!(done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count(), 50);
        assert_eq!(calls.get(), 3);
        tables.judge::<DB>(&mut conn, 0..100).await;
    }
}

everywhere! {
    async fn numbers_of_a_producer_stop_copies_at_the_price_of_one_row<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, sequence().span(64)).await;
        let numbered = |n: i64, offset: i64| {
            message(n, 0, offset).header("hapax-source", "outbox").header("hapax-sequence", n.to_string())
        };
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        // In any order, with copies at other offsets and twins in the batch.
        let batch: Vec<Parts> = (0..40).map(|n| numbered((n * 7) % 20, n)).collect();
        let done = once.handle_batch(&batch, effect).await;
        assert_eq!(done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count(), 20, "{:?}", done.outcomes());
        let other = crate::once(&pool, &tables, sequence().span(64)).await;
        let done = other.handle_batch(&batch, effect).await;
        assert!(done.outcomes().iter().all(|done| matches!(done, Ok(Done::Duplicate { .. }))), "{:?}", done.outcomes());
        // Far below the highest nobody can tell.
        assert!(other.handle_batch(&[numbered(500, 50)], effect).await.all_finished());
        let done = other.handle_batch(&[numbered(100, 51)], effect).await;
        assert!(matches!(done.outcomes()[0], Err(TransactError::TooOld { .. })), "{:?}", done.outcomes());
        tables.judge::<DB>(&mut conn, (0..20).chain([500])).await;
        assert_eq!(DB::number(&mut conn, &format!("SELECT count(*) FROM {}", tables.windows)).await.unwrap(), 1);
    }
}

everywhere! {
    async fn a_message_without_an_identity_is_refused_and_stays_unfinished<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, position().and_then(header("id"))).await;
        let effect = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, message_number(message)).await;
        let nameless = Parts::new("orders").at(0, 1).payload("x");
        let batch = [message(0, 0, 0), nameless, message(2, 0, 2)];
        let done = once.handle_batch(&batch, effect).await;
        assert!(matches!(done.outcomes()[1], Err(TransactError::Identity { .. })));
        assert_eq!(done.commits()[0].offset, 1);
        tables.judge::<DB>(&mut conn, [0, 2].into_iter()).await;
        // The window has not passed it.
        assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 1);
    }
}

everywhere! {
    async fn dead_stays_dead_until_it_is_requeued<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id")).retry(Retry::none().attempts(2)).build().await.unwrap();
        let fails = async |_: &mut DB::Connection| Err::<(), _>("no");
        assert!(matches!(once.handle(&message(1, 0, 1), fails).await, Err(TransactError::Handler(_))));
        let done = once.handle(&message(1, 0, 1), fails).await.unwrap();
        assert!(matches!(done, Done::Dead { attempts: 2, error: Some(_) }), "{done:?}");
        let works = async |conn: &mut DB::Connection| DB::effect(conn, &tables.effects, 1).await;
        let done = once.handle(&message(1, 0, 5), works).await.unwrap();
        assert!(matches!(done, Done::Dead { attempts: 2, error: None }), "{done:?}");
        tables.judge::<DB>(&mut conn, 0..0).await;
    }
}

/// The store over the same table, and a wrapper at level L1 around it.
async fn l1<S: DedupStore + 'static>(store: S, tables: &Tables) -> hapax::Once {
    hapax::Once::builder(store).scope("tests", &tables.effects).identify(header("id")).build().await.unwrap()
}

macro_rules! shared_with_a_store {
    ($name:ident, $db:ty, $store:ty) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let site = <$db>::site();
            let pool: Pool<$db> = <$db>::pool(&site, 4).await;
            let mut conn = <$db as Base>::session(&site).await;
            let tables = Tables::make::<$db>(&mut conn).await;
            let l2 = once(&pool, &tables, header("id")).await;
            let l1 = l1(<$store>::new(pool.clone()).with_table(&tables.records).unwrap(), &tables).await;
            // What one handled is a duplicate to the other.
            let effect = async |conn: &mut _| <$db>::effect(conn, &tables.effects, 1).await;
            assert!(matches!(l2.handle(&message(1, 0, 1), effect).await.unwrap(), Done::Handled(())));
            let done = l1.handle(&message(1, 0, 9), async |_| Ok::<_, String>(())).await.unwrap();
            assert!(matches!(&done, Done::Duplicate { first, .. } if first.origin.offset == 1), "{done:?}");
            let done = l1.handle(&message(2, 0, 2), async |_| Ok::<_, String>(())).await.unwrap();
            assert!(matches!(done, Done::Handled(())));
            let done = l2.handle(&message(2, 0, 10), effect).await.unwrap();
            assert!(matches!(&done, Done::Duplicate { first, .. } if first.origin.offset == 2), "{done:?}");
            // What one is handling is in flight to the other.
            let done = l1
                .handle(&message(3, 0, 3), async |_| {
                    let done = l2.handle(&message(3, 0, 11), effect).await.unwrap();
                    assert!(matches!(done, Done::InFlight { remaining } if !remaining.is_zero()), "{done:?}");
                    Ok::<_, String>(())
                })
                .await
                .unwrap();
            assert!(matches!(done, Done::Handled(())));
            // What failed at one is tried by the other, and counted on.
            let _ = l2.handle(&message(4, 0, 4), async |_: &mut _| Err::<(), _>(hapax_fatal())).await.unwrap();
            let done = l1.handle(&message(4, 0, 4), async |_| Ok::<_, String>(())).await.unwrap();
            assert!(matches!(done, Done::Dead { .. }), "{done:?}");
            let key = l1.key(&message(4, 0, 4)).unwrap();
            let record = l1.store().get(&Batch::one(key)).await.unwrap().pop().flatten().unwrap();
            assert!(matches!(record.state, State::Dead { .. }) && record.attempts == 1, "{record:?}");
            tables.judge::<$db>(&mut conn, 1..2).await;
        }
    };
}

fn hapax_fatal() -> Box<dyn std::error::Error + Send + Sync> {
    hapax::Fatal::new("never").into()
}

shared_with_a_store!(a_store_shares_records_postgres, sqlx::Postgres, PostgresStore);
shared_with_a_store!(a_store_shares_records_mariadb, sqlx::MySql, MysqlStore);
shared_with_a_store!(a_store_shares_records_sqlite, sqlx::Sqlite, SqliteStore);
