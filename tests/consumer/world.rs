//! What the consumer's tests share: handlers whose effects are counted outside of the crate, and members that can be stopped.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::{Consumer, ConsumerError, Handling, Message, Summary};
use rdkafka::ClientConfig;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Kafka, PATIENCE, Record, eventually};

/// How a handler fails.
pub type Refused = Box<dyn std::error::Error + Send + Sync>;

/// What handlers did: topic, partition and offset of each message, in the order in which they did it.
#[derive(Clone, Debug, Default)]
pub struct Effects(Arc<Mutex<Vec<(String, i32, i64)>>>);

impl Effects {
    pub fn note(&self, message: &Message) {
        self.0.lock().unwrap().push((message.topic().to_owned(), message.partition(), message.offset()));
    }

    pub fn add(&self, place: (String, i32, i64)) {
        self.0.lock().unwrap().push(place);
    }

    /// How often each message had its effect.
    pub fn counts(&self) -> BTreeMap<(String, i32, i64), usize> {
        let mut counts = BTreeMap::new();
        for place in self.0.lock().unwrap().iter() {
            *counts.entry(place.clone()).or_default() += 1;
        }
        counts
    }

    pub fn distinct(&self) -> usize {
        self.counts().len()
    }

    /// The offsets of one partition, in order of effect.
    pub fn of(&self, topic: &str, partition: i32) -> Vec<i64> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(t, p, _)| t == topic && *p == partition).map(|(_, _, offset)| *offset).collect()
    }

    /// As [`reach`](Self::reach), from inside of a handler.
    pub async fn poll_until(&self, distinct: usize) {
        while self.distinct() < distinct {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn reach(&self, distinct: usize) {
        eventually(PATIENCE, &format!("{distinct} distinct effects"), async || self.distinct() >= distinct).await;
    }
}

/// A handler without a store. It shows what the consumer does by itself.
pub fn plain<F, Fut>(handler: F) -> impl Handling
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Refused>> + Send + 'static,
{
    hapax::plain(handler)
}

/// A handler that only notes.
pub fn noting(effects: &Effects) -> impl Handling + use<> {
    let effects = effects.clone();
    plain(move |message| {
        effects.note(&message);
        std::future::ready(Ok(()))
    })
}

/// A consumer at work in a task of its own.
pub struct Member {
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, ConsumerError>>,
}

impl Member {
    pub fn start<H: Handling>(consumer: Consumer, handling: H) -> Self {
        // Shown where a test fails, and where RUST_LOG asks for it.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        Self::start_until(consumer, CancellationToken::new(), handling)
    }

    /// As [`start`](Self::start), with a token that others may cancel too.
    pub fn start_until<H: Handling>(consumer: Consumer, shutdown: CancellationToken, handling: H) -> Self {
        let token = shutdown.clone();
        let task = tokio::spawn(async move { consumer.run(handling, token).await });
        Self { shutdown, task }
    }

    /// Stops it in good order.
    pub async fn stop(self) -> Summary {
        self.shutdown.cancel();
        self.end().await.expect("a clean end")
    }

    /// Waits until it ends by itself.
    pub async fn end(self) -> Result<Summary, ConsumerError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the consumer ends within a minute").expect("no panic")
    }

    /// Drops its future in the middle of its work.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }
}

/// A consumer of a topic with deadlines for loaded machines, which commits ten times a second.
pub fn consumer(config: ClientConfig, topic: &str) -> Consumer {
    Consumer::new(config).topics([topic]).commit_every(Duration::from_millis(100))
}

/// `count` records, spread over the partitions in turn; the payload says the number.
pub fn records(topic: &str, partitions: i32, count: i32) -> Vec<Record> {
    let record =
        |n: i32| Record::to(topic).partition(n % partitions).payload(n.to_string()).header("id", format!("id {n}"));
    (0..count).map(record).collect()
}

/// Waits until the broker has these offsets committed, one for each partition from 0.
pub async fn committed(kafka: &Kafka, group: &str, topic: &str, expected: &[i64]) {
    for (partition, offset) in (0..).zip(expected) {
        eventually(PATIENCE, &format!("partition {partition} is committed up to {offset}"), async || {
            kafka.committed(group, topic, partition).await == Some(*offset)
        })
        .await;
    }
}

/// A gate that handlers wait at.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    open: CancellationToken,
    waiting: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// A handler at the gate. Gone when it passed, and when it is dropped where it waits.
struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    pub async fn pass(&self) {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(waiting, Ordering::SeqCst);
        let _waiting = Waiting(self);
        self.open.cancelled().await;
    }

    pub fn open(&self) {
        self.open.cancel();
    }

    /// How many handlers wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// How many waited at one time, at most.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// Waits until so many handlers wait.
    pub async fn holds(&self, count: usize) {
        eventually(PATIENCE, &format!("{count} handlers wait at the gate"), async || self.waiting() >= count).await;
    }
}

/// Counts up.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU32>);

impl Counter {
    pub fn up(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}
