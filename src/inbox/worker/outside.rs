//! A run outside of transactions: handlers side by side, under a lease that is prolonged while they run. Level L1.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::crew::{Crew, Halt, Report, outcome_of};
use crate::identity::{Encoder, Identity, Key, Scope};
use crate::inbox::Message;
use crate::inbox::core::Core;
use crate::inbox::queue::{End, Ended, How, Run, Taken};
use crate::observe::{Outcome, Process};
use crate::record::{Fence, Owner, Token};
use crate::store::sql::Fault;
use crate::transaction::sealed::Sealed;
use crate::transaction::{Why, bounded};
use crate::wrapper::{Claim, ErrorClass, Failure, HandlerError, Hold, Slot, pause};

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// A handler begins.
    Began,
    /// A handler ended, after so long; whether what it needs is there.
    Ended { took: Duration, available: Option<bool> },
    /// So many messages will not begin.
    Skipped(usize),
}

/// What every run of a worker outside of transactions shares.
pub(super) struct Shared<F> {
    pub(super) handler: F,
    /// Handlers that may run at once.
    pub(super) permits: Arc<Semaphore>,
}

struct Outside<'a, DB: Sealed> {
    core: &'a Core<DB>,
    crew: &'a Crew,
    run: &'a Arc<Run>,
    tell: &'a UnboundedSender<Call>,
    hold: Arc<Hold>,
    /// To begin, as soon as there is room.
    ready: VecDeque<usize>,
    /// In the order of keys: behind the first of each lane.
    behind: HashMap<i64, VecDeque<usize>>,
    running: HashMap<usize, AbortHandle>,
    /// Ends that the database has not been told.
    pending: Vec<End>,
    /// Messages whose end is not written.
    left: usize,
    /// Others have what has not ended.
    taken_over: bool,
    report: Report,
}

/// A message, how its handler ended (`None`: it was dropped), and after how long.
type Ran<E> = (usize, Option<Result<(), Failure<E>>>, Duration);

/// Runs handlers over a run's messages.
///
/// # Cancel safety
///
/// Dropped, handlers are dropped where they wait, and their messages stay taken until the lease is over: an attempt each.
pub(super) async fn outside<DB, F, Fut, T, E>(
    core: Arc<Core<DB>>,
    crew: Crew,
    shared: Arc<Shared<F>>,
    run: Arc<Run>,
    halt: Halt,
    tell: UnboundedSender<Call>,
) -> Report
where
    DB: Sealed,
    F: Fn(Message, Claim) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: HandlerError + Send + 'static,
{
    let mut this = Outside::new(&core, &crew, &run, &tell);
    let mut calls: FuturesUnordered<Joined<E>> = FuturesUnordered::new();
    let mut written: Vec<End> = Vec::new();
    let mut writing: Option<LocalBoxFuture<'_, Result<Vec<Ended>, Fault>>> = None;
    let mut sent = Instant::now();
    let mut prolonging: Option<LocalBoxFuture<'_, Result<bool, Fault>>> = None;
    let (mut write_at, mut failures) = (Instant::now(), 0);
    let mut prolong_at = run.until - run.lease * 2 / 3;
    let (mut halted, mut aborted) = (false, false);
    while this.left > 0 {
        let now = Instant::now();
        if writing.is_none() && !this.pending.is_empty() && write_at <= now {
            written = std::mem::take(&mut this.pending);
            let last = written.len() >= this.left;
            let (core, run, ends) = (&core, &run, written.clone());
            writing = Some(Box::pin(async move { core.conclude(run, &ends, last).await }));
        }
        this.doubt_when_over();
        tokio::select! {
            biased;
            Some(ran) = calls.next() => this.ended(ran),
            said = on(&mut writing) => {
                writing = None;
                let ends = std::mem::take(&mut written);
                match said {
                    Ok(said) => {
                        failures = 0;
                        this.written(&ends, &said);
                    }
                    Err(fault @ (Fault::Refused(_) | Fault::Corrupt(_))) => this.unsettled(&ends, &fault),
                    Err(fault) if aborted => this.unsettled(&ends, &fault),
                    Err(fault) => {
                        tracing::debug!(error = %fault, "the database could not be told how messages ended");
                        write_at = Instant::now() + pause(failures, core.base.random());
                        failures = failures.saturating_add(1);
                        this.pending.splice(0..0, ends);
                    }
                }
            }
            held = on(&mut prolonging) => {
                prolonging = None;
                match held {
                    Ok(true) => {
                        this.hold.renewed(sent, run.lease);
                        prolong_at = sent + run.lease / 3;
                    }
                    Ok(false) => this.take_over(),
                    Err(fault) => {
                        tracing::debug!(error = %fault, "a lease could not be prolonged");
                        prolong_at = Instant::now() + (run.lease / 12).min(Duration::from_secs(1));
                    }
                }
            }
            () = tokio::time::sleep_until(prolong_at), if prolonging.is_none() && !this.taken_over => {
                let (core, run) = (&core, &run);
                sent = Instant::now();
                prolonging = Some(Box::pin(async move { core.prolong(run).await }));
            }
            () = halt.abort.cancelled(), if !aborted => {
                aborted = true;
                this.running.values().for_each(AbortHandle::abort);
            }
            () = halt.begin_none.cancelled(), if !halted => {
                halted = true;
                this.give_back();
            }
            Ok(permit) = Arc::clone(&shared.permits).acquire_owned(), // Nothing begins under a lease that is over by our clock: it is being prolonged, or lost.
                if !halted && !this.ready.is_empty() && !this.hold.remaining().is_zero() => {
                calls.extend(this.begin(&shared, permit));
            }
            () = tokio::time::sleep_until(write_at), if write_at > now && !this.pending.is_empty() && writing.is_none() => {}
            () = tokio::time::sleep(this.hold.remaining()), if !this.taken_over && !this.hold.remaining().is_zero() => {}
        }
        if halted {
            this.give_back();
        }
    }
    this.report
}

impl<'a, DB: Sealed> Outside<'a, DB> {
    fn new(core: &'a Core<DB>, crew: &'a Crew, run: &'a Arc<Run>, tell: &'a UnboundedSender<Call>) -> Self {
        let owner = Owner::new(core.base.random());
        let fence = Fence::new(run.number.cast_unsigned());
        let slot = |taken: &Taken| Slot::new(key_of(&core.scope, taken), Token { owner, fence });
        // The lease was granted a little before it was known.
        let sent = run.until.checked_sub(run.lease).unwrap_or(run.until);
        let hold = Hold::new(run.taken.iter().map(slot).collect(), sent, run.lease);
        let mut ready = VecDeque::with_capacity(run.taken.len());
        let mut behind: HashMap<i64, VecDeque<usize>> = HashMap::new();
        for (at, taken) in run.taken.iter().enumerate() {
            match behind.entry(taken.lane) {
                Entry::Occupied(mut lane) if run.by_key => lane.get_mut().push_back(at),
                Entry::Vacant(lane) if run.by_key => {
                    lane.insert(VecDeque::new());
                    ready.push_back(at);
                }
                _ => ready.push_back(at),
            }
        }
        Self {
            core,
            crew,
            run,
            tell,
            hold,
            ready,
            behind,
            running: HashMap::new(),
            pending: Vec::new(),
            left: run.taken.len(),
            taken_over: false,
            report: Report::default(),
        }
    }

    /// Begins the handler of the next message.
    fn begin<F, Fut, T, E>(&mut self, shared: &Arc<Shared<F>>, permit: OwnedSemaphorePermit) -> Option<Joined<E>>
    where
        F: Fn(Message, Claim) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: HandlerError + Send + 'static,
    {
        let at = self.ready.pop_front()?;
        let taken = self.run.taken.get(at)?;
        let claim = Claim::held(&self.hold, u32::try_from(at).unwrap_or(u32::MAX), taken.attempt, taken.alone);
        let (message, shared, timeout) = (taken.message.clone(), Arc::clone(shared), self.crew.handler_timeout);
        let span = match self.crew.wants_spans() {
            true => {
                let process = Process::new(&self.crew.group, &taken.message, taken.attempt);
                self.crew.span(&process.idempotency_key(&claim.idempotency_key()))
            }
            false => tracing::Span::none(),
        };
        let task = tokio::spawn(async move {
            // Called in here, so that a panic of the call is caught like one of the future.
            let handler = async { (shared.handler)(message, claim).await.map(drop) };
            let ended = bounded(timeout, handler).instrument(span.clone()).await;
            Process::ended(&span, ended.as_ref().map_or_else(outcome_of, |()| Outcome::Succeeded));
            drop(permit);
            ended
        });
        self.running.insert(at, task.abort_handle());
        let _ = self.tell.send(Call::Began);
        Some(Joined { at, began: Instant::now(), task })
    }

    /// A handler ended.
    fn ended<E: HandlerError>(&mut self, (at, ended, took): Ran<E>) {
        self.running.remove(&at);
        let Some(taken) = self.run.taken.get(at) else { return };
        let outcome = match &ended {
            Some(Ok(())) => Outcome::Succeeded,
            Some(Err(failure)) => outcome_of(failure),
            None => Outcome::Aborted,
        };
        let available = match outcome {
            Outcome::Unavailable => Some(false),
            Outcome::Aborted => None,
            _ => Some(true),
        };
        self.report.called += 1;
        self.report.calls.extend(self.crew.told(taken, 1, outcome, took));
        let _ = self.tell.send(Call::Ended { took, available });
        let how = match ended {
            Some(Ok(())) => How::Succeeded,
            Some(Err(Failure::Error(error))) if error.class() == ErrorClass::Unavailable => How::Released,
            Some(Err(failure)) => self.crew.how(taken.attempt, &Why::Handler(failure), self.core.base.random()),
            // Some of its effects may have happened: the attempt counts.
            None => self.crew.aborted(taken.attempt),
        };
        let succeeded = matches!(how, How::Succeeded);
        if self.taken_over && !succeeded {
            // Failing is a right, and it is gone.
            self.report.lost += 1;
            self.left = self.left.saturating_sub(1);
            return;
        }
        if self.run.by_key {
            match how {
                How::Succeeded | How::Dead { .. } => {
                    let next = self.behind.get_mut(&taken.lane).and_then(VecDeque::pop_front);
                    self.ready.extend(next);
                }
                How::Failed { .. } | How::Released => {
                    let lane = self.behind.remove(&taken.lane).unwrap_or_default();
                    self.skip(lane.into());
                }
            }
        }
        self.pending.push(End { at, how });
    }

    /// Gives back messages that have not begun.
    fn skip(&mut self, places: Vec<usize>) {
        if places.is_empty() {
            return;
        }
        let _ = self.tell.send(Call::Skipped(places.len()));
        if self.taken_over {
            self.report.lost += places.len() as u64;
            self.left = self.left.saturating_sub(places.len());
        } else {
            self.pending.extend(places.into_iter().map(|at| End { at, how: How::Released }));
        }
    }

    /// Begins nothing more.
    fn give_back(&mut self) {
        let mut places: Vec<usize> = self.ready.drain(..).collect();
        places.extend(self.behind.drain().flat_map(|(_, lane)| lane));
        places.sort_unstable();
        self.skip(places);
    }

    /// The database says that others have the run's messages.
    fn take_over(&mut self) {
        if self.taken_over || self.left == 0 {
            return;
        }
        self.taken_over = true;
        tracing::warn!(run = self.run.number, messages = self.left, "a run's lease ran out: others have its messages");
        self.running.keys().filter_map(|at| self.hold.slots.get(*at)).for_each(|slot| _ = slot.lose(true));
        self.give_back();
    }

    /// The lease ran out by this process's clock: handlers are told that it may be lost.
    fn doubt_when_over(&self) {
        if !self.taken_over && self.hold.remaining().is_zero() {
            self.running.keys().filter_map(|at| self.hold.slots.get(*at)).for_each(|slot| _ = slot.lose(false));
        }
    }

    /// What was written.
    fn written(&mut self, ends: &[End], said: &[Ended]) {
        for (end, said) in ends.iter().zip(said) {
            self.left = self.left.saturating_sub(1);
            match said {
                Ended::Stale => {
                    self.report.lost += 1;
                    continue;
                }
                Ended::Late => {
                    self.report.late += 1;
                    tracing::warn!(
                        message = self.run.taken.get(end.at).map(|taken| taken.id),
                        "a handler succeeded after its lease had run out: its effect may happen twice"
                    );
                }
                Ended::Written => {}
            }
            self.report.finished(self.crew, self.run, end);
        }
    }

    fn unsettled(&mut self, ends: &[End], fault: &Fault) {
        tracing::warn!(error = %fault, messages = ends.len(), "the database could not be told how messages ended: their lease runs out");
        self.report.unsettled += ends.len() as u64;
        self.left = self.left.saturating_sub(ends.len());
    }
}

/// The future of a slot, or none for ever.
async fn on<O>(slot: &mut Option<LocalBoxFuture<'_, O>>) -> O {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// A handler's task.
struct Joined<E> {
    at: usize,
    began: Instant,
    task: JoinHandle<Result<(), Failure<E>>>,
}

impl<E> Future for Joined<E> {
    type Output = Ran<E>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Ran<E>> {
        let ended = std::task::ready!(std::pin::Pin::new(&mut self.task).poll(context));
        // Nothing panics out of it: a task that was not joined was aborted.
        std::task::Poll::Ready((self.at, ended.ok(), self.began.elapsed()))
    }
}

impl<E> Drop for Joined<E> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a resource may know the message by: the same for every attempt, in every process.
fn key_of(scope: &Scope, taken: &Taken) -> Key {
    let message = &taken.message;
    let encoded = || {
        let mut into = Encoder::new();
        into.text("message")?;
        into.text(message.topic())?;
        into.integer(message.partition())?;
        into.integer(message.offset())?;
        into.finish()
    };
    // Topics have short names: it can be encoded.
    encoded().map_or_else(|_| scope.key_of(&Identity::integer(taken.id)), |identity| scope.key_of(&identity))
}
