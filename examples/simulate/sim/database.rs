//! The database of transactional handling: records by the crate's pure rules, a row for each partition's window, locks, and transactions that
//! commit all they wrote or nothing.

use std::num::NonZeroU32;
use std::time::Duration;

use hapax::record::{self, ClaimOutcome, Millis, Owner, Record, Settle, Sighting, State, Terms, Verdict};
use hapax::window::{Moves, Window};

use super::flaws::DriverFlaw;
use super::history::{Recorded, What};
use super::plan::{MS, Micros, Plan};
use super::process::NONE;
use super::transaction::{Item, Now, Said, Step};
use super::world::{Happening, Sent, World};

/// A window as it is written.
#[derive(Clone, Debug)]
pub struct WindowRow {
    pub fence: u64,
    pub next: i64,
    pub state: Vec<u8>,
}

/// What is locked until a transaction is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    Record(u32),
    Window(usize),
}

#[derive(Debug)]
pub struct Database {
    pub records: Vec<Option<Record>>,
    pub windows: Vec<Option<WindowRow>>,
    /// Who holds what.
    record_locks: Vec<u32>,
    window_locks: Vec<u32>,
    /// Transactions whose statement waits for a lock, in the order they came.
    waiting: Vec<u32>,
    max_attempts: NonZeroU32,
}

/// A transaction, as the server sees it.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Committed, or rolled back.
    pub over: bool,
    pub committed: bool,
    locks: Vec<Lock>,
    /// What it would write: records, windows, effects.
    records: Vec<(u32, Option<Record>)>,
    windows: Vec<(usize, WindowRow)>,
    effects: Vec<(u32, u32)>,
    /// What the inbox knows them by.
    ids: Vec<i64>,
    /// Messages given up, and those that failed.
    buried: Vec<u32>,
    failed: Vec<u32>,
}

impl Database {
    pub fn new(plan: &Plan) -> Self {
        Self {
            records: vec![None; plan.identities],
            windows: vec![None; plan.logs.len()],
            record_locks: vec![NONE; plan.identities],
            window_locks: vec![NONE; plan.logs.len()],
            waiting: Vec::new(),
            max_attempts: NonZeroU32::new(plan.config.max_attempts).unwrap_or(NonZeroU32::MIN),
        }
    }

    /// `false` if somebody else holds it.
    fn lock(&mut self, tx: u32, lock: Lock, held: &mut Vec<Lock>) -> bool {
        let place = match lock {
            Lock::Record(key) => &mut self.record_locks[key as usize],
            Lock::Window(partition) => &mut self.window_locks[partition],
        };
        if *place == tx {
            return true;
        }
        if *place != NONE {
            return false;
        }
        *place = tx;
        held.push(lock);
        true
    }

    fn unlock(&mut self, held: &mut Vec<Lock>) {
        for lock in held.drain(..) {
            match lock {
                Lock::Record(key) => self.record_locks[key as usize] = NONE,
                Lock::Window(partition) => self.window_locks[partition] = NONE,
            }
        }
    }

    /// The mark of a partition's window.
    pub fn mark(&self, partition: usize) -> Option<i64> {
        self.windows[partition].as_ref().map(|row| row.next)
    }
}

fn sighting(plan: &Plan, message: u32, key: u32) -> Sighting {
    let one = &plan.messages[message as usize];
    Sighting { key: Plan::key(key), fingerprint: Plan::fingerprint(one.body), origin: plan.origin(message) }
}

impl World {
    /// A statement arrives, or its turn for a lock comes.
    pub fn statement(&mut self, tx: u32, serial: u32) {
        let one = &self.txs[tx as usize];
        if one.serial != serial {
            return;
        }
        if one.server.over {
            return self.reply(tx, Said::Lost);
        }
        if self.now < self.store.down_until {
            // The server is gone, and all that was open with it.
            self.roll_back(tx);
            return self.reply(tx, Said::Lost);
        }
        if one.step != Step::Verify && one.step != Step::Raise && self.random.chance(self.weather.aborts) {
            self.roll_back(tx);
            self.reply(tx, Said::Aborted);
            return;
        }
        if !self.try_statement(tx) {
            self.db.waiting.push(tx);
            let wait = self.plan.lock_wait;
            self.at(self.now + wait, Sent::World(NONE), Happening::LockTimeout { tx, serial });
        }
    }

    /// A lock was not given in time.
    pub fn lock_timeout(&mut self, tx: u32, serial: u32) {
        let waits = self.db.waiting.iter().position(|other| *other == tx);
        if let Some(at) = waits
            && self.txs[tx as usize].serial == serial
        {
            self.db.waiting.remove(at);
            self.roll_back(tx);
            self.reply(tx, Said::TimedOut);
        }
    }

    /// The server is killed: what was open is gone, what was committed stays.
    pub fn kill_database(&mut self) {
        for tx in 0..self.txs.len() as u32 {
            self.drop_tx(tx);
        }
        self.inbox_drop_all();
    }

    /// The connection of a transaction is found to be gone.
    pub fn drop_tx(&mut self, tx: u32) {
        if self.txs[tx as usize].server.over {
            return;
        }
        let waits = self.db.waiting.contains(&tx);
        self.roll_back(tx);
        if waits {
            self.reply(tx, Said::Lost);
        }
    }

    fn roll_back(&mut self, tx: u32) {
        self.db.waiting.retain(|other| *other != tx);
        let server = &mut self.txs[tx as usize].server;
        server.over = true;
        let mut locks = std::mem::take(&mut server.locks);
        self.db.unlock(&mut locks);
        self.wake();
    }

    /// Gives locks that became free to those who wait, first come first served.
    fn wake(&mut self) {
        let mut at = 0;
        while let Some(tx) = self.db.waiting.get(at).copied() {
            if self.try_statement(tx) {
                self.db.waiting.retain(|other| *other != tx);
                at = 0;
            } else {
                at += 1;
            }
        }
    }

    /// The answer goes back, if anybody still hears it.
    fn reply(&mut self, tx: u32, said: Said) {
        let one = &self.txs[tx as usize];
        if !one.heard {
            return;
        }
        let (process, serial) = (one.process as u32, one.serial);
        let back = self.random.between(50, self.plan.round_trip);
        self.at(self.now + back, Sent::To(process), Happening::Said { tx, serial, said });
    }

    /// Does what a statement says, if it gets its locks.
    fn try_statement(&mut self, tx: u32) -> bool {
        let one = &self.txs[tx as usize];
        let (step, doubted) = (one.step, one.doubted);
        let of = doubted.unwrap_or(tx);
        let mut wanted: Vec<Lock> = Vec::new();
        let items = &self.txs[of as usize].items;
        // The window alone says what became of a commit: whoever waits for its gate may hold the records.
        let by_records = !self.plan.memory.window() || self.flaws.driver == Some(DriverFlaw::DoubtLocksRecords);
        if step == Step::Open || (step == Step::Verify && by_records) {
            wanted.extend(items.iter().filter_map(|item| item.key.map(Lock::Record)));
        }
        if matches!(step, Step::Move | Step::Verify) && self.plan.memory.window() {
            wanted.extend(items.iter().map(|item| Lock::Window(item.partition)));
        }
        if let Step::Raise = step {
            wanted.push(Lock::Window(one.raise.partition));
        }
        wanted.sort_unstable_by_key(|lock| match lock {
            Lock::Record(key) => (0, u64::from(*key)),
            Lock::Window(partition) => (1, *partition as u64),
        });
        wanted.dedup();
        let mut held = std::mem::take(&mut self.txs[tx as usize].server.locks);
        let all = wanted.into_iter().all(|lock| self.db.lock(tx, lock, &mut held));
        self.txs[tx as usize].server.locks = held;
        if !all {
            return false;
        }
        match step {
            Step::Open => {
                self.open(tx);
                self.reply(tx, Said::Done);
            }
            Step::Move => match self.move_windows(tx) {
                None => self.reply(tx, Said::Done),
                Some(partition) => {
                    self.roll_back(tx);
                    self.reply(tx, Said::Fenced(partition as u32));
                }
            },
            Step::Commit => {
                self.commit_tx(tx);
                self.reply(tx, Said::Done);
            }
            Step::Verify => {
                let said = if self.is_there(of) { Said::Done } else { Said::Aborted };
                self.roll_back(tx);
                self.reply(tx, said);
            }
            Step::Raise => {
                self.raise_row(tx);
                self.roll_back(tx);
                self.reply(tx, Said::Done);
            }
        }
        true
    }

    /// Identities inserted as succeeded; what stands is read.
    fn open(&mut self, tx: u32) {
        let now = self.store.now(self.now);
        let one = &mut self.txs[tx as usize];
        let owner = one.owner;
        let (mut items, mut server) = (std::mem::take(&mut one.items), std::mem::take(&mut one.server));
        for at in 0..items.len() {
            let earlier = items[at].key.and_then(|key| items[..at].iter().position(|other| other.key == Some(key)));
            let item = &mut items[at];
            item.stands = match (item.key, earlier) {
                _ if item.dead => self.bury_one(&mut server, item, now),
                (None, _) => Now::New { attempt: item.failures + 1 },
                (Some(_), Some(earlier)) => Now::After(earlier as u32),
                (Some(key), None) => self.insert(&mut server, item, key, owner, now),
            };
        }
        let one = &mut self.txs[tx as usize];
        (one.items, one.server) = (items, server);
    }

    fn insert(&self, server: &mut Server, item: &mut Item, key: u32, owner: u64, now: Millis) -> Now {
        let terms = Terms { owner: Owner::new(owner), lease: Duration::ZERO, max_attempts: self.db.max_attempts };
        let sighting = sighting(&self.plan, item.message, key);
        let stands = self.db.records[key as usize].as_ref();
        let step = record::claim(stands, &sighting, &terms, now);
        match step.outcome {
            ClaimOutcome::Acquired(grant) => {
                let Some(claimed) = step.write else { return Now::InFlight };
                let verdict = Verdict::Succeeded { result: None };
                let ask = Settle { sighting, token: grant.token, attempt: grant.attempt, verdict };
                let succeeded = record::settle(Some(&claimed), &ask, now).write;
                server.records.push((key, succeeded));
                item.claimed = Some(claimed);
                Now::New { attempt: grant.attempt }
            }
            ClaimOutcome::Duplicate { first, .. } => {
                if first.origin == self.plan.origin(item.message) {
                    Now::Redelivered
                } else {
                    Now::SameId
                }
            }
            ClaimOutcome::InFlight { .. } => Now::InFlight,
            ClaimOutcome::NotDue { remaining } => Now::NotDue(remaining),
            ClaimOutcome::Dead { .. } => {
                if let Some(write) = step.write {
                    server.records.push((key, Some(write)));
                }
                Now::Dead
            }
            ClaimOutcome::Conflict { .. } => Now::Conflict,
        }
    }

    /// A message given up: dead, unless it was handled meanwhile.
    fn bury_one(&self, server: &mut Server, item: &Item, now: Millis) -> Now {
        if let Some(key) = item.key {
            let own = Plan::fingerprint(self.plan.messages[item.message as usize].body);
            match self.db.records[key as usize].as_ref().filter(|record| record.fingerprint == own) {
                Some(record) if matches!(record.state, State::Succeeded { .. }) => return Now::SameId,
                Some(record) => {
                    let dead = Record { state: State::Dead { at: now }, ..record.clone() };
                    server.records.push((key, Some(dead)));
                }
                // In conflict with the one that stands, or never recorded: nothing but the window can know it.
                None => {}
            }
        }
        server.buried.push(item.message);
        Now::Dead
    }

    /// What the handlers did, before the windows move: effects, and what of the records is taken back.
    pub fn staged(&mut self, tx: u32, at: usize, ran: Stage) {
        let now = self.store.now(self.now);
        let limit = self.db.max_attempts;
        let flaw = self.flaws.driver;
        let one = &mut self.txs[tx as usize];
        let (item, server) = (&one.items[at], &mut one.server);
        let message = (item.message, item.epoch);
        match ran {
            Stage::Effect => {
                server.effects.push(message);
                server.ids.push(item.id);
                return;
            }
            Stage::Failed { effect, .. } | Stage::Fatal { effect } => {
                // Rolled back to its savepoint.
                if effect && flaw == Some(DriverFlaw::SavepointForgotten) {
                    server.effects.push(message);
                }
                server.failed.push(item.message);
                if flaw == Some(DriverFlaw::RecordNotRolledBack) {
                    return;
                }
            }
            Stage::Nothing => {}
        }
        let Some(key) = item.key else { return };
        let Some(place) = server.records.iter().position(|(other, _)| *other == key) else { return };
        let Some(claimed) = &item.claimed else { return };
        let sighting = sighting(&self.plan, item.message, key);
        let failed = |retry_in: Duration| {
            let verdict = Verdict::Failed { retry_in, max_attempts: limit };
            let ask = Settle { sighting, token: claimed.token(), attempt: claimed.attempts, verdict };
            record::settle(Some(claimed), &ask, now).write
        };
        match ran {
            Stage::Failed { retry_in, .. } => server.records[place].1 = failed(retry_in),
            Stage::Fatal { .. } => {
                server.records[place].1 = Some(Record { state: State::Dead { at: now }, ..claimed.clone() });
            }
            Stage::Effect | Stage::Nothing => {
                server.records.swap_remove(place);
            }
        }
    }

    /// `UPDATE … WHERE source = ? AND fence = ?`, all of them. Answers a partition whose fence has been raised by somebody else.
    fn move_windows(&mut self, tx: u32) -> Option<usize> {
        let moves = std::mem::take(&mut self.txs[tx as usize].rows);
        for (partition, fence, row) in &moves {
            let stands = self.db.windows[*partition].as_ref().map(|row| row.fence);
            if stands != Some(*fence) && self.flaws.driver != Some(DriverFlaw::FenceUnchecked) {
                return Some(*partition);
            }
            let row = WindowRow { fence: stands.unwrap_or(*fence), next: row.next, state: row.state.clone() };
            if self.flaws.driver == Some(DriverFlaw::WindowOutside) {
                self.db.windows[*partition] = Some(row);
            } else {
                self.txs[tx as usize].server.windows.push((*partition, row));
            }
        }
        self.txs[tx as usize].rows = moves;
        None
    }

    fn commit_tx(&mut self, tx: u32) {
        let process = self.txs[tx as usize].process;
        let mut server = std::mem::take(&mut self.txs[tx as usize].server);
        (server.over, server.committed) = (true, true);
        for (message, epoch) in &server.effects {
            self.log(process, What::Effect { message: *message, epoch: *epoch });
        }
        for ((message, _), id) in server.effects.iter().zip(&server.ids) {
            self.inbox_accept(process, *message, *id);
        }
        for message in &server.failed {
            self.log(process, What::Settled { message: *message, recorded: Recorded::Failed });
        }
        let messages: Vec<(u32, u32)> =
            self.txs[tx as usize].items.iter().filter_map(|item| Some((item.key?, item.message))).collect();
        for (key, record) in server.records.drain(..) {
            let Some(record) = record else { continue };
            let of = messages.iter().find(|(other, _)| *other == key);
            if let Some((_, message)) = of.copied() {
                match record.state {
                    State::Succeeded { .. } => {
                        self.log(process, What::Settled { message, recorded: Recorded::Succeeded });
                    }
                    State::Dead { .. } => self.log(process, What::FoundDead { message }),
                    State::Failed { .. } | State::Processing { .. } => {}
                }
            }
            self.db.records[key as usize] = Some(record);
        }
        for message in &server.buried {
            self.log(process, What::Settled { message: *message, recorded: Recorded::Dead });
        }
        for (partition, row) in server.windows.drain(..) {
            let next = row.next;
            self.db.windows[partition] = Some(row);
            self.log(process, What::Moved { partition: partition as u32, next });
        }
        let mut locks = std::mem::take(&mut server.locks);
        self.txs[tx as usize].server = server;
        self.db.unlock(&mut locks);
        self.wake();
        if self.is_healed {
            self.look_for_end();
        }
    }

    /// Whether what a transaction would have written is there: read under the locks that it held.
    fn is_there(&self, tx: u32) -> bool {
        let one = &self.txs[tx as usize];
        let windows = |(partition, moves): &(usize, Moves)| {
            let Some(row) = &self.db.windows[*partition] else { return false };
            Window::restore(row.next, &row.state).is_ok_and(|window| holds(&window, moves))
        };
        let records = |item: &Item| {
            // What has no record leaves nothing to be found.
            let (Some(key), Some(claimed)) = (item.key, &item.claimed) else { return !item.begun };
            let Some(record) = &self.db.records[key as usize] else { return false };
            item.dead || item.unstaged || record.token() == claimed.token() && record.origin == claimed.origin
        };
        if self.plan.memory.window() { one.moves.iter().all(windows) } else { one.items.iter().all(records) }
    }

    /// The new owner's fence; the row is made if there is none.
    fn raise_row(&mut self, tx: u32) {
        let raise = self.txs[tx as usize].raise.clone();
        let row = self.db.windows[raise.partition].get_or_insert(WindowRow {
            fence: 0,
            next: raise.start,
            state: Vec::new(),
        });
        row.fence += 1;
        self.txs[tx as usize].raised = Some(row.clone());
    }

    /// A window that does not know a message through that is.
    pub fn look_at_windows(&mut self) {
        if !self.plan.memory.window() || !self.plan.is_transactional() {
            return;
        }
        for partition in 0..self.plan.logs.len() {
            let Some(row) = &self.db.windows[partition] else { continue };
            let Ok(window) = Window::restore(row.next, &row.state) else {
                self.violate("window", format!("the row of partition {partition} cannot be read"));
                return;
            };
            let log = &self.plan.logs[partition].messages;
            let begins = self.begins[partition];
            let behind = log.iter().find(|message| {
                let offset = self.plan.messages[**message as usize].offset;
                offset >= begins && !window.is_finished(offset)
            });
            if let Some(message) = behind {
                self.violate(
                    "window",
                    format!("message {message} is through, and the window of partition {partition} does not know it"),
                );
                return;
            }
        }
    }
}

/// What a handler left in its transaction.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    Effect,
    /// It failed; `effect`: after its effect.
    Failed {
        effect: bool,
        retry_in: Duration,
    },
    Fatal {
        effect: bool,
    },
    /// It was not begun, or is to be tried again without anything noted.
    Nothing,
}

/// Whether these moves were made.
fn holds(window: &Window, moves: &Moves) -> bool {
    window.after(moves) == window.row()
}

/// How long a server takes to find that a connection is gone.
pub fn notice(random: &mut super::random::Random) -> Micros {
    random.between(MS, 2_000 * MS)
}
