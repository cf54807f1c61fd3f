//! Windows in memory: redelivery is answered without a record for a message.

use std::future::{Ready, ready};
use std::time::Duration;

use hapax::Retry;
use hapax::consumer::{Handling, MemoryWindows, Message, Plain, Summary, plain};

use crate::support::{Kafka, MockKafka, unique};
use crate::world::{Counter, Effects, Member, Refused, committed, consumer, records};

/// Handles all that there is, loses the group's offsets, and goes on with another member when more has come.
async fn round<H: Handling>(handling: impl Fn(Effects) -> H) -> (Effects, Summary) {
    let kafka = Kafka::real();
    let (topic, group) = (unique("windows"), unique("g"));
    kafka.create_topic(&topic, 2).await;
    kafka.produce(&records(&topic, 2, 600)).await;
    let effects = Effects::default();
    let first = Member::start(consumer(kafka.consumer_config(&group), &topic), handling(effects.clone()));
    committed(&kafka, &group, &topic, &[300, 300]).await;
    assert_eq!(first.stop().await.handled, 600);
    // `auto.offset.reset` starts from the first message.
    kafka.delete_group(&group).await;
    kafka.produce(&records(&topic, 2, 400)).await;
    let second = Member::start(consumer(kafka.consumer_config(&group), &topic), handling(effects.clone()));
    committed(&kafka, &group, &topic, &[500, 500]).await;
    let summary = second.stop().await;
    assert_eq!(effects.distinct(), 1_000);
    (effects, summary)
}

fn noting(effects: Effects) -> Plain<impl Fn(Message) -> Ready<Result<(), Refused>> + Send + Sync + 'static> {
    plain(move |message: Message| {
        effects.note(&message);
        ready(Ok(()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_lost_offsets_repeat_no_effect() {
    let windows = MemoryWindows::new();
    let (effects, summary) = round(|effects| noting(effects).windows(&windows)).await;
    assert!(effects.counts().values().all(|count| *count == 1), "{summary}");
    assert_eq!(summary.handled, 400, "{summary}");
    assert_eq!(windows.len(), 2);
    for partition in 0..2 {
        let topic = &effects.counts().into_keys().next().unwrap().0;
        let window = windows.window(topic, partition).unwrap();
        assert_eq!((window.next(), window.encode()), (500, Vec::new()));
    }
}

/// Without windows the same run repeats: the test above can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_windows_lost_offsets_repeat_everything() {
    let (effects, summary) = round(noting).await;
    assert_eq!(effects.counts().values().filter(|count| **count == 2).count(), 600, "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_and_counted() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 20)).await;
    let (windows, effects, tries) = (MemoryWindows::new(), Effects::default(), Counter::default());
    let handler = {
        let (effects, tries) = (effects.clone(), tries.clone());
        plain(move |message: Message| {
            let (effects, tries) = (effects.clone(), tries.clone());
            async move {
                if message.offset() == 7 && tries.up() < 4 {
                    return Err(Refused::from("not yet"));
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
