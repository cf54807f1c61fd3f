//! Letters on their way: what stands in them, where they go, and what happens when Kafka does not take them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::consumer::letter::{self, Cause, GivenUp, LetterError, LetterSender};
use hapax::consumer::{DeadLetter, DeadLetterError};
use hapax::identity::{Key, header};
use hapax::message::{MessageView, Parts};
use hapax::store::MemoryStore;
use hapax::{Done, ErrorClass, Once};
use rdkafka::ClientConfig;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Kafka, MockKafka, eventually, unique};
use crate::world::{Effects, header_of, letters, read_all};

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn order() -> Parts {
    Parts::new("orders").at(2, 4711).timestamp(1_000).key("customer-7").payload("one coffee").header("id", "a1")
}

fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 16])
}

async fn sender(kafka: &Kafka, letters: DeadLetter) -> LetterSender {
    letters.connect(&kafka.consumer_config("shop")).await.expect("the topic is there")
}

/// A producer that gives up soon.
fn impatient() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("message.timeout.ms", "1500").set("socket.timeout.ms", "1000").set("reconnect.backoff.max.ms", "200");
    config
}

async fn a_letter_says_everything(kafka: &Kafka, dead: &str) {
    let sender = sender(kafka, DeadLetter::topic(dead).scope("shop", "ship")).await;
    let message = order().header("trace", "t1").null_header("nothing").header("id", "a2").header("", "");
    let given_up = GivenUp::new(Cause::Attempts)
        .error(ErrorClass::Retryable, "no answer from https://ada:s3cret@carrier")
        .attempts(8)
        .between(5_000, 9_000)
        .key(key(0xab));
    let before = now_ms();
    sender.send(&message, &given_up).await.unwrap();

    let (letter, info) = letters(kafka, dead).await.pop().expect("one letter");
    assert_eq!((letter.topic(), MessageView::key(&letter)), (dead, Some(&b"customer-7"[..])));
    assert_eq!(MessageView::payload(&letter), Some(&b"one coffee"[..]));
    let mut shown = Vec::new();
    letter.for_each_header(&mut |name, value| {
        shown.push(format!("{name}={}", value.map_or("(null)", |value| std::str::from_utf8(value).unwrap())));
    });
    let expected = [
        "id=a1",
        "trace=t1",
        "nothing=(null)",
        "id=a2",
        "=",
        "hapax-dead-topic=orders",
        "hapax-dead-partition=2",
        "hapax-dead-offset=4711",
        "hapax-dead-timestamp=1000",
        "hapax-dead-cause=attempts",
        "hapax-dead-class=retryable",
        "hapax-dead-error=no answer from https://***@carrier",
        "hapax-dead-attempts=8",
        "hapax-dead-first-at=5000",
        "hapax-dead-last-at=9000",
        "hapax-dead-hops=1",
        "hapax-dead-group=shop",
        "hapax-dead-handler=ship",
        "hapax-dead-key=abababababababababababababababab",
        "hapax-dead-identity=abababababababababababababababab.1",
    ];
    assert_eq!(shown, expected);
    assert_eq!((info.cause, info.attempts, info.key, info.hops), (Cause::Attempts, Some(8), Some(key(0xab)), 1));
    let timestamp = letter.timestamp_ms().unwrap();
    assert!(timestamp >= before - 60_000, "as old as its being produced, not as its message: {timestamp}");
}

#[tokio::test]
async fn a_letter_says_everything_mock() {
    let kafka = MockKafka::start(&[("dead", 1)]);
    a_letter_says_everything(&kafka, "dead").await;
}

#[tokio::test]
async fn a_letter_says_everything_real() {
    let (kafka, dead) = (Kafka::real(), unique("dead"));
    kafka.create_topic(&dead, 1).await;
    a_letter_says_everything(&kafka, &dead).await;
}

#[tokio::test]
async fn null_stays_null_and_empty_stays_empty() {
    let kafka = MockKafka::start(&[("dead", 3)]);
    let sender = sender(&kafka, DeadLetter::topic("dead").keep_timestamps().error_text(0)).await;
    let tombstone = Parts::new("orders").at(1, 1).key("").timestamp(77);
    let fatal = GivenUp::new(Cause::Fatal).error(ErrorClass::Fatal, "never");
    sender.send(&tombstone, &fatal).await.unwrap();
    let bare = Parts::new("orders").at(1, 2).payload("");
    sender.send(&bare, &GivenUp::new(Cause::Identity)).await.unwrap();
    let mut found = letters(&kafka, "dead").await;
    found.sort_by_key(|(_, info)| info.offset);
    let (letter, info) = &found[0];
    assert_eq!((MessageView::key(letter), MessageView::payload(letter)), (Some(&b""[..]), None));
    assert_eq!((letter.timestamp_ms(), info.timestamp_ms, info.error.as_deref()), (Some(77), Some(77), None));
    assert_eq!(info.identity, "orders[1]@1.1");
    assert_eq!(
        (info.group.as_deref(), info.handler.as_deref()),
        (Some("shop"), None),
        "group.id, where nothing else is said"
    );
    let (letter, info) = &found[1];
    assert_eq!((MessageView::key(letter), MessageView::payload(letter)), (None, Some(&b""[..])));
    assert_eq!((info.timestamp_ms, info.cause, info.class), (None, Cause::Identity, None));
}

#[tokio::test]
async fn one_key_goes_to_one_partition_and_null_keys_where_they_came_from() {
    let kafka = MockKafka::start(&[("dead", 4)]);
    let sender = sender(&kafka, DeadLetter::topic("dead")).await;
    for n in 0..40_i64 {
        let keyed = Parts::new("orders").at((n % 7) as i32, n).key(format!("k{}", n % 5));
        sender.send(&keyed, &GivenUp::new(Cause::Fatal)).await.unwrap();
        let null = Parts::new("orders").at((n % 7) as i32, 1_000 + n);
        sender.send(&null, &GivenUp::new(Cause::Fatal)).await.unwrap();
    }
    let found = letters(&kafka, "dead").await;
    assert_eq!(found.len(), 80);
    let mut places = std::collections::HashMap::new();
    for (letter, info) in &found {
        match MessageView::key(letter) {
            Some(key) => {
                let place = places.entry(key.to_vec()).or_insert(letter.partition());
                assert_eq!(*place, letter.partition(), "one key, one partition");
            }
            None => assert_eq!(letter.partition(), info.partition % 4),
        }
    }
    // Java's producers put them there: murmur2 of the key.
    assert_eq!(places.len(), 5);
    assert!(places.values().any(|place| *place != places[&b"k0"[..]]), "keys are spread: {places:?}");
}

#[tokio::test]
async fn a_missing_topic_is_an_error_at_the_start() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    for kafka in [&*kafka, &Kafka::real()] {
        let dead = unique("missing");
        for _ in 0..2 {
            // Asking twice: the question did not create it.
            let error = DeadLetter::topic(&*dead).connect(&kafka.consumer_config("g")).await.expect_err("missing");
            assert!(
                matches!(&error, DeadLetterError::Topic(LetterError::NoTopic { topic }) if *topic == dead),
                "{error}"
            );
            assert!(error.to_string().contains(".create("), "{error}");
        }
    }
}

#[tokio::test]
async fn a_topic_is_created_where_that_is_wished() {
    let (kafka, dead) = (Kafka::real(), unique("dead"));
    let wish = DeadLetter::topic(&*dead).create(3, 1);
    // Several members at once.
    let config = kafka.consumer_config("g");
    let made = futures_util::future::join_all((0..4).map(|_| wish.connect(&config))).await;
    for sender in made {
        let sender = sender.expect("it is there now");
        let message = Parts::new("orders").at(5, 1);
        // The topic's leaders may not be elected yet.
        eventually(Duration::from_secs(60), "the letter is taken", async || {
            match sender.send(&message, &GivenUp::new(Cause::Fatal)).await {
                Ok(()) => true,
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    false
                }
            }
        })
        .await;
    }
    let found = letters(&kafka, &dead).await;
    assert!(found.len() >= 4);
    assert!(found.iter().all(|(letter, _)| letter.partition() == 2), "partition 5 of 3");
    let error = DeadLetter::topic(unique("dead")).create(1, 9).connect(&config).await.expect_err("one broker");
    assert!(matches!(error, DeadLetterError::Topic(LetterError::Refused { .. })), "{error}");
}

#[tokio::test]
async fn a_compacted_topic_is_refused() {
    let (kafka, dead) = (Kafka::real(), unique("dead"));
    kafka.create_topic_with(&dead, 1, &[("cleanup.policy", "compact,delete")]).await;
    // A broker with much to do may not tell its settings in time, which is no reason not to start.
    eventually(Duration::from_secs(60), "it is found to be compacted", async || {
        match DeadLetter::topic(&*dead).connect(&kafka.consumer_config("g")).await {
            Ok(_) => false,
            Err(error) => {
                assert!(matches!(error, DeadLetterError::Topic(LetterError::Compacted { .. })), "{error}");
                true
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_letter_that_is_too_large_is_refused_for_good() {
    let (kafka, dead) = (Kafka::real(), unique("dead"));
    kafka.create_topic_with(&dead, 1, &[("max.message.bytes", "3000")]).await;
    let sender = sender(&kafka, DeadLetter::topic(&*dead)).await;
    let error = sender.send(&order().payload(vec![7; 5_000]), &GivenUp::new(Cause::Fatal)).await.expect_err("large");
    assert!(!error.is_retryable() && error.to_string().contains("max.message.bytes"), "{error}");
    sender.send(&order(), &GivenUp::new(Cause::Fatal)).await.expect("others go on");
    assert_eq!(letters(&kafka, &dead).await.len(), 1);
    // Beyond librdkafka's own default limit of 1,000,000 bytes the topic decides.
    let roomy = unique("dead");
    kafka.create_topic_with(&roomy, 1, &[("max.message.bytes", "3000000")]).await;
    let sender = self::sender(&kafka, DeadLetter::topic(&*roomy)).await;
    sender.send(&order().payload(vec![7; 2_000_000]), &GivenUp::new(Cause::Fatal)).await.expect("there is room");
}

#[tokio::test]
async fn a_topic_that_goes_away_is_an_error_for_good() {
    let dead = unique("dead");
    // Not the one that deletes it: whoever knows a topic asks for it again and again, and so the broker would make it again.
    Kafka::real().create_topic(&dead, 1).await;
    let kafka = Kafka::real();
    let mut quick = ClientConfig::new();
    quick.set("topic.metadata.propagation.max.ms", "1000").set("topic.metadata.refresh.interval.ms", "500");
    let sender = sender(&kafka, DeadLetter::topic(&*dead).producer(quick)).await;
    sender.send(&order(), &GivenUp::new(Cause::Fatal)).await.unwrap();
    kafka.delete_topic(&dead).await;
    eventually(Duration::from_secs(60), "the topic is missed", async || {
        let sent = sender.send(&order(), &GivenUp::new(Cause::Fatal)).await;
        matches!(sent, Err(LetterError::NoTopic { .. }))
    })
    .await;
}

#[tokio::test]
async fn settings_that_could_lose_letters_are_refused() {
    let mut weak = ClientConfig::new();
    weak.set("acks", "1");
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", "localhost:1");
    for letters in [DeadLetter::topic("dead").producer(weak), DeadLetter::topic("no topic")] {
        let refused = letters.connect(&client).await;
        assert!(matches!(refused, Err(DeadLetterError::Config(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for() {
    let kafka = MockKafka::start(&[("dead", 1)]);
    let sender = sender(&kafka, DeadLetter::topic("dead").producer(impatient())).await;
    kafka.cluster().broker_down(1).unwrap();
    let error = sender.send(&order(), &GivenUp::new(Cause::Fatal).key(key(1))).await.expect_err("away");
    assert!(error.is_retryable(), "{error}");
    kafka.cluster().broker_up(1).unwrap();
    eventually(Duration::from_secs(60), "the letter is taken", async || {
        sender.send(&order(), &GivenUp::new(Cause::Fatal).key(key(1))).await.is_ok()
    })
    .await;
    let found = letters(&kafka, "dead").await;
    assert!(!found.is_empty());
    assert!(found.iter().all(|(_, info)| info.identity == found[0].1.identity), "however often it came");
}

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_is_looked_at_again() {
    let kafka = MockKafka::start(&[("dead", 4)]);
    kafka.cluster().broker_down(1).unwrap();
    let sender = sender(&kafka, DeadLetter::topic("dead").producer(impatient())).await;
    let absent = self::sender(&kafka, DeadLetter::topic("absent").producer(impatient())).await;
    kafka.cluster().broker_up(1).unwrap();
    let null_key = Parts::new("orders").at(6, 1);
    eventually(Duration::from_secs(60), "the letter is taken", async || {
        sender.send(&null_key, &GivenUp::new(Cause::Fatal)).await.is_ok()
    })
    .await;
    assert!(
        letters(&kafka, "dead").await.iter().all(|(letter, _)| letter.partition() == 2),
        "its partitions are known now"
    );
    eventually(Duration::from_secs(60), "the missing topic is found out", async || {
        let result = absent.send(&null_key, &GivenUp::new(Cause::Fatal)).await;
        matches!(result, Err(LetterError::NoTopic { .. }))
    })
    .await;
}

#[tokio::test]
async fn a_producer_that_ended_is_made_anew() {
    let kafka = MockKafka::start(&[("dead", 1)]);
    let sender = sender(&kafka, DeadLetter::topic("dead").producer(impatient())).await;
    sender.send(&order(), &GivenUp::new(Cause::Fatal)).await.unwrap();
    // Fatal to an idempotent producer: it refuses everything from then on.
    let fenced = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH; 1];
    let disordered = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER; 1];
    for errors in [fenced, disordered] {
        kafka.cluster().request_errors(RDKafkaApiKey::Produce, &errors);
        eventually(Duration::from_secs(60), "letters are taken again", async || {
            let sent = sender.send(&order(), &GivenUp::new(Cause::Fatal)).await;
            assert!(
                sent.as_ref().is_ok_and(|()| true) || sent.as_ref().is_err_and(LetterError::is_retryable),
                "{sent:?}"
            );
            sent.is_ok()
        })
        .await;
    }
    assert!(letters(&kafka, "dead").await.len() >= 3);
}

#[tokio::test]
async fn rights_that_are_missing_are_an_error_for_good() {
    let kafka = MockKafka::start(&[("dead", 1)]);
    let sender = sender(&kafka, DeadLetter::topic("dead")).await;
    let denied = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED];
    kafka.cluster().request_errors(RDKafkaApiKey::Produce, &denied);
    let error = sender.send(&order(), &GivenUp::new(Cause::Fatal)).await.expect_err("denied");
    assert!(!error.is_retryable() && error.to_string().contains("right to write"), "{error}");
}

#[tokio::test]
async fn nothing_goes_round_for_ever() {
    let kafka = MockKafka::start(&[("dead", 1)]);
    let sender = sender(&kafka, DeadLetter::topic("dead").max_hops(3)).await;
    let own = Parts::new("dead").at(0, 1);
    let error = sender.send(&own, &GivenUp::new(Cause::Fatal)).await.expect_err("its own topic");
    assert!(matches!(error, LetterError::Loop { .. }) && !error.is_retryable(), "{error}");
    for hops in 0..5 {
        let message = order().header(letter::GENERATION, hops.to_string());
        let sent = sender.send(&message, &GivenUp::new(Cause::Fatal)).await;
        if hops < 3 {
            sent.unwrap();
        } else {
            let error = sent.expect_err("too often");
            assert!(matches!(error, LetterError::TooManyHops { most: 3, .. }) && !error.is_retryable(), "{error}");
        }
    }
    let found = letters(&kafka, "dead").await;
    assert_eq!(found.iter().map(|(_, info)| info.hops).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_letter_that_comes_twice_is_handled_once() {
    let kafka = MockKafka::start(&[("dead", 2)]);
    let sender = sender(&kafka, DeadLetter::topic("dead")).await;
    let by_key = GivenUp::new(Cause::Attempts).key(key(1));
    let by_position = GivenUp::new(Cause::Identity);
    // As by a process that died between acknowledgement and settle, and its successor: the same message, another failure.
    for attempt in 2..4 {
        let given_up = by_key.clone().attempts(attempt).error(ErrorClass::Retryable, attempt);
        sender.send(&order(), &given_up).await.unwrap();
        sender.send(&order(), &by_position).await.unwrap();
    }
    // Other messages, and a second death of the first.
    sender.send(&order(), &GivenUp::new(Cause::Attempts).key(key(2))).await.unwrap();
    sender.send(&order().at(2, 4712), &by_position).await.unwrap();
    sender.send(&order().header(letter::GENERATION, "1"), &by_key).await.unwrap();
    let once = Once::builder(MemoryStore::new())
        .scope("alerts", "tell")
        .identify(header(letter::IDENTITY))
        .accept_unsafe_settings()
        .build()
        .await
        .unwrap();
    let effects = Effects::default();
    let read = read_all(&kafka, "dead").await;
    assert_eq!(read.len(), 7);
    for letter in &read {
        let done = once.handle(letter, async |_| {
            effects.note(header_of(letter, letter::IDENTITY).unwrap());
            Ok::<_, String>(())
        });
        assert!(matches!(done.await.unwrap(), Done::Handled(()) | Done::Duplicate { .. }));
    }
    assert_eq!(effects.all(), 5);
    assert_eq!(effects.of("orders[2]@4711.1"), 1);
}

#[tokio::test]
async fn what_the_broker_recovers_from_is_retried() {
    let kafka = MockKafka::start(&[("dead", 1)]);
    let sender = sender(&kafka, DeadLetter::topic("dead")).await;
    let passing = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 2];
    kafka.cluster().request_errors(RDKafkaApiKey::Produce, &passing);
    sender.send(&order(), &GivenUp::new(Cause::Fatal)).await.unwrap();
    assert_eq!(letters(&kafka, "dead").await.len(), 1);
}
