//! The world: what happens when, to whom, and the end of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU32;
use std::time::Duration;

use hapax::engine::{Command, Config, Event, OnDead};

use super::check::{Checker, Policy};
use super::database::Database;
use super::flaws::{DriverFlaw, Flaws};
use super::group::{Group, Response};
use super::history::{Entry, Violation, What};
use super::inbox::Inbox;
use super::kafka::Commit;
use super::letters::Letters;
use super::plan::{MS, Micros, Plan, SECOND, Weather};
use super::process::Process;
use super::random::Random;
use super::store::{Call, Store};
use super::transaction::{Job, Said, Tx};

/// How long everything may take to drain once the faults have stopped.
const PATIENCE: Micros = 900 * SECOND;
/// Events after which a world is held to go round in circles.
const MOST_EVENTS: u64 = 3_000_000;

/// To whom an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sent {
    /// Something outside, on behalf of a process that may be gone.
    World(u32),
    /// A process: waits while that stands still, and is nothing to it when it is gone.
    To(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    Tick,
    Poll,
    Heartbeat,
    Requests,
    Renew,
    Ran,
    Run { at: u32, serial: u32, end: bool },
    Abort { at: u32, serial: u32 },
    CallReplied(u32),
    CallFailed(u32),
    Lettered { index: u32, acknowledged: bool },
    Committed { index: u32, accepted: bool },
    Response(u32),
    Drained,
    Overdue(u32),
    Close,
    Said { tx: u32, serial: u32, said: Said },
    Job(u32),
    Doubt(u32),
    Raise { partition: u32, epoch: u32 },
    InboxArrives(u32),
    InboxSaid(u32),
    InboxDrop(u32),
    WorkerStart(u32),
    WorkerGo { worker: u32, serial: u32 },
    WorkerHandled { worker: u32, serial: u32 },
    WorkerRenews { worker: u32, serial: u32 },
    Operate,
    Statement { tx: u32, serial: u32 },
    LockTimeout { tx: u32, serial: u32 },
    DropTx(u32),
    CallArrives(u32),
    LettersArrive(u32),
    CommitArrives(u32),
    Fault(u32),
    Produce,
    Resume,
    Group,
    Start(u32),
    Heal,
    Deadline,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub process: Option<usize>,
    /// Whoever ends here is started again.
    pub wanted: bool,
}

#[derive(Debug)]
pub struct World {
    pub plan: Plan,
    pub flaws: Flaws,
    pub random: Random,
    pub now: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64, Sent, Happening)>>,
    sequence: u64,
    pub events: u64,
    pub history: Vec<Entry>,
    pub checker: Checker,
    pub violation: Option<Violation>,
    /// With what engines were told and answered.
    pub verbose: Option<Vec<String>>,
    pub logging: Vec<(u32, What)>,
    commands: Vec<Command>,

    pub weather: Weather,
    pub is_healed: bool,
    is_over: bool,
    stopped: bool,
    pub crashes: u64,
    pub crashes_left: u32,
    pub retry_longest: u64,

    pub processes: Vec<Process>,
    pub places: Vec<Place>,
    pub next_epoch: u32,
    pub calls_begun: u32,

    pub store: Store,
    /// Until then a lease may have run out for a reason.
    pub excuse: Micros,
    pub calls: Vec<Call>,
    pub free_calls: Vec<u32>,
    pub db: Database,
    pub txs: Vec<Tx>,
    pub jobs: Vec<Job>,
    pub inbox: Option<Inbox>,

    /// Messages produced so far, by partition.
    pub visible: Vec<usize>,
    pub produced: usize,
    pub committed: Vec<i64>,
    /// Where each log begins.
    pub begins: Vec<i64>,
    /// Places up to which each was delivered, to whom: for a flaw.
    pub delivered: Vec<(usize, usize)>,
    pub commits: Vec<Commit>,
    pub letters: Vec<Letters>,
    pub group: Group,
    pub responses: Vec<Response>,
    pub broker_down_until: Micros,
    pub downstream_down_until: Micros,
}

impl World {
    pub fn new(plan: Plan, flaws: Flaws, verbose: bool) -> Self {
        let mut random = Random::new(plan.seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 0x1405_7b7e_f767_814f);
        let attempts = NonZeroU32::new(plan.config.max_attempts).unwrap_or(NonZeroU32::MIN);
        let retry_longest = random.pick(&[10 * MS, 300 * MS, 2 * SECOND]);
        Self {
            inbox: plan.inbox.as_ref().map(|settings| Inbox::new(&plan, settings, retry_longest)),
            flaws,
            now: 0,
            queue: BinaryHeap::with_capacity(512),
            sequence: 0,
            events: 0,
            history: Vec::with_capacity(4_096),
            checker: Checker::new(&plan),
            violation: None,
            verbose: verbose.then(Vec::new),
            logging: Vec::new(),
            commands: Vec::new(),
            weather: plan.weather,
            is_healed: false,
            is_over: false,
            stopped: false,
            crashes: 0,
            crashes_left: 8,
            retry_longest,
            processes: Vec::new(),
            places: vec![Place::default(); plan.places],
            next_epoch: 0,
            calls_begun: 0,
            store: Store {
                records: vec![None; plan.identities],
                ahead: 0,
                down_until: 0,
                lease: Duration::from_micros(plan.lease),
                max_attempts: attempts,
            },
            excuse: 0,
            calls: Vec::new(),
            free_calls: Vec::new(),
            db: Database::new(&plan),
            txs: Vec::new(),
            jobs: Vec::new(),
            visible: vec![0; plan.logs.len()],
            produced: 0,
            committed: vec![0; plan.logs.len()],
            begins: vec![0; plan.logs.len()],
            delivered: vec![(0, 0); plan.logs.len()],
            commits: Vec::new(),
            letters: Vec::new(),
            group: Group::default(),
            responses: Vec::new(),
            broker_down_until: 0,
            downstream_down_until: 0,
            random,
            plan,
        }
    }

    /// Lets everything happen, to the end.
    pub fn live(&mut self) {
        for place in 0..self.plan.members {
            self.places[place].wanted = true;
            let delay = self.random.below(SECOND);
            self.at(delay, Sent::World(0), Happening::Start(place as u32));
        }
        for at in 0..self.plan.faults.len() {
            self.at(self.plan.faults[at].0, Sent::World(0), Happening::Fault(at as u32));
        }
        self.start_workers();
        self.at(0, Sent::World(0), Happening::Produce);
        self.at(0, Sent::World(0), Happening::Group);
        self.at(self.plan.heal_at, Sent::World(0), Happening::Heal);
        let last = self.plan.heal_at.max(self.plan.produced_at());
        self.at(last + PATIENCE, Sent::World(0), Happening::Deadline);
        while let Some(Reverse((at, _, to, what))) = self.queue.pop() {
            self.now = self.now.max(at);
            self.events += 1;
            if self.events > MOST_EVENTS {
                self.violate("liveness", format!("{MOST_EVENTS} events, and no end"));
            }
            self.happen(to, what);
            if self.violation.is_some() || (self.is_over && self.places.iter().all(|place| place.process.is_none())) {
                break;
            }
        }
        if self.violation.is_none() {
            self.look_at_what_is_left();
        }
    }

    pub fn at(&mut self, at: Micros, to: Sent, what: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, to, what)));
    }

    fn happen(&mut self, to: Sent, what: Happening) {
        match to {
            Sent::World(process) => self.happen_outside(process as usize, what),
            Sent::To(process) => {
                let process = process as usize;
                let one = &mut self.processes[process];
                if !one.alive {
                    self.forget(&what);
                } else if self.now < one.paused_until || !one.deferred.is_empty() {
                    let until = one.paused_until;
                    one.deferred.push(what);
                    if one.deferred.len() == 1 {
                        self.at(until, Sent::World(process as u32), Happening::Resume);
                    }
                } else {
                    self.happen_inside(process, what);
                }
            }
        }
    }

    /// A process that stood still finds all that happened meanwhile, in order.
    fn resume(&mut self, process: usize) {
        let until = self.processes[process].paused_until;
        if self.now < until {
            self.at(until, Sent::World(process as u32), Happening::Resume);
            return;
        }
        for what in std::mem::take(&mut self.processes[process].deferred) {
            if self.processes[process].alive {
                self.happen_inside(process, what);
            } else {
                self.forget(&what);
            }
        }
    }

    fn happen_inside(&mut self, process: usize, what: Happening) {
        match what {
            Happening::Tick => self.tick(process),
            Happening::Poll => self.poll(process),
            Happening::Heartbeat => self.heartbeat(process),
            Happening::Requests => self.serve(process),
            Happening::Renew => self.renew(process),
            Happening::Ran => {
                self.processes[process].ran_armed = false;
                let ran = std::mem::take(&mut self.processes[process].ran);
                if !ran.is_empty() {
                    self.feed(process, Event::Ran(ran));
                }
            }
            Happening::Run { at, serial, end } => self.run_goes_on(process, at, serial, end),
            Happening::Abort { at, serial } => {
                let run = &self.processes[process].runs[at as usize];
                if run.live && run.serial == serial {
                    self.abort_run(process, at);
                }
            }
            Happening::CallReplied(call) => self.call_replied(process, call),
            Happening::CallFailed(call) => self.call_failed(process, call),
            Happening::Lettered { index, acknowledged } => self.lettered(process, index, acknowledged),
            Happening::Committed { index, accepted } => self.commit_answered(process, index, accepted),
            Happening::Response(index) => self.response(process, index),
            Happening::Drained => self.drained(process),
            Happening::Overdue(serial) => self.overdue(process, serial),
            Happening::Close => self.close(process),
            Happening::Said { tx, serial, said } => self.said(process, tx, serial, said),
            Happening::Job(job) => self.job_goes_on(job),
            Happening::Doubt(tx) => self.read_again(tx),
            Happening::Raise { partition, epoch } => self.raise(process, partition as usize, epoch),
            _ => {}
        }
    }

    fn happen_outside(&mut self, process: usize, what: Happening) {
        match what {
            Happening::CallArrives(call) => self.call_arrives(call),
            Happening::LettersArrive(index) => self.letters_arrive(process, index),
            Happening::CommitArrives(index) => self.commit_arrives(process, index),
            Happening::InboxArrives(call) => self.inbox_arrives(call),
            Happening::InboxSaid(call) => self.inbox_said(call),
            Happening::InboxDrop(tx) => self.inbox_drop(tx),
            Happening::WorkerStart(worker) => self.worker_starts(worker as usize),
            Happening::WorkerGo { worker, serial } => self.worker_goes(worker as usize, serial),
            Happening::WorkerHandled { worker, serial } => self.worker_handled(worker as usize, serial),
            Happening::WorkerRenews { worker, serial } => self.worker_renews(worker as usize, serial),
            Happening::Operate => self.operate(),
            Happening::Statement { tx, serial } => self.statement(tx, serial),
            Happening::LockTimeout { tx, serial } => self.lock_timeout(tx, serial),
            Happening::DropTx(tx) => self.drop_tx(tx),
            Happening::Fault(at) => self.strike(self.plan.faults[at as usize].1),
            Happening::Produce => self.produce(),
            Happening::Resume => self.resume(process),
            Happening::Group => {
                self.look_at_group();
                self.at(self.now + 300 * MS, Sent::World(0), Happening::Group);
            }
            Happening::Start(place) => self.start(place as usize),
            Happening::Heal => self.heal(),
            Happening::Deadline => self.overdue_all(),
            _ => {}
        }
    }

    /// Tells an engine what happened, and does what it says.
    pub fn feed(&mut self, process: usize, event: Event) {
        let mut commands = std::mem::take(&mut self.commands);
        let one = &mut self.processes[process];
        let now = Duration::from_micros(self.now + one.ahead);
        if let Some(lines) = &mut self.verbose {
            lines.push(format!("{:>12.3} ms  p{process:<3}   <- {event:?}", self.now as f64 / 1_000.0));
        }
        one.engine.handle(now, event, &mut commands);
        for command in commands.drain(..) {
            if let Some(lines) = &mut self.verbose {
                lines.push(format!("{:>12.3} ms  p{process:<3}   -> {command:?}", self.now as f64 / 1_000.0));
            }
            if self.processes[process].alive {
                self.carry_out(process, command);
            }
        }
        self.commands = commands;
        self.arm_tick(process);
    }

    fn arm_tick(&mut self, process: usize) {
        let one = &mut self.processes[process];
        if !one.alive {
            return;
        }
        let Some(wake) = one.engine.wake_at() else { return };
        let wake = u64::try_from(wake.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
        let at = wake.saturating_sub(one.ahead).max(self.now);
        if at < u64::MAX / 2 && one.tick_at.is_none_or(|armed| at < armed) {
            one.tick_at = Some(at);
            self.at(at, Sent::To(process as u32), Happening::Tick);
        }
    }

    fn tick(&mut self, process: usize) {
        let one = &mut self.processes[process];
        if one.tick_at.is_none_or(|armed| armed > self.now) {
            return;
        }
        one.tick_at = None;
        let now = Duration::from_micros(self.now + one.ahead);
        if one.engine.wake_at().is_some_and(|wake| wake <= now) {
            self.feed(process, Event::Tick);
            let one = &mut self.processes[process];
            one.ticks_now = if one.tick_at == Some(self.now) { one.ticks_now + 1 } else { 0 };
            if one.ticks_now > 100 {
                self.violate(
                    "liveness",
                    format!("the engine of process {process} asks for a tick now, again and again"),
                );
            }
        } else {
            self.arm_tick(process);
        }
    }

    pub fn log(&mut self, process: usize, what: What) {
        let entry = Entry { at: self.now, process: process as u32, what };
        self.history.push(entry);
        if let Some(lines) = &mut self.verbose {
            lines.push(entry.to_string());
        }
        if let Err(violation) = self.checker.observe(&self.plan, process as u32, &what)
            && self.violation.is_none()
        {
            self.violation = Some(violation);
        }
    }

    /// Writes what was noted while a process was borrowed.
    pub fn log_all(&mut self) {
        let mut noted = std::mem::take(&mut self.logging);
        noted.drain(..).for_each(|(process, what)| self.log(process as usize, what));
        self.logging = noted;
    }

    pub fn violate(&mut self, invariant: &'static str, text: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, text });
        }
    }

    fn start(&mut self, place: usize) {
        if self.is_over || !self.places[place].wanted || self.places[place].process.is_some() {
            return;
        }
        let mut config = Config { flaw: self.flaws.engine, ..self.plan.config.clone() };
        if self.is_healed && self.stopped {
            // An operator who is to get on.
            config.on_dead = OnDead::Letter;
            config.retries = true;
        }
        let process = self.processes.len();
        let (owner, ahead) = (self.random.next(), self.random.below(1_000 * SECOND));
        self.checker.process(Policy { on_dead: config.on_dead, conflicts: config.conflicts });
        self.processes.push(Process::new(place, owner, config, ahead, self.plan.logs.len()));
        self.places[place].process = Some(process);
        self.log(process, What::Started { place: place as u32 });
        let delay = self.random.below(100 * MS);
        self.at(self.now + delay, Sent::To(process as u32), Happening::Heartbeat);
    }

    /// Ends a process at once. What it sent is on its way.
    pub fn crash(&mut self, process: usize) {
        self.crashes += 1;
        self.log(process, What::Crashed);
        self.vacate(process);
    }

    /// At some steps a process ends, by the seed.
    pub fn crash_at_step(&mut self, process: usize) -> bool {
        if self.crashes_left == 0 || !self.random.chance(self.weather.crash_at_step) {
            return false;
        }
        self.crashes_left -= 1;
        self.crash(process);
        true
    }

    /// A process is gone.
    pub fn vacate(&mut self, process: usize) {
        let place = self.processes[process].place;
        self.stopped |= self.processes[process].kafka.close_wanted && self.places[place].wanted;
        self.processes[process].end();
        self.drop_txs(process);
        self.places[place].process = None;
        if self.places[place].wanted && !self.is_over {
            let delay = self.random.between(50 * MS, 2 * SECOND);
            self.at(self.now + delay, Sent::World(0), Happening::Start(place as u32));
        }
    }

    /// Whether everything is committed: then all processes are closed.
    pub fn look_for_end(&mut self) {
        if self.is_over || self.produced < self.plan.messages.len() {
            return;
        }
        let lags = self.lags();
        if lags.iter().any(|lag| *lag > 0) || self.inbox.as_ref().is_some_and(|inbox| !inbox.is_drained()) {
            return;
        }
        self.is_over = true;
        for place in 0..self.places.len() {
            self.places[place].wanted = false;
            if let Some(process) = self.places[place].process {
                self.at(self.now, Sent::To(process as u32), Happening::Close);
            }
        }
    }

    /// Messages behind each committed offset.
    fn lags(&self) -> Vec<usize> {
        let lag = |(at, log): (usize, &super::plan::Log)| {
            // Where there is a window, it says where to go on.
            let committed = self.committed[at].max(self.db.mark(at).unwrap_or(0)).max(self.begins[at]);
            let behind = |message: &&u32| self.plan.messages[**message as usize].offset >= committed;
            log.messages.iter().rev().take_while(behind).count()
        };
        self.plan.logs.iter().enumerate().map(lag).collect()
    }

    fn overdue_all(&mut self) {
        let states: Vec<String> = self
            .places
            .iter()
            .filter_map(|place| place.process)
            .map(|process| {
                let one = &self.processes[process];
                format!("process {process}: {:?}, {:?}", one.kafka.busy, one.engine.snapshot())
            })
            .collect();
        let text = format!(
            "{} s after the last fault: lags {:?}, records open {:?}; {}",
            PATIENCE / SECOND,
            self.lags(),
            self.checker.open(&self.plan),
            states.join("; ")
        );
        self.violate("liveness", text);
    }

    fn look_at_what_is_left(&mut self) {
        let open = self.checker.open(&self.plan);
        if !open.is_empty() && self.flaws.driver != Some(DriverFlaw::JoinedKey) {
            self.violate(
                "liveness",
                format!("identities {open:?} are neither succeeded nor dead, and nobody will look at them again"),
            );
        }
        self.look_at_windows();
        if self.lags().iter().any(|lag| *lag > 0) {
            self.violate("liveness", format!("nothing happens any more, and lags are {:?}", self.lags()));
        }
    }
}
