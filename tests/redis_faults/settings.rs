//! Users, rights, and what errors and Debug show.

use hapax::record::{ClaimOutcome, ExtendOutcome, SettleOutcome};
use hapax::store::{Ask, Batch, DedupStore, RedisStore, StoreErrorKind};

use crate::common::{acquire, claim, extend, failure, message, owner, prefixed, settle, success, with_prefix};
use crate::support::{ThrowawayRedis, unique};

const SECRET: &str = "open-sesame";

fn as_user(server: &ThrowawayRedis, user: &str, secret: &str) -> String {
    format!("redis://{user}:{secret}@{}", server.address())
}

fn make_user(server: &ThrowawayRedis, user: &str, rules: &[&str]) {
    let secret = format!(">{SECRET}");
    let words: Vec<&str> =
        ["ACL", "SETUSER", user, "reset", "on", &secret].into_iter().chain(rules.iter().copied()).collect();
    assert_eq!(server.command(&words).unwrap(), "+OK");
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_never_shown() {
    let server = ThrowawayRedis::start(&[]);
    make_user(&server, "worker", &["~*", "+@all"]);
    assert_eq!(server.command(&["ACL", "SETUSER", "default", "off"]).unwrap(), "+OK");
    for url in [server.url(), as_user(&server, "worker", "guess"), as_user(&server, "nobody", SECRET)] {
        let error = RedisStore::connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("guess") && !shown.contains(SECRET), "{shown}");
    }
    let store = prefixed().connect(&as_user(&server, "worker", SECRET)).await.unwrap();
    acquire(&store, &owner(), &message(1)).await;
    let shown = format!("{store:?} {:?}", RedisStore::builder());
    assert!(!shown.contains(SECRET) && !shown.contains(&server.address()), "{shown}");
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough() {
    let server = ThrowawayRedis::start(&[]);
    let prefix = format!("{}:", unique("faults"));
    let keys = format!("~{prefix}*");
    let rights = ["+set", "+get", "+mget", "+pttl", "+evalsha", "+eval"];
    let mut rules = vec![keys.as_str()];
    rules.extend(rights);
    make_user(&server, "least", &rules);
    let url = as_user(&server, "least", SECRET);
    let store = with_prefix(&prefix).connect(&url).await.expect("TIME and ROLE may be missing");
    let terms = owner();
    let asks: Batch<Ask> = (0..3).map(|n| Ask { sighting: message(n), read_first: true }).collect();
    store.claim(&terms, &asks).await.unwrap();
    let token = acquire(&store, &terms, &message(1)).await.token;
    assert_eq!(extend(&store, &message(1), token).await.unwrap(), ExtendOutcome::Held);
    assert_eq!(settle(&store, &message(1), token, success()).await.unwrap(), SettleOutcome::Settled);
    assert_eq!(settle(&store, &message(2), token, failure()).await.unwrap(), SettleOutcome::Settled);
    assert!(matches!(claim(&store, &owner(), &message(1)).await.unwrap(), ClaimOutcome::Duplicate { .. }));
    assert!(matches!(claim(&store, &owner(), &message(2)).await.unwrap(), ClaimOutcome::NotDue { .. }));
    store.ensure_schema().await.unwrap();

    // The check says which rights it lacks, and fails nothing.
    let report = store.check().await.unwrap();
    assert!(report.names("info") && report.names("config"), "{report:?}");
    assert_eq!(report.errors().count(), 0, "{report:?}");
    rules.extend(["+info", "+config|get"]);
    make_user(&server, "least", &rules);
    let store = with_prefix(&prefix).connect(&url).await.unwrap();
    let report = store.check().await.unwrap();
    assert!(!report.names("info") && !report.names("config") && report.names("appendonly"), "{report:?}");
    // Where only INFO is refused, what CONFIG says is looked at.
    make_user(&server, "half", &[&keys, "+set", "+config|get"]);
    let report = with_prefix(&prefix).connect(&as_user(&server, "half", SECRET)).await.unwrap().check().await.unwrap();
    assert!(report.names("info") && report.names("appendonly"), "{report:?}");
}

#[tokio::test]
async fn a_missing_right_is_refused_by_name() {
    let server = ThrowawayRedis::start(&[]);
    make_user(&server, "reader", &["~*", "+get", "+mget", "+pttl"]);
    let store = prefixed().connect(&as_user(&server, "reader", SECRET)).await.unwrap();
    let error = claim(&store, &owner(), &message(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("set"), "{error}");
    make_user(&server, "stranger", &["~other:*", "+@all"]);
    let store = prefixed().connect(&as_user(&server, "stranger", SECRET)).await.unwrap();
    let error = claim(&store, &owner(), &message(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn tls_without_verification_is_refused() {
    let error = RedisStore::connect("rediss://user:open-sesame@127.0.0.1:6379/#insecure").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert!(!format!("{error} {error:?}").contains(SECRET));
    // Without a TLS feature, the cure is named.
    if cfg!(not(any(feature = "redis-tls-rustls", feature = "redis-tls-native"))) {
        let error = RedisStore::connect("rediss://127.0.0.1:6379").await.unwrap_err();
        assert!(error.to_string().contains("redis-tls-rustls"), "{error}");
    }
}
