//! What Redis forgets, and what L0 therefore means: shown, not hidden.

use std::time::Duration;

use hapax::record::{ClaimOutcome, Origin, SettleOutcome, State};
use hapax::store::{Ask, Batch, DedupStore, StoreErrorKind};

use crate::common::{
    acquire, claim, first_token, granted, message, owner, persist, plain, prefixed, record, settle, success,
    with_prefix,
};
use crate::support::{Direction, PATIENCE, Relay, ThrowawayRedis, eventually, unique};

#[tokio::test]
async fn f15_a_failover_forgets_what_was_not_replicated() {
    let mut primary = ThrowawayRedis::start(&[]);
    let replica = ThrowawayRedis::start(&[]);
    let relay = Relay::start(&primary.url());
    let port = relay.address().port().to_string();
    assert_eq!(replica.command(&["REPLICAOF", "127.0.0.1", &port]).unwrap(), "+OK");
    eventually(PATIENCE, "the replica is in step", async || {
        replica.command(&["INFO", "replication"]).unwrap().contains("master_link_status:up")
    })
    .await;
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&primary.url()).await.unwrap();
    let terms = owner();
    let done = async |number: u64| {
        let token = acquire(&store, &terms, &message(number)).await.token;
        assert_eq!(settle(&store, &message(number), token, success()).await.unwrap(), SettleOutcome::Settled);
    };
    done(1).await;
    eventually(PATIENCE, "the first message is replicated", async || replica.command(&["DBSIZE"]).unwrap() == ":1")
        .await;

    // Nothing reaches the replica any more; the primary acknowledges a success and a claim, and dies.
    relay.black_hole(Direction::ToClient);
    done(2).await;
    let lost = acquire(&store, &terms, &message(3)).await.token;
    primary.kill9();
    relay.down();
    assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]).unwrap(), "+OK");

    let store = with_prefix(&prefix).connect(&replica.url()).await.unwrap();
    assert!(matches!(claim(&store, &owner(), &message(1)).await.unwrap(), ClaimOutcome::Duplicate { .. }));
    // L0: an acknowledged success is forgotten, and the message would be handled again.
    assert_eq!(granted(claim(&store, &owner(), &message(2)).await.unwrap()).attempt, 1);
    // A forgotten claim's success is remembered all the same, and flagged.
    assert_eq!(settle(&store, &message(3), lost, success()).await.unwrap(), SettleOutcome::Late);
    let remembered = record(&store, &message(3)).await.unwrap();
    assert!(matches!(remembered.state, State::Succeeded { late: true, .. }), "{remembered:?}");
    assert_eq!(remembered.origin, Origin { topic: "orders".into(), partition: 3, offset: 17 });
}

#[tokio::test]
async fn f16_eviction_is_named_before_and_after_it_happens() {
    let server = ThrowawayRedis::start(&[("maxmemory", "3mb"), ("maxmemory-policy", "volatile-lru")]);
    let store = prefixed().connect(&server.url()).await.unwrap();
    let report = store.check().await.unwrap();
    assert!(report.errors().any(|finding| finding.setting == "maxmemory-policy"), "{report:?}");
    assert!(!report.names("evicted_keys"));
    // It does forget: claims that were acknowledged are granted again.
    let terms = owner();
    for part in 0..40 {
        let asks: Batch<Ask> = (part * 500..(part + 1) * 500).map(|n| Ask::from(message(n))).collect();
        store.claim(&terms, &asks).await.unwrap();
    }
    let report = store.check().await.unwrap();
    assert!(report.warnings().any(|finding| finding.setting == "evicted_keys"), "{report:?}");
    let keys: Batch<_> = (0..20_000).map(|n| message(n).key).collect();
    let forgotten = store.get(&keys).await.unwrap().iter().filter(|record| record.is_none()).count();
    assert!(forgotten > 0, "live claims were evicted");
}

#[tokio::test]
async fn f16_a_full_server_that_does_not_evict_refuses_and_forgets_nothing() {
    let server = ThrowawayRedis::start(&[("maxmemory", "3mb"), ("maxmemory-policy", "noeviction")]);
    let store = prefixed().connect(&server.url()).await.unwrap();
    assert_eq!(store.check().await.unwrap().errors().count(), 0);
    let terms = owner();
    let mut claimed = Vec::new();
    let error = loop {
        let number = claimed.len() as u64;
        let asks: Batch<Ask> = (number..number + 500).map(|n| Ask::from(message(n))).collect();
        match store.claim(&terms, &asks).await {
            Ok(_) => claimed.extend(number..number + 500),
            Err(error) => break error,
        }
        assert!(number < 100_000, "3 MB are full by then");
    };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    let keys: Batch<_> = claimed.iter().map(|n| message(*n).key).collect();
    assert!(store.get(&keys).await.unwrap().iter().all(Option::is_some));
    // With room again, the same batch goes through.
    assert_eq!(server.command(&["CONFIG", "SET", "maxmemory", "64mb"]).unwrap(), "+OK");
    let number = claimed.len() as u64;
    let asks: Batch<Ask> = (number..number + 500).map(|n| Ask::from(message(n))).collect();
    assert!(store.claim(&terms, &asks).await.unwrap().into_iter().all(|outcome| granted(outcome).attempt == 1));
}

#[tokio::test]
async fn f16_a_policy_without_a_limit_is_a_warning() {
    let server = ThrowawayRedis::start(&[("maxmemory-policy", "allkeys-lru")]);
    let report = prefixed().connect(&server.url()).await.unwrap().check().await.unwrap();
    assert!(report.warnings().any(|finding| finding.setting == "maxmemory-policy"), "{report:?}");
    assert_eq!(report.errors().count(), 0, "{report:?}");
}

#[tokio::test]
async fn f17_a_restart_without_a_log_forgets_and_the_check_says_so() {
    let mut server = ThrowawayRedis::start(&[]);
    let store = prefixed().connect(&server.url()).await.unwrap();
    let report = store.check().await.unwrap();
    assert!(report.warnings().any(|finding| finding.setting == "appendonly"), "{report:?}");
    let (message, terms) = (message(1), owner());
    let token = acquire(&store, &terms, &message).await.token;
    assert_eq!(settle(&store, &message, token, success()).await.unwrap(), SettleOutcome::Settled);
    server.kill9();
    server.restart();
    // L0: it is handled again.
    let outcome = persist("claiming", async || claim(&store, &owner(), &message).await).await;
    assert_eq!(granted(outcome).attempt, 1);
}

#[tokio::test]
async fn f17_a_log_keeps_what_was_acknowledged() {
    let mut server = ThrowawayRedis::start(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let store = prefixed().connect(&server.url()).await.unwrap();
    let report = store.check().await.unwrap();
    assert_eq!(report.findings(), &[], "nothing to say about this server");
    let (done, held, terms) = (message(1), message(2), owner());
    let token = acquire(&store, &terms, &done).await.token;
    assert_eq!(settle(&store, &done, token, success()).await.unwrap(), SettleOutcome::Settled);
    acquire(&store, &terms, &held).await;
    server.kill9();
    server.restart();
    let again = persist("claiming", async || claim(&store, &owner(), &done).await).await;
    assert!(matches!(again, ClaimOutcome::Duplicate { .. }), "{again:?}");
    // The lease has gone on meanwhile, and is still its owner's.
    match claim(&store, &owner(), &held).await.unwrap() {
        ClaimOutcome::InFlight { remaining } => assert!(remaining <= crate::common::LONG),
        other => panic!("{other:?}"),
    }
    assert_eq!(settle(&store, &held, first_token(&terms), success()).await.unwrap(), SettleOutcome::Settled);
}

#[tokio::test]
async fn f17_a_log_that_is_never_synced_is_named() {
    let server = ThrowawayRedis::start(&[("appendonly", "yes"), ("appendfsync", "no")]);
    let report = prefixed().connect(&server.url()).await.unwrap().check().await.unwrap();
    assert!(report.warnings().any(|finding| finding.setting == "appendfsync"), "{report:?}");
}

#[tokio::test]
async fn f35_a_replica_is_refused() {
    let primary = ThrowawayRedis::start(&[]);
    let port = primary.port().to_string();
    let replica = ThrowawayRedis::start(&[("replicaof", &format!("127.0.0.1 {port}"))]);
    let patience = prefixed().connect_timeout(Duration::from_secs(30));
    let error = patience.clone().connect(&replica.url()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "it may be promoted yet: {error}");
    assert!(error.to_string().contains("replica"), "{error}");

    // A connection of the user's own to a replica: the check refuses it, and it claims nothing.
    let store = patience.with_connection(plain(&replica.url()).await).unwrap();
    let report = store.check().await.unwrap();
    assert!(report.errors().any(|finding| finding.setting == "role"), "{report:?}");
    let error = claim(&store, &owner(), &message(1)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("replica"), "{error}");
    assert_eq!(primary.command(&["DBSIZE"]).unwrap(), ":0");
}

#[tokio::test]
async fn f35_a_primary_that_is_demoted_is_left() {
    let other = ThrowawayRedis::start(&[]);
    let server = ThrowawayRedis::start(&[]);
    let relay = Relay::start(&server.url());
    let store = prefixed().connect(&relay.url(&server.url())).await.unwrap();
    let (message, terms) = (message(1), owner());
    acquire(&store, &terms, &message).await;
    let before = relay.opened();
    assert_eq!(server.command(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]).unwrap(), "+OK");
    let error = claim(&store, &terms, &crate::common::message(2)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("replica"), "{error}");
    assert!(relay.opened() > before, "its name may lead to the new primary by now");
    let error = settle(&store, &message, first_token(&terms), success()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(server.command(&["REPLICAOF", "NO", "ONE"]).unwrap(), "+OK");
    let outcome = persist("claiming", async || claim(&store, &terms, &crate::common::message(2)).await).await;
    assert_eq!(granted(outcome).attempt, 1);
}
