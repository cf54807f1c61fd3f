//! What these tests share: messages, owners, one-message calls, and a connection that meddles.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::identity::{Fingerprint, Key};
use hapax::record::{
    ClaimOutcome, Extend, ExtendOutcome, Fence, Grant, Origin, Owner, Record, Settle, SettleOutcome, Sighting, Terms,
    Token, Verdict,
};
use hapax::store::{Ask, Batch, DedupStore, RedisBuilder, RedisStore, StoreError};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, Value};

use crate::support::{PATIENCE, random, unique};

/// Long enough that it never runs out while a test runs.
pub const LONG: Duration = Duration::from_secs(3600);
pub const SHORT: Duration = Duration::from_millis(1);

pub fn message(number: u64) -> Sighting {
    let mut key = [0; 16];
    // Spread over a cluster's slots, and binary.
    key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    message_of(key)
}

pub fn message_of(key: [u8; 16]) -> Sighting {
    let origin = Origin { topic: "orders".into(), partition: 3, offset: 17 };
    Sighting { key: Key::from_bytes(key), fingerprint: Fingerprint::from_bytes(key), origin }
}

pub fn owner() -> Terms {
    owner_for(LONG)
}

pub fn owner_for(lease: Duration) -> Terms {
    Terms { owner: Owner::new(random()), lease, max_attempts: NonZeroU32::new(100).unwrap() }
}

pub fn prefixed() -> RedisBuilder {
    RedisStore::builder().prefix(format!("{}:", unique("faults")))
}

/// A builder with that prefix: another handle on the same records.
pub fn with_prefix(prefix: &str) -> RedisBuilder {
    RedisStore::builder().prefix(prefix)
}

pub async fn claim(store: &dyn DedupStore, terms: &Terms, message: &Sighting) -> Result<ClaimOutcome, StoreError> {
    let asks = Batch::one(Ask::from(message.clone()));
    store.claim(terms, &asks).await.map(|mut outcomes| outcomes.remove(0))
}

pub async fn acquire(store: &dyn DedupStore, terms: &Terms, message: &Sighting) -> Grant {
    granted(claim(store, terms, message).await.expect("the store answers"))
}

#[track_caller]
pub fn granted(outcome: ClaimOutcome) -> Grant {
    match outcome {
        ClaimOutcome::Acquired(grant) => grant,
        other => panic!("not acquired but {other:?}"),
    }
}

pub fn first_token(terms: &Terms) -> Token {
    Token { owner: terms.owner, fence: Fence::FIRST }
}

pub fn success() -> Verdict {
    Verdict::Succeeded { result: None }
}

pub fn failure() -> Verdict {
    Verdict::Failed { retry_in: LONG, max_attempts: NonZeroU32::new(100).unwrap() }
}

pub async fn settle(
    store: &dyn DedupStore,
    message: &Sighting,
    token: Token,
    verdict: Verdict,
) -> Result<SettleOutcome, StoreError> {
    let settle = Settle { sighting: message.clone(), token, attempt: 1, verdict };
    store.settle(&Batch::one(settle)).await.map(|mut outcomes| outcomes.remove(0))
}

pub async fn extend(store: &dyn DedupStore, message: &Sighting, token: Token) -> Result<ExtendOutcome, StoreError> {
    let claims = Batch::one(Extend { key: message.key, token, lease: LONG });
    store.extend(&claims).await.map(|mut outcomes| outcomes.remove(0))
}

pub async fn record(store: &dyn DedupStore, message: &Sighting) -> Option<Record> {
    store.get(&Batch::one(message.key)).await.expect("the store answers").remove(0)
}

/// Asks again for as long as the store says that asking again can help.
pub async fn persist<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let started = std::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_retryable(), "{what}: {error}");
                assert!(started.elapsed() < PATIENCE, "{what} does not come: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

pub async fn plain(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

type Before = Box<dyn FnMut(&[u8]) -> Option<Vec<Cmd>> + Send>;
type After = Box<dyn FnMut(&mut Vec<Value>) + Send>;

/// A connection that runs commands of the test's own right before some pipelines, or changes their answers.
#[derive(Clone)]
pub struct Meddler {
    inner: MultiplexedConnection,
    before: Arc<Mutex<Before>>,
    after: Arc<Mutex<After>>,
}

impl Meddler {
    /// `before` sees each pipeline as bytes and says what to run first.
    pub async fn before(url: String, before: impl FnMut(&[u8]) -> Option<Vec<Cmd>> + Send + 'static) -> Self {
        Self::new(url, Box::new(before), Box::new(|_| {})).await
    }

    /// `after` may change the answers.
    pub async fn after(url: String, after: impl FnMut(&mut Vec<Value>) + Send + 'static) -> Self {
        Self::new(url, Box::new(|_| None), Box::new(after)).await
    }

    async fn new(url: String, before: Before, after: After) -> Self {
        Self { inner: plain(&url).await, before: Arc::new(Mutex::new(before)), after: Arc::new(Mutex::new(after)) }
    }
}

impl ConnectionLike for Meddler {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.inner.req_packed_command(cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let first = (self.before.lock().unwrap())(&pipeline.get_packed_pipeline());
            for command in first.into_iter().flatten() {
                self.inner.req_packed_command(&command).await?;
            }
            let mut answers = self.inner.req_packed_commands(pipeline, offset, count).await?;
            (self.after.lock().unwrap())(&mut answers);
            Ok(answers)
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Whether the bytes hold these.
pub fn holds(bytes: &[u8], what: &str) -> bool {
    bytes.windows(what.len()).any(|window| window == what.as_bytes())
}
