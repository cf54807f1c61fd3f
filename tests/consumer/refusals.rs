//! What the consumer refuses to do, and what it says then.

use std::time::Duration;

use hapax::consumer::{Consumer, ConsumerError};
use rdkafka::ClientConfig;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio_util::sync::CancellationToken;

use crate::support::{Kafka, MockKafka, PATIENCE, eventually, unique};
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
    let error = refused(Consumer::new(config(&[("sasl.pasword", "open sesame")])).topics(["orders"])).await;
    assert!(matches!(error, ConsumerError::Client { .. }), "{error}");
    for text in [error.to_string(), format!("{error:?}")] {
        // A misspelt name may stand before a secret.
        assert!(text.contains("sasl.pasword") && !text.contains("sesame"), "{text}");
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_can_never_join_ends_with_what_would_let_it_in() {
    use RDKafkaRespErr::*;
    let kafka = MockKafka::start(&[("orders", 1)]);
    let cases = [
        (RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT, "session.timeout.ms is 6000: ", false),
        (RD_KAFKA_RESP_ERR_INVALID_GROUP_ID, "group.id is \"g\"", false),
        (RD_KAFKA_RESP_ERR_GROUP_MAX_SIZE_REACHED, "group.max.size", true),
        (RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, "group.instance.id", false),
        (RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, "allow this user", false),
    ];
    for (code, cure, retryable) in cases {
        // Were it not to end, it would join: the broker refuses once.
        kafka.cluster().request_errors(RDKafkaApiKey::JoinGroup, &[code]);
        let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&Effects::default()));
        let error = member.end().await.expect_err(cure);
        assert!(matches!(error, ConsumerError::Kafka { .. }), "{error}");
        assert!(error.to_string().contains(cure), "{cure}: {error}");
        assert_eq!(error.is_retryable(), retryable, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_assignors_the_others_do_not_know_waits_for_them_to_go() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 5)).await;
    let inconsistent = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL;
    kafka.cluster().request_errors(RDKafkaApiKey::JoinGroup, &[inconsistent; 2]);
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
    effects.reach(5).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_real_broker_never_lets_in_ends_with_the_setting_to_change() {
    let kafka = Kafka::real();
    let topic = unique("never");
    kafka.create_topic(&topic, 1).await;
    // More than its group.max.session.timeout.ms.
    let mut long = kafka.consumer_config(&unique("g"));
    long.set("session.timeout.ms", "3600000").set("max.poll.interval.ms", "3600000");
    // An assignor that it does not have.
    let mut unknown = kafka.consumer_config(&unique("g"));
    unknown.remove("session.timeout.ms").remove("heartbeat.interval.ms");
    unknown.set("group.protocol", "consumer").set("group.remote.assignor", "magic");
    for (config, cure) in [(long, "session.timeout.ms is 3600000: "), (unknown, "group.remote.assignor is magic: ")] {
        let error = Member::start(consumer(config, &topic), noting(&Effects::default())).end().await.expect_err(cure);
        assert!(matches!(error, ConsumerError::Kafka { .. }), "{error}");
        assert!(error.to_string().contains(cure) && !error.is_retryable(), "{error}");
    }
}
