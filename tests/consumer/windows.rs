//! Windows in memory: redelivery is answered without a record for a message.

use std::time::Duration;

use hapax::Retry;
use hapax::consumer::{Failure, MemoryWindows, plain};

use crate::support::{MockKafka, Record};
use crate::world::{Counter, Effects, Gate, Member, committed, consumer, records};

/// A member whose commits come too late, dropped in the middle of its work: all it did is delivered again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f1_nothing_is_handled_again_by_the_next_member() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 1_000)).await;
    let (windows, effects, gate) = (MemoryWindows::new(), Effects::default(), Gate::default());
    let handler = || {
        let (effects, gate) = (effects.clone(), gate.clone());
        plain(move |message: hapax::Message| {
            let (effects, gate) = (effects.clone(), gate.clone());
            async move {
                if message.offset() == 250 {
                    gate.pass().await;
                }
                effects.note(&message);
                Ok::<_, Failure>(())
            }
        })
        .windows(&windows)
    };
    let first = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(600));
    let first = Member::start(first, handler());
    gate.holds(2).await;
    effects.reach(500).await;
    first.abort().await;
    gate.open();
    let second = Member::start(consumer(kafka.consumer_config("g"), "orders"), handler());
    effects.reach(1_000).await;
    committed(&kafka, "g", "orders", &[500, 500]).await;
    let summary = second.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1), "{summary:?}");
    assert_eq!(summary.handled, 500, "{summary:?}");
    for partition in 0..2 {
        let window = windows.window("orders", partition).unwrap();
        assert_eq!((window.next(), window.encode()), (500, Vec::new()));
    }
}

/// Without windows the same run repeats: the test above can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_windows_the_next_member_repeats() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 10)).await;
    let effects = Effects::default();
    let handler = || {
        let effects = effects.clone();
        plain(move |message: hapax::Message| {
            effects.note(&message);
            std::future::ready(Ok::<_, Failure>(()))
        })
    };
    let first = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(600));
    let first = Member::start(first, handler());
    effects.reach(10).await;
    first.abort().await;
    kafka.produce(&[Record::to("orders").payload("last")]).await;
    let second = Member::start(consumer(kafka.consumer_config("g"), "orders"), handler());
    effects.reach(11).await;
    second.stop().await;
    assert!(effects.counts().values().any(|count| *count == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_and_counted() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 20)).await;
    let (windows, effects, tries) = (MemoryWindows::new(), Effects::default(), Counter::default());
    let handler = {
        let (effects, tries) = (effects.clone(), tries.clone());
        plain(move |message: hapax::Message| {
            let (effects, tries) = (effects.clone(), tries.clone());
            async move {
                if message.offset() == 7 && tries.up() < 4 {
                    return Err(Failure::from("not yet"));
                }
                effects.note(&message);
                Ok(())
            }
        })
        .windows(&windows)
    };
    let retry = Retry::exponential(Duration::from_millis(5)).attempts(8);
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders").retry(retry), handler);
    effects.reach(20).await;
    committed(&kafka, "g", "orders", &[20]).await;
    let summary = member.stop().await;
    assert_eq!((tries.get(), summary.handled), (4, 20), "{summary:?}");
    assert_eq!(effects.of("orders", 0), (0..20).collect::<Vec<_>>(), "in order all the same");
    assert_eq!(windows.window("orders", 0).unwrap().attempts(7), 0);
}
