//! What an operator does to one message, and to the handler.

use std::sync::Arc;

use hapax::inbox::{AttemptEnd, By, Class, Form, MessageId, Requeued, Skipped, State, Switched, What, Which};
use hapax::store::StoreErrorKind;

use crate::base::everywhere;
use crate::operate_desk::{Desk, by};

const DEAD: i64 = 1_700_000_000_000;

everywhere! {
    async fn f38_a_message_requeued_twice_comes_back_once<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..3).await;
        desk.die(1, DEAD).await;
        let id = desk.id(1);
        assert_eq!(desk.inbox.requeue(id, by()).await.unwrap(), Requeued::Requeued { generation: 2 });
        assert_eq!(desk.inbox.requeue(id, by()).await.unwrap(), Requeued::Waiting { generation: 2 });
        assert_eq!(desk.acts().await, 1, "what changed nothing leaves no trace");
        let open = format!("SELECT COUNT(*) FROM @_open WHERE id = {} AND lot = 0 AND turn = 0 AND run = 0 AND attempts = 0 AND generation = 2", id.0);
        assert_eq!(desk.count(&open).await, 1);
        assert_eq!(desk.generation(1).await, 2);

        // Under a request's id the answer is the first one's, whatever has become of the message since.
        desk.die(1, DEAD).await;
        let asked = || by().request("ticket-7");
        assert_eq!(desk.inbox.requeue(id, asked()).await.unwrap(), Requeued::Requeued { generation: 3 });
        desk.die(1, DEAD).await;
        assert_eq!(desk.inbox.requeue(id, asked()).await.unwrap(), Requeued::Requeued { generation: 3 });
        assert_eq!(desk.inbox.show(id).await.unwrap().unwrap().state, State::Dead, "it was not brought back a second time");
        assert_eq!((desk.generation(1).await, desk.acts().await), (3, 2));
        // The id belongs to this, and to nothing else.
        let error = desk.inbox.requeue(desk.id(2), asked()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
        assert!(desk.inbox.skip(id, asked()).await.is_err());
        assert_eq!(desk.acts().await, 2);
        // Another one is another call.
        let other = by().request("ticket-8");
        assert_eq!(desk.inbox.requeue(id, other).await.unwrap(), Requeued::Requeued { generation: 4 });
    }
}

everywhere! {
    async fn what_is_failed_is_requeued_and_what_is_not_there_is_unknown<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..4).await;
        desk.fail(1, Class::Retryable, DEAD * 2).await;
        desk.succeed(&[2], 0).await;
        let requeue = async |id| desk.inbox.requeue(id, by()).await.unwrap();
        assert_eq!(requeue(desk.id(1)).await, Requeued::Requeued { generation: 2 });
        assert_eq!(requeue(desk.id(2)).await, Requeued::Succeeded);
        assert_eq!(requeue(desk.id(3)).await, Requeued::Waiting { generation: 1 });
        assert_eq!(requeue(desk.id(99)).await, Requeued::Unknown);
        assert_eq!(requeue(MessageId(-1)).await, Requeued::Unknown);
        let shown = desk.inbox.show(desk.id(1)).await.unwrap().unwrap();
        assert_eq!((shown.state, shown.attempts, shown.due), (State::Received, 0, None));
        assert_eq!(shown.history.len(), 1, "the history stays");

        // Another handler's inbox, in the same tables, has nothing to say here.
        let other = desk.world.builder().scope("tests", "another").build().await.unwrap();
        desk.die(3, DEAD).await;
        let id = desk.id(3);
        assert_eq!(other.requeue(id, by()).await.unwrap(), Requeued::Unknown);
        assert_eq!(other.skip(id, by()).await.unwrap(), Skipped::Unknown);
        assert!(other.show(id).await.unwrap().is_none());
        assert!(other.list(State::ALL).await.unwrap().is_empty());
        assert_eq!(other.purge_these(Which::ids([id]), by()).await.unwrap().removed, 0);
        assert_eq!(other.census().await.unwrap().all(), 0);
        assert_eq!(desk.inbox.census().await.unwrap().all(), 3);
    }
}

everywhere! {
    async fn what_is_being_processed_is_left_alone<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..3).await;
        let run = desk.take(&[1], 600_000).await;
        let until = desk.count(&format!("SELECT lease FROM @_runs WHERE run = {run}")).await;
        let before = desk.picture().await;
        let (inbox, id) = (desk.inbox.clone(), desk.id(1));
        // The same request may be asked again when the run has ended: a refusal is no answer for ever.
        let asked = || by().request("ticket-7");
        assert_eq!(inbox.requeue(id, asked()).await.unwrap(), Requeued::Processing { until });
        assert_eq!(inbox.skip(id, by()).await.unwrap(), Skipped::Processing { until });
        assert_eq!(inbox.edit_and_requeue(id, "other", by()).await.unwrap(), Requeued::Processing { until });
        assert_eq!(desk.picture().await, before);
        let replayed = desk.inbox.replay(Which::ids([id]), by()).await.unwrap();
        assert_eq!((replayed.replayed, replayed.open), (0, 1));
        let removed = desk.inbox.purge_these(Which::ids([id]), by()).await.unwrap();
        assert_eq!((removed.removed, removed.open), (0, 1));
        let erased = desk.inbox.erase(Which::ids([id]), by()).await.unwrap();
        assert_eq!((erased.erased, erased.processing, erased.until), (0, 1, Some(until)));
        // Nothing but the three acts, which say that nothing was done.
        let after = desk.picture().await;
        assert_eq!(before[..before.len() - 1], after[..after.len() - 1]);
        let listed = desk.inbox.list(State::Processing).await.unwrap();
        let holder = listed[0].holder.clone().unwrap();
        assert_eq!((listed.len(), holder.run, &*holder.owner, holder.until), (1, run, "worker-1", until));

        desk.run("UPDATE @_open SET run = 0 ").await;
        assert_eq!(desk.inbox.requeue(id, asked()).await.unwrap(), Requeued::Requeued { generation: 2 });
    }
}

everywhere! {
    async fn what_is_skipped_is_dead_and_says_who_did_it<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..4).await;
        desk.fail(2, Class::Timeout, DEAD * 2).await;
        desk.succeed(&[3], 0).await;
        let skip = async |id| desk.inbox.skip(id, By::new("ada", "a test order")).await.unwrap();
        for n in [1, 2] {
            assert_eq!(skip(desk.id(n)).await, Skipped::Skipped);
            assert_eq!(skip(desk.id(n)).await, Skipped::Dead);
        }
        assert_eq!(skip(desk.id(3)).await, Skipped::Succeeded);
        assert_eq!(skip(desk.id(9)).await, Skipped::Unknown);
        for (n, attempt) in [(1, 1), (2, 2)] {
            let shown = desk.inbox.show(desk.id(n)).await.unwrap().unwrap();
            let last = shown.last_failure.clone().unwrap();
            assert_eq!((shown.state, last.class, last.attempt), (State::Dead, Class::Skipped, attempt));
            assert_eq!((&*last.owner, &*last.text, last.run), ("ada", "a test order", 0));
            assert!(shown.died.is_some_and(|at| at > DEAD));
            assert_eq!((shown.acts.len(), shown.acts[0].what), (1, What::Skip));
        }
        // It can be brought back, and be skipped once more.
        assert_eq!(desk.inbox.requeue(desk.id(2), by()).await.unwrap(), Requeued::Requeued { generation: 2 });
        assert_eq!(skip(desk.id(2)).await, Skipped::Skipped);
        assert_eq!(desk.inbox.list(State::Dead).class(Class::Skipped).await.unwrap().len(), 2);
    }
}

everywhere! {
    async fn an_edited_payload_stands_beside_the_one_that_came<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..4).await;
        desk.die(1, DEAD).await;
        desk.succeed(&[3], 0).await;
        let (inbox, id) = (desk.inbox.clone(), desk.id(1));
        let edit = async |payload: &str| inbox.edit_and_requeue(id, payload, by()).await.unwrap();
        assert_eq!(edit("order one").await, Requeued::Requeued { generation: 2 });
        assert_eq!(edit("order one").await, Requeued::Waiting { generation: 2 });
        assert_eq!(edit("order uno").await, Requeued::Requeued { generation: 3 });
        let shown = desk.inbox.show(id).await.unwrap().unwrap();
        assert_eq!((&*shown.text(), shown.original.as_deref()), ("order uno", Some(&b"order 1"[..])));
        assert_eq!((shown.form, shown.state, shown.generation), (Form::Edited, State::Received, 3));
        let edits: Vec<_> = shown.edits.iter().map(|edit| (edit.generation, edit.payload.as_deref().unwrap())).collect();
        assert_eq!(edits, [(2, &b"order one"[..]), (3, b"order uno")]);
        assert_eq!(shown.headers, [("id".to_owned(), Some(b"1".to_vec()))]);
        // Requeued as it is, it keeps what it was given.
        desk.die(1, DEAD).await;
        assert_eq!(desk.inbox.requeue(id, by()).await.unwrap(), Requeued::Requeued { generation: 4 });
        assert_eq!(desk.inbox.show(id).await.unwrap().unwrap().text(), "order uno");

        // One that waits for its turn keeps it.
        desk.run("UPDATE @_open SET lot = 1, turn = 9000000000000 WHERE generation = 1 ").await;
        assert_eq!(inbox.edit_and_requeue(desk.id(2), "two", by()).await.unwrap(), Requeued::Requeued { generation: 2 });
        let shown = desk.inbox.show(desk.id(2)).await.unwrap().unwrap();
        assert_eq!((shown.state, shown.due, &*shown.text()), (State::Received, Some(9_000_000_000_000), "two"));
        assert_eq!(inbox.edit_and_requeue(desk.id(3), "three", by()).await.unwrap(), Requeued::Succeeded);

        // A request's id belongs to one payload.
        let asked = || by().request("ticket-7");
        assert_eq!(inbox.edit_and_requeue(id, "a", asked()).await.unwrap(), Requeued::Requeued { generation: 5 });
        assert_eq!(inbox.edit_and_requeue(id, "a", asked()).await.unwrap(), Requeued::Requeued { generation: 5 });
        assert!(inbox.edit_and_requeue(id, "b", asked()).await.is_err());
        assert_eq!(desk.inbox.show(id).await.unwrap().unwrap().text(), "a");
    }
}

everywhere! {
    async fn the_handler_is_paused_and_resumed_once<DB>() {
        let mut desk = Desk::<DB>::new().await;
        let paused = "SELECT paused FROM @_handlers ";
        assert_eq!(desk.inbox.resume(by()).await.unwrap(), Switched::Already);
        assert_eq!(desk.inbox.pause(by().request("stop")).await.unwrap(), Switched::Switched);
        assert_eq!(desk.count(paused).await, 1);
        assert_eq!(desk.inbox.pause(by()).await.unwrap(), Switched::Already);
        assert_eq!(desk.inbox.resume(by()).await.unwrap(), Switched::Switched);
        assert_eq!(desk.count(paused).await, 0);
        // It was done, and is not done again.
        assert_eq!(desk.inbox.pause(by().request("stop")).await.unwrap(), Switched::Switched);
        assert_eq!(desk.count(paused).await, 0);
        let acts = desk.inbox.acts().await.unwrap();
        assert_eq!(acts.iter().map(|act| act.what).collect::<Vec<_>>(), [What::Resume, What::Pause]);
        assert_eq!((&*acts[1].who, &*acts[1].why), ("ada", "fixed in 1.4.2"));
        assert!(acts[1].time > DEAD && acts[1].message.is_none());
    }
}

everywhere! {
    async fn of_many_who_ask_at_once_one_does_it<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..3).await;
        desk.die(1, DEAD).await;
        desk.die(2, DEAD).await;
        let inbox = Arc::new(desk.inbox.clone());
        let ask = |id, by: By| {
            let inbox = Arc::clone(&inbox);
            tokio::spawn(async move { inbox.requeue(id, by).await.unwrap() })
        };
        let asked: Vec<_> = (0..8).map(|_| ask(desk.id(1), by())).collect();
        let mut did = 0;
        for asked in asked {
            match asked.await.unwrap() {
                Requeued::Requeued { generation: 2 } => did += 1,
                other => assert_eq!(other, Requeued::Waiting { generation: 2 }),
            }
        }
        assert_eq!((did, desk.acts().await, desk.generation(1).await), (1, 1, 2));
        // The same request: all are told the same.
        let asked: Vec<_> = (0..8).map(|_| ask(desk.id(2), by().request("ticket-7"))).collect();
        for asked in asked {
            assert_eq!(asked.await.unwrap(), Requeued::Requeued { generation: 2 });
        }
        assert_eq!((desk.acts().await, desk.generation(2).await), (2, 2));
    }
}

everywhere! {
    async fn a_call_that_is_dropped_is_done_or_not<DB>() {
        let mut desk = Desk::<DB>::new().await;
        desk.accept(1..2).await;
        desk.die(1, DEAD).await;
        let (id, asked) = (desk.id(1), || by().request("ticket-7"));
        let mut wait = 1;
        // Dropped a little later each time, until it comes through.
        loop {
            let call = desk.inbox.requeue(id, asked());
            match tokio::time::timeout(std::time::Duration::from_micros(wait), call).await {
                Ok(came) => {
                    assert_eq!(came.unwrap(), Requeued::Requeued { generation: 2 });
                    break;
                }
                Err(_) => wait += wait / 4 + 50,
            }
            // In one statement: what was dropped commits in its own time.
            let picture = "SELECT m.generation * 10 + (SELECT COUNT(*) FROM @_acts) FROM @ m WHERE m.id = ";
            let picture = desk.count(&format!("{picture}{}", id.0)).await;
            assert!([10, 21].contains(&picture), "half of it was done: {picture}");
        }
        assert_eq!((desk.generation(1).await, desk.acts().await), (2, 1));
        let shown = desk.inbox.show(id).await.unwrap().unwrap();
        assert!(matches!(shown.history[0].end, AttemptEnd::Failed { class: Class::Fatal, .. }));
    }
}
