//! The tests' own Kafka helpers, on the mock cluster and on the real broker.

mod support;

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};
use support::{Kafka, MockKafka, PATIENCE, Record, Relay, ThrowawayKafka, eventually, eventually_some, net, unique};

/// Reads one message through a group and commits behind it.
async fn consume_one(kafka: &Kafka, group: &str, topic: &str, protocol: &str) -> OwnedMessage {
    let mut config = kafka.consumer_config(group);
    if protocol == "consumer" {
        config.set("group.protocol", "consumer").remove("session.timeout.ms").remove("heartbeat.interval.ms");
    }
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        let started = std::time::Instant::now();
        loop {
            assert!(started.elapsed() < PATIENCE, "no message within a minute");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(&topic, message.partition(), Offset::Offset(message.offset() + 1)).unwrap();
                consumer.commit(&list, CommitMode::Sync).unwrap();
                return message.detach();
            }
        }
    })
    .await
    .unwrap()
}

fn check(message: &OwnedMessage) {
    assert_eq!(message.key(), Some(&b"key"[..]));
    assert_eq!(message.payload(), Some(&b"payload"[..]));
    let headers: Vec<_> =
        message.headers().unwrap().iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    assert_eq!(headers, [("message-id".to_owned(), Some(b"1".to_vec())), ("nothing".to_owned(), None)]);
}

fn record(topic: &str) -> Record {
    Record::to(topic).partition(2).key("key").payload("payload").header("message-id", "1").null_header("nothing")
}

#[tokio::test]
async fn mock_produces_consumes_and_tells_what_is_committed() {
    let (topic, group) = (unique("t"), unique("g"));
    let kafka = MockKafka::start(&[(&topic, 3)]);
    assert_eq!(kafka.produce_one(record(&topic)).await, (2, 0));
    assert_eq!(kafka.committed(&group, &topic, 2).await, None);
    check(&consume_one(&kafka, &group, &topic, "classic").await);
    assert_eq!(kafka.committed(&group, &topic, 2).await, Some(1));
    assert_eq!(kafka.watermarks(&topic, 2).await, (0, 1));
}

#[tokio::test]
async fn mock_serves_the_consumer_protocol() {
    let (topic, group) = (unique("t"), unique("g"));
    let kafka = MockKafka::start(&[(&topic, 3)]);
    kafka.session_timeout(Duration::from_secs(1), Duration::from_millis(200));
    kafka.produce_one(record(&topic)).await;
    check(&consume_one(&kafka, &group, &topic, "consumer").await);
}

#[tokio::test]
async fn real_kafka_produces_consumes_and_tells_what_is_committed() {
    let kafka = Kafka::real();
    for protocol in ["classic", "consumer"] {
        let (topic, group) = (unique("t"), unique("g"));
        kafka.create_topic(&topic, 3).await;
        assert_eq!(kafka.produce_one(record(&topic)).await, (2, 0));
        assert_eq!(kafka.committed(&group, &topic, 2).await, None);
        check(&consume_one(&kafka, &group, &topic, protocol).await);
        assert_eq!(kafka.committed(&group, &topic, 2).await, Some(1), "{protocol}");
        // The member has left; its group and the topic can go.
        kafka.delete_group(&group).await;
        assert_eq!(kafka.committed(&group, &topic, 2).await, None);
        kafka.delete_topic(&topic).await;
    }
}

#[tokio::test]
async fn real_kafka_takes_many_records_in_order() {
    let kafka = Kafka::real();
    let topic = unique("t");
    kafka.create_topic_with(&topic, 1, &[("retention.ms", "3600000")]).await;
    let records: Vec<_> = (0..25_000).map(|n| Record::to(&topic).partition(0).payload(n.to_string())).collect();
    let placed = kafka.produce(&records).await;
    assert!(placed.iter().copied().eq((0..25_000).map(|n| (0, n))));
    eventually_some(PATIENCE, "the watermark", async || {
        (kafka.watermarks(&topic, 0).await == (0, 25_000)).then_some(())
    })
    .await;
    kafka.delete_topic(&topic).await;
}

#[tokio::test]
async fn a_throw_away_kafka_is_reached_by_relays_and_keeps_its_records() {
    let port = net::free_port();
    let relay = Relay::start(&format!("127.0.0.1:{port}"));
    let mut server = ThrowawayKafka::start(&[(port, relay.address().port())], &[]);
    let topic = unique("t");
    Kafka::at(&server.address()).create_topic(&topic, 1).await;
    let relayed = Kafka::at(&relay.address().to_string());
    assert_eq!(relayed.produce_one(Record::to(&topic).payload("a")).await, (0, 0));
    // Clients are told to come back to the relay, so no request goes around it.
    let connections = relay.live();
    assert!(connections > 0);
    relay.down();
    let watermarks = |kafka: &Kafka| {
        use rdkafka::producer::Producer as _;
        let (producer, topic) = (kafka.producer().clone(), topic.clone());
        let look = move || producer.client().fetch_watermarks(&topic, 0, Duration::from_secs(2)).ok();
        async { tokio::task::spawn_blocking(look).await.unwrap() }
    };
    assert_eq!(watermarks(&relayed).await, None);
    relay.restore();
    eventually(PATIENCE, "the relayed client is back", async || watermarks(&relayed).await == Some((0, 1))).await;
    server.kill9();
    server.restart();
    let direct = Kafka::at(&server.address());
    eventually(PATIENCE, "the record is still there", async || watermarks(&direct).await == Some((0, 1))).await;
}
