//! Members whose commits the broker refuses.

use std::time::Duration;

use hapax::ConsumerError;

use crate::ground::{Ground, Protocol, by};
use crate::member::Task;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_static_member_that_is_fenced_ends_and_its_successor_repeats_nothing() {
    by(&[Protocol::Range, Protocol::CooperativeSticky], |protocol| async move {
        let ground = Ground::new(protocol, "fenced", 2).await;
        let order = |name: &str| {
            let mut order = ground.order(name).set("group.instance.id", "one");
            // What the first handles is not committed before it is fenced.
            order.commit_every = Duration::from_secs(3_600);
            order
        };
        ground.produce("m", 50).await;
        let fenced = Task::start(order("fenced"));
        ground.reach(100).await;
        assert_eq!(ground.committed().await, [0, 0], "{protocol:?}: an hour has not passed");
        let successor = Task::start(order("successor"));
        let error = fenced.end().await.expect_err("fenced");
        let ConsumerError::Kafka { summary, .. } = &error else { panic!("{protocol:?}: {error}") };
        assert_eq!((summary.handled, summary.commits), (100, 0), "{protocol:?}: {error}: {summary:?}");
        ground.produce("more", 10).await;
        ground.reach(120).await;
        let summary = successor.stop().await;
        assert_eq!((summary.handled, summary.redelivered), (20, 100), "{protocol:?}: {summary:?}");
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_with_kip_848_it_is_the_second_that_is_refused_until_the_first_leaves() {
    let ground = Ground::new(Protocol::Consumer, "unreleased", 2).await;
    let order = |name: &str| ground.order(name).set("group.instance.id", "one");
    ground.produce("m", 50).await;
    let first = Task::start(order("first"));
    ground.reach(100).await;
    // It waits for the name to be free, and disturbs nobody meanwhile.
    let second = Task::start(order("second"));
    ground.produce("more", 10).await;
    ground.drained().await;
    assert_eq!(ground.by_member("second"), 0);
    assert_eq!(first.stop().await.failed_commits, 0);
    ground.produce("last", 10).await;
    ground.drained().await;
    let summary = second.stop().await;
    assert_eq!((summary.handled, summary.redelivered), (20, 0), "{summary:?}");
    ground.assert_once();
    ground.assert_ordered();
}
