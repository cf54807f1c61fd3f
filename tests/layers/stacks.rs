//! Layers upon layers: in every order, over every store, the answers are those of the store.

use std::sync::Arc;
use std::time::Duration;

use hapax::record::ClaimOutcome;
use hapax::store::conformance::Suite;
use hapax::store::{
    BatchLimits, Batched, BloomFilter, CacheLimits, Cached, DedupStore, Precheck, Prechecked, Retention, StoreError,
};
use tokio::task::JoinSet;

use crate::items::{asks, claim_one, is_duplicate, settle, settle_one, succeeded, terms};
use crate::lives::same_lives;
use crate::prechecked::Always;
use crate::stores::Place;
use crate::support::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Batched,
    Cached,
    Prechecked,
}

use Layer::{Batched as B, Cached as C, Prechecked as P};

/// Each alone, and all three in every order; the first is the outermost.
const STACKS: [&[Layer]; 9] =
    [&[B], &[C], &[P], &[B, C, P], &[B, P, C], &[C, B, P], &[C, P, B], &[P, B, C], &[P, C, B]];

/// As the docs advise.
const ADVISED: &[Layer] = &[C, P, B];

fn stack(layers: &[Layer], store: Arc<dyn DedupStore>) -> Arc<dyn DedupStore> {
    layers.iter().rev().fold(store, |store, layer| match layer {
        Layer::Batched => Arc::new(Batched::with_limits(store, BatchLimits::default().max_batch(300))),
        Layer::Cached => Arc::new(Cached::with_limits(store, CacheLimits::default().entries(500))),
        // Small, so that it rotates and is wrong now and then.
        Layer::Prechecked => {
            Arc::new(Prechecked::with_filter(store, BloomFilter::new(1_024, 0.05).expect("random numbers")))
        }
    })
}

fn name(layers: &[Layer]) -> String {
    layers.iter().map(|layer| format!("{layer:?} over ")).collect()
}

async fn conforms(layers: &'static [Layer], place: Place) {
    let opening = place.clone();
    let open = move |retention: Retention| {
        let place = opening.clone();
        async move { Ok::<_, StoreError>(stack(layers, place.open(retention).await?)) }
    };
    // The cache reckons when its own successes were recorded: off by a store call, on a busy machine.
    let slack = if layers.contains(&C) { Duration::from_secs(30) } else { Duration::ZERO };
    let verdicts = Suite::new(open).told_times_within(slack).deadline(2 * PATIENCE).run().await;
    println!("{}{place:?}: {verdicts}", name(layers));
    verdicts.assert_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stack_over_memory_conforms() {
    for layers in STACKS {
        conforms(layers, Place::memory()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_advised_stack_over_sqlite_conforms() {
    conforms(ADVISED, Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_advised_stack_over_redis_conforms() {
    conforms(ADVISED, Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_advised_stack_over_postgres_conforms() {
    conforms(ADVISED, Place::postgres()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_advised_stack_over_mariadb_conforms() {
    conforms(ADVISED, Place::mariadb()).await;
}

/// F40: whatever the filter says, the store's answers stand: always yes, always no, and a real one, small enough to be
/// wrong and to rotate.
fn f40_filters(store: &Arc<dyn DedupStore>) -> Vec<(String, Arc<dyn DedupStore>)> {
    fn over<F: Precheck + 'static>(store: &Arc<dyn DedupStore>, filter: F) -> Arc<dyn DedupStore> {
        Arc::new(Prechecked::with_filter(Arc::clone(store), filter))
    }
    let small = BloomFilter::new(1_024, 0.3).unwrap();
    vec![
        ("always yes".into(), over(store, Always(true))),
        ("always no".into(), over(store, Always(false))),
        ("a small filter".into(), over(store, small)),
    ]
}

#[test]
fn f40_every_filter_gives_the_same_answers_over_sqlite() {
    same_lives(&Place::sqlite(), 64, f40_filters);
}

#[test]
fn f40_every_filter_gives_the_same_answers_over_redis() {
    same_lives(&Place::redis(), 64, f40_filters);
}

#[test]
fn f40_every_filter_gives_the_same_answers_over_postgres() {
    same_lives(&Place::postgres(), 48, f40_filters);
}

#[test]
fn f40_every_filter_gives_the_same_answers_over_mariadb() {
    same_lives(&Place::mariadb(), 48, f40_filters);
}

fn stacks(store: &Arc<dyn DedupStore>) -> Vec<(String, Arc<dyn DedupStore>)> {
    STACKS.iter().map(|layers| (name(layers), stack(layers, Arc::clone(store)))).collect()
}

#[test]
fn every_stack_gives_the_answers_of_the_store_over_memory() {
    same_lives(&Place::memory(), 256, stacks);
}

#[test]
fn every_stack_gives_the_answers_of_the_store_over_sqlite() {
    same_lives(&Place::sqlite(), 24, stacks);
}

#[test]
fn every_stack_gives_the_answers_of_the_store_over_redis() {
    same_lives(&Place::redis(), 24, stacks);
}

#[test]
fn every_stack_gives_the_answers_of_the_store_over_postgres() {
    same_lives(&Place::postgres(), 16, stacks);
}

/// F30: two members, each with layers and a connection of its own, claim the same messages at once. Each message has one winner,
/// whatever their filters believe, and both then know it as a duplicate.
async fn f30_one_of_two_members_wins(place: Place) {
    const MESSAGES: u64 = 400;
    let mut members = Vec::new();
    for filter in [Always(true), Always(false)] {
        let store = place.open(Retention::default()).await.unwrap();
        store.ensure_schema().await.unwrap();
        let store = Cached::new(Prechecked::with_filter(Batched::new(store), filter));
        members.push(Arc::new(store));
    }
    let mut tasks = JoinSet::new();
    for (owner, store) in (1..).zip(&members) {
        for n in 0..MESSAGES {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                match claim_one(&*store, owner, n).await.unwrap() {
                    ClaimOutcome::Acquired(grant) => {
                        assert_eq!(grant.attempt, 1);
                        settle_one(&*store, n, grant, succeeded()).await;
                        Some(n)
                    }
                    ClaimOutcome::InFlight { .. } | ClaimOutcome::Duplicate { .. } => None,
                    other => panic!("{other:?}"),
                }
            });
        }
    }
    let mut handled: Vec<u64> =
        tokio::time::timeout(PATIENCE, tasks.join_all()).await.expect("it ends").into_iter().flatten().collect();
    handled.sort_unstable();
    assert_eq!(handled, (0..MESSAGES).collect::<Vec<_>>(), "each message is handled once");
    for store in &members {
        let outcomes = store.claim(&terms(9), &asks(0..MESSAGES)).await.unwrap();
        assert!(outcomes.iter().all(is_duplicate));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_one_of_two_members_wins_over_memory() {
    f30_one_of_two_members_wins(Place::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_one_of_two_members_wins_over_sqlite() {
    f30_one_of_two_members_wins(Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_one_of_two_members_wins_over_redis() {
    f30_one_of_two_members_wins(Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_one_of_two_members_wins_over_postgres() {
    f30_one_of_two_members_wins(Place::postgres()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_one_of_two_members_wins_over_mariadb() {
    f30_one_of_two_members_wins(Place::mariadb()).await;
}

/// F41 on a real store: the keys are removed under a running consumer, by hand.
#[tokio::test]
async fn f41_a_real_store_is_emptied_mid_run() {
    let place = Place::sqlite();
    let store = Cached::new(place.open(Retention::default()).await.unwrap());
    store.ensure_schema().await.unwrap();
    for n in 0..20 {
        let ClaimOutcome::Acquired(grant) = claim_one(&store, 1, n).await.unwrap() else { panic!("new") };
        let settled = store.settle(&hapax::store::Batch::one(settle(n, grant, succeeded()))).await.unwrap();
        assert_eq!(settled.len(), 1);
    }
    assert!(is_duplicate(&claim_one(&store, 1, 0).await.unwrap()), "looks at the store's clock");
    place.empty().await;
    assert!(is_duplicate(&claim_one(&store, 2, 5).await.unwrap()), "stale until its time is over, as documented");
    store.clear();
    assert!(matches!(claim_one(&store, 2, 5).await.unwrap(), ClaimOutcome::Acquired(_)));
}
