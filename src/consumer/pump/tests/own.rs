//! Handlers that remember by themselves: what they answer, and what the pump hands them.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::desk::{Desk, SOON, Set, id};
use super::probe::{at, messages};
use crate::Retry;
use crate::consumer::handling::{Drive, Few, Handed, Needs};
use crate::engine::{Answer, Cause, Config, Conflicts, Ending, Order, Settled, Subject, Ticket, Verdict};
use crate::frontier::Epoch;
use crate::identity::Key;
use crate::message::{MessageView, Parts};
use crate::record::SettleOutcome;
use crate::store::StoreError;
use crate::wrapper::drive::{Call, ClaimReply, Ended, Fault, Hands, Own, Records, SettleReply, Unfinished, given_up};
use crate::wrapper::{Claim, Described, ErrorClass};

/// What was seen of one call: id, row, attempt.
type Seen = Vec<(String, Option<u64>, u32)>;

/// Answers as it was told to, by id and in order; well, where nothing is left to say.
#[derive(Default)]
struct Script {
    says: Mutex<HashMap<String, VecDeque<Ended>>>,
    calls: Mutex<Vec<Seen>>,
    buried: Mutex<Vec<String>>,
    /// How many calls to bury fail.
    deaf: Mutex<usize>,
    /// How many answers leave their last message out.
    silent: Mutex<usize>,
    begun: Mutex<Vec<Epoch>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Script>);

impl Fake {
    fn says(&self, id: &str, ended: impl IntoIterator<Item = Ended>) {
        self.0.says.lock().unwrap().entry(id.to_owned()).or_default().extend(ended);
    }

    fn calls(&self) -> Vec<Seen> {
        self.0.calls.lock().unwrap().clone()
    }

    /// How often the handler was given this message.
    fn times(&self, id: &str) -> usize {
        self.calls().iter().flatten().filter(|(own, ..)| own == id).count()
    }
}

impl Records for Fake {
    type State = String;

    fn look(&self, message: &dyn MessageView, epoch: Epoch) -> (Subject, String) {
        self.0.begun.lock().unwrap().push(epoch);
        (Subject::Own, String::from_utf8(message.header("id").unwrap().to_vec()).unwrap())
    }

    fn claim(&self, _: &mut dyn Hands<String>, _: &[Ticket], _: NonZeroU32) -> Call<ClaimReply> {
        panic!("nothing is claimed");
    }

    fn claimed(&self, _: &mut dyn Hands<String>, _: ClaimReply) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        panic!("nothing is claimed");
    }

    fn unclaimed(&self, _: &mut dyn Hands<String>, _: &[Ticket]) {}

    fn claim_of(&self, _: &String, attempt: u32) -> Claim {
        Claim::bare(Key::from_bytes([0; 16]), attempt)
    }

    fn own(&self, state: &String) -> Option<Own> {
        Some(Arc::new(state.clone()))
    }

    fn begun(&self, _: &mut String) {}

    fn succeeded(&self, _: &mut String, _: Option<Bytes>) {}

    fn failed(&self, _: &mut String, _: bool) {}

    fn not_begun(&self, _: &mut String) {}

    fn settle(&self, hands: &mut dyn Hands<String>, ends: &[(Ticket, Verdict)], _: NonZeroU32) -> Call<SettleReply> {
        let mut deaf = self.0.deaf.lock().unwrap();
        let mut answer = Ok(vec![SettleOutcome::Settled; ends.len()]);
        if *deaf > 0 {
            *deaf -= 1;
            answer = Err(StoreError::unavailable("fake", "bury", "it is away"));
        } else {
            for (ticket, verdict) in ends {
                assert_eq!(*verdict, Verdict::Dead, "nothing else is told");
                self.0.buried.lock().unwrap().push(hands.hand(*ticket).unwrap().clone());
            }
        }
        let mut tickets: Vec<Ticket> = ends.iter().map(|(ticket, _)| *ticket).collect();
        let mut silent = self.0.silent.lock().unwrap();
        if let (true, Ok(answers)) = (*silent > 0, &mut answer) {
            *silent -= 1;
            tickets.pop();
            answers.pop();
        }
        Box::pin(async { SettleReply::of(tickets, answer) })
    }

    fn settled(&self, _: &mut dyn Hands<String>, reply: SettleReply) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        reply.into_answers()
    }

    fn finished(&self, _: Ending, _: u64) {}

    fn put_down(&self, _: String) {}

    fn key(&self, _: &String) -> Option<Key> {
        None
    }

    fn attempts(&self, _: &String) -> Option<u32> {
        None
    }

    fn explain(&self, _: &dyn MessageView, _: &String, cause: Cause, last: Option<&Fault>) -> Unfinished {
        given_up(cause, last)
    }

    async fn finish(&self, _: Duration) -> u64 {
        0
    }
}

impl Drive for Fake {
    type Records = Self;

    fn records(&self) -> &Self {
        self
    }

    fn needs(&self) -> Needs {
        Needs {
            retry: Retry::fixed(SOON),
            conflicts: Conflicts::GiveUp,
            settle_first: false,
            batch: Some(512),
            keeps_dead: true,
        }
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn described(&self) -> Option<Described> {
        None
    }

    async fn run(this: Arc<Self>, messages: Few<Handed>) -> Few<Ended> {
        let messages: Vec<Handed> = messages.into_iter().collect();
        let seen = messages.iter().map(|handed| {
            let own = handed.own.clone().unwrap().downcast::<String>().unwrap();
            assert_eq!(*own, id(&handed.message), "given back with its message");
            (id(&handed.message), handed.row, handed.claim.attempt())
        });
        this.0.calls.lock().unwrap().push(seen.collect());
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut says = this.0.says.lock().unwrap();
        let mut said = |id: &str| says.get_mut(id).and_then(VecDeque::pop_front);
        let ended = messages.iter().map(|handed| said(&id(&handed.message)).unwrap_or(Ended::Succeeded(None)));
        Few::Many(ended.collect())
    }
}

fn failed(attempt: u32, retry_in: Duration) -> Ended {
    let mut fault = Fault::new("error", "not yet");
    (fault.attempt, fault.retry_in) = (Some(attempt), Some(retry_in));
    Ended::Failed(fault)
}

#[tokio::test(start_paused = true)]
async fn what_it_answers_is_treated_as_the_answer_to_a_claim() {
    let fake = Fake::default();
    fake.says("m1", [Ended::Answered(Answer::Redelivered)]);
    fake.says("m2", [Ended::Answered(Answer::SameId)]);
    fake.says("m3", [Ended::Answered(Answer::InFlight { remaining: Duration::ZERO }), Ended::Answered(Answer::SameId)]);
    fake.says("m4", [Ended::NotBegun]);
    let mut desk = Desk::new(fake.clone());
    desk.deliver(&messages(6));
    desk.finished(6).await;
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.redelivered, tally.same_id), (3, 1, 2));
    assert_eq!(committed[&0], 7);
    assert_eq!((fake.times("m3"), fake.times("m4"), fake.times("m0")), (2, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn rows_follow_the_order_and_stay_apart() {
    for (order, step_aside) in
        [(Order::Partition, false), (Order::Key, false), (Order::Unordered, false), (Order::Partition, true)]
    {
        let fake = Fake::default();
        let config = Config { order, step_aside, concurrency: 1, ..Config::default() };
        let mut desk = Desk::with(fake.clone(), Set { config, ..Set::default() });
        desk.assign(&[1]);
        let parts: Vec<Parts> = [("a", 0, 0), ("b", 0, 1), ("a", 0, 2), ("a", 1, 0), ("none", 1, 1)]
            .into_iter()
            .map(|(key, partition, offset)| {
                let message = at(&format!("{key}{partition}{offset}"), partition, offset);
                if key == "none" { message } else { message.key(key) }
            })
            .collect();
        desk.deliver(&parts);
        desk.finished(5).await;
        let rows: HashMap<String, Option<u64>> =
            fake.calls().into_iter().flatten().map(|(id, row, _)| (id, row)).collect();
        let row = |id: &str| rows[id];
        match (order, step_aside) {
            (Order::Partition, false) => {
                assert!(row("a00").is_some() && row("a00") == row("b01") && row("b01") == row("a02"));
                assert!(row("a10").is_some() && row("a10") == row("none11") && row("a10") != row("a00"));
            }
            (Order::Key, _) => {
                assert!(row("a00").is_some() && row("a00") == row("a02") && row("b01") != row("a00"));
                assert_ne!(row("a10"), row("a00"), "another partition");
                assert_eq!(row("none11"), None, "a null key waits for nobody");
            }
            _ => assert!(rows.values().all(Option::is_none), "{order:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn its_own_count_and_its_own_time_win() {
    let fake = Fake::default();
    // Three attempts were elsewhere, and the database says that it is due in a minute.
    fake.says("m0", [failed(4, Duration::from_secs(60)), failed(5, Duration::ZERO)]);
    let mut desk = Desk::new(fake.clone());
    desk.deliver(&messages(2));
    desk.until("tried once", |_| fake.times("m0") == 1).await;
    tokio::time::sleep(Duration::from_secs(55)).await;
    desk.turn();
    assert_eq!((fake.times("m0"), fake.times("m1")), (1, 1), "not before it is due");
    desk.finished(2).await;
    let attempts: Vec<u32> =
        fake.calls().into_iter().flatten().filter(|(id, ..)| id == "m0").map(|(_, _, attempt)| attempt).collect();
    assert_eq!(attempts, [1, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_told_until_it_is_heard() {
    let fake = Fake::default();
    let mut fault = Fault::new("error", "never");
    fault.class = ErrorClass::Fatal;
    fake.says("m1", [Ended::Failed(fault)]);
    *fake.0.deaf.lock().unwrap() = 2;
    let mut desk = Desk::new(fake.clone());
    desk.deliver(&messages(3));
    desk.finished(3).await;
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.dead, committed[&0]), (2, 1, 3));
    assert_eq!(*fake.0.buried.lock().unwrap(), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_leaves_out_is_told_again() {
    let fake = Fake::default();
    let fatal = || {
        let mut fault = Fault::new("error", "never");
        fault.class = ErrorClass::Fatal;
        Ended::Failed(fault)
    };
    fake.says("m1", [fatal()]);
    fake.says("m2", [fatal()]);
    *fake.0.silent.lock().unwrap() = 2;
    let mut desk = Desk::with(fake.clone(), unordered());
    desk.deliver(&messages(4));
    desk.finished(4).await;
    let (_, tally, committed) = desk.close(SOON).await;
    assert_eq!((tally.handled, tally.dead, committed[&0]), (2, 2, 5));
    let buried = fake.0.buried.lock().unwrap().clone();
    assert!(buried.len() > 2 && buried.iter().all(|id| id == "m1" || id == "m2"), "{buried:?}");
}

/// Messages wait for nobody.
fn unordered() -> Set {
    Set { config: Config { order: Order::Unordered, ..Config::default() }, ..Set::default() }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_burns_nothing_and_a_refusal_ends_the_consumer() {
    let fake = Fake::default();
    let away = || Ended::Unknown(Box::new(StoreError::unavailable("fake", "begin", "it is away")));
    fake.says("m0", [away(), away(), away()]);
    let mut desk = Desk::new(fake.clone());
    desk.deliver(&messages(2));
    desk.finished(2).await;
    let attempts = fake.calls().into_iter().flatten().filter(|(id, ..)| id == "m0").count();
    assert_eq!(attempts, 4);
    fake.says("x", [Ended::Unknown(Box::new(StoreError::refused("fake", "begin", "there is no such table")))]);
    desk.deliver(&[at("x", 0, 2)]);
    let (offset, why) = desk.until_stopped().await;
    assert!(offset == 2 && why.contains("no such table"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_lost_drops_what_was_fenced_off() {
    let fake = Fake::default();
    let fenced = || Ended::Answered(Answer::InFlight { remaining: Duration::from_secs(1) });
    fake.says("m0", (0..100).map(|_| fenced()));
    let mut desk = Desk::new(fake.clone());
    desk.deliver(&messages(3));
    desk.until("looked at a few times", |_| fake.times("m0") > 3).await;
    let before = fake.times("m0");
    tokio::time::sleep(Duration::from_secs(5)).await;
    desk.turn();
    assert!(fake.times("m0") <= before + 10, "soon no more than once a second: {}", fake.times("m0") - before);
    desk.revoke(&[0], true, SOON).await;
    desk.finished(3).await;
    let (drained, tally, committed) = desk.close(SOON).await;
    assert_eq!((drained.left, tally.redelivered, committed.get(&0)), (0, 0, None));
}
