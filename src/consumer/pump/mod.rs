//! The pump: the task that carries out what the engine decides.
//!
//! It takes in all that is waiting (messages, answers of the store, handlers that ended), tells the engine, and does what the engine says,
//! until nothing is left; then it waits. So whatever came meanwhile goes together: batches are as large as what is waiting, and there
//! is no timer. More messages are taken in when what is in hand has come as far as it can: what is not in hand costs nothing.
//!
//! - [`slab`] keeps the messages in hand, [`periods`] their assignments.
//! - [`mod@bench`] polls handlers for the first time, here; those that wait are taken along by a task, with what is chained to them.
//! - Calls to the store are polled here first, too; those that wait get a task. What tasks come to is reported over one channel.
//!
//! Whatever happens to the pump, what the store has not heard is owed to it: see [`Records::put_down`].

mod bench;
mod calls;
#[cfg(feature = "simulator")]
mod dry;
mod ends;
mod letters;
mod periods;
mod runs;
mod said;
mod slab;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, mpsc as std_mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::handling::{Drive, Failure, Few, Handed, Handling};
use super::link::{Delivered, Drained, Input, Line, Request};
use super::observe::{Probe, Watch};
use super::summary::Tally;
use crate::engine::{
    Answer, Arrival, Cause, Command, Config, Ending, Engine, Event, Order, Ran, Start, Ticket, Time, Verdict,
};
use crate::frontier::Epoch;
use crate::retry::Retry;
use crate::wrapper::ErrorClass;
use crate::wrapper::Stage;
use crate::wrapper::drive::{Call, ClaimReply, Ended, Fault, Records, SettleReply, refused};
use bench::{Bench, Chain, Outcome, Place, Stopwatch, Waiting};
#[cfg(feature = "simulator")]
pub use dry::dry_run;
pub(super) use letters::{Letter, Letters, Sending, Undelivered};
use periods::Periods;
use said::Said;
use slab::{Entry, Slab, Trouble};

/// For how long the pump goes on without letting other tasks have a turn.
const STINT: Duration = Duration::from_micros(200);
/// Messages taken in before the engine is told. What is in hand in one turn stays in the processor's cache; what waits, waits in its batch.
const MESSAGES: usize = 1024;
/// Reports taken in before the engine is told.
const REPORTS: usize = 1024;
/// Turns in a row that what is in hand is brought further before more is taken in: revocations and the end come in, too.
const ROUNDS: u32 = 8;
/// Handlers in tasks wake the pump one by one, and those that waited for the same tick end together: where fewer than so many said how they ended, …
const FEW: usize = 16;
/// … and more than so many run, the others are let say so first.
const CROWD: usize = 64;

/// What a pump works with.
pub(super) struct Setup {
    pub(super) config: Config,
    /// How long failed messages wait.
    pub(super) retry: Retry,
    /// Where messages go that are given up, if anywhere.
    pub(super) letters: Option<Arc<dyn Letters>>,
    /// To the Kafka thread.
    pub(super) line: Line,
    /// Who is told what happens.
    pub(super) probe: Probe,
    /// For how long the store is told at the end what it has not heard.
    pub(super) drain: Duration,
}

/// What a task of the pump's says.
#[derive(Debug)]
enum Report {
    Ran(Few<(Ticket, Outcome)>),
    /// `None`: the call was lost.
    Claimed(Option<Box<ClaimReply>>),
    Settled(Option<Box<SettleReply>>),
    Lettered(Vec<(Ticket, Result<(), Undelivered>)>),
}

/// Says something when it is dropped, whatever happens to the task that it is in.
struct Saying {
    to: mpsc::UnboundedSender<Report>,
    what: Option<Report>,
}

impl Saying {
    fn instead(&mut self, what: Report) {
        self.what = Some(what);
    }
}

impl Drop for Saying {
    fn drop(&mut self) {
        if let Some(what) = self.what.take() {
            let _ = self.to.send(what);
        }
    }
}

/// The last thing that a pump says, however it ends.
struct Farewell(Line);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.ask(Request::Gone);
    }
}

/// Starts the pump of one consumer. It ends when it has answered [`Input::Close`] and told the store what that had not heard, or
/// when nobody is left to send inputs; aborted, it drops handlers where they wait.
pub(super) fn start<H: Handling>(
    runtime: &Handle,
    handling: Arc<H>,
    setup: Setup,
    inputs: mpsc::UnboundedReceiver<Input>,
) -> JoinHandle<Tally> {
    let drain = setup.drain;
    let farewell = Farewell(setup.line.clone());
    // Unconstrained: handlers polled here are not to wait because others have used up the task's budget. The pump lets others
    // have their turn by the clock.
    runtime.spawn(tokio::task::unconstrained(async move {
        let probe = setup.probe.clone();
        let pump = Pump::new(Arc::clone(&handling), setup, inputs);
        let bench = Bench::new({
            let handling = Arc::clone(&handling);
            move |messages| {
                let sight = probe.sight(&messages);
                sight.at(H::run(Arc::clone(&handling), messages))
            }
        });
        let mut tally = work(pump, bench).await;
        tally.unsettled = handling.records().finish(drain).await;
        drop(farewell);
        tally
    }))
}

/// A call to the store that is out.
struct Out {
    tickets: Vec<Ticket>,
    task: Option<AbortHandle>,
    sent: std::time::Instant,
}

struct Pump<H: Drive> {
    handling: Arc<H>,
    engine: Engine,
    batched: bool,
    by_key: bool,
    /// Those that have to stay in order say so to a call of many.
    rows: bool,
    retry: Retry,
    attempts: NonZeroU32,
    letters: Option<Arc<dyn Letters>>,
    line: Line,
    inputs: mpsc::UnboundedReceiver<Input>,
    reports: mpsc::UnboundedReceiver<Report>,
    report: mpsc::UnboundedSender<Report>,
    began: Instant,
    now: Time,
    slab: Slab<<H::Records as Records>::State>,
    periods: Periods,
    /// What the engine is to be told, in order.
    events: Vec<Event>,
    commands: Vec<Command>,
    claiming: Option<Out>,
    settling: Option<Out>,
    place: Place,
    /// Revocations that are to be answered.
    revokes: Vec<(Vec<Epoch>, std_mpsc::Sender<Drained>)>,
    close: Option<std_mpsc::Sender<Drained>>,
    closed: bool,
    /// The consumer was asked to end.
    stopped: bool,
    hasher: foldhash::fast::RandomState,
    rolls: u64,
    tally: Tally,
    watch: Watch,
    said: Said,
}

/// Turns until all is over.
async fn work<H, R, Fut>(mut pump: Pump<H>, mut bench: Bench<R, Fut>) -> Tally
where
    H: Drive,
    R: Fn(Few<Handed>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Few<Ended>> + Send + 'static,
{
    let mut timer = pin!(tokio::time::sleep_until(pump.began));
    let mut armed = None;
    let mut input = None;
    let mut reports = Vec::with_capacity(REPORTS);
    let mut rested = std::time::Instant::now();
    let mut rounds = 0;
    loop {
        pump.now = pump.began.elapsed();
        // What is in hand comes to its end first: more of it would only fill the tables, and the processor's cache.
        rounds = if pump.events.is_empty() || rounds >= ROUNDS { 0 } else { rounds + 1 };
        pump.take(&mut input, &mut reports, rounds == 0);
        pump.tell_engine();
        pump.carry_out(&mut bench);
        if pump.closed {
            return std::mem::take(&mut pump.tally);
        }
        pump.watch.turn(|| (pump.engine.snapshot(), pump.tally));
        if !pump.events.is_empty() {
            if rested.elapsed() > STINT {
                tokio::task::yield_now().await;
                rested = std::time::Instant::now();
            }
            continue;
        }
        let wake = pump.wake_at();
        if wake != armed {
            armed = wake;
            if let Some(at) = wake {
                timer.as_mut().reset(pump.began + at);
            }
        }
        tokio::select! {
            biased;
            taken = pump.inputs.recv() => {
                if taken.is_none() {
                    debug!("the Kafka thread is gone: the pump ends");
                    return std::mem::take(&mut pump.tally);
                }
                input = taken;
            }
            said = pump.reports.recv_many(&mut reports, REPORTS) => {
                if said < FEW && pump.engine.running() > CROWD {
                    // Dropped while it waits, it would forget what ended a moment ago.
                    pump.hear(&mut reports);
                    // The Kafka thread is heard next, as after any wait.
                    rounds = ROUNDS;
                    tokio::task::yield_now().await;
                }
            }
            () = &mut timer, if wake.is_some() => {
                armed = None;
                pump.events.push(Event::Tick);
            }
        }
        rested = std::time::Instant::now();
    }
}

impl<H: Drive> Pump<H> {
    fn new(handling: Arc<H>, setup: Setup, inputs: mpsc::UnboundedReceiver<Input>) -> Self {
        let Setup { config, retry, letters, line, probe, .. } = setup;
        let (report, reports) = mpsc::unbounded_channel();
        Self {
            handling,
            batched: config.batch.is_some(),
            by_key: config.order == Order::Key,
            rows: config.batch.is_some() && config.order != Order::Unordered && !config.step_aside,
            attempts: NonZeroU32::new(config.max_attempts).unwrap_or(NonZeroU32::MIN),
            engine: Engine::new(config),
            retry,
            letters,
            line,
            inputs,
            reports,
            report,
            began: Instant::now(),
            now: Time::ZERO,
            slab: Slab::new(),
            periods: Periods::default(),
            events: Vec::new(),
            commands: Vec::new(),
            claiming: None,
            settling: None,
            place: Place::default(),
            revokes: Vec::new(),
            close: None,
            closed: false,
            stopped: false,
            hasher: foldhash::fast::RandomState::default(),
            rolls: 0,
            tally: Tally::default(),
            watch: probe.watch(),
            said: Said::default(),
        }
    }

    /// When to go on although nothing happens.
    fn wake_at(&self) -> Option<Time> {
        let shown = self.watch.wake_at().map(|at| Instant::from_std(at).saturating_duration_since(self.began));
        self.engine.wake_at().into_iter().chain(shown).min()
    }

    /// Any number, evenly distributed.
    fn random(&mut self) -> u64 {
        self.rolls += 1;
        self.hasher.hash_one(self.rolls)
    }

    /// Takes in what is waiting: what tasks report, and if wanted what the Kafka thread says.
    fn take(&mut self, input: &mut Option<Input>, reports: &mut Vec<Report>, inputs: bool) {
        let mut messages = if inputs { 0 } else { MESSAGES };
        while messages < MESSAGES
            && let Some(input) = input.take().or_else(|| self.inputs.try_recv().ok())
        {
            messages += self.input(input);
        }
        while reports.len() < REPORTS
            && let Ok(report) = self.reports.try_recv()
        {
            reports.push(report);
        }
        self.hear(reports);
    }

    /// Takes in what tasks reported.
    fn hear(&mut self, reports: &mut Vec<Report>) {
        let mut ran = Vec::new();
        for report in reports.drain(..) {
            match report {
                Report::Ran(outcomes) => self.ran(outcomes, &mut ran),
                Report::Claimed(reply) => self.claimed(reply),
                Report::Settled(reply) => self.settled(reply),
                Report::Lettered(answers) => self.lettered(answers),
            }
        }
        if !ran.is_empty() {
            self.events.push(Event::Ran(ran));
        }
    }

    /// Takes one in. Answers how many messages came with it.
    fn input(&mut self, input: Input) -> usize {
        let mut messages = 0;
        let time = |at: std::time::Instant, began: Instant| Instant::from_std(at).saturating_duration_since(began);
        let event = match input {
            Input::Assigned(assigned) => Event::Assigned(assigned),
            Input::Delivered(delivered) => {
                let arrivals = self.arrive(delivered);
                messages = arrivals.len();
                Event::Delivered(arrivals)
            }
            Input::Revoke { epochs, lost, by, answer } => {
                self.revokes.push((epochs.clone(), answer));
                Event::Revoke { epochs, lost, by: time(by, self.began) }
            }
            Input::Committed { positions, accepted } => Event::Committed { positions, accepted },
            Input::Close { by, answer } => {
                self.close = Some(answer);
                Event::Close { by: time(by, self.began) }
            }
        };
        self.events.push(event);
        messages
    }

    fn arrive(&mut self, delivered: Vec<Delivered>) -> Vec<Arrival> {
        let count: u64 = delivered.iter().map(|own| own.row.len()).sum();
        let mut arrivals = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        for Delivered { row, epoch } in delivered {
            let messages = row.messages();
            let period = self.periods.enter(epoch, messages.len());
            let (slab, hasher, by_key) = (&mut self.slab, &self.hasher, self.by_key);
            self.handling.records().look_row(messages, epoch, |message, subject, state| {
                let lane = if by_key { message.key().map(|key| hasher.hash_one(key)) } else { None };
                let offset = message.offset();
                let (attempt, begun_at) = (0, 0);
                let entry = Entry { message, state, period, attempt, begun_at, next: None, task: None, trouble: None };
                arrivals.push(Arrival { ticket: slab.insert(entry), epoch, offset, lane, subject });
            });
        }
        arrivals
    }

    fn tell_engine(&mut self) {
        for event in self.events.drain(..) {
            self.engine.handle(self.now, event, &mut self.commands);
        }
    }

    /// Does what the engine said. What comes of it at once is told to it next.
    fn carry_out<R, Fut>(&mut self, bench: &mut Bench<R, Fut>)
    where
        R: Fn(Few<Handed>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Few<Ended>> + Send + 'static,
    {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Claim(tickets) => self.claim(tickets),
                Command::Run(starts) => self.run(&starts, bench),
                Command::Settle(ends) => self.settle(&ends),
                Command::DeadLetter(dead) => self.dead_letter(&dead),
                Command::Halt(epochs) => self.periods.halt(&epochs),
                Command::Abort(tickets) => self.abort(&tickets),
                Command::Finished(finished) => self.finished(&finished),
                Command::Dropped(tickets) => self.dropped(&tickets),
                Command::Pause(epochs) => self.line.ask(Request::Pause(epochs)),
                Command::Resume(epochs) => self.line.ask(Request::Resume(epochs)),
                Command::Commit(positions) => self.line.ask(Request::Commit(positions)),
                Command::Revoked { epochs, commit, left } => self.revoked(&epochs, Drained { commit, left }),
                Command::Stop { ticket, cause } => self.stop_at(ticket, cause),
                Command::Closed { commit, left } => self.close(Drained { commit, left }),
            }
        }
        self.commands = commands;
    }
}
