//! What is committed, and when: looked at as the broker sees it.

use std::time::Duration;

use hapax::Retry;
use hapax::consumer::{Consumer, ConsumerError};
use hapax::observe::Phase;
use rdkafka::ClientConfig;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio_util::sync::CancellationToken;

use crate::support::{Kafka, MockKafka, PATIENCE, Record, eventually, unique};
use crate::world::{Effects, Gate, Member, committed, consumer, noting, plain, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_partition_are_handled_in_order_and_committed_while_it_runs() {
    let kafka = MockKafka::start(&[("orders", 3)]);
    kafka.produce(&records("orders", 3, 3_000)).await;
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), {
        let effects = effects.clone();
        plain(move |message| {
            let effects = effects.clone();
            async move {
                // Handlers of one partition never overlap, so even one that yields keeps the order.
                if message.offset() % 7 == 0 {
                    tokio::task::yield_now().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(3_000).await;
    committed(&kafka, "g", "orders", &[1_000; 3]).await;
    let summary = member.stop().await;
    for partition in 0..3 {
        assert_eq!(effects.of("orders", partition), (0..1_000).collect::<Vec<_>>());
        assert_eq!(summary.partitions[&("orders".to_owned(), partition)].committed, Some(1_000));
    }
    assert_eq!((summary.delivered, summary.handled, summary.left), (3_000, 3_000, 0));
    assert!(summary.commits >= 1 && summary.closed, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_a_message_that_cannot_finish_is_not_committed_and_stops_the_consumer() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 200)).await;
    let effects = Effects::default();
    let failing = {
        let effects = effects.clone();
        plain(move |message| {
            let effects = effects.clone();
            async move {
                if message.partition() == 1 && message.offset() == 40 {
                    // The others go on to their end first, so that the count below is exact.
                    effects.poll_until(140).await;
                    return Err("no".into());
                }
                effects.note(&message);
                Ok(())
            }
        })
    };
    let once = consumer(kafka.consumer_config("g"), "orders").retry(Retry::none());
    let error = Member::start(once, failing).end().await.unwrap_err();
    let ConsumerError::Message { topic, partition, offset, source, summary } = &error else { panic!("{error}") };
    assert_eq!((topic.as_str(), *partition, *offset), ("orders", 1, 40));
    assert!(source.to_string().starts_with("no: `Retry::none` ends the consumer here"), "{source}");
    assert_eq!((summary.handled, summary.left), (140, 60));
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(100));
    assert_eq!(kafka.committed("g", "orders", 1).await, Some(40), "40 is not finished, and nothing after it was begun");

    // Repaired, it goes on where it stopped.
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
    effects.reach(200).await;
    committed(&kafka, "g", "orders", &[100, 100]).await;
    member.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1));
    assert_eq!(effects.of("orders", 1), (0..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_a_shutdown_mid_batch_finishes_what_runs_and_leaves_the_rest() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 100)).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let consumed = consumer(kafka.consumer_config("g"), "orders");
    let monitor = consumed.monitor();
    let member = Member::start(consumed, {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                if message.offset() == 30 {
                    gate.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    gate.holds(1).await;
    let stopping = tokio::spawn(member.stop());
    // The stop is under way, and waits for the handler that runs.
    eventually(PATIENCE, "it closes", async || monitor.snapshot().phase == Phase::Closing).await;
    assert!(!stopping.is_finished());
    gate.open();
    let summary = stopping.await.unwrap();
    assert_eq!(effects.of("orders", 0), (0..=30).collect::<Vec<_>>(), "30 was running, 31 was not begun");
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(31));
    assert_eq!((summary.handled, summary.left, summary.closed), (31, 69, true));

    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
    effects.reach(100).await;
    member.stop().await;
    assert_eq!(effects.of("orders", 0), (0..100).collect::<Vec<_>>(), "nothing twice, nothing lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_outlives_the_drain_deadline_is_left_behind() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 20)).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let slow = consumer(kafka.consumer_config("g"), "orders").drain_deadline(Duration::from_millis(200));
    let member = Member::start(slow, {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                if message.partition() == 0 && message.offset() == 3 {
                    gate.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    gate.holds(1).await;
    effects.reach(13).await;
    let summary = member.stop().await;
    gate.open();
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(3));
    assert_eq!(kafka.committed("g", "orders", 1).await, Some(10));
    assert_eq!((summary.handled, summary.left), (13, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_run_commits_what_was_finished_and_leaves_the_group() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 50)).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let rare = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(3_600));
    let member = Member::start(rare, {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                if message.offset() == 20 {
                    gate.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    gate.holds(1).await;
    assert_eq!(kafka.committed("g", "orders", 0).await, None, "an hour has not passed");
    member.abort().await;
    committed(&kafka, "g", "orders", &[20]).await;
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
    effects.reach(50).await;
    member.stop().await;
    assert_eq!(effects.of("orders", 0), (0..50).collect::<Vec<_>>(), "the dropped handler had no effect");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_outside_of_any_wrapper_ends_the_consumer_and_names_the_message() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 20)).await;
    let effects = Effects::default();
    let panicking = {
        let effects = effects.clone();
        plain(move |message| {
            let effects = effects.clone();
            async move {
                if message.partition() == 1 && message.offset() == 5 {
                    effects.poll_until(15).await;
                    panic!("a bug");
                }
                effects.note(&message);
                Ok(())
            }
        })
    };
    let once = consumer(kafka.consumer_config("g"), "orders").retry(Retry::none());
    let error = Member::start(once, panicking).end().await.unwrap_err();
    let ConsumerError::Message { topic, partition, offset, source, .. } = &error else { panic!("{error}") };
    assert_eq!((topic.as_str(), *partition, *offset), ("orders", 1, 5));
    assert!(source.to_string().contains("panicked: a bug"), "{source}");
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(10));
    assert_eq!(kafka.committed("g", "orders", 1).await, Some(5));
}

#[test]
fn a_runtime_that_goes_away_ends_the_consumer_and_commits_nothing_that_is_not_known() {
    let own = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let kafka = own.block_on(async {
        let kafka = MockKafka::start(&[("orders", 1)]);
        kafka.produce(&records("orders", 1, 50)).await;
        kafka
    });
    let effects = Effects::default();
    let rare = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(3_600));
    // The future is polled here; the handlers are on a runtime that is shut down under it.
    let mut run = Box::pin(rare.run(noting(&effects), CancellationToken::new()));
    other.block_on(async {
        tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            () = effects.reach(50) => {}
        }
    });
    other.shutdown_timeout(PATIENCE);
    let error = own.block_on(async { tokio::time::timeout(PATIENCE, run).await }).expect("it ends").unwrap_err();
    assert!(matches!(error, ConsumerError::Gone { .. }), "{error}");
    let summary = error.summary().expect("it had started");
    assert!(summary.closed, "the group is left: {summary:?}");
    // The engine went with its task: nothing is committed that it did not say, and all of it comes again.
    own.block_on(async {
        assert_eq!(kafka.committed("g", "orders", 0).await, None);
        let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
        committed(&kafka, "g", "orders", &[50]).await;
        member.stop().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_commits_before_the_time() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 100)).await;
    let effects = Effects::default();
    let counted =
        consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(3_600)).commit_after(100);
    let member = Member::start(counted, noting(&effects));
    committed(&kafka, "g", "orders", &[100]).await;
    kafka.produce(&records("orders", 1, 50)).await;
    effects.reach(150).await;
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(100), "neither time nor count is reached");
    member.stop().await;
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(150), "the end commits");
}

async fn f11(errors: &[RDKafkaRespErr]) {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 100)).await;
    let effects = Effects::default();
    kafka.cluster().request_errors(RDKafkaApiKey::OffsetCommit, errors);
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
    effects.reach(100).await;
    // The refused commit was not taken for a success: it, or what came after the rejoin, is committed in the end.
    committed(&kafka, "g", "orders", &[100]).await;
    let summary = member.stop().await;
    assert!(summary.failed_commits >= 1, "{errors:?}: {summary:?}");
    assert_eq!(effects.distinct(), 100);
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(100), "never backwards");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_commit_refused_for_an_illegal_generation_is_no_success() {
    f11(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_commit_refused_in_a_rebalance_is_no_success() {
    f11(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_commit_refused_for_an_unknown_member_is_no_success() {
    f11(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_failed_is_made_again_at_the_next_cadence() {
    // No rebalance follows this error: nothing but the next commit helps.
    f11(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_last_commit_that_is_refused_does_not_keep_the_consumer() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 100)).await;
    let effects = Effects::default();
    let rare = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(3_600));
    let member = Member::start(rare, noting(&effects));
    effects.reach(100).await;
    kafka
        .cluster()
        .request_errors(RDKafkaApiKey::OffsetCommit, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID; 4]);
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.commits, summary.failed_commits), (100, 0, 1), "{summary:?}");
    assert_eq!(kafka.committed("g", "orders", 0).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_last_commit_that_a_rebalance_refuses_is_asked_for_again() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 100)).await;
    let effects = Effects::default();
    let rare = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(3_600));
    let member = Member::start(rare, noting(&effects));
    effects.reach(100).await;
    kafka
        .cluster()
        .request_errors(RDKafkaApiKey::OffsetCommit, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS; 3]);
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.commits, summary.failed_commits), (100, 1, 0), "{summary:?}");
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_commit_that_nobody_answers_does_not_keep_the_consumer() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 10)).await;
    let effects = Effects::default();
    let mut config = kafka.consumer_config("g");
    // A quarter of this is what the last commit is waited for.
    config.set("max.poll.interval.ms", "8000");
    let rare = consumer(config, "orders").commit_every(Duration::from_secs(3_600));
    let member = Member::start(rare, noting(&effects));
    effects.reach(10).await;
    kafka.cluster().broker_down(1).unwrap();
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.commits, summary.failed_commits), (10, 0, 1), "{summary:?}");
    kafka.cluster().broker_up(1).unwrap();
    // What was not committed comes again.
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
    committed(&kafka, "g", "orders", &[10]).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_the_real_broker_has_the_finished_prefix_over_aborted_transactions() {
    // Markers and aborted records leave gaps in the offsets.
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    let kafka = Kafka::real();
    let (topic, group) = (unique("gaps"), unique("g"));
    kafka.create_topic(&topic, 1).await;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("transactional.id", unique("tx"))
        .create()
        .unwrap();
    let produce = {
        let topic = topic.clone();
        move || {
            producer.init_transactions(PATIENCE).unwrap();
            for round in 0..20 {
                producer.begin_transaction().unwrap();
                for n in 0..5 {
                    let payload = format!("{round} {n}");
                    producer.send(BaseRecord::<(), str>::to(&topic).partition(0).payload(&payload)).unwrap();
                }
                producer.flush(PATIENCE).unwrap();
                if round % 2 == 0 {
                    producer.commit_transaction(PATIENCE).unwrap();
                } else {
                    producer.abort_transaction(PATIENCE).unwrap();
                }
            }
        }
    };
    tokio::task::spawn_blocking(produce).await.unwrap();
    // The last marker is written after the producer has been told that its transaction ended.
    eventually(PATIENCE, "the last marker is written", async || kafka.watermarks(&topic, 0).await.1 == 120).await;
    let last = kafka.produce_one(Record::to(&topic).partition(0).payload("last")).await;
    assert_eq!(last, (0, 120), "100 records and 20 markers come before it");
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config(&group), &topic), noting(&effects));
    effects.reach(51).await;
    committed(&kafka, &group, &topic, &[121]).await;
    let summary = member.stop().await;
    let expected: Vec<i64> = (0..10).flat_map(|round| (round * 12)..(round * 12 + 5)).chain([120]).collect();
    assert_eq!(effects.of(&topic, 0), expected, "aborted messages have no effect");
    assert_eq!((summary.handled, summary.left), (51, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_committed_for_what_was_only_delivered() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 20)).await;
    let gate = Gate::default();
    let waiting = {
        let gate = gate.clone();
        plain(move |message| {
            let gate = gate.clone();
            async move {
                if message.partition() == 0 {
                    gate.pass().await;
                }
                Ok(())
            }
        })
    };
    let impatient = Consumer::new(kafka.consumer_config("g"))
        .topics(["orders"])
        .commit_every(Duration::from_millis(10))
        .drain_deadline(Duration::from_millis(100));
    let member = Member::start(impatient, waiting);
    gate.holds(1).await;
    // Commits come and go: each time with nothing of the partition whose messages are not finished.
    for round in 1..=3 {
        committed_of(&kafka, 1, 10 * round).await;
        assert_eq!(kafka.committed("g", "orders", 0).await, None);
        let more = |_| Record::to("orders").partition(1).payload("more");
        kafka.produce(&(0..10).map(more).collect::<Vec<_>>()).await;
    }
    committed_of(&kafka, 1, 40).await;
    let summary = member.stop().await;
    assert_eq!(kafka.committed("g", "orders", 0).await, None);
    assert_eq!((summary.handled, summary.left), (40, 10));
    eventually(PATIENCE, "the handler is dropped, not left to finish", async || gate.waiting() == 0).await;
}

async fn committed_of(kafka: &Kafka, partition: i32, offset: i64) {
    eventually(PATIENCE, &format!("{offset} is committed"), async || {
        kafka.committed("g", "orders", partition).await == Some(offset)
    })
    .await;
}
