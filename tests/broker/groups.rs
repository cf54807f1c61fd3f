//! Members that join and leave.

use std::fs;
use std::time::Duration;

use crate::ground::{Ground, Protocol, by, by_each_protocol, by_each_protocol_and_order};
use crate::member::{Process, Task, Way};
use crate::support::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_member_joins_mid_work_and_the_other_leaves() {
    by_each_protocol_and_order(|protocol, way| async move {
        let ground = Ground::by(protocol, way, "join", 4).await;
        ground.produce("m", 1_000).await;
        // Slow until both have worked and one has left, and enough messages for that to take its time.
        let slow = |name| {
            let mut order = ground.order(name);
            order.slow = Duration::from_millis(50);
            // Only a rebalance and an end commit: what they forget is delivered again.
            order.commit_every = Duration::from_secs(3_600);
            order
        };
        let first = Task::start(slow("first"));
        ground.reach(20).await;
        let second = Task::start(slow("second"));
        eventually(PATIENCE, "the second works", async || ground.by_member("second") > 0).await;
        let first = first.stop().await;
        let (third, before) = (Task::start(ground.order("third")), ground.by_member("second"));
        eventually(PATIENCE, "the second goes on", async || ground.by_member("second") > before).await;
        fs::write(ground.folder().join("hurry"), "").unwrap();
        ground.reach(ground.produced()).await;
        let (second, third) = (second.stop().await, third.stop().await);
        // A last commit may be refused too, and then nobody is left to say it.
        let last = Task::start(ground.order("last"));
        ground.drained().await;
        last.stop().await;
        ground.assert_once();
        ground.assert_ordered();
        for summary in [&first, &second, &third] {
            assert!(summary.closed && summary.unsettled == 0, "{protocol:?}: {summary:?}");
        }
        // What is finished behind something that is not comes again, and by partition there is none. A classic broker refuses commits
        // for a moment of each rebalance: what they would have said comes again too.
        let all = [first, second, third];
        let refused: u64 = all.iter().map(|summary| summary.failed_commits).sum();
        let repeated: u64 = all.iter().map(|summary| summary.redelivered).sum();
        assert!(repeated == 0 || refused > 0 || way != Way::Partition, "{protocol:?}: {all:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_members_come_and_go_over_64_partitions() {
    by_each_protocol(|protocol| async move {
        // Another order for each, so that all are met.
        let way = match protocol {
            Protocol::Range => Way::Unordered,
            Protocol::CooperativeSticky => Way::Key,
            Protocol::Consumer => Way::Partition,
        };
        let ground = Ground::by(protocol, way, "many", 64).await;
        let mut members = Vec::new();
        let mut reports = Vec::new();
        // Four at a time, each of eight for a while; messages come all along.
        for turn in 0..8 {
            members.push(Task::start(ground.order(&format!("m{turn}"))));
            ground.produce(&format!("w{turn}"), 5).await;
            ground.reach(ground.produced()).await;
            if members.len() == 4 {
                reports.push(members.remove(0).stop().await);
            }
        }
        ground.drained().await;
        for member in members {
            reports.push(member.stop().await);
        }
        ground.assert_once();
        ground.assert_ordered();
        assert!(reports.iter().all(|report| report.closed && report.unsettled == 0 && report.left == 0), "{reports:?}");
        let workers = (0..8).filter(|turn| ground.by_member(&format!("m{turn}")) > 0).count();
        assert!(workers >= 4, "{protocol:?}: {workers} of the members had work");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_that_is_killed_has_its_partitions_back_and_nobody_else_is_disturbed() {
    by(&[Protocol::Range, Protocol::CooperativeSticky], |protocol| async move {
        let ground = Ground::new(protocol, "static", 4).await;
        let order = |name: &str| {
            let mut order = ground.order(name);
            order.store = ground.shared_store();
            order.lease = Duration::from_secs(2);
            // Nobody gets the partitions of the killed one by waiting for this.
            order
                .set("group.instance.id", name)
                .set("session.timeout.ms", "300000")
                .set("max.poll.interval.ms", "300000")
        };
        let stays = Task::start(order("stays"));
        let killed = Process::start(&order("killed"));
        ground.shared_by(&["stays", "killed"]).await;
        // The first such wave may span the rebalance.
        ground.shared_by(&["stays", "killed"]).await;
        let mine = |ground: &Ground, member: &str| {
            let last = ground.effects();
            let last = last[last.len() - 4..].iter().filter(|effect| effect.member == member);
            last.map(|effect| effect.partition).collect::<std::collections::BTreeSet<_>>()
        };
        ground.drained().await;
        let (its, others) = (mine(&ground, "killed"), mine(&ground, "stays"));
        assert_eq!((its.len(), others.len()), (2, 2), "{protocol:?}");
        killed.kill();
        ground.produce("away", 5).await;
        let again = Process::start(&order("killed"));
        ground.drained().await;
        assert_eq!(again.terminate().await["failed_commits"], 0);
        let stays = stays.stop().await;
        for ((_, partition), seen) in &stays.partitions {
            let whole = if its.contains(partition) { 0 } else { 1 };
            // Before both were there, it may have had all of them once.
            assert!(seen.assigned <= 1 + whole, "{protocol:?}: partition {partition}: {stays:?}");
        }
        ground.assert_once();
        ground.assert_ordered();
        assert!(ground.effects().iter().rev().take(10).any(|effect| effect.member == "killed"), "{protocol:?}");
    })
    .await;
}
