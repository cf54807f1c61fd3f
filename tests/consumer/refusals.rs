//! What the consumer refuses to do, and what it says then.

use std::time::Duration;

use hapax::consumer::{Consumer, ConsumerError};
use rdkafka::ClientConfig;
use tokio_util::sync::CancellationToken;

use crate::support::{MockKafka, PATIENCE, eventually};
use crate::world::{Counter, Effects, Member, consumer, noting, plain, records};

fn config(settings: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("group.id", "g").set("bootstrap.servers", "127.0.0.1:1");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config
}

async fn refused(consumer: Consumer) -> ConsumerError {
    let handling = plain(|_| async { panic!("nothing may be handled") });
    tokio::time::timeout(PATIENCE, consumer.run(handling, CancellationToken::new()))
        .await
        .expect("at once")
        .unwrap_err()
}

#[tokio::test]
async fn automatic_commits_are_refused_with_the_cure() {
    for name in ["enable.auto.commit", "enable.auto.offset.store"] {
        let error = refused(Consumer::new(config(&[(name, "true")])).topics(["orders"])).await;
        let ConsumerError::Config(refusal) = &error else { panic!("{error}") };
        assert_eq!(refusal.setting, name);
        assert!(error.to_string().contains("set it to false"), "{error}");
        assert!(error.summary().is_none());
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let mut without = config(&[]);
    without.remove("group.id");
    let error = refused(Consumer::new(without).topics(["orders"])).await;
    assert!(error.to_string().starts_with("group.id: is missing"), "{error}");
    let mut without = config(&[]);
    without.remove("bootstrap.servers");
    let error = refused(Consumer::new(without).topics(["orders"])).await;
    assert!(error.to_string().starts_with("bootstrap.servers: is missing"), "{error}");
    let error = refused(Consumer::new(config(&[]))).await;
    assert!(error.to_string().starts_with("topics: are missing"), "{error}");
}

#[tokio::test]
async fn bounds_that_let_nothing_through_are_refused() {
    let consumer = || Consumer::new(config(&[])).topics(["orders"]);
    let nonsense = [
        ("concurrency", consumer().concurrency(0)),
        ("max_messages", consumer().max_messages(0)),
        ("max_bytes", consumer().max_bytes(0)),
        ("partition_messages", consumer().partition_messages(0)),
        ("commit_every", consumer().commit_every(Duration::ZERO)),
        ("commit_after", consumer().commit_after(0)),
        ("drain_deadline", consumer().drain_deadline(Duration::from_secs(3_600))),
    ];
    for (setting, consumer) in nonsense {
        let error = refused(consumer).await;
        let ConsumerError::Config(refusal) = &error else { panic!("{error}") };
        assert_eq!(refusal.setting, setting);
        assert!(error.to_string().starts_with(&format!("{setting}: is ")), "{error}");
    }
}

#[tokio::test]
async fn what_the_broker_decides_in_a_kip_848_group_is_refused() {
    for name in ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"] {
        let error =
            refused(Consumer::new(config(&[("group.protocol", "consumer"), (name, "6000")])).topics(["orders"])).await;
        let ConsumerError::Config(refusal) = &error else { panic!("{error}") };
        assert_eq!(refusal.setting, name);
        assert!(error.to_string().contains("group.protocol=consumer"), "{error}");
    }
}

#[tokio::test]
async fn what_librdkafka_refuses_is_passed_on() {
    let error = refused(Consumer::new(config(&[("no.such.setting", "1")])).topics(["orders"])).await;
    assert!(matches!(error, ConsumerError::Client { .. }), "{error}");
    assert!(error.to_string().contains("no.such.setting"), "{error}");
}

#[test]
fn without_a_runtime_it_says_so() {
    let consumer = Consumer::new(config(&[])).topics(["orders"]);
    let run = consumer.run(plain(|_| std::future::ready(Ok(()))), CancellationToken::new());
    let error = futures_util::FutureExt::now_or_never(run).expect("at once").unwrap_err();
    assert!(matches!(error, ConsumerError::NoRuntime), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_no_offset_to_start_from_is_a_decision_for_a_person() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 10)).await;
    let mut config = kafka.consumer_config("g");
    config.set("auto.offset.reset", "error");
    let handled = Counter::default();
    let counting = {
        let handled = handled.clone();
        plain(move |_| {
            handled.up();
            std::future::ready(Ok(()))
        })
    };
    let error = Member::start(consumer(config, "orders"), counting).end().await.unwrap_err();
    let ConsumerError::Discontinuity { topic, partition, .. } = &error else { panic!("{error}") };
    assert_eq!((topic.as_str(), *partition), ("orders", 0));
    assert!(error.to_string().contains("auto.offset.reset"), "{error}");
    assert_eq!(handled.get(), 0);
    assert_eq!(kafka.committed("g", "orders", 0).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_exist_yet_does_not_end_the_consumer() {
    let kafka = MockKafka::start(&[("there", 1)]);
    kafka.produce(&records("there", 1, 5)).await;
    let effects = Effects::default();
    let both = consumer(kafka.consumer_config("g"), "there").topics(["there", "later"]);
    let member = Member::start(both, noting(&effects));
    effects.reach(5).await;
    assert!(member.is_running());
    kafka.cluster().create_topic("later", 1, 1).unwrap();
    kafka.produce(&records("later", 1, 5)).await;
    eventually(PATIENCE, "the new topic is read", async || effects.of("later", 0).len() == 5).await;
    member.stop().await;
}
