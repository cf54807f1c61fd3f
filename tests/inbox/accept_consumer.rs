//! The consumer as it stores first: from a real broker into the table.

use std::time::Duration;

use hapax::consumer::Consumer;
use hapax::{Order, Retry};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, everywhere};
use crate::support::{Kafka, PATIENCE, Record, eventually, unique};
use crate::world::World;

fn record(topic: &str, id: i64, partition: i32) -> Record {
    let record = Record::to(topic).partition(partition).key(format!("k{}", id % 9)).payload(format!("order {id}"));
    record.header("id", id.to_string())
}

fn consumer(kafka: &Kafka, group: &str, topic: &str) -> Consumer {
    Consumer::new(kafka.consumer_config(group))
        .topics([topic])
        .order(Order::Key)
        .retry(Retry::fixed(Duration::from_millis(20)))
        .commit_every(Duration::from_millis(100))
}

everywhere! {
async fn f01_offsets_that_are_lost_change_nothing<DB>() {
    let world = World::<DB>::new().await;
    let kafka = Kafka::real();
    let (topic, group) = (unique("inbox"), unique("g"));
    kafka.create_topic(&topic, 2).await;
    let produce = async |from: i64, to: i64| {
        let records: Vec<_> = (from..to).map(|id| record(&topic, id, i32::try_from(id % 2).unwrap())).collect();
        kafka.produce(&records).await;
    };
    produce(0, 400).await;
    // The same ids once more, on the other partition: what a producer repeats.
    let again: Vec<_> = (0..50).map(|id| record(&topic, id, i32::try_from((id + 1) % 2).unwrap())).collect();
    kafka.produce(&again).await;
    for life in 0..3_i64 {
        let inbox = world.inbox().await;
        let stop = CancellationToken::new();
        let running = tokio::spawn(consumer(&kafka, &group, &topic).run(inbox.accept(), stop.clone()));
        let wanted = 400 + life * 100;
        eventually(PATIENCE, "all of them", async || world.count("", "1 = 1").await >= wanted).await;
        // Everything is committed, duplicates too: each partition to its end.
        for partition in 0..2 {
            let (_, end) = kafka.watermarks(&topic, partition).await;
            eventually(PATIENCE, "its commits", async || kafka.committed(&group, &topic, partition).await == Some(end)).await;
        }
        stop.cancel();
        let summary = running.await.unwrap().unwrap();
        if life == 0 {
            assert_eq!(inbox.accept_counts().accepted, 400, "{summary:?}");
            assert_eq!(inbox.accept_counts().duplicates, 50, "{summary:?}");
        }
        assert_eq!(world.count("", "1 = 1").await, wanted);
        assert_eq!(world.count("_open", "1 = 1").await, wanted);
        // Ids follow the offsets of each key, over all lives.
        let twisted = format!(
            "SELECT COUNT(*) FROM {m} AS a JOIN {m} AS b ON a.part = b.part AND a.lane = b.lane AND a.log_offset < b.log_offset AND a.id > b.id",
            m = world.table("")
        );
        assert_eq!(DB::number(&mut world.session().await, &twisted).await.unwrap(), 0);
        kafka.delete_group(&group).await;
        produce(400 + life * 100, 500 + life * 100).await;
    }
}
}

everywhere! {
async fn what_cannot_be_taken_in_goes_to_the_dead_letter_or_stops<DB>() {
    let world = World::<DB>::new().await;
    let kafka = Kafka::real();
    let topic = unique("inbox");
    kafka.create_topic(&topic, 1).await;
    let letters = format!("{topic}.dead");
    kafka.create_topic(&letters, 1).await;
    let mut records: Vec<_> = (0..30).map(|id| record(&topic, id, 0)).collect();
    records[10] = Record::to(&topic).partition(0).payload("no id");
    records[20] = record(&topic, 3, 0).payload("in conflict with 3");
    kafka.produce(&records).await;
    let group = unique("g");
    let inbox = world.inbox().await;
    let stopped = consumer(&kafka, &group, &topic).run(inbox.accept(), CancellationToken::new());
    let stopped = tokio::time::timeout(PATIENCE, stopped).await.expect("it stops by itself");
    assert!(stopped.is_err());
    let inbox = world.inbox().await;
    let stop = CancellationToken::new();
    let consumer = consumer(&kafka, &group, &topic).dead_letter(hapax::DeadLetter::topic(&letters));
    let running = tokio::spawn(consumer.run(inbox.accept(), stop.clone()));
    eventually(PATIENCE, "its commits", async || kafka.committed(&group, &topic, 0).await == Some(30)).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(kafka.watermarks(&letters, 0).await.1, 2);
    assert_eq!((world.count("", "1 = 1").await, world.count("_open", "1 = 1").await), (28, 28));
}
}
