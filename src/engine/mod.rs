//! What to do next, and nothing else: events in, commands out.
//!
//! The engine decides what is claimed, run, settled, given up, paused and committed, and when. It has no clock, no randomness, no Kafka, no
//! runtime: time and random numbers come with the events, and thin drivers around it carry the commands out. The same engine
//! runs in production and in the simulator.
//!
//! # The path of a message
//!
//! ```text
//!   Delivered                      intake.rs     a place in its partition's frontier and in its lane
//!      │ queue
//!      ▼
//!   Claim ──▶ Claimed              claims.rs     duplicate? finished · in flight? parked · ours? ready
//!      │ ready
//!      ▼
//!   Run ────▶ Ran                  handlers.rs   in the order of its lane, as many side by side as allowed
//!      │ ending
//!      ▼
//!   Settle ─▶ Settled              endings.rs    succeeded? finished · failed? parked, and claimed again · given up? DeadLetter first
//!      │
//!      ▼
//!   Finished ─▶ frontier ─▶ Commit partition.rs  the finished prefix, now and then
//! ```
//!
//! Each step takes whatever is there, so a batch is what has been waiting; no timer holds anything back. A message without a record
//! ([`Subject::Bare`]) goes from the queue straight to ready, and from its handler straight to finished. So does one that whatever handles it
//! remembers by itself, together with its effect ([`Subject::Own`]): there, what a claim would have been told comes back from the handler.
//!
//! Rules that hold everywhere:
//!
//! - A message is *in hand* from its claim until the store has heard how it ended. No other message with the same identity is claimed meanwhile,
//!   whichever assignment either belongs to.
//! - Only what the store has heard of is finished, and only what is finished moves the frontier.
//! - What belongs to an assignment that is over may still end, and is settled under its own token; it moves nothing.

mod claims;
mod config;
mod endings;
mod event;
mod handlers;
mod intake;
mod lanes;
mod partition;
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

pub use config::{Config, Conflicts, Flaw, OnDead, Order};
pub use event::{
    Answer, Arrival, Assigned, Cause, Command, Ending, Event, Position, Ran, Settled, Start, Subject, Ticket, Time,
    Verdict,
};

use crate::frontier::Epoch;
use crate::identity::Key;
use crate::pace::{Breaker, Pace};
use lanes::Lanes;
use partition::Partition;
use table::{NONE, Phase, Table, count};

type ByKey<V> = HashMap<Key, V, foldhash::fast::RandomState>;

/// What is known of a partition that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
    /// The period of owning it.
    pub epoch: Epoch,
    /// Messages delivered and unfinished.
    pub unfinished: usize,
    /// The offset that may be committed.
    pub committable: Option<i64>,
    /// What the broker has as committed, as far as is known.
    pub committed: Option<i64>,
    /// The offset of the last message delivered.
    pub delivered: Option<i64>,
    /// Whether it is paused.
    pub paused: bool,
}

/// The engine's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Partitions that are ours.
    pub partitions: Vec<PartitionState>,
    /// Messages delivered and unfinished.
    pub unfinished: usize,
    /// Handler calls that run.
    pub running: usize,
    /// Claims held whose handlers have not begun.
    pub claimed: usize,
    /// Messages that wait for a retry, or for another owner.
    pub parked: usize,
    /// The store could not be asked the last time.
    pub store_down: bool,
    /// Handlers said that what they need is down.
    pub downstream_down: bool,
}

/// Handlers that were started together, one after the other.
#[derive(Debug, Default)]
struct Chain {
    left: u32,
    count: u32,
    began: Time,
    lanes: Vec<u32>,
}

/// A message in hand, and those with the same identity that wait for it.
#[derive(Debug)]
struct Hand {
    first: Ticket,
    waiting: Vec<Ticket>,
}

/// Partitions on their way out.
#[derive(Debug)]
struct Drain {
    epochs: Vec<Epoch>,
    parts: Vec<u32>,
    by: Time,
    kind: DrainKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrainKind {
    Revoke,
    Lost,
    Close,
}

/// Decides what to do next. See the [module](self).
#[derive(Debug)]
pub struct Engine {
    config: Config,
    now: Time,
    table: Table,
    parts: Vec<Option<Partition>>,
    /// Partitions whose intake is to be looked at: those that are full or paused. The others need no look, however many they are.
    watched: Vec<u32>,
    /// Partitions that are gone and not forgotten yet.
    gone: usize,
    by_epoch: HashMap<Epoch, u32, foldhash::fast::RandomState>,
    lanes: Lanes,
    chains: Vec<Chain>,
    free_chains: Vec<u32>,

    /// Messages without a lane whose turn to be claimed will come.
    queue: VecDeque<Ticket>,
    /// Lanes with messages whose turn to be claimed will come.
    filed: VecDeque<u32>,
    /// Messages without a record have come: they need no room among the claims.
    bare: bool,
    hands: ByKey<Hand>,
    /// Whether the store owes an answer to a claim, and to a settle.
    asking: bool,
    telling: bool,
    /// Lanes and messages that may start.
    startable: VecDeque<u32>,
    loose: VecDeque<Ticket>,
    running: usize,
    /// Messages whose turn in their chain is to come.
    chained: usize,
    /// Messages in [`Phase::Ready`] that were claimed, in [`Phase::First`], and in hand at all.
    ready: usize,
    firsts: usize,
    in_hand: usize,
    suspects: VecDeque<Ticket>,
    /// Suspects whose claims are being given back.
    suspected: usize,
    /// The suspect that runs alone.
    alone: Option<Ticket>,
    /// Until when a suspect waits for the others, and the others for it.
    alone_until: Option<Time>,
    ending: Vec<Ticket>,
    letters: Vec<(Ticket, Cause)>,
    parked: BinaryHeap<Reverse<(Time, u64, Ticket)>>,
    parkings: u64,
    waiting: usize,
    drains: Vec<Drain>,
    closing: bool,

    store: Breaker,
    downstream: Breaker,
    lettering: Breaker,
    pace: Pace,

    committing: bool,
    next_commit: Time,
    finished_since: u64,
    finished: Vec<(Ticket, Ending)>,
    dropped: Vec<Ticket>,
}

impl Engine {
    /// An engine that owns nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        // What runs as a chain, one call's worth, and as much again on its way: so calls stay full. Every handler has one ahead.
        let ahead = config.claims.max(1).saturating_mul(2).max(config.concurrency);
        Self {
            pace: Pace::new(ahead),
            next_commit: config.commit_every,
            config,
            now: Time::ZERO,
            table: Table::default(),
            parts: Vec::new(),
            watched: Vec::new(),
            gone: 0,
            by_epoch: HashMap::default(),
            lanes: Lanes::new(ahead),
            chains: Vec::new(),
            free_chains: Vec::new(),
            queue: VecDeque::new(),
            filed: VecDeque::new(),
            bare: false,
            hands: HashMap::default(),
            asking: false,
            telling: false,
            startable: VecDeque::new(),
            loose: VecDeque::new(),
            running: 0,
            chained: 0,
            ready: 0,
            firsts: 0,
            in_hand: 0,
            suspects: VecDeque::new(),
            suspected: 0,
            alone: None,
            alone_until: None,
            ending: Vec::new(),
            letters: Vec::new(),
            parked: BinaryHeap::new(),
            parkings: 0,
            waiting: 0,
            drains: Vec::new(),
            closing: false,
            store: Breaker::default(),
            downstream: Breaker::default(),
            lettering: Breaker::default(),
            committing: false,
            finished_since: 0,
            finished: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Takes an event in at time `now`, and appends what to do to `commands`. Time never goes backwards.
    pub fn handle(&mut self, now: Time, event: Event, commands: &mut Vec<Command>) {
        let now = now.max(self.now);
        self.now = now;
        match event {
            Event::Tick => {}
            Event::Assigned(partitions) => {
                partitions.into_iter().for_each(|assigned| self.assigned(assigned, commands));
            }
            Event::Delivered(arrivals) => self.delivered_all(arrivals),
            Event::Claimed(answers) => self.claimed(now, answers, commands),
            Event::ClaimFailed { tickets, random } => self.claim_failed(now, tickets, random),
            Event::Ran(ends) => self.ran(now, ends, commands),
            Event::Settled(answers) => self.settled(now, answers, commands),
            Event::SettleFailed { tickets, random } => self.settle_failed(now, tickets, random, commands),
            Event::DeadLettered(tickets) => self.lettered(&tickets),
            Event::DeadLetterFailed { tickets, random } => self.letters_failed(now, &tickets, random),
            Event::Revoke { epochs, lost, by } => self.revoke(epochs, lost, by, commands),
            Event::Committed { positions, accepted } => self.committed(&positions, accepted),
            Event::Close { by } => self.close(by, commands),
        }
        self.go_on(now, commands);
    }

    /// Does all that can be done now.
    fn go_on(&mut self, now: Time, commands: &mut Vec<Command>) {
        self.unpark(now);
        // Claims leave first, to be on their way while handlers run; how many depends on what can be started.
        let mut starts = Vec::new();
        self.start(now, &mut starts);
        self.ask(now, commands);
        self.start(now, &mut starts);
        if !starts.is_empty() {
            commands.push(Command::Run(starts));
        }
        if !self.letters.is_empty() {
            commands.push(Command::DeadLetter(std::mem::take(&mut self.letters)));
        }
        self.tell(now, commands);
        if !self.finished.is_empty() {
            commands.push(Command::Finished(std::mem::take(&mut self.finished)));
        }
        if !self.dropped.is_empty() {
            commands.push(Command::Dropped(std::mem::take(&mut self.dropped)));
        }
        self.drain(now, commands);
        self.flow(now, commands);
        self.commit(now, commands);
    }

    /// When to come back with [`Event::Tick`] at the latest; `None` if only an event can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        let parked = self.parked.peek().map(|Reverse((at, _, _))| *at);
        let commit = (self.finished_since > 0 && !self.committing).then_some(self.next_commit);
        let drains = self.drains.iter().map(|drain| drain.by);
        let watched = self.watched.iter().filter_map(|at| self.part(*at));
        let full = watched.filter(|part| part.stage == partition::Stage::Live).filter_map(Partition::wake_at);
        // What lies behind us was tried already, and waits for something else.
        let ahead = |breaker: &Breaker| Some(breaker.until()).filter(|until| breaker.is_tripped() && *until > self.now);
        let (store, downstream) = (ahead(&self.store), ahead(&self.downstream));
        let all = parked.into_iter().chain(commit).chain(drains).chain(full).chain(store).chain(downstream);
        all.chain(self.alone_until.filter(|until| *until > self.now)).filter(|at| *at < Time::MAX).min()
    }

    /// Commits what is due, at its time.
    fn commit(&mut self, now: Time, commands: &mut Vec<Command>) {
        let early = self.finished_since >= self.config.commit_after;
        if self.committing || self.finished_since == 0 || !(early || now >= self.next_commit) {
            return;
        }
        let config = &self.config;
        let live = self.parts.iter_mut().flatten().filter(|part| part.stage == partition::Stage::Live);
        let due: Vec<Position> = live.filter_map(|part| part.take_due(config)).collect();
        self.finished_since = 0;
        self.next_commit = now + self.config.commit_every;
        if !due.is_empty() {
            self.committing = true;
            commands.push(Command::Commit(due));
        }
    }

    fn committed(&mut self, positions: &[Position], accepted: bool) {
        self.committing = false;
        for position in positions {
            if let Some(part) = self.part_of(position.epoch) {
                part.answered(position.offset, accepted);
            }
        }
        if !accepted {
            // To be handed over again, at the next time.
            self.finished_since = self.finished_since.max(1);
        }
    }

    /// Pauses and resumes partitions.
    fn flow(&mut self, now: Time, commands: &mut Vec<Command>) {
        let is_down = self.store.is_tripped() || self.downstream.is_tripped();
        if is_down {
            // All of them take part.
            (0..self.parts.len()).for_each(|at| self.look_after(u32::try_from(at).unwrap_or(NONE)));
        }
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let watched = self.watched.iter().filter_map(|at| self.part(*at));
        let taken = watched.map(|part| part.frontier.unfinished()).sum();
        let (parts, config) = (&mut self.parts, &self.config);
        self.watched.retain(|at| {
            let Some(part) = parts.get_mut(*at as usize).and_then(Option::as_mut) else { return false };
            if part.stage == partition::Stage::Live {
                match part.flow(now, config, is_down, taken) {
                    Some(true) => pause.push(part.frontier.epoch()),
                    Some(false) => resume.push(part.frontier.epoch()),
                    None => {}
                }
                part.watched = !part.is_open();
            } else {
                part.watched = false;
            }
            part.watched
        });
        if !pause.is_empty() {
            commands.push(Command::Pause(pause));
        }
        if !resume.is_empty() {
            commands.push(Command::Resume(resume));
        }
    }

    /// Looks at a partition's intake from now on, until nothing is to be decided about it.
    fn look_after(&mut self, at: u32) {
        if let Some(part) = self.parts.get_mut(at as usize).and_then(Option::as_mut)
            && !std::mem::replace(&mut part.watched, true)
        {
            self.watched.push(at);
        }
    }

    /// Handler calls that run.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running
    }

    /// The state at this moment, for whoever asks how things are.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let live = self.parts.iter().flatten().filter(|part| part.stage != partition::Stage::Gone);
        let partitions: Vec<PartitionState> = live.map(Partition::state).collect();
        Snapshot {
            unfinished: partitions.iter().map(|state| state.unfinished).sum(),
            partitions,
            running: self.running,
            claimed: self.ready + self.firsts,
            parked: self.waiting,
            store_down: self.store.is_tripped(),
            downstream_down: self.downstream.is_tripped(),
        }
    }

    fn part_of(&mut self, epoch: Epoch) -> Option<&mut Partition> {
        let at = *self.by_epoch.get(&epoch)?;
        self.parts.get_mut(at as usize)?.as_mut()
    }

    fn part(&self, at: u32) -> Option<&Partition> {
        self.parts.get(at as usize)?.as_ref()
    }

    fn stage(&self, ticket: Ticket) -> partition::Stage {
        let part = self.table.get(ticket).and_then(|entry| self.part(entry.part));
        part.map_or(partition::Stage::Gone, |part| part.stage)
    }

    fn is_live(&self, ticket: Ticket) -> bool {
        self.stage(ticket) == partition::Stage::Live
    }

    /// Moves a message on. All counts hang on it.
    fn set(&mut self, ticket: Ticket, phase: Phase) {
        let Some(entry) = self.table.get_mut(ticket) else { return };
        let (was, is) = (entry.phase.counts(), phase.counts());
        entry.phase = phase;
        let changed = was ^ is;
        if changed == 0 {
            return;
        }
        let (at, lane, claimed) = (entry.part, entry.lane, entry.attempt > 0);
        let change = |bit| if is & bit == 0 { -1 } else { 1 };
        if changed & count::ACTIVE != 0
            && let Some(lane) = self.lanes.get_mut(lane)
        {
            lane.active = lane.active.saturating_add_signed(change(count::ACTIVE));
        }
        if changed & count::IN_HAND != 0 {
            self.count_in_hand(at, change(count::IN_HAND));
        }
        // What needs no claim takes no room among them. The attempt does not change while it is ready.
        if changed & count::READY != 0 && claimed {
            self.ready = self.ready.saturating_add_signed(change(count::READY));
        }
        if changed & (count::FIRST | count::WAITING) != 0 {
            self.firsts = self.firsts + usize::from(is & count::FIRST != 0) - usize::from(was & count::FIRST != 0);
            self.waiting =
                self.waiting + usize::from(is & count::WAITING != 0) - usize::from(was & count::WAITING != 0);
        }
    }

    fn count_in_hand(&mut self, part: u32, change: isize) {
        self.in_hand = self.in_hand.saturating_add_signed(change);
        if let Some(part) = self.parts.get_mut(part as usize).and_then(Option::as_mut) {
            part.in_hand = part.in_hand.saturating_add_signed(change);
        }
    }

    /// Waits, and is queued again after that.
    fn park(&mut self, ticket: Ticket, until: Time, phase: Phase) {
        self.parkings += 1;
        let parking = self.parkings;
        if let Some(entry) = self.table.get_mut(ticket) {
            entry.parking = parking;
        }
        self.set(ticket, phase);
        self.parked.push(Reverse((until, parking, ticket)));
    }

    /// Takes up again what waited long enough.
    fn unpark(&mut self, now: Time) {
        while let Some(Reverse((at, parking, ticket))) = self.parked.peek().copied()
            && at <= now
        {
            self.parked.pop();
            match self.table.get(ticket) {
                Some(entry) if entry.parking == parking => match entry.phase {
                    Phase::Parked => self.requeue(ticket),
                    Phase::Unlettered(cause) => {
                        self.set(ticket, Phase::Lettering(cause));
                        self.letters.push((ticket, cause));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }
}
