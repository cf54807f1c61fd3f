//! What is over is forgotten, what is open never, and work goes on meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hapax::inbox::{State, Which};
use hapax::store::Retention;

use crate::base::{Base, everywhere};
use crate::operate_desk::{Desk, Done, by, clock};
use crate::world::World;

const MINUTE: i64 = 60_000;

/// An inbox that keeps what succeeded for ten minutes, and what is dead for twenty.
async fn desk<DB: Base>() -> Desk<DB> {
    let world = World::<DB>::new().await;
    let keep = |minutes: u64| Duration::from_secs(60 * minutes);
    let retention = Retention::default().succeeded(keep(10)).dead(keep(20)).unsettled(Duration::ZERO);
    let inbox = world.builder().with_retention(retention).build().await.unwrap();
    Desk::over(world, inbox).await
}

async fn left<DB: Base>(desk: &Desk<DB>) -> BTreeSet<i64> {
    desk.inbox.list(State::ALL).limit(10_000).await.unwrap().iter().map(|message| desk.n(message.id)).collect()
}

everywhere! {
    async fn what_is_past_its_time_leaves_and_nothing_else<DB>() {
        let mut desk = desk::<DB>().await;
        desk.accept(1..31).await;
        let now = desk.now().await;
        desk.succeed(&[1, 2, 3], 11 * MINUTE).await;
        desk.succeed(&[4, 5], 9 * MINUTE).await;
        desk.die(6, now - 21 * MINUTE).await;
        desk.die(7, now - 19 * MINUTE).await;
        // However old, what is open stays.
        let old = desk.take(&[8, 9], -60 * MINUTE).await;
        desk.fail(10, hapax::inbox::Class::Retryable, now - 100 * MINUTE).await;
        // Succeeded, and brought back: once to wait, once to have succeeded again a moment ago.
        desk.succeed(&[11, 12], 11 * MINUTE).await;
        desk.inbox.replay(Which::ids([desk.id(11), desk.id(12)]), by()).await.unwrap();
        desk.succeed(&[12], MINUTE).await;
        // Failed in one run, succeeded in another, both long ago. And late.
        let run = desk.take(&[13, 14], MINUTE).await;
        desk.end(run, &[(13, Done::Failed), (14, Done::Late)], 30 * MINUTE).await;
        desk.succeed(&[13], 29 * MINUTE).await;
        desk.inbox.edit_and_requeue(desk.id(7), "seven", by()).await.unwrap();
        desk.die(7, now - 21 * MINUTE).await;

        let purged = desk.inbox.purge(10_000).await.unwrap();
        assert_eq!((purged.removed, purged.more), (7, false));
        let gone = BTreeSet::from([1, 2, 3, 6, 7, 13, 14]);
        assert_eq!(left(&desk).await, (1..31).filter(|n| !gone.contains(n)).collect());
        for table in ["@_open", "@_attempts", "@_edits"] {
            let orphans = format!("SELECT COUNT(*) FROM {table} WHERE id NOT IN (SELECT id FROM @ )");
            assert_eq!(desk.count(&orphans).await, 0, "{table}");
        }
        // Their runs are gone too, and those of others stay.
        assert_eq!(desk.count(&format!("SELECT COUNT(*) FROM @_runs WHERE ended < {} - {}", clock::<DB>(), 10 * MINUTE)).await, 0);
        assert_eq!(desk.count(&format!("SELECT COUNT(*) FROM @_runs WHERE run = {old}")).await, 1);
        assert_eq!(desk.count("SELECT COUNT(*) FROM @_runs ").await, 3);
        assert_eq!(desk.inbox.purge(10_000).await.unwrap().removed, 0);
        // What was brought back leaves in its turn.
        desk.run(&format!("UPDATE @_runs SET ended = {} - {} WHERE ended IS NOT NULL", clock::<DB>(), 11 * MINUTE)).await;
        assert_eq!(desk.inbox.purge(10_000).await.unwrap().removed, 3);
        assert!(left(&desk).await.contains(&11) && !left(&desk).await.contains(&12));
        let census = desk.inbox.census().await.unwrap();
        assert_eq!((census.succeeded, census.dead, census.processing, census.failed), (0, 0, 2, 1));
    }
}

everywhere! {
    async fn a_purge_stops_where_it_is_told_and_goes_on_later<DB>() {
        let mut desk = desk::<DB>().await;
        desk.accept(1..1501).await;
        let now = desk.now().await;
        desk.run(&format!("UPDATE @_open SET lot = 2, turn = {} WHERE id % 3 = 0 ", now - 21 * MINUTE)).await;
        let dead = desk.count("SELECT COUNT(*) FROM @_open WHERE lot = 2").await;
        let open: BTreeSet<i64> = desk.inbox.list(State::Received).limit(10_000).await.unwrap().iter().map(|m| desk.n(m.id)).collect();
        let open: Vec<i64> = open.into_iter().collect();
        for some in open.chunks(300) {
            desk.succeed(some, 11 * MINUTE).await;
        }
        let (mut removed, mut calls) = (0, 0);
        loop {
            let purged = desk.inbox.purge(100).await.unwrap();
            // A run leaves as a whole.
            assert!(purged.removed <= 100 + 300, "{}", purged.removed);
            (removed, calls) = (removed + purged.removed, calls + 1);
            if !purged.more {
                break;
            }
            assert!(calls < 100);
        }
        assert_eq!((removed, desk.inbox.purge(0).await.unwrap().removed), (1500, 0));
        assert!(calls > 5 && dead > 400, "{calls} {dead}");
        assert_eq!(desk.count("SELECT COUNT(*) FROM @ ").await + desk.count("SELECT COUNT(*) FROM @_runs ").await, 0);
    }
}

everywhere! {
    async fn work_goes_on_while_what_is_over_is_forgotten<DB>() {
        let mut desk = desk::<DB>().await;
        // A backlog, behind much that is past its time.
        desk.accept(1..3001).await;
        let now = desk.now().await;
        let low = desk.id(0).0;
        desk.run(&format!("UPDATE @_open SET lot = 2, turn = {} WHERE id - {low} > 300 AND id - {low} <= 1500 ", now - 21 * MINUTE)).await;
        let old: Vec<i64> = (1501..3001).collect();
        for some in old.chunks(100) {
            desk.succeed(some, 11 * MINUTE).await;
        }
        let over = Arc::new(AtomicBool::new(false));
        let purges: Vec<_> = (0..2)
            .map(|_| {
                let (inbox, over) = (desk.inbox.clone(), Arc::clone(&over));
                tokio::spawn(async move {
                    let (mut removed, mut calls) = (0, 0);
                    loop {
                        let purged = inbox.purge(64).await.unwrap();
                        (removed, calls) = (removed + purged.removed, calls + 1);
                        if !purged.more && over.load(Ordering::Acquire) {
                            return (removed, calls);
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        // Work as a worker does it, with a connection of its own; an operator is at it too.
        for n in 1..41 {
            desk.succeed(&[3 * n - 2, 3 * n - 1], 0).await;
            desk.inbox.skip(desk.id(3 * n), by()).await.unwrap();
        }
        over.store(true, Ordering::Release);
        let (mut removed, mut calls) = (0, 0);
        for purge in purges {
            let (some, asked) = purge.await.unwrap();
            (removed, calls) = (removed + some, calls + asked);
        }
        assert_eq!(removed, 2700, "in {calls} calls");
        assert_eq!(left(&desk).await, (1..301).collect());
        let census = desk.inbox.census().await.unwrap();
        assert_eq!((census.succeeded, census.dead), (80, 40));
    }
}
