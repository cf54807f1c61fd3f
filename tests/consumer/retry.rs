//! What fails: parked, tried again, given up, or waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hapax::identity::header;
use hapax::store::{MemoryStore, SqliteStore};
use hapax::{Claim, ConsumerError, Message, Mode, Once, OnceBuilder, Order, Retry, Unavailable};

use crate::support::{MockKafka, PATIENCE, Record, eventually};
use crate::world::{Counter, Effects, Member, committed, consumer, plain, records};

type Boxed = Box<dyn std::error::Error + Send + Sync>;

fn builder() -> OnceBuilder {
    Once::builder(MemoryStore::new()).scope("tests", "retry").identify(header("id"))
}

/// What the handler needs is down: nothing is tried for its own sake, no attempt is used up, and polling goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_down_pauses_the_partitions_and_burns_no_attempt() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    let (effects, calls) = (Effects::default(), Counter::default());
    let down = Arc::new(AtomicBool::new(true));
    // Two attempts would be gone at once.
    let once = builder().retry(Retry::fixed(Duration::from_millis(1)).attempts(2)).build().await.unwrap();
    let mut config = kafka.consumer_config("g");
    config.set("max.poll.interval.ms", "6000");
    let member = Member::start(consumer(config, "orders").order(Order::Unordered).partition_messages(32), {
        let (effects, calls, down) = (effects.clone(), calls.clone(), Arc::clone(&down));
        once.each(move |message: Message, claim: Claim| {
            let (effects, calls, down) = (effects.clone(), calls.clone(), Arc::clone(&down));
            async move {
                calls.up();
                if down.load(Ordering::SeqCst) {
                    return Err(Boxed::from(Unavailable::new("the bank does not answer")));
                }
                assert_eq!(claim.attempt(), 1, "an attempt was burnt");
                effects.note(&message);
                Ok(())
            }
        })
    });
    kafka.produce(&records("orders", 2, 1_000)).await;
    eventually(PATIENCE, "it was probed", async || calls.get() > 5).await;
    // Longer than max.poll.interval.ms.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(effects.distinct(), 0);
    assert!(calls.get() < 400, "{} calls: not one for each message", calls.get());
    assert!(member.is_running());
    down.store(false, Ordering::SeqCst);
    effects.reach(1_000).await;
    committed(&kafka, "g", "orders", &[500, 500]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead), (1_000, 0));
    assert_eq!(summary.partitions[&("orders".to_owned(), 0)].assigned, 1, "the membership was kept");
    assert!(effects.counts().values().all(|count| *count == 1));
}

/// Attempts are the store's: they go on where another process left them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_survive_the_consumer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.db");
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 3)).await;
    let effects = Effects::default();
    let last = Counter::default();
    for round in 1..=3 {
        let store = SqliteStore::open(&path).await.unwrap();
        let once = Once::builder(store).scope("tests", "retry").identify(header("id")).build().await.unwrap();
        // A day of waiting, which is not waited for; the same message is due again when the next consumer comes.
        let patient =
            consumer(kafka.consumer_config("g"), "orders").retry(Retry::fixed(Duration::from_millis(1)).attempts(3));
        let stop_at = round;
        let member = Member::start(patient, {
            let (effects, last) = (effects.clone(), last.clone());
            once.each(move |message: Message, claim: Claim| {
                let (effects, last) = (effects.clone(), last.clone());
                async move {
                    if message.offset() == 1 {
                        while last.get() < claim.attempt() {
                            last.up();
                        }
                        if claim.attempt() >= stop_at {
                            // Where this process ends.
                            std::future::pending::<()>().await;
                        }
                        return Err(String::from("no"));
                    }
                    effects.note(&message);
                    Ok(())
                }
            })
        });
        eventually(PATIENCE, "the attempt has begun", async || last.get() >= round).await;
        member.abort().await;
        // Dropped where it waited, the handler has failed; the store is told in the background.
        eventually(PATIENCE, "the store has heard of it", async || {
            once.settle_pending(Duration::from_secs(1)).await.is_empty()
        })
        .await;
    }
    let store = SqliteStore::open(&path).await.unwrap();
    let once = Once::builder(store).scope("tests", "retry").identify(header("id")).build().await.unwrap();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders").retry(Retry::default().attempts(3)), {
        let effects = effects.clone();
        once.each(move |message: Message, _: Claim| {
            assert_ne!(message.offset(), 1, "its three attempts are used up");
            effects.note(&message);
            std::future::ready(Ok::<_, String>(()))
        })
    });
    committed(&kafka, "g", "orders", &[3]).await;
    let summary = member.stop().await;
    assert_eq!((summary.dead, last.get()), (1, 3), "{summary}");
    assert_eq!(effects.of("orders", 0), [0, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_once_loses_what_fails_and_repeats_nothing() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    let mut sent = records("orders", 2, 200);
    sent.extend(records("orders", 2, 200));
    kafka.produce(&sent).await;
    let once = builder().mode(Mode::AtMostOnce).build().await.unwrap();
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), {
        let effects = effects.clone();
        once.each(move |message: Message, _: Claim| {
            effects.note(&message);
            std::future::ready(if message.offset() % 10 == 3 { Err("lost") } else { Ok(()) })
        })
    });
    committed(&kafka, "g", "orders", &[200, 200]).await;
    let summary = member.stop().await;
    assert_eq!(effects.distinct(), 200, "each identity began once");
    assert!(effects.counts().values().all(|count| *count == 1));
    assert_eq!((summary.handled, summary.dead, summary.duplicates()), (180, 20, 200), "{summary}");
}

/// Without a store: tried again in order, and the end where attempts are used up and nothing keeps the message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_a_message_is_tried_again_and_then_ends_the_consumer() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 30)).await;
    let (effects, tries, poison) = (Effects::default(), Counter::default(), Counter::default());
    let handler = || {
        let (effects, tries, poison) = (effects.clone(), tries.clone(), poison.clone());
        plain(move |message| {
            let (effects, tries, poison) = (effects.clone(), tries.clone(), poison.clone());
            async move {
                match message.offset() {
                    5 if tries.up() < 3 => return Err("once more".into()),
                    20 if poison.up() <= 4 => panic!("poison"),
                    _ => {}
                }
                effects.note(&message);
                Ok(())
            }
        })
    };
    let four = || {
        let retry = Retry::fixed(Duration::from_millis(10)).attempts(4);
        consumer(kafka.consumer_config("g"), "orders").retry(retry)
    };
    let error = Member::start(four(), handler()).end().await.unwrap_err();
    let ConsumerError::Message { offset, source, summary, .. } = &error else { panic!("{error}") };
    assert_eq!((*offset, summary.handled), (20, 20), "{error}");
    assert!(source.to_string().contains("panicked: poison"), "{source}");
    assert_eq!((tries.get(), poison.get()), (3, 4));
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(20));
    let member = Member::start(four(), handler());
    committed(&kafka, "g", "orders", &[30]).await;
    member.stop().await;
    assert_eq!(effects.of("orders", 0), (0..30).collect::<Vec<_>>(), "in order, each once");
}

/// A message that waits long for its retry keeps neither its partition's other keys nor its buffer's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_message_is_whole_when_its_turn_comes() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let record = |n: i32| {
        let body = vec![u8::try_from(n % 251).unwrap(); 1_000];
        Record::to("orders")
            .partition(0)
            .key(format!("{n}"))
            .payload(body)
            .header("id", format!("{n}"))
            .timestamp(n.into())
    };
    let sent: Vec<Record> = (1..=2_000).map(record).collect();
    kafka.produce(&sent).await;
    let (effects, parked) = (Effects::default(), Counter::default());
    let once = builder().retry(Retry::fixed(Duration::from_secs(2))).build().await.unwrap();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders").order(Order::Key), {
        let (effects, parked) = (effects.clone(), parked.clone());
        once.each(move |message: Message, claim: Claim| {
            let n = message.offset() + 1;
            let whole = message.key() == Some(n.to_string().as_bytes())
                && message.payload() == Some(&[u8::try_from(n % 251).unwrap(); 1_000][..])
                && message.header("id") == Some(n.to_string().as_bytes())
                && (message.topic(), message.partition(), message.timestamp_ms()) == ("orders", 0, Some(n));
            assert!(whole, "{message:?}");
            if n % 500 == 7 && claim.attempt() == 1 {
                parked.up();
                return std::future::ready(Err("later"));
            }
            effects.note(&message);
            std::future::ready(Ok(()))
        })
    });
    effects.reach(2_000).await;
    committed(&kafka, "g", "orders", &[2_000]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, parked.get(), once.counts().panicked), (2_000, 4, 0));
}
