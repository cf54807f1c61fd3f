//! The cache of succeeded messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hapax::record::{ClaimOutcome, RequeueOutcome, SettleOutcome, State, Verdict};
use hapax::store::{Batch, CacheLimits, Cached, DedupStore, MemoryStore, Retention};

use crate::items::{
    acquire, asks, claim_one, failed, handle, is_duplicate, key, other_body, settle, settle_one, sighting, succeeded,
    succeeded_with, terms,
};
use crate::probe::{Mishap, Probe};

/// A duplicate of another message, so that the cache has looked at the store's clock.
async fn look_at_the_clock(store: &dyn DedupStore) {
    handle(store, 1, 900_000).await;
    assert!(is_duplicate(&claim_one(store, 1, 900_000).await.unwrap()));
}

#[tokio::test]
async fn a_confirmed_success_is_answered_without_the_store() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    let grant = acquire(&store, 1, 5).await;
    settle_one(&store, 5, grant, succeeded_with("receipt 5")).await;
    let calls = probe.calls("claim").len();
    for owner in [1, 2] {
        let ClaimOutcome::Duplicate { result, first } = claim_one(&store, owner, 5).await.unwrap() else {
            panic!("it was handled");
        };
        assert_eq!(result, Some(Bytes::from_static(b"receipt 5")));
        assert_eq!(first.origin, sighting(5).origin);
    }
    assert_eq!(probe.calls("claim").len(), calls);
    assert_eq!(store.stats().hits, 2);
}

#[tokio::test]
async fn a_duplicate_that_the_store_answered_is_answered_without_it_the_next_time() {
    let probe = Probe::memory();
    // Another member handled it.
    let grant = acquire(&*probe, 7, 5).await;
    settle_one(&*probe, 5, grant, succeeded_with("theirs")).await;
    let store = Cached::new(Arc::clone(&probe));
    let asked = claim_one(&store, 1, 5).await.unwrap();
    let calls = probe.calls("claim").len();
    assert_eq!(claim_one(&store, 1, 5).await.unwrap(), asked, "word for word what the store said");
    assert_eq!(probe.calls("claim").len(), calls);
}

/// Claimed, released, failed, dead and late: the store is asked every time.
#[tokio::test]
async fn nothing_but_success_is_kept() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    let hits = store.stats().hits;
    let entries = store.stats().entries;

    let claimed = acquire(&store, 1, 1).await;
    assert!(matches!(claim_one(&store, 2, 1).await.unwrap(), ClaimOutcome::InFlight { .. }));
    settle_one(&store, 1, claimed, Verdict::Released).await;
    assert!(matches!(claim_one(&store, 2, 1).await.unwrap(), ClaimOutcome::Acquired(_)));

    let grant = acquire(&store, 1, 2).await;
    settle_one(&store, 2, grant, failed()).await;
    assert_eq!(acquire(&store, 2, 2).await.attempt, 2);

    let grant = acquire(&store, 1, 3).await;
    settle_one(&store, 3, grant, Verdict::Dead).await;
    for _ in 0..3 {
        assert!(matches!(claim_one(&store, 2, 3).await.unwrap(), ClaimOutcome::Dead { .. }));
    }
    assert_eq!(store.requeue(&Batch::one(key(3))).await.unwrap(), [RequeueOutcome::Requeued]);
    assert!(matches!(claim_one(&store, 2, 3).await.unwrap(), ClaimOutcome::Acquired(_)));

    // Forgotten and then reported: late. The store remembers it, so its next answer is kept, and not before.
    let grant = acquire(&store, 1, 4).await;
    probe.flush();
    assert_eq!(settle_one(&store, 4, grant, succeeded()).await, SettleOutcome::Late);

    assert_eq!(store.stats().entries, entries);
    assert_eq!(store.stats().hits, hits);
    assert!(is_duplicate(&claim_one(&store, 2, 4).await.unwrap()));
    assert_eq!(store.stats().hits, hits);
    assert!(is_duplicate(&claim_one(&store, 2, 4).await.unwrap()));
    assert_eq!(store.stats().hits, hits + 1);
}

#[tokio::test]
async fn a_success_that_the_store_did_not_confirm_is_not_kept() {
    for mishap in [Mishap::Fail, Mishap::LoseReply] {
        let probe = Probe::memory();
        let store = Cached::new(Arc::clone(&probe));
        let grant = acquire(&store, 1, 5).await;
        probe.mishap("settle", 1, mishap);
        store.settle(&Batch::one(settle(5, grant, succeeded()))).await.unwrap_err();
        assert_eq!(store.stats().entries, 0);
        // Asked again it is confirmed, whichever of the two it was.
        assert_eq!(settle_one(&store, 5, grant, succeeded()).await, SettleOutcome::Settled);
        assert_eq!(store.stats().entries, 1);
    }
}

/// Another body under a known key is never answered by the cache.
#[tokio::test]
async fn the_cache_never_answers_for_another_fingerprint() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    handle(&store, 1, 5).await;
    assert!(is_duplicate(&claim_one(&store, 1, 5).await.unwrap()));
    let calls = probe.calls("claim").len();
    for asked in 1..4 {
        let outcomes = store.claim(&terms(1), &other_body(5)).await.unwrap();
        assert!(matches!(&outcomes[..], [ClaimOutcome::Conflict { .. }]), "{outcomes:?}");
        assert_eq!(probe.calls("claim").len(), calls + asked, "the store said so");
    }
    // Also where the store, flushed meanwhile, says otherwise.
    assert!(is_duplicate(&claim_one(&store, 1, 5).await.unwrap()));
    probe.flush();
    let outcomes = store.claim(&terms(1), &other_body(5)).await.unwrap();
    assert!(matches!(&outcomes[..], [ClaimOutcome::Acquired(_)]), "{outcomes:?}");
}

#[tokio::test]
async fn a_mixed_batch_asks_only_for_what_is_not_known() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    for n in (0..64).filter(|n| n % 3 == 0) {
        handle(&store, 1, n).await;
    }
    let batch = asks(0..64);
    let outcomes = store.claim(&terms(2), &batch).await.unwrap();
    for (ask, outcome) in batch.items().iter().zip(&outcomes) {
        assert_eq!(is_duplicate(outcome), ask.sighting.origin.offset % 3 == 0);
        if let ClaimOutcome::Duplicate { first, .. } = outcome {
            assert_eq!(first.origin, ask.sighting.origin);
        }
    }
    assert_eq!(probe.calls("claim").last().unwrap().keys.len(), 42);
}

#[tokio::test]
async fn too_few_answers_are_an_error_not_a_guess() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    handle(&store, 1, 5).await;
    let next = probe.calls("claim").len() + 1;
    probe.mishap("claim", next, Mishap::Short);
    let error = store.claim(&terms(1), &asks(3..8)).await.unwrap_err();
    assert_eq!(error.kind(), hapax::store::StoreErrorKind::Corrupt);
}

/// F41: the store is flushed under a running consumer. The cache goes on saying "duplicate" for as long as its entries
/// live, and not a moment longer; what it does not know, and what is requeued, read or purged, is the store's to say at once.
#[tokio::test(start_paused = true)]
async fn f41_after_a_flush_the_cache_is_stale_for_its_ttl_and_no_longer() {
    let probe = Probe::memory();
    let ttl = Duration::from_secs(30);
    let store = Cached::with_limits(Arc::clone(&probe), CacheLimits::default().ttl(ttl));
    look_at_the_clock(&store).await;
    handle(&store, 1, 5).await;
    let in_flight = acquire(&store, 1, 6).await;
    probe.flush();
    assert!(is_duplicate(&claim_one(&store, 2, 5).await.unwrap()), "documented staleness");
    assert!(store.get(&Batch::one(key(5))).await.unwrap()[0].is_none(), "reading shows the store's truth");
    assert_eq!(store.requeue(&Batch::one(key(5))).await.unwrap(), [RequeueOutcome::Unknown]);
    assert!(matches!(claim_one(&store, 2, 6).await.unwrap(), ClaimOutcome::Acquired(_)), "a claim is never cached");
    // What was handled when the store forgot is remembered as late, by the store.
    assert_eq!(settle_one(&store, 6, in_flight, succeeded()).await, SettleOutcome::Late);
    tokio::time::advance(ttl - Duration::from_millis(1)).await;
    assert!(is_duplicate(&claim_one(&store, 2, 5).await.unwrap()));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(matches!(claim_one(&store, 2, 5).await.unwrap(), ClaimOutcome::Acquired(_)));
}

/// F41: cleared, for a store that is known to have changed, and on revoke.
#[tokio::test]
async fn f41_a_cleared_cache_asks_the_store() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    handle(&store, 1, 5).await;
    probe.flush();
    assert!(is_duplicate(&claim_one(&store, 2, 5).await.unwrap()));
    store.clear();
    assert_eq!(store.stats().entries, 0);
    assert!(matches!(claim_one(&store, 2, 5).await.unwrap(), ClaimOutcome::Acquired(_)));
}

/// F41: no entry outlives the record it stands for.
#[tokio::test(start_paused = true)]
async fn f41_an_entry_lives_no_longer_than_the_store_remembers() {
    let keep = Duration::from_secs(5);
    let probe = Probe::over(MemoryStore::with_retention(Retention::default().succeeded(keep)));
    let store = Cached::with_limits(Arc::clone(&probe), CacheLimits::default().ttl(Duration::from_secs(3600)));
    look_at_the_clock(&store).await;
    handle(&store, 1, 5).await;
    assert!(is_duplicate(&claim_one(&store, 2, 5).await.unwrap()));
    probe.flush();
    tokio::time::advance(keep).await;
    assert!(matches!(claim_one(&store, 2, 5).await.unwrap(), ClaimOutcome::Acquired(_)));
}

#[tokio::test]
async fn what_is_not_remembered_is_not_cached() {
    let probe = Probe::over(MemoryStore::with_retention(Retention::default().succeeded(Duration::ZERO)));
    for store in [
        Cached::new(probe),
        Cached::with_limits(Probe::memory(), CacheLimits::default().entries(0)),
        Cached::with_limits(Probe::memory(), CacheLimits::default().bytes(0)),
        Cached::with_limits(Probe::memory(), CacheLimits::default().ttl(Duration::ZERO)),
    ] {
        handle(&store, 1, 5).await;
        assert!(is_duplicate(&claim_one(&store, 1, 5).await.unwrap()));
        assert_eq!(store.stats().entries, 0);
    }
}

#[tokio::test]
async fn it_holds_no_more_messages_than_its_limit() {
    let store = Cached::with_limits(MemoryStore::new(), CacheLimits::default().entries(1_000));
    for start in (0..20_000).step_by(500) {
        let batch = asks(start..start + 500);
        let outcomes = store.claim(&terms(1), &batch).await.unwrap();
        let settles = batch.items().iter().zip(&outcomes).map(|(ask, outcome)| {
            let ClaimOutcome::Acquired(grant) = outcome else { panic!("{outcome:?}") };
            settle(u64::try_from(ask.sighting.origin.offset).unwrap(), *grant, succeeded())
        });
        store.settle(&settles.collect()).await.unwrap();
        assert!(store.stats().entries <= 1_000, "{}", store.stats().entries);
    }
    assert!(store.stats().entries >= 500, "and it holds most of them: {}", store.stats().entries);
}

/// Kept results count: with large ones it holds fewer messages.
#[tokio::test]
async fn it_holds_no_more_bytes_than_its_limit() {
    let result = Bytes::from(vec![7; 4_096]);
    let bytes = 1024 * 1024;
    let store = Cached::with_limits(MemoryStore::new(), CacheLimits::default().bytes(bytes));
    for n in 0..2_000 {
        let grant = acquire(&store, 1, n).await;
        let verdict = Verdict::Succeeded { result: Some(result.clone()) };
        settle_one(&store, n, grant, verdict).await;
    }
    let entries = store.stats().entries;
    assert!(entries * (result.len() + 192) <= bytes, "{entries}");
    assert!(entries * (result.len() + 192) >= bytes / 2, "and it holds about as much as it may: {entries}");
}

/// A success of our own carries no store time, so the cache reckons it. It must be near what the store wrote.
#[tokio::test]
async fn a_duplicate_is_told_when_it_was_handled_on_the_stores_clock() {
    let memory = MemoryStore::new();
    let started = Instant::now();
    // Two clocks that began at different times.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let store = Cached::new(memory.clone());
    look_at_the_clock(&store).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    handle(&store, 1, 5).await;
    let hits = store.stats().hits;
    let ClaimOutcome::Duplicate { first, .. } = claim_one(&store, 2, 5).await.unwrap() else {
        panic!("it was handled");
    };
    assert_eq!(store.stats().hits, hits + 1);
    let record = memory.get(&Batch::one(key(5))).await.unwrap().remove(0).unwrap();
    let State::Succeeded { at, .. } = record.state else { panic!("{record:?}") };
    assert!(at >= 50, "the store's clock had begun before: {at}");
    // Off by no more than the calls took. The bound is what this test took in all, so that a busy machine widens it.
    let slack = i64::try_from(started.elapsed().as_millis()).unwrap() - 50;
    assert!((first.at - at).abs() <= slack.max(2), "{} instead of {at}, ±{slack}", first.at);
}

/// A retry's record was made by the first copy: the cache leaves it to the store to say which that was.
#[tokio::test]
async fn the_first_copy_of_a_retried_message_is_told_as_the_store_tells_it() {
    let probe = Probe::memory();
    let store = Cached::new(Arc::clone(&probe));
    look_at_the_clock(&store).await;
    let grant = acquire(&store, 1, 5).await;
    settle_one(&store, 5, grant, failed()).await;
    // The copy stood elsewhere.
    let mut copy = sighting(5);
    copy.origin.offset = 777;
    let outcomes = store.claim(&terms(2), &Batch::one(copy.clone().into())).await.unwrap();
    let [ClaimOutcome::Acquired(grant)] = outcomes[..] else { panic!("{outcomes:?}") };
    let mut done = settle(5, grant, succeeded());
    done.sighting = copy;
    assert_eq!(store.settle(&Batch::one(done)).await.unwrap(), [SettleOutcome::Settled]);
    for _ in 0..3 {
        let ClaimOutcome::Duplicate { first, .. } = claim_one(&store, 3, 5).await.unwrap() else { panic!("handled") };
        assert_eq!(first.origin, sighting(5).origin);
    }
}

#[tokio::test]
async fn a_success_reported_again_with_another_result_keeps_the_first() {
    let store = Cached::new(Probe::memory());
    look_at_the_clock(&store).await;
    let grant = acquire(&store, 1, 5).await;
    for result in ["first", "second"] {
        assert_eq!(settle_one(&store, 5, grant, succeeded_with(result)).await, SettleOutcome::Settled);
    }
    let ClaimOutcome::Duplicate { result, .. } = claim_one(&store, 2, 5).await.unwrap() else { panic!("handled") };
    assert_eq!(result, Some(Bytes::from_static(b"first")));
}
