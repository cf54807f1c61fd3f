//! Stores that fail, pumps that are cut off, partitions that go, and the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::desk::{Desk, SOON, Set, id};
use super::order::noting;
use super::probe::{Effects, Fault, LEASE, Op, Probe, at, builder, messages, once};
use crate::consumer::handling::Handling;
use crate::consumer::message::Message;
use crate::engine::{Config, Order};
use crate::message::Parts;
use crate::record::State;
use crate::{Claim, Handed, Once, Retry};

#[tokio::test(start_paused = true)]
async fn f06_a_store_that_is_down_is_asked_until_it_is_back() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).store_patience(Duration::ZERO).build().await.unwrap();
    store.down(true);
    let config = Config { partition_messages: 100, ..Config::default() };
    let mut desk = Desk::with(noting(&once, &effects), Set { config, ..Set::default() });
    desk.deliver(&messages(150));
    tokio::time::sleep(Duration::from_secs(600)).await;
    desk.turn();
    assert_eq!((effects.count(), desk.paused.len()), (0, 1));
    store.down(false);
    desk.finished(150).await;
    assert_eq!(effects.count(), 150);
    desk.until("it takes messages in again", |desk| desk.paused.is_empty()).await;
    let calls = store.calls(Op::Claim).len();
    assert!((20..600).contains(&calls), "{calls} calls in 600 s");
    assert!(once.counts().store_failures >= 20);
    assert_eq!(desk.close(SOON).await.1.handled, 150);
}

#[tokio::test(start_paused = true)]
async fn f05_nothing_is_committed_that_the_store_has_not_heard() {
    let store = Probe::new();
    let once = once(&store).await;
    let effects = Effects::default();
    let each = once.each({
        let (store, effects) = (store.clone(), effects.clone());
        move |message: Message, _: Claim| {
            let (store, effects) = (store.clone(), effects.clone());
            async move {
                if id(&message) == "m3" {
                    store.down(true);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                effects.add(id(&message));
                Ok::<_, String>(())
            }
        }
    });
    let mut desk = Desk::new(each);
    desk.deliver(&messages(8));
    let down = |desk: &mut Desk| effects.of("m3") == 1 && desk.committed.contains_key(&0);
    desk.until("the fourth ended", down).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    desk.turn();
    assert!(desk.committed[&0] <= 3, "{:?}", desk.committed);
    // Closed while the store is away: what it has not heard is said, and told later.
    let (drained, tally, committed) = desk.close(Duration::from_secs(3)).await;
    assert!(committed[&0] <= 3 && tally.unsettled >= 1 && drained.left >= 5, "{drained:?} {tally:?}");
    store.down(false);
    assert!(once.settle_pending(SOON).await.is_empty());
    let mut again = Desk::new(noting(&once, &effects));
    again.deliver(&messages(8)[usize::try_from(committed[&0]).unwrap()..]);
    again.finished(8 - u64::try_from(committed[&0]).unwrap()).await;
    assert!((0..8).all(|n| effects.of(&format!("m{n}")) == 1), "handled twice or lost: {:?}", effects.all());
}

#[tokio::test(start_paused = true)]
async fn closed_it_ends_what_runs_and_gives_the_rest_back() {
    for order in [Order::Partition, Order::Unordered] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = once(&store).await;
        let each = once.each({
            let effects = effects.clone();
            move |message: Message, _: Claim| {
                let effects = effects.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    effects.add(id(&message));
                    Ok::<_, String>(())
                }
            }
        });
        let config = Config { order, concurrency: 4, ..Config::default() };
        let mut desk = Desk::with(each, Set { config, ..Set::default() });
        desk.deliver(&messages(30));
        desk.until("one is handled", |_| effects.count() >= 1).await;
        let (drained, tally, committed) = desk.close(SOON).await;
        assert!((2..=8).contains(&effects.count()), "{order:?}: {:?}", effects.all());
        assert_eq!((tally.handled as usize, drained.left), (effects.count(), 30 - effects.count()), "{order:?}");
        assert_eq!(committed[&0], messages(30)[effects.count() - 1].offset_of() + 1, "{order:?}");
        assert!(store.records().values().all(|record| !matches!(record.state, State::Processing { .. })));
        assert!(once.settle_pending(Duration::ZERO).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn closed_it_does_not_wait_for_a_pause_another_member_or_the_store() {
    for what in ["failing", "held", "down"] {
        let store = Probe::new();
        let other = once(&store.other()).await;
        let holder = tokio::spawn(async move {
            let held = at("held", 0, 0);
            let for_ever = other.handle(&held, async |_| std::future::pending::<Result<(), String>>().await);
            for_ever.await
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let once = builder(&store).retry(Retry::fixed(Duration::from_secs(3600))).build().await.unwrap();
        store.down(what == "down");
        let mut desk = Desk::new(once.each(async |_: Message, _: Claim| Err::<(), _>(String::from("no"))));
        desk.deliver(&[at(what, 0, 0)]);
        tokio::time::sleep(Duration::from_secs(30)).await;
        desk.turn();
        let began = store.now();
        let (drained, ..) = desk.close(SOON).await;
        assert_eq!(drained.left, 1, "{what}");
        assert!(store.now() - began < 6_000, "{what}: {}", store.now() - began);
        holder.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_that_do_not_end_in_time_are_dropped_and_have_failed() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let dropped = Arc::new(AtomicBool::new(false));
    struct Drops(Arc<AtomicBool>);
    impl Drop for Drops {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let each = once.each({
        let (effects, dropped) = (effects.clone(), Arc::clone(&dropped));
        move |message: Message, _: Claim| {
            let (effects, dropped) = (effects.clone(), Arc::clone(&dropped));
            async move {
                effects.add(id(&message));
                if id(&message) == "m2" {
                    let _drops = Drops(dropped);
                    std::future::pending::<()>().await;
                }
                Ok::<_, String>(())
            }
        }
    });
    let mut desk = Desk::new(each);
    desk.assign(&[1]);
    desk.deliver(&messages(6));
    desk.until("the third runs", |_| effects.of("m2") == 1).await;
    let began = store.now();
    let drained = desk.revoke(&[0], false, Duration::from_secs(3)).await;
    assert!((3_000..5_000).contains(&(store.now() - began)), "{}", store.now() - began);
    assert_eq!((desk.committed[&0], drained.left >= 1, dropped.load(Ordering::SeqCst)), (2, true, true));
    // The other partition goes on.
    desk.deliver(&[at("x", 1, 0)]);
    desk.until("x is handled", |_| effects.of("x") == 1).await;
    let attempt = |id: &str| store.record(id).map_or(0, |record| record.attempts);
    assert_eq!((attempt("m2"), attempt("m3"), effects.of("m3")), (1, 0, 0));
    assert!(store.records().values().all(|record| !matches!(record.state, State::Processing { .. })));
    assert_eq!(once.counts().failed, 1);
    desk.close(SOON).await;
}

#[tokio::test(start_paused = true)]
async fn what_ends_after_its_partition_was_lost_is_settled_and_moves_nothing() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = once(&store).await;
    let each = once.each({
        let effects = effects.clone();
        move |message: Message, _: Claim| {
            let effects = effects.clone();
            async move {
                if id(&message) == "m1" {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                effects.add(id(&message));
                Ok::<_, String>(())
            }
        }
    });
    let mut desk = Desk::new(each);
    desk.deliver(&messages(3));
    desk.finished(1).await;
    let drained = desk.revoke(&[0], true, SOON).await;
    assert!(drained.commit.is_empty(), "{drained:?}");
    desk.assign(&[0]);
    desk.deliver(&messages(3));
    desk.until("all is committed", |desk| desk.committed.get(&0) == Some(&3)).await;
    assert!((0..3).all(|n| effects.of(&format!("m{n}")) == 1), "{:?}", effects.all());
    let (_, tally, _) = desk.close(SOON).await;
    assert!(tally.late >= 1 && tally.redelivered >= 2, "{tally:?}");
}

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

async fn run(counted: Counted, id: String, claim: Claim, handler: Handler) -> Result<String, String> {
    tokio::task::yield_now().await;
    match handler {
        Handler::Dies => return Err("never".into()),
        Handler::FailsOnce if claim.attempt() == 1 => return Err("not yet".into()),
        Handler::FailsOnce | Handler::Succeeds => {}
    }
    counted.effects.add(&id);
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    counted.ended.add(&id);
    Ok(id)
}

fn each(once: &Once, counted: &Counted, handler: Handler) -> impl Handling + use<> {
    let counted = counted.clone();
    once.each(move |message: Message, claim: Claim| {
        counted.begun.add(id(&message));
        run(counted.clone(), id(&message), claim, handler)
    })
}

fn batch(once: &Once, counted: &Counted, handler: Handler) -> impl Handling + use<> {
    let counted = counted.clone();
    once.batch(2, move |batch: Vec<Handed>| {
        let counted = counted.clone();
        async move {
            // All of a batch begins with it.
            batch.iter().for_each(|handed| counted.begun.add(id(&handed.message)));
            let mut answers = Vec::new();
            for Handed { message, claim, .. } in batch {
                answers.push(run(counted.clone(), id(&message), claim, handler).await);
            }
            answers
        }
    })
}

/// Twins among others.
fn slice() -> Vec<Parts> {
    vec![at("a", 0, 0), at("b", 0, 1), at("a", 0, 2), at("c", 0, 4)]
}

async fn wrapper(store: &Probe) -> Once {
    builder(store).retry(Retry::fixed(Duration::from_millis(10)).attempts(5)).keep_results(100).build().await.unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Way {
    ByPartition,
    Unordered,
    Batches,
}

fn desk(once: &Once, way: Way, counted: &Counted, handler: Handler) -> Desk {
    let order = if matches!(way, Way::Unordered) { Order::Unordered } else { Order::Partition };
    let set = Set { config: Config { order, ..Config::default() }, ..Set::default() };
    let mut desk = match way {
        Way::ByPartition | Way::Unordered => Desk::with(each(once, counted, handler), set),
        Way::Batches => Desk::with(batch(once, counted, handler), set),
    };
    desk.deliver(&slice());
    desk
}

/// Delivers until it is done, and holds what was counted against what the store remembers.
async fn finish_and_check(store: &Probe, once: &Once, way: Way, counted: &Counted, handler: Handler, what: &str) {
    let mut desk = desk(once, way, counted, handler);
    desk.finished(4).await;
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((committed[&0], tally.unsettled), (5, 0), "{what}");
    for id in ["a", "b", "c"] {
        let record = store.record(id).unwrap_or_else(|| panic!("{what}: {id} is forgotten"));
        let (begun, effects, ended) = (counted.begun.of(id), counted.effects.of(id), counted.ended.of(id));
        if handler == Handler::Dies {
            assert!(matches!(record.state, State::Dead { .. }), "{what}: {id} is {:?}", record.state);
            assert_eq!(effects, 0, "{what}: {id}");
        } else {
            let late = matches!(record.state, State::Succeeded { late: true, .. });
            assert!(store.is_succeeded(id) && !late, "{what}: {id} is {:?}", record.state);
            // Of a batch that was cut, what it had not answered for runs again.
            let most = if matches!(way, Way::Batches) { 2 } else { 1 };
            assert!((1..=most).contains(&ended), "{what}: {id} ended {ended} times");
            assert!(effects == ended || (effects == ended + 1 && begun >= 2), "{what}: {id} had {effects} effects");
            assert_eq!(record.result.as_deref(), Some(id.as_bytes()), "{what}: what is kept of {id}");
        }
        assert_eq!(record.attempts as usize, begun, "{what}: attempts of {id}, and handlers begun");
    }
    assert!(once.settle_pending(SOON).await.is_empty(), "{what}");
}

/// F39: the task is dropped at whatever point it waits.
#[tokio::test(start_paused = true)]
async fn f39_cut_off_at_any_moment() {
    for handler in [Handler::Succeeds, Handler::FailsOnce, Handler::Dies] {
        for way in [Way::ByPartition, Way::Unordered, Way::Batches] {
            let mut doubled = 0;
            for turns in 0.. {
                assert!(turns < 1000, "it does not end");
                let store = Probe::new();
                store.yields(2);
                let (once, counted) = (wrapper(&store).await, Counted::default());
                let mut cut = desk(&once, way, &counted, handler);
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                cut.turn();
                let whole = cut.returned() == 4;
                cut.kill().await;
                let what = format!("{handler:?}, {way:?}, cut off after {turns} turns");
                finish_and_check(&store, &once, way, &counted, handler, &what).await;
                doubled += counted.effects.count() - counted.ended.count();
                if whole || turns > 200 && handler != Handler::Succeeds {
                    assert!(turns >= 5, "{what}: too few turns to mean anything");
                    break;
                }
            }
            let expected = if handler == Handler::Succeeds { 1 } else { 0 };
            assert!(doubled >= expected, "{handler:?}, {way:?}: never cut between effect and end");
        }
    }
}

/// Every call to the store fails once, in each way; alone, and together with the next of its kind.
#[tokio::test(start_paused = true)]
async fn f05_f06_f07_a_store_that_fails_at_every_call() {
    let faults = [Fault::Before, Fault::After, Fault::Hang, Fault::HangAfter, Fault::Slow(40)];
    for handler in [Handler::Succeeds, Handler::FailsOnce, Handler::Dies] {
        for way in [Way::ByPartition, Way::Unordered, Way::Batches] {
            for op in [Op::Claim, Op::Settle] {
                for fault in faults {
                    for nth in 1.. {
                        let store = Probe::new();
                        let (once, counted) = (wrapper(&store).await, Counted::default());
                        store.fail(op, nth, fault);
                        store.fail(op, nth + 1, fault);
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

/// F36: a message that ends the process again and again must not use up the attempts of those claimed with it.
#[tokio::test(start_paused = true)]
async fn f36_a_message_that_ends_the_process_does_not_bury_its_neighbours() {
    for order in [Order::Partition, Order::Unordered] {
        let (store, effects) = (Probe::new(), Effects::default());
        let messages = messages(20);
        let retry = Retry::default().attempts(3);
        let mut lives = 0;
        loop {
            lives += 1;
            assert!(lives < 12, "it does not end");
            let line = store.other();
            let once = builder(&line).retry(retry).build().await.unwrap();
            let dead = Arc::new(AtomicBool::new(false));
            let each = once.each({
                let (effects, line, dead) = (effects.clone(), line.clone(), Arc::clone(&dead));
                move |message: Message, _: Claim| {
                    let (effects, line, dead) = (effects.clone(), line.clone(), Arc::clone(&dead));
                    async move {
                        if id(&message) == "m5" {
                            line.down(true);
                            dead.store(true, Ordering::SeqCst);
                        }
                        if dead.load(Ordering::SeqCst) {
                            std::future::pending::<()>().await;
                        }
                        effects.add(id(&message));
                        Ok::<_, String>(())
                    }
                }
            });
            let mut desk = Desk::with(each, Set { config: Config { order, ..Config::default() }, ..Set::default() });
            desk.deliver(&messages);
            desk.until("all is done, or the process is dead", |desk| {
                desk.returned() == 20 || dead.load(Ordering::SeqCst)
            })
            .await;
            let done = desk.returned() == 20;
            desk.kill().await;
            if done {
                break;
            }
            // All leases run out before the next member comes.
            tokio::time::sleep(LEASE * 2).await;
        }
        for message in &messages {
            let id = super::probe::id_of(message);
            assert_eq!(store.is_dead(&id), id == "m5", "{order:?}, {id}: {:?}", store.record(&id));
            // Ended and not settled when the process ended: once more at most.
            let most = if id == "m5" { 0..=0 } else { 1..=2 };
            assert!(most.contains(&effects.of(&id)), "{order:?}, {id}: {}", effects.of(&id));
        }
    }
}

trait OffsetOf {
    fn offset_of(&self) -> i64;
}

impl OffsetOf for Parts {
    fn offset_of(&self) -> i64 {
        crate::message::MessageView::offset(self)
    }
}
