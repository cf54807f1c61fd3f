//! Each move counts, and is made only by whoever may.

use std::time::Duration;

use super::{End, Ground, How, LONG, READY, all, ask, failed};
use crate::base::everywhere;
use crate::inbox::queue::list::{self, Ending};
use crate::inbox::queue::{Ask, Ended};
use crate::inbox::rules::Class;
use crate::level::Level;
use crate::store::sql::Fault;

everywhere! {
async fn every_end_is_written<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 5]).await;
    let run = ground.run_of(&ask(5)).await;
    let ends = [
        How::Succeeded,
        failed(Duration::from_secs(60)),
        How::Dead { class: Class::Fatal, text: "x\0y".repeat(1000) },
        How::Released,
        How::Failed { class: Class::Unavailable, text: "down".into(), retry_in: LONG },
    ];
    let ends: Vec<End> = ends.into_iter().enumerate().map(|(at, how)| End { at, how }).collect();
    ground.handle(&run, &ends).await.unwrap();
    let id = |n| ground.id(n);
    let core = ground.core();
    let clock = core.clock();
    assert_eq!(ground.count("_open", "1 = 1").await, 4);
    assert_eq!(ground.count("_open", &format!("id = {}", id(0))).await, 0);
    let due = format!("lot = 1 AND attempts = 1 AND run = 0 AND turn > {clock} + 30000 AND turn <= {clock} + 60000");
    assert_eq!(ground.count("_open", &format!("id = {} AND {due}", id(1))).await, 1);
    assert_eq!(ground.count("_open", &format!("id = {} AND lot = 2 AND run = 0 AND turn <= {clock}", id(2))).await, 1);
    assert_eq!(ground.count("_open", &format!("id = {} AND lot = 0 AND run = 0 AND attempts = 0", id(3))).await, 1);
    assert_eq!(ground.count("_open", &format!("id = {} AND lot = 1 AND attempts = 0", id(4))).await, 1);
    assert_eq!(ground.count("_attempts", &format!("run = {} AND attempt = 1 AND owner = 'a worker'", run.number)).await, 3);
    assert_eq!(ground.count("_attempts", &format!("class = 1 AND id = {} AND LENGTH(text) <= 2048", id(2))).await, 1);
    let row = core.run_row(run.number, "").await.unwrap().unwrap();
    assert!(row.ended.is_some());
    let done = list::unpack(&row.done).unwrap();
    let codes: Vec<Option<Ending>> = done.iter().map(|entry| Ending::of(entry.value)).collect();
    let wanted = [Ending::Succeeded, Ending::Failed, Ending::Dead, Ending::Released, Ending::Failed];
    assert_eq!(codes, wanted.map(Some));
    assert!(core.ended_by(&run, &[0, 1, 2, 3, 4]).await.unwrap());
}
}

everywhere! {
/// Fails where a count is not looked at.
async fn a_message_that_is_held_no_longer_stops_all<DB>() {
    let ground = Ground::<DB>::new().await;
    let ends = [How::Succeeded, failed(LONG), How::Dead { class: Class::Fatal, text: String::new() }, How::Released];
    for (n, how) in ends.into_iter().enumerate() {
        let first = 10 * n as i64;
        ground.seed(first, &[READY; 3]).await;
        let run = ground.run_of(&ask(3)).await;
        let open = &ground.core().tables.open;
        ground.run(&format!("UPDATE {open} SET run = 1 WHERE id = {}", ground.id(first + 1))).await;
        let fault = ground.handle(&run, &all(&run, how)).await.unwrap_err();
        assert!(matches!(fault, Fault::Contended(_)), "{fault:?}");
        assert_eq!(ground.count("_open", &format!("run = {} AND attempts = 1 AND lot = 0", run.number)).await, 2);
        assert_eq!(ground.count("_effects", "1 = 1").await, 0);
        assert_eq!(ground.count("_attempts", "1 = 1").await, 0);
        assert_eq!(ground.count("_runs", &format!("run = {} AND ended IS NULL AND done IS NULL", run.number)).await, 1);
        ground.run(&format!("DELETE FROM {open}")).await;
    }
}
}

everywhere! {
async fn a_run_ends_bit_by_bit<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 4]).await;
    let core = ground.core();
    let run = ground.run_of(&Ask { level: Level::L1, ..ask(4) }).await;
    let end = |at, how| [End { at, how }];
    assert_eq!(core.conclude(&run, &end(2, How::Succeeded), false).await.unwrap(), [Ended::Written]);
    assert!(core.ended_by(&run, &[2]).await.unwrap());
    assert!(!core.ended_by(&run, &[2, 0]).await.unwrap());
    assert!(core.prolong(&run).await.unwrap());
    assert_eq!(core.marked(&run).await.unwrap(), Some(0));
    // Again: as after a reply that was lost.
    assert_eq!(core.conclude(&run, &end(2, How::Succeeded), false).await.unwrap(), [Ended::Written]);
    assert_eq!(core.conclude(&run, &end(0, failed(LONG)), false).await.unwrap(), [Ended::Written]);
    assert_eq!(core.conclude(&run, &end(0, failed(LONG)), false).await.unwrap(), [Ended::Written]);
    assert_eq!(ground.count("_attempts", "1 = 1").await, 1);
    let rest: Vec<End> = [1, 3].map(|at| End { at, how: How::Succeeded }).into();
    assert_eq!(core.conclude(&run, &rest, true).await.unwrap(), [Ended::Written; 2]);
    assert_eq!(core.conclude(&run, &rest, true).await.unwrap(), [Ended::Written; 2]);
    assert!(!core.prolong(&run).await.unwrap());
    assert_eq!(core.marked(&run).await.unwrap(), None);
    let row = core.run_row(run.number, "").await.unwrap().unwrap();
    assert_eq!(list::unpack(&row.done).unwrap().len(), 4);
    assert_eq!(ground.count("_open", "1 = 1").await, 1);
    assert_eq!(ground.count("_runs", "ended IS NULL").await, 0);
}
}

everywhere! {
/// What is written together with effects tells how far they came.
async fn a_mark_commits_with_the_effects<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY]).await;
    let core = ground.core();
    let run = ground.run_of(&ask(1)).await;
    for (mark, keep) in [(5, true), (6, false)] {
        let mut tx = core.begin().await.unwrap();
        assert!(core.hold(tx.conn().unwrap(), &run, mark).await.unwrap());
        match keep {
            true => assert!(matches!(core.commit(tx).await, crate::transaction::Committed::Yes)),
            false => core.rollback(tx).await,
        }
        assert_eq!(core.marked(&run).await.unwrap(), Some(5));
    }
    ground.succeed(&run).await;
    let mut tx = core.begin().await.unwrap();
    assert!(!core.hold(tx.conn().unwrap(), &run, 7).await.unwrap());
    core.rollback(tx).await;
}
}
