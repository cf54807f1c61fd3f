//! The filter that chooses between reading first and inserting first.

use std::sync::Arc;

use hapax::identity::Key;
use hapax::record::ClaimOutcome;
use hapax::store::{Batch, BloomFilter, DedupStore, Precheck, Prechecked};

use crate::items::{acquire, ask, asks, claim_one, handle, key, terms};
use crate::probe::{Mishap, Probe};

/// A filter that is always of one opinion.
#[derive(Debug)]
pub struct Always(pub bool);

impl Precheck for Always {
    fn maybe_seen(&self, _: &Key) -> bool {
        self.0
    }

    fn learn(&self, _: &Key) {}
}

fn small() -> BloomFilter {
    BloomFilter::new(10_000, 0.001).unwrap()
}

fn hints(probe: &Probe) -> Vec<usize> {
    probe.calls("claim").iter().map(|call| call.read_first).collect()
}

#[tokio::test]
async fn f40_new_messages_are_inserted_at_once_and_known_ones_are_read_first() {
    let probe = Probe::memory();
    let store = Prechecked::with_filter(Arc::clone(&probe), small());
    store.claim(&terms(1), &asks(0..100)).await.unwrap();
    store.claim(&terms(2), &asks(0..100)).await.unwrap();
    store.claim(&terms(2), &asks(50..150)).await.unwrap();
    assert_eq!(hints(&probe), [0, 100, 50]);
    let stats = store.stats();
    assert_eq!((stats.asked, stats.maybe_seen, stats.wrong), (300, 150, 0));
}

#[tokio::test]
async fn f40_a_key_is_learned_only_once_the_store_knows_it() {
    let probe = Probe::memory();
    let store = Prechecked::with_filter(Arc::clone(&probe), small());
    probe.mishap("claim", 1, Mishap::Fail);
    claim_one(&store, 1, 5).await.unwrap_err();
    assert!(!store.filter().maybe_seen(&key(5)));
    acquire(&store, 1, 5).await;
    assert!(store.filter().maybe_seen(&key(5)));
}

/// A "maybe seen" never becomes a "duplicate" by itself: the store is asked, and its answer stands.
#[tokio::test]
async fn f40_a_positive_goes_to_the_store() {
    let probe = Probe::memory();
    let store = Prechecked::with_filter(Arc::clone(&probe), Always(true));
    for n in 0..50 {
        handle(&store, 1, n).await;
    }
    assert_eq!(probe.calls("claim").len(), 50);
    assert_eq!(store.stats().wrong, 50);
    // Stale: the store forgot what the filter knows.
    let store = Prechecked::with_filter(Arc::clone(&probe), small());
    handle(&store, 1, 100).await;
    probe.flush();
    assert!(store.filter().maybe_seen(&key(100)));
    assert!(matches!(claim_one(&store, 2, 100).await.unwrap(), ClaimOutcome::Acquired(_)));
}

/// What a filter says of one message in a large batch is mostly a mistake, and reading it first would cost a round trip.
#[tokio::test]
async fn a_few_positives_in_a_large_batch_change_nothing() {
    let probe = Probe::memory();
    let store = Prechecked::with_filter(Arc::clone(&probe), small());
    store.claim(&terms(1), &asks(0..16)).await.unwrap();
    store.claim(&terms(2), &asks(0..512)).await.unwrap();
    assert_eq!(hints(&probe), [0, 0]);
    store.claim(&terms(2), &asks(495..1_007)).await.unwrap();
    assert_eq!(hints(&probe)[2], 17, "but more of them do");
}

#[tokio::test]
async fn a_hint_of_the_caller_stays() {
    let probe = Probe::memory();
    let store = Prechecked::with_filter(Arc::clone(&probe), small());
    let hinted = hapax::store::Ask { read_first: true, ..ask(1) };
    store.claim(&terms(1), &Batch::one(hinted)).await.unwrap();
    store.claim(&terms(1), &asks([2])).await.unwrap();
    // Beside one that the filter knows, one that it does not.
    let hinted = hapax::store::Ask { read_first: true, ..ask(3) };
    store.claim(&terms(1), &[ask(2), hinted, ask(4)].into_iter().collect()).await.unwrap();
    assert_eq!(hints(&probe), [1, 0, 2]);
}

#[test]
fn the_filter_never_forgets_its_last_generation() {
    let filter = BloomFilter::new(2_000, 0.01).unwrap();
    let capacity = filter.stats().capacity;
    assert!(capacity >= 2_000);
    for n in 0..20_000_u64 {
        filter.learn(&key(n));
        // A shard takes a sixteenth of the keys; half of a generation is surely within every shard's last one.
        let oldest = n.saturating_sub(capacity as u64 / 2);
        assert!(filter.maybe_seen(&key(oldest)), "{oldest} of {n}");
    }
    let stats = filter.stats();
    assert!(stats.rotations > 0);
    assert!(stats.young + stats.old <= 2 * capacity);
    // What is long gone is forgotten, but for false positives.
    let remembered = (0..5_000).filter(|n| filter.maybe_seen(&key(*n))).count();
    assert!(remembered < 500, "{remembered}");
}

#[test]
fn the_filter_is_wrong_about_as_often_as_it_says() {
    let filter = BloomFilter::new(20_000, 0.01).unwrap();
    for n in 0..19_000_u64 {
        filter.learn(&key(n));
    }
    let stats = filter.stats();
    assert!(stats.saturation() > 0.0 && stats.saturation() <= 1.0);
    let wrong = (100_000..200_000_u64).filter(|n| filter.maybe_seen(&key(*n))).count() as f64 / 100_000.0;
    assert!(wrong < 0.025, "{wrong}");
    assert!((wrong - stats.false_positive_rate).abs() < 0.01, "{wrong} against {}", stats.false_positive_rate);
    filter.clear();
    assert_eq!(filter.stats().young, 0);
    assert!(!(0..19_000_u64).any(|n| filter.maybe_seen(&key(n))));
}

/// Nobody can prepare keys that every filter takes for known.
#[test]
fn two_filters_are_wrong_about_different_keys() {
    let filters = [BloomFilter::new(4_000, 0.05).unwrap(), BloomFilter::new(4_000, 0.05).unwrap()];
    for n in 0..4_000_u64 {
        filters.iter().for_each(|filter| filter.learn(&key(n)));
    }
    let wrong =
        |filter: &BloomFilter| -> Vec<u64> { (10_000..40_000_u64).filter(|n| filter.maybe_seen(&key(*n))).collect() };
    let (one, two) = (wrong(&filters[0]), wrong(&filters[1]));
    let common = one.iter().filter(|n| two.contains(n)).count();
    assert!(one.len() > 200 && two.len() > 200);
    assert!(common * 4 < one.len(), "{common} of {}", one.len());
}

#[test]
fn sizes_out_of_bounds_are_brought_into_them() {
    for (capacity, rate) in [(0, 0.01), (1, 0.0), (10, 1.0), (10, -3.0), (10, f64::NAN), (10, f64::INFINITY)] {
        let filter = BloomFilter::new(capacity, rate).unwrap();
        filter.learn(&key(1));
        assert!(filter.maybe_seen(&key(1)));
    }
}
