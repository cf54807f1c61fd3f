//! A topic of orders, a topic of dead letters, and a loop that handles the one and fills the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::letter::{GivenUp, LetterInfo, LetterSender};
use hapax::consumer::{DeadLetter, Redrive};
use hapax::identity::{Identify, header};
use hapax::message::{MessageView, Parts};
use hapax::store::DedupStore;
use hapax::{Done, ErrorClass, Once, Retry, redrive};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::support::{Kafka, PATIENCE, unique};

/// Everything in a topic, partition by partition, in order.
pub async fn read_all(kafka: &Kafka, topic: &str) -> Vec<Parts> {
    let (bootstrap, topic) = (kafka.bootstrap().to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        let count = metadata.topics()[0].partitions().len() as i32;
        let mut all = TopicPartitionList::new();
        for partition in 0..count {
            all.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&all).unwrap();
        let mut read: BTreeMap<i32, Vec<Parts>> = BTreeMap::new();
        let mut ended = 0;
        let began = std::time::Instant::now();
        while ended < count {
            assert!(began.elapsed() < PATIENCE, "the topic can be read to its end");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => read.entry(message.partition()).or_default().push(Parts::copy_of(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Err(error)) => eprintln!("reading {topic}: {error}"),
                None => {}
            }
        }
        read.into_values().flatten().collect()
    })
    .await
    .unwrap()
}

/// The letters in a topic.
pub async fn letters(kafka: &Kafka, topic: &str) -> Vec<(Parts, LetterInfo)> {
    let read = read_all(kafka, topic).await;
    read.into_iter().map(|letter| (letter.clone(), LetterInfo::read(&letter).unwrap())).collect()
}

pub fn header_of<'m>(message: &'m dyn MessageView, name: &str) -> Option<&'m str> {
    message.header(name).map(|value| std::str::from_utf8(value).unwrap())
}

/// How often each order had its effect, by the order's id: kept outside of the crate.
#[derive(Clone, Debug, Default)]
pub struct Effects(Arc<Mutex<HashMap<String, usize>>>);

impl Effects {
    pub fn note(&self, id: &str) {
        *self.0.lock().unwrap().entry(id.to_owned()).or_default() += 1;
    }

    pub fn of(&self, id: &str) -> usize {
        self.0.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    pub fn all(&self) -> usize {
        self.0.lock().unwrap().values().sum()
    }
}

pub struct World {
    pub kafka: Kafka,
    pub orders: String,
    pub dead: String,
    pub group: String,
    pub once: Once,
    pub letters: LetterSender,
    pub effects: Effects,
    /// Where `deliver_new` goes on, by partition.
    next: Mutex<HashMap<i32, i64>>,
}

impl World {
    /// On a real broker, with messages told apart by their header `id`.
    pub async fn new(store: impl DedupStore + 'static) -> Self {
        Self::with(Kafka::real(), store, header("id")).await
    }

    pub async fn with(kafka: Kafka, store: impl DedupStore + 'static, identify: impl Identify + 'static) -> Self {
        let (orders, dead, group) = (unique("orders"), unique("dead"), unique("group"));
        kafka.create_topic(&orders, 3).await;
        kafka.create_topic(&dead, 2).await;
        Self::on(kafka, orders, dead, group, store, identify).await
    }

    /// On topics that exist.
    pub async fn on(
        kafka: Kafka,
        orders: String,
        dead: String,
        group: String,
        store: impl DedupStore + 'static,
        identify: impl Identify + 'static,
    ) -> Self {
        let once = Once::builder(store)
            .scope(&*group, "ship")
            .identify(identify)
            .retry(Retry::fixed(Duration::from_millis(1)).attempts(2))
            .accept_unsafe_settings()
            .build()
            .await
            .unwrap();
        let letters = DeadLetter::topic(&*dead)
            .scope(&*group, "ship")
            .connect(&kafka.consumer_config(&group))
            .await
            .expect("the dead letter topic is there");
        Self { kafka, orders, dead, group, once, letters, effects: Effects::default(), next: Mutex::default() }
    }

    /// Delivers every order from the first on, as after a reset: those whose handler fails become dead letters. What was delivered and handled
    /// before is known by the store.
    pub async fn deliver(&self, fails: impl Fn(&str) -> bool) {
        self.deliver_from(&self.orders, fails).await;
    }

    /// Delivers the orders that came since the last call.
    pub async fn deliver_new(&self, fails: impl Fn(&str) -> bool) {
        let mut new = read_all(&self.kafka, &self.orders).await;
        {
            let mut next = self.next.lock().unwrap();
            new.retain(|message| message.offset() >= next.get(&message.partition()).copied().unwrap_or(0));
            next.extend(new.iter().map(|message| (message.partition(), message.offset() + 1)));
        }
        self.deliver_these(new, fails).await;
    }

    pub async fn deliver_from(&self, topic: &str, fails: impl Fn(&str) -> bool) {
        self.deliver_these(read_all(&self.kafka, topic).await, fails).await;
    }

    async fn deliver_these(&self, messages: Vec<Parts>, fails: impl Fn(&str) -> bool) {
        for message in messages {
            let id = header_of(&message, "id").unwrap().to_owned();
            let handler = async |_| {
                if fails(&id) {
                    return Err(format!("no address for {id} at postgres://ada:s3cret@db"));
                }
                self.effects.note(&id);
                Ok(())
            };
            if let Done::Dead { attempts, error } = self.once.handle(&message, handler).await.unwrap() {
                let mut given_up = match error {
                    Some(_) => GivenUp::new(hapax::consumer::letter::Cause::Attempts),
                    None => GivenUp::new(hapax::consumer::letter::Cause::DeadBefore),
                };
                given_up = given_up.attempts(attempts);
                if let Some(error) = error {
                    given_up = given_up.error(ErrorClass::Retryable, error);
                }
                if let Some(key) = self.once.key(&message) {
                    given_up = given_up.key(key);
                }
                self.letters.send(&message, &given_up).await.expect("the letter is acknowledged");
            }
        }
    }

    pub fn redrive(&self) -> Redrive {
        redrive(self.kafka.consumer_config(&self.group)).from(&*self.dead).known_to(&self.once)
    }
}

impl World {
    /// Delivers those orders whose copies were asked for in `many_letters_each_once`, whatever the order of the topic.
    pub async fn deliver_odd(&self) {
        let back: Vec<Parts> = read_all(&self.kafka, &self.orders).await;
        let handling = back.iter().filter(|message| message.header_count(hapax::consumer::letter::GENERATION) > 0);
        for message in handling {
            let id = header_of(message, "id").unwrap().to_owned();
            let done = self.once.handle(message, async |_| {
                self.effects.note(&id);
                Ok::<_, String>(())
            });
            assert!(matches!(done.await.unwrap(), Done::Handled(())));
        }
    }
}

trait HeaderCount {
    fn header_count(&self, name: &str) -> usize;
}

impl HeaderCount for Parts {
    fn header_count(&self, name: &str) -> usize {
        let mut count = 0;
        self.for_each_header(&mut |own, _| count += usize::from(own == name));
        count
    }
}

/// A store whose next calls fail.
#[derive(Clone, Debug, Default)]
pub struct Flaky {
    inner: Arc<hapax::store::MemoryStore>,
    failures: Arc<std::sync::atomic::AtomicU32>,
}

impl Flaky {
    pub fn fail(&self, calls: u32) {
        self.failures.store(calls, std::sync::atomic::Ordering::SeqCst);
    }

    fn pass(&self) -> Result<(), hapax::store::StoreError> {
        use std::sync::atomic::Ordering::SeqCst;
        match self.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(hapax::store::StoreError::unavailable("memory", "be asked", "the test said so")),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl DedupStore for Flaky {
    fn describe(&self) -> hapax::store::Description {
        self.inner.describe()
    }

    fn retention(&self) -> hapax::store::Retention {
        self.inner.retention()
    }

    async fn claim(
        &self,
        terms: &hapax::record::Terms,
        asks: &hapax::store::Batch<hapax::store::Ask>,
    ) -> Result<Vec<hapax::record::ClaimOutcome>, hapax::store::StoreError> {
        self.pass()?;
        self.inner.claim(terms, asks).await
    }

    async fn settle(
        &self,
        settles: &hapax::store::Batch<hapax::record::Settle>,
    ) -> Result<Vec<hapax::record::SettleOutcome>, hapax::store::StoreError> {
        self.pass()?;
        self.inner.settle(settles).await
    }

    async fn extend(
        &self,
        claims: &hapax::store::Batch<hapax::record::Extend>,
    ) -> Result<Vec<hapax::record::ExtendOutcome>, hapax::store::StoreError> {
        self.inner.extend(claims).await
    }

    async fn get(
        &self,
        keys: &hapax::store::Batch<hapax::identity::Key>,
    ) -> Result<Vec<Option<hapax::record::Record>>, hapax::store::StoreError> {
        self.pass()?;
        self.inner.get(keys).await
    }

    async fn requeue(
        &self,
        keys: &hapax::store::Batch<hapax::identity::Key>,
    ) -> Result<Vec<hapax::record::RequeueOutcome>, hapax::store::StoreError> {
        self.pass()?;
        self.inner.requeue(keys).await
    }

    async fn purge(&self, limit: usize) -> Result<hapax::store::Purged, hapax::store::StoreError> {
        self.inner.purge(limit).await
    }

    async fn ensure_schema(&self) -> Result<(), hapax::store::StoreError> {
        self.inner.ensure_schema().await
    }

    async fn check(&self) -> Result<hapax::store::Report, hapax::store::StoreError> {
        self.inner.check().await
    }
}

impl World {
    /// Orders in one mock cluster, letters in another.
    pub async fn on_clusters(
        kafka: Kafka,
        elsewhere: &Kafka,
        store: impl DedupStore + 'static,
        identify: impl Identify + 'static,
    ) -> Self {
        let group = unique("group");
        let once = Once::builder(store)
            .scope(&*group, "ship")
            .identify(identify)
            .accept_unsafe_settings()
            .build()
            .await
            .unwrap();
        let letters = DeadLetter::topic("dead").connect(&elsewhere.consumer_config(&group)).await.unwrap();
        let (orders, dead) = ("orders".to_owned(), "dead".to_owned());
        Self { kafka, orders, dead, group, once, letters, effects: Effects::default(), next: Mutex::default() }
    }
}
