//! What all clones of one wrapper share, and what is asked of the database outside a batch.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use sqlx::Pool;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::dialect::{Beginning, Row, Source, Transact};
use super::link::{Committed, Tx, sorted};
use super::outcome::{Item, Pinned, Prepared, Spot};
use super::sealed::Sealed;
use super::spare::Spares;
use super::trial::Rules;
use super::windows::{Held, Notes, Standing, Windows};
use crate::identity::{Encoder, FingerprintBy, Identify, Identity, IdentityError, OnMissing, Scope, WindowBy};
use crate::message::MessageView;
use crate::record::{Origin, Owner, Sighting};
use crate::retry::Retry;
use crate::store::sql::{Dialect, Engine, Fault, TableName, Texts, jitter};
use crate::store::{Report, StoreError};
use crate::wrapper::{Counters, OnConflict, Topics, pause};

/// How long a statement waits for a lock when it is known that one is held: to find out whose.
const BRIEF: Duration = Duration::from_millis(50);

/// So many messages in a row have to be handled well before handlers are run without a savepoint for each.
const TRUST: u32 = 256;

/// What is configured.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(super) scope: Scope,
    pub(super) identify: Box<dyn Identify>,
    pub(super) fingerprint: FingerprintBy,
    pub(super) on_missing: OnMissing,
    pub(super) on_conflict: OnConflict,
    pub(super) on_too_old: OnConflict,
    pub(super) retry: Retry,
    pub(super) handler_timeout: Option<Duration>,
    /// How long a statement waits for a lock.
    pub(super) patience: Duration,
    /// How long the database is asked again.
    pub(super) store_patience: Duration,
    /// Messages in one transaction.
    pub(super) most: usize,
    pub(super) in_order: bool,
    pub(super) trust_offsets: bool,
    pub(super) records: TableName,
    pub(super) windows: TableName,
}

pub(crate) struct Core<DB: Sealed> {
    #[allow(dead_code, reason = "for the inbox")]
    pub(crate) pool: Pool<DB>,
    spares: Spares<DB>,
    /// The store over the same table, for what is not done in a transaction with effects.
    pub(crate) engine: Engine<DB::Dialect>,
    pub(super) settings: Settings,
    pub(crate) report: Report,
    pub(super) counters: Counters,
    pub(super) window_by: Option<WindowBy>,
    pub(super) keeps_records: bool,
    pub(super) held: Windows,
    /// Statements' texts, for waits of the usual length and for brief ones.
    pub(super) texts: [Texts; 2],
    turns: Arc<tokio::sync::Mutex<()>>,
    topics: Topics,
    /// Messages handled since a handler failed.
    trust: AtomicU32,
    random: AtomicU64,
    /// How often partitions were taken.
    takings: AtomicU64,
}

impl<DB: Sealed> fmt::Debug for Core<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("database", &DB::Dialect::NAME).finish_non_exhaustive()
    }
}

impl<DB: Sealed> Core<DB> {
    pub(super) fn new(pool: Pool<DB>, engine: Engine<DB::Dialect>, settings: Settings, seed: u64) -> Self {
        let window_by = settings.identify.window();
        let keeps_records = settings.identify.records();
        Self {
            spares: Spares::new(pool.clone()),
            pool,
            engine,
            settings,
            report: Report::new(),
            counters: Counters::default(),
            window_by,
            keeps_records,
            held: Windows::default(),
            texts: Default::default(),
            turns: Arc::default(),
            topics: Topics::default(),
            trust: AtomicU32::new(0),
            random: AtomicU64::new(seed),
            takings: AtomicU64::new(0),
        }
    }

    /// A random number, good enough to spread retries and to tell transactions apart (SplitMix64).
    pub(crate) fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In a loop of the user's own the wrapper decides by itself when a message is dead.
    pub(super) const fn rules(&self) -> Rules {
        Rules { bury: true, retry: self.settings.retry }
    }

    pub(super) fn patience(&self, brief: bool) -> Duration {
        if brief { self.settings.patience.min(BRIEF) } else { self.settings.patience }
    }

    pub(crate) async fn begin(&self, brief: bool) -> Result<Tx<DB>, Fault> {
        self.begin_as(brief, false).await
    }

    /// Whether the batch's savepoint is set once its records are written, and not with the transaction's begin.
    pub(super) const fn guards_late(&self) -> bool {
        DB::Dialect::GUARDS_LATE && self.keeps_records
    }

    /// Begins what a handler is run in: under the batch's savepoint, unless that comes late.
    pub(super) async fn begin_guarded(&self, brief: bool) -> Result<Tx<DB>, Fault> {
        self.begin_as(brief, true).await
    }

    async fn begin_as(&self, brief: bool, guarded: bool) -> Result<Tx<DB>, Fault> {
        let longest = if guarded { self.settings.handler_timeout } else { None };
        let owner = Owner::new(self.random());
        let known = self.keeps_records.then_some(owner);
        let guarded = guarded && !self.guards_late();
        let how = Beginning { patience: self.patience(brief), longest, again: false, owner: known, guarded };
        Tx::begin(&self.spares, &self.turns, owner, how).await
    }

    /// Whether handlers have ended well for long enough to be run without a savepoint for each.
    pub(super) fn is_trusted(&self) -> bool {
        self.trust.load(Ordering::Relaxed) >= TRUST
    }

    /// Notes a handler that ended well, or that did not.
    pub(super) fn trust(&self, well: bool) {
        match well {
            true => _ = self.trust.fetch_add(1, Ordering::Relaxed),
            false => self.trust.store(0, Ordering::Relaxed),
        }
    }

    pub(crate) fn origin(&self, message: &dyn MessageView) -> Origin {
        Origin { topic: self.topics.intern(message.topic()), partition: message.partition(), offset: message.offset() }
    }

    /// Whether a message has a record.
    #[cfg(feature = "kafka")]
    pub(crate) const fn keeps_records(&self) -> bool {
        self.keeps_records
    }

    /// Whether a position window is kept: partitions have to be told of by [`assigned`](Self::assigned).
    pub(crate) const fn holds_partitions(&self) -> bool {
        matches!(self.window_by, Some(WindowBy::Position))
    }

    /// What a message is to the database, or why it is refused. To be called in the order delivered, once its partition is held.
    pub(crate) fn prepare(&self, message: &dyn MessageView) -> Prepared {
        self.prepare_under(message, Pinned::Free)
    }

    /// The same, where it is known whose window speaks of the message.
    pub(crate) fn prepare_under(&self, message: &dyn MessageView, held: Pinned) -> Prepared {
        let origin = self.origin(message);
        let window = self.held_at(&origin, &held);
        self.prepare_at(message, origin, held, window.as_ref())
    }

    /// The same for one message after the other, which mostly stand where the one before stood.
    pub(super) fn preparing(&self) -> Preparing<'_, DB> {
        Preparing { core: self, last: None }
    }

    fn prepare_at(
        &self,
        message: &dyn MessageView,
        origin: Origin,
        held: Pinned,
        window: Option<&Arc<Held>>,
    ) -> Prepared {
        let deliver = |item: &Item| match (&item.spot, window) {
            (Some(Spot::Position), Some(window)) => window.deliver(item.origin.offset),
            _ => true,
        };
        let mut item = Item {
            origin,
            stamp: message.timestamp_ms(),
            record: None,
            spot: None,
            row: None,
            attempt: 1,
            stray: false,
            held,
        };
        match self.look(message, &item.origin) {
            Ok((record, spot)) => (item.record, item.spot) = (record, spot),
            Err(error) if self.settings.on_missing == OnMissing::Reject => {
                self.counters.rejected.one();
                // It stands in its window as unfinished, until somebody buries it.
                item.spot = self.holds_partitions().then_some(Spot::Position);
                deliver(&item);
                return Prepared::Refused(error, item);
            }
            Err(_) => {
                item.spot = self.holds_partitions().then_some(Spot::Position);
                self.counters.without_identity.one();
            }
        }
        // Of one that was not delivered in order.
        item.stray = !deliver(&item);
        Prepared::Item(item)
    }

    /// The window that speaks of a message.
    pub(super) fn held_by(&self, item: &Item) -> Option<Arc<Held>> {
        self.held_at(&item.origin, &item.held)
    }

    fn held_at(&self, origin: &Origin, held: &Pinned) -> Option<Arc<Held>> {
        match held {
            _ if !self.holds_partitions() => None,
            Pinned::Free => self.window(&origin.topic, origin.partition),
            Pinned::To(held) => held.clone(),
        }
    }

    /// The window of a partition, as it is held now.
    pub(crate) fn window(&self, topic: &str, partition: i32) -> Option<Arc<Held>> {
        self.held.get(topic, partition)
    }

    fn look(
        &self,
        message: &dyn MessageView,
        origin: &Origin,
    ) -> Result<(Option<Sighting>, Option<Spot>), IdentityError> {
        let settings = &self.settings;
        let record = match self.keeps_records {
            true => {
                let identity = settings.identify.identity(message)?;
                let key = settings.scope.key(&identity, message.topic());
                let fingerprint = settings.scope.fingerprint(&settings.fingerprint, message);
                Some(Sighting { key, fingerprint, origin: origin.clone() })
            }
            false => None,
        };
        let spot = match &self.window_by {
            None => None,
            Some(WindowBy::Position) => Some(Spot::Position),
            Some(WindowBy::Sequence(by)) => {
                let (source, number) = by.of(message)?;
                let source = self.source_of_producer(&source, message.topic())?;
                Some(Spot::Sequence { source, number, span: by.get_span() })
            }
        };
        Ok((record, spot))
    }

    fn source_of_producer(&self, source: &Identity, topic: &str) -> Result<Source, IdentityError> {
        let mut into = Encoder::new();
        into.text("sequences")?;
        into.identity(source)?;
        Ok(*self.settings.scope.key(&into.finish()?, topic).as_bytes())
    }

    fn source_of_partition(&self, topic: &str, partition: i32) -> Result<Source, StoreError> {
        let refused = |_: IdentityError| {
            StoreError::refused(DB::Dialect::NAME, "name a partition's window", "the topic's name is too long.")
        };
        let mut into = Encoder::new();
        into.text("partition").map_err(refused)?;
        into.text(topic).map_err(refused)?;
        into.integer(partition).map_err(refused)?;
        Ok(*self.settings.scope.key_of(&into.finish().map_err(refused)?).as_bytes())
    }

    /// Takes partitions: raises their fences, so that nobody who held them before writes any more, and reads what is finished.
    /// Answers in the order asked. Dropped in the middle, fences may have been raised: take them again.
    pub(crate) async fn assigned(&self, places: &[(Arc<str>, i32)]) -> Result<Vec<Standing>, StoreError> {
        let _alone = self.held.taking.lock().await;
        self.take(places).await
    }

    /// Takes those partitions that are not held. Ones that were fenced off stay so.
    pub(crate) async fn hold(&self, places: &BTreeSet<(Arc<str>, i32)>) -> Result<(), StoreError> {
        let missing = |places: &BTreeSet<(Arc<str>, i32)>| -> Vec<_> {
            places.iter().filter(|(topic, partition)| self.held.get(topic, *partition).is_none()).cloned().collect()
        };
        if missing(places).is_empty() {
            return Ok(());
        }
        let _alone = self.held.taking.lock().await;
        let missing = missing(places);
        if missing.is_empty() {
            return Ok(());
        }
        self.take(&missing).await.map(drop)
    }

    async fn take(&self, places: &[(Arc<str>, i32)]) -> Result<Vec<Standing>, StoreError> {
        const OPERATION: &str = "take partitions";
        let mut sources = Vec::with_capacity(places.len());
        for (topic, partition) in places {
            sources.push(self.source_of_partition(topic, *partition)?);
        }
        let mut wanted = sources.clone();
        wanted.sort_unstable();
        wanted.dedup();
        let rows = self.again(OPERATION, async || self.raise(&wanted).await).await?;
        self.takings.fetch_add(1, Ordering::SeqCst);
        let mut standings = Vec::with_capacity(places.len());
        for ((topic, partition), source) in places.iter().zip(sources) {
            let row = rows.iter().find(|row| row.source == source);
            let Some(row) = row else {
                return Err(StoreError::corrupt(
                    DB::Dialect::NAME,
                    OPERATION,
                    "a window that was written is not there.",
                ));
            };
            let (held, standing) = Held::of(Arc::clone(topic), *partition, row)
                .map_err(|error| StoreError::corrupt(DB::Dialect::NAME, OPERATION, error.to_string()))?;
            tracing::debug!(topic = &**topic, partition, next = ?standing.next, "holds a window");
            self.held.put(Arc::new(held));
            standings.push(standing);
        }
        Ok(standings)
    }

    async fn raise(&self, sources: &[Source]) -> Result<Vec<Row>, Fault> {
        let mut tx = self.begin(false).await?;
        let rows = DB::DIALECT.raise(tx.conn()?, &self.settings.windows, sources).await;
        let rows = rows.map_err(|error| sorted::<DB::Dialect>(&error))?;
        match finish(tx.commit()).await {
            Committed::Yes => Ok(rows),
            // Raised once more, it is raised for sure.
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// Grows whenever partitions were taken: after their fences were raised, before anything can be handled under the new ones.
    pub(crate) fn takings(&self) -> u64 {
        self.takings.load(Ordering::SeqCst)
    }

    /// Reading a partition goes on from here.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code))]
    pub(crate) fn reads_from(&self, topic: &str, partition: i32, at: i64) {
        if let Some(held) = self.held.get(topic, partition) {
            held.begin(at);
        }
    }

    /// What to note beside a partition's row, by its `next`.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code))]
    pub(crate) fn noted(&self, topic: &str, partition: i32, notes: Notes) {
        if let Some(held) = self.held.get(topic, partition) {
            held.noted(notes);
        }
    }

    /// Lets partitions go. Batches of them that are running finish as the fence says.
    pub(crate) fn revoked(&self, places: &[(Arc<str>, i32)]) {
        for (topic, partition) in places {
            self.held.drop_held(topic, *partition);
        }
    }

    /// Asks until there is an answer, the database refuses, or so much time has passed.
    pub(crate) async fn again<T>(
        &self,
        operation: &'static str,
        ask: impl AsyncFn() -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let mut asking = self.asking(operation);
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(fault) => asking.wait(fault).await?,
            }
        }
    }

    /// Begins to ask as [`again`](Self::again) does, in a loop of the caller's own, whose future can be `Send`.
    pub(crate) fn asking(&self, operation: &'static str) -> Asking<'_, DB> {
        Asking { core: self, operation, began: Instant::now(), failures: 0 }
    }

    /// The rows of these windows as they stand, waiting for whoever writes them.
    pub(super) async fn rows(&self, sources: &[Source]) -> Result<Vec<Row>, Fault> {
        let mut tx = self.begin(false).await?;
        let rows = DB::DIALECT.load(tx.conn()?, &self.settings.windows, sources).await;
        let rows = rows.map_err(|error| sorted::<DB::Dialect>(&error))?;
        finish(tx.rollback()).await;
        Ok(rows)
    }
}

/// Looks at one message after the other.
pub(super) struct Preparing<'a, DB: Sealed> {
    core: &'a Core<DB>,
    /// Where the last one stood, and its window.
    last: Option<(Arc<str>, i32, Option<Arc<Held>>)>,
}

impl<DB: Sealed> Preparing<'_, DB> {
    /// See [`Core::prepare`].
    pub(super) fn prepare(&mut self, message: &dyn MessageView) -> Prepared {
        let (name, partition) = (message.topic(), message.partition());
        let (topic, _, window) = match &mut self.last {
            Some(last) if last.1 == partition && *last.0 == *name => last,
            last => {
                let origin = self.core.origin(message);
                let window = self.core.held_at(&origin, &Pinned::Free);
                last.insert((origin.topic, partition, window))
            }
        };
        let origin = Origin { topic: Arc::clone(topic), partition, offset: message.offset() };
        self.core.prepare_at(message, origin, Pinned::Free, window.as_ref())
    }
}

/// What is asked of the database until there is an answer.
pub(crate) struct Asking<'a, DB: Sealed> {
    core: &'a Core<DB>,
    operation: &'static str,
    began: Instant,
    failures: u32,
}

impl<DB: Sealed> Asking<'_, DB> {
    /// Waits before it is asked again. An error where that cannot help, or so much time has passed.
    pub(crate) async fn wait(&mut self, fault: Fault) -> Result<(), StoreError> {
        let Self { core, operation, began, failures } = self;
        core.counters.store_failures.one();
        tracing::debug!(operation, failures, error = %fault, "the database failed");
        let delay = match &fault {
            Fault::Refused(_) | Fault::Corrupt(_) => return Err(fault.error(DB::Dialect::NAME, operation)),
            Fault::Contended(_) => jitter((*failures).min(6)),
            // The first may be a connection that the pool did not know to be dead.
            Fault::Broken(_) if *failures == 0 => Duration::ZERO,
            Fault::Broken(_) | Fault::Locked(_) | Fault::Unavailable(_) => pause(*failures, core.random()),
        };
        *failures += 1;
        if began.elapsed() + delay >= core.settings.store_patience {
            return Err(fault.error(DB::Dialect::NAME, operation));
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// Runs to the end, whatever happens to whoever waits for it: where it is waited for, or, dropped, in a task of its own.
pub(crate) async fn finish<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
    Finishing(Some(Box::pin(task))).await
}

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Finishing<T: Send + 'static>(Option<Task<T>>);

impl<T: Send + 'static> Future for Finishing<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(task) = &mut self.0 else { return Poll::Pending };
        let polled = task.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Finishing<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move { drop(task.await) });
        }
    }
}
