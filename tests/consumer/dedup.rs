//! The consumer around `Once`: every message once, whatever is delivered how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hapax::consumer::Handling;
use hapax::identity::{Identify, by, header, record_key};
use hapax::message::MessageView;
use hapax::record::{
    ClaimOutcome, Extend, ExtendOutcome, Record as Kept, RequeueOutcome, Settle, SettleOutcome, Terms,
};
use hapax::store::{
    Ask, Batch, DedupStore, Description, MemoryStore, Purged, Report, Retention, SqliteStore, StoreError,
};
use hapax::{Claim, ConsumerError, Fatal, Message, Mode, OnConflict, Once, OnceBuilder, Retry};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Kafka, MockKafka, PATIENCE, Record, eventually, unique};
use crate::world::{Counter, Effects, Gate, Member, committed, consumer, records};

fn builder(store: impl DedupStore + 'static, identify: impl Identify + 'static) -> OnceBuilder {
    Once::builder(store).scope("tests", "consumer").identify(identify)
}

fn noting(once: &Once, effects: &Effects) -> impl Handling + use<> {
    let effects = effects.clone();
    once.each(move |message: Message, _: Claim| {
        effects.note(&message);
        std::future::ready(Ok::<_, String>(()))
    })
}

fn once_each(effects: &Effects) -> bool {
    effects.counts().values().all(|count| *count == 1)
}

/// `distinct` records, and behind them a copy of every second one at another partition.
fn with_copies(topic: &str, partitions: i32, distinct: i32) -> Vec<Record> {
    let record = |n: i32, at: i32| {
        Record::to(topic)
            .partition(at % partitions)
            .key(format!("{n}"))
            .payload(format!("body {n}"))
            .header("id", format!("{n}"))
    };
    let copies = (0..distinct).step_by(2).map(|n| record(n, n + 1));
    (0..distinct).map(|n| record(n, n)).chain(copies).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_handled_once_and_told_by_cause() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = MockKafka::start(&[("orders", 4)]);
    kafka.produce(&with_copies("orders", 4, 2_000)).await;
    let once =
        builder(SqliteStore::open(folder.path().join("h.db")).await.unwrap(), header("id")).build().await.unwrap();
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&once, &effects));
    effects.reach(2_000).await;
    committed(&kafka, "g", "orders", &[500, 1_000, 500, 1_000]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.same_id, summary.redelivered), (2_000, 1_000, 0), "{summary}");
    assert_eq!((summary.delivered, summary.left, summary.unsettled), (3_000, 0, 0));
    assert!(once_each(&effects));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_a_reset_to_the_earliest_offset_repeats_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.db");
    let kafka = Kafka::real();
    let (topic, group) = (unique("reset"), unique("g"));
    kafka.create_topic(&topic, 4).await;
    kafka.produce(&with_copies(&topic, 4, 1_000)).await;
    let effects = Effects::default();
    for round in 0..2 {
        // Another owner each time, as after a restart.
        let once = builder(SqliteStore::open(&path).await.unwrap(), header("id")).build().await.unwrap();
        let member = Member::start(consumer(kafka.consumer_config(&group), &topic), noting(&once, &effects));
        committed(&kafka, &group, &topic, &[250, 500, 250, 500]).await;
        let summary = member.stop().await;
        assert_eq!(summary.delivered, 1_500);
        if round == 0 {
            assert_eq!((summary.handled, summary.same_id, summary.redelivered), (1_000, 500, 0));
            // The group's offsets are gone: `auto.offset.reset` starts from the first message.
            kafka.delete_group(&group).await;
        } else {
            assert_eq!((summary.handled, summary.duplicates()), (0, 1_500), "{summary}");
            assert_eq!(summary.redelivered, 1_000, "each first message is a duplicate of itself, each copy one of it");
        }
    }
    assert!(once_each(&effects) && effects.distinct() == 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_a_zombie_and_its_successor_have_one_effect() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 60)).await;
    let looks = Counter::default();
    let identify = by({
        let looks = looks.clone();
        move |message: &dyn MessageView| {
            if message.offset() == 20 {
                looks.up();
            }
            message.header("id").map(<[u8]>::to_vec)
        }
    });
    let once = builder(MemoryStore::new(), identify).build().await.unwrap();
    let (effects, gate, begun) = (Effects::default(), Gate::default(), Counter::default());
    // The zombie lives for so long after its partition is lost, and the mock takes its time to give the partition back.
    let patient = consumer(kafka.consumer_config("g"), "orders").drain_deadline(PATIENCE);
    let member = Member::start(patient, {
        let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
        once.each(move |message: Message, _: Claim| {
            let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
            async move {
                if message.offset() == 20 {
                    begun.up();
                    gate.pass().await;
                }
                effects.note(&message);
                Ok::<_, String>(())
            }
        })
    });
    gate.holds(1).await;
    kafka.cluster().request_errors(RDKafkaApiKey::Heartbeat, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    // The message is delivered again and finds that it is being handled: it waits for what comes of that.
    eventually(PATIENCE, "the message is delivered again", async || looks.get() > 1).await;
    assert_eq!((begun.get(), effects.distinct()), (1, 20), "nothing behind it is handled meanwhile");
    gate.open();
    effects.reach(60).await;
    committed(&kafka, "g", "orders", &[60]).await;
    let summary = member.stop().await;
    assert_eq!(begun.get(), 1);
    assert!(once_each(&effects));
    assert!(summary.late >= 1 && summary.redelivered >= 1, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_what_a_refused_commit_brings_back_is_suppressed() {
    let kafka = MockKafka::start(&[("orders", 4)]);
    kafka.produce(&records("orders", 4, 4_000)).await;
    let store = MemoryStore::new();
    let effects = Effects::default();
    let joined = Arc::new(AtomicBool::new(false));
    let mut members = Vec::new();
    let mut onces = Vec::new();
    for second in [false, true] {
        if second {
            effects.reach(100).await;
        }
        let once = builder(store.clone(), header("id")).build().await.unwrap();
        let (effects, joined) = (effects.clone(), Arc::clone(&joined));
        // Eager: the mock refuses every commit on revoke.
        let mut config = kafka.consumer_config("g");
        config.set("partition.assignment.strategy", "range");
        let rare = consumer(config, "orders").commit_every(Duration::from_millis(500));
        let handler = once.each(move |message: Message, _: Claim| {
            let (effects, joined) = (effects.clone(), Arc::clone(&joined));
            async move {
                if second {
                    joined.store(true, Ordering::SeqCst);
                } else if !joined.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                effects.note(&message);
                Ok::<_, String>(())
            }
        });
        members.push(Member::start(rare, handler));
        onces.push(once);
    }
    effects.reach(4_000).await;
    committed(&kafka, "g", "orders", &[1_000; 4]).await;
    let mut redelivered = 0;
    for member in members {
        redelivered += member.stop().await.redelivered;
    }
    assert!(redelivered > 0, "some messages came twice");
    assert!(once_each(&effects), "and none was handled twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_tombstones_and_repeated_keys_are_messages_like_others() {
    let kafka = Kafka::real();
    let (topic, group) = (unique("compacted"), unique("g"));
    kafka.create_topic_with(&topic, 1, &[("cleanup.policy", "compact")]).await;
    let mut sent = Vec::new();
    for n in 0..50 {
        let record = Record::to(&topic).partition(0).key("customer 7").header("id", format!("{n}"));
        sent.push(if n % 5 == 4 { record } else { record.payload(format!("state {n}")) });
    }
    kafka.produce(&sent).await;
    let once = builder(MemoryStore::new(), header("id")).build().await.unwrap();
    let (effects, tombstones) = (Effects::default(), Counter::default());
    let member = Member::start(consumer(kafka.consumer_config(&group), &topic), {
        let (effects, tombstones) = (effects.clone(), tombstones.clone());
        once.each(move |message: Message, _: Claim| {
            if message.payload().is_none() {
                tombstones.up();
            }
            effects.note(&message);
            std::future::ready(Ok::<_, String>(()))
        })
    });
    effects.reach(50).await;
    committed(&kafka, &group, &topic, &[50]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, tombstones.get()), (50, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_a_key_that_names_a_thing_and_not_a_message_is_found_out() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let record =
        |n: i32, payload: &str| Record::to("orders").partition(0).key(format!("customer {n}")).payload(payload);
    kafka.produce(&[record(1, "a"), record(2, "a"), record(1, "a"), record(1, "b"), record(3, "a")]).await;
    let effects = Effects::default();

    let store = MemoryStore::new();
    let once = builder(store.clone(), record_key()).build().await.unwrap();
    let error =
        Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&once, &effects)).end().await.unwrap_err();
    let ConsumerError::Message { partition, offset, summary, .. } = &error else { panic!("{error}") };
    assert_eq!((*partition, *offset), (0, 3), "{error}");
    assert_eq!((summary.handled, summary.redelivered, summary.same_id), (2, 0, 1));
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(3), "the conflict is not passed by");

    let once = builder(store, record_key()).on_conflict(OnConflict::Skip).build().await.unwrap();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&once, &effects));
    committed(&kafka, "g", "orders", &[5]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.conflicts), (1, 1));
    assert_eq!(effects.of("orders", 0), [0, 1, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_without_an_identity_stops_the_consumer_at_its_place() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let mut sent = records("orders", 1, 3);
    sent.push(Record::to("orders").partition(0).payload("no id"));
    sent.extend(records("orders", 1, 1));
    kafka.produce(&sent).await;
    let once = builder(MemoryStore::new(), header("id")).build().await.unwrap();
    let effects = Effects::default();
    let error =
        Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&once, &effects)).end().await.unwrap_err();
    let ConsumerError::Message { topic, partition, offset, .. } = &error else { panic!("{error}") };
    assert_eq!((topic.as_str(), *partition, *offset), ("orders", 0, 3));
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(3));
    assert_eq!(effects.of("orders", 0), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_a_poison_message_is_given_up_and_its_partition_goes_on() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&records("orders", 2, 40)).await;
    let retry = Retry::fixed(Duration::from_millis(5)).attempts(3);
    let once = builder(MemoryStore::new(), header("id")).retry(retry).build().await.unwrap();
    let (effects, attempts, hiccups) = (Effects::default(), Counter::default(), Counter::default());
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), {
        let (effects, attempts, hiccups) = (effects.clone(), attempts.clone(), hiccups.clone());
        once.each(move |message: Message, _: Claim| {
            let (effects, attempts, hiccups) = (effects.clone(), attempts.clone(), hiccups.clone());
            async move {
                match (message.partition(), message.offset()) {
                    (0, 5) => panic!("attempt {}", attempts.up()),
                    (0, 6) => return Err(Box::from(Fatal::new("never"))),
                    (1, 7) if hiccups.up() == 1 => return Err("once more".into()),
                    _ => {}
                }
                effects.note(&message);
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            }
        })
    });
    effects.reach(38).await;
    committed(&kafka, "g", "orders", &[20, 20]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead), (38, 2), "{summary}");
    let expected: Vec<i64> = (0..20).filter(|offset| ![5, 6].contains(offset)).collect();
    assert_eq!(effects.of("orders", 0), expected, "in order, around the dead");
    assert_eq!(effects.of("orders", 1), (0..20).collect::<Vec<_>>());
    assert_eq!((attempts.get(), hiccups.get()), (3, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_stopped_and_started_under_load_every_message_has_one_effect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.db");
    let kafka = MockKafka::start(&[("orders", 4)]);
    kafka.produce(&with_copies("orders", 4, 4_000)).await;
    let effects = Effects::default();
    let mut finished = 0;
    for round in 1..=5 {
        let once = builder(SqliteStore::open(&path).await.unwrap(), header("id")).build().await.unwrap();
        let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&once, &effects));
        if round < 5 {
            let until = effects.distinct() + 300;
            effects.reach(until.min(4_000)).await;
        } else {
            committed(&kafka, "g", "orders", &[1_000, 2_000, 1_000, 2_000]).await;
        }
        let summary = member.stop().await;
        assert_eq!(summary.unsettled, 0, "{summary}");
        finished += summary.handled + summary.duplicates();
    }
    assert_eq!(finished, 6_000, "what was finished was committed: no place is delivered after it");
    assert!(once_each(&effects) && effects.distinct() == 4_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_least_once_is_what_it_says() {
    let kafka = MockKafka::start(&[("orders", 2)]);
    kafka.produce(&with_copies("orders", 2, 100)).await;
    let once = builder(MemoryStore::new(), header("id")).mode(Mode::AtLeastOnce).build().await.unwrap();
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&once, &effects));
    committed(&kafka, "g", "orders", &[50, 100]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.duplicates()), (150, 0), "copies have their effect too");
}

/// A store that can be taken away.
#[derive(Clone, Debug, Default)]
pub struct Shaky {
    store: MemoryStore,
    pub away: Arc<AtomicBool>,
    pub refused: Counter,
}

impl Shaky {
    fn there(&self, operation: &'static str) -> Result<(), StoreError> {
        if self.away.load(Ordering::SeqCst) {
            self.refused.up();
            return Err(StoreError::unavailable("shaky", operation, "it is away"));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl DedupStore for Shaky {
    fn describe(&self) -> Description {
        self.store.describe()
    }
    fn retention(&self) -> Retention {
        self.store.retention()
    }
    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.there("claim")?;
        self.store.claim(terms, asks).await
    }
    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        self.there("settle")?;
        self.store.settle(settles).await
    }
    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        self.there("extend")?;
        self.store.extend(claims).await
    }
    async fn get(&self, keys: &Batch<hapax::identity::Key>) -> Result<Vec<Option<Kept>>, StoreError> {
        self.store.get(keys).await
    }
    async fn requeue(&self, keys: &Batch<hapax::identity::Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        self.store.requeue(keys).await
    }
    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.store.purge(limit).await
    }
    async fn ensure_schema(&self) -> Result<(), StoreError> {
        Ok(())
    }
    async fn check(&self) -> Result<Report, StoreError> {
        Ok(Report::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_store_that_is_away_stops_effects_and_commits_but_not_polling() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    let shaky = Shaky::default();
    let once = builder(shaky.clone(), header("id")).build().await.unwrap();
    let effects = Effects::default();
    let mut config = kafka.consumer_config("g");
    config.set("max.poll.interval.ms", "6000");
    let member = Member::start(consumer(config, "orders").partition_messages(16), noting(&once, &effects));
    kafka.produce(&records("orders", 1, 100)).await;
    committed(&kafka, "g", "orders", &[100]).await;
    shaky.away.store(true, Ordering::SeqCst);
    let more: Vec<Record> =
        (100..300).map(|n| Record::to("orders").partition(0).payload("").header("id", format!("id {n}"))).collect();
    kafka.produce(&more).await;
    eventually(PATIENCE, "the store was asked in vain, again and again", async || shaky.refused.get() > 3).await;
    // Longer than max.poll.interval.ms.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(effects.distinct(), 100, "no claim, no effect");
    assert_eq!(kafka.committed("g", "orders", 0).await, Some(100));
    assert!(member.is_running());
    shaky.away.store(false, Ordering::SeqCst);
    effects.reach(300).await;
    committed(&kafka, "g", "orders", &[300]).await;
    let summary = member.stop().await;
    assert!(once_each(&effects));
    assert_eq!(summary.partitions[&("orders".to_owned(), 0)].assigned, 1, "the membership was kept");
    assert_eq!((summary.redelivered, summary.late), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_a_success_that_the_store_does_not_hear_of_is_not_committed() {
    let kafka = MockKafka::start(&[("orders", 1)]);
    kafka.produce(&records("orders", 1, 10)).await;
    let shaky = Shaky::default();
    let once = builder(shaky.clone(), header("id")).build().await.unwrap();
    let effects = Effects::default();
    let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), {
        let (effects, away) = (effects.clone(), Arc::clone(&shaky.away));
        once.each(move |message: Message, _: Claim| {
            if message.offset() == 4 {
                away.store(true, Ordering::SeqCst);
            }
            effects.note(&message);
            std::future::ready(Ok::<_, String>(()))
        })
    });
    effects.reach(5).await;
    eventually(PATIENCE, "the store was told in vain", async || shaky.refused.get() > 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let early = kafka.committed("g", "orders", 0).await;
    assert!(early <= Some(4), "4 is not remembered: {early:?}");
    shaky.away.store(false, Ordering::SeqCst);
    committed(&kafka, "g", "orders", &[10]).await;
    member.stop().await;
    assert!(once_each(&effects), "told again, not done again");
}
