//! F39: futures dropped at every point where they wait, and stores that fail at every call.
//!
//! Whatever happens, when the message has been delivered often enough: it is settled, its effect happened, and it happened
//! more than once only where an attempt was cut between effect and end. Attempts are counted exactly, and nothing is owed.

use std::time::Duration;

use hapax::message::Parts;
use hapax::record::State;
use hapax::{Claim, Once, Retry};

use crate::probe::{Effects, Fault, Op, Probe, at, builder, cut_at, id_of};

/// What the handlers of a test do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handler {
    Succeeds,
    FailsOnce,
    Dies,
}

/// What was counted outside.
#[derive(Clone, Default)]
struct Counted {
    begun: Effects,
    effects: Effects,
    ended: Effects,
}

async fn run(counted: &Counted, message: &Parts, claim: Claim, handler: Handler) -> Result<String, String> {
    let id = id_of(message);
    counted.begun.add(&id);
    tokio::task::yield_now().await;
    match handler {
        Handler::Dies => return Err("never".into()),
        Handler::FailsOnce if claim.attempt() == 1 => return Err("not yet".into()),
        Handler::FailsOnce | Handler::Succeeds => {}
    }
    counted.effects.add(&id);
    tokio::task::yield_now().await;
    counted.ended.add(&id);
    Ok(id)
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Single,
    Batch,
    OrderedBatch,
}

const WAYS: [Way; 3] = [Way::Single, Way::Batch, Way::OrderedBatch];

/// Delivers all messages once. `true` if all of them may be committed.
async fn deliver(once: &Once, way: Way, messages: &[Parts], counted: &Counted, handler: Handler) -> bool {
    match way {
        Way::Single => {
            let mut all = true;
            for message in messages {
                let done = once.handle(message, async |claim| run(counted, message, claim, handler).await).await;
                all &= done.is_ok_and(|done| done.may_commit());
            }
            all
        }
        Way::Batch | Way::OrderedBatch => {
            let done = once.handle_batch(messages, async |message, claim| run(counted, message, claim, handler).await);
            done.await.all_finished()
        }
    }
}

async fn wrapper(store: &Probe, way: Way) -> Once {
    let retry = Retry::fixed(Duration::from_millis(10)).attempts(5);
    let builder = builder(store).retry(retry).keep_results(100).store_patience(Duration::from_millis(200));
    let builder = if matches!(way, Way::OrderedBatch) { builder.stop_batches_at_failure() } else { builder };
    builder.build().await.unwrap()
}

/// Twins among others.
fn slice() -> Vec<Parts> {
    vec![at("a", 0, 0), at("b", 0, 1), at("a", 0, 2), at("c", 0, 4)]
}

/// Delivers until it is done, and holds what was counted against what the store remembers.
async fn finish_and_check(store: &Probe, once: &Once, way: Way, counted: &Counted, handler: Handler, what: &str) {
    let mut deliveries = 0;
    while !deliver(once, way, &slice(), counted, handler).await {
        deliveries += 1;
        assert!(deliveries < 10, "{what}: does not end");
    }
    for id in ["a", "b", "c"] {
        let record = store.record(id).unwrap_or_else(|| panic!("{what}: {id} is forgotten"));
        let (begun, effects, ended) = (counted.begun.of(id), counted.effects.of(id), counted.ended.of(id));
        if handler == Handler::Dies {
            assert!(matches!(record.state, State::Dead { .. }), "{what}: {id} is {:?}", record.state);
            assert_eq!(effects, 0, "{what}: {id}");
        } else {
            let late = matches!(record.state, State::Succeeded { late: true, .. });
            assert!(store.is_succeeded(id) && !late, "{what}: {id} is {:?}", record.state);
            assert_eq!(ended, 1, "{what}: {id} ended so often");
            // Where an attempt was cut between effect and end, the effect repeats; there is at most one cut.
            assert!(effects == 1 || (effects == 2 && begun >= 2), "{what}: {id} had {effects} effects");
        }
        assert_eq!(record.attempts as usize, begun, "{what}: attempts of {id}, and handlers begun");
    }
    let left = once.settle_pending(Duration::from_secs(60)).await;
    assert!(left.is_empty(), "{what}: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn f39_dropped_at_every_await_point() {
    for handler in [Handler::Succeeds, Handler::FailsOnce, Handler::Dies] {
        for way in WAYS {
            let mut doubled = 0;
            for pendings in 0.. {
                assert!(pendings < 1000, "it does not end");
                let store = Probe::new();
                store.yields(2);
                let (once, counted) = (wrapper(&store, way).await, Counted::default());
                let messages = slice();
                let whole = cut_at(pendings, deliver(&once, way, &messages, &counted, handler)).await.is_some();
                let what = format!("{handler:?}, {way:?}, dropped after {pendings} waits");
                finish_and_check(&store, &once, way, &counted, handler, &what).await;
                doubled += counted.effects.count() - counted.ended.count();
                if whole {
                    assert!(pendings >= 10, "{what}: too few await points to mean anything");
                    break;
                }
            }
            // One place for each message where an effect can be cut from its end.
            let expected = if handler == Handler::Dies { 0 } else { 3 };
            assert_eq!(doubled, expected, "{handler:?}, {way:?}");
        }
    }
}

/// The same, and the process ends there: another owner comes, after the leases.
#[tokio::test(start_paused = true)]
async fn f39_dropped_at_every_await_point_and_taken_over_by_another_member() {
    for way in WAYS {
        for pendings in 0.. {
            let store = Probe::new();
            let line = store.other();
            line.yields(1);
            let counted = Counted::default();
            let whole = {
                let once = wrapper(&line, way).await;
                let messages = slice();
                let whole =
                    cut_at(pendings, deliver(&once, way, &messages, &counted, Handler::Succeeds)).await.is_some();
                line.down(true);
                whole
            };
            let what = format!("{way:?}, killed after {pendings} waits");
            let next = wrapper(&store, way).await;
            let mut deliveries = 0;
            while !deliver(&next, way, &slice(), &counted, Handler::Succeeds).await {
                deliveries += 1;
                assert!(deliveries < 10, "{what}: does not end");
            }
            for id in ["a", "b", "c"] {
                assert!(store.is_succeeded(id), "{what}: {id}");
                // L1: at most once more for the one crash.
                assert!((1..=2).contains(&counted.effects.of(id)), "{what}: {id}");
            }
            // One crash doubles what had ended and was not settled: in a batch, all of it.
            let doubled = counted.effects.count() - 3;
            let most = if matches!(way, Way::Single) { 1 } else { 3 };
            assert!(doubled <= most, "{what}: {doubled} doubled");
            if whole {
                break;
            }
        }
    }
}

/// Every call to the store fails once, in each way; alone, and together with the next of its kind.
#[tokio::test(start_paused = true)]
async fn f05_f06_f07_a_store_that_fails_at_every_call() {
    let faults = [Fault::Before, Fault::After, Fault::Hang, Fault::HangAfter];
    for handler in [Handler::Succeeds, Handler::FailsOnce, Handler::Dies] {
        for way in WAYS {
            for op in [Op::Claim, Op::Settle] {
                for fault in faults {
                    for nth in 1.. {
                        let store = Probe::new();
                        let (once, counted) = (wrapper(&store, way).await, Counted::default());
                        store.fail(op, nth, fault);
                        let second = store.calls(op).len() + nth + 1;
                        store.fail(op, second, fault);
                        let what = format!("{handler:?}, {way:?}, {op:?} number {nth}: {fault:?}");
                        finish_and_check(&store, &once, way, &counted, handler, &what).await;
                        assert_eq!(counted.effects.count(), counted.ended.count(), "{what}: an effect was doubled");
                        if store.calls(op).len() < nth {
                            break;
                        }
                    }
                }
            }
        }
    }
}
