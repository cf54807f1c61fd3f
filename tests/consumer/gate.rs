//! How much is taken in: never more than the bounds say, however slow handlers are, and all of it in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::Order;
use hapax::consumer::Message;
use hapax::observe::{Observed, Observer};

use crate::support::{MockKafka, PATIENCE, Record, eventually};
use crate::world::{Counter, Effects, Gate, Member, committed, consumer, noting, plain, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_messages_are_in_hand_than_the_bound_says() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 2_000)).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let bounded =
        consumer(kafka.consumer_config("g"), "orders").order(Order::Unordered).concurrency(1_000).max_messages(32);
    let member = Member::start(bounded, {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message: Message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                gate.pass().await;
                effects.note(&message);
                Ok(())
            }
        })
    });
    // Each is handled at once, since there are free handlers: what waits in them is all that was taken in.
    gate.holds(25).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (waiting, most) = (gate.waiting(), gate.most());
    assert!((25..=32).contains(&waiting) && most <= 32, "{waiting} wait, {most} at most");
    gate.open();
    effects.reach(2_000).await;
    committed(&kafka, "g", "orders", &[1_000, 1_000]).await;
    let summary = member.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1), "pausing and resuming repeats nothing");
    assert!(gate.most() <= 32 && summary.most_unfinished <= 32, "{} {summary:?}", gate.most());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_bytes_are_in_hand_than_the_bound_says() {
    const LARGE: usize = 100_000;
    const BOUND: usize = 1 << 20;
    let kafka = MockKafka::start(&[("orders", 4)]);
    let large: Vec<Record> = (0..160)
        .map(|n| Record::to("orders").partition(n % 4).payload(vec![u8::try_from(n).unwrap(); LARGE]))
        .collect();
    kafka.produce(&large).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let bounded =
        consumer(kafka.consumer_config("g"), "orders").order(Order::Unordered).concurrency(1_000).max_bytes(BOUND);
    let member = Member::start(bounded, {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message: Message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                gate.pass().await;
                assert_eq!(message.payload().map(<[u8]>::len), Some(LARGE));
                effects.note(&message);
                Ok(())
            }
        })
    });
    // A quarter of the bound may be left free: less room is not worth a batch.
    gate.holds(BOUND * 3 / 4 / LARGE).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The message that goes beyond the bound is the last.
    let bytes = gate.waiting() * LARGE;
    assert!(bytes <= BOUND + LARGE, "{bytes} bytes wait");
    gate.open();
    effects.reach(160).await;
    member.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1));
    let most = gate.most() * LARGE;
    assert!(most <= BOUND + LARGE, "{most} bytes waited at one time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_larger_than_the_bound_passes_alone() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let large: Vec<Record> = (0..4).map(|_| Record::to("orders").partition(0).payload(vec![7; 400_000])).collect();
    kafka.produce(&large).await;
    let (effects, now, most) = (Effects::default(), Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let bounded = consumer(kafka.consumer_config("g"), "orders").order(Order::Unordered).max_bytes(1);
    let member = Member::start(bounded, {
        let (effects, now, most) = (effects.clone(), Arc::clone(&now), Arc::clone(&most));
        plain(move |message: Message| {
            let (effects, now, most) = (effects.clone(), Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(4).await;
    committed(&kafka, "g", "orders", &[4]).await;
    member.stop().await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_handlers_keep_do_not_stop_the_consumer() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let large: Vec<Record> = (0..40).map(|_| Record::to("orders").partition(0).payload(vec![7; 50_000])).collect();
    kafka.produce(&large).await;
    let (effects, kept) = (Effects::default(), Arc::new(Mutex::new(Vec::new())));
    let bounded = consumer(kafka.consumer_config("g"), "orders").max_bytes(200_000);
    let member = Member::start(bounded, {
        let (effects, kept) = (effects.clone(), Arc::clone(&kept));
        plain(move |message: Message| {
            effects.note(&message);
            kept.lock().unwrap().push(message);
            std::future::ready(Ok(()))
        })
    });
    // Ten times the bound is kept in the end; all of it is delivered all the same.
    effects.reach(40).await;
    committed(&kafka, "g", "orders", &[40]).await;
    member.stop().await;
    assert_eq!(kept.lock().unwrap().len(), 40);
}

/// What was paused and resumed, partition by partition, in order.
#[derive(Clone, Default)]
struct Pauses(Arc<Mutex<BTreeMap<i32, Vec<bool>>>>);

impl Observer for Pauses {
    fn on(&self, event: &Observed<'_>) {
        let (places, paused) = match event {
            Observed::Paused(places) => (places, true),
            Observed::Resumed(places) => (places, false),
            _ => return,
        };
        for place in *places {
            self.0.lock().unwrap().entry(place.partition).or_default().push(paused);
        }
    }
}

impl Pauses {
    fn of(&self, partition: i32) -> Vec<bool> {
        self.0.lock().unwrap().get(&partition).cloned().unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_paused_and_resumed_in_turn_and_only_where_it_is_full() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 400)).await;
    let (effects, gate, pauses) = (Effects::default(), Gate::default(), Pauses::default());
    let slow = consumer(kafka.consumer_config("g"), "orders").partition_messages(16).observer(pauses.clone());
    let member = Member::start(slow, {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message: Message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                if message.partition() == 0 && message.offset() == 10 {
                    gate.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    gate.holds(1).await;
    eventually(PATIENCE, "the partition that waits is paused", async || pauses.of(0).last() == Some(&true)).await;
    effects.reach(210).await;
    gate.open();
    effects.reach(400).await;
    eventually(PATIENCE, "it is resumed", async || pauses.of(0).last() == Some(&false)).await;
    for partition in 0..2 {
        let seen = pauses.of(partition);
        let in_turn = seen.iter().enumerate().all(|(at, paused)| *paused == (at % 2 == 0));
        assert!(in_turn, "paused, resumed, paused, …: {seen:?}");
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polling_goes_on_while_all_is_paused() {
    // The gate is shut for longer than max.poll.interval.ms, by messages of one partition, and a second member joins meanwhile.
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 1_000)).await;
    let mut config = kafka.consumer_config("g");
    config.set("max.poll.interval.ms", "6000");
    let (effects, gate, begun) = (Effects::default(), Gate::default(), Counter::default());
    let full =
        consumer(config, "orders").order(Order::Unordered).max_messages(50).drain_deadline(Duration::from_millis(100));
    let member = Member::start(full, {
        let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
        plain(move |message: Message| {
            let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
            async move {
                begun.up();
                gate.pass().await;
                effects.note(&message);
                Ok(())
            }
        })
    });
    gate.holds(38).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(member.is_running());
    assert_eq!(begun.get() as usize, gate.waiting(), "nothing was begun again: the partitions were never lost");
    // The rebalance reaches a member that takes nothing in, and takes half of its partitions.
    let other = Effects::default();
    let second = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&other));
    other.reach(500).await;
    gate.open();
    eventually(PATIENCE, "all are handled", async || {
        let mut all = effects.counts();
        all.extend(other.counts());
        all.len() == 1_000
    })
    .await;
    member.stop().await;
    second.stop().await;
}
