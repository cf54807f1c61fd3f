//! Runs that are taken over.

use std::time::Duration;

use super::{End, Ground, How, LONG, READY, all, ask, failed};
use crate::base::{everywhere, everywhere_served};
use crate::inbox::queue::list::{self, Ending};
use crate::inbox::queue::{Ask, Ended};
use crate::level::Level;
use crate::retry::Retry;
use crate::store::sql::Fault;

fn lost(most: usize, level: Level) -> Ask {
    // Over at once.
    Ask { lease: Duration::ZERO, level, ..ask(most) }
}

/// Sweeps until a run was lost.
async fn sweep<DB: crate::base::Base>(ground: &Ground<DB>, retry: &Retry) -> (u64, u64) {
    loop {
        let swept = ground.core().sweep(retry).await.unwrap();
        if swept.runs > 0 {
            assert_eq!(swept.runs, 1);
            return (swept.lost, swept.dead);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

everywhere! {
/// Fails where a lost attempt costs nothing, comes back with others, or never dies.
async fn lost_runs_burn_attempts<DB>() {
    let ground = Ground::<DB>::new().await;
    let retry = Retry::fixed(Duration::ZERO).attempts(2);
    ground.seed(0, &[READY; 3]).await;
    assert_eq!(ground.run_of(&lost(10, Level::L2)).await.taken.len(), 3);
    assert_eq!(sweep(&ground, &retry).await, (3, 0));
    assert_eq!(ground.count("_open", "lot = 1 AND run = 0 AND attempts = 1 AND alone = 1").await, 3);
    assert_eq!(ground.count("_attempts", "class = 3 AND attempt = 1").await, 3);
    // One by one, and the second time is the last.
    let run = ground.run_of(&lost(10, Level::L2)).await;
    assert_eq!((run.taken.len(), run.taken[0].attempt), (1, 2));
    assert_eq!(sweep(&ground, &retry).await, (1, 1));
    assert_eq!(ground.count("_open", &format!("lot = 2 AND id = {} AND run = 0", run.taken[0].id)).await, 1);
    for _ in 0..2 {
        let run = ground.run_of(&ask(10)).await;
        assert_eq!(run.taken.len(), 1);
        ground.succeed(&run).await;
    }
    assert!(ground.take(10).await.run.is_none());
    assert_eq!(ground.core().sweep(&retry).await.unwrap(), Default::default());
    assert_eq!(ground.count("_effects", "1 = 1").await, 2);
}
}

everywhere! {
/// Fails where a token is not asked for.
async fn a_run_that_was_taken_over_is_over<DB>() {
    let ground = Ground::<DB>::new().await;
    let core = ground.core();
    ground.seed(0, &[READY; 4]).await;
    let run = ground.run_of(&lost(10, Level::L1)).await;
    // One of them ended in time.
    assert_eq!(core.conclude(&run, &[End { at: 0, how: How::Succeeded }], false).await.unwrap(), [Ended::Written]);
    assert_eq!(sweep(&ground, &Retry::fixed(LONG)).await, (3, 0));
    assert!(!core.prolong(&run).await.unwrap());
    let fault = ground.handle(&run, &all(&run, How::Succeeded)).await.unwrap_err();
    assert!(matches!(fault, Fault::Contended(_)), "{fault:?}");
    let mut tx = core.begin().await.unwrap();
    assert!(!core.hold(tx.conn().unwrap(), &run, 1).await.unwrap());
    let fault = core.finish(tx.conn().unwrap(), &run, &[End { at: 1, how: How::Released }], true).await.unwrap_err();
    assert!(matches!(fault, Fault::Contended(_)), "{fault:?}");
    core.rollback(tx).await;
    let ends: Vec<End> = vec![
        End { at: 0, how: How::Succeeded },
        End { at: 1, how: failed(Duration::ZERO) },
        End { at: 2, how: How::Released },
        End { at: 3, how: How::Succeeded },
    ];
    let wanted = [Ended::Written, Ended::Stale, Ended::Stale, Ended::Late];
    assert_eq!(core.conclude(&run, &ends, true).await.unwrap(), wanted);
    assert_eq!(core.conclude(&run, &ends, true).await.unwrap(), wanted, "the same when asked again");
    // Success is a fact, and nothing else was written.
    assert_eq!(ground.count("_open", "lot = 1 AND attempts = 1 AND alone = 1").await, 2);
    assert_eq!(ground.count("_open", "1 = 1").await, 2);
    assert_eq!(ground.count("_attempts", "class <> 3").await, 0);
    let row = core.run_row(run.number, "").await.unwrap().unwrap();
    let done = list::unpack(&row.done).unwrap();
    let done: Vec<(i64, Option<Ending>)> = done.iter().map(|entry| (entry.id, Ending::of(entry.value))).collect();
    assert_eq!(done, [(ground.id(0), Some(Ending::Succeeded)), (ground.id(3), Some(Ending::Late))]);
}
}

everywhere! {
/// A success that comes late ends the message also where another run has it at the moment, but not where an operator began it anew.
async fn a_late_success_counts_in_its_generation<DB>() {
    let ground = Ground::<DB>::new().await;
    let core = ground.core();
    ground.seed(0, &[READY; 2]).await;
    let run = ground.run_of(&lost(10, Level::L1)).await;
    assert_eq!(sweep(&ground, &Retry::fixed(Duration::ZERO)).await, (2, 0));
    ground.run(&format!("UPDATE {} SET generation = 2 WHERE id = {}", core.tables.open, ground.id(1))).await;
    let other = ground.run_of(&Ask { level: Level::L1, ..ask(10) }).await;
    assert_eq!(other.taken[0].id, ground.id(0));
    let answers = core.conclude(&run, &all(&run, How::Succeeded), true).await.unwrap();
    assert_eq!(answers, [Ended::Late, Ended::Stale]);
    assert_eq!(ground.count("_open", "1 = 1").await, 1);
    // The other one's is a success too, and is told that it came second.
    assert_eq!(core.conclude(&other, &all(&other, How::Succeeded), true).await.unwrap(), [Ended::Late]);
    assert_eq!(ground.count("_runs", "ended IS NULL").await, 0);
}
}

everywhere! {
async fn two_sweepers_end_a_run_once<DB>() {
    let ground = Ground::<DB>::new().await;
    ground.seed(0, &[READY; 20]).await;
    for _ in 0..5 {
        ground.run_of(&lost(4, Level::L2)).await;
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    let retry = Retry::fixed(LONG);
    let sweeps = (0..3).map(|_| ground.core().sweep(&retry));
    let swept = futures_util::future::join_all(sweeps).await;
    let (runs, lost) = swept.iter().fold((0, 0), |(runs, lost), one| {
        let one = one.as_ref().unwrap();
        (runs + one.runs, lost + one.lost)
    });
    assert_eq!((runs, lost), (5, 20));
    assert_eq!(ground.count("_attempts", "class = 3").await, 20);
    assert_eq!(ground.count("_open", "attempts = 1 AND lot = 1").await, 20);
}
}

everywhere_served! {
/// A living transaction holds its run, whatever the lease says.
async fn who_works_in_a_transaction_is_left_alone<DB>() {
    let ground = Ground::<DB>::new().await;
    let core = ground.core();
    ground.seed(0, &[READY; 2]).await;
    let run = ground.run_of(&Ask { lease: Duration::ZERO, ..ask(10) }).await;
    let mut tx = core.begin().await.unwrap();
    assert!(core.hold(tx.conn().unwrap(), &run, 1).await.unwrap());
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(core.sweep(&Retry::default()).await.unwrap().runs, 0);
    core.finish(tx.conn().unwrap(), &run, &all(&run, How::Succeeded), true).await.unwrap();
    assert!(matches!(core.commit(tx).await, crate::transaction::Committed::Yes));
    assert_eq!(core.sweep(&Retry::default()).await.unwrap().runs, 0);
    assert_eq!(ground.count("_open", "1 = 1").await, 0);
}
}
