//! A store on tokio's clock that fails, hangs or loses its reply on command, and the small world around it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use hapax::identity::{Key, Scope, header};
use hapax::message::Parts;
use hapax::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Millis, Record, RequeueOutcome, Settle, SettleOutcome, State, Step,
    Terms,
};
use hapax::store::{Ask, Batch, DedupStore, Description, Keyed, Purged, Report, Retention, StoreError};
use hapax::{Level, Once, OnceBuilder};
use tokio::time::Instant;

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Claim,
    Settle,
    Extend,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not reached.
    Before,
    /// Done, and the reply is lost.
    After,
    /// Not reached, and never answers.
    Hang,
    /// Done, and never answers.
    HangAfter,
    /// Refused for good.
    Refuse,
    /// Answers one item too few.
    Short,
    /// Does it, and answers after this many milliseconds.
    Slow(u64),
}

#[derive(Default)]
struct Table {
    records: HashMap<Key, Record>,
    /// Every state a record went through.
    history: Vec<(Key, Record)>,
}

/// The store. A clone shares everything; [`other`](Self::other) shares the records only, as another member's connection does.
#[derive(Clone)]
pub struct Probe {
    table: Arc<Mutex<Table>>,
    born: Instant,
    line: Arc<Line>,
}

/// One member's line to the store.
#[derive(Default)]
struct Line {
    down: AtomicBool,
    yields: AtomicUsize,
    plan: Mutex<HashMap<Op, VecDeque<Option<Fault>>>>,
    calls: Mutex<Vec<(Op, usize)>>,
    report: Mutex<Report>,
    prepared: AtomicUsize,
}

impl Probe {
    pub fn new() -> Self {
        Self { table: Arc::default(), born: Instant::now(), line: Arc::default() }
    }

    /// Another member's line to the same records.
    pub fn other(&self) -> Self {
        Self { table: Arc::clone(&self.table), born: self.born, line: Arc::default() }
    }

    /// Makes every call fail, or no longer.
    pub fn down(&self, down: bool) {
        self.line.down.store(down, Ordering::SeqCst);
    }

    /// Makes every call yield so many times before and after.
    pub fn yields(&self, times: usize) {
        self.line.yields.store(times, Ordering::SeqCst);
    }

    /// Plans a fault for the `nth` call of a kind from now on, counted from 1.
    pub fn fail(&self, op: Op, nth: usize, fault: Fault) {
        let mut plan = self.line.plan.lock().unwrap();
        let queue = plan.entry(op).or_default();
        if queue.len() < nth {
            queue.resize(nth, None);
        }
        queue[nth - 1] = Some(fault);
    }

    /// What the start-up check is to find.
    pub fn finds(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.line.report.lock().unwrap());
    }

    /// How often the schema was prepared.
    pub fn prepared(&self) -> usize {
        self.line.prepared.load(Ordering::SeqCst)
    }

    /// The sizes of the calls of a kind.
    pub fn calls(&self, op: Op) -> Vec<usize> {
        self.line.calls.lock().unwrap().iter().filter(|(own, _)| *own == op).map(|(_, n)| *n).collect()
    }

    pub fn all_calls(&self) -> Vec<(Op, usize)> {
        self.line.calls.lock().unwrap().clone()
    }

    pub fn records(&self) -> HashMap<Key, Record> {
        self.table.lock().unwrap().records.clone()
    }

    /// The record of a message of topic `t` whose header `id` is this, under the scope `g`, `h`.
    pub fn record(&self, id: &str) -> Option<Record> {
        self.table.lock().unwrap().records.get(&key(id)).cloned()
    }

    pub fn state(&self, id: &str) -> Option<State> {
        self.record(id).map(|record| record.state)
    }

    pub fn is_succeeded(&self, id: &str) -> bool {
        matches!(self.state(id), Some(State::Succeeded { .. }))
    }

    pub fn is_dead(&self, id: &str) -> bool {
        matches!(self.state(id), Some(State::Dead { .. }))
    }

    /// Hands a message that is being handled to another owner, as if its lease had run out and nobody here had run meanwhile.
    pub fn steal(&self, id: &str) {
        let mut table = self.table.lock().unwrap();
        let record = table.records.get_mut(&key(id)).unwrap();
        let State::Processing { until } = record.state else { panic!("{record:?}") };
        let sighting =
            record::Sighting { key: key(id), fingerprint: record.fingerprint, origin: record.origin.clone() };
        let terms = Terms { owner: record::Owner::new(7), lease: LEASE, max_attempts: std::num::NonZeroU32::MAX };
        let step = record::claim(Some(record), &sighting, &terms, until);
        assert!(matches!(step.outcome, ClaimOutcome::Acquired(grant) if grant.took_over));
        *record = step.write.unwrap();
    }

    pub fn now(&self) -> Millis {
        record::millis(self.born.elapsed())
    }

    fn apply<T: Keyed, O>(&self, batch: &Batch<T>, decide: impl Fn(Option<&Record>, &T, Millis) -> Step<O>) -> Vec<O> {
        let now = self.now();
        let mut table = self.table.lock().unwrap();
        let mut outcomes = Vec::new();
        for item in batch.items() {
            let step = decide(table.records.get(&item.key()), item, now);
            if let Some(record) = step.write {
                table.history.push((item.key(), record.clone()));
                table.records.insert(item.key(), record);
            }
            outcomes.push(step.outcome);
        }
        outcomes
    }

    async fn call<O>(&self, op: Op, size: usize, work: impl FnOnce() -> Vec<O> + Send) -> Result<Vec<O>, StoreError>
    where
        O: Send,
    {
        self.line.calls.lock().unwrap().push((op, size));
        let fault = self.line.plan.lock().unwrap().get_mut(&op).and_then(VecDeque::pop_front).flatten();
        let pause = self.line.yields.load(Ordering::SeqCst);
        for _ in 0..pause {
            tokio::task::yield_now().await;
        }
        let lost = || Err(StoreError::unavailable("probe", "answer", "the connection broke"));
        if self.line.down.load(Ordering::SeqCst) {
            return lost();
        }
        match fault {
            Some(Fault::Before) => return lost(),
            Some(Fault::Refuse) => return Err(StoreError::refused("probe", "answer", "no right to do that")),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        let mut outcomes = work();
        for _ in 0..pause {
            tokio::task::yield_now().await;
        }
        match fault {
            Some(Fault::After) => return lost(),
            Some(Fault::HangAfter) => std::future::pending().await,
            Some(Fault::Short) => drop(outcomes.pop()),
            Some(Fault::Slow(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
            _ => {}
        }
        Ok(outcomes)
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

#[async_trait]
impl DedupStore for Probe {
    fn describe(&self) -> Description {
        Description::new("probe", Level::L1)
    }

    fn retention(&self) -> Retention {
        Retention::default()
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        self.call(Op::Claim, asks.len(), || {
            self.apply(asks, |record, ask, now| record::claim(record, &ask.sighting, terms, now))
        })
        .await
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        self.call(Op::Settle, settles.len(), || self.apply(settles, record::settle)).await
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        self.call(Op::Extend, claims.len(), || self.apply(claims, record::extend)).await
    }

    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        let table = self.table.lock().unwrap();
        Ok(keys.keys().map(|key| table.records.get(&key).cloned()).collect())
    }

    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        Ok(self.apply(keys, |record, _, now| record::requeue(record, now)))
    }

    async fn purge(&self, _: usize) -> Result<Purged, StoreError> {
        Ok(Purged::default())
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.line.prepared.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn check(&self) -> Result<Report, StoreError> {
        if self.line.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("probe", "check its settings", "the connection broke"));
        }
        Ok(self.line.report.lock().unwrap().clone())
    }
}

/// The key of the message whose header `id` is this.
pub fn key(id: &str) -> Key {
    use hapax::identity::Identify;
    let identity = header("id").identity(&message(id)).unwrap();
    Scope::new("g", "h").unwrap().key(&identity, "t")
}

/// A message of topic `t` with the header `id`, and a payload that says the same.
pub fn message(id: &str) -> Parts {
    Parts::new("t").payload(id).header("id", id)
}

pub fn at(id: &str, partition: i32, offset: i64) -> Parts {
    message(id).at(partition, offset)
}

/// Messages `m0`, `m1`, … of partition 0, with a gap after every third offset.
pub fn messages(n: usize) -> Vec<Parts> {
    (0..n).map(|i| at(&format!("m{i}"), 0, (i + i / 3) as i64)).collect()
}

/// The usual settings: group `g`, handler `h`, identity in the header `id`, a lease of 9 s.
pub fn builder(store: &Probe) -> OnceBuilder {
    Once::builder(store.clone()).scope("g", "h").identify(header("id")).lease(LEASE)
}

pub const LEASE: Duration = Duration::from_secs(9);

pub async fn once(store: &Probe) -> Once {
    builder(store).build().await.unwrap()
}

/// Effects, counted where the crate cannot see them.
#[derive(Clone, Default)]
pub struct Effects(Arc<Mutex<Vec<String>>>);

impl Effects {
    pub fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn of(&self, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|own| *own == what).count()
    }
}

pub fn id_of(message: &Parts) -> String {
    use hapax::message::MessageView;
    String::from_utf8(message.header("id").unwrap().to_vec()).unwrap()
}

/// Polls a future until it has been pending so many times, then drops it: `None`. Whatever its await points are, a loop
/// over `pendings` drops it at each.
pub async fn cut_at<F: Future>(pendings: usize, future: F) -> Option<F::Output> {
    let mut future: Pin<Box<F>> = Box::pin(future);
    let mut left = pendings;
    std::future::poll_fn(move |cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Waits until something is so, on paused time.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came about: {what}");
}
