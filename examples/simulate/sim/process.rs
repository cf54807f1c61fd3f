//! One process: an engine, and what a driver around it keeps.

use std::collections::VecDeque;

use hapax::engine::{Config, Engine, Position, Ran, Ticket};
use hapax::frontier::Epoch;
use hapax::record::Token;

use super::history::Ended;
use super::plan::Micros;
use super::windows::{Gate, Standing};
use super::world::Happening;

/// No run, no call.
pub const NONE: u32 = u32::MAX;

/// A message in hand.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub message: u32,
    pub epoch: u32,
    pub live: bool,
    pub token: Option<Token>,
    pub attempt: u32,
    /// It is in a handler call, under the claim held.
    pub begun: bool,
    pub run: u32,
    /// Calls on their way that name it.
    pub calls: u32,
    /// When its lease has run out, on the process's clock.
    pub until: Micros,
}

/// How a handler will end.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub how: Ended,
    pub effect: bool,
    /// It ends the process.
    pub kills: bool,
    /// Its effect happened.
    pub done: bool,
}

impl Outcome {
    /// What is accepted is worked later.
    pub const fn accepted() -> Self {
        Self { how: Ended::Succeeded, effect: true, kills: false, done: false }
    }
}

/// A handler call: one message, a chain of them, or a batch.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Differs for every use of this place.
    pub serial: u32,
    pub number: u32,
    pub items: Vec<Ticket>,
    pub outcomes: Vec<Outcome>,
    /// The one that runs.
    pub at: usize,
    pub halted: bool,
    pub batch: bool,
    pub live: bool,
    /// What carries it out, if that is transactional.
    pub job: u32,
}

/// A partition that the Kafka thread polls.
#[derive(Clone, Debug)]
pub struct Owned {
    pub partition: usize,
    pub epoch: u32,
    /// Place of the next message.
    pub place: usize,
    pub paused: bool,
    /// Where it begins, and whether that is settled.
    pub begin: i64,
    pub ready: bool,
}

/// What the engine asks of the Kafka thread.
#[derive(Clone, Debug)]
pub enum Request {
    Pause(Vec<Epoch>),
    Resume(Vec<Epoch>),
    Commit(Vec<Position>),
}

/// What the Kafka thread is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Busy {
    Free,
    /// In the revoke callback.
    Revoking {
        epochs: Vec<u32>,
        rejoin: bool,
    },
    /// Closing.
    Ending,
}

#[derive(Debug)]
pub struct Kafka {
    pub owned: Vec<Owned>,
    pub busy: Busy,
    pub busy_since: Micros,
    pub busy_serial: u32,
    /// The engine said that partitions may go, or that all is done.
    pub answered: bool,
    pub close_wanted: bool,
    pub requests: VecDeque<Request>,
    pub requests_armed: bool,
    pub poll_armed: bool,
    pub next_partition: usize,
    /// Group membership as this process knows it.
    pub member: bool,
    pub waiting: bool,
    pub join: u32,
    pub generation: u32,
    /// When the last commit sent arrives: they keep their order.
    pub commit_arrives: Micros,
    pub commits_out: u32,
}

#[derive(Debug)]
pub struct Process {
    pub place: usize,
    pub owner: u64,
    pub engine: Engine,
    pub config: Config,
    pub alive: bool,
    pub paused_until: Micros,
    /// What happened while it stood still.
    pub deferred: Vec<Happening>,
    pub stalled_since: Micros,
    pub stalled_until: Micros,
    /// How far its clock is ahead of the world's.
    pub ahead: Micros,
    pub held: Vec<Held>,
    /// Numbers to be given again: those that came back last first, as the consumer gives them.
    pub free: Vec<u32>,
    pub tick_at: Option<Micros>,
    pub ticks_now: u32,
    pub claiming: bool,
    pub settling: bool,
    pub committing: bool,
    pub runs: Vec<Run>,
    pub free_runs: Vec<u32>,
    pub running: u32,
    /// Claims that are in no handler call yet.
    pub unbegun: u32,
    pub ran: Vec<(Ticket, Ran)>,
    pub ran_armed: bool,
    pub renew_armed: bool,
    /// For a flaw: keys that were claimed here.
    pub cache: Vec<u32>,
    /// By partition.
    pub windows: Vec<Option<Standing>>,
    pub gates: Vec<Gate>,
    /// Ids to give to what it accepts: the next, and the end of the block.
    pub ids: Option<(i64, i64)>,
    pub kafka: Kafka,
}

impl Process {
    pub fn new(place: usize, owner: u64, config: Config, ahead: Micros, partitions: usize) -> Self {
        Self {
            place,
            owner,
            engine: Engine::new(config.clone()),
            config,
            alive: true,
            paused_until: 0,
            deferred: Vec::new(),
            stalled_since: 0,
            stalled_until: 0,
            ahead,
            held: Vec::new(),
            free: Vec::new(),
            tick_at: None,
            ticks_now: 0,
            claiming: false,
            settling: false,
            committing: false,
            runs: Vec::new(),
            free_runs: Vec::new(),
            running: 0,
            unbegun: 0,
            ran: Vec::new(),
            ran_armed: false,
            renew_armed: false,
            cache: Vec::new(),
            windows: vec![None; partitions],
            gates: vec![Gate::default(); partitions],
            ids: None,
            kafka: Kafka {
                owned: Vec::new(),
                busy: Busy::Free,
                busy_since: 0,
                busy_serial: 0,
                answered: false,
                close_wanted: false,
                requests: VecDeque::new(),
                requests_armed: false,
                poll_armed: false,
                next_partition: 0,
                member: false,
                waiting: false,
                join: 0,
                generation: 0,
                commit_arrives: 0,
                commits_out: 0,
            },
        }
    }

    pub fn end(&mut self) {
        self.alive = false;
        self.engine = Engine::new(Config::default());
        self.held = Vec::new();
        self.runs = Vec::new();
        self.ran = Vec::new();
        self.kafka.requests.clear();
        self.kafka.owned.clear();
    }

    /// A number for a message.
    pub fn take(&mut self, message: u32, epoch: u32) -> Ticket {
        let held =
            Held { message, epoch, live: true, token: None, attempt: 0, begun: false, run: NONE, calls: 0, until: 0 };
        if let Some(ticket) = self.free.pop() {
            self.held[ticket as usize] = held;
            return Ticket(ticket);
        }
        self.held.push(held);
        Ticket(self.held.len() as u32 - 1)
    }

    pub fn get(&mut self, ticket: Ticket) -> &mut Held {
        &mut self.held[ticket.0 as usize]
    }

    /// A message is in a handler call.
    pub fn starts(&mut self, ticket: Ticket) {
        let held = &mut self.held[ticket.0 as usize];
        if !std::mem::replace(&mut held.begun, true) && held.token.is_some() {
            self.unbegun -= 1;
        }
    }

    /// Its turn in the call did not come.
    pub fn has_not_begun(&mut self, ticket: Ticket) {
        let held = &mut self.held[ticket.0 as usize];
        if std::mem::replace(&mut held.begun, false) && held.token.is_some() {
            self.unbegun += 1;
        }
    }

    /// The claim of this message is over.
    pub fn let_go(&mut self, ticket: Ticket) {
        let held = &mut self.held[ticket.0 as usize];
        if held.token.take().is_some() && !held.begun {
            self.unbegun -= 1;
        }
    }

    pub fn is_stalled(&self, now: Micros) -> bool {
        now < self.stalled_until
    }

    /// A place for a handler call.
    pub fn open_run(&mut self, number: u32) -> u32 {
        let at = self.free_runs.pop().unwrap_or_else(|| {
            self.runs.push(Run::default());
            self.runs.len() as u32 - 1
        });
        let run = &mut self.runs[at as usize];
        run.serial += 1;
        run.number = number;
        run.items.clear();
        run.outcomes.clear();
        (run.at, run.halted, run.batch, run.live) = (0, false, false, true);
        at
    }
}
