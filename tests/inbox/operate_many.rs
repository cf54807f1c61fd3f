//! What an operator does to many messages: replay, erasure, purge by hand.

use std::time::Duration;

use hapax::inbox::{By, Class, Form, Requeued, Skipped, State, Which};

use crate::base::everywhere;
use crate::operate_desk::{Desk, by};
use crate::support::PATIENCE;

const DEAD: i64 = 1_700_000_000_000;
const LATER: i64 = 9_000_000_000_000;

everywhere! {
    async fn f38_a_replay_is_a_new_generation_of_what_is_over<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..21).await;
        desk.succeed(&[1, 2, 3, 4, 5, 6], 0).await;
        desk.die(7, DEAD).await;
        desk.fail(8, Class::Retryable, LATER).await;
        desk.take(&[9], 60_000).await;
        desk.die(10, DEAD).await;
        desk.inbox.erase(Which::ids([desk.id(10)]), by()).await.unwrap();
        let which = || Which::topic("orders").offsets(0, 3..=11);
        let asked = || by().request("incident-12");
        let replayed = desk.inbox.replay(which(), asked()).await.unwrap();
        // 3, 4, 5, 6 and 7; 8, 9 and 11 are open; 10 is erased.
        assert_eq!((replayed.replayed, replayed.open, replayed.erased), (5, 3, 1));
        for n in 1..12 {
            let expected = if (3..8).contains(&n) { 2 } else { 1 };
            assert_eq!(desk.generation(n).await, expected, "{n}");
        }
        let ready = "SELECT COUNT(*) FROM @_open WHERE lot = 0 AND turn = 0 AND run = 0 AND attempts = 0 AND generation = 2";
        assert_eq!(desk.count(ready).await, 5);
        let shown = desk.inbox.show(desk.id(3)).await.unwrap().unwrap();
        assert_eq!((shown.state, shown.generation, shown.history.len()), (State::Received, 2, 1));
        let lanes = "SELECT COUNT(*) FROM @_open o JOIN @ m ON m.id = o.id WHERE m.lane = o.lane AND m.generation = o.generation";
        assert_eq!(desk.count(lanes).await, desk.count("SELECT COUNT(*) FROM @_open").await);

        // Handled once more, and asked once more under the same request: it was done.
        desk.succeed(&[3, 4, 5, 6, 7], 0).await;
        let again = desk.inbox.replay(which(), asked()).await.unwrap();
        assert_eq!(again, replayed);
        assert_eq!(desk.generation(3).await, 2);
        assert!(desk.inbox.replay(Which::topic("orders"), asked()).await.is_err(), "the request was for other messages");
        // By time; a call of its own.
        let replayed = desk.inbox.replay(Which::topic("orders").accepted(4..6), by()).await.unwrap();
        assert_eq!((replayed.replayed, desk.generation(4).await, desk.generation(6).await), (2, 3, 2));
        let nothing = desk.inbox.replay(Which::topic("refunds"), by()).await.unwrap();
        assert_eq!(nothing, Default::default());
        let act = desk.inbox.acts().limit(1).await.unwrap().into_vec().remove(0);
        assert!(act.detail.starts_with("finished=yes done=0 "), "{}", act.detail);
    }
}

everywhere! {
    async fn a_replay_that_is_dropped_goes_on_where_it_was<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.put(1..1201, false).await;
        desk.accept(1201..1211).await;
        let asked = || by().request("incident-12");
        let (mut wait, mut dropped) = (2_000, 0);
        let replayed = loop {
            let call = desk.inbox.replay(Which::topic("orders"), asked());
            match tokio::time::timeout(Duration::from_micros(wait), call).await {
                Ok(replayed) => break replayed.unwrap(),
                Err(_) => (dropped, wait) = (dropped + 1, wait + wait / 8),
            }
            assert!(wait < PATIENCE.as_micros() as u64);
        };
        assert!(dropped > 0, "it was never dropped");
        assert_eq!((replayed.replayed, replayed.open), (1200, 10));
        assert_eq!(desk.count("SELECT COUNT(*) FROM @ WHERE generation = 2").await, 1200);
        assert_eq!(desk.count("SELECT COUNT(*) FROM @_open").await, 1210);
        assert_eq!(desk.acts().await, 1);
    }
}

everywhere! {
    async fn two_who_ask_for_the_same_replay_share_it<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.put(1..1201, false).await;
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let inbox = desk.inbox.clone();
                tokio::spawn(async move { inbox.replay(Which::topic("orders"), by().request("r")).await.unwrap() })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().replayed, 1200);
        }
        assert_eq!(desk.count("SELECT COUNT(*) FROM @ WHERE generation = 2").await, 1200);
        assert_eq!(desk.acts().await, 1);
    }
}

everywhere! {
    async fn what_is_erased_stays_so_and_is_still_known<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..21).await;
        // Of key k1: 1, 6, 11, 16.
        desk.succeed(&[1, 2], 0).await;
        desk.die(6, DEAD).await;
        desk.inbox.edit_and_requeue(desk.id(6), "order six", by()).await.unwrap();
        desk.die(6, DEAD).await;
        desk.fail(11, Class::Retryable, LATER).await;
        let erase = async |desk: &Desk<DB>, by: By| desk.inbox.erase(Which::keys(["k1"]), by).await.unwrap();
        let erased = erase(&desk, by()).await;
        assert_eq!((erased.erased, erased.buried, erased.processing, erased.until), (4, 2, 0, None));
        for n in [1, 6, 11, 16] {
            let shown = desk.inbox.show(desk.id(n)).await.unwrap().unwrap();
            assert_eq!((shown.form, shown.key.clone(), shown.payload.clone(), shown.original.clone()), (Form::Erased, None, None, None));
            assert!(shown.headers.is_empty() && shown.edits.iter().all(|edit| edit.payload.is_none()));
            assert_eq!(shown.state, if n == 1 { State::Succeeded } else { State::Dead });
            for attempt in shown.history.iter().filter(|attempt| attempt.run != 0) {
                assert!(!format!("{attempt:?}").contains("carrier"), "{attempt:?}");
            }
            // Neither an operator nor a replay brings it back.
            let expected = if n == 1 { Requeued::Succeeded } else { Requeued::Erased };
            assert_eq!(desk.inbox.requeue(desk.id(n), by()).await.unwrap(), expected);
            assert_eq!(desk.inbox.edit_and_requeue(desk.id(n), "x", by()).await.unwrap(), expected);
            let skipped = if n == 1 { Skipped::Succeeded } else { Skipped::Dead };
            assert_eq!(desk.inbox.skip(desk.id(n), by()).await.unwrap(), skipped);
            // The identity is still taken.
            let key = desk.inbox.key_of(&crate::world::message(n, "k1", 5, 5)).unwrap();
            assert_eq!(desk.inbox.list(State::ALL).identity(key).await.unwrap().len(), 1);
        }
        let replayed = desk.inbox.replay(Which::topic("orders"), by()).await.unwrap();
        assert_eq!((replayed.replayed, replayed.erased), (1, 4));
        assert_eq!(desk.count("SELECT COUNT(*) FROM @ WHERE form = 2").await, 4);
        assert_eq!(desk.count("SELECT COUNT(*) FROM @ WHERE payload IS NULL").await, 4, "others keep theirs");
        // Asked again there is nothing left.
        assert_eq!(erase(&desk, by()).await, Default::default());
        let narrowed = desk.inbox.erase(Which::keys(["k2"]).of_topic("refunds"), by()).await.unwrap();
        assert_eq!(narrowed.erased, 0);
    }
}

everywhere! {
    async fn what_could_not_be_erased_is_said_and_erased_later<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..7).await;
        let run = desk.take(&[1], 60_000).await;
        let until = desk.count("SELECT lease FROM @_runs ").await;
        let asked = || by().request("data office 88");
        let erased = desk.inbox.erase(Which::keys(["k1"]), asked()).await.unwrap();
        assert_eq!((erased.erased, erased.buried, erased.processing, erased.until), (1, 1, 1, Some(until)));
        assert_eq!(desk.inbox.show(desk.id(1)).await.unwrap().unwrap().text(), "order 1");
        let again = desk.inbox.erase(Which::keys(["k1"]), asked()).await.unwrap();
        assert_eq!(again, erased);
        desk.end(run, &[(1, crate::operate_desk::Done::Succeeded)], 0).await;
        let erased = desk.inbox.erase(Which::keys(["k1"]), asked()).await.unwrap();
        assert_eq!((erased.erased, erased.buried, erased.processing, erased.until), (2, 1, 0, None));
        assert_eq!(desk.inbox.show(desk.id(1)).await.unwrap().unwrap().payload, None);
        assert_eq!(desk.inbox.erase(Which::keys(["k1"]), asked()).await.unwrap(), erased);
        assert_eq!(desk.acts().await, 1);
        let act = desk.inbox.acts().await.unwrap().into_vec().remove(0);
        assert!(!act.detail.contains("k1"), "{}", act.detail);
    }
}

everywhere! {
    async fn a_purge_by_hand_keeps_what_is_open<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..11).await;
        desk.succeed(&[1, 2, 3], 0).await;
        desk.die(4, DEAD).await;
        desk.fail(5, Class::Retryable, LATER).await;
        desk.take(&[6], 60_000).await;
        desk.inbox.edit_and_requeue(desk.id(4), "four", by()).await.unwrap();
        desk.die(4, DEAD).await;
        let asked = || by().request("p");
        let removed = desk.inbox.purge_these(Which::topic("orders").offsets(0, 2..), asked()).await.unwrap();
        assert_eq!((removed.removed, removed.open), (3, 6));
        assert_eq!(desk.inbox.purge_these(Which::topic("orders").offsets(0, 2..), asked()).await.unwrap(), removed);
        let left = desk.inbox.list(State::ALL).await.unwrap();
        assert_eq!(left.iter().map(|message| desk.n(message.id)).collect::<Vec<_>>(), [1, 5, 6, 7, 8, 9, 10]);
        // Nothing of those that are gone is left, but what was done to them.
        let gone = desk.id(4).0;
        for table in ["@_open", "@_attempts", "@_edits", "@ "] {
            assert_eq!(desk.count(&format!("SELECT COUNT(*) FROM {table} WHERE id = {gone}")).await, 0, "{table}");
        }
        assert_eq!(desk.inbox.acts().of(desk.id(4)).await.unwrap().len(), 1);
        assert_eq!(desk.inbox.requeue(desk.id(4), by()).await.unwrap(), Requeued::Unknown);
    }
}

everywhere! {
    async fn a_call_dropped_anywhere_and_asked_again_is_done_once<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..41).await;
        for n in 1..41 {
            desk.die(n, DEAD).await;
        }
        for n in 1..41 {
            let call = desk.inbox.requeue(desk.id(n), by());
            // The first try is dropped wherever it is; the second one asks for the same in its own name.
            let first = tokio::time::timeout(Duration::from_micros(200 * n as u64), call).await;
            match first {
                Ok(came) => assert_eq!(came.unwrap(), Requeued::Requeued { generation: 2 }),
                Err(_) => {
                    let second = desk.inbox.requeue(desk.id(n), by()).await.unwrap();
                    assert!(matches!(second, Requeued::Requeued { generation: 2 } | Requeued::Waiting { generation: 2 }), "{second:?}");
                }
            }
            assert_eq!(desk.generation(n).await, 2);
        }
        assert_eq!(desk.acts().await, 40);
    }
}
