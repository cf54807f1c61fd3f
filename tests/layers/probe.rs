//! A store that writes down what it is asked, and can be told to wait, to fail, to panic, to lose replies and to forget.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hapax::identity::Key;
use hapax::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};
use hapax::store::{
    Ask, Batch, DedupStore, Description, Keyed, MemoryStore, Purged, Report, Retention, StoreError, StoreErrorKind,
};
use tokio::sync::{Semaphore, watch};

/// One call, as the store got it.
#[derive(Clone, Debug)]
pub struct Call {
    pub op: &'static str,
    pub keys: Vec<Key>,
    pub terms: Option<Terms>,
    /// Asks with the hint.
    pub read_first: usize,
}

/// What is to go wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// An error, and nothing is done.
    Fail,
    /// It is done, and then an error: a lost reply.
    LoseReply,
    Panic,
    /// One answer too few.
    Short,
}

#[derive(Debug)]
pub struct Probe {
    store: Mutex<Arc<dyn DedupStore>>,
    calls: Mutex<Vec<Call>>,
    /// By operation and its call number, from 1.
    mishaps: Mutex<HashMap<(&'static str, usize), Mishap>>,
    entered: watch::Sender<usize>,
    /// The operation whose calls wait at the gate.
    gated: Option<&'static str>,
    gate: Semaphore,
}

impl Probe {
    pub fn over(store: impl DedupStore + 'static) -> Arc<Self> {
        Self::new(store, None)
    }

    pub fn memory() -> Arc<Self> {
        Self::over(MemoryStore::new())
    }

    /// Calls of one operation wait until [`let_through`](Self::let_through).
    pub fn gated(op: &'static str) -> Arc<Self> {
        Self::new(MemoryStore::new(), Some(op))
    }

    fn new(store: impl DedupStore + 'static, gated: Option<&'static str>) -> Arc<Self> {
        Arc::new(Self {
            store: Mutex::new(Arc::new(store)),
            calls: Mutex::default(),
            mishaps: Mutex::default(),
            entered: watch::Sender::new(0),
            gated,
            gate: Semaphore::new(0),
        })
    }

    pub fn mishap(&self, op: &'static str, number: usize, mishap: Mishap) {
        self.mishaps.lock().unwrap().insert((op, number), mishap);
    }

    /// Everything is forgotten, as by a flush or a restore from a backup.
    pub fn flush(&self) {
        *self.store.lock().unwrap() = Arc::new(MemoryStore::new());
    }

    pub fn let_through(&self, calls: usize) {
        self.gate.add_permits(calls);
    }

    pub fn open_gate(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits until so many calls have come in, those at the gate included.
    pub async fn entered(&self, calls: usize) {
        let mut entered = self.entered.subscribe();
        tokio::time::timeout(crate::support::PATIENCE, entered.wait_for(|n| *n >= calls))
            .await
            .expect("the store was asked")
            .unwrap();
    }

    pub fn calls(&self, op: &'static str) -> Vec<Call> {
        self.calls.lock().unwrap().iter().filter(|call| call.op == op).cloned().collect()
    }

    pub fn sizes(&self, op: &'static str) -> Vec<usize> {
        self.calls(op).iter().map(|call| call.keys.len()).collect()
    }

    pub fn asked_for(&self, op: &'static str, key: Key) -> usize {
        self.calls(op).iter().filter(|call| call.keys.contains(&key)).count()
    }

    async fn enter(&self, op: &'static str, keys: Vec<Key>, terms: Option<Terms>, read_first: usize) -> Option<Mishap> {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(Call { op, keys, terms, read_first });
            calls.iter().filter(|call| call.op == op).count()
        };
        self.entered.send_modify(|n| *n += 1);
        if self.gated == Some(op) {
            self.gate.acquire().await.unwrap().forget();
        }
        let mishap = self.mishaps.lock().unwrap().get(&(op, number)).copied();
        assert_ne!(mishap, Some(Mishap::Panic), "as the test asked for");
        mishap
    }

    fn below(&self) -> Arc<dyn DedupStore> {
        Arc::clone(&self.store.lock().unwrap())
    }
}

fn broken(op: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "probe", op, "the test wants it so")
}

fn leave<T>(
    op: &'static str,
    mishap: Option<Mishap>,
    answer: Result<Vec<T>, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut answers = answer?;
    match mishap {
        Some(Mishap::LoseReply) => return Err(broken(op)),
        Some(Mishap::Short) => drop(answers.pop()),
        _ => {}
    }
    Ok(answers)
}

fn keys<T: Keyed>(batch: &Batch<T>) -> Vec<Key> {
    batch.keys().collect()
}

macro_rules! pass {
    ($self:ident, $op:literal, $keys:expr, $terms:expr, $read_first:expr, $call:expr) => {{
        let mishap = $self.enter($op, $keys, $terms, $read_first).await;
        if mishap == Some(Mishap::Fail) {
            return Err(broken($op));
        }
        let below = $self.below();
        leave($op, mishap, $call(below).await)
    }};
}

#[async_trait]
impl DedupStore for Probe {
    fn describe(&self) -> Description {
        self.below().describe()
    }

    fn retention(&self) -> Retention {
        self.below().retention()
    }

    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
        let read_first = asks.items().iter().filter(|ask| ask.read_first).count();
        pass!(self, "claim", keys(asks), Some(*terms), read_first, async |below: Arc<dyn DedupStore>| {
            below.claim(terms, asks).await
        })
    }

    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
        pass!(self, "settle", keys(settles), None, 0, async |below: Arc<dyn DedupStore>| below.settle(settles).await)
    }

    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
        pass!(self, "extend", keys(claims), None, 0, async |below: Arc<dyn DedupStore>| below.extend(claims).await)
    }

    async fn get(&self, of: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        pass!(self, "get", keys(of), None, 0, async |below: Arc<dyn DedupStore>| below.get(of).await)
    }

    async fn requeue(&self, of: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        pass!(self, "requeue", keys(of), None, 0, async |below: Arc<dyn DedupStore>| below.requeue(of).await)
    }

    async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        self.enter("purge", Vec::new(), None, 0).await;
        self.below().purge(limit).await
    }

    async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.enter("ensure_schema", Vec::new(), None, 0).await;
        self.below().ensure_schema().await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.enter("check", Vec::new(), None, 0).await;
        self.below().check().await
    }
}
