//! The faults of a loop around the wrapper, by their numbers. What kills whole processes is in `tests/crash`.

use std::panic::panic_any;
use std::time::Duration;

use hapax::identity::{Identify, header};
use hapax::message::Parts;
use hapax::record::{ClaimOutcome, State};
use hapax::store::DedupStore;
use hapax::{Done, Failure, HandleError, Once, Retry, Stage};

use crate::probe::{Effects, Fault, LEASE, Op, Probe, builder, id_of, message, messages, once, until};

async fn handled(once: &Once, effects: &Effects, message: &Parts) -> Result<Done<(), String>, HandleError<String>> {
    once.handle(message, async |_| {
        effects.add(id_of(message));
        Ok::<_, String>(())
    })
    .await
}

/// F1: it ended before the claim.
#[tokio::test(start_paused = true)]
async fn f01_what_was_never_claimed_is_handled_when_it_comes_again() {
    let (store, effects) = (Probe::new(), Effects::default());
    let first = builder(&store).store_patience(Duration::ZERO).build().await.unwrap();
    store.fail(Op::Claim, 1, Fault::Before);
    let message = message("a");
    assert!(matches!(handled(&first, &effects, &message).await, Err(HandleError::Store { stage: Stage::Claim, .. })));
    drop(first);
    let second = once(&store.other()).await;
    assert_eq!(handled(&second, &effects, &message).await.unwrap(), Done::Handled(()));
    assert_eq!(effects.count(), 1);
}

/// F2: it ended between claim and effect. The next owner waits for the lease, and then takes over.
#[tokio::test(start_paused = true)]
async fn f02_a_claim_left_behind_is_taken_over_when_its_lease_has_run_out() {
    let (store, effects) = (Probe::new(), Effects::default());
    let crashed = once(&store).await;
    let scope = hapax::identity::Scope::new("g", "h").unwrap();
    let message = message("a");
    let sighting = hapax::record::Sighting {
        key: scope.key(&header("id").identity(&message).unwrap(), "t"),
        fingerprint: scope.fingerprint(&Default::default(), &message),
        origin: Default::default(),
    };
    let terms =
        hapax::record::Terms { owner: crashed.owner(), lease: LEASE, max_attempts: Retry::default().max_attempts() };
    let outcome = store.claim(&terms, &hapax::store::Batch::one(sighting.into())).await.unwrap();
    assert!(matches!(outcome[0], ClaimOutcome::Acquired(_)));
    let next = builder(&store.other()).build().await.unwrap();
    let done = next.handle(&message, async |claim| {
        assert!(claim.took_over() && claim.attempt() == 2 && store.now() >= 9000);
        effects.add("a");
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert_eq!((effects.count(), next.counts().took_over), (1, 1));
    assert!(store.now() < 9100, "it looked again {} ms after the lease had run out", store.now() - 9000);
}

/// F3: it ended between effect and settle. Level L1 repeats the effect, once, and says that it took over.
#[tokio::test(start_paused = true)]
async fn f03_an_effect_without_settle_repeats_once_and_is_flagged() {
    let (store, effects) = (Probe::new(), Effects::default());
    let first = once(&store).await;
    let crash = tokio::spawn({
        let effects = effects.clone();
        async move {
            first
                .handle(&message("a"), async |_| {
                    effects.add("a");
                    std::future::pending::<()>().await;
                    Ok::<_, String>(())
                })
                .await
        }
    });
    until("the effect", || effects.count() == 1).await;
    // As a crash: the line to the store ends first, so that nothing is told any more.
    store.down(true);
    crash.abort();
    let second = once(&store.other()).await;
    assert_eq!(handled(&second, &effects, &message("a")).await.unwrap(), Done::Handled(()));
    assert_eq!((effects.count(), second.counts().took_over), (2, 1));
}

/// F4: it ended between settle and commit.
#[tokio::test(start_paused = true)]
async fn f04_what_was_settled_and_not_committed_is_a_duplicate() {
    let (store, effects) = (Probe::new(), Effects::default());
    let first = once(&store).await;
    assert!(handled(&first, &effects, &message("a")).await.unwrap().may_commit());
    drop(first);
    let second = once(&store.other()).await;
    let done = handled(&second, &effects, &message("a")).await.unwrap();
    assert!(matches!(done, Done::Duplicate { .. }) && done.may_commit());
    assert_eq!(effects.count(), 1);
}

/// F5: the store is down after the effect.
#[tokio::test(start_paused = true)]
async fn f05_a_success_that_the_store_did_not_hear_is_kept_and_told_first() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let message = message("a");
    let done = once.handle(&message, async |_| {
        effects.add("a");
        store.down(true);
        Ok::<_, String>(())
    });
    let error = done.await.unwrap_err();
    assert!(matches!(error, HandleError::Store { stage: Stage::Settle, .. }) && error.is_retryable(), "{error:?}");
    let unsettled = once.settle_pending(Duration::from_secs(1)).await;
    assert_eq!((unsettled.handled.len(), unsettled.claims), (1, 0), "{unsettled:?}");
    // Longer than the lease: nobody else came.
    tokio::time::sleep(3 * LEASE).await;
    let error = handled(&once, &effects, &message).await.unwrap_err();
    assert!(matches!(error, HandleError::Store { .. }), "{error:?}");
    store.down(false);
    let done = handled(&once, &effects, &message).await.unwrap();
    assert!(matches!(done, Done::Duplicate { .. }), "{done:?}");
    assert_eq!(effects.count(), 1);
    assert!(once.settle_pending(Duration::ZERO).await.is_empty());
}

/// F5: and it is told without being asked, as soon as the store is back.
#[tokio::test(start_paused = true)]
async fn f05_an_unheard_success_is_told_in_the_background() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).store_patience(Duration::ZERO).build().await.unwrap();
    store.fail(Op::Settle, 1, Fault::Before);
    store.fail(Op::Settle, 2, Fault::Before);
    assert!(handled(&once, &effects, &message("a")).await.is_err());
    assert!(!store.is_succeeded("a"));
    until("it is told", || store.is_succeeded("a")).await;
    assert!(once.settle_pending(Duration::ZERO).await.is_empty());
}

/// F6: the store is down before the claim.
#[tokio::test(start_paused = true)]
async fn f06_without_the_stores_answer_nothing_runs() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).store_patience(Duration::from_secs(20)).build().await.unwrap();
    store.down(true);
    let message = message("a");
    let error = handled(&once, &effects, &message).await.unwrap_err();
    assert!(matches!(error, HandleError::Store { stage: Stage::Claim, .. }) && error.is_retryable(), "{error:?}");
    assert!((18_000..=20_000).contains(&store.now()), "gave up after {} ms", store.now());
    let input = messages(3);
    let batch = once.handle_batch(&input, async |message, _| {
        effects.add(id_of(message));
        Ok::<_, String>(())
    });
    let batch = batch.await;
    assert!(batch.outcomes().iter().all(|outcome| matches!(outcome, Err(HandleError::Store { .. }))), "{batch:?}");
    assert!(batch.commits().is_empty());
    assert_eq!(effects.count(), 0);
    // It is back within the patience.
    let back = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        store.down(false);
    };
    let (done, ()) = tokio::join!(handled(&once, &effects, &message), back);
    assert_eq!(done.unwrap(), Done::Handled(()));
}

#[tokio::test(start_paused = true)]
async fn f06_a_store_that_refuses_is_not_asked_again() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    store.fail(Op::Claim, 1, Fault::Refuse);
    let error = handled(&once, &effects, &message("a")).await.unwrap_err();
    assert!(!error.is_retryable(), "{error:?}");
    assert_eq!((store.calls(Op::Claim).len(), effects.count(), store.now()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn f06_an_answer_of_the_wrong_length_is_no_answer() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    store.fail(Op::Claim, 1, Fault::Short);
    let error = handled(&once, &effects, &message("a")).await.unwrap_err();
    assert!(error.to_string().contains("answered 0 of 1"), "{error}");
    assert_eq!(effects.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn f06_a_store_that_never_answers_is_given_up() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).store_patience(Duration::from_secs(5)).build().await.unwrap();
    store.fail(Op::Claim, 1, Fault::Hang);
    assert!(handled(&once, &effects, &message("a")).await.is_err());
    assert_eq!((effects.count(), store.now()), (0, 9000));
    assert_eq!(handled(&once, &effects, &message("a")).await.unwrap(), Done::Handled(()));
}

/// F7: the reply to a claim is lost.
#[tokio::test(start_paused = true)]
async fn f07_a_claim_whose_reply_was_lost_is_asked_for_again_and_counts_once() {
    for fault in [Fault::After, Fault::HangAfter] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).store_patience(Duration::from_secs(60)).build().await.unwrap();
        store.fail(Op::Claim, 1, fault);
        assert_eq!(handled(&once, &effects, &message("a")).await.unwrap(), Done::Handled(()));
        let record = store.record("a").unwrap();
        assert_eq!((effects.count(), record.attempts, record.fence.get()), (1, 1, 1), "{fault:?}");
    }
}

/// F7: the reply to a settle is lost.
#[tokio::test(start_paused = true)]
async fn f07_a_settle_whose_reply_was_lost_is_told_again_and_counts_once() {
    for fault in [Fault::After, Fault::HangAfter] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).store_patience(Duration::from_secs(60)).build().await.unwrap();
        store.fail(Op::Settle, 1, fault);
        assert_eq!(handled(&once, &effects, &message("a")).await.unwrap(), Done::Handled(()));
        assert_eq!((effects.count(), once.counts().late), (1, 0), "{fault:?}");
        assert!(matches!(store.state("a"), Some(State::Succeeded { late: false, .. })));
    }
}

/// F7: the reply to a failure is lost. Told again, it must not hit the next attempt.
#[tokio::test(start_paused = true)]
async fn f07_a_failure_whose_reply_was_lost_does_not_hit_the_next_attempt() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::none()).store_patience(Duration::ZERO).build().await.unwrap();
    store.fail(Op::Settle, 1, Fault::After);
    let message = message("a");
    let error = once.handle(&message, async |_| Err::<(), _>("no")).await.unwrap_err();
    assert!(matches!(error, HandleError::Store { stage: Stage::Settle, .. }), "{error:?}");
    let done = once.handle(&message, async |claim| {
        assert_eq!(claim.attempt(), 2);
        // What was owed was told before the claim; nothing told now may end this claim.
        tokio::time::sleep(2 * LEASE).await;
        assert!(matches!(store.state("a"), Some(State::Processing { .. })), "{:?}", store.state("a"));
        Ok::<_, &str>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert_eq!(once.counts().late, 0);
}

/// F24: one id, two payloads.
#[tokio::test(start_paused = true)]
async fn f24_the_same_id_with_another_payload_is_a_conflict_even_while_it_is_handled() {
    let (store, effects) = (Probe::new(), Effects::default());
    let (one, two) = (once(&store).await, once(&store.other()).await);
    let other = Parts::new("t").payload("else").header("id", "a");
    let input = message("a");
    let done = one.handle(&input, async |_| {
        let error = handled(&two, &effects, &other).await.unwrap_err();
        assert!(matches!(error, HandleError::Conflict { .. }), "{error:?}");
        Ok::<_, String>(())
    });
    let _ = done.await.unwrap();
    let error = handled(&one, &effects, &other).await.unwrap_err();
    assert!(matches!(error, HandleError::Conflict { .. }), "{error:?}");
    assert_eq!((effects.count(), one.counts().conflicts), (0, 1));
}

/// F30: nobody checks and then acts: one statement decides between many.
#[tokio::test(start_paused = true)]
async fn f30_many_members_and_tasks_at_one_message_run_it_once() {
    let (store, effects) = (Probe::new(), Effects::default());
    store.yields(3);
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let line = store.other();
        line.yields(2);
        let member = builder(&line).wait_in_flight(Duration::from_secs(600)).build().await.unwrap();
        for _ in 0..4 {
            let (member, effects) = (member.clone(), effects.clone());
            tasks.push(tokio::spawn(async move {
                for id in ["a", "b", "c"] {
                    let _ = member
                        .handle(&message(id), async |_| {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            effects.add(id);
                            Ok::<_, String>(())
                        })
                        .await
                        .unwrap();
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut all = effects.all();
    all.sort();
    assert_eq!(all, ["a", "b", "c"]);
}

/// F36: a message that panics every time.
#[tokio::test(start_paused = true)]
async fn f36_a_poison_message_is_given_up_after_its_attempts_and_the_next_goes_on() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(4)).build().await.unwrap();
    let runs = Effects::default();
    let input = message("poison");
    let done = once.handle(&input, async |_| -> Result<(), String> {
        runs.add("x");
        panic!("cannot divide {} by zero", 7)
    });
    let panicked = Failure::Panicked("cannot divide 7 by zero".into());
    assert_eq!(done.await.unwrap(), Done::Dead { attempts: 4, error: Some(panicked) });
    assert_eq!((runs.count(), once.counts().panicked), (4, 4));
    assert_eq!(handled(&once, &effects, &message("next")).await.unwrap(), Done::Handled(()));
}

/// F36: a crash counts as an attempt, whoever comes next.
#[tokio::test(start_paused = true)]
async fn f36_attempts_that_ended_with_the_process_count() {
    let store = Probe::new();
    let retry = Retry::default().attempts(3);
    for _ in 0..3 {
        let line = store.other();
        let once = builder(&line).retry(retry).wait_in_flight(Duration::from_secs(60)).build().await.unwrap();
        let crash = async {
            once.handle(&message("a"), async |_| {
                line.down(true);
                std::future::pending::<()>().await;
                Ok::<_, String>(())
            })
            .await
            .unwrap()
        };
        assert!(tokio::time::timeout(Duration::from_secs(15), crash).await.is_err());
    }
    let once = builder(&store.other()).retry(retry).build().await.unwrap();
    let input = message("a");
    let done = once.handle(&input, async |_| Ok::<_, String>(())).await.unwrap();
    assert_eq!(done, Done::Dead { attempts: 3, error: None });
}

/// F36: a message that ends the process again and again must not use up the attempts of those claimed with it.
#[tokio::test(start_paused = true)]
async fn f36_a_message_that_ends_the_process_does_not_bury_its_neighbours() {
    let (store, effects) = (Probe::new(), Effects::default());
    let messages = messages(20);
    let retry = Retry::default().attempts(3);
    for round in 0.. {
        assert!(round < 12, "it does not end");
        let line = store.other();
        let once = builder(&line).retry(retry).build().await.unwrap();
        let run = async |message: Parts| {
            if id_of(&message) == "m5" {
                line.down(true);
                std::future::pending::<()>().await;
            }
            effects.add(id_of(&message));
            Ok::<_, String>(())
        };
        let life = async {
            assert!(once.handle_batch(&messages, |message, _| run(message.clone())).await.all_finished());
        };
        // Killed while it runs the poison; all leases run out before the next member comes.
        if tokio::time::timeout(Duration::from_secs(300), life).await.is_ok() {
            break;
        }
        tokio::time::sleep(LEASE * 2).await;
    }
    for message in &messages {
        let id = id_of(message);
        assert_eq!(store.is_dead(&id), id == "m5", "{id}: {:?}", store.record(&id));
        let effects = effects.of(&id);
        let expected = match id.as_str() {
            "m5" => 0..=0,
            // Ended and not settled when the process ended for the first time.
            "m0" | "m1" | "m2" | "m3" | "m4" => 2..=2,
            _ => 1..=1,
        };
        assert!(expected.contains(&effects), "{id}: {effects}");
    }
}

/// F39: a panic in any form is caught, and counted as a failed attempt.
#[tokio::test(start_paused = true)]
async fn f39_a_panic_is_a_failed_attempt() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let words: [(fn(), &str); 3] = [
        (|| panic!("plain"), "plain"),
        (|| panic!("{}", "ö".repeat(1000)), &"ö".repeat(100)),
        (|| panic_any(7_u64), "without a message"),
    ];
    for (at, (fall, expected)) in words.into_iter().enumerate() {
        let input = message("a");
        let error = once.handle(&input, async |claim| {
            assert_eq!(claim.attempt(), at as u32 + 1);
            fall();
            Ok::<_, String>(())
        });
        let error = error.await.unwrap_err();
        assert!(matches!(&error, HandleError::Handler(Failure::Panicked(text)) if text == expected), "{error:?}");
    }
    // A closure that panics before it has a future to give.
    let input = message("a");
    let error = once.handle(&input, |_| -> std::future::Ready<Result<(), String>> { panic!("early") }).await;
    assert!(matches!(error, Err(HandleError::Handler(Failure::Panicked(_)))), "{error:?}");
    assert!(matches!(store.state("a"), Some(State::Failed { .. })));
}

/// F39: a handler whose future was dropped has failed; the next delivery runs it at once.
#[tokio::test(start_paused = true)]
async fn f39_a_dropped_handler_has_failed_and_does_not_wait_for_its_own_lease() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let message = message("a");
    let slow = once.handle(&message, async |_| {
        std::future::pending::<()>().await;
        Ok::<_, String>(())
    });
    assert!(tokio::time::timeout(Duration::from_secs(1), slow).await.is_err());
    let done = once.handle(&message, async |claim| {
        assert_eq!(claim.attempt(), 2, "the dropped attempt did not count");
        effects.add("a");
        Ok::<_, String>(())
    });
    assert_eq!(done.await.unwrap(), Done::Handled(()));
    assert_eq!(store.now(), 1000);
}

/// F39: and another member need not wait for the lease either.
#[tokio::test(start_paused = true)]
async fn f39_a_dropped_handler_is_told_in_the_background() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let message = message("a");
    let slow = once.handle(&message, async |_| {
        std::future::pending::<()>().await;
        Ok::<_, String>(())
    });
    assert!(tokio::time::timeout(Duration::from_secs(1), slow).await.is_err());
    until("it is told", || matches!(store.state("a"), Some(State::Failed { .. }))).await;
    assert!(store.now() < 2000);
}

/// F42: one message of a batch fails.
#[tokio::test(start_paused = true)]
async fn f42_each_message_of_a_batch_has_its_own_outcome() {
    for failing in 0..6 {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).retry(Retry::none()).build().await.unwrap();
        let messages = messages(6);
        let done = once.handle_batch(&messages, async |message, _| {
            if id_of(message) == format!("m{failing}") {
                return Err("no");
            }
            effects.add(id_of(message));
            Ok(())
        });
        let done = done.await;
        assert_eq!((effects.count(), done.first_unfinished()), (5, Some(failing)));
        for (at, outcome) in done.outcomes().iter().enumerate() {
            assert_eq!(outcome.is_ok(), at != failing, "{outcome:?}");
            assert_eq!(store.is_succeeded(&format!("m{at}")), at != failing);
        }
        let expected = (failing > 0).then(|| (failing - 1 + (failing - 1) / 3 + 1) as i64);
        assert_eq!(done.commits().first().map(|commit| commit.offset), expected);
        // Delivered again, only the one that failed runs.
        let again = once.handle_batch(&messages, async |message, _| {
            effects.add(id_of(message));
            Ok::<_, &str>(())
        });
        assert!(again.await.all_finished());
        assert_eq!(effects.count(), 6);
    }
}

/// F45: two groups in one table.
#[tokio::test(start_paused = true)]
async fn f45_two_groups_in_one_store_both_handle_every_message() {
    let (store, effects) = (Probe::new(), Effects::default());
    for (group, handler) in [("a", "b"), ("a", "c"), ("b", "b"), ("ab", "")] {
        let built = Once::builder(store.clone()).scope(group, handler).identify(header("id")).build().await;
        let Ok(once) = built else {
            assert_eq!(handler, "", "a scope without a name was taken");
            continue;
        };
        for _ in 0..2 {
            let _ = handled(&once, &effects, &message("x")).await.unwrap();
        }
    }
    assert_eq!((effects.count(), store.records().len()), (3, 3));
}
