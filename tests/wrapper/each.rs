//! What a consumer runs: one lane.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use hapax::identity::OnMissing;
use hapax::message::Parts;
use hapax::record::{Origin, State};
use hapax::{Claim, Failure, Finished, HandleError, Mode, OnConflict, Once, Retry, Stage};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::probe::{Effects, Fault, LEASE, Op, Probe, at, builder, id_of, messages, once, until};

type Reports = RefCell<Vec<(usize, Finished<String>)>>;

fn places(reports: &Reports) -> Vec<usize> {
    let mut places: Vec<usize> = reports.borrow().iter().map(|(at, _)| *at).collect();
    places.sort_unstable();
    places
}

/// Runs a slice in which each handler notes its effect.
async fn lane(once: &Once, messages: &[Parts], effects: &Effects) -> Vec<(usize, Finished<String>)> {
    let reports = Reports::default();
    let each = once.each(async |message: Parts, _: Claim| {
        effects.add(id_of(&message));
        Ok::<_, String>(())
    });
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    each.handle_each(messages, &CancellationToken::new(), report).await.unwrap();
    reports.into_inner()
}

#[tokio::test(start_paused = true)]
async fn a_lane_claims_in_batches_that_grow_and_runs_in_order() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let messages = messages(1000);
    let reports = lane(&once, &messages, &effects).await;
    assert_eq!(effects.all(), messages.iter().map(id_of).collect::<Vec<_>>());
    assert!(reports.iter().all(|(_, finished)| *finished == Finished::Handled));
    assert_eq!(reports.iter().map(|(at, _)| *at).collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    assert_eq!(store.calls(Op::Claim), [32, 128, 512, 328]);
    assert_eq!(once.counts().handled, 1000);
    // Each call to settle carries all that has ended.
    assert_eq!(store.calls(Op::Settle).iter().sum::<usize>(), 1000);
    assert!(store.calls(Op::Settle).len() <= 5, "{:?}", store.calls(Op::Settle));
}

#[tokio::test(start_paused = true)]
async fn slow_handlers_are_claimed_few_at_a_time() {
    let store = Probe::new();
    let once = once(&store).await;
    let each = once.each(async |_: Parts, _: Claim| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, String>(())
    });
    each.handle_each(&messages(100), &CancellationToken::new(), |_, _| {}).await.unwrap();
    let claims = store.calls(Op::Claim);
    assert!(claims[1..].iter().all(|n| *n <= 3), "{claims:?}");
}

#[tokio::test(start_paused = true)]
async fn a_settle_travels_while_the_next_handler_runs() {
    let store = Probe::new();
    let once = once(&store).await;
    let (reports, seen) = (Reports::default(), RefCell::new(Vec::new()));
    let each = once.each(async |message: Parts, _: Claim| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        seen.borrow_mut().push((id_of(&message), places(&reports)));
        Ok::<_, String>(())
    });
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    each.handle_each(&messages(3), &CancellationToken::new(), report).await.unwrap();
    let expected = [("m0", vec![]), ("m1", vec![0]), ("m2", vec![0, 1])];
    assert_eq!(*seen.borrow(), expected.map(|(id, places)| (id.to_owned(), places)));
    assert_eq!((store.now(), store.calls(Op::Settle)), (3000, vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn copies_in_the_slice_and_before_it_are_duplicates() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    lane(&once, &[at("old", 0, 0)], &effects).await;
    let slice = [at("a", 0, 1), at("old", 0, 2), at("b", 0, 3), at("a", 0, 4), at("old", 0, 5), at("a", 0, 6)];
    let reports = lane(&once, &slice, &effects).await;
    assert_eq!(effects.all(), ["old", "a", "b"]);
    let first = |offset| Finished::Duplicate { first: Origin { topic: "t".into(), partition: 0, offset } };
    let mut sorted = reports;
    sorted.sort_by_key(|(at, _)| *at);
    let expected = [Finished::Handled, first(0), Finished::Handled, first(1), first(0), first(1)];
    assert_eq!(sorted.into_iter().map(|(_, finished)| finished).collect::<Vec<_>>(), expected);
    assert_eq!((once.counts().handled, once.counts().duplicates), (3, 4));
    assert_eq!(store.calls(Op::Claim), [1, 3], "a copy within the slice needs no call");
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_not_reported_before_its_first_is_settled() {
    let store = Probe::new();
    let once = once(&store).await;
    let reports = Reports::default();
    let each = once.each(async |message: Parts, _: Claim| {
        if id_of(&message) == "b" {
            store.down(true);
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(places(&reports), [] as [usize; 0]);
            store.down(false);
        }
        Ok::<_, String>(())
    });
    let slice = [at("a", 0, 0), at("a", 0, 1), at("b", 0, 2)];
    store.fail(Op::Settle, 1, Fault::Before);
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    each.handle_each(&slice, &CancellationToken::new(), report).await.unwrap();
    assert_eq!(places(&reports), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_partition_waits_for_a_message_that_is_tried_again() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(20))).build().await.unwrap();
    let each = once.each(async |message: Parts, claim: Claim| {
        if id_of(&message) == "m1" && claim.attempt() < 3 {
            return Err(String::from("not yet"));
        }
        effects.add(id_of(&message));
        Ok(())
    });
    let reports = Reports::default();
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    each.handle_each(&messages(4), &CancellationToken::new(), report).await.unwrap();
    assert_eq!(effects.all(), ["m0", "m1", "m2", "m3"]);
    assert_eq!(places(&reports), [0, 1, 2, 3]);
    assert_eq!((store.now(), once.counts().late), (40_000, 0));
    assert_eq!(store.record("m1").unwrap().attempts, 3);
    // What waits behind it is free for others meanwhile, and its attempt was not counted.
    let released = store.history("m2").iter().filter(|record| matches!(record.state, State::Failed { .. })).count();
    assert_eq!((released, store.record("m2").unwrap().attempts), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_message_is_reported_with_its_failure_and_the_next_goes_on() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(2)).build().await.unwrap();
    let each = once.each(async |message: Parts, _: Claim| {
        if id_of(&message) == "m1" {
            return Err(String::from("never"));
        }
        effects.add(id_of(&message));
        Ok(())
    });
    let slice = messages(3);
    for failure in [Some(Failure::Error(String::from("never"))), None] {
        let reports = Reports::default();
        let report = |at, finished| reports.borrow_mut().push((at, finished));
        each.handle_each(&slice, &CancellationToken::new(), report).await.unwrap();
        assert!(reports.borrow().contains(&(1, Finished::Dead { attempts: 2, failure })), "{reports:?}");
        assert_eq!(places(&reports), [0, 1, 2]);
    }
    assert_eq!(effects.all(), ["m0", "m2"]);
    assert_eq!(once.counts().dead, 2);
}

#[tokio::test(start_paused = true)]
async fn a_fatal_message_costs_no_second_attempt() {
    let store = Probe::new();
    let once = once(&store).await;
    let each = once.each(async |_: Parts, _: Claim| Err::<(), _>(hapax::Fatal::new("no such account")));
    let reports = RefCell::new(0);
    each.handle_each(&messages(3), &CancellationToken::new(), |_, finished| {
        assert!(matches!(finished, Finished::Dead { attempts: 1, failure: Some(_) }));
        *reports.borrow_mut() += 1;
    })
    .await
    .unwrap();
    assert_eq!((reports.into_inner(), store.now()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn without_retry_a_failing_message_ends_the_lane_and_is_named() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let each = once.each(async |message: Parts, _: Claim| {
        effects.add(id_of(&message));
        if id_of(&message) == "m2" { Err(String::from("no")) } else { Ok(()) }
    });
    let reports = Reports::default();
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    let error = each.handle_each(&messages(5), &CancellationToken::new(), report).await.unwrap_err();
    assert_eq!((error.place, effects.count()), (2, 3));
    assert!(matches!(error.error, HandleError::Handler(_)));
    let text = error.to_string();
    assert!(text.contains("topic `t`, partition 0, offset 2") && text.contains("Retry"), "{text}");
    assert_eq!(places(&reports), [0, 1], "what had ended was not reported");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_or_a_missing_identity_ends_the_lane_and_is_named() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    lane(&once, &[at("a", 0, 0)], &effects).await;
    let conflict = Parts::new("t").at(7, 8).payload("else").header("id", "a");
    let nobody = Parts::new("t").at(7, 8).payload("x");
    for (odd, word) in [(conflict, "OnConflict::Skip"), (nobody, "header `id`")] {
        let slice = [at("b", 7, 6), odd, at("c", 7, 9)];
        let each = once.each(async |_: Parts, _: Claim| Ok::<_, String>(()));
        let reports = Reports::default();
        let report = |at, finished| reports.borrow_mut().push((at, finished));
        let error = each.handle_each(&slice, &CancellationToken::new(), report).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("topic `t`, partition 7, offset 8") && text.contains(word), "{text}");
        assert_eq!((error.place, places(&reports)), (1, vec![0]));
        assert!(store.record("c").is_none_or(|record| record.attempts == 0), "what follows was begun");
    }
}

#[tokio::test(start_paused = true)]
async fn policies_let_conflicts_and_missing_identities_pass() {
    for (policy, runs) in [(OnConflict::Skip, 0), (OnConflict::Handle, 1)] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).on_conflict(policy).on_missing(OnMissing::HandleWithoutDedup).build().await.unwrap();
        lane(&once, &[at("a", 0, 0)], &effects).await;
        let conflict = Parts::new("t").at(0, 1).payload("else").header("id", "a");
        let nobody = Parts::new("t").at(0, 2).payload("x");
        let odd = Effects::default();
        let each = once.each(async |message: Parts, _: Claim| {
            odd.add(format!("{message:?}"));
            Ok::<_, String>(())
        });
        let reports = Reports::default();
        let report = |at, finished| reports.borrow_mut().push((at, finished));
        let slice = [conflict, nobody, at("b", 0, 3)];
        each.handle_each(&slice, &CancellationToken::new(), report).await.unwrap();
        assert_eq!((odd.count(), places(&reports)), (runs + 2, vec![0, 1, 2]), "{policy:?}");
        assert_eq!((once.counts().conflicts, once.counts().without_identity), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_waits_for_what_another_member_handles() {
    let (store, effects) = (Probe::new(), Effects::default());
    let (one, two) = (once(&store).await, once(&store.other()).await);
    let holder = tokio::spawn({
        let effects = effects.clone();
        async move {
            one.handle(&at("m1", 0, 1), async |_| {
                tokio::time::sleep(20 * LEASE).await;
                effects.add("m1");
                Ok::<_, String>(())
            })
            .await
            .unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let reports = lane(&two, &messages(3), &effects).await;
    assert_eq!(effects.all(), ["m0", "m1", "m2"]);
    assert!(matches!(reports[1], (1, Finished::Duplicate { .. })), "{reports:?}");
    holder.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn two_lanes_of_one_process_wait_for_each_other() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let slice = |partition| (0..50).map(|i| at(&format!("m{i}"), partition, i)).collect::<Vec<_>>();
    let slow = once.each(async |message: Parts, _: Claim| {
        tokio::time::sleep(Duration::from_millis(7)).await;
        effects.add(id_of(&message));
        Ok::<_, String>(())
    });
    let stop = CancellationToken::new();
    let (one, mut two) = (slice(0), slice(1));
    two.reverse();
    let (a, b) = tokio::join!(slow.handle_each(&one, &stop, |_, _| {}), slow.handle_each(&two, &stop, |_, _| {}));
    a.unwrap();
    b.unwrap();
    assert_eq!((effects.count(), once.counts().handled, once.counts().duplicates), (50, 50, 50));
}

#[tokio::test(start_paused = true)]
async fn f06_a_lane_asks_a_store_that_is_down_until_it_is_back() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).store_patience(Duration::ZERO).build().await.unwrap();
    store.down(true);
    let back = async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(effects.count(), 0);
        store.down(false);
    };
    let slice = messages(10);
    let (reports, ()) = tokio::join!(lane(&once, &slice, &effects), back);
    assert_eq!((reports.len(), effects.count()), (10, 10));
    assert!(store.calls(Op::Claim).len() < 600, "{} calls in 600 s", store.calls(Op::Claim).len());
}

#[tokio::test(start_paused = true)]
async fn f05_a_lane_reports_nothing_that_the_store_has_not_heard() {
    let store = Probe::new();
    let once = once(&store).await;
    let (stop, reports) = (CancellationToken::new(), Reports::default());
    let each = once.each(async |message: Parts, _: Claim| {
        if id_of(&message) == "m3" {
            store.down(true);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, String>(())
    });
    let slice = messages(8);
    let ending = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
    };
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    let (ended, ()) = tokio::join!(each.handle_each(&slice, &stop, report), ending);
    ended.unwrap();
    // The third ended well, and its settle met a store that was down.
    assert_eq!(places(&reports), [0, 1]);
    let unheard = once.settle_pending(Duration::ZERO).await;
    assert!(!unheard.handled.is_empty(), "{unheard:?}");
    store.down(false);
    assert!(once.settle_pending(Duration::from_secs(60)).await.is_empty());
    let again = Effects::default();
    lane(&once, &slice, &again).await;
    assert_eq!(again.count() + unheard.handled.len() + 2, 8, "handled twice or lost: {:?}", again.all());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_ends_the_lane() {
    let store = Probe::new();
    let once = once(&store).await;
    for (op, stage) in [(Op::Claim, Stage::Claim), (Op::Settle, Stage::Settle)] {
        store.fail(op, 1, Fault::Refuse);
        let each = once.each(async |_: Parts, _: Claim| Ok::<_, String>(()));
        let error = each.handle_each(&messages(3), &CancellationToken::new(), |_, _| {}).await.unwrap_err();
        assert!(matches!(&error.error, HandleError::Store { stage: own, .. } if *own == stage), "{error:?}");
        assert!(error.to_string().contains("topic `t`, partition 0, offset 0"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn stopped_it_ends_the_running_handler_and_gives_the_rest_back() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let (stop, reports) = (CancellationToken::new(), Reports::default());
    let each = once.each(async |message: Parts, _: Claim| {
        if id_of(&message) == "m2" {
            stop.cancel();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        effects.add(id_of(&message));
        Ok::<_, String>(())
    });
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    each.handle_each(&messages(10), &stop, report).await.unwrap();
    assert_eq!(effects.all(), ["m0", "m1", "m2"]);
    assert_eq!(places(&reports), [0, 1, 2]);
    assert!(store.records().values().all(|record| !matches!(record.state, State::Processing { .. })));
    assert!(once.settle_pending(Duration::ZERO).await.is_empty());
    each.handle_each(&messages(10), &stop, |_, _| panic!("it was stopped")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stopped_it_does_not_wait_for_a_pause_another_member_or_the_store() {
    let store = Probe::new();
    let other = once(&store.other()).await;
    let held = Arc::new(Notify::new());
    let holder = tokio::spawn({
        let held = Arc::clone(&held);
        async move {
            other
                .handle(&at("held", 0, 0), async |_| {
                    held.notify_one();
                    std::future::pending::<()>().await;
                    Ok::<_, String>(())
                })
                .await
        }
    });
    held.notified().await;
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(3600))).build().await.unwrap();
    for what in ["failing", "held", "down"] {
        let stop = CancellationToken::new();
        store.down(what == "down");
        let each = once.each(async |_: Parts, _: Claim| Err::<(), _>(String::from("no")));
        let began = store.now();
        let ending = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            stop.cancel();
        };
        let slice = [at(what, 0, 0)];
        let (ended, ()) = tokio::join!(each.handle_each(&slice, &stop, |_, _| panic!("{what}")), ending);
        ended.unwrap();
        assert_eq!(store.now() - began, 30_000, "{what}");
    }
    holder.abort();
}

#[tokio::test(start_paused = true)]
async fn the_other_modes_take_lanes_too() {
    for mode in [Mode::AtLeastOnce, Mode::AtMostOnce] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).mode(mode).build().await.unwrap();
        let slice = [at("a", 0, 0), at("b", 0, 1), at("a", 0, 2)];
        let reports = lane(&once, &slice, &effects).await;
        assert_eq!(reports.len(), 3);
        let expected: &[&str] = if mode == Mode::AtLeastOnce { &["a", "b", "a"] } else { &["a", "b"] };
        assert_eq!(effects.all(), expected, "{mode:?}");
        assert_eq!(store.all_calls().is_empty(), mode == Mode::AtLeastOnce);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_does_not_end_the_lane() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(2)).build().await.unwrap();
    let each = once.each(async |message: Parts, _: Claim| {
        assert_ne!(id_of(&message), "m1", "poison");
        effects.add(id_of(&message));
        Ok::<_, String>(())
    });
    let reports = Reports::default();
    let report = |at, finished| reports.borrow_mut().push((at, finished));
    each.handle_each(&messages(3), &CancellationToken::new(), report).await.unwrap();
    assert_eq!((effects.all(), once.counts().panicked), (vec!["m0".to_owned(), "m2".to_owned()], 2));
    until("reported", || places(&reports) == [0, 1, 2]).await;
}
