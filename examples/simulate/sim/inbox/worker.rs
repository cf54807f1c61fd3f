//! A worker: takes, runs handlers, finishes.

use hapax::inbox::rules::Class;

use super::server::WORKERS;
use super::{Ask, Call, End, How, Said, Taken, Tx};
use crate::sim::database::notice;
use crate::sim::flaws::DriverFlaw;
use crate::sim::history::{Act, Ended, What};
use crate::sim::plan::{MS, Micros, SECOND};
use crate::sim::process::NONE;
use crate::sim::world::{Happening, Sent, World};

/// How much earlier than the database a worker takes its lease for over.
const MARGIN: Micros = 2 * MS;

#[derive(Clone, Debug, Default)]
pub struct Worker {
    alive: bool,
    /// What is told under another number is told to nobody.
    serial: u32,
    pub paused_until: Micros,
    /// It looks for work at a time of its own, sooner when it is woken.
    idle: bool,
    wait: Micros,
    next_sweep: Micros,
    tx: u32,
    /// When it last took.
    took: Micros,
    hand: Option<Hand>,
}

/// A run in its hands.
#[derive(Clone, Debug, Default)]
struct Hand {
    run: i64,
    taken: Vec<Taken>,
    /// When its lease is over, as far as the worker knows.
    until: Micros,
    ends: Vec<End>,
    /// Effects outside that will have happened, whatever came of their handlers.
    effects: Vec<u32>,
    kills: bool,
}

impl World {
    fn worker(&mut self, worker: usize) -> Option<&mut Worker> {
        self.inbox.as_mut().and_then(|inbox| inbox.workers.get_mut(worker))
    }

    pub fn start_workers(&mut self) {
        let count = self.inbox.as_ref().map_or(0, |inbox| inbox.workers.len());
        for worker in 0..count as u32 {
            let delay = self.random.below(4 * SECOND);
            self.at(delay, Sent::World(NONE), Happening::WorkerStart(worker));
        }
        if self.inbox.as_ref().is_some_and(|inbox| inbox.acts_left > 0) {
            self.at(SECOND, Sent::World(NONE), Happening::Operate);
        }
    }

    pub fn worker_starts(&mut self, worker: usize) {
        let Some(one) = self.worker(worker) else { return };
        if std::mem::replace(&mut one.alive, true) {
            return;
        }
        one.serial += 1;
        one.wait = 0;
        self.log(WORKERS + worker, What::Started { place: worker as u32 });
        self.worker_rests(worker, 0);
    }

    /// It ends at once. What it sent is on its way.
    pub fn worker_crashes(&mut self, worker: usize) {
        let Some(one) = self.worker(worker) else { return };
        if !std::mem::replace(&mut one.alive, false) {
            return;
        }
        one.serial += 1;
        one.idle = false;
        one.hand = None;
        let tx = one.tx;
        self.crashes += 1;
        self.log(WORKERS + worker, What::Crashed);
        self.worker_hangs_up(tx);
        let delay = self.random.between(50 * MS, 2 * SECOND);
        self.at(self.now + delay, Sent::World(NONE), Happening::WorkerStart(worker as u32));
    }

    fn worker_crash_at_step(&mut self, worker: usize) -> bool {
        if self.crashes_left == 0 || !self.random.chance(self.weather.crash_at_step) {
            return false;
        }
        self.crashes_left -= 1;
        self.worker_crashes(worker);
        true
    }

    fn worker_hangs_up(&mut self, tx: u32) {
        let over = self.inbox.as_ref().and_then(|inbox| inbox.txs.get(tx as usize)).is_none_or(|tx| tx.over);
        if !over {
            let delay = notice(&mut self.random) / 4;
            self.at(self.now + delay, Sent::World(NONE), Happening::InboxDrop(tx));
        }
    }

    /// Nothing to do for a while.
    fn worker_rests(&mut self, worker: usize, least: Micros) {
        let now = self.now;
        let jitter = self.random.below(2 * MS);
        let Some(one) = self.worker(worker) else { return };
        (one.idle, one.hand) = (true, None);
        one.serial += 1;
        let serial = one.serial;
        self.at(now + least + jitter, Sent::World(NONE), Happening::WorkerGo { worker: worker as u32, serial });
    }

    /// There is work.
    pub fn wake_workers(&mut self) {
        let now = self.now;
        let Some(inbox) = &self.inbox else { return };
        let idle: Vec<(usize, u32)> = (0..)
            .zip(&inbox.workers)
            .filter(|(_, one)| one.idle && one.wait > 0)
            .map(|(at, one)| (at, one.serial))
            .collect();
        for (worker, serial) in idle {
            if let Some(one) = self.worker(worker) {
                one.wait = 0;
            }
            let delay = self.random.between(100, 3 * MS);
            self.at(now + delay, Sent::World(NONE), Happening::WorkerGo { worker: worker as u32, serial });
        }
    }

    /// Whether a worker stands still: what is for it comes once it goes on.
    fn worker_waits(&mut self, worker: usize, what: Happening) -> bool {
        let now = self.now;
        let Some(until) = self.worker(worker).map(|one| one.paused_until) else { return true };
        if now < until {
            self.at(until, Sent::World(NONE), what);
        }
        now < until
    }

    pub fn worker_goes(&mut self, worker: usize, serial: u32) {
        if self.worker_waits(worker, Happening::WorkerGo { worker: worker as u32, serial }) {
            return;
        }
        let now = self.now;
        let Some(one) = self.worker(worker) else { return };
        if one.serial != serial || !one.alive || !std::mem::replace(&mut one.idle, false) {
            return;
        }
        let sweeps = now >= one.next_sweep;
        let lease = self.inbox.as_ref().map_or(0, |inbox| inbox.settings.lease);
        if sweeps {
            if let Some(one) = self.worker(worker) {
                one.next_sweep = now + lease / 2;
            }
            return self.worker_asks(worker, Ask::Sweep);
        }
        self.worker_begins(worker);
        self.worker_asks(worker, Ask::Take);
    }

    /// A transaction of its own.
    fn worker_begins(&mut self, worker: usize) {
        let Some(inbox) = &mut self.inbox else { return };
        inbox.txs.push(Tx::default());
        inbox.workers[worker].tx = inbox.txs.len() as u32 - 1;
    }

    /// Sends a request on its way, and decides what becomes of it.
    fn worker_asks(&mut self, worker: usize, ask: Ask) {
        let (now, weather) = (self.now, self.weather);
        let slow = self.random.chance(weather.slow);
        let trip = self.plan.round_trip;
        let there = if slow { self.random.between(SECOND / 4, 3 * SECOND) } else { self.random.between(50, trip) };
        let patience = self.random.between(SECOND / 2, 3 * SECOND);
        let (mut arrives, mut lost) = (Some(now + there), None);
        if now < self.store.down_until {
            (arrives, lost) = (None, Some(now + 100 * MS));
        } else if self.random.chance(weather.request_lost) {
            (arrives, lost) = (None, Some(now + patience));
        } else if self.random.chance(weather.reply_lost) {
            lost = Some(now + patience.max(there));
        } else if self.random.chance(weather.late) {
            lost = Some(now + patience);
            arrives = Some(now + patience + self.random.between(MS, 3 * SECOND));
        }
        let until = arrives.unwrap_or(now) + self.plan.lock_wait;
        let Some(inbox) = &mut self.inbox else { return };
        let one = &mut inbox.workers[worker];
        // Whether a lease is prolonged is not waited for.
        let waits = ask != Ask::Prolong;
        one.serial += u32::from(waits);
        let (serial, tx) = (one.serial, one.tx);
        let (run, ends) = one.hand.as_ref().map_or((0, Vec::new()), |hand| (hand.run, hand.ends.clone()));
        let heard = waits && lost.is_none();
        inbox.calls.push(Call { worker, serial, ask, run, ends, tx, heard, until, said: Said::Lost });
        let index = inbox.calls.len() as u32 - 1;
        if let Some(at) = arrives {
            self.at(at, Sent::World(NONE), Happening::InboxArrives(index));
        }
        if let Some(at) = lost.filter(|_| waits) {
            self.at(at, Sent::World(NONE), Happening::InboxSaid(index));
            if ask.is_within() {
                let gone = arrives.unwrap_or(at).max(at) + notice(&mut self.random);
                self.at(gone, Sent::World(NONE), Happening::InboxDrop(tx));
            }
        }
    }

    pub fn inbox_said(&mut self, index: u32) {
        let Some(inbox) = &self.inbox else { return };
        let call = &inbox.calls[index as usize];
        let (worker, serial, ask, said, tx, run) = (call.worker, call.serial, call.ask, call.said, call.tx, call.run);
        if self.worker_waits(worker, Happening::InboxSaid(index)) {
            return;
        }
        if self.worker(worker).is_none_or(|one| one.serial != serial || !one.alive) {
            return;
        }
        if self.worker_crash_at_step(worker) {
            return;
        }
        let moment = self.random.between(2 * MS, 200 * MS);
        match (ask, said) {
            (Ask::Take, Said::Done) => {
                let now = self.now;
                if let Some(one) = self.worker(worker) {
                    one.took = now;
                }
                self.worker_asks(worker, Ask::TakeCommit);
            }
            (Ask::Take, Said::Nothing) => {
                let Some(one) = self.worker(worker) else { return };
                one.wait = (one.wait * 2).clamp(5 * MS, 250 * MS);
                let wait = one.wait;
                self.worker_rests(worker, wait);
            }
            (Ask::TakeCommit | Ask::Mine(_), Said::Run(run)) => self.worker_has(worker, run),
            // Nothing is guessed: a run that was taken and not heard of would be lost, and an attempt with it.
            (Ask::TakeCommit, Said::Lost) => self.worker_asks(worker, Ask::Mine(tx)),
            (Ask::Mine(tx), Said::Lost | Said::Aborted) => self.worker_asks(worker, Ask::Mine(tx)),
            (Ask::Hold, Said::Done) => self.worker_handles(worker),
            (Ask::Finish, Said::Done) => self.worker_asks(worker, Ask::Commit),
            (Ask::Commit | Ask::Ended | Ask::Conclude, Said::Done) | (Ask::Sweep, _) => self.worker_rests(worker, 0),
            (Ask::Hold | Ask::Finish, Said::Gone) => {
                self.log(WORKERS + worker, What::Note("run taken over"));
                self.worker_rests(worker, 0);
            }
            (Ask::Commit, Said::Lost) => {
                self.log(WORKERS + worker, What::Note("commit in doubt"));
                self.worker_asks(worker, Ask::Ended);
            }
            (Ask::Ended, Said::Gone) | (Ask::Hold | Ask::Finish | Ask::Commit, _) => self.worker_again(worker, run),
            (Ask::Ended | Ask::Conclude, _) => self.worker_asks(worker, ask),
            _ => {
                self.worker_hangs_up(tx);
                self.worker_rests(worker, moment);
            }
        }
    }

    /// Rolled back: once more, if the run is still its own.
    fn worker_again(&mut self, worker: usize, _run: i64) {
        let tx = self.worker(worker).map_or(NONE, |one| one.tx);
        self.worker_hangs_up(tx);
        self.worker_begins(worker);
        self.worker_asks(worker, Ask::Hold);
    }

    fn worker_has(&mut self, worker: usize, run: i64) {
        let taken = self.inbox_taken(run);
        let Some(inbox) = &mut self.inbox else { return };
        let inside = inbox.settings.inside;
        let one = &mut inbox.workers[worker];
        let until = one.took + inbox.settings.lease - MARGIN.min(inbox.settings.lease);
        one.wait = 0;
        one.hand = Some(Hand { run, taken, until, ..Hand::default() });
        if inside {
            self.worker_begins(worker);
            self.worker_asks(worker, Ask::Hold);
        } else {
            self.worker_handles(worker);
        }
    }

    /// Runs handlers, one after the other; a lane with one that failed waits.
    fn worker_handles(&mut self, worker: usize) {
        let Some(mut hand) = self.worker(worker).and_then(|one| one.hand.take()) else { return };
        let (by_key, inside, lease) = self
            .inbox
            .as_ref()
            .map_or((false, false, 0), |inbox| (inbox.settings.by_key, inbox.settings.inside, inbox.settings.lease));
        (hand.ends, hand.effects, hand.kills) = (Vec::new(), Vec::new(), false);
        let goes_on = self.flaws.driver == Some(DriverFlaw::LaneGoesOn);
        // Nothing begins outside under a lease that ran out.
        let late = !inside && self.now >= hand.until && self.flaws.driver != Some(DriverFlaw::BeginLate);
        let mut blocked: Vec<i64> = Vec::new();
        let (mut begun, mut hangs) = (0, false);
        for taken in &hand.taken {
            let behind = by_key && !goes_on && blocked.contains(&taken.lane);
            if behind || late || hand.kills {
                hand.ends.push(End { taken: *taken, how: How::Released });
                continue;
            }
            begun += 1;
            let outcome = self.outcome(taken.message);
            hangs |= self.random.chance(self.weather.handler_hangs);
            let random = self.random.next();
            let failed = |class| How::Failed { class, random };
            let how = match outcome.how {
                Ended::Succeeded => How::Succeeded,
                Ended::Failed => failed(Class::Retryable),
                Ended::Fatal => failed(Class::Fatal),
                Ended::Unavailable => failed(Class::Unavailable),
                Ended::Aborted => How::Released,
            };
            hand.kills |= outcome.kills;
            // Inside it would be rolled back.
            if outcome.effect && !inside {
                hand.effects.push(taken.message);
            }
            if how != How::Succeeded {
                blocked.push(taken.lane);
            }
            hand.ends.push(End { taken: *taken, how });
        }
        let pace = self.plan.pace;
        let duration = match begun {
            0 => 0,
            _ if hangs => self.random.between(SECOND, 30 * SECOND),
            _ => self.random.below(pace + 1) * begun.min(4),
        };
        let Some(one) = self.worker(worker) else { return };
        one.hand = Some(hand);
        one.serial += 1;
        let serial = one.serial;
        let worker = worker as u32;
        self.at(self.now + duration, Sent::World(NONE), Happening::WorkerHandled { worker, serial });
        if !inside && duration > lease / 3 {
            self.at(self.now + lease / 3, Sent::World(NONE), Happening::WorkerRenews { worker, serial });
        }
    }

    /// Its lease is prolonged while handlers run outside.
    pub fn worker_renews(&mut self, worker: usize, serial: u32) {
        if self.worker_waits(worker, Happening::WorkerRenews { worker: worker as u32, serial }) {
            return;
        }
        let lease = self.inbox.as_ref().map_or(0, |inbox| inbox.settings.lease);
        if self.worker(worker).is_none_or(|one| one.serial != serial || !one.alive) {
            return;
        }
        self.worker_asks(worker, Ask::Prolong);
        let what = Happening::WorkerRenews { worker: worker as u32, serial };
        self.at(self.now + lease / 3, Sent::World(NONE), what);
    }

    /// The handlers are over.
    pub fn worker_handled(&mut self, worker: usize, serial: u32) {
        if self.worker_waits(worker, Happening::WorkerHandled { worker: worker as u32, serial }) {
            return;
        }
        if self.worker(worker).is_none_or(|one| one.serial != serial || !one.alive) {
            return;
        }
        let inside = self.inbox.as_ref().is_some_and(|inbox| inbox.settings.inside);
        let Some(hand) = self.worker(worker).and_then(|one| one.hand.as_mut()) else { return };
        let (run, kills, effects) = (hand.run, hand.kills, std::mem::take(&mut hand.effects));
        for message in effects {
            self.log(WORKERS + worker, What::Inbox { message, run: run as u32, act: Act::Worked });
        }
        if kills {
            self.inbox_killed(run);
            return self.worker_crashes(worker);
        }
        if self.worker_crash_at_step(worker) {
            return;
        }
        self.worker_asks(worker, if inside { Ask::Finish } else { Ask::Conclude });
    }
}
