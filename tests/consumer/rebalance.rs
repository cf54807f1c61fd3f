//! Partitions that come and go: on the real broker by every protocol, and on the mock cluster where a broker has to misbehave.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::{Finding, Handling, Monitor, Summary};
use hapax::observe::{Observed, Observer};
use rdkafka::ClientConfig;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Kafka, MockKafka, PATIENCE, eventually, unique};
use crate::world::{Counter, Effects, Gate, Member, committed, consumer, noting, plain, records};

/// Which way a group is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Range,
    CooperativeSticky,
    Consumer,
}

impl Protocol {
    fn config(self, kafka: &Kafka, group: &str) -> ClientConfig {
        let mut config = kafka.consumer_config(group);
        match self {
            Self::Range => config.set("partition.assignment.strategy", "range"),
            Self::CooperativeSticky => config.set("partition.assignment.strategy", "cooperative-sticky"),
            // KIP-848: the broker keeps the times.
            Self::Consumer => {
                config.remove("session.timeout.ms").remove("heartbeat.interval.ms").set("group.protocol", "consumer")
            }
        };
        config
    }
}

/// Notes effects: slowly until the other member has had one, so that it joins in the middle of the work.
fn working(effects: &Effects, mine: &Counter, joined: &Arc<AtomicBool>, second: bool) -> impl Handling + use<> {
    let (effects, mine, joined) = (effects.clone(), mine.clone(), Arc::clone(joined));
    plain(move |message| {
        let (effects, mine, joined) = (effects.clone(), mine.clone(), Arc::clone(&joined));
        async move {
            if second {
                joined.store(true, Ordering::SeqCst);
            } else if !joined.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            effects.note(&message);
            mine.up();
            Ok(())
        }
    })
}

/// A second member joins in the middle, and leaves or stays until the end. Answers what both did.
async fn joins_mid_batch(kafka: &Kafka, topic: &str, group: &str, protocol: Protocol) -> (Effects, [Summary; 2]) {
    const EACH: i32 = 4_000;
    kafka.produce(&records(topic, 4, 4 * EACH)).await;
    let (effects, joined) = (Effects::default(), Arc::new(AtomicBool::new(false)));
    let counters = [Counter::default(), Counter::default()];
    let rare = |config| consumer(config, topic).commit_every(Duration::from_secs(3_600));
    let first = Member::start(rare(protocol.config(kafka, group)), working(&effects, &counters[0], &joined, false));
    effects.reach(20).await;
    let second = Member::start(
        // It commits, so that the end below can be waited for.
        rare(protocol.config(kafka, group)).commit_every(Duration::from_millis(100)),
        working(&effects, &counters[1], &joined, true),
    );
    effects.reach(usize::try_from(4 * EACH).unwrap()).await;
    let first = first.stop().await;
    // Without the first member, whatever it had not committed is delivered again, to the second.
    committed(kafka, group, topic, &[i64::from(EACH); 4]).await;
    let second = second.stop().await;
    assert!(counters.iter().all(|counter| counter.get() > 0), "{protocol:?}: both had partitions");
    for partition in 0..4 {
        let mut seen = -1;
        for offset in effects.of(topic, partition) {
            assert!(offset <= seen + 1, "{protocol:?}: {offset} before {}, partition {partition}", seen + 1);
            seen = seen.max(offset);
        }
    }
    (effects, [first, second])
}

async fn f09_on_the_real_broker(protocol: Protocol) {
    let kafka = Kafka::real();
    let (topic, group) = (unique("handover"), unique("g"));
    kafka.create_topic(&topic, 4).await;
    let (effects, summaries) = joins_mid_batch(&kafka, &topic, &group, protocol).await;
    let repeated = effects.counts().values().filter(|count| **count > 1).count();
    assert_eq!(repeated, 0, "{protocol:?}: the finished prefix was committed before the partition went: {summaries:?}");
    assert!(summaries.iter().all(|summary| summary.failed_commits == 0 && summary.closed), "{summaries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_revoke_commits_what_is_finished_range() {
    f09_on_the_real_broker(Protocol::Range).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_revoke_commits_what_is_finished_cooperative() {
    f09_on_the_real_broker(Protocol::CooperativeSticky).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_revoke_commits_what_is_finished_kip_848() {
    f09_on_the_real_broker(Protocol::Consumer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_on_the_mock_cluster_cooperative_repeats_only_what_a_refused_commit_left() {
    // The mock refuses a commit on revoke now and then; the real broker, in the tests above, never does.
    let kafka = MockKafka::start(&[("orders", 4)]);
    let (effects, summaries) = joins_mid_batch(&kafka, "orders", "g", Protocol::CooperativeSticky).await;
    let refused = summaries.iter().any(|summary| summary.failed_commits > 0);
    assert!(refused || effects.counts().values().all(|count| *count == 1), "{summaries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_on_the_mock_cluster_a_refused_commit_on_revoke_loses_nothing() {
    // The mock refuses commits while an eager group rebalances: what it refused is delivered again, and nothing is lost.
    let kafka = MockKafka::start(&[("orders", 4)]);
    let (_, summaries) = joins_mid_batch(&kafka, "orders", "g", Protocol::Range).await;
    assert!(summaries[0].failed_commits > 0, "{summaries:?}");
}

/// A handler runs while its partition is revoked: the partition waits for it.
async fn f09_a_running_handler_is_waited_for(kafka: &Kafka, topic: &str, protocol: Protocol) {
    let group = unique("g");
    kafka.produce(&records(topic, 2, 40)).await;
    let (effects, gate, begun) = (Effects::default(), Gate::default(), Counter::default());
    let waiting = || {
        let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
        plain(move |message| {
            let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
            async move {
                if message.offset() == 5 {
                    begun.up();
                    gate.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    };
    let first = Member::start(consumer(protocol.config(kafka, &group), topic), waiting());
    gate.holds(2).await;
    let second = Member::start(consumer(protocol.config(kafka, &group), topic), waiting());
    // The rebalance is under way for a while, and cannot end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(begun.get(), 2, "nobody else got a message that is being handled");
    gate.open();
    effects.reach(40).await;
    committed(kafka, &group, topic, &[20, 20]).await;
    first.stop().await;
    second.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1), "{protocol:?}: {:?}", effects.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_running_handler_is_waited_for_cooperative() {
    let kafka = Kafka::real();
    let topic = unique("running");
    kafka.create_topic(&topic, 2).await;
    f09_a_running_handler_is_waited_for(&kafka, &topic, Protocol::CooperativeSticky).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_running_handler_is_waited_for_range() {
    let kafka = Kafka::real();
    let topic = unique("running");
    kafka.create_topic(&topic, 2).await;
    f09_a_running_handler_is_waited_for(&kafka, &topic, Protocol::Range).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_what_a_zombie_finishes_late_moves_no_frontier() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 60)).await;
    let (effects, begun) = (Effects::default(), Counter::default());
    let gates = [Gate::default(), Gate::default()];
    // The zombie lives for so long after its partition is lost, and the mock takes its time to give the partition back.
    let patient = consumer(kafka.consumer_config("g"), "orders").drain_deadline(PATIENCE);
    let member = Member::start(patient, {
        let (effects, begun, gates) = (effects.clone(), begun.clone(), gates.clone());
        plain(move |message| {
            let (effects, begun, gates) = (effects.clone(), begun.clone(), gates.clone());
            async move {
                if message.offset() == 20 {
                    gates[begun.up() as usize - 1].pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    gates[0].holds(1).await;
    committed(&kafka, "g", "orders", &[20]).await;
    // The group forgets the member: its partition is lost, and comes back to it in another epoch.
    kafka.cluster().request_errors(RDKafkaApiKey::Heartbeat, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    gates[1].holds(1).await;
    // The handler of the lost epoch ends now.
    gates[0].open();
    effects.reach(21).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(20), "20 is being handled, in the epoch that counts");
    gates[1].open();
    effects.reach(60).await;
    committed(&kafka, "g", "orders", &[60]).await;
    let summary = member.stop().await;
    assert_eq!(summary.late, 1, "{summary:?}");
    assert_eq!(summary.partitions[&("orders".to_owned(), 0)].assigned, 2);
    let twice: Vec<_> = effects.counts().into_iter().filter(|(_, count)| *count > 1).collect();
    assert_eq!(twice, [(("orders".to_owned(), 0, 20), 2)], "without a store, the zombie's effect is one more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_members_that_come_and_go_never_move_a_commit_back() {
    let kafka = Arc::new(MockKafka::start(&[("orders", 2)]));
    kafka.produce(&records("orders", 2, 4_000)).await;
    let effects = Effects::default();
    let stop = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn({
        let (kafka, stop) = (Arc::clone(&kafka), Arc::clone(&stop));
        async move {
            let mut seen: [Vec<Option<i64>>; 2] = Default::default();
            while !stop.load(Ordering::SeqCst) {
                for (partition, seen) in (0..).zip(&mut seen) {
                    seen.push(kafka.committed("g", "orders", partition).await);
                }
            }
            seen
        }
    });
    let slow = |effects: &Effects| {
        let effects = effects.clone();
        plain(move |message| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                effects.note(&message);
                Ok(())
            }
        })
    };
    let config = || Protocol::CooperativeSticky.config(&kafka, "g");
    let first = Member::start(consumer(config(), "orders"), slow(&effects));
    effects.reach(100).await;
    let mut summaries = Vec::new();
    for _ in 0..3 {
        let (guest, own) = (Effects::default(), effects.distinct());
        let member = Member::start(consumer(config(), "orders"), slow(&guest));
        eventually(PATIENCE, "the guest has had its turn", async || {
            guest.distinct() > 20 || effects.distinct() > own + 1_000
        })
        .await;
        summaries.push(member.stop().await);
        for (place, count) in guest.counts() {
            (0..count).for_each(|_| effects.add(place.clone()));
        }
    }
    effects.reach(4_000).await;
    committed(&kafka, "g", "orders", &[2_000, 2_000]).await;
    stop.store(true, Ordering::SeqCst);
    for seen in watch.await.unwrap() {
        assert!(seen.is_sorted(), "fell back: {seen:?}");
    }
    summaries.push(first.stop().await);
    // Assigned several times, it starts from what the broker has each time, and that is never less than what it was told is committed.
    let found: Vec<_> = summaries.iter().flat_map(|summary| &summary.found).map(|found| found.finding).collect();
    assert!(!found.iter().any(|finding| matches!(finding, Finding::Rewound { .. })), "set back: {found:?}");
    // The mock, like a broker that is about to assign, refuses a commit of a generation that ends: what it refused comes again.
    let refused = summaries.iter().any(|summary| summary.failed_commits > 0);
    let twice: Vec<_> = effects.counts().into_iter().filter(|(_, count)| *count > 1).collect();
    assert!(refused || twice.is_empty(), "a clean handover repeats nothing: {twice:?} {summaries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_leaves_hands_its_partitions_over_at_once() {
    let kafka = Kafka::real();
    let (topic, group) = (unique("leave"), unique("g"));
    kafka.create_topic(&topic, 2).await;
    kafka.produce(&records(&topic, 2, 100)).await;
    let effects = Effects::default();
    let mut config = Protocol::CooperativeSticky.config(&kafka, &group);
    // Were the group not left, the partitions would be held for so long.
    config.set("session.timeout.ms", "300000");
    config.set("max.poll.interval.ms", "300000");
    let member = Member::start(consumer(config.clone(), &topic), noting(&effects));
    effects.reach(100).await;
    assert!(member.stop().await.closed);
    kafka.produce(&records(&topic, 2, 100)).await;
    let member = Member::start(consumer(config, &topic), noting(&effects));
    effects.reach(200).await;
    member.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1));
}

const DRAIN: Duration = Duration::from_millis(500);

/// Partitions that were let go: how many, how many of their messages were left, and how long it took.
#[derive(Clone, Default)]
struct Drains(Arc<Mutex<Vec<(usize, u64, Duration)>>>);

impl Observer for Drains {
    fn on(&self, event: &Observed<'_>) {
        if let Observed::Revoked { places, left, took, .. } = event {
            self.0.lock().unwrap().push((places.len(), *left, *took));
        }
    }
}

/// A handler does not end within the drain deadline: its partition goes without it, committed up to it.
async fn f09_a_handler_beyond_the_drain_deadline_is_dropped(protocol: Protocol) {
    let kafka = Kafka::real();
    let (topic, group) = (unique("beyond"), unique("g"));
    kafka.create_topic(&topic, 2).await;
    kafka.produce(&records(&topic, 2, 40)).await;
    let (effects, never) = (Effects::default(), Gate::default());
    let drains = Drains::default();
    let impatient =
        consumer(protocol.config(&kafka, &group), &topic).drain_deadline(DRAIN).concurrency(4).observer(drains.clone());
    let first = Member::start(impatient, {
        let (effects, never) = (effects.clone(), never.clone());
        plain(move |message| {
            let (effects, never) = (effects.clone(), never.clone());
            async move {
                if message.offset() == 5 {
                    never.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    never.holds(2).await;
    let second = Member::start(consumer(protocol.config(&kafka, &group), &topic), noting(&effects));
    // One partition moves, and is handled to its end.
    effects.reach(25).await;
    eventually(PATIENCE, "the dropped handler is gone", async || never.waiting() == 1).await;
    // It was waited for, as long as it was allowed to take, and no other partition was let go.
    let told = drains.0.lock().unwrap().clone();
    let [(1, 15, took)] = told[..] else { panic!("{protocol:?}: {told:?}") };
    assert!(took >= DRAIN, "{protocol:?}: {took:?}");
    let summary = first.stop().await;
    assert_eq!((summary.handled, summary.left), (10, 15), "{protocol:?}: {summary:?}");
    // The other follows when its owner has left.
    effects.reach(40).await;
    committed(&kafka, &group, &topic, &[20, 20]).await;
    second.stop().await;
    assert!(effects.counts().values().all(|count| *count == 1), "{protocol:?}: {:?}", effects.counts());
    assert_eq!(never.waiting(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_handler_beyond_the_drain_deadline_is_dropped_cooperative() {
    f09_a_handler_beyond_the_drain_deadline_is_dropped(Protocol::CooperativeSticky).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_handler_beyond_the_drain_deadline_is_dropped_kip_848() {
    f09_a_handler_beyond_the_drain_deadline_is_dropped(Protocol::Consumer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_lost_partitions_are_not_committed() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 60)).await;
    let (effects, begun, gate) = (Effects::default(), Counter::default(), Gate::default());
    let rare = consumer(kafka.consumer_config("g"), "orders").commit_every(Duration::from_secs(3_600));
    let member = Member::start(rare, {
        let (effects, begun, gate) = (effects.clone(), begun.clone(), gate.clone());
        plain(move |message| {
            let (effects, begun, gate) = (effects.clone(), begun.clone(), gate.clone());
            async move {
                // The second assignment waits before its first message.
                if message.offset() == 0 && begun.up() == 2 {
                    gate.pass().await;
                }
                effects.note(&message);
                Ok(())
            }
        })
    });
    effects.reach(60).await;
    kafka.cluster().request_errors(RDKafkaApiKey::Heartbeat, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    gate.holds(1).await;
    assert_eq!(kafka.committed("g", "orders", 0).await, None, "60 were finished, of an assignment that was lost");
    gate.open();
    eventually(PATIENCE, "all are handled again", async || effects.counts().values().all(|count| *count == 2)).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.failed_commits), (120, 0), "{summary:?}");
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_a_commit_on_its_way_when_partitions_go_never_moves_one_back() {
    // Every answer of the broker takes a while, and a commit is on its way all the time.
    let kafka = Arc::new(MockKafka::start(&[("orders", 2)]));
    kafka.produce(&records("orders", 2, 2_000)).await;
    kafka.cluster().broker_round_trip_time(1, Duration::from_millis(150)).unwrap();
    let effects = Effects::default();
    let busy =
        || consumer(Protocol::CooperativeSticky.config(&kafka, "g"), "orders").commit_every(Duration::from_millis(1));
    let slow = |effects: &Effects| {
        let effects = effects.clone();
        plain(move |message| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                effects.note(&message);
                Ok(())
            }
        })
    };
    let first = Member::start(busy(), slow(&effects));
    effects.reach(50).await;
    let second = Member::start(busy(), slow(&effects));
    let mut seen: [Vec<Option<i64>>; 2] = Default::default();
    eventually(PATIENCE, "all are handled", async || {
        for (partition, seen) in (0..).zip(&mut seen) {
            seen.push(kafka.committed("g", "orders", partition).await);
        }
        effects.distinct() == 2_000
    })
    .await;
    committed(&kafka, "g", "orders", &[1_000, 1_000]).await;
    let summaries = [first.stop().await, second.stop().await];
    for seen in seen {
        assert!(seen.is_sorted(), "fell back: {seen:?}");
    }
    let refused = summaries.iter().any(|summary| summary.failed_commits > 0);
    assert!(refused || effects.counts().values().all(|count| *count == 1), "{summaries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_that_comes_back_has_its_partition_at_once_and_disturbs_nobody() {
    let kafka = Kafka::real();
    let (topic, group) = (unique("static"), unique("g"));
    kafka.create_topic(&topic, 2).await;
    let effects = Effects::default();
    let member = |name: &str| {
        let mut config = Protocol::Range.config(&kafka, &group);
        config.set("group.instance.id", name).set("session.timeout.ms", "45000");
        let consumer = consumer(config, &topic);
        let monitor = consumer.monitor();
        (Member::start(consumer, noting(&effects)), monitor)
    };
    let ((a, a_state), (b, b_state)) = (member("a"), member("b"));
    let has_one = |state: &Monitor| state.snapshot().partitions.len() == 1;
    eventually(PATIENCE, "each has one partition", async || has_one(&a_state) && has_one(&b_state)).await;
    kafka.produce(&records(&topic, 2, 40)).await;
    effects.reach(40).await;
    committed(&kafka, &group, &topic, &[20, 20]).await;
    let a_before = a.stop().await;
    kafka.produce(&records(&topic, 2, 40)).await;
    // The partition of the other one goes on; that of the one that is away waits for it.
    effects.reach(60).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(effects.distinct(), 60);
    let (a, _) = member("a");
    effects.reach(80).await;
    committed(&kafka, &group, &topic, &[40, 40]).await;
    let (a, b) = (a.stop().await, b.stop().await);
    let owned = |summary: &Summary| {
        let last = summary.partitions.iter().filter(|(_, partition)| partition.committed.is_some());
        last.map(|((_, partition), _)| *partition).collect::<Vec<_>>()
    };
    assert_eq!(owned(&a).len(), 1, "{a:?}");
    assert!(owned(&a_before).contains(&owned(&a)[0]), "{a_before:?} {a:?}");
    assert!(effects.counts().values().all(|count| *count == 1), "{a_before:?} {a:?} {b:?}");
}
