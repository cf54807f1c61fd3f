//! Where partitions go on: the window wins over what the group has committed, and what it found is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hapax::consumer::Finding;
use hapax::identity::position;
use hapax::{Message, Order, Retry};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::Postgres;

use crate::base::{Base, everywhere, id_of};
use crate::ground::Ground;
use crate::support::{PATIENCE, eventually};
use crate::world::Member;

everywhere! {
    async fn what_finished_out_of_order_is_not_repeated_after_a_crash<DB>() {
        for order in [Order::Key, Order::Unordered] {
            let ground = Ground::<DB>::new(1).await;
            ground.produce(1, 0..60).await;
            let start = async |ready: bool| {
                let (table, ready) = (ground.tables.effects.clone(), Arc::new(AtomicBool::new(ready)));
                let each = ground.once(position()).await.each(async move |message: Message, tx: &mut DB::Connection| {
                    if id_of(&message) == 0 && !ready.load(Ordering::SeqCst) {
                        return Err(sqlx::Error::Protocol("not yet".into()));
                    }
                    DB::effect(tx, &table, id_of(&message)).await
                });
                let retry = Retry::fixed(Duration::from_millis(100)).attempts(1_000_000);
                Member::start(ground.consumer().order(order).concurrency(8).retry(retry), each)
            };
            let others = if order == Order::Key { 48 } else { 59 };
            let member = start(false).await;
            ground.reach(others).await;
            assert_eq!(ground.marks().await, [0], "nothing is finished below the first");
            // Its future is dropped: nothing is drained.
            member.abort().await;
            let member = start(true).await;
            ground.committed(&[60]).await;
            let summary = member.stop().await;
            ground.judge(0..60).await;
            assert_eq!((summary.handled, summary.redelivered), (60 - others as u64, others as u64), "{order:?}");
            assert_eq!(ground.marks().await, [60]);
        }
    }
}

/// Commits as an operator's tool does. The group must have no members.
pub async fn commit<DB: Base>(ground: &Ground<DB>, offset: i64) {
    let (config, topic) = (ground.config(), ground.topic.clone());
    eventually(PATIENCE, "the operator can commit", async || {
        let (config, topic) = (config.clone(), topic.clone());
        let commit = move || {
            let tool: BaseConsumer = config.create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Offset::Offset(offset)).unwrap();
            tool.commit(&list, CommitMode::Sync).is_ok()
        };
        tokio::task::spawn_blocking(commit).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_wins_over_offsets_that_are_lost_or_set_by_hand() {
    let ground = Ground::<Postgres>::new(1).await;
    let work = async |from: i64, to: i64| {
        ground.produce(1, from..to).await;
        let member = Member::start(ground.consumer(), ground.noting(position()).await);
        ground.committed(&[to]).await;
        member.stop().await
    };
    let found = |summary: &hapax::Summary| summary.found.iter().map(|found| found.finding).collect::<Vec<_>>();
    let first = work(0, 50).await;
    assert_eq!(found(&first), [Finding::FromFirst { low: 0, high: 50 }]);
    let second = work(50, 60).await;
    assert_eq!((found(&second), second.delivered), (vec![], 10), "both stand at the same place");

    ground.kafka.delete_group(&ground.group).await;
    let lost = work(60, 70).await;
    assert_eq!(found(&lost), [Finding::Window { next: 60, committed: None }]);
    assert_eq!((lost.delivered, lost.handled, lost.redelivered), (10, 10, 0), "read from the window on");

    commit(&ground, 20).await;
    let rewound = work(70, 80).await;
    assert_eq!(found(&rewound), [Finding::Window { next: 70, committed: Some(20) }]);
    assert_eq!((rewound.delivered, rewound.handled), (10, 10));

    ground.produce(1, 80..90).await;
    commit(&ground, 88).await;
    let forward = work(90, 91).await;
    assert_eq!(found(&forward), [Finding::Window { next: 80, committed: Some(88) }], "nothing is passed in silence");
    assert_eq!(forward.handled, 11);
    ground.judge(0..91).await;
    assert_eq!(ground.marks().await, [91], "one row, however much came");
}

everywhere! {
    async fn a_fence_raised_outside_of_the_group_is_raised_anew_and_nothing_is_doubled<DB>() {
        let ground = Ground::<DB>::new(2).await;
        ground.produce(2, 0..40).await;
        let member = Member::start(ground.consumer(), ground.noting(position()).await);
        ground.committed(&[20, 20]).await;
        // A process of the same scope that is no member takes one of the partitions, and goes away.
        let other = ground.once(position()).await;
        let taken = other.assigned(&[(&ground.topic, 0)]).await.unwrap();
        assert_eq!(taken[0].seek, Some(20));
        ground.produce(2, 40..80).await;
        // The member finds that it may not commit. As the partition is still its own a while later, it takes it back.
        ground.committed(&[40, 40]).await;
        ground.judge(0..80).await;
        assert_eq!(ground.marks().await, [40, 40]);
        let fences = format!("SELECT fence FROM {} ORDER BY fence", ground.tables.windows);
        let fences = DB::numbers(&mut DB::session(&ground.site).await, &fences).await.unwrap();
        assert!(fences[0] >= 1 && fences[1] >= 3, "taken from the member, and back: {fences:?}");
        // And goes on as ever.
        ground.produce(2, 80..100).await;
        ground.committed(&[50, 50]).await;
        let summary = member.stop().await;
        ground.judge(0..100).await;
        assert_eq!(summary.handled, 100);
        assert!(summary.fenced >= 1 && summary.to_string().ends_with(&format!("fenced={}", summary.fenced)), "{summary}");
    }
}
