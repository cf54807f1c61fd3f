//! Our side: a consumer at work, and when its first message was handled and its last one settled.

use std::future::Future;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hapax::consumer::{Consumer, Handling, Message};
use hapax::identity::Key;
use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};
use hapax::store::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError};
use tokio_util::sync::CancellationToken;

use crate::data::expect;
use crate::figures::{Failure, Run};
use crate::topics::PATIENCE;

/// Counts handled messages, notes the time of the first and the last one, and ends the consumer then.
#[derive(Clone, Debug)]
pub struct Clock {
    shared: Arc<Shared>,
    pub shutdown: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    wanted: usize,
    handled: AtomicUsize,
    born: Instant,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    /// Of the last settle: nanoseconds since `born`.
    settled: AtomicU64,
}

impl Clock {
    pub fn new(wanted: usize) -> Self {
        let shared = Shared {
            wanted,
            handled: AtomicUsize::new(0),
            born: Instant::now(),
            first: OnceLock::new(),
            last: OnceLock::new(),
            settled: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), shutdown: CancellationToken::new() }
    }

    /// The handler: it looks at the message and does nothing.
    pub fn handle(&self, message: &Message) {
        black_box((message.payload().map(<[u8]>::len), message.header("message-id").map(<[u8]>::len)));
        self.tick();
    }

    pub fn tick(&self) {
        match self.shared.handled.fetch_add(1, Ordering::Relaxed) + 1 {
            1 => {
                let _ = self.shared.first.set(Instant::now());
            }
            n if n == self.shared.wanted => {
                let _ = self.shared.last.set(Instant::now());
                self.shutdown.cancel();
            }
            _ => {}
        }
    }

    /// Notes that messages were settled just now.
    pub fn settled(&self) {
        let shared = &self.shared;
        shared.settled.fetch_max(shared.born.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Notes when this store settled last.
    pub fn on<S: DedupStore>(&self, store: S) -> Timed<S> {
        Timed { store, clock: self.clone() }
    }

    /// Runs the consumer until the last message is handled. `delivered` is how many there are, duplicates included.
    pub async fn run<H: Handling>(self, consumer: Consumer, handling: H, delivered: usize) -> Result<Run, Failure> {
        let run = consumer.run(handling, self.shutdown.clone());
        let summary = tokio::time::timeout(PATIENCE, run).await??;
        expect("handled", summary.handled as usize, self.shared.wanted)?;
        Ok(Run { messages: delivered, took: self.took()? })
    }

    fn took(&self) -> Result<Duration, Failure> {
        let shared = &self.shared;
        let (Some(first), Some(last)) = (shared.first.get(), shared.last.get()) else {
            return Err("the consumer ended early".into());
        };
        let settled = shared.born + Duration::from_nanos(shared.settled.load(Ordering::Relaxed));
        Ok((*last).max(settled).duration_since(*first))
    }
}

/// A store that notes when it settled last.
#[derive(Debug)]
pub struct Timed<S> {
    store: S,
    clock: Clock,
}

#[async_trait]
impl<S: DedupStore> DedupStore for Timed<S> {
    fn describe(&self) -> Description {
        self.store.describe()
    }
    fn retention(&self) -> Retention {
        self.store.retention()
    }
    fn claim<'l, 'a, 't, 'f>(
        &'l self,
        terms: &'a Terms,
        asks: &'t Batch<Ask>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<ClaimOutcome>, StoreError>> + Send + 'f>>
    where
        'l: 'f,
        'a: 'f,
        't: 'f,
        Self: 'f,
    {
        // The store's own future: not one more around it.
        self.store.claim(terms, asks)
    }
    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        let outcomes = self.store.settle(settles).await;
        self.clock.settled();
        outcomes
    }
    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        self.store.extend(claims).await
    }
    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
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
