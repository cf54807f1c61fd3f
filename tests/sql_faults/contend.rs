//! Many sessions on the same records: races, stale owners, deadlocks, somebody's open transaction, dropped futures.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::join_all;
use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, SettleOutcome, State, Verdict};
use hapax::store::{Batch, DedupStore};

use crate::common::{
    HOUR, SUCCESS, ask, asks, claim_one, granted, is_acquired, key, settle, settle_one, sighting, terms,
};
use crate::servers::{Kind, Tune, both};
use crate::support::{PATIENCE, eventually, random, unique};

both! {
    async fn f30_one_winner_for_each_message_over_many_connections(kind: Kind) {
        let table = unique("r");
        kind.open(&kind.url(), &table, Tune::default()).await.unwrap().ensure_schema().await.unwrap();
        let set = random();
        let racers = join_all((0..6_u64).map(|owner| {
            let table = table.clone();
            tokio::spawn(async move {
                let store = kind.open(&kind.url(), &table, Tune::default()).await.unwrap();
                let mut won = Vec::new();
                for round in 0..20 {
                    // Overlapping batches, begun at different places; every third one reads first.
                    let first = (round * 37 + owner * 11) % 400;
                    let batch = asks(set, first..first + 60).map(|ask| {
                        let mut ask = ask.clone();
                        ask.read_first = (round + owner) % 3 == 0;
                        ask
                    });
                    for (ask, outcome) in batch.items().iter().zip(store.claim(&terms(owner, HOUR), &batch).await.unwrap()) {
                        match outcome {
                            ClaimOutcome::Acquired(grant) => won.push((ask.sighting.key, grant)),
                            ClaimOutcome::InFlight { .. } => {}
                            other => panic!("{other:?}"),
                        }
                    }
                }
                won
            })
        }))
        .await;
        let mut winners = HashMap::new();
        for (key, grant) in racers.into_iter().flat_map(Result::unwrap) {
            assert_eq!((grant.token.fence.get(), grant.attempt), (1, 1));
            let first = *winners.entry(key).or_insert(grant.token.owner);
            assert_eq!(first, grant.token.owner, "{key} was claimed by two");
        }
        assert!(winners.len() > 300, "{}", winners.len());
    }
}

both! {
    async fn f31_a_stale_owner_changes_nothing_but_may_report_success(kind: Kind) {
        let (store, _) = kind.fresh().await;
        let set = random();
        for number in 0..4 {
            let old = granted(&claim_one(&*store, &terms(1, Duration::ZERO), &sighting(set, number)).await);
            // Its lease has run out: somebody takes over.
            let new = loop {
                if let ClaimOutcome::Acquired(grant) = claim_one(&*store, &terms(2, HOUR), &sighting(set, number)).await {
                    break grant;
                }
            };
            assert!(new.took_over && new.token.fence > old.token.fence);
            let message = sighting(set, number);
            let stale = |verdict| settle_one(&*store, &message, old, verdict);
            let failed = Verdict::Failed { retry_in: Duration::ZERO, max_attempts: 1.try_into().unwrap() };
            assert_eq!(stale(failed).await, SettleOutcome::Refused);
            assert_eq!(stale(Verdict::Released).await, SettleOutcome::Refused);
            assert_eq!(stale(Verdict::Dead).await, SettleOutcome::Refused);
            let extend = Extend { key: key(set, number), token: old.token, lease: HOUR };
            assert_eq!(store.extend(&Batch::one(extend)).await.unwrap(), [ExtendOutcome::Lost]);
            let record = store.get(&Batch::one(key(set, number))).await.unwrap().remove(0).unwrap();
            assert_eq!((record.token(), record.attempts), (new.token, 2));
            if number % 2 == 0 {
                assert_eq!(stale(SUCCESS).await, SettleOutcome::Late);
            }
            let late = number % 2 == 0;
            let wanted = if late { SettleOutcome::Late } else { SettleOutcome::Settled };
            assert_eq!(settle_one(&*store, &sighting(set, number), new, SUCCESS).await, wanted);
            let record = store.get(&Batch::one(key(set, number))).await.unwrap().remove(0).unwrap();
            assert!(matches!(record.state, State::Succeeded { late: found, .. } if found == late), "{record:?}");
        }
    }
}

both! {
    async fn f33_eight_sessions_on_hot_records_meet_no_error(kind: Kind) {
        let (store, _) = kind.fresh().await;
        let set = random();
        let sessions = join_all((0..8_u64).map(|session| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut dice = random();
                let mut roll = move |sides: u64| {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (dice >> 33) % sides
                };
                for _ in 0..40 {
                    let lease = if roll(2) == 0 { Duration::ZERO } else { HOUR };
                    let batch: Batch<_> = (0..50).map(|_| ask(set, roll(300))).collect();
                    let outcomes = store.claim(&terms(session, lease), &batch).await.unwrap();
                    let settles: Batch<_> = batch
                        .items()
                        .iter()
                        .zip(&outcomes)
                        .filter(|(_, outcome)| is_acquired(outcome))
                        .map(|(ask, outcome)| {
                            let verdicts = [
                                Verdict::Released,
                                Verdict::Failed { retry_in: Duration::ZERO, max_attempts: 50.try_into().unwrap() },
                                Verdict::Released,
                                SUCCESS,
                            ];
                            settle(&ask.sighting, granted(outcome), verdicts[usize::try_from(roll(4)).unwrap()].clone())
                        })
                        .collect();
                    store.settle(&settles).await.unwrap();
                }
            })
        }))
        .await;
        sessions.into_iter().for_each(Result::unwrap);
    }
}

both! {
    async fn f33_a_deadlock_with_somebody_else_is_survived(kind: Kind) {
        let (store, table) = kind.fresh().await;
        let set = random();
        let batch = asks(set, 0..40);
        let grants = store.claim(&terms(1, HOUR), &batch).await.unwrap();
        let extends: Batch<Extend> = batch
            .items()
            .iter()
            .zip(&grants)
            .map(|(ask, grant)| Extend { key: ask.sighting.key, token: granted(grant).token, lease: HOUR * 2 })
            .collect();
        let lock = |place: usize| {
            let key = kind.literal(batch.items()[place].sighting.key);
            format!("UPDATE {table} SET attempts = attempts WHERE message_key = {key}")
        };
        for _ in 0..4 {
            // Somebody holds the last row and then wants the first, while the store has the first and wants the last.
            let mut session = kind.session(&kind.url()).await;
            session.run("BEGIN").await;
            session.run(&lock(39)).await;
            let extending = {
                let (store, extends) = (Arc::clone(&store), extends.clone());
                tokio::spawn(async move { store.extend(&extends).await })
            };
            let mut watcher = kind.session(&kind.url()).await;
            eventually(PATIENCE, "the store waits for the last row", async || waits(kind, &mut watcher).await).await;
            // One of the two is told to give up: either is right, and the store says nothing of it.
            let mine = session.try_run(&lock(0)).await;
            let _ = session.try_run("ROLLBACK").await;
            assert_eq!(extending.await.unwrap().unwrap(), [ExtendOutcome::Held; 40], "{mine:?}");
        }
    }
}

/// Whether any statement waits for a row.
async fn waits(kind: Kind, session: &mut crate::servers::Session) -> bool {
    // MariaDB renews this table only when nobody has read it for 100 ms: who looks more often sees the same for ever.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let sql = match kind {
        Kind::Postgres => {
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%message_key%'"
        }
        Kind::Mariadb => "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    };
    session.number(sql).await > 0
}

both! {
    async fn f34_an_open_transaction_holds_up_its_own_record_alone(kind: Kind) {
        let table = unique("r");
        let tune = Tune { lock_timeout: Duration::from_millis(300), ..Tune::default() };
        let store = kind.open(&kind.url(), &table, tune).await.unwrap();
        store.ensure_schema().await.unwrap();
        let set = random();

        // A claim that is not yet committed, as a transaction of an application's own might make it.
        let mut session = kind.session(&kind.url()).await;
        session.run("BEGIN").await;
        let (held, print) = (kind.literal(key(set, 5)), kind.literal(key(0, 0)));
        session
            .run(&format!(
                "INSERT INTO {table} (message_key, fingerprint, owner, fence, time, attempts, state, origin) \
                 VALUES ({held}, {print}, 7, 1, 0, 1, 0, {})",
                if kind == Kind::Postgres { "''::bytea" } else { "''" }
            ))
            .await;
        let batch = asks(set, 0..16);
        let outcomes = store.claim(&terms(1, HOUR), &batch).await.unwrap();
        for (ask, outcome) in batch.items().iter().zip(&outcomes) {
            if ask.sighting.key == key(set, 5) {
                assert!(matches!(outcome, ClaimOutcome::InFlight { .. }), "{outcome:?}");
            } else {
                assert!(is_acquired(outcome), "{outcome:?}");
            }
        }
        session.run("ROLLBACK").await;
        let outcomes = store.claim(&terms(1, HOUR), &batch).await.unwrap();
        assert!(outcomes.iter().all(is_acquired));

        // A record that stands and is locked: the others are settled, and the call says that one was not.
        session.run("BEGIN").await;
        session.run(&format!("SELECT 1 FROM {table} WHERE message_key = {held} FOR UPDATE")).await;
        let settles: Batch<_> =
            batch.items().iter().zip(&outcomes).map(|(ask, grant)| settle(&ask.sighting, granted(grant), SUCCESS)).collect();
        let error = store.settle(&settles).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("open transaction"), "{error}");
        let keys: Batch<_> = batch.items().iter().map(|ask| ask.sighting.key).collect();
        for (key, record) in keys.keys().zip(store.get(&keys).await.unwrap()) {
            let settled = matches!(record.unwrap().state, State::Succeeded { .. });
            assert_eq!(settled, key != self::key(set, 5));
        }
        session.run("COMMIT").await;
        assert_eq!(store.settle(&settles).await.unwrap(), [SettleOutcome::Settled; 16]);
    }
}

/// Polls a future so many times, with a moment between for its connection, and drops it. Whether it was done before.
async fn poll_times<F: Future>(future: F, times: usize) -> bool {
    let mut future = pin!(future);
    let waker = Waker::noop();
    for _ in 0..times {
        if future.as_mut().poll(&mut Context::from_waker(waker)).is_ready() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    false
}

async fn survives_cancellation(store: &dyn DedupStore) {
    let set = random();
    let mut dropped = 0;
    for times in 0..60_u64 {
        let batch = asks(set, times * 10..times * 10 + 10);
        // Sharing a mixed batch takes the longest way: insert, read, take over.
        let old = asks(set, times * 10..times * 10 + 3);
        store.claim(&terms(9, Duration::ZERO), &old).await.unwrap();
        let owner = terms(1, HOUR);
        if !poll_times(store.claim(&owner, &batch), usize::try_from(times).unwrap()).await {
            dropped += 1;
        }
        // The next call works, and finds whatever was done: the same owner's claims are its own.
        let outcomes = store.claim(&owner, &batch).await.unwrap();
        assert!(outcomes.iter().all(is_acquired), "{outcomes:?}");
        let settles: Batch<_> = batch
            .items()
            .iter()
            .zip(&outcomes)
            .map(|(ask, grant)| settle(&ask.sighting, granted(grant), SUCCESS))
            .collect();
        poll_times(store.settle(&settles), usize::try_from(times).unwrap()).await;
        assert_eq!(store.settle(&settles).await.unwrap(), [SettleOutcome::Settled; 10]);
    }
    // The first was never polled. On a quiet machine few polls take a call to its end.
    assert!(dropped > 1, "{dropped}: none was dropped on its way");
}

both! {
    async fn f39_a_future_dropped_at_any_point_leaves_the_store_usable(kind: Kind) {
        let (store, _) = kind.fresh().await;
        survives_cancellation(&*store).await;
    }
}

both! {
    async fn f39_a_future_dropped_at_any_point_leaves_a_users_pool_usable(kind: Kind) {
        let (_, table) = kind.fresh().await;
        // One connection: if it stayed in use, or inside a statement, nothing would go on.
        let store = kind.pooled(&kind.url(), &table, 1, "SELECT 1").await;
        survives_cancellation(&*store).await;
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f39_a_future_dropped_at_any_point_leaves_sqlite_usable() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("records.db"), ":memory:".into()] {
        let store = hapax::store::SqliteStore::open(path).await.unwrap();
        store.ensure_schema().await.unwrap();
        survives_cancellation(&store).await;
    }
}

both! {
    async fn it_agrees_with_memory(kind: Kind) {
        let (store, table) = kind.fresh().await;
        crate::agree::agree(&*store, 120).await;
        // On a user's pool, too.
        let pooled = kind.pooled(&kind.url(), &table, 3, "SELECT 1").await;
        crate::agree::agree(&*pooled, 40).await;
    }
}

#[tokio::test]
async fn whatever_hapax_test_mysql_names_agrees_with_memory() {
    let url = crate::support::service("HAPAX_TEST_MYSQL");
    let store = Kind::Mariadb.open(&url, &unique("r"), Tune::default()).await.unwrap();
    store.ensure_schema().await.unwrap();
    assert_eq!(crate::servers::errors(&store.check().await.unwrap()), Vec::<&str>::new());
    crate::agree::agree(&*store, 60).await;
}
