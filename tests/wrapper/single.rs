//! One message: what it comes to.

use std::time::Duration;

use hapax::identity::{FingerprintBy, OnMissing};
use hapax::message::Parts;
use hapax::record::{Fence, Origin};
use hapax::{Done, ErrorClass, Failure, Fatal, HandleError, HandlerError, Mode, OnConflict, Once, Retry};
use tokio::time::Instant;

use crate::probe::{Effects, LEASE, Op, Probe, at, builder, message, once};

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Handles a message by noting its effect.
async fn handled(once: &Once, effects: &Effects, message: &Parts) -> Done<(), String> {
    let done = once.handle(message, async |_| {
        effects.add(crate::probe::id_of(message));
        Ok::<_, String>(())
    });
    done.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_message_is_handled_and_its_copies_are_duplicates() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    assert_eq!(handled(&once, &effects, &at("a", 3, 42)).await, Done::Handled(()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let done = handled(&once, &effects, &at("a", 1, 7)).await;
    let Done::Duplicate { value: None, first } = &done else { panic!("{done:?}") };
    assert_eq!(first.origin, Origin { topic: "t".into(), partition: 3, offset: 42 });
    assert_eq!(first.at, store.now() - 5000);
    assert!(done.may_commit());
    assert_eq!(handled(&once, &effects, &message("b")).await, Done::Handled(()));
    assert_eq!(effects.all(), ["a", "b"]);
    let counts = once.counts();
    assert_eq!((counts.handled, counts.duplicates, counts.failed), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_message_costs_two_calls_and_a_duplicate_one() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let _ = handled(&once, &effects, &message("a")).await;
    assert_eq!(store.all_calls(), [(Op::Claim, 1), (Op::Settle, 1)]);
    let _ = handled(&once, &effects, &message("a")).await;
    assert_eq!(store.all_calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_gets_the_kept_result() {
    let store = Probe::new();
    let once = builder(&store).keep_results(5).build().await.unwrap();
    let answer = async |id: &str, text: &str| {
        let input = message(id);
        let done = once.handle(&input, async |_| Ok::<_, String>(text.to_owned())).await.unwrap();
        done.into_value()
    };
    assert_eq!(answer("a", "first").await.as_deref(), Some("first"));
    assert_eq!(answer("a", "other").await.as_deref(), Some("first"));
    assert_eq!(answer("b", "longer").await.as_deref(), Some("longer"));
    assert_eq!(answer("b", "other").await, None, "a result beyond the cap was kept");
    assert_eq!(once.counts().results_dropped, 1);
}

#[tokio::test(start_paused = true)]
async fn results_are_not_kept_unless_asked_for() {
    let store = Probe::new();
    let once = once(&store).await;
    for _ in 0..2 {
        let _ = once.handle(&message("a"), async |_| Ok::<_, String>(String::from("x"))).await.unwrap();
    }
    assert_eq!(store.record("a").unwrap().result, None);
}

#[tokio::test(start_paused = true)]
async fn the_handler_sees_attempt_fence_and_a_stable_key() {
    let store = Probe::new();
    let retry = Retry::fixed(Duration::from_secs(1));
    let once = builder(&store).retry(retry).build().await.unwrap();
    let mut seen = Vec::new();
    let seen = std::sync::Mutex::new(&mut seen);
    let _ = once
        .handle(&message("a"), async |claim| {
            seen.lock().unwrap().push((claim.attempt(), claim.fence(), claim.idempotency_key(), claim.took_over()));
            if claim.attempt() < 3 { Err("again") } else { Ok(()) }
        })
        .await
        .unwrap();
    let seen = seen.into_inner().unwrap();
    let key = seen[0].2.clone();
    assert_eq!(key.len(), 32);
    let expected: Vec<_> = (1..=3).map(|n| (n, Fence::new(u64::from(n)), key.clone(), false)).collect();
    assert_eq!(*seen, expected);
    let mut other = String::new();
    let other_seen = std::sync::Mutex::new(&mut other);
    let _ = once
        .handle(&message("b"), async |claim| {
            **other_seen.lock().unwrap() = claim.idempotency_key();
            Ok::<_, String>(())
        })
        .await
        .unwrap();
    assert_ne!(other, key);
}

#[tokio::test(start_paused = true)]
async fn a_failed_message_is_tried_again_in_place_after_its_pause() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(3))).build().await.unwrap();
    let began = Instant::now();
    let input = message("a");
    let done = once.handle(&input, async |claim| {
        if claim.attempt() < 3 {
            return Err("not yet");
        }
        effects.add("a");
        Ok(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert_eq!(began.elapsed().as_secs(), 6);
    assert_eq!((effects.count(), once.counts().failed, once.counts().handled), (1, 2, 1));
    assert_eq!(store.record("a").unwrap().attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn attempts_used_up_make_it_dead_and_dead_is_remembered() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(3)).build().await.unwrap();
    let runs = Effects::default();
    let run = async || {
        once.handle(&message("a"), async |_| {
            runs.add("a");
            Err::<(), _>("never")
        })
        .await
        .unwrap()
    };
    let done = run().await;
    assert_eq!(done, Done::Dead { attempts: 3, error: Some(Failure::Error("never")) });
    assert!(done.may_commit());
    assert!(store.is_dead("a"));
    assert_eq!(run().await, Done::Dead { attempts: 3, error: None });
    assert_eq!(runs.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn attempts_go_on_counting_in_another_process() {
    let store = Probe::new();
    let retry = Retry::none().attempts(3);
    for attempt in 1..=3 {
        let once = builder(&store).retry(retry).build().await.unwrap();
        let input = message("a");
        let done = once.handle(&input, async |claim| {
            assert_eq!(claim.attempt(), attempt);
            Err::<(), _>("no")
        });
        match (attempt, done.await) {
            (3, Ok(Done::Dead { attempts: 3, error: Some(_) })) => {}
            (_, Err(HandleError::Handler(Failure::Error("no")))) if attempt < 3 => {}
            (_, other) => panic!("attempt {attempt}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fatal_error_is_not_tried_again() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |_| Err::<(), Boxed>(Fatal::new("no such account").into())).await.unwrap();
    let Done::Dead { attempts: 1, error: Some(Failure::Error(error)) } = done else { panic!("{done:?}") };
    assert_eq!(error.to_string(), "no such account");
    assert!(store.is_dead("a"));
}

#[tokio::test(start_paused = true)]
async fn a_users_own_error_type_says_its_class() {
    #[derive(Debug, PartialEq)]
    struct Answer(u16);
    impl std::fmt::Display for Answer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}", self.0)
        }
    }
    impl HandlerError for Answer {
        fn class(&self) -> ErrorClass {
            if self.0 < 500 { ErrorClass::Fatal } else { ErrorClass::Retryable }
        }
    }
    let store = Probe::new();
    let once = once(&store).await;
    let input = message("a");
    let done = once.handle(&input, async |claim| Err::<(), _>(Answer(if claim.attempt() == 1 { 503 } else { 404 })));
    assert_eq!(done.await.unwrap(), Done::Dead { attempts: 2, error: Some(Failure::Error(Answer(404))) });
}

#[tokio::test(start_paused = true)]
async fn without_retry_the_error_comes_back_at_once_and_the_next_delivery_runs() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        let input = message("a");
        let error = once.handle(&input, async |_| Err::<(), _>("down")).await.unwrap_err();
        assert!(matches!(error, HandleError::Handler(Failure::Error("down"))), "{error:?}");
        assert!(error.is_retryable());
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(handled(&once, &effects, &message("a")).await, Done::Handled(()));
    assert_eq!(store.record("a").unwrap().attempts, 21);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_due_is_waited_for_or_given_back() {
    let (store, effects) = (Probe::new(), Effects::default());
    let first = builder(&store).retry(Retry::fixed(Duration::from_secs(8))).build().await.unwrap();
    let message = message("a");
    let failing = first.handle(&message, async |_| Err::<(), _>("no"));
    assert!(tokio::time::timeout(Duration::from_secs(1), failing).await.is_err());
    drop(first);
    let patient = builder(&store.other()).build().await.unwrap();
    let hasty = builder(&store.other()).retry(Retry::none()).build().await.unwrap();
    let done = hasty.handle(&message, async |_| Ok::<_, String>(())).await.unwrap();
    let Done::NotDue { remaining } = done else { panic!("{done:?}") };
    assert!((6..=7).contains(&remaining.as_secs()), "{remaining:?}");
    assert!(!done.may_commit());
    assert_eq!(handled(&patient, &effects, &message).await, Done::Handled(()));
    assert_eq!(store.now(), 8000);
}

#[tokio::test(start_paused = true)]
async fn a_message_in_another_members_hands_is_waited_for() {
    let (store, effects) = (Probe::new(), Effects::default());
    let (one, two) = (once(&store).await, once(&store.other()).await);
    let slow = tokio::spawn({
        let effects = effects.clone();
        async move {
            one.handle(&message("a"), async |_| {
                tokio::time::sleep(4 * LEASE).await;
                effects.add("a");
                Ok::<_, String>(())
            })
            .await
            .unwrap()
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let done = handled(&two, &effects, &message("a")).await;
    assert!(matches!(done, Done::Duplicate { .. }), "{done:?}");
    assert_eq!(slow.await.unwrap(), Done::Handled(()));
    assert_eq!((effects.count(), two.counts().waited), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_and_what_is_in_flight_is_not_committed() {
    let store = Probe::new();
    let one = once(&store).await;
    let two = builder(&store.other()).wait_in_flight(Duration::from_secs(2)).build().await.unwrap();
    let holder = tokio::spawn(async move {
        one.handle(&message("a"), async |_| {
            std::future::pending::<()>().await;
            Ok::<_, String>(())
        })
        .await
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let began = Instant::now();
    let input = message("a");
    let done = two.handle(&input, async |_| Ok::<_, String>(())).await.unwrap();
    assert!(matches!(done, Done::InFlight { remaining } if remaining > Duration::ZERO), "{done:?}");
    assert!(!done.may_commit());
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    holder.abort();
}

#[tokio::test(start_paused = true)]
async fn the_same_message_twice_in_one_process_runs_once() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (once, effects) = (once.clone(), effects.clone());
            tokio::spawn(async move {
                let input = message("a");
                let done = once.handle(&input, async |_| {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    effects.add("a");
                    Ok::<_, String>(())
                });
                matches!(done.await.unwrap(), Done::Handled(()))
            })
        })
        .collect();
    let mut handled = 0;
    for task in tasks {
        handled += usize::from(task.await.unwrap());
    }
    assert_eq!((effects.count(), handled, once.counts().duplicates), (1, 1, 7));
}

#[tokio::test(start_paused = true)]
async fn a_twin_waits_no_longer_than_it_may() {
    let store = Probe::new();
    let once = builder(&store).wait_in_flight(Duration::from_secs(3)).build().await.unwrap();
    let message = message("a");
    let done = once.handle(&message, async |_| {
        // The same message from within its own handler.
        let inner = once.handle(&message, async |_| Ok::<_, String>(())).await.unwrap();
        assert!(matches!(inner, Done::InFlight { .. }), "{inner:?}");
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
}

#[tokio::test(start_paused = true)]
async fn a_message_without_identity_is_refused_by_default() {
    let store = Probe::new();
    let once = once(&store).await;
    let bare = Parts::new("t").at(2, 9).payload("x");
    let error = once.handle(&bare, async |_| -> Result<(), String> { unreachable!("refused") }).await.unwrap_err();
    assert!(matches!(error, HandleError::Identity { .. }) && !error.is_retryable(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("topic `t`, partition 2, offset 9") && text.contains("header `id`"), "{text}");
    assert!(store.all_calls().is_empty());
    assert_eq!(once.counts().rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_identity_may_be_handled_each_time() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).on_missing(OnMissing::HandleWithoutDedup).build().await.unwrap();
    let bare = Parts::new("t").at(2, 9).payload("x");
    let mut keys = Vec::new();
    for _ in 0..3 {
        let key = std::sync::Mutex::new(String::new());
        let done = once.handle(&bare, async |claim| {
            *key.lock().unwrap() = claim.idempotency_key();
            effects.add("x");
            if claim.attempt() == 1 { Err("once more") } else { Ok(()) }
        });
        assert_eq!(done.await.unwrap(), Done::Handled(()));
        keys.push(key.into_inner().unwrap());
    }
    assert_eq!((effects.count(), once.counts().without_identity, once.counts().failed), (6, 3, 3));
    assert!(store.all_calls().is_empty());
    keys.dedup();
    assert_eq!(keys.len(), 1, "the key to hand on changed between deliveries");
}

#[tokio::test(start_paused = true)]
async fn at_least_once_never_asks_the_store() {
    let (store, effects) = (Probe::new(), Effects::default());
    let retry = Retry::fixed(Duration::from_secs(1)).attempts(2);
    let once = builder(&store).mode(Mode::AtLeastOnce).retry(retry).build().await.unwrap();
    for _ in 0..2 {
        assert_eq!(handled(&once, &effects, &message("a")).await, Done::Handled(()));
    }
    let input = message("b");
    let done = once.handle(&input, async |_| Err::<(), _>("no")).await.unwrap();
    assert_eq!(done, Done::Dead { attempts: 2, error: Some(Failure::Error("no")) });
    assert_eq!(effects.all(), ["a", "a"]);
    assert!(store.all_calls().is_empty() && store.prepared() == 0);
    assert_eq!(once.level(), None);
}

#[tokio::test(start_paused = true)]
async fn at_most_once_settles_before_the_handler_runs() {
    let store = Probe::new();
    let once = builder(&store).mode(Mode::AtMostOnce).build().await.unwrap();
    let runs = Effects::default();
    let run = async || {
        once.handle(&message("a"), async |claim| {
            assert!(store.is_succeeded("a"), "it runs before it is settled");
            assert!(!claim.is_lost() && claim.fence() == Fence::FIRST);
            runs.add("a");
            Err::<(), _>("no")
        })
        .await
        .unwrap()
    };
    assert_eq!(run().await, Done::Dead { attempts: 1, error: Some(Failure::Error("no")) });
    assert!(matches!(run().await, Done::Duplicate { .. }));
    assert_eq!(runs.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn at_most_once_does_not_run_what_it_could_not_settle() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).mode(Mode::AtMostOnce).store_patience(Duration::ZERO).build().await.unwrap();
    store.fail(Op::Settle, 1, crate::probe::Fault::After);
    let message = message("a");
    let error = once.handle(&message, async |_| {
        effects.add("a");
        Ok::<_, String>(())
    });
    assert!(matches!(error.await, Err(HandleError::Store { .. })));
    let done = handled(&once, &effects, &message).await;
    assert!(matches!(done, Done::Duplicate { .. }), "{done:?}");
    assert_eq!(effects.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_too_long_has_failed() {
    let (store, effects) = (Probe::new(), Effects::default());
    let retry = Retry::fixed(Duration::from_secs(1)).attempts(2);
    let once = builder(&store).handler_timeout(Duration::from_secs(5)).retry(retry).build().await.unwrap();
    let input = message("a");
    let done = once.handle(&input, async |_| {
        tokio::time::sleep(Duration::from_secs(6)).await;
        effects.add("a");
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Dead { attempts: 2, error: Some(Failure::TimedOut(Duration::from_secs(5))) });
    assert_eq!((effects.count(), once.counts().timed_out, store.now()), (0, 2, 11_000));
}

#[tokio::test(start_paused = true)]
async fn a_slow_claim_counts_its_lease_from_when_it_was_asked_for() {
    let store = Probe::new();
    let once = once(&store).await;
    store.fail(Op::Claim, 1, crate::probe::Fault::Slow(5000));
    let _ = once
        .handle(&message("a"), async |claim| {
            assert!(claim.remaining() <= LEASE - Duration::from_secs(5), "{:?}", claim.remaining());
            Ok::<_, String>(())
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn topics_are_told_apart_and_so_are_fingerprints_if_asked() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).fingerprint(FingerprintBy::nothing()).build().await.unwrap();
    let _ = handled(&once, &effects, &message("a")).await;
    let elsewhere = Parts::new("u").payload("a").header("id", "a");
    assert_eq!(handled(&once, &effects, &elsewhere).await, Done::Handled(()));
    let other_body = Parts::new("t").payload("other").header("id", "a");
    assert!(matches!(handled(&once, &effects, &other_body).await, Done::Duplicate { .. }));
    assert_eq!(effects.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn by_default_the_position_tells_messages_apart() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = Once::builder(store).scope("g", "h").build().await.unwrap();
    for message in [at("a", 0, 1), at("a", 0, 2), at("a", 1, 1), at("a", 0, 1)] {
        let _ = handled(&once, &effects, &message).await;
    }
    assert_eq!((effects.count(), once.counts().duplicates), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn conflicts_follow_their_policy() {
    let (first, second) = (message("a"), Parts::new("t").at(4, 5).payload("else").header("id", "a"));
    for policy in [OnConflict::Stop, OnConflict::Skip, OnConflict::Handle] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).on_conflict(policy).build().await.unwrap();
        let _ = handled(&once, &effects, &first).await;
        let done = once.handle(&second, async |claim| {
            effects.add("conflict");
            if claim.attempt() == 1 { Err("again") } else { Ok(()) }
        });
        match (policy, done.await) {
            (OnConflict::Stop, Err(error @ HandleError::Conflict { .. })) => {
                assert!(!error.is_retryable());
                assert!(error.to_string().contains("partition 4, offset 5"), "{error}");
            }
            (OnConflict::Skip, Ok(done @ Done::Conflict { .. })) => assert!(done.may_commit()),
            (OnConflict::Handle, Ok(Done::Handled(()))) => {}
            (_, other) => panic!("{policy:?}: {other:?}"),
        }
        let expected = if policy == OnConflict::Handle { 2 } else { 0 };
        assert_eq!(effects.of("conflict"), expected, "{policy:?}");
        assert_eq!(once.counts().conflicts, 1);
        assert!(store.is_succeeded("a"));
    }
}
