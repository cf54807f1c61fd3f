//! Partitions that go while their handlers run.

use std::time::Duration;

use crate::ground::{Ground, by_each_protocol};
use crate::member::{Order, Task};
use crate::support::{PATIENCE, eventually};

/// A member that holds all partitions, each at a gate, and one that joins.
async fn slow_handlers(ground: &Ground, drain: Duration) -> (Task, Task) {
    ground.produce("before", 5).await;
    ground.produce_gates(&[(0, "before"), (1, "before"), (2, "before"), (3, "before")]).await;
    ground.produce("behind", 20).await;
    let order = |name| Order { gates: name == "slow", drain, ..ground.order(name) };
    let slow = Task::start(order("slow"));
    ground.waits("slow", 4).await;
    (slow, Task::start(order("quick")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_handlers_that_end_in_time_keep_their_partition_until_then() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "intime", 4).await;
        let (slow, quick) = slow_handlers(&ground, Duration::from_secs(60)).await;
        // The rebalance is under way for a while, and cannot end.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(ground.by_member("quick"), 0, "{protocol:?}: nobody else got a partition with a running handler");
        ground.open("slow");
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        for partition in 0..4 {
            let effect = &ground.by_id()[&format!("gate-before-{partition}")][0];
            assert!(effect.member == "slow" && effect.attempt == 1, "{protocol:?}: {effect:?}");
        }
        assert_eq!(ground.came("slow"), 4, "{protocol:?}: each handler ran once");
        ground.shared_by(&["slow", "quick"]).await;
        let (slow, quick) = (slow.stop().await, quick.stop().await);
        // A classic broker refuses commits for a moment of each rebalance: what they would have said comes again then.
        let repeated = slow.redelivered + quick.redelivered;
        assert!(repeated == 0 || slow.failed_commits > 0, "{protocol:?}: {slow:?} {quick:?}");
        assert_eq!(slow.late, 0, "{protocol:?}: {slow:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_handlers_beyond_the_drain_deadline_are_dropped_and_their_messages_go_elsewhere() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "toolate", 4).await;
        let (slow, quick) = slow_handlers(&ground, Duration::from_millis(300)).await;
        // The quick one gets its partitions while the handlers of the slow one still wait, and goes to the end.
        eventually(PATIENCE, "the quick one has handled what waited", async || {
            ground.effects().iter().any(|effect| effect.member == "quick" && effect.id.starts_with("gate-"))
        })
        .await;
        ground.open("slow");
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        slow.stop().await;
        quick.stop().await;
    })
    .await;
}
