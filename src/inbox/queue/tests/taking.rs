//! Who gets what.

use std::time::Duration;

use super::{Ask, End, Ground, How, READY, Row, all, ask, by_key, failed};
use crate::base::everywhere;
use crate::identity::OnMissing;
use crate::level::Level;
use crate::message::{MessageView, Parts};

everywhere! {
/// Fails where the mark is not conditional on nobody holding the row.
async fn two_takers_never_get_one_message<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 300]).await;
    let takers = (0..4).map(|_| async {
        while let Some(run) = ground.take(7).await.run {
            assert!(run.taken.iter().all(|taken| taken.attempt == 1 && taken.generation == 1));
            ground.succeed(&run).await;
        }
    });
    futures_util::future::join_all(takers).await;
    ground.all_done(300).await;
}
}

everywhere! {
async fn attempts_count_before_a_handler_runs<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 3]).await;
    let run = ground.run_of(&ask(2)).await;
    // Nothing but the take has happened.
    assert_eq!(ground.count("_open", &format!("run = {} AND attempts = 1", run.number)).await, 2);
    assert_eq!(ground.count("_open", "run = 0 AND attempts = 0").await, 1);
    assert_eq!(ground.count("_runs", &format!("run = {} AND ended IS NULL AND messages = 2", run.number)).await, 1);
    let message = &run.taken[1].message;
    assert_eq!((message.topic(), message.partition(), message.offset()), ("orders", 3, 1));
    assert_eq!(message.payload(), Some(&b"payload 1"[..]));
    assert_eq!((message.attempt(), message.generation(), message.id().0), (1, 1, run.taken[1].id));
}
}

everywhere! {
async fn the_urgent_and_the_due_come_first<DB>() {
    let ground = Ground::<DB>::new().await;
    let now = DB::number(&mut ground.world.session().await, &format!("SELECT {}", ground.core().clock())).await.unwrap();
    let waits = |turn, priority| Row { lot: 1, turn, priority, ..READY };
    ground.seed(0, &[
        Row { turn: 5, priority: 5, ..READY },
        Row { turn: 1, priority: 1, ..READY },
        Row { turn: 5, priority: 5, ..READY },
        waits(now - 1000, 0),
        waits(now + 3_600_000, 0),
    ]).await;
    let run = ground.run_of(&ask(10)).await;
    let order: Vec<i64> = run.taken.iter().map(|taken| taken.id - ground.id(0)).collect();
    assert_eq!(order, [3, 1, 0, 2]);
    // The one that waits for a time is not there, and it is known when to look again.
    let take = ground.take(10).await;
    assert!(take.run.is_none() && !take.paused);
    let due_in = take.due_in.unwrap();
    assert!(due_in > Duration::from_secs(3000) && due_in <= Duration::from_secs(3600), "{due_in:?}");
}
}

everywhere! {
/// Whoever looks on from where the last look ended misses neither what is more urgent nor what came back. Fails where the gate is not asked for the first,
/// or the beginning is not looked at again for the second.
async fn what_stands_before_the_front_is_found<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 40]).await;
    let first = ground.run_of(&ask(5)).await;
    ground.seed(40, &[Row { turn: -1, priority: -1, ..READY }]).await;
    let second = ground.run_of(&ask(5)).await;
    assert_eq!(second.taken[0].id, ground.id(40), "the urgent one");
    ground.handle(&first, &all(&first, How::Released)).await.unwrap();
    ground.succeed(&second).await;
    let mut taken = 0;
    while let Some(run) = ground.take(5).await.run {
        taken += run.taken.len();
        ground.succeed(&run).await;
    }
    assert_eq!(taken, 36);
    ground.all_done(41).await;
}
}

everywhere! {
async fn a_paused_inbox_gives_nothing<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY]).await;
    for (paused, wanted) in [(1, 0), (0, 1)] {
        ground.run(&format!("UPDATE {} SET paused = {paused}", ground.core().tables.handlers)).await;
        for ask in [ask(5), by_key(5)] {
            let take = ground.core().take(&ask).await.unwrap();
            assert_eq!((take.run.is_some(), take.paused), (wanted == 1, paused == 1));
            if let Some(run) = take.run {
                ground.handle(&run, &all(&run, How::Released)).await.unwrap();
            }
        }
    }
    // What was given back has burnt nothing.
    assert_eq!(ground.count("_open", "run = 0 AND attempts = 0 AND lot = 0").await, 1);
}
}

everywhere! {
async fn what_is_to_be_alone_is<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 4]).await;
    ground.run(&format!("UPDATE {} SET alone = 1 WHERE id = {}", ground.core().tables.open, ground.id(1))).await;
    let mut sizes = Vec::new();
    while let Some(run) = ground.take(10).await.run {
        sizes.push((run.taken.len(), run.taken[0].alone));
        ground.succeed(&run).await;
    }
    assert_eq!(sizes, [(3, false), (1, true)]);
    ground.all_done(4).await;
}
}

everywhere! {
/// An operator's payload holds from its generation on.
async fn an_edited_payload_is_handed_out<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 2]).await;
    let tables = &ground.core().tables;
    ground.run(&format!("UPDATE {} SET generation = 3 WHERE id = {}", tables.open, ground.id(0))).await;
    for (generation, payload) in [(2, "61"), (3, "62"), (4, "63")] {
        let hex = match DB::KIND {
            "postgres" => format!("'\\x{payload}'::bytea"),
            _ => format!("x'{payload}'"),
        };
        ground.run(&format!(
            "INSERT INTO {} (id, time, inbox, generation, who, why, payload) VALUES ({}, 1, {}, {generation}, 'ada', '', {hex})",
            tables.edits, ground.id(0), ground.core().number
        )).await;
    }
    let run = ground.run_of(&ask(10)).await;
    assert_eq!(run.taken[0].message.payload(), Some(&b"b"[..]));
    assert_eq!(run.taken[0].message.generation(), 3);
    assert_eq!(run.taken[0].message.form(), crate::inbox::Form::Edited);
    assert_eq!(run.taken[1].message.payload(), Some(&b"payload 1"[..]));
}
}

everywhere! {
/// Whatever a message's parts are, and whoever reads them: with the open rows, or by their ids.
async fn messages_come_out_as_they_went_in<DB>() {
    let topics = ["orders", "with, commas; and 'quotes'", "two\nlines %d", "straße"];
    let parts: [Option<Vec<u8>>; 6] =
        [None, Some(vec![]), Some(b"',\0\n\xff%s".to_vec()), Some(vec![1; 2048]), Some(vec![2; 2049]), Some(vec![3; 70_000])];
    let messages: Vec<Parts> = (0..1100_usize)
        .map(|n| {
            // Most are as most are.
            let part = |by: usize| if n % 7 == 0 { parts[n / 7 / by % 6].clone() } else { Some(vec![b'p'; 20]) };
            let mut message = Parts::new(topics[n % 4]).at(0, n as i64);
            if n % 3 > 0 {
                message = message.timestamp(n as i64);
            }
            if let Some(key) = part(1) {
                message = message.key(key);
            }
            if let Some(payload) = part(6) {
                message = message.payload(payload);
            }
            match part(2) {
                None => message,
                Some(value) => message.header("some", "").header("other", value),
            }
        })
        .collect();
    for most in [Ask { most: 1100, ..ask(1) }, by_key(1100)] {
        let mut ground = Ground::<DB>::new().await;
        ground.inbox = ground.world.builder().on_missing(OnMissing::HandleWithoutDedup).build().await.unwrap();
        let accepted = ground.inbox.accept_batch(&messages).await;
        assert!(accepted.outcomes.iter().all(Result::is_ok), "{:?}", accepted.outcomes.iter().find(|one| one.is_err()));
        let mut met = 0;
        while let Some(run) = ground.core().take(&most).await.unwrap().run {
            for taken in &run.taken {
                let (came, went) = (&taken.message, &messages[usize::try_from(taken.message.offset()).unwrap()]);
                assert_eq!((came.topic(), came.partition()), (went.topic(), went.partition()));
                assert_eq!(came.timestamp_ms(), went.timestamp_ms());
                assert!(came.key() == went.key() && came.payload() == went.payload(), "{came:?}");
                let headers = |message: &dyn MessageView| {
                    let mut all = Vec::new();
                    message.for_each_header(&mut |name, value| all.push((name.to_owned(), value.map(<[u8]>::to_vec))));
                    all
                };
                assert!(headers(came) == headers(went), "{came:?}");
                met += 1;
            }
            ground.succeed(&run).await;
        }
        assert_eq!(met, messages.len());
        ground.all_done(1100).await;
    }
}
}

everywhere! {
/// Takers at level L1, each message in a run of its own, some failing: each succeeds once.
async fn failing_ones_come_back<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 60]).await;
    let takers = (0..3).map(|_| async {
        loop {
            let take = ground.core().take(&Ask { level: Level::L1, ..ask(8) }).await.unwrap();
            let Some(run) = take.run else {
                if take.due_in.is_none() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            };
            let ends: Vec<End> = (0..run.taken.len())
                .map(|at| {
                    let fails = run.taken[at].id % 3 == 0 && run.taken[at].attempt < 3;
                    End { at, how: if fails { failed(Duration::from_millis(1)) } else { How::Succeeded } }
                })
                .collect();
            ground.handle(&run, &ends).await.unwrap();
        }
    });
    futures_util::future::join_all(takers).await;
    // Somebody may have stopped while another had the last ones in hand: they are done by now.
    while let Some(run) = ground.take(60).await.run {
        ground.succeed(&run).await;
    }
    ground.all_done(60).await;
    assert_eq!(ground.count("_attempts", "class = 0").await, 40);
}
}
