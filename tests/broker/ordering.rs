//! Which messages wait for which, while members come, go and are killed.

use std::time::Duration;

use crate::ground::{Ground, by_each_protocol};
use crate::member::{Order, Process, Task, Way};
use crate::support::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_key_blocks_only_itself() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::by(protocol, Way::Key, "slowkey", 1).await;
        let gate = ground.keyed(0, "gate", "slow").header("gate", "before");
        ground.kafka.produce_one(gate).await;
        let others: Vec<_> = (0..200).map(|n| ground.keyed(0, &format!("o{n}"), &format!("k{}", n % 7))).collect();
        ground.kafka.produce(&others).await;
        let same: Vec<_> = (0..20).map(|n| ground.keyed(0, &format!("s{n}"), "slow")).collect();
        ground.kafka.produce(&same).await;
        ground.kafka.produce_one(ground.keyed(0, "last", "k0")).await;
        let member = Task::start(Order { gates: true, ..ground.order("one") });
        ground.reach(201).await;
        assert_eq!(ground.committed().await, [0], "{protocol:?}: the first message is not finished");
        assert!(ground.effects().iter().all(|effect| !effect.id.starts_with('s')), "{protocol:?}: its key waits");
        ground.open("one");
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        member.stop().await;
    })
    .await;
}

/// A message that fails twice, before others of its key and of another. Answers in which order they had their effects.
async fn fails_at_first(ground: &Ground, step_aside: bool) -> Vec<String> {
    let failing = ground.keyed(0, "fails", "a").header("fails", "2");
    ground.kafka.produce_one(failing).await;
    let key = |n: i32| if n % 2 == 0 { "a" } else { "b" };
    let behind: Vec<_> = (0..40).map(|n| ground.keyed(0, &format!("b{n}"), key(n))).collect();
    ground.kafka.produce(&behind).await;
    let member = Task::start(Order { step_aside, ..ground.order("one") });
    ground.drained().await;
    ground.assert_once();
    let last = &ground.by_id()["fails"][0];
    assert_eq!(last.attempt, 3, "{:?}: {last:?}", ground.protocol);
    member.stop().await;
    ground.effects().into_iter().map(|effect| effect.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_retry_holds_its_partition_or_its_key_or_steps_aside() {
    by_each_protocol(|protocol| async move {
        let place = |ids: &[String]| ids.iter().position(|id| id == "fails").unwrap();
        let ground = Ground::by(protocol, Way::Partition, "held", 1).await;
        let ids = fails_at_first(&ground, false).await;
        assert_eq!(place(&ids), 0, "{protocol:?}: {ids:?}");
        ground.assert_ordered();

        let ground = Ground::by(protocol, Way::Key, "keyheld", 1).await;
        let ids = fails_at_first(&ground, false).await;
        assert!(place(&ids) > 0, "{protocol:?}: the other key went on: {ids:?}");
        ground.assert_ordered();

        let ground = Ground::by(protocol, Way::Partition, "aside", 1).await;
        let ids = fails_at_first(&ground, true).await;
        assert!(place(&ids) > 0, "{protocol:?}: the partition went on: {ids:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_batches_of_members_that_come_go_and_are_killed() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::by(protocol, Way::Key, "batch", 4).await;
        let order = |name: &str| {
            let mut order = Order { batch: 16, slow: Duration::from_millis(3), ..ground.order(name) };
            order.store = ground.shared_store();
            order.lease = Duration::from_secs(2);
            order
        };
        ground.produce("m", 150).await;
        // In the middle of batches, some fail twice.
        let failing: Vec<_> = (0..8).map(|n| ground.record(n % 4, &format!("f{n}")).header("fails", "2")).collect();
        ground.kafka.produce(&failing).await;
        ground.produce("n", 150).await;
        let victim = Process::start(&order("victim"));
        ground.reach(100).await;
        let guest = Task::start(order("guest"));
        eventually(PATIENCE, "both work, or all is done", async || {
            ground.by_member("guest") > 0 || ground.missing().is_empty()
        })
        .await;
        victim.kill();
        let other = Task::start(order("other"));
        ground.reach(ground.produced() - 100).await;
        guest.stop().await;
        ground.drained().await;
        for (id, effects) in ground.doubled() {
            assert_eq!(effects[0].member, "victim", "{protocol:?}: {id}: {effects:?}");
            assert!(effects.len() == 2 && effects[1].took_over, "{protocol:?}: {id}: {effects:?}");
        }
        // One that fails does not hold those that were in the same call.
        ground.assert_ordered_but(|id| id.starts_with('f'));
        assert!(ground.by_id()["f0"].iter().all(|effect| effect.attempt >= 3), "{protocol:?}");
        other.stop().await;
    })
    .await;
}
