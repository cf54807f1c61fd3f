//! What runs side by side, and what comes after what.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hapax::consumer::Handed;
use hapax::identity::header;
use hapax::store::{MemoryStore, SqliteStore};
use hapax::{Claim, Message, Once, Order, Retry};

use crate::support::{MockKafka, Record};
use crate::world::{Counter, Effects, Gate, Member, committed, consumer, plain, records};

async fn once() -> Once {
    let retry = Retry::fixed(Duration::from_millis(20)).attempts(5);
    Once::builder(MemoryStore::new()).scope("tests", "order").identify(header("id")).retry(retry).build().await.unwrap()
}

/// Offsets in the order handled, by partition and record key.
type ByKey = BTreeMap<(i32, Vec<u8>), Vec<i64>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unordered_handlers_run_side_by_side_up_to_the_bound() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 300)).await;
    let (effects, gate, running, most) = (Effects::default(), Gate::default(), Counter::default(), Counter::default());
    let now = Arc::new(AtomicUsize::new(0));
    let bounded = consumer(kafka.consumer_config("g"), "orders").order(Order::Unordered).concurrency(40);
    let member = Member::start(bounded, {
        let (effects, gate, running, most) = (effects.clone(), gate.clone(), running.clone(), most.clone());
        let now = Arc::clone(&now);
        once().await.each(move |message: Message, _: Claim| {
            let (effects, gate, running, most) = (effects.clone(), gate.clone(), running.clone(), most.clone());
            let now = Arc::clone(&now);
            async move {
                running.up();
                if now.fetch_add(1, Ordering::SeqCst) >= 40 {
                    most.up();
                }
                gate.pass().await;
                now.fetch_sub(1, Ordering::SeqCst);
                effects.note(&message);
                Ok::<_, String>(())
            }
        })
    });
    gate.holds(40).await;
    assert_eq!((running.get(), effects.distinct()), (40, 0));
    gate.open();
    effects.reach(300).await;
    committed(&kafka, "g", "orders", &[150, 150]).await;
    member.stop().await;
    assert_eq!(most.get(), 0, "more than the bound ran at one time");
    assert!(effects.counts().values().all(|count| *count == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_key_blocks_itself_alone_and_each_key_keeps_its_order() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    let record = |n: i32| {
        let record = Record::to("orders").partition(n % 2).payload("").header("id", format!("{n}"));
        // One slow key, forty others, and some that are null.
        match n % 10 {
            0 => record.key("slow"),
            9 => record,
            _ => record.key(format!("key {}", n % 40)),
        }
    };
    let sent: Vec<Record> = (0..2_000).map(record).collect();
    kafka.produce(&sent).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let order: Arc<Mutex<ByKey>> = Arc::default();
    let by_key = consumer(kafka.consumer_config("g"), "orders").order(Order::Key).concurrency(100);
    let member = Member::start(by_key, {
        let (effects, gate, order) = (effects.clone(), gate.clone(), Arc::clone(&order));
        once().await.each(move |message: Message, claim: Claim| {
            let (effects, gate, order) = (effects.clone(), gate.clone(), Arc::clone(&order));
            async move {
                if message.key() == Some(b"slow") {
                    gate.pass().await;
                }
                // Parked in between: its key waits for it.
                if message.offset() % 7 == 3 && claim.attempt() == 1 {
                    return Err(String::from("once more"));
                }
                if message.offset() % 5 == 0 {
                    tokio::task::yield_now().await;
                }
                if let Some(key) = message.key() {
                    let key = (message.partition(), key.to_vec());
                    order.lock().unwrap().entry(key).or_default().push(message.offset());
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    // Everything but the slow key, which is in one partition.
    effects.reach(1_800).await;
    assert!(kafka.committed("g", "orders", 0).await.is_none_or(|offset| offset == 0), "0 is not finished");
    gate.open();
    effects.reach(2_000).await;
    committed(&kafka, "g", "orders", &[1_000, 1_000]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead), (2_000, 0));
    assert!(effects.counts().values().all(|count| *count == 1));
    for (key, offsets) in order.lock().unwrap().iter() {
        assert!(offsets.is_sorted(), "{key:?}: {offsets:?}");
    }
}

/// F42: of a batch only what failed is handled again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_a_batch_handler_answers_for_each_message() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 1_000)).await;
    let store = SqliteStore::open(folder.path().join("h.db")).await.unwrap();
    let retry = Retry::fixed(Duration::from_millis(20)).attempts(3);
    let once = Once::builder(store).scope("tests", "batch").identify(header("id")).retry(retry).build().await.unwrap();
    let (effects, largest) = (Effects::default(), Arc::new(AtomicUsize::new(0)));
    let batch = once.batch(50, {
        let (effects, largest) = (effects.clone(), Arc::clone(&largest));
        move |batch: Vec<Handed>| {
            let (effects, largest) = (effects.clone(), Arc::clone(&largest));
            async move {
                largest.fetch_max(batch.len(), Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
                let one = |handed: &Handed| match (handed.message.offset() % 100, handed.claim.attempt()) {
                    (17, 1) => Err("once more"),
                    (63, _) => Err("never"),
                    _ => {
                        effects.note(&handed.message);
                        Ok(())
                    }
                };
                batch.iter().map(one).collect::<Vec<_>>()
            }
        }
    });
    let unordered = consumer(kafka.consumer_config("g"), "orders").order(Order::Unordered).concurrency(4);
    let member = Member::start(unordered, batch);
    committed(&kafka, "g", "orders", &[500, 500]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead), (990, 10), "{summary}");
    assert_eq!(effects.distinct(), 990);
    assert!(
        effects.counts().values().all(|count| *count == 1),
        "what succeeded in a batch is not repeated with what failed"
    );
    let largest = largest.load(Ordering::SeqCst);
    assert!((2..=50).contains(&largest), "{largest}");
}

/// Handlers that compute and never wait: on a runtime with several threads they are not left to one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_compute_for_long_use_several_threads() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 400)).await;
    let (effects, together) = (Effects::default(), Counter::default());
    let now = Arc::new(AtomicUsize::new(0));
    let unordered = consumer(kafka.consumer_config("g"), "orders").order(Order::Unordered);
    let member = Member::start(unordered, {
        let (effects, together, now) = (effects.clone(), together.clone(), Arc::clone(&now));
        plain(move |message| {
            let (effects, together, now) = (effects.clone(), together.clone(), Arc::clone(&now));
            async move {
                now.fetch_add(1, Ordering::SeqCst);
                let began = Instant::now();
                // Each computes until it sees another one compute, or has seen none for long.
                while now.load(Ordering::SeqCst) < 2 && began.elapsed() < Duration::from_millis(20) {
                    std::thread::yield_now();
                }
                if now.load(Ordering::SeqCst) >= 2 {
                    together.up();
                }
                now.fetch_sub(1, Ordering::SeqCst);
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(400).await;
    committed(&kafka, "g", "orders", &[400]).await;
    member.stop().await;
    assert!(together.get() > 0, "never two at one time");
    assert!(effects.counts().values().all(|count| *count == 1));
}
