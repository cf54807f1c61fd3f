//! Servers that are not reached, replies that are lost, connections that die, servers that are killed and come back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, SettleOutcome, State, Verdict};
use hapax::store::{Ask, Batch, DedupStore, StoreErrorKind};

use crate::common::{
    HOUR, SUCCESS, ask, asks, claim_one, granted, is_acquired, key, settle, settle_one, sighting, terms,
};
use crate::servers::{Kind, Tune, both};
use crate::support::{Direction, PATIENCE, Relay, eventually, net, random, unique};

both! {
    async fn f05_a_failed_settle_is_asked_again_with_the_same_token(kind: Kind) {
        let relay = Relay::start(&kind.url());
        let table = unique("r");
        let store = kind.open(&relay.url(&kind.url()), &table, Tune::default()).await.unwrap();
        store.ensure_schema().await.unwrap();
        let batch = asks(random(), 0..20);
        let grants = store.claim(&terms(1, HOUR), &batch).await.unwrap();
        let settles: Batch<_> =
            batch.items().iter().zip(&grants).map(|(ask, grant)| settle(&ask.sighting, granted(grant), SUCCESS)).collect();
        relay.down();
        let error = store.settle(&settles).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        // Nobody else gets what may have been done.
        let other = kind.open(&kind.url(), &table, Tune::default()).await.unwrap();
        assert!(!other.claim(&terms(2, HOUR), &batch).await.unwrap().iter().any(is_acquired));
        relay.restore();
        assert_eq!(store.settle(&settles).await.unwrap(), [SettleOutcome::Settled; 20]);
        assert_eq!(store.settle(&settles).await.unwrap(), [SettleOutcome::Settled; 20]);
        let now = other.claim(&terms(2, HOUR), &batch).await.unwrap();
        assert!(now.iter().all(|outcome| matches!(outcome, ClaimOutcome::Duplicate { .. })));
    }
}

both! {
    async fn f06_an_unreachable_store_claims_nothing(kind: Kind) {
        let relay = Relay::start(&kind.url());
        let table = unique("r");
        let store = kind.open(&relay.url(&kind.url()), &table, Tune::default()).await.unwrap();
        store.ensure_schema().await.unwrap();
        let batch = asks(random(), 0..20);
        relay.down();
        for _ in 0..3 {
            let error = store.claim(&terms(1, HOUR), &batch).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        }
        relay.restore();
        // Nothing had been claimed, and the store finds its way back by itself.
        let other = kind.open(&kind.url(), &table, Tune::default()).await.unwrap();
        assert!(other.claim(&terms(2, HOUR), &batch).await.unwrap().iter().all(is_acquired));
        assert!(store.claim(&terms(2, HOUR), &batch).await.unwrap().iter().all(is_acquired));
    }
}

both! {
    async fn f06_a_server_that_hangs_is_given_up(kind: Kind) {
        let relay = Relay::start(&kind.url());
        let tune = Tune { timeout: Duration::from_secs(2), ..Tune::default() };
        let store = kind.open(&relay.url(&kind.url()), &unique("r"), tune).await.unwrap();
        store.ensure_schema().await.unwrap();
        let batch = asks(random(), 0..20);
        relay.black_hole(Direction::ToClient);
        let error = store.claim(&terms(1, HOUR), &batch).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        relay.restore();
        // The connection that hung is not used again; whatever had been done is found by asking.
        eventually(PATIENCE, "the claim is answered", async || {
            store.claim(&terms(1, HOUR), &batch).await.is_ok_and(|outcomes| outcomes.iter().all(is_acquired))
        })
        .await;
    }
}

both! {
    async fn f06_nobody_listens_and_no_error_tells_the_password(kind: Kind) {
        let port = net::free_port();
        let scheme = if kind == Kind::Postgres { "postgres" } else { "mysql" };
        let url = format!("{scheme}://someone:s3cr3t-word@127.0.0.1:{port}/nothing");
        let error = kind.open(&url, "r", Tune::default()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(!format!("{error:?} {error}").contains("s3cr3t"));
        // A wrong password is not worth another try.
        let right = kind.url();
        let (_, host, after) = net::split_url(&right);
        let error = kind.open(&format!("{scheme}://someone:s3cr3t-word@{host}{after}"), "r", Tune::default()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
        assert!(!format!("{error:?} {error}").contains("s3cr3t"));
        for wrong in ["", "nonsense", "postgres//x", "http://127.0.0.1/", "mysql://s3cr3t:s3cr3t@[::1/x"] {
            let error = kind.open(wrong, "r", Tune::default()).await.unwrap_err();
            assert!(!format!("{error:?} {error}").contains("s3cr3t"), "{error}");
        }
    }
}

both! {
    async fn f07_a_lost_reply_is_found_out_by_asking_again(kind: Kind) {
        let relay = Relay::start(&kind.url());
        let table = unique("r");
        let store = kind.open(&relay.url(&kind.url()), &table, Tune::default()).await.unwrap();
        store.ensure_schema().await.unwrap();
        let rival = kind.open(&kind.url(), &table, Tune::default()).await.unwrap();
        let set = random();
        // Prepared beforehand, so that the next request is the statement itself.
        let warm = store.claim(&terms(1, HOUR), &asks(set, 0..8)).await.unwrap();
        let warm: Batch<_> = asks(set, 0..8)
            .items()
            .iter()
            .zip(&warm)
            .map(|(ask, grant)| settle(&ask.sighting, granted(grant), SUCCESS))
            .collect();
        store.settle(&warm).await.unwrap();
        let extends = |grants: &[ClaimOutcome]| -> Batch<Extend> {
            let claims = asks(set, 100..108);
            claims
                .items()
                .iter()
                .zip(grants)
                .map(|(ask, grant)| Extend { key: ask.sighting.key, token: granted(grant).token, lease: HOUR * 2 })
                .collect()
        };

        relay.cut_next_reply();
        let claims = asks(set, 100..108);
        let grants = store.claim(&terms(1, HOUR), &claims).await.unwrap();
        assert_eq!(relay.caught(), 1);
        // The insert was done; asking again by itself, the store found that it was ours.
        for grant in &grants {
            let grant = granted(grant);
            assert_eq!((grant.attempt, grant.token.fence.get(), grant.took_over), (1, 1, false));
        }
        assert!(!rival.claim(&terms(2, HOUR), &claims).await.unwrap().iter().any(is_acquired));

        assert_eq!(store.extend(&extends(&grants)).await.unwrap(), [ExtendOutcome::Held; 8]);
        relay.cut_next_reply();
        assert_eq!(store.extend(&extends(&grants)).await.unwrap(), [ExtendOutcome::Held; 8]);
        assert_eq!(relay.caught(), 2);

        for (number, verdict, wanted) in [
            (0, SUCCESS, SettleOutcome::Settled),
            (1, Verdict::Failed { retry_in: HOUR, max_attempts: 3.try_into().unwrap() }, SettleOutcome::Settled),
            (2, Verdict::Failed { retry_in: HOUR, max_attempts: 1.try_into().unwrap() }, SettleOutcome::Buried),
            (3, Verdict::Released, SettleOutcome::Settled),
            (4, Verdict::Dead, SettleOutcome::Settled),
        ] {
            let place = claims.items().iter().position(|ask| *ask == self::ask(set, 100 + number)).unwrap();
            let caught = relay.caught();
            // Any size of batch was prepared, or is now: the reply to be lost is that of the statement.
            let one = &claims.items()[place].sighting;
            settle_one(&*store, &sighting(set, 0), granted(&grants[place]), SUCCESS).await;
            relay.cut_next_reply();
            assert_eq!(settle_one(&*store, one, granted(&grants[place]), verdict.clone()).await, wanted, "{verdict:?}");
            assert_eq!(relay.caught(), caught + 1);
            let record = rival.get(&Batch::one(one.key)).await.unwrap().remove(0).unwrap();
            assert_eq!(record.attempts, if verdict == Verdict::Released { 0 } else { 1 }, "{verdict:?}: counted once");
        }
    }
}

both! {
    async fn f07_many_lost_replies_and_one_winner_each(kind: Kind) {
        let table = unique("r");
        kind.open(&kind.url(), &table, Tune::default()).await.unwrap().ensure_schema().await.unwrap();
        let set = random();
        let racers = (1..=4_u64).map(|owner| {
            let table = table.clone();
            async move {
                let relay = Relay::start(&kind.url());
                let store = kind.open(&relay.url(&kind.url()), &table, Tune::default()).await.unwrap();
                let mut won = Vec::new();
                for round in 0..25 {
                    let batch = asks(set, round * 8..round * 8 + 12);
                    // A reply here, a request there; twice in a row is an error, and the caller asks again.
                    match (round + owner) % 3 {
                        0 => relay.cut_next_reply(),
                        1 => relay.cut_request(|_| true),
                        _ => {}
                    }
                    let outcomes = loop {
                        match store.claim(&terms(owner, HOUR), &batch).await {
                            Ok(outcomes) => break outcomes,
                            Err(error) => assert!(error.is_retryable(), "{error}"),
                        }
                    };
                    for (ask, outcome) in batch.items().iter().zip(outcomes) {
                        if is_acquired(&outcome) {
                            won.push(ask.sighting.key);
                        }
                    }
                }
                assert!(relay.caught() > 5);
                won.sort();
                won.dedup();
                won
            }
        });
        let won: Vec<_> = join_all(racers).await.concat();
        let mut distinct = won.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 24 * 8 + 12, "every message has a winner");
        assert_eq!(won.len(), distinct.len(), "and only one");
    }
}

both! {
    async fn f32_a_record_that_vanishes_between_claim_and_read_is_claimed(kind: Kind) {
        let relay = Relay::start(&kind.url());
        let table = unique("r");
        let store = kind.open(&relay.url(&kind.url()), &table, Tune::default()).await.unwrap();
        store.ensure_schema().await.unwrap();
        let set = random();
        for number in 0..2 {
            let grant = granted(&claim_one(&*store, &terms(1, HOUR), &sighting(set, number)).await);
            settle_one(&*store, &sighting(set, number), grant, SUCCESS).await;
        }
        // Prepares the insert and the read.
        let known = claim_one(&*store, &terms(2, HOUR), &sighting(set, 0)).await;
        assert!(matches!(known, ClaimOutcome::Duplicate { .. }));

        // The second request is the read: before it passes, the row goes.
        let (ask_delete, mut asked) = tokio::sync::mpsc::unbounded_channel::<std::sync::mpsc::Sender<()>>();
        let sql = format!("DELETE FROM {table} WHERE message_key = {}", kind.literal(key(set, 1)));
        let mut session = kind.session(&kind.url()).await;
        let deleter = tokio::spawn(async move {
            let done = asked.recv().await.unwrap();
            session.run(&sql).await;
            done.send(()).unwrap();
        });
        let mut requests = 0;
        relay.cut_request(move |_| {
            requests += 1;
            if requests == 2 {
                let (done, wait) = std::sync::mpsc::channel();
                ask_delete.send(done).unwrap();
                wait.recv_timeout(PATIENCE).unwrap();
            }
            false
        });
        let outcome = claim_one(&*store, &terms(2, HOUR), &sighting(set, 1)).await;
        deleter.await.unwrap();
        let grant = granted(&outcome);
        assert_eq!(grant.token.owner.get(), 2);
        let record = store.get(&Batch::one(key(set, 1))).await.unwrap().remove(0).unwrap();
        assert_eq!(record.token(), grant.token, "a claim that was granted stands in the store");
    }
}

both! {
    async fn a_connection_the_server_ended_is_replaced_without_an_error(kind: Kind) {
        let mark = unique("mark");
        let mut admin = kind.session(&kind.url()).await;
        let url = match kind {
            Kind::Postgres => format!("{}?application_name={mark}", kind.url()),
            Kind::Mariadb => {
                admin.run(&format!("CREATE DATABASE {mark}")).await;
                let url = kind.url();
                format!("{}/{mark}", url.rsplit_once('/').unwrap().0)
            }
        };
        let store = kind.open(&url, "r", Tune::default()).await.unwrap();
        let table = unique("r");
        let store = if kind == Kind::Postgres { kind.open(&url, &table, Tune::default()).await.unwrap() } else { store };
        store.ensure_schema().await.unwrap();
        let set = random();
        for round in 0..5 {
            // Several connections, all idle when they are ended.
            join_all((0..4).map(|part| {
                let (store, number) = (store.clone(), round * 100 + part * 10);
                async move { store.claim(&terms(1, HOUR), &asks(set, number..number + 10)).await.unwrap() }
            }))
            .await;
            admin.end_others(&mark).await;
            let outcomes = store.claim(&terms(1, HOUR), &asks(set, round * 100 + 50..round * 100 + 60)).await.unwrap();
            assert!(outcomes.iter().all(is_acquired));
        }
        drop(store);
        if kind == Kind::Mariadb {
            admin.run(&format!("DROP DATABASE {mark}")).await;
        }
    }
}

both! {
    async fn f18_what_was_acknowledged_survives_kill_9_and_the_store_finds_its_way_back(kind: Kind) {
        let mut server = kind.throwaway(&[]);
        let store = kind.open(&server.url(), "records", Tune { timeout: Duration::from_secs(10), ..Tune::default() }).await.unwrap();
        store.ensure_schema().await.unwrap();
        let report = store.check().await.unwrap();
        assert_eq!(crate::servers::errors(&report), Vec::<&str>::new(), "{report:?}");
        let mut kept = Vec::new();
        let set = random();
        for crash in 0..2_u64 {
            let writers: Vec<_> = (0..4_u64)
                .map(|writer| {
                    let store = Arc::clone(&store);
                    tokio::spawn(async move {
                        let mut done = Vec::new();
                        for round in 0.. {
                            let first = (crash * 4 + writer) * 1_000_000 + round * 5;
                            let batch = asks(set, first..first + 5);
                            let Ok(outcomes) = store.claim(&terms(writer, HOUR), &batch).await else { break };
                            done.extend(batch.items().iter().zip(outcomes).map(|(ask, outcome)| (ask.sighting.key, granted(&outcome))));
                        }
                        done
                    })
                })
                .collect();
            let probe = Arc::clone(&store);
            eventually(PATIENCE, "there is work under way", async || {
                probe.get(&Batch::one(key(set, crash * 4_000_000 + 50))).await.is_ok_and(|found| found[0].is_some())
            })
            .await;
            server.kill9();
            for writer in writers {
                kept.extend(writer.await.unwrap());
            }
            // Down: an error that says so, and no outcome.
            let error = store.claim(&terms(9, HOUR), &asks(set, 9_000_000..9_000_005)).await.unwrap_err();
            assert!(error.is_retryable(), "{error}");
            server.restart();
            // The first call after the restart works by itself.
            assert!(is_acquired(&claim_one(&*store, &terms(9, HOUR), &sighting(set, 9_100_000 + crash)).await));
        }
        assert!(kept.len() > 100, "{}", kept.len());
        let keys: Batch<_> = kept.iter().map(|(key, _)| *key).collect();
        let found: std::collections::HashMap<_, _> = keys.keys().zip(store.get(&keys).await.unwrap()).collect();
        for (key, grant) in kept {
            let record = found[&key].as_ref().unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            assert_eq!(record.token(), grant.token);
            assert!(matches!(record.state, State::Processing { .. }));
        }
    }
}

both! {
    async fn an_orderly_restart_in_the_middle_of_a_run_repeats_nothing(kind: Kind) {
        let mut server = kind.throwaway(&[]);
        let store = kind.open(&server.url(), "records", Tune { timeout: Duration::from_secs(10), ..Tune::default() }).await.unwrap();
        store.ensure_schema().await.unwrap();
        let set = random();
        let work = async {
            let mut first_attempts = 0;
            for round in 0..60_u64 {
                let batch = asks(set, round * 10..round * 10 + 10);
                let grants = again(async || store.claim(&terms(1, HOUR), &batch).await).await;
                first_attempts += grants.iter().filter(|grant| granted(grant).attempt == 1).count();
                let settles: Batch<_> =
                    batch.items().iter().zip(&grants).map(|(ask, grant)| settle(&ask.sighting, granted(grant), SUCCESS)).collect();
                let outcomes = again(async || store.settle(&settles).await).await;
                assert_eq!(outcomes, [SettleOutcome::Settled; 10]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            first_attempts
        };
        let restart = async {
            eventually(PATIENCE, "the run has begun", async || {
                store.get(&Batch::one(key(set, 60))).await.is_ok_and(|found| found[0].is_some())
            })
            .await;
            let restarting = tokio::task::spawn_blocking(move || {
                server.stop();
                server.restart();
                server
            });
            restarting.await.unwrap()
        };
        let (first_attempts, _server) = tokio::join!(work, restart);
        assert_eq!(first_attempts, 600);
        let all: Batch<_> = (0..600).map(|number| key(set, number)).collect();
        for record in store.get(&all).await.unwrap() {
            let record = record.unwrap();
            assert!(matches!(record.state, State::Succeeded { late: false, .. }), "{record:?}");
            assert_eq!((record.attempts, record.fence.get()), (1, 1));
        }
    }
}

/// Asks until there is an answer: what a caller does with a retryable error.
async fn again<T>(mut ask: impl AsyncFnMut() -> Result<T, hapax::store::StoreError>) -> T {
    let started = std::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                assert!(started.elapsed() < PATIENCE * 2, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

both! {
    async fn a_server_that_stops_for_a_while_costs_no_connection(kind: Kind) {
        let relay = Relay::start(&kind.url());
        let tune = Tune { timeout: Duration::from_secs(1), ..Tune::default() };
        let store = kind.open(&relay.url(&kind.url()), &unique("r"), tune).await.unwrap();
        store.ensure_schema().await.unwrap();
        let set = random();
        for round in 0..3 {
            relay.black_hole(Direction::ToClient);
            // More than there are connections: none may stay with a call that gave up.
            let errors = join_all((0..6).map(|part| {
                let store: Arc<dyn DedupStore> = Arc::clone(&store);
                let batch: Batch<Ask> = asks(set, round * 100 + part..round * 100 + part + 1);
                async move { store.claim(&terms(1, HOUR), &batch).await.unwrap_err() }
            }))
            .await;
            assert!(errors.iter().all(|error| error.is_retryable()), "{errors:?}");
            relay.restore();
            let batch = asks(set, round * 100..round * 100 + 6);
            let outcomes = again(async || store.claim(&terms(1, HOUR), &batch).await).await;
            assert!(outcomes.iter().all(is_acquired));
        }
    }
}
