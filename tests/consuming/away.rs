//! A database that is away while partitions are assigned: its windows are waited for, and Kafka is polled meanwhile.

use std::time::{Duration, Instant};

use hapax::identity::position;
use hapax::observe::Phase;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use sqlx::{MySql, Postgres};

use crate::base::{Base, Site};
use crate::ground::Ground;
use crate::support::{PATIENCE, Relay, eventually};
use crate::world::Member;

/// Longer than the thread that polls may wait for windows, and longer than the member may go without a poll.
const AWAY: Duration = Duration::from_secs(8);

/// How many members the group has, as the broker says.
async fn members<DB: Base>(ground: &Ground<DB>) -> usize {
    let (config, group) = (ground.config(), ground.group.clone());
    let ask = move || {
        let tool: BaseConsumer = config.create().unwrap();
        let found = tool.client().fetch_group_list(Some(&group), Duration::from_secs(10));
        found.map_or(0, |found| {
            found.groups().iter().filter(|one| one.state() == "Stable").map(|one| one.members().len()).sum()
        })
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

async fn windows_are_waited_for_while_kafka_is_polled<DB: Base>() {
    let mut ground = Ground::<DB>::new(2).await;
    let relay = Relay::start(&ground.site.url);
    ground.pool = DB::pool(&Site::at(relay.url(&ground.site.url)), 4).await;
    // The windows stand somewhere, and behind them there is work.
    ground.produce(2, 0..40).await;
    let member = Member::start(ground.consumer(), ground.noting(position()).await);
    ground.committed(&[20, 20]).await;
    member.stop().await;
    let handling = ground.noting(position()).await;
    relay.down();
    let mut config = ground.config();
    config.set("max.poll.interval.ms", "6000").set("session.timeout.ms", "6000");
    let consumer = crate::world::consumer(config, &ground.topic);
    let monitor = consumer.monitor();
    let member = Member::start(consumer, handling);
    eventually(PATIENCE, "the group has its member", async || members(&ground).await == 1).await;
    ground.produce(2, 40..100).await;
    let since = Instant::now();
    eventually(PATIENCE, "the outage lasts", async || {
        let snapshot = monitor.snapshot();
        assert_eq!(snapshot.phase, Phase::Running);
        let polled = snapshot.polled.unwrap_or_default();
        assert!(polled < Duration::from_secs(5), "not polled for {polled:?}");
        since.elapsed() > AWAY
    })
    .await;
    assert_eq!(ground.effects().await, 40, "nothing is handled without its window");
    relay.restore();
    ground.committed(&[50, 50]).await;
    let summary = member.stop().await;
    ground.judge(0..100).await;
    assert_eq!((summary.handled, summary.redelivered), (60, 0));
    assert_eq!(ground.marks().await, [50, 50]);
}

#[tokio::test]
async fn postgres_windows_are_waited_for_while_kafka_is_polled() {
    windows_are_waited_for_while_kafka_is_polled::<Postgres>().await;
}

#[tokio::test]
async fn mysql_windows_are_waited_for_while_kafka_is_polled() {
    windows_are_waited_for_while_kafka_is_polled::<MySql>().await;
}
