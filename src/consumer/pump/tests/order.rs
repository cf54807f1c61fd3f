//! What is handled, in which order, and what the store hears of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::desk::{Desk, SOON, Set, id};
use super::probe::{self, Effects, LEASE, Op, Probe, at, builder, message, messages, once};
use crate::consumer::handling::Handling;
use crate::consumer::message::Message;
use crate::engine::{Config, Order};
use crate::identity::OnMissing;
use crate::message::Parts;
use crate::record::State;
use crate::{Claim, Handed, Mode, OnConflict, Once, Retry, plain};

/// Notes each message.
pub(super) fn noting(once: &Once, effects: &Effects) -> impl Handling + use<> {
    let effects = effects.clone();
    once.each(move |message: Message, _: Claim| {
        effects.add(id(&message));
        std::future::ready(Ok::<_, String>(()))
    })
}

fn ids(messages: &[Parts]) -> Vec<String> {
    messages.iter().map(probe::id_of).collect()
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_handled_in_order_and_claimed_many_at_a_time() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let messages = messages(1000);
    let mut desk = Desk::new(noting(&once, &effects));
    desk.deliver(&messages);
    desk.finished(1000).await;
    assert_eq!(effects.all(), ids(&messages));
    desk.until("all is committed", |desk| desk.committed.get(&0) == Some(&(999 + 333 + 1))).await;
    let (drained, tally, _) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.unsettled, drained.left, once.counts().handled), (1000, 0, 0, 1000));
    for op in [Op::Claim, Op::Settle] {
        let calls = store.calls(op);
        assert_eq!(calls.iter().sum::<usize>(), 1000, "{op:?}");
        assert!(calls.len() <= 12, "{op:?}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_that_do_not_wait_need_no_task() {
    let store = Probe::new();
    let once = once(&store).await;
    let most = Arc::new(AtomicUsize::new(0));
    let each = once.each({
        let most = Arc::clone(&most);
        move |_: Message, _: Claim| {
            let most = Arc::clone(&most);
            async move {
                // More than a task's budget: it has to end at its first poll all the same.
                for _ in 0..200 {
                    tokio::task::consume_budget().await;
                }
                most.fetch_max(tokio::runtime::Handle::current().metrics().num_alive_tasks(), Ordering::SeqCst);
                Ok::<_, String>(())
            }
        }
    });
    let mut desk =
        Desk::with(each, Set { config: Config { order: Order::Unordered, ..Config::default() }, ..Set::default() });
    // Fewer than it takes to find out that handlers compute for long, which a loaded machine makes them do.
    desk.deliver(&messages(4));
    desk.finished(4).await;
    // The pump, and the wrapper's own task.
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn slow_handlers_are_claimed_few_at_a_time() {
    let store = Probe::new();
    let once = once(&store).await;
    let each = once.each(async |_: Message, _: Claim| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, String>(())
    });
    let mut desk = Desk::new(each);
    desk.deliver(&messages(100));
    let mut most = 0;
    desk.until("all are finished", |desk| {
        let held = store.records().values().filter(|record| matches!(record.state, State::Processing { .. })).count();
        // The first claims are made before it is known how slow they are.
        if desk.returned() > 70 {
            most = most.max(held);
        }
        desk.returned() == 100
    })
    .await;
    assert!((1..=8).contains(&most), "{most} were claimed at one time: {:?}", store.calls(Op::Claim));
}

#[tokio::test(start_paused = true)]
async fn a_settle_travels_while_the_next_handler_runs() {
    let store = Probe::new();
    let once = once(&store).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let each = once.each({
        let (seen, store) = (Arc::clone(&seen), store.clone());
        move |message: Message, _: Claim| {
            let (seen, store) = (Arc::clone(&seen), store.clone());
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let settled = (0..3).filter(|n| store.is_succeeded(&format!("m{n}"))).count();
                seen.lock().unwrap().push((id(&message), settled));
                Ok::<_, String>(())
            }
        }
    });
    let mut desk = Desk::new(each);
    desk.deliver(&messages(3));
    desk.finished(3).await;
    assert_eq!(*seen.lock().unwrap(), [("m0".to_owned(), 0), ("m1".to_owned(), 1), ("m2".to_owned(), 2)]);
}

#[tokio::test(start_paused = true)]
async fn copies_in_hand_and_from_before_are_duplicates_told_by_cause() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let mut desk = Desk::new(noting(&once, &effects));
    desk.deliver(&[at("old", 0, 0)]);
    desk.finished(1).await;
    desk.revoke(&[0], false, SOON).await;
    desk.assign(&[0]);
    desk.deliver(&[
        at("old", 0, 0),
        at("a", 0, 1),
        at("old", 0, 2),
        at("b", 0, 3),
        at("a", 0, 4),
        at("old", 0, 5),
        at("a", 0, 6),
    ]);
    desk.finished(8).await;
    assert_eq!(effects.all(), ["old", "a", "b"]);
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.redelivered, tally.same_id, committed[&0]), (3, 1, 4, 7));
    assert_eq!((once.counts().handled, once.counts().duplicates), (3, 5));
}

#[tokio::test(start_paused = true)]
async fn keys_go_side_by_side_each_in_its_order_and_null_keys_wait_for_nobody() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let each = once.each({
        let (effects, gate) = (effects.clone(), Arc::clone(&gate));
        move |message: Message, _: Claim| {
            let (effects, gate) = (effects.clone(), Arc::clone(&gate));
            async move {
                if id(&message) == "slow0" {
                    let _ = gate.acquire().await.unwrap();
                }
                effects.add(id(&message));
                Ok::<_, String>(())
            }
        }
    });
    let mut desk =
        Desk::with(each, Set { config: Config { order: Order::Key, ..Config::default() }, ..Set::default() });
    let mut sent = Vec::new();
    for n in 0..10_i64 {
        sent.push(at(&format!("slow{n}"), 0, 4 * n).key("slow"));
        sent.push(at(&format!("other{n}"), 0, 4 * n + 1).key(format!("other {}", n % 2)));
        sent.push(at(&format!("null{n}"), 0, 4 * n + 2));
        sent.push(at(&format!("empty{n}"), 0, 4 * n + 3).key(""));
    }
    desk.deliver(&sent);
    desk.finished(30).await;
    assert!(effects.all().iter().all(|id| !id.starts_with("slow")), "{:?}", effects.all());
    assert_eq!(desk.committed.get(&0), None, "the first is not finished");
    gate.add_permits(1);
    desk.finished(40).await;
    for kind in ["slow", "empty"] {
        let own: Vec<String> = effects.all().into_iter().filter(|id| id.starts_with(kind)).collect();
        assert_eq!(own, (0..10).map(|n| format!("{kind}{n}")).collect::<Vec<_>>());
    }
    for parity in 0..2 {
        let is_it = |id: &String| id.strip_prefix("other").is_some_and(|n| n.parse::<usize>().unwrap() % 2 == parity);
        let own: Vec<String> = effects.all().into_iter().filter(is_it).collect();
        assert!(own.is_sorted() && own.len() == 5, "{own:?}");
    }
    assert_eq!(desk.close(SOON).await.2[&0], 40);
}

#[tokio::test(start_paused = true)]
async fn unordered_messages_run_side_by_side_up_to_the_bound() {
    let store = Probe::new();
    let once = once(&store).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let each = once.each({
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        move |_: Message, _: Claim| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, String>(())
            }
        }
    });
    let config = Config { order: Order::Unordered, concurrency: 16, ..Config::default() };
    let mut desk = Desk::with(each, Set { config, ..Set::default() });
    desk.deliver(&messages(160));
    desk.finished(160).await;
    assert_eq!(most.load(Ordering::SeqCst), 16);
    assert!(store.now() < 20_000, "{} ms for ten seconds of work", store.now());
}

#[tokio::test(start_paused = true)]
async fn policies_let_conflicts_and_missing_identities_pass() {
    for (policy, runs) in [(OnConflict::Skip, 0), (OnConflict::Handle, 1)] {
        let (store, odd) = (Probe::new(), Effects::default());
        let once = builder(&store).on_conflict(policy).on_missing(OnMissing::HandleWithoutDedup).build().await.unwrap();
        let each = once.each({
            let odd = odd.clone();
            move |message: Message, _: Claim| {
                odd.add(message.offset().to_string());
                std::future::ready(Ok::<_, String>(()))
            }
        });
        let mut desk = Desk::new(each);
        desk.deliver(&[at("a", 0, 0)]);
        desk.finished(1).await;
        let conflict = Parts::new("t").at(0, 1).payload("else").header("id", "a");
        let nobody = Parts::new("t").at(0, 2).payload("x");
        desk.deliver(&[conflict, nobody, at("b", 0, 3)]);
        desk.finished(4).await;
        assert_eq!(odd.count(), runs + 3, "{policy:?}");
        assert_eq!((once.counts().conflicts, once.counts().without_identity), (1, 1));
        let (_, tally, committed) = desk.close(SOON).await;
        assert_eq!((tally.conflicts, committed[&0]), (1 - runs as u64, 4), "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_member_handles_is_waited_for_and_holds_nobody_else() {
    let (store, effects) = (Probe::new(), Effects::default());
    let (one, two) = (once(&store).await, once(&store.other()).await);
    let holder = tokio::spawn({
        let effects = effects.clone();
        async move {
            let slow = async |_| {
                tokio::time::sleep(20 * LEASE).await;
                effects.add("m1");
                Ok::<_, String>(())
            };
            assert!(one.handle(&at("m1", 0, 1), slow).await.unwrap().may_commit());
        }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut desk = Desk::new(noting(&two, &effects));
    desk.assign(&[1]);
    desk.deliver(&messages(3));
    desk.deliver(&[at("x", 1, 0), at("y", 1, 1)]);
    desk.finished(3).await;
    assert_eq!(effects.all(), ["m0", "x", "y"]);
    desk.finished(5).await;
    assert_eq!(effects.all(), ["m0", "x", "y", "m1", "m2"]);
    assert_eq!((two.counts().waited, two.counts().duplicates), (1, 1));
    holder.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_this_process_handles_elsewhere_is_waited_for() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    // Another consumer, and a loop of its own, with the same wrapper.
    let slow = || {
        let effects = effects.clone();
        once.each(move |message: Message, _: Claim| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(7)).await;
                effects.add(id(&message));
                Ok::<_, String>(())
            }
        })
    };
    let (mut one, mut two) = (Desk::new(slow()), Desk::new(slow()));
    let slice = |partition| (0..50).map(|i| at(&format!("m{i}"), partition, i)).collect::<Vec<_>>();
    one.deliver(&slice(0));
    let mut reversed: Vec<Parts> = slice(0);
    reversed.reverse();
    let reversed: Vec<Parts> = reversed.into_iter().zip(0..).map(|(parts, offset)| parts.at(0, offset)).collect();
    two.deliver(&reversed);
    let input = message("m25");
    let handled = once.handle(&input, async |_| {
        tokio::time::sleep(Duration::from_millis(30)).await;
        effects.add("m25");
        Ok::<_, String>(())
    });
    let (handled, (), ()) = tokio::join!(handled, one.finished(50), two.finished(50));
    assert!(handled.unwrap().may_commit());
    assert_eq!((effects.count(), once.counts().handled, once.counts().duplicates), (50, 50, 51));
}

#[tokio::test(start_paused = true)]
async fn at_least_once_and_no_store_at_all_handle_every_delivery() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).mode(Mode::AtLeastOnce).build().await.unwrap();
    let slice = [at("a", 0, 0), at("b", 0, 1), at("a", 0, 2)];
    let mut desk = Desk::new(noting(&once, &effects));
    desk.deliver(&slice);
    desk.finished(3).await;
    assert_eq!((effects.all(), store.all_calls().len()), (ids(&slice), 0));
    assert_eq!(desk.close(SOON).await.1.handled, 3);

    let effects = Effects::default();
    let mut desk = Desk::new(plain({
        let effects = effects.clone();
        move |message: Message| {
            effects.add(id(&message));
            std::future::ready(Ok::<_, String>(()))
        }
    }));
    desk.deliver(&slice);
    desk.finished(3).await;
    assert_eq!(effects.all(), ids(&slice));
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, committed[&0]), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn at_most_once_settles_before_the_handler_and_repeats_nothing() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).mode(Mode::AtMostOnce).build().await.unwrap();
    let each = once.each({
        let (effects, store) = (effects.clone(), store.clone());
        move |message: Message, claim: Claim| {
            let (effects, store) = (effects.clone(), store.clone());
            async move {
                assert!(store.is_succeeded(&id(&message)), "it is not settled yet");
                assert!(claim.fence().get() > 0 && claim.attempt() == 1 && !claim.is_lost());
                effects.add(id(&message));
                if id(&message) == "b" { Err(String::from("lost")) } else { Ok(()) }
            }
        }
    });
    let mut desk = Desk::new(each);
    desk.deliver(&[at("a", 0, 0), at("b", 0, 1), at("a", 0, 2), at("b", 0, 3), at("c", 0, 4)]);
    desk.finished(5).await;
    assert_eq!(effects.all(), ["a", "b", "c"]);
    assert_eq!((once.counts().handled, once.counts().failed), (2, 1));
    assert_eq!(desk.close(SOON).await.2[&0], 5);
}

/// F42: a batch answers for each message.
#[tokio::test(start_paused = true)]
async fn f42_of_a_batch_only_what_failed_is_tried_again() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(3)).build().await.unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let batch = once.batch(8, {
        let (effects, sizes) = (effects.clone(), Arc::clone(&sizes));
        move |batch: Vec<Handed>| {
            let (effects, sizes) = (effects.clone(), Arc::clone(&sizes));
            async move {
                sizes.lock().unwrap().push(batch.len());
                tokio::task::yield_now().await;
                let one = |handed: Handed| {
                    let (id, attempt) = (id(&handed.message), handed.claim.attempt());
                    if id == "m3" && attempt < 3 || id == "m5" {
                        return Err(format!("not {id}"));
                    }
                    effects.add(id);
                    Ok(())
                };
                batch.into_iter().map(one).collect::<Vec<Result<(), String>>>()
            }
        }
    });
    let mut desk =
        Desk::with(batch, Set { config: Config { order: Order::Unordered, ..Config::default() }, ..Set::default() });
    desk.deliver(&messages(20));
    desk.finished(20).await;
    let mut all = effects.all();
    all.sort();
    let mut expected: Vec<String> = (0..20).filter(|n| *n != 5).map(|n| format!("m{n}")).collect();
    expected.sort();
    assert_eq!(all, expected, "one effect of each, and none of what never succeeds");
    assert_eq!((store.record("m3").unwrap().attempts, store.record("m4").unwrap().attempts), (3, 1));
    assert!(store.is_dead("m5"));
    let sizes = sizes.lock().unwrap().clone();
    assert!(sizes.contains(&8) && sizes.iter().all(|size| *size <= 8), "{sizes:?}");
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.dead, committed[&0]), (19, 1, 19 + 6 + 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_keeps_the_order_of_its_partition_behind_what_failed() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1))).build().await.unwrap();
    let batch = once.batch(8, {
        let effects = effects.clone();
        move |batch: Vec<Handed>| {
            let mut answers = Vec::new();
            let mut failed = false;
            for handed in &batch {
                failed |= id(&handed.message) == "m3" && handed.claim.attempt() < 3;
                if !failed {
                    effects.add(id(&handed.message));
                }
                answers.push(if failed { Err(String::from("not yet")) } else { Ok(()) });
            }
            std::future::ready(answers)
        }
    });
    let mut desk = Desk::new(batch);
    let messages = messages(20);
    desk.deliver(&messages);
    desk.finished(20).await;
    assert_eq!(effects.all(), ids(&messages));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_answers_for_too_few_or_panics_has_failed_as_a_whole() {
    for panics in [false, true] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1))).build().await.unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let batch = once.batch(100, {
            let (effects, calls) = (effects.clone(), Arc::clone(&calls));
            move |batch: Vec<Handed>| {
                let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
                assert!(!(first && panics), "a bug");
                let mut answers: Vec<Result<(), String>> = batch.iter().map(|_| Ok(())).collect();
                if first {
                    answers.pop();
                } else {
                    batch.iter().for_each(|handed| effects.add(id(&handed.message)));
                }
                std::future::ready(answers)
            }
        });
        let mut desk = Desk::new(batch);
        desk.deliver(&messages(5));
        desk.finished(5).await;
        assert_eq!(effects.all(), ["m0", "m1", "m2", "m3", "m4"]);
        assert_eq!(once.counts().panicked, u64::from(panics));
        assert!(once.counts().failed >= 1);
    }
}

#[tokio::test(start_paused = true)]
async fn others_on_the_same_thread_get_their_turn() {
    let (turns, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let mut desk = Desk::new(plain({
        let (turns, seen) = (Arc::clone(&turns), Arc::clone(&seen));
        move |message: Message| {
            if message.offset() % 100 == 0 {
                seen.lock().unwrap().push(turns.load(Ordering::SeqCst));
            }
            std::future::ready(Ok::<_, String>(()))
        }
    }));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    // All of it is there at once, and no handler waits.
    let sent: Vec<Parts> = (0..30_000).map(|offset| Parts::new("t").at(0, offset)).collect();
    desk.deliver(&sent);
    while desk.returned() < 30_000 {
        tokio::task::yield_now().await;
    }
    other.abort();
    let seen = seen.lock().unwrap();
    let distinct = seen.windows(2).filter(|two| two[0] < two[1]).count();
    assert!(distinct >= 5, "{distinct} turns among 30,000 messages");
}
