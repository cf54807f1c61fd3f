//! The beginning of a partition moves past what was not handled.

use std::time::Duration;

use hapax::consumer::{Finding, OnReset};
use hapax::{Claim, Message};

use crate::support::{PATIENCE, Record, eventually};
use crate::world::{Member, World, findings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_deleted_while_nobody_was_there_are_named() {
    let world = World::new(1).await;
    world.produce("a", 1, 40).await;
    world.work(world.config(), &[40]).await;
    world.produce("b", 1, 60).await;
    world.delete_records(0, 55).await;
    let gap = Finding::Deleted { next: 40, low: 55, high: 100 };
    for reset in ["earliest", "latest", "error"] {
        assert_eq!(world.start(world.reset(reset)).await.refused().await, (0, gap), "{reset}");
    }
    assert_eq!((world.effects.of("b"), world.mark(0).await.unwrap().0), (0, 40));
    let warned = world.start_with(world.consumer(world.config()).on_reset(OnReset::Warn)).await;
    world.committed(&[100]).await;
    let summary = warned.stop().await;
    assert_eq!((summary.handled, findings(&summary)), (45, vec![gap]), "from the first one there is");
    assert!(world.effects.each_once());
}

/// Large messages fetched a few at a time, and handled slowly: retention overtakes the reader. Behind the gate, each takes `pace`.
async fn overtaken(world: &World, consumer: hapax::Consumer, pace: Duration) -> Member {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let (effects, held) = (world.effects.clone(), std::sync::Arc::clone(&gate));
    let handling = world.once().await.each(move |message: Message, _: Claim| {
        let (effects, held) = (effects.clone(), std::sync::Arc::clone(&held));
        async move {
            // One passes; the others wait until the gate is opened.
            held.acquire().await.unwrap().forget();
            tokio::time::sleep(pace).await;
            effects.note_id(&message);
            Ok::<_, String>(())
        }
    });
    let member = Member::start(consumer, handling);
    world.reach(1).await;
    world.delete_records(0, 380).await;
    gate.add_permits(10_000);
    member
}

async fn large(world: &World) -> rdkafka::ClientConfig {
    let record = |n: i32| {
        let id = format!("a {n}");
        Record::to(&world.topic).partition(0).payload(vec![b'x'; 64 << 10]).header("id", &id)
    };
    for chunk in (0..400).collect::<Vec<_>>().chunks(50) {
        world.kafka.produce(&chunk.iter().map(|n| record(*n)).collect::<Vec<_>>()).await;
    }
    let mut config = world.config();
    config
        .set("fetch.message.max.bytes", "131072")
        .set("queued.min.messages", "4")
        .set("queued.max.messages.kbytes", "512");
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_overtaken_by_retention_ends_with_what_it_missed() {
    let world = World::new(1).await;
    let config = large(&world).await;
    // So slow that messages are in hand when the gap is found: nobody could deliver them again.
    let pace = Duration::from_millis(50);
    let member = overtaken(&world, world.consumer(config).partition_messages(8), pace).await;
    let (_, finding) = member.refused().await;
    let Finding::Deleted { next, low: 380, high: 400 } = finding else { panic!("{finding:?}") };
    assert!(next < 380);
    // All that was there before the gap is handled and committed, and nothing beyond.
    world.committed(&[next]).await;
    assert_eq!(world.effects.distinct(), usize::try_from(next).unwrap());
    assert!(world.effects.each_once());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_overtaken_by_retention_goes_on_where_that_is_accepted() {
    for protocol in
        [&[][..], &[("partition.assignment.strategy", "cooperative-sticky")], &[("group.protocol", "consumer")]]
    {
        let world = World::new(1).await;
        let mut config = large(&world).await;
        for (name, value) in protocol {
            config.set(*name, *value);
            if *name == "group.protocol" {
                config.remove("session.timeout.ms").remove("heartbeat.interval.ms");
            }
        }
        let consumer = world.consumer(config).partition_messages(8).on_reset(OnReset::Warn);
        let member = overtaken(&world, consumer, Duration::ZERO).await;
        world.committed(&[400]).await;
        eventually(PATIENCE, "the last are handled", async || world.effects.distinct() > 20).await;
        let summary = member.stop().await;
        let found = findings(&summary);
        let [Finding::FromFirst { .. }, Finding::Deleted { next, low: 380, high: 400 }] = found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(world.effects.distinct(), usize::try_from(next).unwrap() + 20, "{protocol:?}");
        assert!(world.effects.each_once());
    }
}
