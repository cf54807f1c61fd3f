//! Transactional handling: one batch, one transaction on the simulated database, as a process sees it.
//!
//! ```text
//!   window in memory ─▶ Open: records inserted ─▶ handlers ─▶ Move: windows, under their fence ─▶ Commit ─▶ answers
//!                          │ locks, duplicates       │ savepoints      │ fenced off: again          │ no reply
//!                          └ rolled back: again, halved, down to one                            Verify ┘
//! ```

mod steps;

use std::collections::VecDeque;
use std::time::Duration;

use hapax::engine::{Answer, Order, Ran, Ticket, Verdict};
use hapax::record::Record;
use hapax::window::{Known, Moves, Row};

use super::database::{Server, WindowRow, notice};
use super::flaws::DriverFlaw;
use super::history::{Ended, What};
use super::plan::{MS, Micros, SECOND};
use super::process::{NONE, Outcome};
use super::windows::Raise;
use super::world::{Happening, Sent, World};

/// What a transaction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Step {
    #[default]
    Open,
    Move,
    Commit,
    /// Another connection reads what became of a commit.
    Verify,
    /// A fence is raised.
    Raise,
}

/// What is said of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    Done,
    /// The handlers are over.
    Handled,
    /// The row of this partition has another fence.
    Fenced(u32),
    /// Rolled back by the database: a deadlock, a serialization failure.
    Aborted,
    /// Somebody holds a lock for too long.
    TimedOut,
    /// Nothing is known: the connection broke.
    Lost,
}

/// What the database says of a message before it is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Now {
    #[default]
    Unknown,
    New {
        attempt: u32,
    },
    /// It has the identity of an earlier one of this transaction.
    After(u32),
    Redelivered,
    SameId,
    InFlight,
    NotDue(Duration),
    Dead,
    Conflict,
}

/// One message of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Item {
    pub ticket: u32,
    pub message: u32,
    pub epoch: u32,
    pub partition: usize,
    /// Number of its record, if it has one.
    pub key: Option<u32>,
    /// What it must stay in order with.
    row: Option<u64>,
    /// The fence that its window had when it was looked at, and attempts that failed by then.
    fence: u64,
    pub failures: u32,
    /// What the inbox will know it by.
    pub id: i64,
    /// It is given up, rather than handled.
    pub dead: bool,
    pub stands: Now,
    /// Its record as it is while it is handled.
    pub claimed: Option<Record>,
    /// It was not handled, and leaves nothing.
    pub unstaged: bool,
    pub begun: bool,
    outcome: Option<Outcome>,
    ran: Option<Ran>,
}

/// One transaction: what its process knows of it, and what the server does.
#[derive(Clone, Debug, Default)]
pub struct Tx {
    pub process: usize,
    pub owner: u64,
    pub job: u32,
    pub items: Vec<Item>,
    /// Which of its job's items these are.
    pub places: Vec<u32>,
    pub step: Step,
    pub serial: u32,
    /// Whether the answer to the step will be heard.
    pub heard: bool,
    /// The transaction whose commit is doubted.
    pub doubted: Option<u32>,
    pub raise: Raise,
    pub raised: Option<WindowRow>,
    pub moves: Vec<(usize, Moves)>,
    /// What is to be written, under which fence.
    pub rows: Vec<(usize, u64, Row)>,
    pub server: Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A handler call, in this place.
    Run(u32),
    Bury,
}

/// A batch on its way through one transaction or several.
#[derive(Clone, Debug)]
pub struct Job {
    process: usize,
    purpose: Purpose,
    number: u32,
    items: Vec<Item>,
    todo: VecDeque<Vec<u32>>,
    /// Rows with a message that is not through.
    blocked: Vec<u64>,
    /// The transaction that is under way.
    tx: u32,
    over: bool,
}

impl World {
    fn item_of(&mut self, process: usize, ticket: Ticket, dead: bool) -> Item {
        let held = *self.processes[process].get(ticket);
        let one = &self.plan.messages[held.message as usize];
        let partition = one.partition;
        let row = match (self.plan.config.order, one.lane) {
            _ if self.plan.config.step_aside => None,
            (Order::Partition, _) => Some(partition as u64),
            (Order::Key, Some(lane)) => Some(((partition as u64) << 32) | u64::from(lane)),
            _ => None,
        };
        let key = one.identity.filter(|_| self.plan.memory.records());
        let key = key.map(|identity| self.flaws.key(&self.plan, identity));
        let (message, epoch) = (held.message, held.epoch);
        Item { ticket: ticket.0, message, epoch, partition, key, row, dead, ..Item::default() }
    }

    /// A handler call begins.
    pub fn transact(&mut self, process: usize, at: u32) {
        let (tickets, number) = {
            let run = &self.processes[process].runs[at as usize];
            (run.items.clone(), run.number)
        };
        let items = tickets.into_iter().map(|ticket| self.item_of(process, ticket, false)).collect();
        let job = self.open_job(process, Purpose::Run(at), number, items);
        self.processes[process].runs[at as usize].job = job;
        self.job_goes_on(job);
    }

    /// Messages are given up: the database is told.
    pub fn bury(&mut self, process: usize, ends: Vec<(Ticket, Verdict)>) {
        for (ticket, verdict) in &ends {
            if *verdict != Verdict::Dead {
                self.violate("contract", format!("ticket {} is settled as {verdict:?} without a claim", ticket.0));
            }
            self.processes[process].get(*ticket).calls += 1;
        }
        let items: Vec<Item> = ends.into_iter().map(|(ticket, _)| self.item_of(process, ticket, true)).collect();
        let job = self.open_job(process, Purpose::Bury, 0, items);
        if self.flaws.driver == Some(DriverFlaw::DeadNotTold) {
            self.jobs[job as usize].items.iter_mut().for_each(|item| item.ran = Some(Ran::Succeeded));
        }
        let delay = self.random.below(self.plan.round_trip);
        self.at(self.now + delay, Sent::To(process as u32), Happening::Job(job));
    }

    fn open_job(&mut self, process: usize, purpose: Purpose, number: u32, items: Vec<Item>) -> u32 {
        let todo = VecDeque::from([(0..items.len() as u32).collect()]);
        let job = Job { process, purpose, number, items, todo, blocked: Vec::new(), tx: NONE, over: false };
        self.jobs.push(job);
        self.jobs.len() as u32 - 1
    }

    fn answer_item(&mut self, job: u32, place: u32, ran: Ran) {
        let job = &mut self.jobs[job as usize];
        let item = &mut job.items[place as usize];
        item.ran = Some(ran);
        let through = matches!(ran, Ran::Succeeded | Ran::Answered(Answer::Redelivered | Answer::SameId));
        if let Some(row) = item.row
            && !through
        {
            job.blocked.push(row);
        }
    }

    /// What can be said without the database, and a transaction for the rest.
    pub fn job_goes_on(&mut self, number: u32) {
        loop {
            let job = &mut self.jobs[number as usize];
            if job.over {
                return;
            }
            job.tx = NONE;
            let (process, bury) = (job.process, job.purpose == Purpose::Bury);
            let Some(places) = job.todo.pop_front() else { return self.job_done(number) };
            let (mut items, mut taken) = (Vec::new(), Vec::new());
            for place in places {
                let job = &self.jobs[number as usize];
                let mut item = job.items[place as usize].clone();
                if item.ran.is_some() {
                    continue;
                }
                if !bury && item.row.is_some_and(|row| job.blocked.contains(&row)) {
                    self.answer_item(number, place, Ran::NotBegun);
                    continue;
                }
                match self.look(process, &mut item, bury) {
                    Some(ran) => self.answer_item(number, place, ran),
                    None => {
                        items.push(item);
                        taken.push(place);
                    }
                }
            }
            if items.is_empty() {
                continue;
            }
            let tx = self.txs.len() as u32;
            // Each has one of its own, by which a commit in doubt is known: what another one of this process wrote is not its own.
            let owner = self.processes[process].owner ^ (u64::from(tx + 1) << 32);
            self.txs.push(Tx { process, owner, job: number, items, places: taken, ..Tx::default() });
            self.jobs[number as usize].tx = tx;
            return self.send_step(tx, Step::Open);
        }
    }

    /// What is known without asking. Notes the fence under which it was looked at.
    fn look(&mut self, process: usize, item: &mut Item, bury: bool) -> Option<Ran> {
        let message = &self.plan.messages[item.message as usize];
        let wait = Ran::Answered(Answer::InFlight { remaining: Duration::ZERO });
        if self.plan.memory.window() {
            let Some(window) = self.processes[process].standing(item.partition, item.epoch) else {
                return Some(if bury && !self.owns(process, item.epoch) {
                    Ran::Answered(Answer::SameId)
                } else {
                    wait
                });
            };
            item.fence = window.fence;
            match window.window.known(message.offset) {
                Known::Finished => return Some(Ran::Answered(Answer::Redelivered)),
                Known::Unfinished { attempts } => item.failures = attempts,
            }
            if !bury && item.key.is_none() && item.failures >= self.plan.config.max_attempts {
                return Some(Ran::Answered(Answer::Dead));
            }
        }
        let refused = !bury && message.identity.is_none() && self.plan.refuses();
        refused.then_some(Ran::Answered(Answer::Refused))
    }

    pub fn owns(&self, process: usize, epoch: u32) -> bool {
        self.processes[process].kafka.owned.iter().any(|owned| owned.epoch == epoch)
    }

    /// Sends a statement on its way, and decides what becomes of it.
    pub fn send_step(&mut self, tx: u32, step: Step) {
        let (now, weather) = (self.now, self.weather);
        let slow = self.random.chance(weather.slow);
        let trip = self.plan.round_trip;
        let there = if slow { self.random.between(SECOND / 4, 3 * SECOND) } else { self.random.between(50, trip) };
        let patience = self.random.between(SECOND / 2, 3 * SECOND);
        let (mut arrives, mut lost) = (Some(now + there), None);
        if now < self.store.down_until {
            arrives = None;
            lost = Some(now + if self.random.chance(5_000) { MS } else { patience });
        } else if self.random.chance(weather.request_lost) {
            arrives = None;
            lost = Some(now + patience);
        } else if self.random.chance(weather.reply_lost) {
            lost = Some(now + patience.max(there));
        } else if self.random.chance(weather.late) {
            lost = Some(now + patience);
            arrives = Some(now + patience + self.random.between(MS, 3 * SECOND));
        }
        let one = &mut self.txs[tx as usize];
        one.step = step;
        one.serial += 1;
        one.heard = lost.is_none();
        let (process, serial) = (one.process as u32, one.serial);
        if let Some(at) = arrives {
            self.at(at, Sent::World(process), Happening::Statement { tx, serial });
        }
        if let Some(at) = lost {
            self.at(at, Sent::To(process), Happening::Said { tx, serial, said: Said::Lost });
            let gone = arrives.unwrap_or(at).max(at) + notice(&mut self.random);
            self.at(gone, Sent::World(process), Happening::DropTx(tx));
        }
    }

    pub fn said(&mut self, process: usize, tx: u32, serial: u32, said: Said) {
        let one = &self.txs[tx as usize];
        let (job, step) = (one.job, one.step);
        if one.serial != serial || (one.step != Step::Raise && self.jobs[job as usize].over) {
            return;
        }
        if step != Step::Raise && self.crash_at_step(process) {
            return;
        }
        match (step, said) {
            (Step::Raise, Said::Done) => self.raised(process, tx),
            (Step::Raise, _) => self.raise_later(process, tx),
            (Step::Open, Said::Done) => self.handle(tx),
            (Step::Open, Said::Handled) => self.handled(tx),
            (Step::Move, Said::Done) => {
                self.send_step(tx, Step::Commit);
                if self.flaws.driver == Some(DriverFlaw::OffsetsFirst) {
                    self.committed_tx(tx);
                }
            }
            (Step::Commit, Said::Done) => self.committed_tx(tx),
            (Step::Commit, Said::Lost) => self.doubt(tx),
            (Step::Verify, Said::Done) => self.verified(tx, true),
            (Step::Verify, Said::Aborted) => self.verified(tx, false),
            (Step::Verify, _) => {
                // Nothing is guessed: it is read again.
                let delay = self.random.between(10 * MS, 300 * MS);
                let doubted = self.txs[tx as usize].doubted.unwrap_or(tx);
                self.at(self.now + delay, Sent::To(process as u32), Happening::Doubt(doubted));
            }
            (_, Said::Fenced(partition)) => self.fenced(tx, partition as usize, true),
            (_, Said::Aborted) => self.again(tx, true),
            (_, Said::TimedOut) => self.timed_out(tx),
            (_, Said::Lost) => {
                let random = self.random.next();
                self.undo(tx);
                self.answer_all(tx, Ran::Unavailable { random });
            }
            (_, Said::Handled) => {}
        }
    }

    /// Somebody else raised the fence, or this process did: nothing of this transaction counts.
    fn fenced(&mut self, tx: u32, partition: usize, by_row: bool) {
        self.undo(tx);
        let one = &self.txs[tx as usize];
        let (process, job) = (one.process, one.job);
        let mut others = Vec::new();
        let items: Vec<(usize, u32)> =
            one.items.iter().map(|item| item.partition).zip(one.places.iter().copied()).collect();
        if by_row {
            let fence = one.items.iter().find(|item| item.partition == partition).map(|item| item.fence);
            self.lost_fence(process, partition, fence.unwrap_or(0));
        }
        for (own, place) in items {
            if own == partition {
                self.answer_item(job, place, Ran::Answered(Answer::InFlight { remaining: Duration::ZERO }));
            } else {
                others.push(place);
            }
        }
        self.jobs[job as usize].todo.push_front(others);
        self.job_goes_on(job);
    }

    /// Rolled back as a whole: once more, in halves, after a moment.
    fn again(&mut self, tx: u32, halves: bool) {
        self.undo(tx);
        let one = &self.txs[tx as usize];
        let (process, job, places) = (one.process, one.job, one.places.clone());
        let todo = &mut self.jobs[job as usize].todo;
        if halves && places.len() > 1 {
            let (first, second) = places.split_at(places.len() / 2);
            todo.push_front(second.to_vec());
            todo.push_front(first.to_vec());
        } else {
            todo.push_front(places);
        }
        self.jobs[job as usize].tx = NONE;
        let jitter = self.random.between(100, 5 * MS);
        self.at(self.now + jitter, Sent::To(process as u32), Happening::Job(job));
    }

    fn timed_out(&mut self, tx: u32) {
        if self.txs[tx as usize].places.len() > 1 {
            return self.again(tx, true);
        }
        self.undo(tx);
        self.answer_all(tx, Ran::Answered(Answer::InFlight { remaining: Duration::ZERO }));
    }

    fn answer_all(&mut self, tx: u32, ran: Ran) {
        let one = &self.txs[tx as usize];
        let (job, places) = (one.job, one.places.clone());
        places.into_iter().for_each(|place| self.answer_item(job, place, ran));
        self.job_goes_on(job);
    }

    /// Nothing of it happened: its handlers ended without effect, others may move its windows.
    fn undo(&mut self, tx: u32) {
        let one = &mut self.txs[tx as usize];
        let process = one.process;
        let begun: Vec<(u32, u32)> = one
            .items
            .iter_mut()
            .filter_map(|item| std::mem::take(&mut item.begun).then_some((item.message, item.epoch)))
            .collect();
        for (message, epoch) in begun {
            self.log(process, What::Ended { message, epoch, how: Ended::Aborted, effect: false });
        }
        if !self.txs[tx as usize].server.over {
            let delay = self.random.between(50, self.plan.round_trip);
            self.at(self.now + delay, Sent::World(process as u32), Happening::DropTx(tx));
        }
        self.open_gates(tx);
    }

    /// Handlers are dropped where they wait. A commit that was sent is waited for.
    pub fn abort_job(&mut self, number: u32) {
        let job = &self.jobs[number as usize];
        let tx = job.tx;
        let step = self.txs.get(tx as usize).map(|tx| tx.step);
        if job.over || step == Some(Step::Commit) {
            return;
        }
        if tx != NONE {
            self.undo(tx);
        }
        self.jobs[number as usize].todo.clear();
        self.job_done(number);
    }

    /// A process is gone: its connections break.
    pub fn drop_txs(&mut self, process: usize) {
        for tx in 0..self.txs.len() {
            if self.txs[tx].process == process && !self.txs[tx].server.over {
                let delay: Micros = notice(&mut self.random) / 4;
                self.at(self.now + delay, Sent::World(NONE), Happening::DropTx(tx as u32));
            }
        }
    }
}
