//! By key: never two at once, never out of order, and one that fails stops nobody else.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::{End, Ground, How, LONG, READY, Row, all, by_key, failed};
use crate::base::everywhere;
use crate::inbox::queue::{FAR, behind};

fn lanes(count: i64, lanes: i64) -> Vec<Row> {
    (0..count).map(|n| Row { lane: n % lanes * 1000, ..READY }).collect()
}

everywhere! {
/// Fails where a taker does not wait for the one before, or does not look at what is in others' hands.
async fn order_holds_across_takers<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &lanes(240, 5)).await;
    let order: Mutex<HashMap<i64, Vec<i64>>> = Mutex::default();
    let held: Mutex<HashMap<i64, i64>> = Mutex::default();
    let takers = (0..4).map(|_| async {
        loop {
            let take = ground.core().take(&by_key(9)).await.unwrap();
            let Some(run) = take.run else {
                if ground.count("_open", "1 = 1").await == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
                continue;
            };
            for taken in &run.taken {
                let other = held.lock().unwrap().insert(taken.lane, run.number);
                assert!(other.is_none_or(|other| other == run.number), "two runs have one lane");
            }
            let mut ends = Vec::new();
            let mut stopped = Vec::new();
            for (at, taken) in run.taken.iter().enumerate() {
                let how = if stopped.contains(&taken.lane) {
                    How::Released
                } else if taken.id % 7 == 0 && taken.attempt == 1 {
                    stopped.push(taken.lane);
                    failed(Duration::from_millis(2))
                } else {
                    How::Succeeded
                };
                ends.push(End { at, how });
            }
            {
                let mut order = order.lock().unwrap();
                for end in ends.iter().filter(|end| matches!(end.how, How::Succeeded)) {
                    order.entry(run.taken[end.at].lane).or_default().push(run.taken[end.at].id);
                }
                for taken in &run.taken {
                    held.lock().unwrap().remove(&taken.lane);
                }
            }
            ground.handle(&run, &ends).await.unwrap();
        }
    });
    futures_util::future::join_all(takers).await;
    ground.all_done(240).await;
    let order = order.into_inner().unwrap();
    assert_eq!(order.len(), 5);
    for (lane, ids) in order {
        assert_eq!(ids.len(), 48, "lane {lane}");
        assert!(ids.is_sorted(), "{}: lane {lane}: {ids:?}", DB::KIND);
    }
}
}

everywhere! {
/// Thousands wait behind one that fails: they are out of the way at once, and worked in order when it succeeds.
async fn a_hot_key_that_fails_stops_nobody<DB>() {
    let ground = Ground::<DB>::new().await;
    const HOT: i64 = -77;
    let mut rows = vec![Row { lane: HOT, ..READY }; 2500];
    rows.extend((0..300).map(|n| Row { lane: n, ..READY }));
    ground.seed(0, &rows).await;
    let run = ground.run_of(&by_key(1)).await;
    assert_eq!(run.taken[0].id, ground.id(0));
    ground.handle(&run, &all(&run, failed(LONG))).await.unwrap();
    // The others come at once, all of them.
    let run = ground.run_of(&by_key(512)).await;
    assert_eq!(run.taken.len(), 300);
    assert!(run.taken.iter().all(|taken| taken.lane != HOT));
    ground.succeed(&run).await;
    assert_eq!(ground.count("_open", "lot = 0").await, 0, "nobody comes across those that wait");
    assert_eq!(ground.count("_open", &format!("lot = 1 AND run = 0 AND turn >= {}", FAR)).await, 2499);
    let take = ground.core().take(&by_key(512)).await.unwrap();
    assert!(take.run.is_none() && take.due_in.unwrap() > Duration::from_secs(300));
    assert_eq!(ground.core().sweep(&crate::Retry::default()).await.unwrap().woken, 0, "they wait for the first");
    // Its time comes, and with it theirs.
    ground.run(&format!("UPDATE {} SET turn = 1 WHERE id = {}", ground.core().tables.open, ground.id(0))).await;
    let mut ids = Vec::new();
    while let Some(run) = ground.core().take(&by_key(400)).await.unwrap().run {
        ids.extend(run.taken.iter().map(|taken| taken.id));
        ground.succeed(&run).await;
    }
    assert_eq!(ids, (0..2500).map(|n| ground.id(n)).collect::<Vec<_>>());
    ground.all_done(2800).await;
}
}

everywhere! {
/// What waits behind one that went in a way nobody told of is found by the sweep.
async fn the_forgotten_are_woken<DB>() {
    let ground = Ground::<DB>::new().await;
    let row = |lane: i64| Row { lane, lot: 1, turn: behind(lane), priority: 0 };
    ground.seed(0, &[READY, row(0), row(0), row(4000), row(-4000)]).await;
    let swept = ground.core().sweep(&crate::Retry::default()).await.unwrap();
    assert_eq!(swept.woken, 2, "all but those behind one that stands");
    assert_eq!(ground.count("_open", "lot = 0").await, 3);
    let run = ground.run_of(&by_key(10)).await;
    assert_eq!(run.taken.len(), 3);
    ground.succeed(&run).await;
    let run = ground.run_of(&by_key(10)).await;
    assert_eq!(run.taken.len(), 2);
    ground.succeed(&run).await;
    ground.all_done(5).await;
}
}

everywhere! {
/// An earlier message that was brought back waits for a later one that somebody has in hand.
async fn one_that_was_brought_back_waits_its_turn<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(1, &[READY]).await;
    let later = ground.run_of(&by_key(5)).await;
    ground.seed(0, &[READY]).await;
    ground.run(&format!("UPDATE {} SET generation = 2 WHERE id = {}", ground.core().tables.open, ground.id(0))).await;
    assert!(ground.core().take(&by_key(5)).await.unwrap().run.is_none());
    ground.succeed(&later).await;
    let run = ground.run_of(&by_key(5)).await;
    assert_eq!(run.taken[0].id, ground.id(0));
    ground.succeed(&run).await;
}
}

everywhere! {
/// A later one of a key does not overtake because it is more urgent.
async fn urgency_does_not_break_a_key<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[
        Row { turn: 9, priority: 9, ..READY },
        Row { turn: 1, priority: 1, ..READY },
        Row { lane: 5, turn: 4, priority: 4, ..READY },
    ]).await;
    let run = ground.run_of(&by_key(1)).await;
    let first = run.taken[0].id;
    assert!(first == ground.id(2) || first == ground.id(0), "{first}");
    ground.succeed(&run).await;
    let mut ids = Vec::new();
    while let Some(run) = ground.core().take(&by_key(1)).await.unwrap().run {
        ids.push(run.taken[0].id);
        ground.succeed(&run).await;
    }
    let lane: Vec<i64> = ids.into_iter().filter(|id| *id != ground.id(2)).collect();
    assert!(lane.is_sorted(), "{lane:?}");
    ground.all_done(3).await;
}
}
