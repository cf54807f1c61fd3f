//! F19: a store that forgets while its messages can still come again.

use std::time::Duration;

use hapax::consumer::{ConsumerError, OnReset};
use hapax::identity::header;
use hapax::store::{DedupStore, RedisStore, Retention};
use hapax::{Claim, Message, Once};

use crate::support::{PATIENCE, eventually, service, unique};
use crate::world::{Member, World, logged};

const HOUR: Duration = Duration::from_secs(3_600);

async fn member(world: &World, store: impl DedupStore + 'static, on_reset: Option<OnReset>) -> Member {
    let once = Once::builder(store).scope("tests", "retention").identify(header("id")).build().await.unwrap();
    let effects = world.effects.clone();
    let handling = once.each(move |message: Message, _: Claim| {
        effects.note(&message);
        std::future::ready(Ok::<_, String>(()))
    });
    let mut consumer = world.consumer(world.config());
    if let Some(on_reset) = on_reset {
        consumer = consumer.on_reset(on_reset);
    }
    Member::start(consumer, handling)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_store_of_level_l1_that_forgets_early_does_not_start() {
    let world = World::new(1).await;
    world.produce("a", 1, 5).await;
    let short = || async { world.store().await.with_retention(Retention::default().succeeded(HOUR)) };
    let error = member(&world, short().await, None).await.end().await.unwrap_err();
    assert!(matches!(error, ConsumerError::Retention { .. }), "{error:?}");
    let text = error.to_string();
    for word in [&*world.topic, "succeeded", "1 hours", "on_reset"] {
        assert!(text.contains(word), "{word} in: {text}");
    }
    assert_eq!(world.effects.distinct(), 0);
    // For whoever takes that into account, and for a store that remembers, it does.
    let accepted = member(&world, short().await, Some(OnReset::Warn)).await;
    world.committed(&[5]).await;
    accepted.stop().await;
    let ever = Retention::default().succeeded(Duration::MAX).dead(Duration::MAX).unsettled(Duration::MAX);
    member(&world, world.store().await.with_retention(ever), None).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_redis_that_forgets_early_is_warned_of_by_name() {
    let world = World::new(1).await;
    world.produce("a", 1, 5).await;
    let store = RedisStore::builder()
        .prefix(unique("continuity"))
        .retention(Retention::default().succeeded(Duration::from_secs(1)))
        .connect(&service("HAPAX_TEST_REDIS"))
        .await
        .unwrap();
    let member = member(&world, store, None).await;
    world.committed(&[5]).await;
    member.stop().await;
    eventually(PATIENCE, "the warning is in the log", async || {
        logged().iter().any(|line| line.contains(&world.topic) && line.contains("succeeded records for 1 s"))
    })
    .await;
}
