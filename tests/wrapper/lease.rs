//! Leases: renewed while handlers run, lost after a pause, told to the handler.

use std::sync::Arc;
use std::time::Duration;

use hapax::record::State;
use hapax::{Done, Failure, HandleError, Once, Retry};
use tokio::sync::Notify;

use crate::probe::{Effects, Fault, LEASE, Op, Probe, at, builder, message, messages, until};

/// Without retry, so that what a handler asserts comes out.
async fn once(store: &Probe) -> Once {
    builder(store).retry(Retry::none()).build().await.unwrap()
}

/// Lets longer than a lease pass and takes the message over for another owner, as if this process had stood still meanwhile.
async fn taken_over(store: &Probe, finish: bool) {
    store.down(true);
    tokio::time::advance(LEASE * 2).await;
    let other = builder(&store.other()).wait_in_flight(Duration::from_secs(3600)).build().await.unwrap();
    let claimed = Arc::new(Notify::new());
    let task = tokio::spawn({
        let claimed = Arc::clone(&claimed);
        async move {
            other
                .handle(&message("a"), async |claim| {
                    assert!(claim.took_over());
                    claimed.notify_one();
                    if !finish {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, String>(())
                })
                .await
        }
    });
    claimed.notified().await;
    if finish {
        let _ = task.await.unwrap().unwrap();
    }
    store.down(false);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_for_as_long_as_the_handler_runs() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |claim| {
        for _ in 0..100 {
            tokio::time::sleep(LEASE / 2).await;
            assert!(!claim.is_lost());
            assert!(claim.remaining() >= LEASE / 2, "{:?}", claim.remaining());
        }
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    let renewals = store.calls(Op::Extend).len();
    assert!((140..=200).contains(&renewals), "{renewals} renewals in 50 leases");
    tokio::time::sleep(10 * LEASE).await;
    assert_eq!(store.calls(Op::Extend).len(), renewals, "renewed after the handler was over");
}

#[tokio::test(start_paused = true)]
async fn quick_handlers_cost_no_renewal() {
    let store = Probe::new();
    let once = once(&store).await;
    for i in 0..1000 {
        let _ = once
            .handle(&message(&i.to_string()), async |_| {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, String>(())
            })
            .await
            .unwrap();
    }
    assert_eq!(store.calls(Op::Extend).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn all_that_is_held_is_renewed_in_one_call() {
    let store = Probe::new();
    let once = once(&store).await;
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let once = once.clone();
            tokio::spawn(async move {
                let _ = once
                    .handle(&message(&i.to_string()), async |_| {
                        tokio::time::sleep(LEASE * 2).await;
                        Ok::<_, String>(())
                    })
                    .await
                    .unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let calls = store.calls(Op::Extend);
    assert!(calls.iter().all(|n| *n == 40) && (5..=7).contains(&calls.len()), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn claims_of_a_batch_are_renewed_until_each_has_ended() {
    let store = Probe::new();
    let once = once(&store).await;
    let messages = messages(3);
    let done = once.handle_batch(&messages, async |_, _| {
        tokio::time::sleep(LEASE * 2).await;
        Ok::<_, String>(())
    });
    assert!(done.await.all_finished());
    assert_eq!(once.counts().late, 0);
    assert!(store.calls(Op::Extend).iter().all(|n| *n == 3), "what ended and is unheard is renewed as well");
}

/// F13: the process stood still for longer than the lease.
#[tokio::test(start_paused = true)]
async fn f13_a_pause_longer_than_the_lease_is_told_to_the_handler() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |claim| {
        let token = claim.cancellation_token();
        // Time passes and no task runs, as after SIGSTOP.
        taken_over(&store, true).await;
        assert!(claim.is_lost() && claim.remaining().is_zero(), "it may have been taken over");
        claim.lost().await;
        assert!(token.is_cancelled() && claim.cancellation_token().is_cancelled());
        effects.add("late");
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    let counts = once.counts();
    assert_eq!((counts.lost, counts.late), (1, 1));
    assert!(store.is_succeeded("a"));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_nobody_used_is_no_loss() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |claim| {
        tokio::time::advance(LEASE * 2).await;
        until("renewed", || !claim.is_lost()).await;
        assert!(!claim.cancellation_token().is_cancelled());
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert_eq!((once.counts().lost, once.counts().late), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_late_success_is_remembered_and_flagged() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |_| {
        taken_over(&store, false).await;
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert!(matches!(store.state("a"), Some(State::Succeeded { late: true, .. })), "{:?}", store.state("a"));
    assert_eq!(once.counts().late, 1);
}

/// F31: a stale owner neither fails nor releases.
#[tokio::test(start_paused = true)]
async fn f31_a_handler_that_failed_after_its_lease_was_lost_changes_nothing() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |claim| {
        store.steal("a");
        claim.lost().await;
        Err::<(), _>("stopped")
    });
    let error = done.await.unwrap_err();
    assert!(matches!(error, HandleError::LeaseLost(Failure::Error("stopped"))), "{error:?}");
    assert!(matches!(store.state("a"), Some(State::Processing { .. })), "{:?}", store.state("a"));
    assert!(store.calls(Op::Settle).is_empty(), "it tried to fail what it no longer held");
}

/// The same when the handler never heard: the store refuses.
#[tokio::test(start_paused = true)]
async fn a_failure_reported_too_late_is_refused_and_the_message_waited_for() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::fixed(Duration::from_millis(1))).build().await.unwrap();
    let input = message("a");
    let done = once.handle(&input, async |_| {
        taken_over(&store, true).await;
        Err::<(), _>("stopped")
    });
    let done = done.await.unwrap();
    assert!(matches!(done, Done::Duplicate { .. }), "{done:?}");
    assert_eq!(once.counts().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_out_of_reach_for_a_lease_is_told_to_the_handler() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |claim| {
        store.down(true);
        let began = tokio::time::Instant::now();
        claim.lost().await;
        assert!(began.elapsed() >= LEASE && began.elapsed() < LEASE * 5 / 4, "{:?}", began.elapsed());
        store.down(false);
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert_eq!(once.counts().lost, 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_is_told_to_the_handler_in_time() {
    let store = Probe::new();
    let once = once(&store).await;
    for nth in 1..10 {
        store.fail(Op::Extend, nth, Fault::Hang);
    }
    let _ = once
        .handle(&message("a"), async |claim| {
            let began = tokio::time::Instant::now();
            claim.lost().await;
            assert!(began.elapsed() >= LEASE && began.elapsed() < LEASE * 5 / 4, "{:?}", began.elapsed());
            Ok::<_, String>(())
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_failed_renewal_loses_nothing() {
    let store = Probe::new();
    let once = once(&store).await;
    store.fail(Op::Extend, 1, Fault::Before);
    store.fail(Op::Extend, 3, Fault::After);
    let _ = once
        .handle(&message("a"), async |claim| {
            tokio::time::sleep(LEASE * 5).await;
            assert!(!claim.is_lost());
            Ok::<_, String>(())
        })
        .await
        .unwrap();
    assert_eq!((once.counts().lost, once.counts().late), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_background_task_ends_with_the_wrapper() {
    let store = Probe::new();
    let once: Once = once(&store).await;
    let _ = once.handle(&at("a", 0, 0), async |_| Ok::<_, String>(())).await.unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 1);
    drop(once);
    until("the task ended", || metrics.num_alive_tasks() == 0).await;
}
