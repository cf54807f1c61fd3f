//! What a running consumer gives up: which letters it sends, what waits for them, and how it ends where they cannot be sent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::consumer::letter::{Cause, LetterError, LetterInfo};
use hapax::consumer::{Consumer, ConsumerError, DeadLetter, DeadLetterError, Handling, Message, Summary};
use hapax::identity::header;
use hapax::message::{MessageView, Parts};
use hapax::observe::{Observed, Observer};
use hapax::store::{DedupStore, MemoryStore, SqliteStore};
use hapax::{Claim, ErrorClass, HandlerError, Retry};
use rdkafka::ClientConfig;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Kafka, MockKafka, PATIENCE, Record, eventually, unique};
use crate::world::{Effects, World, header_of, letters, read_all};

/// What an order makes of its handler.
#[derive(Debug)]
pub struct Trouble {
    text: String,
    class: ErrorClass,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl HandlerError for Trouble {
    fn class(&self) -> ErrorClass {
        self.class
    }
}

/// A consumer at work in a task of its own.
struct Member {
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, ConsumerError>>,
}

impl Member {
    fn start(consumer: Consumer, handling: impl Handling) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        Self { task: tokio::spawn(async move { consumer.run(handling, token).await }), shutdown }
    }

    async fn stop(self) -> Summary {
        self.shutdown.cancel();
        self.end().await.expect("a clean end")
    }

    async fn end(self) -> Result<Summary, ConsumerError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the consumer ends within a minute").expect("no panic")
    }
}

/// Counts letters as the consumer tells of them.
#[derive(Clone, Debug, Default)]
struct Told(Arc<[AtomicU64; 2]>);

impl Observer for Told {
    fn on(&self, event: &Observed<'_>) {
        match event {
            Observed::DeadLettered(count) => self.0[0].fetch_add(*count, Ordering::SeqCst),
            Observed::DeadLetterFailed(count) => self.0[1].fetch_add(*count, Ordering::SeqCst),
            _ => 0,
        };
    }
}

impl Told {
    fn sent(&self) -> u64 {
        self.0[0].load(Ordering::SeqCst)
    }

    fn failed(&self) -> u64 {
        self.0[1].load(Ordering::SeqCst)
    }
}

impl World {
    fn consumer(&self) -> Consumer {
        Consumer::new(self.kafka.consumer_config(&self.group))
            .topics([&*self.orders])
            .commit_every(Duration::from_millis(100))
            .retry(Retry::fixed(Duration::from_millis(5)).attempts(3))
    }

    /// Its payload says what an order makes of its handler; each call is an attempt, and each success an effect.
    fn handling(&self) -> (impl Handling + use<>, Effects) {
        let (effects, attempts) = (self.effects.clone(), Effects::default());
        let tried = attempts.clone();
        let handler = move |message: Message, _: Claim| {
            let (effects, tried) = (effects.clone(), tried.clone());
            async move { treat(&message, &effects, &tried) }
        };
        (self.once.each(handler), attempts)
    }

    async fn committed(&self, partition: i32, offset: i64) {
        eventually(PATIENCE, &format!("partition {partition} is committed up to {offset}"), async || {
            self.kafka.committed(&self.group, &self.orders, partition).await == Some(offset)
        })
        .await;
    }
}

fn treat(message: &Message, effects: &Effects, tried: &Effects) -> Result<(), Trouble> {
    let id = header_of(message, "id").unwrap_or("none").to_owned();
    tried.note(&id);
    let class = match message.payload().unwrap_or_default() {
        b"fails" => ErrorClass::Retryable,
        b"never" => ErrorClass::Fatal,
        _ => {
            effects.note(&id);
            return Ok(());
        }
    };
    Err(Trouble { text: format!("no address for {id} at https://ada:s3cret@maps"), class })
}

fn order(topic: &str, id: &str, payload: &str) -> Record {
    Record::to(topic).partition(0).key("customer").payload(payload).header("id", id)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// One of each kind that is given up, with others before, between and behind; all in one partition.
async fn what_is_given_up_has_a_letter_and_the_rest_goes_on(store: impl DedupStore + 'static) {
    let world = World::new(store).await;
    let topic = &*world.orders;
    let before = now_ms();
    let placed = world
        .kafka
        .produce(&[
            order(topic, "a", "ships"),
            order(topic, "b", "fails").header("trace", "t1").timestamp(1_234),
            order(topic, "c", "never"),
            Record::to(topic).partition(0).payload("has no id"),
            order(topic, "d", "ships"),
            order(topic, "d", "says something else"),
            order(topic, "e", "ships"),
        ])
        .await;
    let told = Told::default();
    let consumer = world.consumer().dead_letter(DeadLetter::topic(&*world.dead)).observer(told.clone());
    let (handling, attempts) = world.handling();
    let member = Member::start(consumer, handling);
    world.committed(0, 7).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead, summary.left), (3, 4, 0), "{summary}");
    assert_eq!((told.sent(), told.failed()), (4, 0));
    assert_eq!(["a", "d", "e"].map(|id| world.effects.of(id)), [1, 1, 1]);
    assert_eq!((attempts.of("b"), attempts.of("c"), attempts.of("none")), (3, 1, 0));

    let mut found = letters(&world.kafka, &world.dead).await;
    found.sort_by_key(|(_, info)| info.offset);
    let told: Vec<_> = found.iter().map(|(_, info)| (info.offset, info.cause)).collect();
    let of = |at: usize| placed[at].1;
    let expected =
        [(of(1), Cause::Attempts), (of(2), Cause::Fatal), (of(3), Cause::Identity), (of(5), Cause::Conflict)];
    assert_eq!(told, expected);
    let (letter, info) = &found[0];
    assert_eq!((MessageView::key(letter), MessageView::payload(letter)), (Some(&b"customer"[..]), Some(&b"fails"[..])));
    assert_eq!((header_of(letter, "id"), header_of(letter, "trace")), (Some("b"), Some("t1")));
    assert_eq!((&*info.topic, info.partition, info.timestamp_ms), (topic, 0, Some(1_234)));
    assert_eq!((info.class, info.attempts, info.hops), (Some(ErrorClass::Retryable), Some(3), 1));
    assert_eq!(info.error.as_deref(), Some("no address for b at https://***@maps"));
    assert_eq!((info.group.as_deref(), info.handler.as_deref()), (Some(&*world.group), Some("ship")));
    let (first, last) = (info.first_at.unwrap(), info.last_at.unwrap());
    assert!(before <= first && first <= last && last <= now_ms(), "{before} {first} {last}");
    let original = Parts::new(topic).at(0, of(1)).payload("fails").header("id", "b");
    assert_eq!(info.key, world.once.key(&original));
    assert_eq!(info.identity, format!("{}.1", info.key.unwrap()));
    let (_, info) = &found[1];
    assert_eq!((info.class, info.attempts), (Some(ErrorClass::Fatal), Some(1)));
    let (_, info) = &found[2];
    assert_eq!((info.class, info.attempts, info.key), (None, None, None));
    assert_eq!(info.identity, format!("{topic}[0]@{}.1", of(3)));
    let (letter, info) = &found[3];
    assert_eq!((info.key, MessageView::payload(letter)), (None, Some(&b"says something else"[..])));
}

#[tokio::test]
async fn what_is_given_up_has_a_letter_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("r.db").display());
    what_is_given_up_has_a_letter_and_the_rest_goes_on(SqliteStore::connect(&url).await.unwrap()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn what_is_given_up_has_a_letter_redis() {
    let url = crate::support::service("HAPAX_TEST_REDIS");
    what_is_given_up_has_a_letter_and_the_rest_goes_on(hapax::store::RedisStore::connect(&url).await.unwrap()).await;
}

#[tokio::test]
async fn without_a_store_the_position_names_the_letter() {
    let world = World::new(MemoryStore::new()).await;
    world.kafka.produce(&[order(&world.orders, "a", "fails"), order(&world.orders, "b", "ships")]).await;
    let (effects, attempts) = (world.effects.clone(), Effects::default());
    let tried = attempts.clone();
    let handling = hapax::plain(move |message: Message| {
        let (effects, tried) = (effects.clone(), tried.clone());
        async move { treat(&message, &effects, &tried) }
    });
    let member = Member::start(world.consumer().dead_letter(DeadLetter::topic(&*world.dead)), handling);
    world.committed(0, 2).await;
    member.stop().await;
    assert_eq!((attempts.of("a"), world.effects.of("b")), (3, 1));
    let found = letters(&world.kafka, &world.dead).await;
    assert_eq!(found.len(), 1);
    let info = &found[0].1;
    assert_eq!((info.key, info.attempts, info.cause), (None, Some(3), Cause::Attempts));
    assert_eq!(info.identity, format!("{}[0]@0.1", world.orders));
    assert_eq!((info.group.as_deref(), info.handler.as_deref()), (Some(&*world.group), None));
}

/// The letters' cluster is away: what waits for a letter is neither passed nor lost, everything else goes on.
#[tokio::test]
async fn nothing_is_lost_while_letters_cannot_be_sent() {
    let (kafka, elsewhere) = (MockKafka::start(&[("orders", 2)]), MockKafka::start(&[("dead", 1)]));
    let world = World::on_clusters(Kafka::at(kafka.bootstrap()), &elsewhere, MemoryStore::new(), header("id")).await;
    let mut there = ClientConfig::new();
    there.set("bootstrap.servers", elsewhere.bootstrap()).set("message.timeout.ms", "1500");
    there.set("socket.timeout.ms", "1000").set("reconnect.backoff.max.ms", "200");
    let told = Told::default();
    let consumer =
        || world.consumer().dead_letter(DeadLetter::topic("dead").producer(there.clone())).observer(told.clone());
    let member = Member::start(consumer(), world.handling().0);
    kafka.produce(&[order("orders", "first", "ships")]).await;
    world.committed(0, 1).await;

    for (round, stops) in [(0, false), (1, true)] {
        elsewhere.cluster().broker_down(1).unwrap();
        let (bad, behind, beside) = (format!("bad{round}"), format!("behind{round}"), format!("beside{round}"));
        kafka.produce(&[order("orders", &bad, "fails"), order("orders", &behind, "ships")]).await;
        kafka.produce(&[order("orders", &beside, "ships").partition(1)]).await;
        let failed = told.failed();
        eventually(PATIENCE, "a letter is not taken", async || told.failed() > failed).await;
        world.committed(1, round + 1).await;
        assert_eq!((world.effects.of(&beside), world.effects.of(&behind)), (1, 0), "only its own partition waits");
        let at = 1 + 2 * round;
        assert_eq!(kafka.committed(&world.group, "orders", 0).await, Some(at), "what has no letter is not passed");
        if stops {
            break;
        }
        elsewhere.cluster().broker_up(1).unwrap();
        world.committed(0, at + 2).await;
        assert_eq!(world.effects.of(&behind), 1);
    }
    // Stopped while a letter waits; the successor sends it.
    let summary = member.stop().await;
    assert!(summary.left >= 1, "{summary}");
    assert_eq!(kafka.committed(&world.group, "orders", 0).await, Some(3));
    elsewhere.cluster().broker_up(1).unwrap();
    let member = Member::start(consumer(), world.handling().0);
    world.committed(0, 5).await;
    member.stop().await;
    assert_eq!(world.effects.of("behind1"), 1);
    let found = letters(&elsewhere, "dead").await;
    for id in ["bad0", "bad1"] {
        let of: Vec<&LetterInfo> =
            found.iter().filter(|(letter, _)| header_of(letter, "id") == Some(id)).map(|(_, info)| info).collect();
        assert!(!of.is_empty(), "{id} has a letter");
        assert!(of.iter().all(|info| info.identity == of[0].identity), "{id}: one identity, however often it came");
    }
}

#[tokio::test]
async fn a_letter_that_never_can_be_sent_ends_the_consumer() {
    let world = World::new(MemoryStore::new()).await;
    let small = unique("small");
    world.kafka.create_topic_with(&small, 1, &[("max.message.bytes", "1200")]).await;
    let long = "x".repeat(4_000);
    world.kafka.produce(&[order(&world.orders, "a", "ships")]).await;
    world.kafka.produce(&[order(&world.orders, "b", "fails").header("long", &long)]).await;
    world.kafka.produce(&[order(&world.orders, "c", "ships")]).await;
    let member = Member::start(world.consumer().dead_letter(DeadLetter::topic(&*small)), world.handling().0);
    let error = member.end().await.expect_err("too large");
    let ConsumerError::Message { topic, partition: 0, offset: 1, source, .. } = &error else { panic!("{error}") };
    assert_eq!(topic, &world.orders);
    assert!(source.to_string().contains("max.message.bytes"), "{source}");
    assert_eq!(world.kafka.committed(&world.group, &world.orders, 0).await, Some(1), "it is not passed");
    assert_eq!(world.effects.of("c"), 0);
    // With a topic that takes it, all goes on.
    let member = Member::start(world.consumer().dead_letter(DeadLetter::topic(&*world.dead)), world.handling().0);
    world.committed(0, 3).await;
    member.stop().await;
    assert_eq!(letters(&world.kafka, &world.dead).await.len(), 1);
    assert_eq!((world.effects.of("a"), world.effects.of("c")), (1, 1));
}

#[tokio::test]
async fn a_consumer_does_not_read_its_own_letters() {
    let kafka = Kafka::real();
    let prefix = unique("shop");
    let (orders, dead) = (format!("{prefix}.orders"), format!("{prefix}.orders.dead"));
    kafka.create_topic(&orders, 1).await;
    kafka.create_topic(&dead, 1).await;
    let group = unique("group");
    let world = World::on(kafka, orders, dead.clone(), group, MemoryStore::new(), header("id")).await;
    world.kafka.produce(&[order(&dead, "letter", "ships")]).await;
    let by_name = world.consumer().topics([&*world.orders, &*dead]).dead_letter(DeadLetter::topic(&*dead));
    let error = Member::start(by_name, world.handling().0).end().await.expect_err("a loop");
    assert!(matches!(&error, ConsumerError::Config(error) if error.setting == "dead_letter"), "{error}");
    let pattern = format!("^{prefix}.*");
    let by_pattern = world.consumer().topics([pattern]).dead_letter(DeadLetter::topic(&*dead));
    let error = Member::start(by_pattern, world.handling().0).end().await.expect_err("a loop");
    let ConsumerError::DeadLetter(DeadLetterError::Topic(LetterError::Loop { topic })) = &error else {
        panic!("{error}")
    };
    assert_eq!(topic, &dead);
    assert_eq!(world.effects.all(), 0, "no letter was handled as an order");
}

#[tokio::test]
async fn a_consumer_without_its_topic_for_letters_does_not_start() {
    let kafka = MockKafka::start(&[("orders", 1), ("dead", 1)]);
    let connection = Kafka::at(kafka.bootstrap());
    let group = unique("group");
    let world = World::on(connection, "orders".into(), "dead".into(), group, MemoryStore::new(), header("id")).await;
    kafka.produce(&[order("orders", "a", "ships")]).await;
    let missing = world.consumer().dead_letter(DeadLetter::topic("missing"));
    let error = Member::start(missing, world.handling().0).end().await.expect_err("missing");
    assert!(matches!(&error, ConsumerError::DeadLetter(_)) && error.to_string().contains("missing"), "{error}");
    assert_eq!(world.effects.all(), 0);
}

/// Sent back while the consumer runs: once while the handler is still broken, then again and again once it is mended.
#[tokio::test]
async fn sent_back_twice_has_one_effect() {
    let world = World::new(MemoryStore::new()).await;
    let mended = Arc::new(AtomicBool::new(false));
    let handling = {
        let (mended, effects) = (Arc::clone(&mended), world.effects.clone());
        world.once.each(move |message: Message, _: Claim| {
            let (mended, effects) = (Arc::clone(&mended), effects.clone());
            async move {
                let id = header_of(&message, "id").unwrap();
                if id == "b" && !mended.load(Ordering::SeqCst) {
                    return Err("not yet".to_owned());
                }
                effects.note(id);
                Ok(())
            }
        })
    };
    let member = Member::start(world.consumer().dead_letter(DeadLetter::topic(&*world.dead)), handling);
    world.kafka.produce(&[order(&world.orders, "a", ""), order(&world.orders, "b", "")]).await;
    let died = async |hops| {
        eventually(PATIENCE, "it has died so often", async || {
            letters(&world.kafka, &world.dead).await.iter().any(|(_, info)| info.hops == hops)
        })
        .await;
    };
    died(1).await;
    world.committed(0, 2).await;
    assert_eq!(world.redrive().run().await.unwrap().sent, 1);
    died(2).await;
    world.committed(0, 3).await;
    mended.store(true, Ordering::SeqCst);
    // Three runs that know nothing of each other, at once.
    let runs = ["x", "y", "z"].map(|group| world.redrive().group(unique(group)).run());
    let sent: u64 = futures_util::future::join_all(runs).await.into_iter().map(|done| done.unwrap().sent).sum();
    assert!((1..=3).contains(&sent), "{sent}");
    world.committed(0, 3 + sent as i64).await;
    assert_eq!(world.effects.of("b"), 1);
    let late = world.redrive().from_beginning().run().await.unwrap();
    assert_eq!(late.sent, 0, "{late}");
    let summary = member.stop().await;
    assert_eq!((world.effects.of("a"), world.effects.of("b")), (1, 1));
    assert_eq!((summary.handled, summary.dead, summary.same_id), (2, 2, sent - 1), "{summary}");
    assert_eq!(read_all(&world.kafka, &world.orders).await.len() as u64, 3 + sent);
}
