//! Messages that the client cannot read: the consumer ends and says why, and passes none of them.

use std::fs;
use std::sync::{Arc, Mutex};

use hapax::consumer::{Consumer, ConsumerError, Message, plain};
use rdkafka::error::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;

use crate::support::{Kafka, PATIENCE, Record, ThrowawayKafka, unique};

/// Reads `topic` until the consumer ends by itself, or until it has handled the payload `after`. What was handled, and how it ended.
async fn read(kafka: &Kafka, topic: &str, settings: &[(&str, &str)]) -> (Vec<String>, Option<ConsumerError>) {
    let mut config = kafka.consumer_config(&unique("reads"));
    for (name, value) in settings {
        config.set(*name, *value);
    }
    let (handled, passed) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
    let handler = plain({
        let (handled, passed) = (Arc::clone(&handled), passed.clone());
        move |message: Message| {
            let payload = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
            if payload == "after" {
                passed.cancel();
            }
            handled.lock().unwrap().push(payload);
            std::future::ready(Ok::<_, String>(()))
        }
    });
    let run = Consumer::new(config).topics([topic]).run(handler, passed);
    let end = tokio::time::timeout(PATIENCE, run).await.expect("it does not wait in silence");
    let handled = handled.lock().unwrap().clone();
    (handled, end.err())
}

#[cfg(not(any(feature = "kafka-gzip", feature = "kafka-zstd")))]
#[tokio::test]
async fn what_this_build_cannot_decompress_ends_the_consumer_and_names_the_feature() {
    let kafka = Kafka::real();
    let ends = ["gzip", "zstd"].map(|codec| {
        let kafka = &kafka;
        async move {
            let topic = unique(codec);
            kafka.create_topic_with(&topic, 1, &[("compression.type", codec)]).await;
            kafka.produce_one(Record::to(&topic).payload("packed")).await;
            let (handled, end) = read(kafka, &topic, &[]).await;
            assert!(handled.is_empty(), "{handled:?}");
            let error = end.expect("it ends by itself");
            assert!(matches!(error, ConsumerError::Kafka { .. }) && !error.is_retryable(), "{error}");
            assert!(error.to_string().contains(&format!("hapax's feature kafka-{codec}")), "{error}");
        }
    });
    futures_util::future::join_all(ends).await;
}

#[tokio::test]
async fn what_is_damaged_in_the_log_is_not_passed() {
    let broker = tokio::task::spawn_blocking(|| ThrowawayKafka::start(&[], &[])).await.unwrap();
    let (kafka, topic) = (Kafka::at(&broker.address()), unique("damaged"));
    kafka.create_topic(&topic, 1).await;
    // A batch each.
    for payload in ["before", "the damaged one", "after"] {
        kafka.produce_one(Record::to(&topic).payload(payload)).await;
    }
    let log = broker.folder().join(format!("data/{topic}-0/00000000000000000000.log"));
    let mut bytes = fs::read(&log).unwrap();
    let at = bytes.windows(7).position(|word| word == b"damaged").expect("the payload is in the log");
    bytes[at] ^= 1;
    fs::write(&log, bytes).unwrap();
    let (handled, end) = read(&kafka, &topic, &[("check.crcs", "true")]).await;
    assert_eq!(handled, ["before"]);
    let error = end.expect("it ends by itself");
    let ConsumerError::Kafka { source, summary, .. } = &error else { panic!("{error}") };
    assert_eq!(source.rdkafka_error_code(), Some(RDKafkaErrorCode::BadMessage), "{error}");
    assert!(
        error.is_retryable() && error.to_string().contains("offset 1 ") && error.to_string().contains("damaged"),
        "{error}"
    );
    assert!(summary.partitions.values().all(|partition| partition.committed == Some(1)), "{summary:?}");
}
