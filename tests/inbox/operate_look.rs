//! Looking at messages: lists, one message, counts, and what was done.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;

use hapax::Inbox;
use hapax::inbox::{AttemptEnd, By, Class, Cursor, Form, Listed, Page, State};

use crate::base::{Base, everywhere};
use crate::operate_desk::{Desk, Done, by};
use crate::world::message;

const DEAD: i64 = 1_700_000_000_000;
const LATER: i64 = 9_000_000_000_000;

/// All pages of a list, of so many messages each.
async fn pages<DB: Base>(
    desk: &mut Desk<DB>,
    states: impl Into<hapax::inbox::States>,
    limit: usize,
    mut between: impl AsyncFnMut(&mut Desk<DB>, usize),
) -> Vec<Listed> {
    let (states, inbox) = (states.into(), desk.inbox.clone());
    let mut all = Vec::new();
    let mut after: Option<Cursor> = None;
    for number in 0.. {
        let page: Page<Listed> = inbox.list(states).limit(limit).after(after).await.unwrap();
        assert!(page.len() <= limit);
        assert!(number < 1000, "it never ends");
        after = page.next();
        // As a user interface hands it on.
        after = after.map(|cursor| cursor.to_string().parse().unwrap());
        all.extend(page);
        if after.is_none() {
            break;
        }
        between(desk, number).await;
    }
    all
}

everywhere! {
    async fn pages_are_whole_and_never_repeat_while_rows_come_and_go<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..121).await;
        // Odd ones fail, and every tenth dies.
        desk.run(&format!("UPDATE @_open SET lot = 1, turn = {LATER}, attempts = 1 WHERE id % 2 = 1 ")).await;
        desk.run(&format!("UPDATE @_open SET lot = 2, turn = {DEAD}, attempts = 1 WHERE id % 10 = 0 ")).await;
        let failed = |n: i64| n % 2 == 1;
        // Meanwhile failed ones become due and wait again, some succeed, some die, and new ones come.
        let churn = async |desk: &mut Desk<DB>, page: usize| {
            let (page, low) = (page as i64, desk.id(0).0);
            desk.run(&format!("UPDATE @_open SET lot = 0, turn = 0 WHERE lot = 1 AND (id - {low}) % 6 = 1 ")).await;
            desk.run(&format!("UPDATE @_open SET lot = 1, turn = {LATER} + {page} - id WHERE lot = 0 AND attempts = 1 AND (id - {low}) % 6 = 3 ")).await;
            desk.run(&format!("DELETE FROM @_open WHERE id - {low} = {} ", 61 + 2 * page)).await;
            desk.run(&format!("UPDATE @_open SET lot = 2, turn = {DEAD} + 1 WHERE id - {low} = {} ", 121 - 2 * (page + 1))).await;
            let new = 1000 + page;
            desk.accept(new..new + 1).await;
        };
        let found = pages(&mut desk, State::Failed, 7, churn).await;
        let numbers: Vec<i64> = found.iter().map(|message| desk.n(message.id)).collect();
        let once: BTreeSet<i64> = numbers.iter().copied().collect();
        assert_eq!(once.len(), numbers.len(), "listed twice: {numbers:?}");
        assert!(found.iter().all(|message| message.state == State::Failed && failed(desk.n(message.id))));
        // Whatever is failed still was failed all along.
        let still = pages(&mut desk, State::Failed, 1000, async |_, _| ()).await;
        assert!(still.len() > 30, "{}", still.len());
        for message in still {
            assert!(once.contains(&desk.n(message.id)), "{message:?} was missed");
        }
    }
}

everywhere! {
    async fn states_are_told_apart_and_counted<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..21).await;
        desk.take(&[1, 2], 60_000).await;
        desk.fail(3, Class::Retryable, LATER).await;
        desk.fail(4, Class::Retryable, LATER).await;
        desk.fail(5, Class::Timeout, LATER).await;
        // Due, and waiting for its turn.
        let id = desk.id(5).0;
        desk.run(&format!("UPDATE @_open SET lot = 0, turn = 0 WHERE id = {id}")).await;
        desk.die(6, DEAD).await;
        desk.succeed(&[7, 8, 9, 10], 0).await;
        // Not before a time: received all the same.
        let id = desk.id(11).0;
        desk.run(&format!("UPDATE @_open SET lot = 1, turn = {LATER} WHERE id = {id}")).await;
        let expected = [
            (State::Received, (11..21).collect::<Vec<i64>>()),
            (State::Processing, vec![1, 2]),
            (State::Failed, vec![3, 4, 5]),
            (State::Succeeded, vec![7, 8, 9, 10]),
            (State::Dead, vec![6]),
        ];
        for (state, numbers) in &expected {
            for limit in [1, 3, 100] {
                let found = pages(&mut desk, *state, limit, async |_, _| ()).await;
                assert_eq!(found.iter().map(|message| desk.n(message.id)).collect::<Vec<_>>(), *numbers, "{state}");
                assert!(found.iter().all(|message| message.state == *state));
            }
        }
        let several = pages(&mut desk, [State::Dead, State::Succeeded, State::Failed], 2, async |_, _| ()).await;
        assert_eq!(several.iter().map(|message| desk.n(message.id)).collect::<Vec<_>>(), (3..11).collect::<Vec<_>>());
        assert_eq!(pages(&mut desk, State::ALL, 6, async |_, _| ()).await.len(), 20);
        let census = desk.inbox.census().await.unwrap();
        let counts = [census.received, census.processing, census.failed, census.succeeded, census.dead];
        assert_eq!(counts, [10, 2, 3, 4, 1]);
        assert_eq!((census.backlog(), census.all()), (15, 20));
    }
}

everywhere! {
    async fn lists_are_narrowed_by_what_is_asked<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..21).await;
        for n in 1..11 {
            desk.die(n, DEAD).await;
        }
        desk.fail(11, Class::Timeout, LATER).await;
        let id = desk.id(3).0;
        desk.run(&format!("UPDATE @ SET topic = 'refunds', part = 2 WHERE id = {id}")).await;
        let inbox = desk.inbox.clone();
        let first = desk.id(0).0;
        let numbers = |page: Page<Listed>| page.iter().map(|message| message.id.0 - first).collect::<Vec<_>>();
        let dead = || inbox.list(State::Dead);
        assert_eq!(numbers(dead().topic("refunds").await.unwrap()), [3]);
        assert_eq!(numbers(dead().topic("nothing").await.unwrap()), [0; 0]);
        assert_eq!(numbers(dead().topic("orders").offsets(0, 2..=5).await.unwrap()), [2, 4, 5]);
        assert_eq!(numbers(dead().offsets(2, ..).await.unwrap()), [3]);
        assert_eq!(numbers(dead().key("k1").await.unwrap()), [1, 6]);
        assert_eq!(numbers(dead().accepted(9..).await.unwrap()), [9, 10]);
        assert_eq!(numbers(dead().accepted(..2).await.unwrap()), [1]);
        assert_eq!(numbers(dead().class(Class::Fatal).await.unwrap()).len(), 10);
        assert_eq!(numbers(dead().class(Class::Retryable).await.unwrap()), [0; 0]);
        assert_eq!(numbers(inbox.list(State::ALL).class(Class::Timeout).await.unwrap()), [11]);
        assert_eq!(numbers(dead().topic("orders").key("k1").offsets(0, 5..).limit(3).await.unwrap()), [6]);
        for states in [vec![State::Dead], State::ALL.to_vec()] {
            let states: hapax::inbox::States = states.into_iter().collect();
            let key = |n| inbox.key_of(&message(n, "whatever", 9, 9)).unwrap();
            assert_eq!(numbers(inbox.list(states).identity(key(4)).await.unwrap()), [4]);
            assert_eq!(numbers(inbox.list(states).identity(key(99)).await.unwrap()), [0; 0]);
        }
        assert_eq!(numbers(inbox.list(State::Received).identity(inbox.key_of(&message(4, "", 0, 0)).unwrap()).await.unwrap()), [0; 0]);
        // Whose last failure counts.
        desk.run(&format!("INSERT INTO @_attempts (id, run, began, ended, inbox, generation, attempt, class, owner, text) \
            SELECT id, 0, 1, 2, inbox, 2, 1, 4, 'w', 'x' FROM @ WHERE id = {id}")).await;
        assert_eq!(numbers(inbox.list(State::Dead).class(Class::Panic).await.unwrap()), [3]);
        let page = inbox.list(State::Dead).class(Class::Panic).await.unwrap();
        let last = page[0].last_failure.clone().unwrap();
        assert_eq!((last.generation, last.attempt, last.class, &*last.text), (2, 1, Class::Panic, "x"));
        // What is listed says where it came from.
        assert_eq!((&*page[0].topic, page[0].partition, page[0].offset), ("refunds", 2, 3));
        assert_eq!((page[0].key.as_deref(), page[0].payload_bytes, page[0].form), (Some(&b"k3"[..]), Some(7), Form::Whole));
        assert_eq!((page[0].timestamp_ms, page[0].accepted_ms, page[0].died), (Some(1_700_000_000_003), 3, Some(DEAD)));
    }
}

everywhere! {
    async fn a_message_is_shown_with_its_whole_history<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..10).await;
        assert!(desk.inbox.show(desk.id(99)).await.unwrap().is_none());
        let shown = desk.inbox.show(desk.id(1)).await.unwrap().unwrap();
        assert!(shown.history.is_empty() && shown.acts.is_empty() && shown.edits.is_empty());
        assert_eq!((shown.state, &*shown.text(), shown.original.as_deref()), (State::Received, "order 1", Some(&b"order 1"[..])));
        // Given back, failed, lost with another one, given up, brought back, succeeded late.
        let run = desk.take(&[1, 2, 3], 60_000).await;
        desk.end(run, &[(1, Done::Released), (2, Done::Succeeded), (3, Done::Succeeded)], 900).await;
        let run = desk.take(&[1, 4], 60_000).await;
        desk.end(run, &[(1, Done::Failed), (4, Done::Succeeded)], 800).await;
        desk.inbox.skip(desk.id(1), By::new("ada", "it is a test")).await.unwrap();
        desk.inbox.edit_and_requeue(desk.id(1), "order one", By::new("bob", "no, it is not")).await.unwrap();
        let last = desk.take(&[1, 5], 60_000).await;
        let shown = desk.inbox.show(desk.id(1)).await.unwrap().unwrap();
        let holder = shown.holder.clone().unwrap();
        assert_eq!((shown.state, holder.run, shown.attempts), (State::Processing, last, 1));
        let running = shown.history.last().unwrap();
        assert_eq!((running.generation, running.attempt, &running.end), (2, 1, &AttemptEnd::Running { until: holder.until }));
        assert_eq!((running.ended, &*running.owner), (None, "worker-1"));
        desk.end(last, &[(1, Done::Late), (5, Done::Succeeded)], 0).await;
        let shown = desk.inbox.show(desk.id(1)).await.unwrap().unwrap();
        assert_eq!(shown.state, State::Succeeded);
        let ends: BTreeMap<(u32, u32, i64), &AttemptEnd> =
            shown.history.iter().map(|attempt| ((attempt.generation, attempt.attempt, attempt.run), &attempt.end)).collect();
        let expected = [
            ((1, 1, last - 2), AttemptEnd::Released),
            ((1, 1, last - 1), AttemptEnd::Failed { class: Class::Retryable, text: "the carrier does not answer".into() }),
            ((1, 2, 0), AttemptEnd::Failed { class: Class::Skipped, text: "it is a test".into() }),
            ((2, 1, last), AttemptEnd::Succeeded { late: true }),
        ];
        assert_eq!(ends, expected.iter().map(|(at, end)| (*at, end)).collect());
        assert!(shown.history.last().unwrap().ended.is_some());
        assert_eq!(shown.acts.iter().map(|act| (&*act.who, &*act.why)).collect::<Vec<_>>(), [("bob", "no, it is not"), ("ada", "it is a test")]);
        assert_eq!((&*shown.text(), shown.edits.len(), &*shown.edits[0].who), ("order one", 1, "bob"));
        // Nothing of this is another message's.
        let other = desk.inbox.show(desk.id(4)).await.unwrap().unwrap();
        assert_eq!((other.history.len(), other.acts.len()), (1, 0));
        assert_eq!(other.history[0].end, AttemptEnd::Succeeded { late: false });
    }
}

everywhere! {
    async fn what_was_done_is_read_page_by_page<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..12).await;
        for n in 1..12 {
            desk.die(n, DEAD).await;
            desk.inbox.requeue(desk.id(n), By::new("ada", format!("number {n}"))).await.unwrap();
        }
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = desk.inbox.acts().limit(4).after(after).await.unwrap();
            after = page.next();
            found.extend(page);
            // One that is written meanwhile belongs before the first page.
            desk.inbox.skip(desk.id(1), by()).await.unwrap();
            if after.is_none() {
                break;
            }
        }
        let numbers: Vec<i64> = found.iter().map(|act| desk.n(act.message.unwrap())).collect();
        assert_eq!(numbers.iter().copied().collect::<BTreeSet<_>>(), (1..12).collect());
        assert_eq!(numbers.len(), 11);
        assert!(found.windows(2).all(|pair| pair[0].number > pair[1].number && pair[0].time >= pair[1].time));
        assert_eq!(found[10].detail, "generation=2");
        let of = desk.inbox.acts().of(desk.id(1)).await.unwrap();
        assert_eq!(of.iter().map(|act| act.what.name()).collect::<Vec<_>>(), ["skip", "requeue"]);
    }
}

everywhere! {
    async fn what_has_succeeded_is_found_among_very_many<DB>() {
        let mut desk = Desk::<DB>::new().await;
        // More than one statement looks through.
        desk.put(1..20_200, false).await;
        desk.accept(20_200..20_211).await;
        let far = desk.id(20_150).0;
        desk.run(&format!("UPDATE @ SET topic = 'refunds' WHERE id = {far}")).await;
        let found = desk.inbox.list(State::Succeeded).topic("refunds").await.unwrap();
        assert_eq!((found.len(), found[0].id.0, found.next()), (1, far, None));
        let all = pages(&mut desk, State::Succeeded, 9_000, async |_, _| ()).await;
        assert_eq!(all.len(), 20_199);
        assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
        let census = desk.inbox.census().await.unwrap();
        assert_eq!((census.succeeded, census.received, census.all()), (20_199, 11, 20_210));
        // A range that begins behind the first step of a replay.
        let replayed = desk.inbox.replay(hapax::inbox::Which::topic("orders").offsets(0, 20_149..), by()).await.unwrap();
        assert_eq!((replayed.replayed, replayed.open), (50, 11));
    }
}

/// Futures can be handed to other threads.
#[allow(dead_code)]
fn futures_are_send(inbox: &Inbox<sqlx::Postgres>) {
    fn send<T: Send>(_: T) {}
    let id = hapax::inbox::MessageId(1);
    let which = || hapax::inbox::Which::ids([id]);
    send(inbox.list(State::Dead).into_future());
    send(inbox.acts().into_future());
    send(inbox.show(id));
    send(inbox.census());
    send(inbox.requeue(id, by()));
    send(inbox.skip(id, by()));
    send(inbox.edit_and_requeue(id, "x", by()));
    send(inbox.replay(which(), by()));
    send(inbox.erase(which(), by()));
    send(inbox.purge_these(which(), by()));
    send(inbox.pause(by()));
    send(inbox.purge(10));
}
