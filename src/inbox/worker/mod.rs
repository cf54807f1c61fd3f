//! Workers: handlers over the queue, in any number of processes.
//!
//! ```text
//!   take ─▶ handlers ─▶ finish        one run more is taken while one is in hand, if handlers are fast
//!   desk.rs says when; drive.rs does it; inside.rs and outside.rs work a run: in transactions (L2), or under a lease (L1)
//! ```
//!
//! What a handler awaits inside a transaction borrows its connection, and whether such a future may move between threads cannot be shown on
//! stable Rust: so it stays on a thread of our own ([`Threads`]), within the runtime that the worker runs in. The driver has one for itself, so that
//! leases are prolonged whatever handlers do.

mod crew;
mod desk;
mod drive;
mod inside;
mod outside;
mod shape;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::crew::{Crew, Halt, Report};
use self::drive::{Setup, Way};
use self::outside::{Call, Shared};
use self::shape::{AllAtOnce, OneByOne, Shape};
use super::core::Core;
use super::queue::{Ask, Run};
use super::{Inbox, Message};
use crate::level::Level;
use crate::observe::Observer;
use crate::retry::Retry;
use crate::store::StoreError;
use crate::threads::Threads;
use crate::transaction::TransactionalDatabase;
use crate::transaction::sealed::Sealed;
use crate::wrapper::{Claim, HandlerError, MIN_LEASE};

/// Messages in one run, unless told otherwise.
const BATCH: usize = 512;
/// More than that no run may have.
const LARGEST: usize = 8192;
/// Transactions side by side, unless told otherwise.
const INSIDE: usize = 2;
/// Handlers side by side outside of transactions, unless told otherwise.
const OUTSIDE: usize = 64;

/// Which messages of an inbox wait for which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Order {
    /// Every message on its own, by priority, then as they were accepted. The default.
    #[default]
    Unordered,
    /// Messages of one topic with the same record key one after the other, in the order of their offsets, across all workers: never two of one key at once, and nothing passes a message that failed
    /// and waits for its next attempt. Messages with a null key are in one row with those of their partition. A dead message
    /// holds nothing back.
    ///
    /// All workers of an inbox must have the same order: one without order takes whatever is there.
    Key,
}

/// A worker over an [`Inbox`]: takes messages and runs a handler. Made by [`Inbox::worker`]; any number of them, in any number of processes.
///
/// # What it does by itself
///
/// - **Attempts are durable before a handler runs**: a message whose handler takes the process down with it is tried again alone, and is dead when its
///   attempts are used up.
/// - A handler that says [`ErrorClass::Unavailable`](crate::ErrorClass::Unavailable) opens the breaker: its message is given back without an attempt burnt, nothing is taken for a while
///   (50 ms doubling to 2 s, with jitter), then one message at a time finds out whether what it needs is back.
/// - A database that cannot be asked is asked again, with back-off, until it answers.
/// - Runs of workers that died are found when their lease is over; each of their messages has burnt an attempt.
/// - What is past the inbox's retention leaves in small steps.
/// - Where nothing is to be done it waits: PostgreSQL tells it of new messages at once (with a pool of at least three connections); elsewhere it looks again after 5 ms, doubling to 250 ms.
///
/// # Connections
///
/// One for each transaction side by side, one for what it asks between them, and one more beside the pool to listen on PostgreSQL. With fewer it is slower, and works.
pub struct Worker<DB: TransactionalDatabase> {
    core: Arc<Core<DB>>,
    order: Order,
    concurrency: Option<usize>,
    batch: usize,
    lease: Duration,
    retry: Retry,
    handler_timeout: Option<Duration>,
    drain: Duration,
    poll: Option<Duration>,
    name: Option<String>,
    retains: bool,
    observers: Vec<Box<dyn Observer>>,
}

impl<DB: TransactionalDatabase> fmt::Debug for Worker<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("core", &self.core)
            .field("order", &self.order)
            .field("concurrency", &self.concurrency)
            .field("batch", &self.batch)
            .field("lease", &self.lease)
            .field("retry", &self.retry)
            .field("handler_timeout", &self.handler_timeout)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// Starts to configure a worker; [`Worker::run`] and its like run it.
    #[must_use]
    pub fn worker(&self) -> Worker<DB> {
        Worker {
            core: Arc::clone(&self.core),
            order: Order::default(),
            concurrency: None,
            batch: BATCH,
            lease: Duration::from_secs(30),
            retry: Retry::default(),
            handler_timeout: None,
            drain: Duration::from_secs(10),
            poll: None,
            name: None,
            retains: true,
            observers: Vec::new(),
        }
    }
}

/// What a [`Worker`] did from start to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkSummary {
    /// Runs taken: messages that were taken together.
    pub runs: u64,
    /// Messages taken, as often as they were.
    pub taken: u64,
    /// Messages that succeeded.
    pub succeeded: u64,
    /// Of those at level L1: how many succeeded after their lease had run out, so that their effect may have happened twice.
    pub late: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages given up.
    pub dead: u64,
    /// Messages given back, with no attempt burnt.
    pub released: u64,
    /// Messages whose lease ran out while this worker had them: others have them.
    pub lost: u64,
    /// Messages of which the database could not be told how they ended: they are found when their lease is over.
    pub unsettled: u64,
    /// Messages of workers that died, found by this one.
    pub swept: u64,
    /// Units in hand at the end that could neither be finished nor given back: their lease runs out.
    pub left: u64,
    /// Whether all that had begun was finished within the [drain deadline](Worker::drain_deadline).
    pub drained: bool,
}

impl WorkSummary {
    fn add(&mut self, report: &Report) {
        self.succeeded += report.succeeded;
        self.late += report.late;
        self.failed += report.failed;
        self.dead += report.dead;
        self.released += report.released;
        self.lost += report.lost;
        self.unsettled += report.unsettled;
    }
}

impl fmt::Display for WorkSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "runs={} taken={} succeeded={} late={} failed={} dead={} released={} lost={} unsettled={} swept={} left={}",
            self.runs,
            self.taken,
            self.succeeded,
            self.late,
            self.failed,
            self.dead,
            self.released,
            self.lost,
            self.unsettled,
            self.swept,
            self.left
        )
    }
}

/// Why a worker ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// There is no tokio runtime to run handlers on. Not retryable.
    #[error("the worker needs a tokio runtime: await run() inside of one")]
    NoRuntime,
    /// A setting is out of bounds; nothing was taken. Not retryable.
    #[error("{setting}: {problem} {cure}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        problem: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// The database refuses: its tables are not what they should be, or something is not allowed. What was in hand was finished, as far as that was possible. Not retryable
    /// without a change.
    #[error("{source}")]
    Store {
        /// What the database said.
        source: StoreError,
        /// What was done before.
        summary: Box<WorkSummary>,
    },
    /// The thread that drives the worker is gone: it could not be started, or an observer panicked. What was in hand is found when its lease is over.
    /// Retryable.
    #[error("the thread that drives the worker is gone")]
    Gone,
}

impl WorkError {
    /// Whether starting again, without a change, can help: what a supervisor asks.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
            Self::Gone => true,
            Self::NoRuntime | Self::Setting { .. } => false,
        }
    }

    /// What was done before, where that is known.
    #[must_use]
    pub fn summary(&self) -> Option<&WorkSummary> {
        match self {
            Self::Store { summary, .. } => Some(summary),
            Self::NoRuntime | Self::Setting { .. } | Self::Gone => None,
        }
    }
}

impl<DB: TransactionalDatabase> Worker<DB> {
    /// Sets which messages wait for which. Default: [`Order::Unordered`].
    #[must_use]
    pub const fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets how much goes on at once: transactions for [`run`](Self::run) and [`run_batch`](Self::run_batch), 2 by default, each with its
    /// messages one after the other; handlers for [`run_outside`](Self::run_outside), 64 by default. At least 1.
    #[must_use]
    pub const fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = Some(if concurrency == 0 { 1 } else { concurrency });
        self
    }

    /// Sets how many messages are taken at once at most. Default: 512; from 1 to 8,192. Slow handlers are given fewer: as many as they get through in a quarter of
    /// a second.
    #[must_use]
    pub fn batch_size(mut self, messages: usize) -> Self {
        self.batch = messages.clamp(1, LARGEST);
        self
    }

    /// Sets for how long messages are this worker's when it takes them; what runs longer is prolonged. A worker that dies is noticed when it is over.
    /// Default: 30 s; at least [`MIN_LEASE`].
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(MIN_LEASE);
        self
    }

    /// Sets how often a message is tried, and how long it waits in between. Default: [`Retry::default`]. [`Retry::none`] without a number of attempts is
    /// one attempt: nobody else would deliver the message again. Give all workers of an inbox the same.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        let endless = !retry.is_in_place() && retry.max_attempts() == std::num::NonZeroU32::MAX;
        self.retry = if endless { retry.attempts(1) } else { retry };
        self
    }

    /// Sets how long a handler call may take; it is dropped then, which is a failed attempt. Default: as long as it likes. Zero is refused when the
    /// worker is run.
    #[must_use]
    pub const fn handler_timeout(mut self, longest: Duration) -> Self {
        self.handler_timeout = Some(longest);
        self
    }

    /// Sets how long handlers may go on after the worker was told to end. Default: 10 s. What has not begun is given back at once; what still runs then
    /// is dropped, and given back too (inside a transaction), or has burnt an attempt (outside).
    #[must_use]
    pub const fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain = deadline;
        self
    }

    /// Sets how long it waits before it looks again where it found nothing to do. What is due before is looked for when it is due, and what
    /// PostgreSQL tells of, or an ended lease leaves behind, at once. Default: 5 ms doubling to 250 ms; to 1 s where the database tells. From 1 ms to a day.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = Some(every.clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60)));
        self
    }

    /// Sets the name that operators read in the history. Default: the process's id and a random number.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets whether this worker lets leave what is past the inbox's retention. Default: yes.
    #[must_use]
    pub const fn retention(mut self, retains: bool) -> Self {
        self.retains = retains;
        self
    }

    /// Adds somebody who hears what the worker does, and may make the spans that handlers run in. See [`Observer`]; a worker tells
    /// `Started`, `Claimed` (taken), `Ran`, `Settled`, `Finished`, `Worked`, `Circuit` and `StoreFailed`. How the inbox stands is told by [`Inbox::watch`].
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Runs `handler` for each message, inside the transaction that moves the message's state, until `shutdown` is cancelled. Level **L2**.
    ///
    /// `handler` is an `async |message: inbox::Message, tx: &mut PgConnection| -> Result<T, E>` (or `&mut MySqlConnection`,
    /// `&mut SqliteConnection`): an `AsyncFn` with the type of its parameters written out. What it writes through `tx` is committed together with the end
    /// of its message, or not at all: no effect in that database repeats, and none is lost.
    ///
    /// What is taken together is handled in one transaction, one handler after the other, each under a savepoint. One that fails is rolled back by itself; the others commit. A
    /// panic or a time-out rolls all of the transaction back, and the others are run again without it. So a handler may run more than once
    /// for one message, with all but one of its runs rolled back: **what it does elsewhere than through `tx`** is not undone.
    ///
    /// A handler must not end the transaction: that is noticed, and its message is dead. It must return the errors of its statements. It should not wait for anything slow: the
    /// transaction holds its locks meanwhile.
    ///
    /// # Errors
    ///
    /// [`WorkError`]. A database that is away is no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts: handlers are dropped where they wait, their transactions are rolled back, and what was in hand is
    /// found, with an attempt burnt, when its lease is over. To finish what runs, cancel `shutdown` instead.
    pub fn run<F, T, E>(
        self,
        handler: F,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<WorkSummary, WorkError>> + Send
    where
        F: AsyncFn(Message, &mut DB::Connection) -> Result<T, E> + Send + Sync + 'static,
        T: 'static,
        E: HandlerError + 'static,
    {
        self.inside(OneByOne::new(handler), shutdown)
    }

    /// Runs `handler` for messages that are taken together, inside the transaction that moves their states, until `shutdown` is cancelled. Level **L2**.
    ///
    /// `handler` is an `async |messages: &[inbox::Message], tx: &mut PgConnection| -> Result<T, E>`, made for bulk inserts. It is never given none. Its
    /// error is one of all of them: they are rolled back, and halves of them are tried, down to the one that fails, which then has burnt an attempt.
    ///
    /// Everything else is as with [`run`](Self::run), errors and cancel safety too.
    pub fn run_batch<F, T, E>(
        self,
        handler: F,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<WorkSummary, WorkError>> + Send
    where
        F: AsyncFn(&[Message], &mut DB::Connection) -> Result<T, E> + Send + Sync + 'static,
        T: 'static,
        E: HandlerError + 'static,
    {
        self.inside(AllAtOnce::new(handler), shutdown)
    }

    /// Runs `handler` for each message, with effects elsewhere, until `shutdown` is cancelled. Level **L1**; **L3** where the resource honours the
    /// [`Claim::idempotency_key`].
    ///
    /// `handler` is an `async |message: inbox::Message, claim: Claim| -> Result<T, E>`; as many run side by side as [`concurrency`](Self::concurrency) says. The lease
    /// is prolonged while they run. When it is lost all the same, the handler is told by [`Claim::cancellation_token`], and had better stop before its next
    /// effect; if it succeeds, that is recorded all the same, and counted as [`late`](WorkSummary::late).
    ///
    /// An effect may repeat after a lease that ran out, a crash, an aborted handler, or a failed attempt that had done something already; nothing is lost.
    ///
    /// # Errors
    ///
    /// [`WorkError`]. A database that is away is no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts: handlers are dropped where they wait, and what was in hand is found, with an attempt burnt, when its
    /// lease is over. To finish what runs, cancel `shutdown` instead.
    pub fn run_outside<F, Fut, T, E>(
        self,
        handler: F,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<WorkSummary, WorkError>> + Send
    where
        F: Fn(Message, Claim) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: HandlerError + Send + 'static,
    {
        let concurrency = self.concurrency.unwrap_or(OUTSIDE);
        let permits = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS)));
        self.go(Outside { shared: Arc::new(Shared { handler, permits }) }, concurrency, Level::L1, shutdown)
    }

    fn inside<S: Shape<DB>>(
        self,
        shape: S,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<WorkSummary, WorkError>> + Send {
        let concurrency = self.concurrency.unwrap_or(INSIDE);
        let way = Inside { shape: Arc::new(shape), threads: Threads::default() };
        self.go(way, concurrency, Level::L2, shutdown)
    }

    async fn go<W: Way<DB>>(
        self,
        way: W,
        capacity: usize,
        level: Level,
        shutdown: CancellationToken,
    ) -> Result<WorkSummary, WorkError> {
        Handle::try_current().map_err(|_| WorkError::NoRuntime)?;
        if self.handler_timeout == Some(Duration::ZERO) {
            // Every message would die of it.
            return Err(WorkError::Setting {
                setting: "handler_timeout",
                problem: "zero would drop every handler.",
                cure: "Set the time that a handler may take, or leave it out.",
            });
        }
        let by_key = self.order == Order::Key;
        let random = self.core.base.random();
        let name = self.name.unwrap_or_else(|| format!("{}-{random:08x}", std::process::id()));
        info!(
            inbox = %self.core.scope.handler(),
            group = %self.core.scope.group(),
            worker = name,
            ?level,
            order = ?self.order,
            concurrency = capacity,
            batch = self.batch,
            lease = ?self.lease,
            attempts = self.retry.max_attempts().get(),
            "a worker starts"
        );
        let crew = Crew {
            group: self.core.scope.group().into(),
            retry: self.retry,
            handler_timeout: self.handler_timeout,
            observers: self.observers.into(),
        };
        // With one attempt, what a process takes down with it is dead: one message at a time.
        let single = self.retry.max_attempts().get() == 1;
        let batch = if single { 1 } else { self.batch };
        let config = desk::Config {
            capacity,
            whole: level == Level::L2,
            by_key,
            batch,
            single,
            lease: self.lease,
            belled: false,
            poll: self.poll,
            retains: self.retains,
        };
        let ask = Ask { most: batch, by_key, lease: self.lease, owner: name.into(), level };
        let setup = Setup { core: self.core, crew, config, ask, drain: self.drain, shutdown };
        // Of its own: handlers may keep the others busy.
        let threads = Threads::few(1);
        let outcome = threads.run(move || drive::drive(setup, way)).await.unwrap_or(Err(WorkError::Gone));
        if let Ok(summary) = &outcome {
            info!(%summary, "a worker ended");
        }
        outcome
    }
}

/// Handlers in transactions.
struct Inside<S> {
    shape: Arc<S>,
    threads: Threads,
}

impl<DB: Sealed, S: Shape<DB>> Way<DB> for Inside<S> {
    fn work(
        &self,
        core: &Arc<Core<DB>>,
        crew: &Crew,
        run: Arc<Run>,
        halt: Halt,
        _: UnboundedSender<Call>,
    ) -> LocalBoxFuture<'static, Report> {
        let (core, crew, shape) = (Arc::clone(core), crew.clone(), Arc::clone(&self.shape));
        let unsettled = run.taken.len() as u64;
        let worked = self.threads.run(move || inside::inside(core, crew, shape, run, halt));
        let gone = Report { unsettled, ..Report::default() };
        async move { worked.await.unwrap_or(gone) }.boxed_local()
    }
}

/// Handlers outside of them.
struct Outside<F> {
    shared: Arc<Shared<F>>,
}

impl<DB, F, Fut, T, E> Way<DB> for Outside<F>
where
    DB: Sealed,
    F: Fn(Message, Claim) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: HandlerError + Send + 'static,
{
    fn work(
        &self,
        core: &Arc<Core<DB>>,
        crew: &Crew,
        run: Arc<Run>,
        halt: Halt,
        tell: UnboundedSender<Call>,
    ) -> LocalBoxFuture<'static, Report> {
        let (core, crew, shared) = (Arc::clone(core), crew.clone(), Arc::clone(&self.shared));
        outside::outside(core, crew, shared, run, halt, tell).boxed_local()
    }
}
