//! What fails: tried again, given up, or the end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::{Letter, Letters, Sending, Undelivered};
use super::desk::{Desk, SOON, Set, id};
use super::order::noting;
use super::probe::{Effects, Fault, Op, Probe, at, builder, messages, once};
use crate::consumer::message::Message;
use crate::engine::{Cause, Config, Order};
use crate::message::Parts;
use crate::record::State;
use crate::{Claim, ErrorClass, Fatal, Retry, Unavailable};

type Boxed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::test(start_paused = true)]
async fn the_partition_waits_for_a_message_that_is_tried_again() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(20))).build().await.unwrap();
    let each = once.each({
        let effects = effects.clone();
        move |message: Message, claim: Claim| {
            let effects = effects.clone();
            async move {
                if id(&message) == "m1" && claim.attempt() < 3 {
                    return Err(String::from("not yet"));
                }
                effects.add(id(&message));
                Ok(())
            }
        }
    });
    let mut desk = Desk::new(each);
    desk.deliver(&messages(4));
    desk.finished(1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    // What waits behind it is free for others meanwhile.
    let held = store.records().values().filter(|record| matches!(record.state, State::Processing { .. })).count();
    assert_eq!((held, effects.all()), (0, vec!["m0".to_owned()]));
    desk.finished(4).await;
    assert_eq!(effects.all(), ["m0", "m1", "m2", "m3"]);
    assert!((40_000..41_000).contains(&store.now()), "{}", store.now());
    assert_eq!((store.record("m1").unwrap().attempts, store.record("m2").unwrap().attempts), (3, 1));
    assert_eq!(once.counts().late, 0);
}

/// A copy finishes as it is claimed, before its turn, and its number is given to a message that comes to stand further back in the same lane.
#[tokio::test(start_paused = true)]
async fn numbers_given_again_behind_a_failed_message_leave_nothing_standing() {
    let (store, effects, begun) = (Probe::new(), Effects::default(), Arc::new(AtomicUsize::new(0)));
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1))).build().await.unwrap();
    let each = once.each({
        let (effects, begun) = (effects.clone(), Arc::clone(&begun));
        move |message: Message, claim: Claim| {
            let (effects, begun) = (effects.clone(), Arc::clone(&begun));
            async move {
                if id(&message) == "slow" && claim.attempt() == 1 {
                    begun.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    return Err(String::from("not yet"));
                }
                effects.add(id(&message));
                Ok(())
            }
        }
    });
    let mut desk = Desk::new(each);
    let name = |name: &str, n: i64| format!("{name}{n}");
    let some = |of: &str, from: i64| (0..8).map(|n| at(&name(of, n), 0, from + n)).collect::<Vec<Parts>>();
    desk.deliver(&some("m", 0));
    desk.finished(8).await;
    desk.deliver(&[at("slow", 0, 8)]);
    desk.deliver(&some("m", 9));
    desk.finished(16).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    desk.deliver(&some("n", 17));
    let is_held = |state: &State| matches!(state, State::Processing { .. });
    let held = || store.records().values().filter(|record| is_held(&record.state)).count();
    desk.until("they are claimed behind it", |_| held() == 9).await;
    desk.finished(25).await;
    let mut expected: Vec<String> = (0..8).map(|n| name("m", n)).chain(["slow".into()]).collect();
    expected.extend((0..8).map(|n| name("n", n)));
    assert_eq!(effects.all(), expected);
    let (drained, tally, committed) = desk.close(SOON).await;
    assert_eq!((drained.left, tally.handled, tally.same_id, committed[&0]), (0, 17, 8, 25));
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_for_its_message_and_the_others_go_on() {
    for step_aside in [false, true] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = once(&store).await;
        let each = once.each({
            let effects = effects.clone();
            move |message: Message, claim: Claim| {
                let effects = effects.clone();
                async move {
                    if id(&message) == "a0" && claim.attempt() < 3 {
                        return Err(String::from("not yet"));
                    }
                    effects.add(id(&message));
                    Ok(())
                }
            }
        });
        let config = Config { order: Order::Key, step_aside, ..Config::default() };
        // The consumer's own retry, not the wrapper's.
        let retry = Some(Retry::fixed(Duration::from_secs(100)));
        let mut desk = Desk::with(each, Set { config, retry, ..Set::default() });
        let key = |name: &str, n: i64, offset| at(&format!("{name}{n}"), 0, offset).key(name);
        let sent: Vec<Parts> = (0..5).flat_map(|n| [key("a", n, 2 * n), key("b", n, 2 * n + 1)]).collect();
        desk.deliver(&sent);
        desk.finished(if step_aside { 9 } else { 5 }).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        let own: Vec<String> = effects.all().into_iter().filter(|id| id.starts_with('a')).collect();
        let early: &[&str] = if step_aside { &["a1", "a2", "a3", "a4"] } else { &[] };
        assert_eq!(own, early);
        desk.finished(10).await;
        let own: Vec<String> = effects.all().into_iter().filter(|id| id.starts_with('a')).collect();
        let all: &[&str] = if step_aside { &["a1", "a2", "a3", "a4", "a0"] } else { &["a0", "a1", "a2", "a3", "a4"] };
        assert_eq!(own, all);
        assert!((200_000..201_000).contains(&store.now()), "{}", store.now());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_message_is_passed_and_stays_dead() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(2)).build().await.unwrap();
    let each = once.each({
        let effects = effects.clone();
        move |message: Message, _: Claim| {
            let effects = effects.clone();
            async move {
                match id(&message).as_str() {
                    "m1" => Err(Boxed::from("never")),
                    "m2" => Err(Fatal::new("no such account").into()),
                    "m3" => panic!("poison"),
                    other => {
                        effects.add(other);
                        Ok(())
                    }
                }
            }
        }
    });
    let mut desk = Desk::new(each);
    for round in 1..=2 {
        desk.deliver(&messages(5));
        desk.finished(5 * round).await;
        assert_eq!(effects.all(), ["m0", "m4"]);
        assert!(["m1", "m2", "m3"].into_iter().all(|id| store.is_dead(id)));
        assert_eq!(["m1", "m2", "m3"].map(|id| store.record(id).unwrap().attempts), [2, 1, 2]);
        desk.revoke(&[0], false, SOON).await;
        assert_eq!(desk.committed[&0], 6);
        desk.assign(&[0]);
    }
    let (_, tally, _) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.redelivered, tally.dead), (2, 2, 6));
    assert_eq!((once.counts().dead, once.counts().panicked, once.counts().failed), (6, 2, 5));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_may_not_be_passed_ends_the_consumer_and_is_named() {
    let conflict = Parts::new("t").at(0, 8).payload("else").header("id", "a");
    let nobody = Parts::new("t").at(0, 8).payload("x");
    for (odd, words) in [
        (conflict, ["topic `t`, partition 0, offset 8", "OnConflict::Skip"]),
        (nobody, ["topic `t`, partition 0, offset 8", "header `id`"]),
        (at("fails", 0, 8), ["cannot be", "Retry::none"]),
    ] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = builder(&store).retry(Retry::none()).build().await.unwrap();
        let each = once.each({
            let effects = effects.clone();
            move |message: Message, _: Claim| {
                effects.add(id(&message));
                std::future::ready(if id(&message) == "fails" { Err("cannot be") } else { Ok(()) })
            }
        });
        let mut desk = Desk::new(each);
        desk.deliver(&[at("a", 0, 0)]);
        desk.finished(1).await;
        desk.deliver(&[at("b", 0, 6), odd, at("c", 0, 9)]);
        let (offset, text) = desk.until_stopped().await;
        assert!(offset == 8 && words.into_iter().all(|word| text.contains(word)), "{offset}: {text}");
        let (_, tally, committed) = desk.close(SOON).await;
        assert_eq!((committed[&0], tally.handled, effects.of("c")), (7, 2, 0), "what follows was passed or begun");
        assert!(store.record("c").is_none_or(|record| record.attempts == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_ends_the_consumer() {
    for (op, word) in [(Op::Claim, "could not be claimed"), (Op::Settle, "could not be settled")] {
        let (store, effects) = (Probe::new(), Effects::default());
        let once = once(&store).await;
        store.fail(op, 1, Fault::Refuse);
        let mut desk = Desk::new(noting(&once, &effects));
        desk.deliver(&messages(3));
        let (_, text) = desk.until_stopped().await;
        assert!(text.contains(word) && text.contains("no right to do that"), "{text}");
        desk.close(SOON).await;
        assert!(once.settle_pending(SOON).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_down_burns_no_attempt_and_is_probed_until_it_is_back() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_millis(1)).attempts(3)).build().await.unwrap();
    let (down, calls) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(0)));
    let each = once.each({
        let (effects, down, calls) = (effects.clone(), Arc::clone(&down), Arc::clone(&calls));
        move |message: Message, claim: Claim| {
            let (effects, down, calls) = (effects.clone(), Arc::clone(&down), Arc::clone(&calls));
            async move {
                tokio::task::yield_now().await;
                calls.fetch_add(1, Ordering::SeqCst);
                if down.load(Ordering::SeqCst) == 1 {
                    return Err(Boxed::from(Unavailable::new("the bank does not answer")));
                }
                assert_eq!(claim.attempt(), 1);
                effects.add(id(&message));
                Ok(())
            }
        }
    });
    let config = Config { order: Order::Unordered, partition_messages: 100, ..Config::default() };
    let mut desk = Desk::with(each, Set { config, ..Set::default() });
    desk.deliver(&messages(200));
    tokio::time::sleep(Duration::from_secs(300)).await;
    desk.turn();
    assert!(!desk.paused.is_empty(), "nothing more is taken in");
    let probes = calls.load(Ordering::SeqCst);
    assert!((70..=600).contains(&probes), "{probes} calls: those that ran, and probes");
    assert_eq!((effects.count(), desk.returned()), (0, 0));
    down.store(0, Ordering::SeqCst);
    desk.finished(200).await;
    desk.until("it takes messages in again", |desk| desk.paused.is_empty()).await;
    assert_eq!(effects.count(), 200);
    assert!(store.records().values().all(|record| record.attempts == 1), "attempts were burnt");
    assert_eq!(once.counts().dead, 0);
}

/// Letters by command: acknowledged, refused for now, refused for good.
#[derive(Default)]
struct Office {
    answers: Mutex<VecDeque<Result<(), Undelivered>>>,
    letters: Mutex<Vec<Letter>>,
    store: Option<Probe>,
}

impl Letters for Office {
    fn send(&self, letters: Vec<Letter>) -> Sending {
        let answers: Vec<_> =
            letters.iter().map(|_| self.answers.lock().unwrap().pop_front().unwrap_or(Ok(()))).collect();
        if let Some(store) = &self.store {
            for letter in letters.iter().filter(|letter| letter.message.header("id").is_some()) {
                assert!(!store.is_dead(&id(&letter.message)), "settled before the letter was acknowledged");
            }
        }
        self.letters.lock().unwrap().extend(letters);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            answers
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_goes_to_the_letters_before_it_is_settled() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).retry(Retry::fixed(Duration::from_secs(1)).attempts(2)).build().await.unwrap();
    let each = once.each({
        let effects = effects.clone();
        move |message: Message, _: Claim| {
            let effects = effects.clone();
            async move {
                match id(&message).as_str() {
                    "m1" => Err(Boxed::from("never")),
                    "m2" => Err(Fatal::new("no such account").into()),
                    other => {
                        effects.add(other);
                        Ok(())
                    }
                }
            }
        }
    });
    let later = || Err(Undelivered::Later("the broker is away".into()));
    let office = Arc::new(Office {
        answers: Mutex::new(VecDeque::from([later(), later(), Ok(()), later()])),
        letters: Mutex::default(),
        store: Some(store.clone()),
    });
    let mut desk = Desk::with(each, Set { letters: Some(Arc::clone(&office) as Arc<dyn Letters>), ..Set::default() });
    let mut sent = messages(4);
    sent.push(Parts::new("t").at(0, 10).payload("no id"));
    desk.deliver(&sent);
    desk.finished(5).await;
    assert_eq!(effects.all(), ["m0", "m3"]);
    assert!(store.is_dead("m1") && store.is_dead("m2"));
    let letters = std::mem::take(&mut *office.letters.lock().unwrap());
    let of = |offset: i64| letters.iter().rfind(|letter| letter.message.offset() == offset).unwrap();
    let (first, second, third) = (of(1), of(2), of(10));
    assert_eq!((first.cause, second.cause, third.cause), (Cause::Attempts, Cause::Fatal, Cause::Identity));
    assert_eq!((first.attempts, second.attempts, third.attempts), (Some(2), Some(1), None));
    let fault = |letter: &Letter| letter.fault.as_ref().map(|fault| (fault.class, fault.text.clone()));
    assert_eq!(fault(first), Some((ErrorClass::Retryable, "never".into())));
    assert_eq!(fault(second), Some((ErrorClass::Fatal, "no such account".into())));
    assert_eq!(fault(third), None);
    assert!(first.first_at <= first.last_at && first.first_at > Some(1_700_000_000_000));
    assert_eq!((first.key, third.key), (Some(super::probe::key("m1")), None));
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.dead, committed[&0]), (2, 3, 11));
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_never_will_be_taken_ends_the_consumer() {
    let store = Probe::new();
    let once = once(&store).await;
    let each =
        once.each(async |message: Message, _: Claim| if id(&message) == "m1" { Err(Fatal::new("no")) } else { Ok(()) });
    let office = Office::default();
    office.answers.lock().unwrap().push_back(Err(Undelivered::Never("it is too large".into())));
    let mut desk = Desk::with(each, Set { letters: Some(Arc::new(office)), ..Set::default() });
    desk.deliver(&messages(3));
    let (offset, text) = desk.until_stopped().await;
    assert_eq!((offset, text.as_str()), (1, "it is too large"));
    assert_eq!(desk.close(SOON).await.2[&0], 1);
    assert!(!store.is_dead("m1"));
}
