//! Batches.

use std::time::Duration;

use hapax::message::Parts;
use hapax::{Commit, Done, Failure, HandleError, Mode, OnConflict, Retry};

use crate::probe::{Effects, Fault, LEASE, Op, Probe, at, builder, id_of, message, messages, once};

fn commit(partition: i32, offset: i64) -> Commit {
    Commit { topic: "t".into(), partition, offset }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_call_to_claim_and_one_to_settle_with_handlers_in_order() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let messages = messages(100);
    let done = once.handle_batch(&messages, async |message, claim| {
        tokio::task::yield_now().await;
        effects.add(id_of(message));
        assert_eq!(claim.attempt(), 1);
        Ok::<_, String>(())
    });
    let done = done.await;
    assert!(done.all_finished() && done.first_unfinished().is_none());
    assert_eq!(store.all_calls(), [(Op::Claim, 100), (Op::Settle, 100)]);
    assert_eq!(effects.all(), messages.iter().map(id_of).collect::<Vec<_>>());
    assert_eq!(done.commits(), [commit(0, 99 + 33 + 1)]);
    assert_eq!(once.counts().handled, 100);
}

#[tokio::test(start_paused = true)]
async fn an_empty_batch_costs_nothing() {
    let store = Probe::new();
    let once = once(&store).await;
    let done = once.handle_batch(&[] as &[Parts], async |_, _| Ok::<(), String>(())).await;
    assert!(done.all_finished() && done.commits().is_empty() && store.all_calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn large_batches_are_claimed_in_parts() {
    let store = Probe::new();
    let once = once(&store).await;
    let input = messages(1200);
    let done = once.handle_batch(&input, async |_, _| Ok::<_, String>(())).await;
    assert!(done.all_finished() && done.outcomes().len() == 1200);
    assert_eq!(store.calls(Op::Claim), [512, 512, 176]);
}

#[tokio::test(start_paused = true)]
async fn duplicates_conflicts_and_new_ones_go_together() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).on_conflict(OnConflict::Skip).keep_results(10).build().await.unwrap();
    let _ = once.handle(&message("old"), async |_| Ok::<_, String>(1_u8)).await.unwrap();
    let batch = [
        at("new", 0, 1),
        at("old", 0, 2),
        Parts::new("t").at(0, 3).payload("else").header("id", "old"),
        Parts::new("t").at(0, 4).payload("nobody"),
        at("newer", 1, 1),
    ];
    let done = once.handle_batch(&batch, async |message, _| {
        effects.add(id_of(message));
        Ok::<_, String>(2_u8)
    });
    let done = done.await;
    let [new, old, other, nobody, newer] = done.outcomes() else { panic!("{done:?}") };
    assert!(matches!(new, Ok(Done::Handled(2))), "{new:?}");
    assert!(matches!(old, Ok(Done::Duplicate { value: Some(1), .. })), "{old:?}");
    assert!(matches!(other, Ok(Done::Conflict { .. })), "{other:?}");
    assert!(matches!(nobody, Err(HandleError::Identity { .. })), "{nobody:?}");
    assert!(matches!(newer, Ok(Done::Handled(2))), "{newer:?}");
    assert_eq!(done.commits(), [commit(0, 4), commit(1, 2)]);
    let counts = once.counts();
    assert_eq!((counts.handled, counts.duplicates, counts.conflicts, counts.rejected), (3, 1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn of_twins_in_a_batch_the_first_is_handled_and_the_others_get_its_result() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).keep_results(100).build().await.unwrap();
    let batch = [at("a", 0, 0), at("b", 0, 1), at("a", 0, 2), at("a", 1, 0)];
    let done = once.handle_batch(&batch, async |message, _| {
        effects.add(id_of(message));
        Ok::<_, String>(id_of(message))
    });
    let done = done.await;
    for twin in [2, 3] {
        let Ok(Done::Duplicate { value: Some(value), first }) = &done.outcomes()[twin] else { panic!("{done:?}") };
        assert_eq!((value.as_str(), first.origin.partition, first.origin.offset), ("a", 0, 0));
    }
    assert_eq!(effects.all(), ["a", "b"]);
    assert_eq!(done.commits(), [commit(0, 3), commit(1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn twins_that_say_different_things_are_a_conflict() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let batch = [at("a", 0, 0), Parts::new("t").at(0, 1).payload("else").header("id", "a")];
    let done = once.handle_batch(&batch, async |message, _| {
        effects.add(id_of(message));
        Ok::<_, String>(())
    });
    let done = done.await;
    assert!(matches!(done.outcomes()[1], Err(HandleError::Conflict { .. })), "{done:?}");
    assert_eq!((effects.count(), done.commits()), (1, &[commit(0, 1)][..]));
}

#[tokio::test(start_paused = true)]
async fn the_twin_of_one_that_failed_is_handled() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let batch = [at("a", 0, 0), at("a", 0, 1)];
    let done = once.handle_batch(&batch, async |_, claim| {
        if claim.attempt() == 1 {
            return Err("first");
        }
        effects.add("a");
        Ok(())
    });
    let done = done.await;
    assert!(matches!(done.outcomes()[0], Err(HandleError::Handler(Failure::Error("first")))), "{done:?}");
    assert!(matches!(done.outcomes()[1], Ok(Done::Handled(()))), "{done:?}");
    assert_eq!((effects.count(), done.commits().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failing_message_is_tried_again_after_the_others() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(5))).build().await.unwrap();
    let messages = messages(3);
    let done = once.handle_batch(&messages, async |message, claim| {
        if id_of(message) == "m0" && claim.attempt() < 3 {
            return Err("not yet");
        }
        effects.add(id_of(message));
        Ok(())
    });
    assert!(done.await.all_finished());
    assert_eq!(effects.all(), ["m1", "m2", "m0"]);
    assert_eq!(store.now(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn an_ordered_batch_tries_again_at_its_turn() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).stop_batches_at_failure().retry(Retry::fixed(Duration::from_secs(5)));
    let once = once.build().await.unwrap();
    let messages = messages(3);
    let done = once.handle_batch(&messages, async |message, claim| {
        if id_of(message) == "m1" && claim.attempt() < 3 {
            return Err("not yet");
        }
        effects.add(id_of(message));
        Ok(())
    });
    assert!(done.await.all_finished());
    assert_eq!(effects.all(), ["m0", "m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn an_ordered_batch_ends_at_a_failure_and_gives_the_rest_back() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).stop_batches_at_failure().retry(Retry::none()).build().await.unwrap();
    let messages = messages(600);
    let done = once.handle_batch(&messages, async |message, _| {
        if id_of(message) == "m2" {
            return Err("no");
        }
        effects.add(id_of(message));
        Ok(())
    });
    let done = done.await;
    assert_eq!(effects.all(), ["m0", "m1"]);
    assert_eq!((done.outcomes().len(), done.first_unfinished()), (600, Some(2)));
    assert!(done.outcomes()[3..].iter().all(|outcome| matches!(outcome, Err(HandleError::NotBegun))));
    assert_eq!(done.commits(), [commit(0, 2)]);
    // Free for others at once, and not counted as tried.
    let other = builder(&store.other()).wait_in_flight(Duration::ZERO).build().await.unwrap();
    let _ = other
        .handle(&messages[3], async |claim| {
            assert_eq!(claim.attempt(), 1);
            Ok::<_, String>(())
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_in_other_hands_does_not_hold_up_the_batch() {
    let (store, effects) = (Probe::new(), Effects::default());
    let (one, two) = (once(&store).await, once(&store.other()).await);
    let messages = messages(3);
    let holder = tokio::spawn({
        let (message, effects) = (messages[1].clone(), effects.clone());
        async move {
            let _ = one
                .handle(&message, async |_| {
                    tokio::time::sleep(LEASE).await;
                    effects.add("m1");
                    Ok::<_, String>(())
                })
                .await
                .unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let done = two.handle_batch(&messages, async |message, _| {
        effects.add(id_of(message));
        Ok::<_, String>(())
    });
    assert!(done.await.all_finished());
    holder.await.unwrap();
    assert_eq!(effects.all(), ["m0", "m2", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_the_store_did_not_hear_of_is_told_later_and_not_committed() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).store_patience(Duration::ZERO).build().await.unwrap();
    store.fail(Op::Settle, 1, Fault::Before);
    let messages = messages(5);
    let run = async || {
        once.handle_batch(&messages, async |message, _| {
            effects.add(id_of(message));
            Ok::<_, String>(())
        })
        .await
    };
    let done = run().await;
    assert!(done.outcomes().iter().all(|outcome| matches!(outcome, Err(HandleError::Store { .. }))), "{done:?}");
    assert!(done.commits().is_empty());
    let done = run().await;
    assert!(done.all_finished(), "{done:?}");
    assert_eq!(effects.count(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_other_modes_take_batches_too() {
    for mode in [Mode::AtLeastOnce, Mode::AtMostOnce] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).mode(mode).build().await.unwrap();
        let batch = [at("a", 0, 0), at("b", 0, 1), at("a", 0, 2)];
        let done = once.handle_batch(&batch, async |message, _| {
            effects.add(id_of(message));
            Ok::<_, String>(())
        });
        let done = done.await;
        assert!(done.all_finished());
        let expected: &[&str] = if mode == Mode::AtLeastOnce { &["a", "b", "a"] } else { &["a", "b"] };
        assert_eq!(effects.all(), expected, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_one_attempt_messages_are_claimed_one_at_a_time() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::fixed(Duration::ZERO).attempts(1)).build().await.unwrap();
    let input = messages(3);
    let done = once.handle_batch(&input, async |_, _| Ok::<_, String>(())).await;
    assert!(done.all_finished());
    assert_eq!(store.calls(Op::Claim), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn partitions_and_topics_are_committed_apart() {
    let store = Probe::new();
    let once = builder(&store).retry(Retry::none()).build().await.unwrap();
    let u = |id: &str, offset| Parts::new("u").at(0, offset).payload(id).header("id", id);
    let batch = [at("a", 0, 5), u("b", 9), at("c", 1, 0), at("d", 0, 8), u("e", 10), message("f"), at("g", 1, 3)];
    let done =
        once.handle_batch(&batch, async |message, _| if id_of(message) == "d" { Err("no") } else { Ok(()) }).await;
    let mut commits: Vec<_> = done.commits().iter().map(|c| (c.topic.to_string(), c.partition, c.offset)).collect();
    commits.sort();
    assert_eq!(commits, [("t".into(), 0, 6), ("t".into(), 1, 4), ("u".into(), 0, 11)]);
}
