//! What members need is away for a while: the store, the downstream, the broker.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;

use crate::ground::{Ground, Protocol, by_each_protocol_and_order};
use crate::member::{Order, Store, Task, Way};
use crate::support::{Kafka, PATIENCE, Relay, ThrowawayKafka, ThrowawayPostgres, eventually, net, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_store_that_is_killed_and_comes_back_costs_time_and_nothing_else() {
    let postgres = Arc::new(Mutex::new(ThrowawayPostgres::start(&[])));
    let url = postgres.lock().unwrap().url();
    let grounds = join_all(Protocol::ALL.map(|protocol| async move {
        let ground = Ground::by(protocol, Way::Key, "store", 4).await;
        ground.produce("m", 300).await;
        ground
    }))
    .await;
    let mut members = Vec::new();
    for ground in &grounds {
        for name in ["a", "b"] {
            let mut order = Order { slow: Duration::from_millis(50), ..ground.order(name) };
            order.store = Store::Url(url.clone());
            // Nobody is gone: what is claimed stays claimed over the outage.
            order.lease = Duration::from_secs(120);
            order.drain = Duration::from_secs(4);
            members.push(Task::start(order.set("max.poll.interval.ms", "8000")));
        }
    }
    for ground in &grounds {
        ground.reach(20).await;
    }
    let killed = Arc::clone(&postgres);
    tokio::task::spawn_blocking(move || killed.lock().unwrap().kill9()).await.unwrap();
    // Longer than max.poll.interval.ms: polling goes on.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before: Vec<usize> = grounds.iter().map(|ground| ground.by_id().len()).collect();
    let back = Arc::clone(&postgres);
    tokio::task::spawn_blocking(move || back.lock().unwrap().restart()).await.unwrap();
    for (ground, before) in grounds.iter().zip(before) {
        assert!(before < ground.produced(), "{:?}: the store was missed", ground.protocol);
        fs::write(ground.folder().join("hurry"), "").unwrap();
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
    }
    for member in members {
        let summary = member.stop().await;
        assert!(summary.closed && summary.unsettled == 0, "{summary:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downstream_that_is_down_burns_no_attempt_and_no_membership() {
    by_each_protocol_and_order(|protocol, way| async move {
        let ground = Ground::by(protocol, way, "down", 2).await;
        let mut order = ground.order("one").set("max.poll.interval.ms", "6000");
        order.drain = Duration::from_secs(3);
        let member = Task::start(order);
        ground.produce("before", 20).await;
        ground.drained().await;
        fs::write(ground.folder().join("down"), "").unwrap();
        ground.produce("while", 50).await;
        // Longer than max.poll.interval.ms, and more probes than a message has attempts.
        let asked = || fs::read(ground.folder().join("asked")).map_or(0, |asked| asked.len());
        tokio::time::sleep(Duration::from_secs(8)).await;
        eventually(PATIENCE, "it has been tried often enough", async || asked() > 5).await;
        assert!(asked() < 150, "{protocol:?} {way:?}: one probes, not all of them: {}", asked());
        assert_eq!(ground.by_id().len(), 40, "{protocol:?} {way:?}");
        fs::remove_file(ground.folder().join("down")).unwrap();
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
        let burnt: Vec<_> = ground.effects().into_iter().filter(|effect| effect.attempt != 1).collect();
        assert!(burnt.is_empty(), "{protocol:?} {way:?}: {burnt:?}");
        let summary = member.stop().await;
        assert!(summary.partitions.values().all(|partition| partition.assigned == 1), "{protocol:?}: {summary:?}");
        assert_eq!((summary.dead, summary.late), (0, 0), "{protocol:?} {way:?}: {summary:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_lost_connection_to_the_broker_loses_and_repeats_nothing() {
    let own = net::free_port();
    let relay = Arc::new(Relay::start(&format!("127.0.0.1:{own}")));
    let seen = relay.address();
    let settings = [("group.consumer.session.timeout.ms", "6000"), ("group.consumer.min.session.timeout.ms", "1000")];
    let start = move || ThrowawayKafka::start(&[(own, seen.port())], &settings);
    let _broker = tokio::task::spawn_blocking(start).await.unwrap();
    let grounds = join_all(Protocol::ALL.map(|protocol| async move {
        let (kafka, topic) = (Kafka::at(&seen.to_string()), unique("cut"));
        kafka.create_topic(&topic, 4).await;
        let ground = Ground::on(kafka, protocol, Way::Key, &topic, 4).await;
        ground.produce("m", 600).await;
        ground
    }))
    .await;
    let mut members = Vec::new();
    for ground in &grounds {
        for name in ["a", "b"] {
            members.push(Task::start(Order { slow: Duration::from_millis(50), ..ground.order(name) }));
        }
    }
    for times in 1..=2 {
        for ground in &grounds {
            ground.reach(50 * times).await;
        }
        let cut = Arc::clone(&relay);
        tokio::task::spawn_blocking(move || cut.cut()).await.unwrap();
    }
    for ground in &grounds {
        ground.reach(150).await;
    }
    let down = Arc::clone(&relay);
    tokio::task::spawn_blocking(move || down.down()).await.unwrap();
    // Longer than the session: the broker gives the partitions up.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let up = Arc::clone(&relay);
    tokio::task::spawn_blocking(move || up.restore()).await.unwrap();
    for ground in &grounds {
        fs::write(ground.folder().join("hurry"), "").unwrap();
        ground.drained().await;
        ground.assert_once();
        ground.assert_ordered();
    }
    for member in members {
        let summary = member.stop().await;
        assert!(summary.unsettled == 0 && summary.left == 0, "{summary:?}");
    }
}
