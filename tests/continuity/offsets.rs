//! F20: the group's offsets are gone, or were set by somebody.

use hapax::consumer::{Finding, OnReset};

use crate::support::{PATIENCE, eventually};
use crate::world::{World, findings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_with_earliest_everything_comes_again_and_is_suppressed() {
    let world = World::new(2).await;
    world.produce("a", 2, 300).await;
    let first = world.work(world.config(), &[150, 150]).await;
    assert_eq!(findings(&first), [Finding::FromFirst { low: 0, high: 150 }; 2], "said, and no reason to stop");
    world.kafka.delete_group(&world.group).await;
    let again = world.work(world.config(), &[150, 150]).await;
    assert_eq!((again.delivered, again.handled, again.redelivered), (300, 0, 300), "{again}");
    assert_eq!(findings(&again), [Finding::FromFirst { low: 0, high: 150 }; 2]);
    // A group that goes on where it left off says nothing.
    world.produce("b", 2, 10).await;
    let third = world.work(world.config(), &[155, 155]).await;
    assert_eq!((third.delivered, findings(&third)), (10, vec![]));
    assert_eq!(world.effects.distinct(), 310);
    assert!(world.effects.each_once());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_with_latest_nothing_is_passed_until_somebody_says_so() {
    let world = World::new(1).await;
    world.produce("a", 1, 100).await;
    world.work(world.config(), &[100]).await;
    world.kafka.delete_group(&world.group).await;
    world.produce("missed", 1, 50).await;

    let refused = world.start(world.reset("latest")).await.refused().await;
    assert_eq!(refused, (0, Finding::Passed { low: 0, high: 150 }));
    assert_eq!(world.effects.distinct(), 100, "nothing was handled");
    assert_eq!(world.mark(0).await, None, "and nothing committed");

    let member = world.accept(world.reset("latest")).await;
    // Where it begins is committed before anything is handled: a restart begins there too.
    world.committed(&[150]).await;
    let accepted = member.stop().await;
    assert_eq!(accepted.delivered, 0);
    assert_eq!(findings(&accepted), [Finding::Passed { low: 0, high: 150 }]);

    world.produce("later", 1, 20).await;
    let later = world.work(world.reset("latest"), &[170]).await;
    assert_eq!((later.handled, findings(&later)), (20, vec![]), "what came while nobody was there is not passed");
    assert_eq!((world.effects.of("later"), world.effects.of("missed")), (20, 0));
    assert!(world.effects.each_once());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_with_latest_an_empty_partition_begins_at_its_end() {
    let world = World::new(1).await;
    let first = world.work(world.reset("latest"), &[0]).await;
    assert_eq!(findings(&first), [Finding::FromEnd { high: 0 }]);
    world.produce("a", 1, 30).await;
    let second = world.work(world.reset("latest"), &[30]).await;
    assert_eq!((second.handled, findings(&second)), (30, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_with_error_there_is_nowhere_to_begin() {
    let world = World::new(1).await;
    world.produce("a", 1, 20).await;
    for consumer in
        [world.consumer(world.reset("error")), world.consumer(world.reset("error")).on_reset(OnReset::Accept)]
    {
        let refused = world.start_with(consumer).await.refused().await;
        assert_eq!(refused, (0, Finding::NoOffset { low: 0, high: 20 }));
    }
    assert_eq!((world.effects.distinct(), world.mark(0).await), (0, None));
    // An offset that somebody committed is one.
    world.commit(0, 5, "").await;
    let summary = world.work(world.reset("error"), &[20]).await;
    assert_eq!((summary.handled, findings(&summary)), (15, vec![Finding::SetByOther { committed: 5 }]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_said_nothing_is_passed() {
    let world = World::new(1).await;
    world.produce("a", 1, 20).await;
    let mut config = world.config();
    config.remove("auto.offset.reset");
    let summary = world.work(config, &[20]).await;
    assert_eq!((summary.handled, findings(&summary)), (20, vec![Finding::FromFirst { low: 0, high: 20 }]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_replay_is_named_and_repeats_no_effect() {
    let world = World::new(1).await;
    world.produce("a", 1, 100).await;
    world.work(world.config(), &[100]).await;
    world.commit(0, 30, "").await;
    let replay = world.work(world.config(), &[100]).await;
    assert_eq!((replay.delivered, replay.handled, replay.redelivered), (70, 0, 70), "{replay}");
    assert_eq!(findings(&replay), [Finding::SetByOther { committed: 30 }]);
    assert!(world.effects.each_once() && world.effects.distinct() == 100);
    // The next commit is hapax's own again.
    let (offset, mark) = world.mark(0).await.unwrap();
    assert!(offset == 100 && mark.starts_with("hapax1:100:"), "{mark}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_beyond_the_end_is_refused_and_names_the_cure() {
    let world = World::new(1).await;
    world.produce("a", 1, 10).await;
    world.commit(0, 70, "by hand").await;
    let error = world.start(world.config()).await.end().await.unwrap_err();
    let text = error.to_string();
    for word in [&*world.topic, "partition 0", "70", "10", "OnReset::Accept"] {
        assert!(text.contains(word), "{word} in: {text}");
    }
    assert_eq!((world.effects.distinct(), world.mark(0).await), (0, Some((70, "by hand".into()))));
    // Accepted, it goes on where auto.offset.reset says, and commits below what was committed.
    let member = world.accept(world.config()).await;
    world.committed(&[10]).await;
    let summary = member.stop().await;
    assert_eq!(findings(&summary), [Finding::PastEnd { next: 70, high: 10 }]);
    assert_eq!(world.effects.distinct(), 10);
    world.produce("later", 1, 5).await;
    assert_eq!(findings(&world.work(world.config(), &[15]).await), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_of_another_cluster_is_named() {
    let world = World::new(1).await;
    world.produce("a", 1, 40).await;
    // Carried over by a tool that copies metadata: nothing of it can be compared.
    world.commit(0, 25, "hapax1:25:00000001").await;
    let refused = world.start(world.config()).await.refused().await;
    assert_eq!(refused, (0, Finding::OtherCluster { next: 25 }));
    let member = world.accept(world.config()).await;
    world.committed(&[40]).await;
    assert_eq!(member.stop().await.handled, 15, "accepted, it goes on where it was");
    world.produce("later", 1, 5).await;
    assert_eq!(findings(&world.work(world.config(), &[45]).await), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_it_is_warned_and_goes_on() {
    let world = World::new(1).await;
    world.produce("a", 1, 10).await;
    world.commit(0, 70, "").await;
    let effects = world.effects.clone();
    let handling = hapax::plain(move |message: hapax::Message| {
        effects.note(&message);
        std::future::ready(Ok::<_, String>(()))
    });
    let member = crate::world::Member::start(world.consumer(world.config()), handling);
    eventually(PATIENCE, "all are handled", async || world.effects.distinct() == 10).await;
    let summary = member.stop().await;
    assert_eq!(findings(&summary), [Finding::PastEnd { next: 70, high: 10 }]);
}
