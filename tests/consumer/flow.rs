//! Back-pressure and long handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::support::{MockKafka, Record};
use crate::world::{Counter, Effects, Gate, Member, committed, consumer, plain, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handler_bounds_what_is_taken_in() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 10_000)).await;
    let effects = Effects::default();
    let slow = consumer(kafka.consumer_config("g"), "orders").max_messages(128).partition_messages(64);
    let member = Member::start(slow, {
        let effects = effects.clone();
        let sizes = Arc::new(AtomicI64::new(0));
        plain(move |message| {
            let (effects, sizes) = (effects.clone(), Arc::clone(&sizes));
            async move {
                // Slow at first, so that partitions fill up and are paused; then fast, so that they are resumed again and again.
                if sizes.fetch_add(1, Ordering::SeqCst) < 500 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(10_000).await;
    committed(&kafka, "g", "orders", &[5_000, 5_000]).await;
    let summary = member.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1), "pausing and resuming repeats nothing");
    for partition in 0..2 {
        assert_eq!(effects.of("orders", partition), (0..5_000).collect::<Vec<_>>());
    }
    assert!(summary.most_unfinished <= 2 * 64, "{summary:?}");
    assert!(summary.most_unfinished > 48, "the handler was slow enough to fill a lane: {summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_partition_does_not_hold_the_others() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 4_000)).await;
    let (effects, gate) = (Effects::default(), Gate::default());
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders").partition_messages(16), {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message| {
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
    // All of the other partition, and what came before the one that waits.
    effects.reach(2_010).await;
    committed(&kafka, "g", "orders", &[10, 2_000]).await;
    gate.open();
    effects.reach(4_000).await;
    member.stop().await;
    assert_eq!(effects.of("orders", 0), (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_longer_than_the_poll_interval_keeps_its_membership() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 3_000)).await;
    let mut config = kafka.consumer_config("g");
    config.set("max.poll.interval.ms", "6000");
    let (effects, begun) = (Effects::default(), Counter::default());
    let member = Member::start(consumer(config, "orders").max_messages(100), {
        let (effects, begun) = (effects.clone(), begun.clone());
        plain(move |message| {
            let (effects, begun) = (effects.clone(), begun.clone());
            async move {
                if message.offset() == 0 {
                    begun.up();
                    tokio::time::sleep(Duration::from_secs(9)).await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(3_000).await;
    let summary = member.stop().await;
    assert_eq!(begun.get(), 1, "the long message was handled once");
    assert!(effects.counts().values().all(|count| *count == 1));
    let orders = summary.partitions[&("orders".to_owned(), 0)];
    assert_eq!((orders.assigned, orders.committed), (1, Some(3_000)), "the partition was never taken away");
    assert_eq!(summary.late, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_and_every_part_of_a_message_arrive() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let large = vec![7u8; 700_000];
    let mut sent = vec![Record::to("orders").partition(0)];
    for n in 0..4 {
        sent.push(
            Record::to("orders")
                .partition(0)
                .key(format!("key {n}"))
                .payload(&large)
                .timestamp(1_700_000_000_000 + n)
                .header("id", format!("{n}"))
                .header("id", format!("last {n}"))
                .null_header("nothing")
                .header("bytes", [0u8, 255, 0]),
        );
    }
    sent.push(Record::to("orders").partition(0).key("").payload(""));
    kafka.produce(&sent).await;
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), {
        let effects = effects.clone();
        plain(move |message| {
            let (effects, large) = (effects.clone(), large.clone());
            async move {
                // Messages are Send and cheap to clone: another task may keep one.
                let message = tokio::spawn(async move { message.clone() }).await?;
                match message.offset() {
                    0 => assert!(
                        message.key().is_none() && message.payload().is_none() && message.headers().next().is_none()
                    ),
                    5 => assert_eq!((message.key(), message.payload()), (Some(&b""[..]), Some(&b""[..]))),
                    offset => {
                        let n = offset - 1;
                        assert_eq!(message.key(), Some(format!("key {n}").as_bytes()));
                        assert!(message.payload() == Some(&large[..]));
                        assert_eq!(message.timestamp_ms(), Some(1_700_000_000_000 + n));
                        assert_eq!(message.header("id"), Some(format!("last {n}").as_bytes()));
                        assert_eq!((message.header("nothing"), message.header("none")), (None, None));
                        assert_eq!(message.header("bytes"), Some(&[0u8, 255, 0][..]));
                        assert_eq!(message.headers().count(), 4);
                    }
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(6).await;
    member.stop().await;
}
