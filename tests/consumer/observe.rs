//! What observers hear, what spans say, and what a snapshot shows: each against what was counted outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::Message;
use hapax::identity::{Key, header};
use hapax::observe::{
    Claims, Endings, Health, Observed, Observer, Operation, Outcome, Phase, SPAN_TARGET, Settles, Snapshot,
};
use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, RequeueOutcome, Settle, SettleOutcome, Terms};
use hapax::store::{
    Ask, Batch, DedupStore, Description, MemoryStore, Purged, Report, Retention, SqliteStore, StoreError,
};
use hapax::{Claim, Once, Order, Retry};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::{MockKafka, PATIENCE, Record, eventually, unique};
use crate::world::{Counter, Effects, Gate, Member, consumer};

const TOPIC: &str = "observed";
const PARTITIONS: i32 = 3;

/// Adds up all that it hears.
#[derive(Clone, Debug, Default)]
struct Sums(Arc<Mutex<Sum>>);

#[derive(Clone, Debug, Default)]
struct Sum {
    started: Vec<(String, String)>,
    delivered: BTreeMap<i32, u64>,
    bytes: u64,
    claims: Claims,
    claimed: u64,
    settles: Settles,
    endings: BTreeMap<i32, Endings>,
    outcomes: BTreeMap<&'static str, u64>,
    retries: u64,
    runs_of: BTreeSet<i32>,
    store_failures: BTreeMap<&'static str, u64>,
    circuit: Vec<(&'static str, bool)>,
    assigned: BTreeSet<i32>,
    revoked: BTreeSet<i32>,
    paused: u64,
    resumed: u64,
    commits: u64,
    last: Snapshot,
}

impl Observer for Sums {
    fn on(&self, event: &Observed<'_>) {
        let mut sum = self.0.lock().unwrap();
        match event {
            Observed::Started { group, handler, .. } => sum.started.push(((*group).into(), (*handler).into())),
            Observed::Delivered { place, messages, bytes, .. } => {
                assert_eq!(place.topic, TOPIC);
                *sum.delivered.entry(place.partition).or_default() += messages;
                sum.bytes += bytes;
            }
            Observed::Claimed { asked, answers, .. } => {
                assert_eq!(answers.total(), *asked, "one answer each");
                sum.claimed += asked;
                sum.claims += *answers;
            }
            Observed::Settled { answers, .. } => sum.settles += *answers,
            Observed::StoreFailed { operation, .. } => {
                *sum.store_failures.entry(operation.name()).or_default() += 1;
            }
            Observed::Ran(runs) => {
                for run in *runs {
                    *sum.outcomes.entry(run.outcome.name()).or_default() += run.messages;
                    sum.retries += u64::from(run.attempt > 1);
                    sum.runs_of.insert(run.place.partition);
                }
            }
            Observed::Finished { place, counts, .. } => *sum.endings.entry(place.partition).or_default() += *counts,
            Observed::Circuit { what, open, .. } => sum.circuit.push((what.name(), *open)),
            Observed::Assigned(places) => sum.assigned.extend(places.iter().map(|place| place.partition)),
            Observed::Revoked { places, .. } => sum.revoked.extend(places.iter().map(|place| place.partition)),
            Observed::Paused(places) => sum.paused += places.len() as u64,
            Observed::Resumed(places) => sum.resumed += places.len() as u64,
            Observed::Committed { partitions, accepted, .. } => sum.commits += u64::from(*accepted) * partitions,
            Observed::Sampled(snapshot) => sum.last = (*snapshot).clone(),
            _ => {}
        }
    }
}

impl Sums {
    fn get(&self) -> Sum {
        self.0.lock().unwrap().clone()
    }
}

impl Sum {
    fn endings(&self) -> Endings {
        let mut all = Endings::default();
        self.endings.values().for_each(|counts| all += *counts);
        all
    }
}

/// `count` messages and a copy of every third one behind them all.
fn with_copies(count: i32) -> Vec<Record> {
    let record = |n: i32| {
        Record::to(TOPIC).partition(n % PARTITIONS).payload(format!("payload {n}")).header("id", format!("id {n}"))
    };
    (0..count).map(record).chain((0..count).filter(|n| n % 3 == 0).map(record)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_observer_hears_is_what_happened() {
    let kafka = MockKafka::start(&[(TOPIC, PARTITIONS)]);
    let (count, copies) = (300, 100);
    kafka.produce(&with_copies(count)).await;
    let folder = tempfile::tempdir().unwrap();
    let once = Once::builder(SqliteStore::open(folder.path().join("observed.db")).await.unwrap())
        .scope("observers", "note")
        .identify(header("id"))
        .retry(Retry::fixed(Duration::from_millis(5)))
        .build()
        .await
        .unwrap();
    let (effects, failures, sums) = (Effects::default(), Counter::default(), Sums::default());
    let (noted, failed) = (effects.clone(), failures.clone());
    // Every seventh message of a partition fails at its first attempt.
    let handler = move |message: Message, claim: Claim| {
        let (noted, failed) = (noted.clone(), failed.clone());
        async move {
            if message.offset() % 7 == 0 && claim.attempt() == 1 {
                failed.up();
                return Err("not yet".to_owned());
            }
            noted.note(&message);
            Ok(())
        }
    };
    let group = unique("observers");
    let consumer = consumer(kafka.consumer_config(&group), TOPIC).observer(sums.clone());
    let monitor = consumer.monitor();
    assert_eq!(monitor.snapshot().phase, Phase::Waiting);
    let member = Member::start(consumer, once.each(handler));
    let all = (count + copies) as u64;
    eventually(PATIENCE, "all is finished", async || sums.get().endings().total() == all).await;
    // The state is put up once more after the last change.
    eventually(PATIENCE, "the last sample shows nothing in hand", async || {
        let last = sums.get().last;
        last.unfinished == 0 && last.totals.handled == u64::try_from(count).unwrap()
    })
    .await;
    let summary = member.stop().await;
    let sum = sums.get();
    assert_eq!(sum.started, [(group.clone(), "note".to_owned())]);
    assert_eq!(effects.distinct(), usize::try_from(count).unwrap());
    assert_eq!(sum.delivered.values().sum::<u64>(), summary.delivered);
    assert_eq!(summary.delivered, all);
    assert!(sum.bytes >= all * "payload 0".len() as u64, "{}", sum.bytes);
    let endings = sum.endings();
    assert_eq!(endings.handled, effects.counts().values().sum::<usize>() as u64);
    assert_eq!((endings.same_id, endings.dead, endings.conflicts), (copies as u64, 0, 0));
    assert!(failures.get() > 0);
    assert_eq!(sum.outcomes.get("failed").copied(), Some(u64::from(failures.get())));
    assert_eq!(sum.outcomes.get("succeeded").copied(), Some(endings.handled));
    assert_eq!(sum.retries, u64::from(failures.get()), "each was tried again once");
    // What was claimed with a message that failed is given back, and claimed again.
    assert!(sum.claims.acquired >= endings.handled + u64::from(failures.get()), "{:?}", sum.claims);
    assert_eq!(sum.settles.recorded, sum.claims.acquired, "every claim is ended");
    // A copy that is in hand together with the first one is settled without asking the store.
    assert!(sum.claims.took_over == 0 && sum.claims.same_id <= endings.same_id, "{:?}", sum.claims);
    assert_eq!((sum.settles.late, sum.settles.refused, sum.settles.buried), (0, 0, 0));
    let each: BTreeSet<i32> = (0..PARTITIONS).collect();
    assert_eq!((&sum.assigned, &sum.runs_of), (&each, &each));
    assert_eq!(sum.endings.len(), each.len());
    for (partition, delivered) in &sum.delivered {
        assert_eq!(sum.endings[partition].total(), *delivered, "partition {partition}");
    }
    assert!(sum.commits > 0 && sum.store_failures.is_empty());
    let last = monitor.snapshot();
    assert_eq!(last.phase, Phase::Ended);
    assert_eq!((last.totals.handled, last.totals.same_id), (summary.handled, summary.same_id));
}

/// A store that can be made to fail.
#[derive(Debug, Default)]
struct Switched {
    store: MemoryStore,
    down: Arc<AtomicBool>,
}

impl Switched {
    fn check_switch(&self, operation: &'static str) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("switched", operation, "the switch is off"));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl DedupStore for Switched {
    fn describe(&self) -> Description {
        self.store.describe()
    }
    fn retention(&self) -> Retention {
        self.store.retention()
    }
    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.check_switch("claim")?;
        self.store.claim(terms, asks).await
    }
    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        self.check_switch("settle")?;
        self.store.settle(settles).await
    }
    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        self.store.extend(claims).await
    }
    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<hapax::record::Record>>, StoreError> {
        self.store.get(keys).await
    }
    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        self.store.requeue(keys).await
    }
    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.store.purge(limit).await
    }
    async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.store.ensure_schema().await
    }
    async fn check(&self) -> Result<Report, StoreError> {
        self.store.check().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_shows_what_is_paused_parked_and_down() {
    let kafka = MockKafka::start(&[(TOPIC, 1)]);
    let count = 200;
    let record = |n: i32| Record::to(TOPIC).partition(0).payload(n.to_string()).header("id", n.to_string());
    kafka.produce(&(0..count).map(record).collect::<Vec<_>>()).await;
    let store = Switched::default();
    let down = Arc::clone(&store.down);
    let once = Once::builder(store)
        .scope("snapshots", "wait")
        .identify(header("id"))
        .retry(Retry::fixed(Duration::from_secs(3_600)))
        .build()
        .await
        .unwrap();
    let (gate, begun) = (Gate::default(), Counter::default());
    let (held, fail) = (gate.clone(), Arc::new(AtomicBool::new(true)));
    let failing = Arc::clone(&fail);
    let started = begun.clone();
    // The first three wait at the gate; from then on messages fail, and are parked for an hour.
    let handler = move |_: Message, _: Claim| {
        let (held, failing, started) = (held.clone(), Arc::clone(&failing), started.clone());
        async move {
            if started.up() <= 3 {
                held.pass().await;
            } else if failing.load(Ordering::SeqCst) {
                return Err("later".to_owned());
            }
            Ok(())
        }
    };
    let (sums, group) = (Sums::default(), unique("snapshots"));
    let consumer = consumer(kafka.consumer_config(&group), TOPIC)
        .order(Order::Unordered)
        .concurrency(3)
        .partition_messages(50)
        .observer(sums.clone());
    let monitor = consumer.monitor();
    let member = Member::start(consumer, once.each(handler));
    gate.holds(3).await;
    let see = async |what: &str, seen: &dyn Fn(&Snapshot) -> bool| {
        eventually(PATIENCE, &format!("the snapshot shows {what}"), async || seen(&monitor.snapshot())).await;
    };
    see("three that run, and a full partition that is paused", &|now| {
        now.phase == Phase::Running
            && now.running == 3
            && now.partitions.len() == 1
            && now.partitions[0].paused
            && now.partitions[0].unfinished == now.unfinished
            && now.unfinished >= 40
            && now.partitions[0].committable.is_none()
    })
    .await;
    assert!(monitor.snapshot().unfinished <= 50 + 512, "the bound, and one batch");
    see("that Kafka is polled, and how much is left", &|now| {
        now.polled.is_some_and(|ago| ago < PATIENCE)
            && now.partitions[0].high_watermark == Some(i64::from(count))
            && now.partitions[0].delivered.is_some()
    })
    .await;
    gate.open();
    see("failed ones that wait", &|now| now.parked >= 30 && now.running == 0).await;
    assert_eq!(monitor.snapshot().health(PATIENCE), Health::Well, "handlers that fail are no reason to restart");
    let text = monitor.snapshot().to_string();
    assert!(text.starts_with('{') && text.contains("\"parked\":") && !text.contains('\n'), "{text}");
    member.stop().await;
    assert_eq!(monitor.snapshot().phase, Phase::Ended);

    // Another consumer finds the store down, waits, and goes on when it is back.
    down.store(true, Ordering::SeqCst);
    fail.store(false, Ordering::SeqCst);
    kafka.produce(&(count..count + 20).map(record).collect::<Vec<_>>()).await;
    let sums = Sums::default();
    let second = crate::world::consumer(kafka.consumer_config(&unique("snapshots")), TOPIC)
        .order(Order::Unordered)
        .observer(sums.clone());
    let monitor = second.monitor();
    let effects = Effects::default();
    let noted = effects.clone();
    let member = Member::start(
        second,
        once.each(move |message: Message, _: Claim| {
            noted.note(&message);
            std::future::ready(Ok::<(), String>(()))
        }),
    );
    eventually(PATIENCE, "the snapshot shows that the store is down", async || {
        let now = monitor.snapshot();
        now.store_down && now.health(PATIENCE) == Health::Waiting("the store is down")
    })
    .await;
    assert_eq!(effects.distinct(), 0);
    assert!(sums.get().store_failures.get(Operation::Claim.name()).is_some_and(|failures| *failures > 0));
    down.store(false, Ordering::SeqCst);
    eventually(PATIENCE, "the store is back", async || {
        let now = monitor.snapshot();
        !now.store_down && now.health(PATIENCE) == Health::Well
    })
    .await;
    eventually(PATIENCE, "the new messages are handled", async || effects.distinct() >= 20).await;
    member.stop().await;
    let circuit = sums.get().circuit;
    assert!(circuit.starts_with(&[("store", true), ("store", false)]), "{circuit:?}");
}

/// Keeps the fields of each span of a handled message.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct At(usize);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S> tracing_subscriber::Layer<S> for Spans
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &tracing::span::Attributes<'_>, id: &tracing::Id, context: Context<'_, S>) {
        if attributes.metadata().target() != SPAN_TARGET {
            return;
        }
        let mut spans = self.0.lock().unwrap();
        let mut fields = BTreeMap::from([("name".to_owned(), attributes.metadata().name().to_owned())]);
        attributes.record(&mut Fields(&mut fields));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(At(spans.len()));
        }
        spans.push(fields);
    }

    fn on_record(&self, id: &tracing::Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(At(at)) = span.extensions().get::<At>() {
            values.record(&mut Fields(&mut self.0.lock().unwrap()[*at]));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        // What handlers log stands in the span of their message.
        if event.metadata().target() != "observed::handler" {
            return;
        }
        let Some(span) = context.event_span(event) else { panic!("a handler logs inside of a span") };
        if let Some(At(at)) = span.extensions().get::<At>() {
            self.0.lock().unwrap()[*at].insert("logged".to_owned(), "yes".to_owned());
        }
    }
}

// One thread, so that the subscriber of this test is that of all its tasks.
#[tokio::test]
async fn each_handler_call_has_a_span_with_the_names_of_opentelemetry() {
    let spans = Spans::default();
    let filter = tracing_subscriber::EnvFilter::new("off,hapax::process=debug,observed::handler=info");
    let subscriber = tracing_subscriber::registry().with(filter).with(spans.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    let kafka = MockKafka::start(&[(TOPIC, 1)]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let record = |n: i32| Record::to(TOPIC).partition(0).key("secret").payload("12345").header("id", n.to_string());
    let records = [
        record(0).header("traceparent", trace),
        record(1).header("traceparent", "nonsense"),
        record(2),
        record(0), // a copy: it has no span, since no handler runs
        record(3),
    ];
    kafka.produce(&records).await;
    let once = Once::builder(MemoryStore::new())
        .scope("spans", "log")
        .identify(header("id"))
        .retry(Retry::fixed(Duration::from_millis(1)).attempts(2))
        .build()
        .await
        .unwrap();
    let keys = Arc::new(Mutex::new(BTreeMap::new()));
    let noted = Arc::clone(&keys);
    let handler = move |message: Message, claim: Claim| {
        let noted = Arc::clone(&noted);
        async move {
            tokio::task::yield_now().await;
            tracing::info!(target: "observed::handler", "at work");
            noted.lock().unwrap().insert(message.offset(), claim.idempotency_key());
            if message.offset() == 2 && claim.attempt() == 1 { Err("once".to_owned()) } else { Ok(()) }
        }
    };
    let group = unique("spans");
    let member = Member::start(consumer(kafka.consumer_config(&group), TOPIC), once.each(handler));
    eventually(PATIENCE, "all are handled", async || keys.lock().unwrap().contains_key(&4)).await;
    member.stop().await;
    let spans = spans.0.lock().unwrap().clone();
    let offsets: Vec<&str> = spans.iter().map(|span| span["messaging.kafka.offset"].as_str()).collect();
    assert_eq!(offsets, ["0", "1", "2", "2", "4"], "one for each call of a handler");
    for (at, span) in spans.iter().enumerate() {
        for (name, value) in [
            ("name", "process"),
            ("otel.name", "process observed"),
            ("otel.kind", "consumer"),
            ("messaging.system", "kafka"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", TOPIC),
            ("messaging.destination.partition.id", "0"),
            ("messaging.consumer.group.name", group.as_str()),
            ("messaging.message.body.size", "5"),
            ("hapax.attempt", if at == 3 { "2" } else { "1" }),
            ("logged", "yes"),
        ] {
            assert_eq!(span.get(name).map(String::as_str), Some(value), "{name} of span {at}");
        }
        let offset: i64 = span["messaging.kafka.offset"].parse().unwrap();
        assert_eq!(span["messaging.message.id"], keys.lock().unwrap()[&offset]);
        assert_eq!(span.get("error.type").map(String::as_str), (at == 2).then_some(Outcome::Failed.name()));
        assert!(!span.values().any(|value| value.contains("secret")), "{span:?}");
    }
    let trace_ids: Vec<_> = spans.iter().map(|span| span.get("trace_id").map(String::as_str)).collect();
    assert_eq!(trace_ids, [Some("4bf92f3577b34da6a3ce929d0e0e4736"), None, None, None, None]);
    assert_eq!(spans[0]["parent_span_id"], "00f067aa0ba902b7");
}
