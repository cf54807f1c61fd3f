//! Taking messages in while something breaks: processes that stop in the middle, replies that are lost, transactions that meet.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use hapax::inbox::{AcceptError, Accepted};
use hapax::message::Parts;

use crate::base::{Base, Site, everywhere, everywhere_served};
use crate::support::{PATIENCE, Relay, eventually};
use crate::world::{World, is_commit, message};

fn batch(from: i64, to: i64, partition: i32) -> Vec<Parts> {
    (from..to).map(|id| message(id, &format!("k{}", id % 5), partition, id)).collect()
}

/// Each of these is there once, each with its work, and nothing else is.
async fn judge<DB: Base>(world: &World<DB>, ids: impl Iterator<Item = i64>) {
    let wanted: Vec<i64> = ids.collect();
    let (messages, open) = (world.table(""), world.table("_open"));
    let found = world.numbers(&format!("SELECT stamp - 1700000000000 AS n FROM {messages} ORDER BY n")).await;
    assert_eq!(found, wanted, "{}: lost or doubled", DB::KIND);
    let text =
        format!("SELECT m.stamp - 1700000000000 AS n FROM {messages} AS m JOIN {open} AS o ON o.id = m.id ORDER BY n");
    assert_eq!(world.numbers(&text).await, wanted, "{}: without work", DB::KIND);
    assert_eq!(world.count("_open", "1 = 1").await, i64::try_from(wanted.len()).unwrap(), "{}", DB::KIND);
}

async fn lost<DB: Base>(committed: bool) {
    let mut world = World::<DB>::new().await;
    let relay = Relay::start(&world.site.url);
    world.pool = DB::pool(&Site::at(relay.url(&world.site.url)), 4).await;
    let inbox = world.inbox().await;
    // The window is held, ids are drawn: the next COMMIT is the batch's.
    assert!(inbox.accept_batch(&batch(0, 5, 0)).await.outcomes.iter().all(Result::is_ok));
    match committed {
        true => relay.cut_reply_to(is_commit),
        false => relay.cut_request(is_commit),
    }
    let before = relay.caught();
    let done = inbox.accept_batch(&batch(5, 25, 0)).await;
    assert_eq!(relay.caught(), before + 1);
    assert!(done.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::New(_)))), "{done:?}");
    assert_eq!(done.commits[0].offset, 25);
    judge(&world, 0..25).await;
    assert!(inbox.accept_batch(&batch(20, 30, 0)).await.outcomes.iter().all(Result::is_ok));
    judge(&world, 0..30).await;
}

everywhere_served! {
async fn f07_a_commit_that_was_made_counts<DB>() {
    lost::<DB>(true).await;
}
}

everywhere_served! {
async fn f07_a_commit_that_was_not_made_is_made_again<DB>() {
    lost::<DB>(false).await;
}
}

everywhere_served! {
async fn f04_a_connection_that_breaks_in_any_step_changes_nothing<DB>() {
    let mut world = World::<DB>::new().await;
    let relay = Relay::start(&world.site.url);
    world.pool = DB::pool(&Site::at(relay.url(&world.site.url)), 4).await;
    let inbox = world.inbox().await;
    assert!(inbox.accept_batch(&batch(0, 10, 0)).await.outcomes.iter().all(Result::is_ok));
    // The table's names stand in the statements' texts, where they are first prepared; then the steps are found by counting.
    for (turn, step) in (1..).zip(0..10) {
        let mut seen = 0;
        relay.cut_request(move |_| {
            seen += 1;
            seen > step
        });
        let from = turn * 10;
        let done = inbox.accept_batch(&batch(from, from + 10, 0)).await;
        assert!(done.outcomes.iter().all(Result::is_ok), "{step}: {done:?}");
        judge(&world, 0..from + 10).await;
    }
    assert!(relay.caught() >= 5, "cut {} times", relay.caught());
}
}

everywhere! {
async fn f02_a_process_that_stops_in_the_middle_leaves_nothing_half_done<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    assert!(inbox.accept_batch(&batch(0, 10, 0)).await.outcomes.iter().all(Result::is_ok));
    for step in 0..40 {
        // Dropped after so many steps, as a crash leaves it to the database.
        let messages = batch(10, 60, 0);
        let mut accepting = Box::pin(inbox.accept_batch(&messages));
        for _ in 0..step {
            if tokio::time::timeout(Duration::from_micros(200), &mut accepting).await.is_ok() {
                break;
            }
        }
        drop(accepting);
    }
    // Another process takes over; what was committed is there, and what was not comes now.
    let next = world.inbox().await;
    let done = next.accept_batch(&batch(0, 80, 0)).await;
    assert!(done.outcomes.iter().all(Result::is_ok), "{done:?}");
    judge(&world, 0..80).await;
}
}

everywhere! {
async fn f33_the_same_identities_at_once_from_many_partitions_are_one_message_each<DB>() {
    let world = World::<DB>::sized(10).await;
    let inboxes = join_all((0..4).map(async |_| world.inbox().await)).await;
    let runs = inboxes.iter().zip(0..).map(async |(inbox, partition)| {
        let mut new = Vec::new();
        // In another order in each, so that they meet.
        for turn in 0..4_i64 {
            let part = (turn + i64::from(partition)) % 4;
            let mut rest = batch(part * 60, part * 60 + 60, partition);
            for (message, offset) in rest.iter_mut().zip(turn * 60..) {
                *message = message.clone().at(partition, offset);
            }
            // What somebody else's transaction holds for too long is handed in again.
            for _ in 0..200 {
                let done = inbox.accept_batch(&rest).await;
                let mut again = Vec::new();
                for (message, outcome) in rest.into_iter().zip(&done.outcomes) {
                    match outcome {
                        Ok(Accepted::New(id)) => new.push(id.0),
                        Ok(_) => {}
                        Err(error) if error.is_retryable() => again.push(message),
                        Err(error) => panic!("{error}"),
                    }
                }
                rest = again;
                if rest.is_empty() {
                    break;
                }
            }
            assert!(rest.is_empty());
        }
        new
    });
    let new: Vec<i64> = join_all(runs).await.into_iter().flatten().collect();
    assert_eq!((new.len(), new.iter().collect::<HashSet<_>>().len()), (240, 240));
    judge(&world, 0..240).await;
    let counts: Vec<_> = inboxes.iter().map(|inbox| inbox.accept_counts()).collect();
    assert_eq!(counts.iter().map(|counts| counts.accepted).sum::<u64>(), 240);
    assert_eq!(counts.iter().map(|counts| counts.accepted + counts.duplicates + counts.redelivered).sum::<u64>(), 960);
}
}

everywhere! {
async fn f34_what_somebody_holds_is_waited_for<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.builder().lock_timeout(Duration::from_millis(200)).build().await.unwrap();
    let first = inbox.accept_batch(&batch(0, 5, 0)).await;
    assert!(first.outcomes.iter().all(Result::is_ok));
    // Somebody holds the window, and neither commits nor rolls back. SQLite lets nobody write then, and waits for longer than this test.
    if DB::KIND != "sqlite" {
        let mut other = world.session().await;
        let begin = if DB::KIND == "mysql" { "START TRANSACTION" } else { "BEGIN" };
        DB::run(&mut other, begin).await.unwrap();
        DB::run(&mut other, &format!("UPDATE {} SET time = time + 1", world.table("_windows"))).await.unwrap();
        let held = inbox.accept_batch(&batch(5, 10, 0)).await;
        let busy = |outcome: &Result<_, AcceptError>| matches!(outcome, Err(error @ AcceptError::Busy { .. }) if error.is_retryable());
        assert!(held.outcomes.iter().all(busy), "{held:?}");
        assert!(held.commits.is_empty());
        judge(&world, 0..5).await;
        DB::run(&mut other, "COMMIT").await.unwrap();
    }
    let done = inbox.accept_batch(&batch(5, 10, 0)).await;
    assert!(done.outcomes.iter().all(Result::is_ok), "{done:?}");
    judge(&world, 0..10).await;
}
}

everywhere_served! {
async fn f06_a_database_that_is_away_is_waited_for<DB>() {
    let mut world = World::<DB>::new().await;
    let relay = Relay::start(&world.site.url);
    world.pool = DB::pool(&Site::at(relay.url(&world.site.url)), 4).await;
    let inbox = world.inbox().await;
    assert!(inbox.accept_batch(&batch(0, 5, 0)).await.outcomes.iter().all(Result::is_ok));
    relay.down();
    let messages = batch(5, 10, 0);
    let (done, ()) = tokio::join!(inbox.accept_batch(&messages), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        relay.restore();
    });
    assert!(done.outcomes.iter().all(Result::is_ok), "{done:?}");
    judge(&world, 0..10).await;
    // Away for too long: said so, and nothing is lost.
    let hasty = world.builder().store_patience(Duration::from_millis(300)).build().await.unwrap();
    assert!(hasty.accept_batch(&batch(10, 12, 0)).await.outcomes.iter().all(Result::is_ok));
    relay.down();
    let failed = hasty.accept_batch(&batch(12, 15, 0)).await;
    assert!(failed.outcomes.iter().all(|outcome| matches!(outcome, Err(error @ AcceptError::Database(_)) if error.is_retryable())), "{failed:?}");
    assert!(failed.commits.is_empty());
    relay.restore();
    eventually(PATIENCE, "the database again", async || {
        hasty.accept_batch(&batch(12, 15, 0)).await.outcomes.iter().all(Result::is_ok)
    })
    .await;
    judge(&world, 0..15).await;
}
}
