//! Members that are killed, stand still, or block.

use std::time::Duration;

use crate::ground::{Ground, Protocol, by, by_each_protocol, by_each_protocol_and_order};
use crate::member::{Order, Process, Task, Way};
use crate::support::{PATIENCE, eventually};

/// A member whose claims run out soon after it is gone, with a store that others can see.
fn mortal(ground: &Ground, name: &str) -> Order {
    let mut order = ground.order(name);
    order.store = ground.shared_store();
    order.lease = Duration::from_secs(2);
    order
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_f03_killed_mid_batch_another_takes_over_and_says_so() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "kill", 4).await;
        let victim = Process::start(&Order { gates: true, ..mortal(&ground, "victim") });
        let other = Task::start(mortal(&ground, "other"));
        ground.shared_by(&["victim", "other"]).await;
        ground.drained().await;
        // Two of them are killed before their effect and two after it, wherever the victim has them.
        ground.produce("before", 5).await;
        ground.produce_gates(&[(0, "before"), (1, "after"), (2, "before"), (3, "after")]).await;
        ground.produce("behind", 20).await;
        ground.waits("victim", 2).await;
        let at = ground.waiting("victim");
        let ends = ground.offsets().await.1;
        eventually(PATIENCE, "all but what waits at the gates is committed", async || {
            let committed = ground.committed().await;
            committed.iter().zip(&ends).enumerate().all(|(partition, (committed, end))| {
                let behind = if at.contains(&(partition as i32)) { 21 } else { 0 };
                *committed == end - behind
            })
        })
        .await;
        victim.kill();
        ground.drained().await;
        let doubled = ground.doubled();
        let expected: Vec<String> = at.iter().filter(|at| **at % 2 == 1).map(|at| format!("gate-after-{at}")).collect();
        assert_eq!(doubled.keys().cloned().collect::<Vec<_>>(), expected, "{protocol:?}: only what had its effect");
        for partition in &at {
            let when = if partition % 2 == 1 { "after" } else { "before" };
            let effects = &ground.by_id()[&format!("gate-{when}-{partition}")];
            let last = effects.last().unwrap();
            assert!(last.took_over && last.attempt == 2 && last.member == "other", "{protocol:?}: {effects:?}");
        }
        let repeats = ground.effects().into_iter().filter(|effect| effect.attempt > 1);
        let strange: Vec<_> = repeats.filter(|effect| !at.contains(&effect.partition)).collect();
        assert!(strange.is_empty(), "{protocol:?}: nothing that the victim did not have was taken over: {strange:?}");
        ground.assert_ordered();
        other.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_killed_under_load_what_was_repeated_was_taken_over() {
    by_each_protocol_and_order(|protocol, way| async move {
        let ground = Ground::by(protocol, way, "load", 4).await;
        let order = |name: &str| Order { slow: Duration::from_millis(5), ..mortal(&ground, name) };
        ground.produce("m", 200).await;
        for round in 0..2 {
            let victim = Process::start(&order(&format!("victim{round}")));
            let before = ground.by_id().len();
            ground.reach(before + 100).await;
            victim.kill();
        }
        let last = Task::start(order("last"));
        ground.drained().await;
        for (id, effects) in ground.doubled() {
            // Whoever comes second knows that the first may have had its effect.
            assert!(
                effects[1..].iter().all(|again| again.took_over && again.attempt > 1),
                "{protocol:?}: {id}: {effects:?}"
            );
        }
        ground.assert_ordered();
        last.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_ended_by_sigterm_under_load_nothing_is_repeated() {
    by_each_protocol_and_order(|protocol, way| async move {
        let ground = Ground::by(protocol, way, "term", 4).await;
        let order = |name: &str| Order { slow: Duration::from_millis(5), ..mortal(&ground, name) };
        ground.produce("m", 200).await;
        let mut handled = 0_i64;
        for round in 0..3 {
            let child = Process::start(&order(&format!("child{round}")));
            let before = ground.by_id().len();
            ground.reach((before + 100).min(ground.produced())).await;
            let report = child.terminate().await;
            assert_eq!((report["unsettled"], report["failed_commits"]), (0, 0), "{protocol:?} {way:?}: {report:?}");
            handled += report["handled"] as i64;
            let committed: i64 = ground.committed().await.iter().sum();
            // By partition nothing is finished behind what is not.
            let exact = way == Way::Partition;
            assert!(
                committed <= handled && (!exact || committed == handled),
                "{protocol:?} {way:?}: {committed} {handled}"
            );
            assert!(!exact || report["redelivered"] == 0, "{protocol:?}: {report:?}");
        }
        let last = Task::start(order("last"));
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        last.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_f13_a_member_that_stood_still_longer_than_lease_and_session_comes_back() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "zombie", 4).await;
        let zombie = Process::start(&Order { gates: true, ..mortal(&ground, "zombie") });
        let other = Task::start(mortal(&ground, "other"));
        ground.shared_by(&["zombie", "other"]).await;
        ground.drained().await;
        ground.produce_gates(&[(0, "before"), (1, "before"), (2, "before"), (3, "before")]).await;
        ground.produce("behind", 10).await;
        ground.waits("zombie", 2).await;
        let at = ground.waiting("zombie");
        zombie.pause();
        // Its partitions and its claims go to the other, which gets to the end.
        ground.drained().await;
        let ends = ground.committed().await;
        ground.open("zombie");
        zombie.resume();
        // It is a member again, and works on what is new.
        ground.shared_by(&["zombie", "other"]).await;
        ground.drained().await;
        let after = ground.committed().await;
        assert!(after.iter().zip(&ends).all(|(after, before)| after >= before), "{protocol:?}: {ends:?} {after:?}");
        // The handlers that woke up had an effect too, or were cancelled before it. The other's effect says that it took over.
        for (id, effects) in ground.doubled() {
            let (first, late) = (&effects[0], &effects[1]);
            assert!(at.contains(&first.partition) && id.starts_with("gate-"), "{protocol:?}: {id}: {effects:?}");
            assert!(effects.len() == 2 && first.took_over && first.member == "other", "{protocol:?}: {effects:?}");
            assert!(
                late.member == "zombie" && late.lost,
                "{protocol:?}: it can be seen before the effect: {effects:?}"
            );
        }
        for partition in at {
            assert!(ground.by_id()[&format!("gate-before-{partition}")][0].took_over, "{protocol:?}");
        }
        zombie.terminate().await;
        other.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_a_handler_longer_than_the_poll_interval_keeps_its_membership() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "long", 2).await;
        let record = ground.record(0, "long").header("long", "");
        ground.kafka.produce_one(record).await;
        ground.produce("m", 50).await;
        let mut order = ground.order("patient").set("max.poll.interval.ms", "6000");
        order.drain = Duration::from_secs(3);
        order.wait = Duration::from_secs(15);
        let member = Task::start(order);
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        let summary = member.stop().await;
        assert!(summary.partitions.values().all(|partition| partition.assigned == 1), "{protocol:?}: {summary:?}");
        assert_eq!((summary.late, summary.failed_commits), (0, 0), "{protocol:?}: {summary:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_a_handler_that_blocks_its_thread_beyond_the_poll_interval_keeps_its_membership() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "block", 2).await;
        // On every thread of the member's runtime at once.
        let records = [0, 1].map(|partition| ground.record(partition, &format!("long{partition}")).header("long", ""));
        ground.kafka.produce(&records).await;
        ground.produce("m", 50).await;
        let mut order = mortal(&ground, "blocked").set("max.poll.interval.ms", "6000");
        order.drain = Duration::from_secs(3);
        order.block = Duration::from_secs(10);
        // Nobody can renew a lease while every thread is blocked.
        order.lease = Duration::from_secs(30);
        let member = Process::start(&order);
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        let report = member.terminate().await;
        assert_eq!(
            (report["redelivered"], report["late"], report["failed_commits"]),
            (0, 0, 0),
            "{protocol:?}: {report:?}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_static_member_that_was_killed_is_let_in_again() {
    // The classic protocol lets it in at once; that of KIP-848 refuses it until its session is over.
    by(&[Protocol::CooperativeSticky, Protocol::Consumer], |protocol| async move {
        let ground = Ground::new(protocol, "static", 2).await;
        let order = |name: &str| mortal(&ground, name).set("group.instance.id", "one");
        ground.produce("before", 10).await;
        let victim = Process::start(&order("victim"));
        ground.drained().await;
        victim.kill();
        ground.produce("after", 10).await;
        let again = Task::start(order("again"));
        ground.drained().await;
        ground.assert_once();
        assert_eq!(ground.by_member("again"), 20, "{protocol:?}");
        if protocol == Protocol::Consumer {
            // A second one of the same name waits as well, and can be ended while it does.
            let twin = Task::start(order("twin"));
            ground.produce("meanwhile", 50).await;
            ground.drained().await;
            let summary = twin.stop().await;
            assert_eq!((summary.delivered, summary.partitions.len()), (0, 0), "{summary:?}");
        }
        again.stop().await;
        ground.assert_once();
    })
    .await;
}
