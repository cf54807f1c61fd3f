//! Taking messages in: each once, whatever comes twice.

use std::time::Duration;

use hapax::identity::{OnMissing, Scope, digest, header, position};
use hapax::inbox::{AcceptError, Accepted, MessageId, Oversize};
use hapax::message::Parts;
use hapax::{Inbox, OnConflict};

use crate::base::{Base, everywhere};
use crate::world::{World, message};

fn many(from: i64, to: i64) -> Vec<Parts> {
    (from..to).map(|id| message(id, &format!("k{}", id % 7), 0, id)).collect()
}

fn new_id(outcome: &Result<Accepted, AcceptError>) -> MessageId {
    match outcome {
        Ok(Accepted::New(id)) => *id,
        other => panic!("not new: {other:?}"),
    }
}

everywhere! {
async fn each_is_in_the_table_once<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    // Sizes that take several statements, and several transactions.
    let first = inbox.accept_batch(&many(0, 1_300)).await;
    let ids: Vec<_> = first.outcomes.iter().map(new_id).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids ascend with offsets");
    assert_eq!(first.commits.iter().map(|commit| commit.offset).collect::<Vec<_>>(), [1_300]);
    // Some of them again, with new ones; in another process.
    let other = world.inbox().await;
    let second = other.accept_batch(&many(1_000, 1_400)).await;
    for (at, outcome) in second.outcomes.iter().enumerate() {
        let wanted = if at < 300 { matches!(outcome, Ok(Accepted::Redelivered)) } else { matches!(outcome, Ok(Accepted::New(_))) };
        assert!(wanted, "{at}: {outcome:?}");
    }
    assert!(new_id(&second.outcomes[300]) > ids[1_299]);
    assert_eq!(world.count("", "1 = 1").await, 1_400);
    assert_eq!(world.count("_open", "lot = 0 AND run = 0 AND attempts = 0 AND turn = 0").await, 1_400);
    let joined = format!(
        "SELECT COUNT(*) FROM {m} AS m JOIN {o} AS o ON o.id = m.id AND o.lane = m.lane AND o.inbox = m.inbox \
         WHERE m.form = 0 AND m.generation = 1 AND o.generation = 1 AND m.topic = 'orders' AND m.stamp = 1700000000000 + m.log_offset",
        m = world.table(""), o = world.table("_open"));
    assert_eq!(DB::number(&mut world.session().await, &joined).await.unwrap(), 1_400);
    assert_eq!(world.count("", "1 = 1 GROUP BY inbox HAVING COUNT(DISTINCT lane) = 7").await, 1_400);
    assert_eq!((other.accept_counts().accepted, other.accept_counts().redelivered), (100, 300));
}
}

everywhere! {
async fn what_was_produced_again_is_a_duplicate<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    let first = inbox.accept_batch(&many(0, 50)).await;
    // The same ids and payloads on other offsets, new ones between them, and one twice within the batch.
    let mut again = Vec::new();
    for id in 0..100 {
        again.push(message(id, "k", 1, id));
    }
    again.push(message(99, "k", 1, 100));
    let second = inbox.accept_batch(&again).await;
    for id in 0..50 {
        assert!(matches!(&second.outcomes[id], Ok(Accepted::Duplicate(of)) if *of == new_id(&first.outcomes[id])));
    }
    for id in 50..100 {
        new_id(&second.outcomes[id]);
    }
    assert!(matches!(&second.outcomes[100], Ok(Accepted::Duplicate(of)) if *of == new_id(&second.outcomes[99])));
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (100, 100));
    assert_eq!(second.commits[0].offset, 101);
    // What is a duplicate is remembered by its window too.
    let third = inbox.accept_batch(&again).await;
    assert!(third.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::Redelivered))));
    assert_eq!(inbox.accept_counts().duplicates, 51);
}
}

everywhere! {
async fn f24_conflicts_go_as_the_policy_says<DB>() {
    let world = World::<DB>::new().await;
    let clash = |offset| message(1, "k", 1, offset).payload("something else");
    let stop = world.inbox().await;
    let _ = stop.accept_batch(&many(0, 3)).await;
    let batch = [message(10, "k", 1, 0), clash(1), message(11, "k", 1, 2)];
    for _ in 0..3 {
        // However often it is handed in: it stays unfinished, and burns nothing.
        let outcomes = stop.accept_batch(&batch).await;
        assert!(matches!(&outcomes.outcomes[1], Err(AcceptError::Conflict { first, .. }) if first.origin.offset == 1 && first.origin.partition == 0));
        assert!(outcomes.outcomes[0].is_ok() && outcomes.outcomes[2].is_ok());
        assert_eq!(outcomes.commits[0].offset, 1);
    }
    let skip = world.builder().on_conflict(OnConflict::Skip).build().await.unwrap();
    let outcomes = skip.accept_batch(&batch).await;
    assert!(matches!(outcomes.outcomes[1], Ok(Accepted::Conflict(_))), "{outcomes:?}");
    assert_eq!(outcomes.commits[0].offset, 3);
    assert_eq!(world.count("", "1 = 1").await, 5);
    let handle = world.builder().on_conflict(OnConflict::Handle).build().await.unwrap();
    let outcomes = handle.accept_batch(&[clash(3), message(12, "k", 1, 4)]).await;
    new_id(&outcomes.outcomes[0]);
    new_id(&outcomes.outcomes[1]);
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (7, 7));
}
}

everywhere! {
async fn f29_what_cannot_be_taken_in_is_said<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.builder().largest_payload(10, Oversize::Reject).build().await.unwrap();
    let plain = |offset| Parts::new("orders").at(0, offset).timestamp(1_700_000_000_000).payload("x");
    let batch = [
        plain(0).header("id", "a"),
        plain(1),
        plain(2).header("id", "b").payload(vec![0_u8; 11]),
        plain(3).header("id", "c").payload(vec![0_u8; 10]),
        Parts::new("t".repeat(300)).at(0, 0).header("id", "d"),
    ];
    let ended = inbox.accept_batch(&batch).await;
    let outcomes = &ended.outcomes;
    assert!(outcomes[0].is_ok() && outcomes[3].is_ok());
    assert!(matches!(outcomes[1], Err(AcceptError::Identity { .. })));
    assert!(matches!(outcomes[2], Err(AcceptError::TooLarge { bytes: 11, most: 10, .. })));
    assert!(matches!(outcomes[4], Err(AcceptError::Topic { .. })));
    assert!(outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|error| !error.is_retryable()));
    assert_eq!(ended.commits[0].offset, 1);
    let counts = inbox.accept_counts();
    assert_eq!((counts.accepted, counts.rejected, counts.refused), (2, 1, 2));
    // Those that stay undone are told again, and go in once the policies let them.
    let easy = world.builder().largest_payload(10, Oversize::LeaveOut).on_missing(OnMissing::HandleWithoutDedup);
    let outcomes = easy.build().await.unwrap().accept_batch(&batch[..4]).await;
    new_id(&outcomes.outcomes[1]);
    new_id(&outcomes.outcomes[2]);
    assert_eq!(outcomes.commits[0].offset, 4);
    assert_eq!(world.count("", "form = 1 AND payload IS NULL").await, 1);
    assert_eq!(world.count("", "form = 0 AND payload IS NOT NULL").await, 3);
}
}

everywhere! {
async fn priority_and_time_are_kept<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.builder()
        .priority(|message| if message.offset() % 2 == 0 { -5 } else { 7 })
        .not_before(|message| (message.offset() >= 8).then_some(4_000_000_000_000 + message.offset()))
        .leave_out_payloads();
    let inbox = inbox.build().await.unwrap();
    let ended = inbox.accept_batch(&many(0, 10)).await;
    assert!(ended.outcomes.iter().all(Result::is_ok));
    assert_eq!(world.count("_open", "lot = 0 AND turn = -5 AND priority = -5").await, 4);
    assert_eq!(world.count("_open", "lot = 0 AND turn = 7 AND priority = 7").await, 4);
    assert_eq!(world.count("_open", "lot = 1 AND turn IN (4000000000008, 4000000000009)").await, 2);
    assert_eq!(world.count("", "payload IS NULL AND form = 1").await, 10);
}
}

everywhere! {
async fn ids_ascend_over_owners<DB>() {
    let world = World::<DB>::new().await;
    let (a, b) = (world.inbox().await, world.inbox().await);
    let mut last = None;
    // Two processes take a partition from each other, as a group would have it.
    for turn in 0..6 {
        let owner = if turn % 2 == 0 { &a } else { &b };
        owner.assigned(&[("orders", 0)]).await.unwrap();
        let ended = owner.accept_batch(&many(turn * 10, turn * 10 + 10)).await;
        for outcome in &ended.outcomes {
            let id = new_id(outcome);
            assert!(last < Some(id), "{last:?} {id:?}");
            last = Some(id);
        }
    }
    assert_eq!(world.count("", "1 = 1").await, 60);
}
}

everywhere! {
async fn a_zombie_accepts_nothing<DB>() {
    let world = World::<DB>::new().await;
    let (zombie, owner) = (world.inbox().await, world.inbox().await);
    assert!(zombie.accept_batch(&many(0, 5)).await.outcomes.iter().all(Result::is_ok));
    owner.assigned(&[("orders", 0)]).await.unwrap();
    let late = zombie.accept_batch(&many(5, 10)).await;
    assert!(late.outcomes.iter().all(|outcome| matches!(outcome, Err(AcceptError::Fenced { .. }))), "{late:?}");
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (5, 5));
    assert!(owner.accept_batch(&many(5, 10)).await.outcomes.iter().all(Result::is_ok));
    assert_eq!(world.count("", "1 = 1").await, 10);
}
}

everywhere! {
async fn messages_from_no_partition_are_known_by_identity<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    let call = |id: &str| Parts::new("calls").header("id", id).payload("x");
    let ended = inbox.accept_batch(&[call("a"), call("b"), call("a")]).await;
    new_id(&ended.outcomes[1]);
    assert!(matches!(&ended.outcomes[2], Ok(Accepted::Duplicate(of)) if *of == new_id(&ended.outcomes[0])));
    assert!(matches!(inbox.accept_batch(&[call("b")]).await.outcomes[0], Ok(Accepted::Duplicate(_))));
    assert_eq!(world.count("", "1 = 1").await, 2);
    assert_eq!(world.count("_windows", "1 = 1").await, 0);
}
}

everywhere! {
async fn a_topic_that_was_made_anew_is_noticed<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    assert!(inbox.accept_batch(&many(0, 10)).await.outcomes.iter().all(Result::is_ok));
    let younger = message(500, "k", 0, 3).timestamp(1_800_000_000_000);
    let ended = inbox.accept_batch(std::slice::from_ref(&younger)).await;
    assert!(matches!(ended.outcomes[0], Err(AcceptError::OtherMessage { .. })), "{ended:?}");
}
}

everywhere! {
async fn scopes_share_tables_and_nothing_else<DB>() {
    let world = World::<DB>::new().await;
    let mine = world.inbox().await;
    let theirs = world.builder().scope("tests", "theirs").build().await.unwrap();
    let a = mine.accept_batch(&many(0, 20)).await;
    let b = theirs.accept_batch(&many(0, 20)).await;
    assert!(a.outcomes.iter().zip(&b.outcomes).all(|(a, b)| new_id(a) < new_id(b)));
    assert_eq!(world.count("", "1 = 1").await, 40);
    assert_eq!(world.count("_open", "1 = 1 GROUP BY inbox HAVING inbox = 2").await, 20);
    let lanes = format!("SELECT COUNT(DISTINCT lane) FROM {}", world.table("_open"));
    assert_eq!(DB::number(&mut world.session().await, &lanes).await.unwrap(), 14);
}
}

everywhere! {
async fn f29_wide_messages_come_back_as_they_went<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    let bytes: Vec<u8> = (0..=255).collect();
    let wide = Parts::new("t\u{e4}glich").at(3, 9).header("id", bytes.clone()).null_header("n").header("id2", "")
        .key(bytes.clone()).payload(vec![7_u8; 900_000]);
    let bare = Parts::new("t\u{e4}glich").at(3, 10).header("id", "x");
    let empty = Parts::new("t\u{e4}glich").at(3, 11).header("id", "y").key("").payload("");
    let ended = inbox.accept_batch(&[wide, bare, empty]).await;
    assert!(ended.outcomes.iter().all(Result::is_ok), "{ended:?}");
    assert_eq!(world.count("", "LENGTH(payload) = 900000 AND LENGTH(record_key) = 256 AND LENGTH(headers) = 286").await, 1);
    assert_eq!(world.count("", "payload IS NULL AND record_key IS NULL AND stamp IS NULL").await, 1);
    assert_eq!(world.count("", "LENGTH(payload) = 0 AND LENGTH(record_key) = 0").await, 1);
}
}

everywhere! {
async fn positions_are_identities_too<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.builder().identify(position()).build().await.unwrap();
    let same = |offset| Parts::new("orders").at(0, offset).payload("same").header("id", "1");
    assert!(inbox.accept_batch(&[same(0), same(1)]).await.outcomes.iter().all(|outcome| matches!(outcome, Ok(Accepted::New(_)))));
    // Windows alone know these; and where a window was lost, the table does.
    DB::run(&mut world.session().await, &format!("DELETE FROM {}", world.table("_windows"))).await.unwrap();
    let inbox = world.builder().identify(position()).build().await.unwrap();
    let ended = inbox.accept_batch(&[same(0), same(1), same(2)]).await;
    assert!(matches!(ended.outcomes[1], Ok(Accepted::Duplicate(_))));
    new_id(&ended.outcomes[2]);
    assert_eq!(world.count("", "1 = 1").await, 3);
}
}

everywhere! {
/// Identities that say nothing are nobody's; odd ones are told apart, however alike they look.
async fn f29_odd_identities_are_refused_or_told_apart<DB>() {
    let world = World::<DB>::new().await;
    let inbox = world.inbox().await;
    let at = |offset| Parts::new("orders").at(0, offset).payload("x");
    let empty = [at(0).header("id", ""), at(1).null_header("id"), at(2).header("other", "7"), at(3).header("id", vec![b'x'; 100_000])];
    let ended = inbox.accept_batch(&empty).await;
    assert!(ended.outcomes.iter().all(|outcome| matches!(outcome, Err(AcceptError::Identity { .. }))), "{ended:?}");
    assert!(ended.commits.is_empty());
    let odd: [&[u8]; 12] = [b"a", b"A", b"a ", b"a\0", b"\0", b"\0\0", b"\xff", b"\xff\xfe", "\u{e9}".as_bytes(), "e\u{301}".as_bytes(), b"'; --", b"%s"];
    let batch: Vec<_> = odd.iter().zip(0..).map(|(id, offset)| Parts::new("odd").at(0, offset).payload("x").header("id", *id)).collect();
    let ended = inbox.accept_batch(&batch).await;
    let ids: std::collections::BTreeSet<_> = ended.outcomes.iter().map(new_id).collect();
    assert_eq!(ids.len(), odd.len());
    let again: Vec<_> = batch.iter().zip(0..).map(|(message, offset)| message.clone().at(1, offset)).collect();
    let ended = inbox.accept_batch(&again).await;
    for (outcome, id) in ended.outcomes.iter().zip(&ids) {
        assert!(matches!(outcome, Ok(Accepted::Duplicate(of)) if of == id), "{outcome:?}");
    }
    // Keys alike: an empty one is a key, and none is not.
    let keyed = [Parts::new("keys").at(0, 0).header("id", "k0").key(""), Parts::new("keys").at(0, 1).header("id", "k1"),
        Parts::new("keys").at(0, 2).header("id", "k2").key("\0"), Parts::new("keys").at(1, 0).header("id", "k3").key(""),
        Parts::new("keys").at(1, 1).header("id", "k4")];
    assert!(inbox.accept_batch(&keyed).await.outcomes.iter().all(Result::is_ok));
    let lanes = format!("SELECT COUNT(DISTINCT lane) FROM {} WHERE topic = 'keys'", world.table(""));
    assert_eq!(DB::number(&mut world.session().await, &lanes).await.unwrap(), 4, "one key, none in either partition, another key");
}
}
