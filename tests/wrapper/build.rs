//! Building: what is refused, and with which words.

use std::time::Duration;

use hapax::identity::{FingerprintBy, OnMissing, Scope, header};
use hapax::{BuildError, Claim, Level, MIN_LEASE, Mode, Once};

use crate::probe::{Probe, builder};

#[tokio::test]
async fn a_scope_is_mandatory() {
    let error = Once::builder(Probe::new()).build().await.unwrap_err();
    assert!(matches!(error, BuildError::NoScope));
    assert!(error.to_string().contains(".scope(group, handler)"), "{error}");
}

#[tokio::test]
async fn misconfigured_identities_are_refused() {
    let store = Probe::new();
    let scope = Once::builder(store.clone()).scope("", "h").build().await.unwrap_err();
    let name = builder(&store).identify(header("")).build().await.unwrap_err();
    let fingerprint = builder(&store).fingerprint(FingerprintBy::payload().and_header(" x")).build().await.unwrap_err();
    for error in [scope, name, fingerprint] {
        assert!(matches!(error, BuildError::Identity(_)), "{error:?}");
    }
    assert_eq!(store.prepared(), 0);
}

#[tokio::test]
async fn a_lease_too_short_is_refused() {
    let error = builder(&Probe::new()).lease(MIN_LEASE - Duration::from_millis(1)).build().await.unwrap_err();
    assert_eq!(error.to_string(), "lease: 999ms is too short. Set at least 1s.");
    builder(&Probe::new()).lease(MIN_LEASE).build().await.unwrap();
    let error = builder(&Probe::new()).handler_timeout(Duration::ZERO).build().await.unwrap_err();
    assert!(matches!(error, BuildError::Setting { setting: "handler_timeout", .. }));
}

#[tokio::test]
async fn unsafe_settings_are_refused_unless_accepted() {
    let store = Probe::new();
    store.finds(|report| {
        report.error("maxmemory-policy", "keys are evicted.", "Set noeviction.");
        report.warning("appendonly", "a restart forgets.", "Set yes.");
    });
    let error = builder(&store).build().await.unwrap_err();
    let BuildError::Unsafe(findings) = &error else { panic!("{error:?}") };
    assert_eq!(findings.0.len(), 1);
    assert!(error.to_string().contains("maxmemory-policy: keys are evicted. Set noeviction."), "{error}");
    let once = builder(&store).accept_unsafe_settings().build().await.unwrap();
    assert!(once.report().names("maxmemory-policy") && once.report().names("appendonly"));
}

#[tokio::test]
async fn warnings_do_not_keep_it_from_starting() {
    let store = Probe::new();
    store.finds(|report| report.warning("appendonly", "a restart forgets.", "Set yes."));
    let once = builder(&store).build().await.unwrap();
    assert_eq!(once.report().warnings().count(), 1);
    assert_eq!((once.level(), once.mode()), (Some(Level::L1), Mode::Deduplicated));
}

#[tokio::test]
async fn a_store_that_cannot_be_checked_is_refused() {
    let store = Probe::new();
    store.down(true);
    let error = builder(&store).build().await.unwrap_err();
    assert!(matches!(&error, BuildError::Store(error) if error.is_retryable()), "{error:?}");
}

#[tokio::test]
async fn the_schema_is_prepared_unless_that_is_turned_off() {
    let store = Probe::new();
    builder(&store).build().await.unwrap();
    assert_eq!(store.prepared(), 1);
    builder(&store).without_schema_creation().on_missing(OnMissing::Reject).build().await.unwrap();
    assert_eq!(store.prepared(), 1);
}

#[tokio::test]
async fn every_wrapper_is_an_owner_of_its_own_and_clones_are_one() {
    let store = Probe::new();
    let (one, two) = (builder(&store).build().await.unwrap(), builder(&store).build().await.unwrap());
    assert_ne!(one.owner(), two.owner());
    assert_eq!(one.clone().owner(), one.owner());
}

#[tokio::test]
async fn a_secret_scope_can_be_given_and_nothing_shows_it() {
    let scope = Scope::new("g", "h").unwrap().secret([7_u8; 32]).unwrap();
    let once = Once::builder(Probe::new()).in_scope(scope).build().await.unwrap();
    let text = format!("{once:?}");
    assert!(text.contains("group: \"g\"") && !text.contains("7, 7"), "{text}");
}

/// The futures run on any thread of a runtime, whatever they borrow.
#[tokio::test]
async fn futures_are_send() {
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    fn is_shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    let once = builder(&Probe::new()).build().await.unwrap();
    is_shared(&once);
    let (name, message) = (String::from("x"), crate::probe::message("a"));
    let handler = async |claim: Claim| {
        tokio::task::yield_now().await;
        let _ = (&name, &message, claim.attempt());
        Ok::<_, String>(())
    };
    let _ = is_send(once.handle(&message, handler)).await.unwrap();
    is_send(once.call("k", "v", async |_| Ok::<_, String>(name.clone()))).await.unwrap();
    let messages = [message.clone()];
    let _ = is_send(once.handle_batch(&messages, async |message, claim| {
        tokio::task::yield_now().await;
        let _ = (message, claim, &name);
        Ok::<_, String>(())
    }))
    .await;
    is_send(once.settle_pending(Duration::ZERO)).await;
}
