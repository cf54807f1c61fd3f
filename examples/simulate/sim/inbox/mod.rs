//! The inbox: messages are accepted into a table of the simulated database, and workers on machines of their own work it.
//!
//! ```text
//!   transaction.rs  a batch is accepted: its rows appear when its transaction commits
//!   server.rs       what the database does for workers: take, hold, finish, sweep, in transactions with locks
//!   worker.rs       a worker: takes, runs handlers, finishes; loses replies, stands still, ends at any step
//!   operator.rs     somebody who requeues, skips, replays and purges
//! ```
//!
//! Where messages stand and what a run may take is decided by the crate's own rules, [`hapax::inbox::rules`].

mod operator;
mod server;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use hapax::Retry;
use hapax::inbox::rules::{Class, Standing};
use hapax::record::Millis;

use super::history::{Act, What};
use super::plan::{Fault, MS, Micros, Plan, SECOND};
use super::process::NONE;
use super::random::{Random, mix};
use super::world::World;

pub use worker::Worker;

/// What a seed decides of an inbox.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workers: usize,
    pub by_key: bool,
    /// Handlers run inside the transaction that moves the state: L2. If not, outside, under a lease: L1.
    pub inside: bool,
    /// Messages of one run.
    pub most: usize,
    pub lease: Micros,
    /// Ids that a process draws at once.
    pub block: i64,
    /// Messages with another priority; messages that are not to begin before a time.
    pub urgent: u32,
    pub timed: u32,
    /// What an operator does.
    pub acts: u32,
}

impl Settings {
    pub fn new(r: &mut Random) -> Self {
        Self {
            workers: r.between(1, 4) as usize,
            by_key: r.chance(6_500),
            inside: r.chance(6_000),
            most: r.pick(&[1, 3, 16, 64]),
            lease: r.between(8, 60) * 100 * MS,
            block: r.pick(&[3, 16, 64, 16_384]),
            urgent: r.pick(&[0, 0, 1_500]),
            timed: r.pick(&[0, 0, 700]),
            acts: r.pick(&[0, 2, 6]),
        }
    }
}

impl Plan {
    /// Workers end and stand still at times of their own.
    pub fn worker_faults(&mut self, r: &mut Random) {
        let Some(Settings { workers, lease, .. }) = self.inbox else { return };
        for _ in 0..r.pick(&[0, 1, 3, 6]) {
            let at = r.below(self.heal_at);
            let worker = r.index(workers);
            let fault = if r.chance(5_000) {
                Fault::WorkerCrash(worker)
            } else {
                Fault::WorkerPause(worker, r.between(SECOND / 4, 2 * lease + 2 * SECOND))
            };
            self.faults.push((at, fault));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// What a message is in order with in the inbox: its topic and key, or its partition.
    pub fn inbox_lane(&self, message: u32) -> i64 {
        let one = &self.messages[message as usize];
        let topic = u64::from(self.logs[one.partition].topic.as_bytes()[0]);
        let number = match one.lane {
            Some(lane) => (topic << 32) + u64::from(lane),
            None => (1 << 40) + one.partition as u64,
        };
        mix(number) as i64
    }

    /// The priority and the not-before time of a message.
    fn inbox_terms(&self, settings: &Settings, message: u32, now: Millis) -> (i16, Option<Millis>) {
        let random = &mut Random::new(self.seed ^ (u64::from(message) << 20));
        let priority = if random.chance(settings.urgent) { random.pick(&[-1, 1]) } else { 0 };
        let not_before = random.chance(settings.timed).then(|| now + random.below(4_000) as Millis);
        (priority, not_before)
    }
}

/// A message in the table. One that has succeeded keeps its row.
#[derive(Clone, Debug)]
pub struct Row {
    pub message: u32,
    pub lane: i64,
    pub standing: Standing,
    /// The transaction that has it locked.
    lock: u32,
}

/// How a message of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Succeeded,
    Failed { class: Class, random: u64 },
    Released,
}

/// A message in a worker's hands.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub id: i64,
    pub message: u32,
    pub generation: u32,
    pub lane: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct End {
    pub taken: Taken,
    pub how: How,
}

#[derive(Clone, Debug)]
struct RunRow {
    lease: Millis,
    ended: bool,
    /// By the worker that took it, rather than by a sweep.
    done: bool,
    lock: u32,
    taken: Vec<Taken>,
    /// Its worker was ended by a message of it.
    killed: bool,
}

/// A transaction of a worker, as the server sees it.
#[derive(Clone, Debug, Default)]
struct Tx {
    over: bool,
    /// The run that was taken or finished by it, once it is committed.
    committed: Option<i64>,
    chosen: Vec<i64>,
    rows: Vec<i64>,
    run: Option<i64>,
    ends: Vec<End>,
}

/// What a worker asks of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// Rows chosen and locked; then written.
    Take,
    TakeCommit,
    /// What became of a take whose commit was not answered.
    Mine(u32),
    Hold,
    Finish,
    Commit,
    /// What became of a finish whose commit was not answered.
    Ended,
    Prolong,
    /// The same as hold, finish and commit, for handlers outside.
    Conclude,
    Sweep,
}

impl Ask {
    /// Whether it is a statement of an open transaction.
    const fn is_within(self) -> bool {
        matches!(self, Self::Take | Self::TakeCommit | Self::Hold | Self::Finish | Self::Commit)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Done,
    /// There is nothing to take.
    Nothing,
    Run(i64),
    /// Taken over, or rolled back.
    Gone,
    Aborted,
    Lost,
}

#[derive(Clone, Debug)]
struct Call {
    worker: usize,
    serial: u32,
    ask: Ask,
    run: i64,
    ends: Vec<End>,
    tx: u32,
    heard: bool,
    until: Micros,
    said: Said,
}

#[derive(Debug)]
pub struct Inbox {
    pub settings: Settings,
    pub rows: BTreeMap<i64, Row>,
    next_id: i64,
    runs: Vec<RunRow>,
    /// Who takes, in key order: one at a time.
    taker: u32,
    txs: Vec<Tx>,
    calls: Vec<Call>,
    pub workers: Vec<Worker>,
    pub acts_left: u32,
    retry: Retry,
}

impl Inbox {
    pub fn new(plan: &Plan, settings: &Settings, longest: u64) -> Self {
        Self {
            rows: BTreeMap::new(),
            next_id: 1,
            runs: Vec::new(),
            taker: NONE,
            txs: Vec::new(),
            calls: Vec::new(),
            workers: (0..settings.workers).map(|_| Worker::default()).collect(),
            acts_left: settings.acts,
            retry: Retry::exponential(Duration::from_micros(longest.min(2 * SECOND)))
                .attempts(plan.config.max_attempts),
            settings: settings.clone(),
        }
    }

    /// A block of ids.
    pub fn draw(&mut self) -> (i64, i64) {
        let first = self.next_id;
        self.next_id += self.settings.block;
        (first, self.next_id)
    }

    /// Whether nothing is left to do.
    pub fn is_drained(&self) -> bool {
        self.acts_left == 0 && self.rows.values().all(|row| row.standing.state().is_final())
    }
}

impl World {
    /// An accepted message is there for all to see.
    pub fn inbox_accept(&mut self, process: usize, message: u32, id: i64) {
        let now = self.store.now(self.now);
        let Some(inbox) = &mut self.inbox else { return };
        let (priority, not_before) = self.plan.inbox_terms(&inbox.settings, message, now);
        let standing = Standing::accepted(priority, not_before, now);
        let lane = self.plan.inbox_lane(message);
        inbox.rows.insert(id, Row { message, lane, standing, lock: NONE });
        self.log(process, What::Inbox { message, run: 0, act: Act::Accepted { id } });
        self.wake_workers();
    }

    /// The next id that a process gives: of a block drawn since its last assignment.
    pub fn inbox_id(&mut self, process: usize) -> i64 {
        let Some(inbox) = &mut self.inbox else { return 0 };
        let ids = &mut self.processes[process].ids;
        let (next, end) = match *ids {
            Some((next, end)) if next < end => (next, end),
            _ => inbox.draw(),
        };
        *ids = Some((next + 1, end));
        next
    }
}
