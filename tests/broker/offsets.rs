//! Logs with gaps: transactions that were aborted, and compaction.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::ground::{Ground, Protocol, by, by_each_protocol};
use crate::member::{Task, Way};
use crate::support::{Kafka, PATIENCE, Record, eventually, unique};

const ROUNDS: i32 = 12;
const EACH: i32 = 5;

/// Transactions of five messages to each partition; every other one is aborted.
fn transactions(ground: &Ground) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", ground.kafka.bootstrap())
        .set("transactional.id", unique("tx"))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    for round in 0..ROUNDS {
        let aborted = round % 2 == 1;
        producer.begin_transaction().unwrap();
        for n in 0..EACH * ground.partitions {
            let id = format!("tx-{round}-{n}");
            if !aborted {
                // Noted as expected.
                ground.record(0, &id);
            }
            let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&id) });
            let record =
                BaseRecord::<(), str>::to(&ground.topic).partition(n % ground.partitions).payload("p").headers(headers);
            producer.send(record).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
        if aborted {
            producer.abort_transaction(PATIENCE).unwrap();
        } else {
            producer.commit_transaction(PATIENCE).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_f22_aborted_messages_have_no_effect_and_the_rest_is_committed_to_the_end() {
    by_each_protocol(|protocol| async move {
        let ground = Ground::new(protocol, "tx", 2).await;
        let made = Arc::clone(&ground);
        tokio::task::spawn_blocking(move || transactions(&made)).await.unwrap();
        // The last marker is written after the producer has been told that its transaction ended.
        let end = i64::from(ROUNDS * (EACH + 1));
        eventually(PATIENCE, "the last marker is written", async || ground.offsets().await.1 == [end; 2]).await;
        // A marker is no message, and nothing is committed for it: behind one more message there is none.
        ground.produce("last", 1).await;
        let member = Task::start(ground.order("reader").set("isolation.level", "read_committed"));
        ground.drained().await;
        assert_eq!(ground.committed().await, [end + 1; 2], "{protocol:?}: aborted messages and markers lie below it");
        let summary = member.stop().await;
        assert_eq!((summary.handled, summary.left), (u64::try_from(ground.produced()).unwrap(), 0), "{summary:?}");
        ground.assert_once();
        ground.assert_ordered();
    })
    .await;
}

/// Offsets of partition 0, as a client without a group sees them.
fn seen(bootstrap: &str, topic: &str) -> BTreeSet<i64> {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", "none").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    client.assign(&list).unwrap();
    let end = client.fetch_watermarks(topic, 0, PATIENCE).unwrap().1;
    let mut seen = BTreeSet::new();
    while seen.last().is_none_or(|last| last + 1 < end) {
        if let Some(message) = client.poll(Duration::from_secs(10)) {
            seen.insert(message.unwrap().offset());
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_a_compacted_topic_with_tombstones_and_repeated_keys() {
    let (kafka, topic) = (Kafka::real(), unique("compact"));
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "500"),
        ("min.cleanable.dirty.ratio", "0.01"),
        // Tombstones stay for longer than this test.
        ("delete.retention.ms", "86400000"),
    ];
    kafka.create_topic_with(&topic, 1, &settings).await;
    // Six keys, ten times each; every fifth message is a tombstone. The identity is in the header, never the key.
    let record = |n: i32| {
        let record = Record::to(&topic).partition(0).key(format!("key {}", n % 6)).header("id", format!("c-0-{n}"));
        if n % 5 == 4 { record } else { record.payload(format!("state {n}")) }
    };
    let records: Vec<Record> = (0..60).map(record).collect();
    kafka.produce(&records).await;
    let whole = seen(kafka.bootstrap(), &topic);
    assert_eq!(whole.len(), 60, "nothing is compacted yet");
    let all = Arc::new((kafka, topic));
    let read = |expected: BTreeSet<i64>, ids: &'static str| {
        let all = Arc::clone(&all);
        move |protocol: Protocol| {
            let (all, expected) = (Arc::clone(&all), expected.clone());
            async move {
                let ground = Ground::on(Kafka::at(all.0.bootstrap()), protocol, Way::Partition, &all.1, 1).await;
                for offset in &expected {
                    ground.record(0, &if *offset < 60 { format!("c-0-{offset}") } else { ids.to_owned() });
                }
                let member = Task::start(ground.order("reader"));
                ground.drained().await;
                ground.assert_once();
                ground.assert_ordered();
                let offsets: BTreeSet<i64> = ground.effects().iter().map(|effect| effect.offset).collect();
                assert_eq!(offsets, expected, "{protocol:?}");
                let summary = member.stop().await;
                assert_eq!(
                    (summary.handled, summary.conflicts),
                    (expected.len() as u64, 0),
                    "{protocol:?}: {summary:?}"
                );
            }
        }
    };
    by(&Protocol::ALL, read(whole, "")).await;
    // One more, which says that it is of a time behind the first segment's, begins another segment: what is not in that is compacted.
    let later = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(60);
    let last = Record::to(&all.1).partition(0).key("key 0").header("id", "last").payload("last");
    let last = last.timestamp(later.as_millis() as i64);
    all.0.produce_one(last).await;
    let mut compacted = BTreeSet::new();
    let look = || {
        tokio::task::spawn_blocking({
            let all = Arc::clone(&all);
            move || seen(all.0.bootstrap(), &all.1)
        })
    };
    eventually(PATIENCE * 2, "the broker has compacted the topic", async || {
        compacted = look().await.unwrap();
        compacted.len() < 20
    })
    .await;
    assert!(compacted.last() == Some(&60) && compacted.len() >= 6, "{compacted:?}");
    by(&Protocol::ALL, read(compacted, "last")).await;
}
