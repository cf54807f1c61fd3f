//! F21: a topic that is deleted and made again.

use hapax::consumer::Finding;

use crate::support::{PATIENCE, eventually};
use crate::world::{World, findings};

/// A topic that was consumed, deleted and made again with `count` other messages, where the group's offset is still what it was: as after
/// a commit that came late, or where offsets are carried over. (A broker that deletes a topic deletes its offsets too.)
async fn recreated(count: i32) -> World {
    let mut world = World::new(1).await;
    world.produce("old", 1, 100).await;
    world.work(world.config(), &[100]).await;
    let (offset, mark) = world.mark(0).await.unwrap();
    assert!(offset == 100 && mark.starts_with("hapax1:100:") && mark.split(':').count() == 6, "{mark}");
    world.recreate(1).await;
    world.produce("new", 1, count).await;
    world.commit(0, offset, &mark).await;
    world
}

async fn refused_and_accepted(world: World, count: usize, expected: Finding) {
    for _ in 0..2 {
        let refused = world.start(world.config()).await.refused().await;
        assert_eq!(refused, (0, expected));
        assert_eq!(world.effects.of("new"), 0, "nothing of it was handled");
        assert_eq!(world.mark(0).await.unwrap().0, 100, "and nothing committed");
    }
    let member = world.accept(world.config()).await;
    world.committed(&[i64::try_from(count).unwrap()]).await;
    let summary = member.stop().await;
    assert_eq!(findings(&summary), [expected]);
    assert_eq!((world.effects.of("old"), world.effects.of("new")), (100, count), "none was passed");
    assert!(world.effects.each_once());
    // From then on it is the topic it knows.
    world.produce("later", 1, 5).await;
    let after = world.work(world.config(), &[i64::try_from(count).unwrap() + 5]).await;
    assert_eq!((after.delivered, findings(&after)), (5, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_with_fewer_messages() {
    let world = recreated(30).await;
    refused_and_accepted(world, 30, Finding::PastEnd { next: 100, high: 30 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_with_more_messages() {
    let world = recreated(250).await;
    refused_and_accepted(world, 250, Finding::OtherMessage { next: 100, offset: 99 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_with_the_same_payloads_at_another_time() {
    let mut world = World::new(1).await;
    world.produce("a", 1, 100).await;
    world.work(world.config(), &[100]).await;
    let (offset, mark) = world.mark(0).await.unwrap();
    world.recreate(1).await;
    world.produce("a", 1, 120).await;
    world.commit(0, offset, &mark).await;
    let refused = world.start(world.config()).await.refused().await;
    assert_eq!(refused, (0, Finding::OtherMessage { next: 100, offset: 99 }));
}

/// The broker forgets the offsets with the topic: what is new is delivered from the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_offsets_that_went_with_the_topic() {
    let mut world = World::new(1).await;
    world.produce("old", 1, 100).await;
    world.work(world.config(), &[100]).await;
    world.recreate(1).await;
    eventually(PATIENCE, "the broker has forgotten the group's offset", async || world.mark(0).await.is_none()).await;
    world.produce("new", 1, 150).await;
    let summary = world.work(world.config(), &[150]).await;
    assert_eq!(findings(&summary), [Finding::FromFirst { low: 0, high: 150 }]);
    assert_eq!((world.effects.of("old"), world.effects.of("new")), (100, 150));
    assert!(world.effects.each_once());
}

/// Under a running member: whatever it notices first, nothing of the new topic is passed in silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_under_a_running_member() {
    let mut world = World::new(1).await;
    world.produce("old", 1, 100).await;
    let mut config = world.config();
    config.set("topic.metadata.refresh.interval.ms", "500");
    let member = world.start(config.clone()).await;
    world.committed(&[100]).await;
    world.recreate(1).await;
    world.produce("new", 1, 60).await;
    eventually(PATIENCE, "the new topic is handled, or the member has ended", async || {
        world.effects.of("new") == 60 || !member.is_running()
    })
    .await;
    if member.is_running() {
        member.stop().await;
    } else {
        let (_, finding) = member.refused().await;
        assert!(matches!(finding, Finding::PastEnd { .. } | Finding::OtherMessage { .. }), "{finding}");
        assert_eq!(world.effects.of("new"), 0);
        let member = world.accept(config).await;
        eventually(PATIENCE, "accepted, all is handled", async || world.effects.of("new") == 60).await;
        member.stop().await;
    }
    assert!(world.effects.each_once());
}

/// A message that proved it and is gone proves nothing: it goes on, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_retention_removed_proves_nothing() {
    let world = World::new(1).await;
    world.produce("a", 1, 100).await;
    world.work(world.config(), &[100]).await;
    world.delete_records(0, 100).await;
    world.produce("b", 1, 10).await;
    let summary = world.work(world.config(), &[110]).await;
    assert_eq!(findings(&summary), [Finding::Unproven { next: 100, offset: 99 }]);
    assert_eq!((summary.handled, world.effects.distinct()), (10, 110));
}
