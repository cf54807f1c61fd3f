//! Joined calls.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, SettleOutcome};
use hapax::store::{Batch, BatchLimits, Batched, DedupStore, MemoryStore, StoreErrorKind};
use tokio::task::JoinSet;

use crate::items::{acquire, ask, asks, claim_one, handle, is_duplicate, key, settle, settle_one, succeeded, terms};
use crate::probe::{Mishap, Probe};
use crate::support::{PATIENCE, eventually};

type Store = Batched<Arc<Probe>>;

/// Counts futures that wait: a call that waits is in the queue or with the store.
async fn counted<F: Future>(future: F, waiting: Arc<AtomicUsize>) -> F::Output {
    let mut future = pin!(future);
    let mut counted = false;
    poll_fn(move |context| {
        let polled = future.as_mut().poll(context);
        if polled.is_pending() && !counted {
            counted = true;
            waiting.fetch_add(1, Ordering::SeqCst);
        }
        polled
    })
    .await
}

async fn patiently<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not hang")
}

/// One call at the gate, then these numbers in the queue, each a call of its own.
async fn queue_up(
    store: &Store,
    probe: &Probe,
    owner: u64,
    numbers: impl IntoIterator<Item = u64>,
) -> JoinSet<Result<ClaimOutcome, hapax::store::StoreError>> {
    let mut tasks = JoinSet::new();
    let first = store.clone();
    tasks.spawn(async move { claim_one(&first, 9_999, 9_999).await });
    probe.entered(1).await;
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut asked = 0;
    for n in numbers {
        let store = store.clone();
        let call = async move { claim_one(&store, owner, n).await };
        tasks.spawn(counted(call, Arc::clone(&waiting)));
        asked += 1;
    }
    eventually(PATIENCE, "all calls wait", async || waiting.load(Ordering::SeqCst) == asked).await;
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_join_one_batch_while_the_store_is_busy() {
    let probe = Probe::gated("claim");
    let store = Batched::new(Arc::clone(&probe));
    let tasks = queue_up(&store, &probe, 1, 0..64).await;
    probe.open_gate();
    let outcomes = patiently(tasks.join_all()).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(ClaimOutcome::Acquired(_)))), "{outcomes:?}");
    assert_eq!(probe.sizes("claim"), [1, 64]);
}

#[tokio::test]
async fn tasks_that_are_ready_join_the_first_batch_of_an_idle_store() {
    let probe = Probe::memory();
    let store = Batched::new(Arc::clone(&probe));
    let mut tasks = JoinSet::new();
    for n in 0..64 {
        let store = store.clone();
        tasks.spawn(async move { handle(&store, 1, n).await });
    }
    patiently(tasks.join_all()).await;
    assert_eq!(probe.sizes("claim"), [64]);
    assert_eq!(probe.sizes("settle"), [64]);
}

/// A worker runs what its task spawned last before all else; the call still waits for the other tasks that are ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tasks_that_are_ready_on_a_worker_join_the_first_batch_too() {
    let probe = Probe::memory();
    let store = Batched::new(Arc::clone(&probe));
    let spawning = async move {
        let mut tasks = JoinSet::new();
        for n in 0..32 {
            let store = store.clone();
            tasks.spawn(async move { acquire(&store, 1, n).await });
        }
        tasks.join_all().await
    };
    patiently(tokio::spawn(spawning)).await.unwrap();
    let sizes = probe.sizes("claim");
    // A worker looks after its timers and its deferred tasks now and then, so all 32 in one is not sure.
    assert!(sizes.len() <= 3, "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_store_is_asked_at_once() {
    let started = tokio::time::Instant::now();
    let store = Batched::new(MemoryStore::new());
    handle(&store, 1, 1).await;
    // The clock stands still unless somebody waits for a timer.
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn answers_go_to_those_who_asked() {
    let store = Batched::new(Probe::memory());
    for n in (0..100).step_by(3) {
        handle(&store, 1, n).await;
    }
    let mut tasks = JoinSet::new();
    for chunk in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            let batch = asks((0..5).map(|n| chunk * 5 + n));
            (batch.clone(), store.claim(&terms(2), &batch).await.unwrap())
        });
    }
    let mut duplicates = 0;
    for (batch, outcomes) in patiently(tasks.join_all()).await {
        assert_eq!(outcomes.len(), batch.len());
        for (ask, outcome) in batch.items().iter().zip(outcomes) {
            let handled = ask.sighting.origin.offset % 3 == 0;
            match outcome {
                ClaimOutcome::Duplicate { first, .. } => {
                    assert!(handled);
                    assert_eq!(first.origin, ask.sighting.origin);
                    duplicates += 1;
                }
                ClaimOutcome::Acquired(_) => assert!(!handled),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(duplicates, 34);
}

#[tokio::test]
async fn no_batch_is_larger_than_its_limit() {
    let probe = Probe::memory();
    let store = Batched::with_limits(Arc::clone(&probe), BatchLimits::default().max_batch(64));
    let mut tasks = JoinSet::new();
    for n in 0..300 {
        let store = store.clone();
        tasks.spawn(async move {
            acquire(&store, 1, n).await;
        });
    }
    let long = store.clone();
    tasks.spawn(async move {
        let outcomes = long.claim(&terms(1), &asks(1_000..1_200)).await.unwrap();
        assert_eq!(outcomes.len(), 200);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, ClaimOutcome::Acquired(_))));
    });
    patiently(tasks.join_all()).await;
    let sizes = probe.sizes("claim");
    assert_eq!(sizes.iter().sum::<usize>(), 500);
    assert!(sizes.iter().all(|size| *size <= 64), "{sizes:?}");
    assert!(sizes.len() <= 10, "{sizes:?}");
}

#[tokio::test]
async fn calls_for_one_key_go_out_one_after_the_other() {
    let probe = Probe::memory();
    let store = Batched::new(Arc::clone(&probe));
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let store = store.clone();
        // Each brings the common key and one of its own.
        tasks.spawn(async move { store.claim(&terms(1), &asks([7, 100 + task])).await.unwrap() });
    }
    let granted: HashSet<_> = patiently(tasks.join_all())
        .await
        .into_iter()
        .flatten()
        .map(|outcome| match outcome {
            ClaimOutcome::Acquired(grant) => grant.token,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(granted.len(), 1, "one owner, first claims: one token value");
    assert_eq!(probe.asked_for("claim", key(7)), 8);
    let calls = probe.calls("claim");
    assert_eq!(calls[0].keys.len(), 9, "the common key once, and the eight others");
    for call in calls {
        assert!(call.keys.is_sorted_by(|a, b| a < b), "distinct and in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_on_different_terms_are_not_merged_and_take_turns() {
    let probe = Probe::gated("claim");
    let store = Batched::with_limits(Arc::clone(&probe), BatchLimits::default().max_batch(10));
    let many = queue_up(&store, &probe, 1, 0..50).await;
    let waiting = Arc::new(AtomicUsize::new(0));
    let other = store.clone();
    let lone = tokio::spawn(counted(async move { claim_one(&other, 2, 500).await }, Arc::clone(&waiting)));
    eventually(PATIENCE, "it waits", async || waiting.load(Ordering::SeqCst) == 1).await;
    probe.open_gate();
    patiently(many.join_all()).await;
    patiently(lone).await.unwrap().unwrap();
    let calls = probe.calls("claim");
    let place = calls.iter().position(|call| call.keys.contains(&key(500))).unwrap();
    assert_eq!(calls[place].keys.len(), 1);
    assert_eq!(calls[place].terms, Some(terms(2)));
    assert!(place <= 2, "after the busy call and at most one batch of the others, not after all of them: {place}");
    assert!(calls.iter().all(|call| call.keys.len() <= 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_left_before_its_call_went_out_is_not_asked_for() {
    let probe = Probe::gated("claim");
    let store = Batched::new(Arc::clone(&probe));
    let tasks = queue_up(&store, &probe, 1, 0..5).await;
    let leaving = {
        let waiting = Arc::new(AtomicUsize::new(0));
        let store = store.clone();
        let task = tokio::spawn(counted(async move { claim_one(&store, 1, 77).await }, Arc::clone(&waiting)));
        eventually(PATIENCE, "it waits", async || waiting.load(Ordering::SeqCst) == 1).await;
        task
    };
    leaving.abort();
    assert!(patiently(leaving).await.unwrap_err().is_cancelled());
    probe.open_gate();
    assert!(patiently(tasks.join_all()).await.iter().all(Result::is_ok));
    assert_eq!(probe.sizes("claim"), [1, 5]);
    assert_eq!(probe.asked_for("claim", key(77)), 0);
}

/// The caller whose call started the batch leaves while the store works on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_leaves_mid_call_disturbs_nobody() {
    let probe = Probe::gated("claim");
    let store = Batched::new(Arc::clone(&probe));
    let leader = {
        let store = store.clone();
        tokio::spawn(async move { claim_one(&store, 1, 0).await })
    };
    probe.entered(1).await;
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut others = JoinSet::new();
    for n in 1..10 {
        let store = store.clone();
        others.spawn(counted(async move { claim_one(&store, 1, n).await }, Arc::clone(&waiting)));
    }
    eventually(PATIENCE, "they wait", async || waiting.load(Ordering::SeqCst) == 9).await;
    leader.abort();
    assert!(patiently(leader).await.unwrap_err().is_cancelled());
    probe.open_gate();
    assert!(patiently(others.join_all()).await.iter().all(Result::is_ok));
    // The claim was granted to nobody who still listens: the same owner gets it again, another waits.
    let grant = acquire(&store, 1, 0).await;
    assert_eq!(grant.attempt, 1);
    assert!(matches!(claim_one(&store, 2, 0).await.unwrap(), ClaimOutcome::InFlight { .. }));
    assert_eq!(settle_one(&store, 0, grant, succeeded()).await, SettleOutcome::Settled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_panics_gives_an_error_to_all_and_hangs_nobody() {
    let probe = Probe::gated("claim");
    probe.mishap("claim", 2, Mishap::Panic);
    let store = Batched::new(Arc::clone(&probe));
    let tasks = queue_up(&store, &probe, 1, 0..10).await;
    probe.open_gate();
    let outcomes = patiently(tasks.join_all()).await;
    let errors: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(errors.len(), 10);
    assert!(errors.iter().all(|error| error.kind() == StoreErrorKind::Unavailable), "{errors:?}");
    // The queue goes on.
    assert!(patiently(claim_one(&store, 1, 3)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_answers_are_an_error_not_a_guess() {
    let probe = Probe::gated("claim");
    probe.mishap("claim", 2, Mishap::Short);
    let store = Batched::new(Arc::clone(&probe));
    let tasks = queue_up(&store, &probe, 1, 0..4).await;
    probe.open_gate();
    let outcomes = patiently(tasks.join_all()).await;
    let kinds: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).map(|e| e.kind()).collect();
    assert_eq!(kinds, [StoreErrorKind::Corrupt; 4]);
}

/// F42: one batch of several fails. Its callers hear of it, the others are done, and asking again finishes the rest once.
#[tokio::test]
async fn f42_the_kth_batch_fails_and_only_its_callers_ask_again() {
    for (op, mishap) in
        [("claim", Mishap::Fail), ("claim", Mishap::LoseReply), ("settle", Mishap::Fail), ("settle", Mishap::LoseReply)]
    {
        let probe = Probe::memory();
        probe.mishap(op, 3, mishap);
        let store = Batched::with_limits(Arc::clone(&probe), BatchLimits::default().max_batch(8));
        let errors = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for n in 0..40 {
            let (store, errors) = (store.clone(), Arc::clone(&errors));
            tasks.spawn(async move {
                let grant = loop {
                    match claim_one(&store, 1, n).await {
                        Ok(ClaimOutcome::Acquired(grant)) => break grant,
                        Ok(other) => panic!("{other:?}"),
                        Err(error) => assert!(error.is_retryable()),
                    }
                    errors.fetch_add(1, Ordering::SeqCst);
                };
                loop {
                    match store.settle(&Batch::one(settle(n, grant, succeeded()))).await {
                        Ok(outcomes) => break assert_eq!(outcomes, [SettleOutcome::Settled]),
                        Err(error) => assert!(error.is_retryable()),
                    }
                    errors.fetch_add(1, Ordering::SeqCst);
                }
                grant
            });
        }
        let grants = patiently(tasks.join_all()).await;
        assert!(grants.iter().all(|grant| grant.attempt == 1), "asking again is the same attempt");
        assert_eq!(errors.load(Ordering::SeqCst), 8, "{op} {mishap:?}: the failed batch's callers, and nobody else");
        for n in 0..40 {
            assert!(is_duplicate(&claim_one(&store, 2, n).await.unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_prolonged_while_claims_wait() {
    let probe = Probe::gated("claim");
    let store = Batched::new(Arc::clone(&probe));
    probe.let_through(1);
    let grant = acquire(&store, 1, 1).await;
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { claim_one(&store, 1, 2).await })
    };
    probe.entered(2).await;
    let extend = Extend { key: key(1), token: grant.token, lease: Duration::from_secs(900) };
    assert_eq!(patiently(store.extend(&Batch::one(extend))).await.unwrap(), [ExtendOutcome::Held]);
    assert!(patiently(store.get(&Batch::one(key(1)))).await.unwrap()[0].is_some());
    assert!(!waiting.is_finished());
    probe.open_gate();
    assert!(patiently(waiting).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_calls_run_at_a_time_as_allowed_and_no_more() {
    let probe = Probe::gated("claim");
    let limits = BatchLimits::default().max_calls(2).max_batch(1);
    let store = Batched::with_limits(Arc::clone(&probe), limits);
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..6 {
        let store = store.clone();
        tasks.spawn(counted(async move { claim_one(&store, 1, n).await }, Arc::clone(&waiting)));
    }
    eventually(PATIENCE, "all wait", async || waiting.load(Ordering::SeqCst) == 6).await;
    probe.entered(2).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(probe.sizes("claim"), [1, 1]);
    probe.open_gate();
    assert!(patiently(tasks.join_all()).await.iter().all(Result::is_ok));
    assert_eq!(probe.sizes("claim"), [1; 6]);
}

/// The runtime that asks the store for everybody goes away: those who wait on another one get an error, and go on.
#[test]
fn callers_of_another_runtime_survive_the_end_of_the_one_that_asked() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (one, two) = (runtime(), runtime());
    let probe = Probe::gated("claim");
    let store = Batched::new(Arc::clone(&probe));
    let asking = store.clone();
    one.spawn(async move { claim_one(&asking, 1, 1).await });
    two.block_on(probe.entered(1));
    let waiting = Arc::new(AtomicUsize::new(0));
    let call = store.clone();
    let task = two.spawn(counted(async move { claim_one(&call, 2, 2).await }, Arc::clone(&waiting)));
    two.block_on(eventually(PATIENCE, "it waits", async || waiting.load(Ordering::SeqCst) == 1));
    one.shutdown_timeout(PATIENCE);
    let error = two.block_on(patiently(task)).unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    probe.open_gate();
    two.block_on(async { patiently(acquire(&store, 2, 2)).await });
}

#[test]
fn outside_tokio_a_call_goes_straight_to_the_store() {
    let store = Batched::new(MemoryStore::new());
    let mut call = pin!(claim_one(&store, 1, 1));
    let Poll::Ready(outcome) = call.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the memory store never waits")
    };
    assert!(matches!(outcome.unwrap(), ClaimOutcome::Acquired(_)));
}

#[tokio::test]
async fn an_empty_batch_asks_nobody() {
    let probe = Probe::memory();
    let store = Batched::new(Arc::clone(&probe));
    assert!(store.claim(&terms(1), &asks([])).await.unwrap().is_empty());
    assert!(probe.calls("claim").is_empty());
}

/// Many tasks, many owners, callers that leave at any point: no key is granted to two owners, and nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_callers_never_give_a_key_to_two() {
    let probe = Probe::memory();
    let limits = BatchLimits::default().max_batch(16).max_calls(2);
    let store = Batched::with_limits(Arc::clone(&probe), limits);
    let effects: Arc<Vec<AtomicUsize>> = Arc::new((0..200).map(|_| AtomicUsize::new(0)).collect());
    let mut tasks = JoinSet::new();
    for owner in 0..32_u64 {
        let (store, effects) = (store.clone(), Arc::clone(&effects));
        tasks.spawn(async move {
            for step in 0..200_u64 {
                let n = (owner * 7 + step) % 200;
                let turns = (owner + step) % 4;
                let leave = async {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                };
                let mut claim = pin!(claim_one(&store, owner, n));
                let outcome = if turns == 0 {
                    claim.await.unwrap()
                } else {
                    tokio::select! {
                        biased;
                        outcome = &mut claim => outcome.unwrap(),
                        () = leave => continue,
                    }
                };
                if let ClaimOutcome::Acquired(grant) = outcome {
                    effects[usize::try_from(n).unwrap()].fetch_add(1, Ordering::SeqCst);
                    assert_eq!(settle_one(&store, n, grant, succeeded()).await, SettleOutcome::Settled);
                }
            }
        });
    }
    patiently(tasks.join_all()).await;
    assert!(effects.iter().all(|effects| effects.load(Ordering::SeqCst) <= 1));
    assert!(effects.iter().any(|effects| effects.load(Ordering::SeqCst) == 1));
    for call in probe.calls("claim") {
        assert!(call.keys.len() <= 16 && call.keys.is_sorted_by(|a, b| a < b));
    }
}

#[tokio::test]
async fn the_hint_passes_through() {
    let probe = Probe::memory();
    let store = Batched::new(Arc::clone(&probe));
    let hinted = asks(0..3).map(|ask| hapax::store::Ask { read_first: true, ..ask.clone() });
    store.claim(&terms(1), &hinted).await.unwrap();
    store.claim(&terms(1), &Batch::one(ask(9))).await.unwrap();
    assert_eq!(probe.calls("claim").iter().map(|call| call.read_first).collect::<Vec<_>>(), [3, 0]);
}
