//! Connections that are refused, cut, hung, and servers that restart.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hapax::record::{ClaimOutcome, ExtendOutcome, Fence, SettleOutcome, State, Verdict};
use hapax::store::{Ask, Batch, DedupStore, RedisStore, StoreErrorKind};

use crate::common::{
    SHORT, acquire, claim, extend, failure, first_token, granted, holds, message, owner, owner_for, persist, plain,
    prefixed, record, settle, success, with_prefix,
};
use crate::support::{PATIENCE, Relay, ThrowawayRedis, eventually, net, service, unique};

/// A store by way of a relay, and one that reaches the server directly, on the same records.
async fn relayed() -> (Relay, RedisStore, RedisStore) {
    let url = service("HAPAX_TEST_REDIS");
    let prefix = format!("{}:", unique("faults"));
    let relay = Relay::start(&url);
    let through = with_prefix(&prefix).connect(&relay.url(&url)).await.unwrap();
    let direct = with_prefix(&prefix).connect(&url).await.unwrap();
    (relay, through, direct)
}

#[tokio::test]
async fn f05_a_settle_that_failed_is_asked_again_with_the_same_token() {
    let (relay, store, direct) = relayed().await;
    for (number, verdict) in [success(), failure(), Verdict::Released, Verdict::Dead].into_iter().enumerate() {
        let message = message(number as u64);
        let token = acquire(&store, &owner(), &message).await.token;
        relay.down();
        let error = settle(&store, &message, token, verdict.clone()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        let untouched = record(&direct, &message).await.unwrap();
        assert!(matches!(untouched.state, State::Processing { .. }), "{untouched:?}");
        relay.restore();
        let settled = persist("settling", async || settle(&store, &message, token, verdict.clone()).await).await;
        assert_eq!(settled, SettleOutcome::Settled);
        let now = record(&direct, &message).await.unwrap();
        assert!(!matches!(now.state, State::Processing { .. }), "{now:?}");
    }
}

#[tokio::test]
async fn f06_an_unreachable_server_claims_nothing() {
    let (relay, store, direct) = relayed().await;
    relay.down();
    let terms = owner();
    let asks: Batch<Ask> = (0..100).map(|n| Ask::from(message(n))).collect();
    let error = store.claim(&terms, &asks).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let keys: Batch<_> = asks.keys().collect();
    assert!(direct.get(&keys).await.unwrap().iter().all(Option::is_none), "nothing was claimed");
    for error in [
        extend(&store, &message(1), first_token(&terms)).await.map(|_| ()).unwrap_err(),
        store.get(&keys).await.map(|_| ()).unwrap_err(),
        store.requeue(&keys).await.map(|_| ()).unwrap_err(),
        store.check().await.map(|_| ()).unwrap_err(),
        store.ensure_schema().await.unwrap_err(),
    ] {
        assert!(error.is_retryable(), "{error}");
    }
    relay.restore();
    let outcomes = persist("claiming", async || store.claim(&terms, &asks).await).await;
    assert!(outcomes.into_iter().all(|outcome| granted(outcome).attempt == 1));
}

#[tokio::test]
async fn f06_connecting_to_nobody_is_an_error_that_names_nothing() {
    let url = format!("redis://user:sesame@127.0.0.1:{}", net::free_port());
    let error = RedisStore::connect(&url).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("sesame") && !shown.contains("user:"), "{shown}");
    }
    for bad in ["", "127.0.0.1", "http://127.0.0.1", "redis://", "redis://user:sesame@host:port/x"] {
        let error = RedisStore::connect(bad).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{bad}: {error}");
        assert!(!format!("{error:?} {error}").contains("sesame"));
    }
}

#[tokio::test]
async fn f07_a_claim_whose_reply_was_lost_is_the_same_claim() {
    let (relay, store, direct) = relayed().await;
    let (message, terms) = (message(1), owner());
    relay.cut_reply_to(|bytes| holds(bytes, "NX"));
    // Sent once more on a new connection: it finds its own claim.
    let grant = acquire(&store, &terms, &message).await;
    assert_eq!(relay.caught(), 1, "the reply was lost");
    assert_eq!((grant.token.fence, grant.attempt, grant.took_over), (Fence::FIRST, 1, false));
    assert_eq!(record(&direct, &message).await.unwrap().attempts, 1);
    assert!(matches!(claim(&direct, &owner(), &message).await.unwrap(), ClaimOutcome::InFlight { .. }));

    // And where no new connection can be made, the caller asks again, with the same answer.
    let other = crate::common::message(2);
    relay.cut_reply_to(|bytes| holds(bytes, "NX"));
    relay.refuse();
    let error = claim(&store, &terms, &other).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(relay.caught(), 2);
    assert!(record(&direct, &other).await.is_some(), "it was claimed all the same");
    relay.restore();
    let grant = granted(persist("claiming", async || claim(&store, &terms, &other).await).await);
    assert_eq!((grant.token.fence, grant.attempt), (Fence::FIRST, 1));
}

#[tokio::test]
async fn f07_a_settle_whose_reply_was_lost_is_settled_once() {
    let (relay, store, direct) = relayed().await;
    for (number, (verdict, attempts)) in
        [(success(), 1), (failure(), 1), (Verdict::Released, 0), (Verdict::Dead, 1)].into_iter().enumerate()
    {
        let message = message(number as u64);
        let token = acquire(&store, &owner(), &message).await.token;
        relay.cut_reply_to(|bytes| holds(bytes, "SET") || holds(bytes, "EVAL"));
        assert_eq!(settle(&store, &message, token, verdict.clone()).await.unwrap(), SettleOutcome::Settled);
        assert_eq!(relay.caught(), number + 1, "the reply was lost");
        let record = record(&direct, &message).await.unwrap();
        assert_eq!(record.attempts, attempts, "{record:?}");
        assert!(!matches!(record.state, State::Processing { .. } | State::Succeeded { late: true, .. }), "{record:?}");
    }
}

#[tokio::test]
async fn f07_a_takeover_whose_reply_was_lost_is_one_takeover() {
    let (relay, store, direct) = relayed().await;
    let message = message(1);
    acquire(&direct, &owner_for(SHORT), &message).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut scripts = 0;
    relay.cut_reply_to(move |bytes| {
        // The first script reads the age, the second takes over.
        scripts += usize::from(holds(bytes, "EVAL"));
        scripts == 2
    });
    let grant = acquire(&store, &owner(), &message).await;
    assert_eq!(relay.caught(), 1, "the reply was lost");
    assert_eq!((grant.token.fence, grant.attempt), (Fence::new(2), 2), "taken over once, counted once");
    assert_eq!(record(&direct, &message).await.unwrap().token(), grant.token);
}

#[tokio::test]
async fn f07_an_extension_whose_reply_was_lost_is_held() {
    let (relay, store, _) = relayed().await;
    let message = message(1);
    let token = acquire(&store, &owner(), &message).await.token;
    relay.cut_reply_to(|bytes| holds(bytes, "EVAL"));
    assert_eq!(extend(&store, &message, token).await.unwrap(), ExtendOutcome::Held);
    assert_eq!(relay.caught(), 1);
}

#[tokio::test]
async fn one_new_connection_serves_all_who_wait() {
    let (relay, store, _) = relayed().await;
    let before = relay.opened();
    relay.cut();
    eventually(PATIENCE, "the connection is gone", async || relay.live() == 0).await;
    let terms = owner();
    let mut callers = Vec::new();
    for number in 0..50 {
        let (store, terms) = (store.clone(), terms);
        callers.push(tokio::spawn(async move { claim(&store, &terms, &message(number)).await }));
    }
    for caller in callers {
        granted(caller.await.unwrap().unwrap());
    }
    assert_eq!(relay.opened() - before, 1, "one attempt, shared");
}

#[tokio::test]
async fn a_server_that_hangs_is_an_unknown_outcome_within_the_time_given() {
    let server = ThrowawayRedis::start(&[]);
    let store = prefixed().response_timeout(Duration::from_millis(300)).connect(&server.url()).await.unwrap();
    let terms = owner();
    acquire(&store, &terms, &message(0)).await;
    server.pause();
    let error = tokio::time::timeout(PATIENCE, claim(&store, &terms, &message(1))).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    server.resume();
    // The server may have got the first request by now; it is the same claim.
    let grant = granted(persist("claiming", async || claim(&store, &terms, &message(1)).await).await);
    assert_eq!((grant.token.fence, grant.attempt), (Fence::FIRST, 1));
}

#[tokio::test]
async fn a_connection_that_hangs_for_good_is_given_up() {
    let url = service("HAPAX_TEST_REDIS");
    let relay = Relay::start(&url);
    let store = prefixed().response_timeout(Duration::from_millis(300)).connect(&relay.url(&url)).await.unwrap();
    let before = relay.opened();
    relay.black_hole(crate::support::Direction::ToServer);
    let error = tokio::time::timeout(PATIENCE, claim(&store, &owner(), &message(1))).await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    relay.restore();
    granted(persist("claiming", async || claim(&store, &owner(), &message(2)).await).await);
    assert!(relay.opened() > before, "on a new connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_of_work_loses_and_doubles_nothing() {
    const MESSAGES: u64 = 400;
    let mut server = ThrowawayRedis::start(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&server.url()).await.unwrap();
    let effects = Arc::new(std::sync::Mutex::new(HashMap::<u64, u32>::new()));
    let mut workers = Vec::new();
    for worker in 0..4 {
        let (store, effects) = (store.clone(), effects.clone());
        workers.push(tokio::spawn(async move {
            let terms = owner();
            for number in (0..MESSAGES).filter(|number| number % 4 == worker) {
                let message = message(number);
                let asks = Batch::one(Ask::from(message.clone()));
                // Not `persist`: what is spawned must be known to be Send.
                let token = loop {
                    match store.claim(&terms, &asks).await {
                        Ok(mut outcomes) => break granted(outcomes.remove(0)).token,
                        Err(error) => assert!(error.is_retryable(), "{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                };
                *effects.lock().unwrap().entry(number).or_default() += 1;
                loop {
                    match settle(&store, &message, token, success()).await {
                        Ok(settled) => break assert_eq!(settled, SettleOutcome::Settled),
                        Err(error) => assert!(error.is_retryable(), "{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }));
    }
    for part in 1..=2 {
        eventually(PATIENCE, "work goes on", async || effects.lock().unwrap().len() as u64 >= MESSAGES * part / 4)
            .await;
        server.kill9();
        server.restart();
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let effects = effects.lock().unwrap();
    assert_eq!(effects.len() as u64, MESSAGES);
    assert!(effects.values().all(|count| *count == 1), "{effects:?}");
    drop(server);
}

#[tokio::test]
async fn scripts_that_were_flushed_are_sent_again() {
    let server = ThrowawayRedis::start(&[]);
    let store = prefixed().connect(&server.url()).await.unwrap();
    let terms = owner();
    let asks: Batch<Ask> = (0..600).map(|n| Ask::from(message(n))).collect();
    store.claim(&terms, &asks).await.unwrap();
    for round in 0..3 {
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]).unwrap(), "+OK");
        let claims: Batch<_> = asks
            .items()
            .iter()
            .map(|ask| hapax::record::Extend {
                key: ask.sighting.key,
                token: first_token(&terms),
                lease: crate::common::LONG * (round + 2),
            })
            .collect();
        let held = store.extend(&claims).await.unwrap();
        assert!(held.iter().all(|held| *held == ExtendOutcome::Held));
    }
    // What was sent is known again: the second time goes by digest.
    let before = server.command(&["INFO", "commandstats"]).unwrap();
    assert!(before.contains("cmdstat_eval:"), "the text was sent: {before}");
    let evals = |stats: &str| -> String {
        stats.lines().find(|line| line.starts_with("cmdstat_eval:")).unwrap().split(',').next().unwrap().to_owned()
    };
    extend(&store, &message(1), first_token(&terms)).await.unwrap();
    assert_eq!(evals(&server.command(&["INFO", "commandstats"]).unwrap()), evals(&before));
}

#[tokio::test]
async fn a_connection_of_the_users_own_serves() {
    let url = service("HAPAX_TEST_REDIS");
    let prefix = format!("{}:", unique("faults"));
    let own = with_prefix(&prefix).with_connection(plain(&url).await).unwrap();
    let direct = with_prefix(&prefix).connect(&url).await.unwrap();
    let (message, terms) = (message(1), owner());
    let token = acquire(&own, &terms, &message).await.token;
    assert!(matches!(claim(&direct, &owner(), &message).await.unwrap(), ClaimOutcome::InFlight { .. }));
    assert_eq!(settle(&own, &message, token, success()).await.unwrap(), SettleOutcome::Settled);
    assert!(matches!(claim(&direct, &owner(), &message).await.unwrap(), ClaimOutcome::Duplicate { .. }));
    own.ensure_schema().await.unwrap();
    own.check().await.unwrap();

    // RESP3 answers in other shapes.
    let resp3 = with_prefix(&prefix).connect(&format!("{url}/?protocol=resp3")).await.unwrap();
    assert!(matches!(claim(&resp3, &owner(), &message).await.unwrap(), ClaimOutcome::Duplicate { .. }));
    acquire(&resp3, &terms, &crate::common::message(2)).await;
    assert_eq!(extend(&resp3, &crate::common::message(2), first_token(&terms)).await.unwrap(), ExtendOutcome::Held);
    assert_eq!(resp3.check().await.unwrap(), direct.check().await.unwrap());
}
