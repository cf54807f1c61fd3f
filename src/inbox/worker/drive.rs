//! Drives a worker: does what its [`Desk`] says, on a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::crew::{Crew, Halt, Report};
use super::desk::{Act, Config, Desk};
use super::outside::Call;
use super::{WorkError, WorkSummary};
use crate::inbox::core::Core;
use crate::inbox::queue::Listener;
use crate::inbox::queue::{Ask, End, Ended, How, Run, Swept, Take};
use crate::observe::{Circuit, Claims, Observed, Operation, Worked};
use crate::store::sql::{Dialect, Fault};
use crate::store::{Purged, StoreError};
use crate::transaction::sealed::Sealed;
use crate::wrapper::pause;

/// What may be taken beyond the drain deadline to give back what is left.
const LATE: Duration = Duration::from_secs(5);
/// Rows that one step of retention removes.
const RETAINED: usize = 500;

/// How a worker's handlers run.
pub(super) trait Way<DB: Sealed>: Send + 'static {
    /// Works a run to its end.
    fn work(
        &self,
        core: &Arc<Core<DB>>,
        crew: &Crew,
        run: Arc<Run>,
        halt: Halt,
        tell: UnboundedSender<Call>,
    ) -> LocalBoxFuture<'static, Report>;
}

/// What a worker is driven with.
pub(super) struct Setup<DB: Sealed> {
    pub(super) core: Arc<Core<DB>>,
    pub(super) crew: Crew,
    pub(super) config: Config,
    pub(super) ask: Ask,
    pub(super) drain: Duration,
    pub(super) shutdown: CancellationToken,
}

/// Something that was begun has ended.
enum Done {
    Took { most: usize, began: Instant, take: Result<Take, Fault> },
    Ran { began: Instant, messages: usize, report: Report },
    Prolonged { run: i64, sent: Instant, held: Result<bool, Fault> },
    Released { units: usize, report: Report },
    Swept(Result<Swept, Fault>),
    Retained(Result<Purged, StoreError>),
}

struct Driver<DB: Sealed, W> {
    setup: Setup<DB>,
    way: W,
    desk: Desk,
    began: Instant,
    tasks: FuturesUnordered<LocalBoxFuture<'static, Done>>,
    /// Taken, and not begun.
    waiting: VecDeque<Arc<Run>>,
    prolong_at: Option<Instant>,
    halt: Halt,
    tell: UnboundedSender<Call>,
    stopped: Option<Instant>,
    refused: Option<Fault>,
    summary: WorkSummary,
}

/// Drives a worker until it is told to end.
///
/// # Cancel safety
///
/// Dropped, handlers are dropped where they wait; what they had stays taken until its lease is over.
pub(super) async fn drive<DB: Sealed, W: Way<DB>>(mut setup: Setup<DB>, way: W) -> Result<WorkSummary, WorkError> {
    // It keeps a connection for itself.
    let mut listener = match setup.core.pool.options().get_max_connections() {
        0..=2 => Listener::deaf(),
        _ => setup.core.listen(),
    };
    setup.config.belled = listener.hears();
    let (tell, mut calls) = mpsc::unbounded_channel();
    let mut driver = Driver {
        desk: Desk::new(setup.config),
        setup,
        way,
        began: Instant::now(),
        tasks: FuturesUnordered::new(),
        waiting: VecDeque::new(),
        prolong_at: None,
        halt: Halt { begin_none: CancellationToken::new(), abort: CancellationToken::new() },
        tell,
        stopped: None,
        refused: None,
        summary: WorkSummary::default(),
    };
    let scope = &driver.setup.core.scope;
    driver.setup.crew.tell(&Observed::Started { group: scope.group(), handler: scope.handler() });
    driver.run(&mut calls, &mut listener).await;
    let Driver { summary, refused, .. } = driver;
    match refused {
        None => Ok(summary),
        Some(fault) => {
            let source = fault.error(DB::Dialect::NAME, "take messages");
            Err(WorkError::Store { source, summary: Box::new(summary) })
        }
    }
}

impl<DB: Sealed, W: Way<DB>> Driver<DB, W> {
    async fn run(&mut self, calls: &mut UnboundedReceiver<Call>, listener: &mut Listener) {
        let shutdown = self.setup.shutdown.clone();
        loop {
            // Before anything is decided: what has ended.
            while let Ok(call) = calls.try_recv() {
                self.called(call);
            }
            while let Some(act) = self.desk.next(self.began.elapsed()) {
                self.act(act);
            }
            if self.desk.is_done() || self.is_late() {
                break;
            }
            let stopping = self.stopped.is_some();
            let wake = self.desk.wake().map(|wake| self.began + wake);
            let deadline = self.stopped.map(|at| match self.halt.abort.is_cancelled() {
                false => at + self.setup.drain,
                true => at + self.setup.drain + LATE,
            });
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !stopping => self.stop(),
                Some(call) = calls.recv() => self.called(call),
                Some(done) = self.tasks.next(), if !self.tasks.is_empty() => self.done(done),
                () = listener.heard(), if !stopping => self.desk.rang(),
                () = until(self.prolong_at) => self.prolong(),
                () = until(deadline) => {
                    if !self.halt.abort.is_cancelled() {
                        warn!("the drain deadline is over: handlers that still run are dropped");
                    }
                    self.halt.abort.cancel();
                }
                () = until(wake) => {}
            }
        }
        // What is still in hand is told as what could not be told of: nobody has it in hand any more.
        let s = &self.summary;
        let open = s.taken.saturating_sub(s.succeeded + s.failed + s.released + s.lost + s.unsettled);
        if open > 0 {
            self.setup.crew.tell(&Observed::Worked(Worked { unsettled: open, ..Worked::default() }));
        }
        self.summary.left = self.desk.in_hand() as u64;
        self.summary.drained = self.summary.left == 0 && !self.halt.abort.is_cancelled();
    }

    /// Whether there is no time left even to give back what is in hand.
    fn is_late(&self) -> bool {
        self.stopped.is_some_and(|at| at.elapsed() >= self.setup.drain + LATE)
    }

    fn stop(&mut self) {
        if self.stopped.is_none() {
            info!(in_hand = self.desk.in_hand(), "a worker ends: it begins nothing more");
            self.stopped = Some(Instant::now());
            self.desk.stop();
            self.halt.begin_none.cancel();
        }
    }

    fn act(&mut self, act: Act) {
        let core = Arc::clone(&self.setup.core);
        match act {
            Act::Take { most } => {
                let mut ask = self.setup.ask.clone();
                ask.most = most;
                let began = Instant::now();
                self.begin(async move { Done::Took { most, began, take: core.take(&ask).await } });
            }
            Act::Begin => {
                if let Some(run) = self.waiting.pop_front() {
                    self.work(run);
                }
                self.prolong_at = None;
            }
            Act::Release => {
                let runs: Vec<Arc<Run>> = self.waiting.drain(..).collect();
                self.prolong_at = None;
                self.begin(async move {
                    let mut report = Report::default();
                    for run in &runs {
                        give_back(&core, run, &mut report).await;
                    }
                    Done::Released { units: runs.len(), report }
                });
            }
            Act::Sweep => {
                let retry = self.setup.crew.retry;
                self.begin(async move { Done::Swept(core.sweep(&retry).await) });
            }
            Act::Retain => self.begin(async move { Done::Retained(core.purge(RETAINED).await) }),
        }
    }

    fn begin(&mut self, task: impl Future<Output = Done> + 'static) {
        self.tasks.push(task.boxed_local());
    }

    fn work(&mut self, run: Arc<Run>) {
        let (began, messages) = (Instant::now(), run.taken.len());
        let Setup { core, crew, .. } = &self.setup;
        let working = self.way.work(core, crew, run, self.halt.clone(), self.tell.clone());
        self.begin(working.map(move |report| Done::Ran { began, messages, report }));
    }

    fn random(&self) -> u64 {
        self.setup.core.base.random()
    }

    fn done(&mut self, done: Done) {
        self.desk.at(self.began.elapsed());
        let random = self.random();
        match done {
            Done::Took { most, began, take } => self.took(most, began, take, random),
            Done::Ran { began, messages, report } => self.ran(began, messages, report, random),
            Done::Prolonged { run, sent, held } => self.prolonged(run, sent, held),
            Done::Released { units, report } => {
                if !self.setup.config.whole {
                    (0..units).for_each(|_| self.desk.closed());
                }
                self.desk.released(units);
                self.setup.crew.tell_report(&report, Duration::ZERO);
                self.summary.add(&report);
            }
            Done::Swept(Ok(swept)) => {
                if swept.lost > 0 {
                    warn!(
                        runs = swept.runs,
                        messages = swept.lost,
                        dead = swept.dead,
                        "runs were lost: their lease was over"
                    );
                }
                self.summary.swept += swept.lost;
                if swept.lost > 0 {
                    self.setup.crew.tell(&Observed::Worked(Worked { swept: swept.lost, ..Worked::default() }));
                }
                self.desk.swept(Some(swept.lost + swept.woken), random);
            }
            Done::Swept(Err(error)) => {
                debug!(%error, "lost runs could not be looked for");
                self.desk.swept(None, random);
            }
            Done::Retained(Ok(purged)) => self.desk.retained(purged.more),
            Done::Retained(Err(error)) => {
                debug!(%error, "what is past retention could not be removed");
                self.desk.retained(false);
            }
        }
    }

    fn took(&mut self, most: usize, began: Instant, take: Result<Take, Fault>, random: u64) {
        let down = self.desk.store_is_down();
        match take {
            Ok(Take { run: Some(run), .. }) => {
                let messages = run.taken.len();
                let suspect = run.taken.iter().any(|taken| taken.alone);
                // A run that is not full is all there was, unless it says otherwise.
                self.desk.took(messages, if run.more { messages } else { most }, suspect);
                self.summary.runs += 1;
                self.summary.taken += messages as u64;
                let took_over = run.taken.iter().filter(|taken| taken.alone).count() as u64;
                let answers = Claims { acquired: messages as u64 - took_over, took_over, ..Claims::default() };
                self.setup.crew.tell(&Observed::Claimed { asked: most as u64, answers, took: began.elapsed() });
                self.setup.crew.tell(&Observed::Worked(Worked { taken: messages as u64, ..Worked::default() }));
                let run = Arc::new(run);
                if self.setup.config.whole || suspect {
                    self.prolong_at = Some(run.until - run.lease * 2 / 3);
                    self.waiting.push_back(run);
                } else {
                    self.work(run);
                }
            }
            Ok(Take { paused, due_in, .. }) => {
                self.desk.nothing(if paused { None } else { due_in }, random);
            }
            Err(fault @ (Fault::Refused(_) | Fault::Corrupt(_))) => {
                tracing::error!(error = %fault, "the database refuses: the worker ends");
                self.refused.get_or_insert(fault);
                self.desk.take_failed(random);
                self.stop();
            }
            // Others are taking: by key, one after the other.
            Err(Fault::Contended(_) | Fault::Locked(_)) => self.desk.contended(random),
            Err(fault) => {
                let took = began.elapsed();
                self.setup.crew.tell(&Observed::StoreFailed {
                    operation: Operation::Claim,
                    messages: most as u64,
                    took,
                });
                let wait = self.desk.take_failed(random);
                debug!(error = %fault, ?wait, "nothing could be taken");
            }
        }
        if self.desk.store_is_down() != down {
            match down {
                true => info!("the database answers again"),
                false => warn!("the database cannot be asked: nothing is taken until it answers"),
            }
            self.setup.crew.tell(&Observed::Circuit { what: Circuit::Store, open: !down });
        }
    }

    fn ran(&mut self, began: Instant, messages: usize, report: Report, random: u64) {
        let took = began.elapsed();
        if self.setup.config.whole {
            // What was not called says nothing of how long calls take.
            self.desk.ended(report.called.min(messages), took);
            if report.down {
                self.heard(false, Duration::ZERO, random);
            } else if report.up {
                self.heard(true, took, random);
            }
        } else {
            self.desk.closed();
        }
        self.setup.crew.tell_report(&report, took);
        self.summary.add(&report);
    }

    /// What a run outside of transactions says while it goes on.
    fn called(&mut self, call: Call) {
        self.desk.at(self.began.elapsed());
        match call {
            Call::Began => self.desk.began(),
            Call::Skipped(messages) => self.desk.released(messages),
            Call::Ended { took, available } => {
                self.desk.ended(1, took);
                if let Some(available) = available {
                    let random = self.random();
                    self.heard(available, took, random);
                }
            }
        }
    }

    /// Whether what handlers need is there.
    fn heard(&mut self, available: bool, ago: Duration, random: u64) {
        if !self.desk.heard(available, ago, random) {
            return;
        }
        match available {
            true => info!("what handlers need is back"),
            false => {
                warn!("what handlers need is down: one message at a time finds out when it is back");
                // What is in hand is given back; what is taken from now on is not.
                self.halt.begin_none.cancel();
                if self.stopped.is_none() {
                    self.halt.begin_none = CancellationToken::new();
                }
            }
        }
        self.setup.crew.tell(&Observed::Circuit { what: Circuit::Downstream, open: !available });
    }

    /// The lease of the run that waits has to last.
    fn prolong(&mut self) {
        self.prolong_at = None;
        let Some(run) = self.waiting.front().map(Arc::clone) else { return };
        let core = Arc::clone(&self.setup.core);
        let sent = Instant::now();
        self.begin(async move {
            let held = core.prolong(&run).await;
            Done::Prolonged { run: run.number, sent, held }
        });
    }

    fn prolonged(&mut self, run: i64, sent: Instant, held: Result<bool, Fault>) {
        // It may have begun meanwhile.
        let Some(waiting) = self.waiting.front().filter(|waiting| waiting.number == run) else { return };
        match held {
            Ok(true) => {
                let lease = waiting.lease;
                self.prolong_at = Some(sent + lease / 3);
                if let Some(run) = self.waiting.front_mut() {
                    Arc::make_mut(run).until = sent + lease;
                }
            }
            Ok(false) => {
                let lost = waiting.taken.len() as u64;
                self.summary.lost += lost;
                self.setup.crew.tell(&Observed::Worked(Worked { lost, ..Worked::default() }));
                self.waiting.pop_front();
                if !self.setup.config.whole {
                    self.desk.closed();
                }
                self.desk.released(1);
            }
            Err(error) => {
                debug!(%error, "a lease could not be prolonged");
                self.prolong_at = Some(Instant::now() + (waiting.lease / 12).min(Duration::from_secs(1)));
            }
        }
    }
}

/// Gives back a run that has not begun: asks for as long as its lease lasts.
async fn give_back<DB: Sealed>(core: &Core<DB>, run: &Run, report: &mut Report) {
    let ends: Vec<End> = (0..run.taken.len()).map(|at| End { at, how: How::Released }).collect();
    let mut failures = 0;
    loop {
        let fault = match core.conclude(run, &ends, true).await {
            Ok(said) => {
                let stale = said.iter().filter(|ended| matches!(ended, Ended::Stale)).count() as u64;
                report.lost += stale;
                report.released += ends.len() as u64 - stale;
                return;
            }
            Err(fault) => fault,
        };
        let wait = pause(failures, core.base.random());
        failures = failures.saturating_add(1);
        if matches!(fault, Fault::Refused(_) | Fault::Corrupt(_)) || Instant::now() + wait >= run.until {
            warn!(error = %fault, messages = ends.len(), "messages could not be given back: their lease runs out");
            report.unsettled += ends.len() as u64;
            return;
        }
        debug!(error = %fault, messages = ends.len(), "messages could not be given back yet");
        tokio::time::sleep(wait).await;
    }
}

/// Waits until then; for ever without a time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
