//! From ready to over: what is started, in which order, and what follows from how it ended.

use super::event::{Answer, Cause, Command, Ending, Ran, Start, Ticket, Time, Verdict};
use super::lanes::is_passable;
use super::table::{NONE, Phase};
use super::{Engine, Flaw};

/// Messages that run one after the other without the engine being asked in between.
const CHAIN: usize = 512;

impl Engine {
    /// Starts handlers, as many as may run.
    pub(super) fn start(&mut self, now: Time, starts: &mut Vec<Start>) {
        while self.running < self.config.concurrency.max(1) && self.may_start(now) {
            let chain = self.open_chain(now);
            let began = starts.len();
            match self.config.batch {
                Some(most) => {
                    while starts.len() - began < most.max(1) && self.start_next(chain, began, most, starts) {}
                }
                None => {
                    self.start_next(chain, began, CHAIN, starts);
                }
            }
            if starts.len() == began {
                self.free_chains.push(chain);
                break;
            }
            if let Some(chain) = self.chains.get_mut(chain as usize) {
                chain.count = u32::try_from(starts.len() - began).unwrap_or(u32::MAX);
                chain.left = chain.count;
            }
            if self.config.batch.is_none() {
                self.chained += starts.len() - began - 1;
            }
            self.running += 1;
        }
    }

    /// What is down is tried with one message.
    fn may_start(&self, now: Time) -> bool {
        !self.downstream.is_tripped() || (!self.downstream.is_open(now) && self.running == 0)
    }

    fn open_chain(&mut self, now: Time) -> u32 {
        let id = self.free_chains.pop().unwrap_or_else(|| {
            self.chains.push(super::Chain::default());
            u32::try_from(self.chains.len() - 1).unwrap_or(NONE)
        });
        if let Some(chain) = self.chains.get_mut(id as usize) {
            chain.began = now;
            chain.lanes.clear();
        }
        id
    }

    /// Adds the next lane's messages, or the next message without a lane, to a chain. `false` if there is none.
    fn start_next(&mut self, chain: u32, began: usize, most: usize, starts: &mut Vec<Start>) -> bool {
        let one = self.downstream.is_tripped();
        while let Some(lane) = self.startable.pop_front() {
            if self.start_lane(lane, chain, began, if one { began + 1 } else { began + most }, starts) {
                return !one;
            }
            self.forget(lane);
        }
        while let Some(ticket) = self.loose.pop_front() {
            let is_ready =
                self.table.get(ticket).is_some_and(|entry| entry.phase == Phase::Ready && entry.lane == NONE);
            if is_ready {
                self.start_one(ticket, chain, starts.len() > began, starts);
                return !one;
            }
        }
        false
    }

    fn start_lane(&mut self, id: u32, chain: u32, began: usize, end: usize, starts: &mut Vec<Start>) -> bool {
        let before = starts.len();
        let Some(lane) = self.lanes.get_mut(id) else { return false };
        lane.listed = false;
        if lane.running {
            return false;
        }
        let mut at = 0;
        while starts.len() < end {
            let Some(member) = self.lanes.get(id).and_then(|lane| lane.members.get(at)).copied() else { break };
            at += 1;
            if member.is_passed(&self.table, id) || is_passable(&self.table, &member) {
                continue;
            }
            if self.table.phase(member.ticket) != Phase::Ready {
                break;
            }
            self.start_one(member.ticket, chain, starts.len() > began, starts);
        }
        let started = starts.len() > before;
        if started && let (Some(lane), Some(chain)) = (self.lanes.get_mut(id), self.chains.get_mut(chain as usize)) {
            lane.running = true;
            lane.began = chain.began;
            chain.lanes.push(id);
        }
        started
    }

    fn start_one(&mut self, ticket: Ticket, chain: u32, chained: bool, starts: &mut Vec<Start>) {
        self.set(ticket, Phase::Running);
        let Some(entry) = self.table.get_mut(ticket) else { return };
        entry.chain = chain;
        entry.begun += 1;
        let attempt = if entry.attempt > 0 { entry.attempt } else { entry.begun };
        starts.push(Start { ticket, attempt, chained });
    }

    pub(super) fn ran(&mut self, now: Time, ends: Vec<(Ticket, Ran)>, commands: &mut Vec<Command>) {
        for (ticket, how) in ends {
            let Some(entry) = self.table.get_mut(ticket).filter(|entry| entry.phase == Phase::Running) else {
                continue;
            };
            let chain = std::mem::replace(&mut entry.chain, NONE);
            if matches!(how, Ran::NotBegun | Ran::Lost | Ran::Answered(_)) {
                entry.begun = entry.begun.saturating_sub(1);
            }
            self.ran_one(now, ticket, how, commands);
            self.leave_chain(now, chain);
        }
    }

    fn leave_chain(&mut self, now: Time, id: u32) {
        let Some(chain) = self.chains.get_mut(id as usize) else { return };
        chain.left = chain.left.saturating_sub(1);
        if chain.left > 0 {
            self.chained = self.chained.saturating_sub(usize::from(self.config.batch.is_none()));
            return;
        }
        let (count, took) = (chain.count, now.saturating_sub(chain.began));
        self.pace.ran(count, took, self.running);
        self.running = self.running.saturating_sub(1);
        for lane in std::mem::take(&mut chain.lanes) {
            if let Some(own) = self.lanes.get_mut(lane) {
                own.running = false;
                own.pace.ran(count, took, 1);
            }
            self.look_at(lane);
        }
        self.free_chains.push(id);
    }

    fn ran_one(&mut self, now: Time, ticket: Ticket, how: Ran, commands: &mut Vec<Command>) {
        let Some(entry) = self.table.get(ticket) else { return };
        // Nothing is left to tell the store: there is no record, or it was told before.
        let (untold, spent) = (!entry.holds_claim(), entry.spent);
        // A redelivery may be known without anything being asked.
        let silent = Ran::Answered(Answer::Redelivered);
        if !matches!(how, Ran::Unavailable { .. } | Ran::NotBegun | Ran::Lost | Ran::Aborted) && how != silent {
            self.downstream.succeed();
        }
        match how {
            Ran::Succeeded if untold => self.finish(ticket, Ending::Handled),
            Ran::Succeeded => {
                if self.config.has(Flaw::CommitBeforeSettle) {
                    self.move_frontier(ticket);
                }
                self.end(ticket, Verdict::Succeeded);
            }
            Ran::Finished(ending) => self.finish(ticket, ending),
            Ran::Answered(answer) => self.answered(now, ticket, answer, commands),
            Ran::Failed { .. } if spent => self.give_up(ticket, Cause::Attempts, commands),
            Ran::Failed { retry_in, attempt } => {
                if let Some(entry) = self.table.get_mut(ticket) {
                    entry.looks = 0;
                    if let (Some(attempt), true) = (attempt, untold) {
                        entry.begun = attempt;
                    }
                }
                self.failed(now, ticket, retry_in, untold, commands);
            }
            Ran::Fatal => self.give_up(ticket, Cause::Fatal, commands),
            Ran::Unavailable { random } => {
                let wait = self.downstream.fail(now, random);
                if entry.spent {
                    // At most once: it is lost as whatever else fails; those behind it wait until what is down is back.
                    self.give_up(ticket, Cause::Attempts, commands);
                    return;
                }
                self.put_back(now, ticket, wait, untold);
            }
            Ran::NotBegun if self.is_live(ticket) && !self.is_blocked(ticket) => self.make_ready(ticket),
            Ran::NotBegun | Ran::Lost => self.put_back(now, ticket, Time::ZERO, untold),
            // Its effect may have happened: the attempt counts.
            Ran::Aborted if untold && spent => self.finish(ticket, Ending::Handled),
            // Nothing counts its attempts; it may have been dropped with others of its call, and be ours still.
            Ran::Aborted if untold => self.resume(now, ticket, Time::ZERO),
            Ran::Aborted => self.end(ticket, Verdict::Failed { retry_in: Time::ZERO }),
        }
    }

    /// Whether an earlier one in its lane has to come out first.
    fn is_blocked(&self, ticket: Ticket) -> bool {
        let Some(entry) = self.table.get(ticket) else { return false };
        self.lanes.get(entry.lane).is_some_and(|lane| lane.is_behind_stall(entry.slot))
    }

    /// Gives it back without burning an attempt.
    fn put_back(&mut self, now: Time, ticket: Ticket, wait: Time, untold: bool) {
        if !untold {
            if let Some(entry) = self.table.get_mut(ticket) {
                entry.resume_in = wait;
            }
            if !wait.is_zero() && self.is_live(ticket) {
                self.stall(ticket);
            }
            self.end(ticket, Verdict::Released);
        } else if self.is_live(ticket) {
            self.resume(now, ticket, wait);
        } else {
            self.drop_it(ticket);
        }
    }

    /// Its turn comes again, at once or after a while.
    pub(super) fn resume(&mut self, now: Time, ticket: Ticket, wait: Time) {
        if wait.is_zero() || !self.is_live(ticket) {
            self.requeue(ticket);
        } else {
            self.wait(ticket, now + wait);
        }
    }

    fn failed(&mut self, now: Time, ticket: Ticket, retry_in: Time, untold: bool, commands: &mut Vec<Command>) {
        let attempt = self.table.get(ticket).map_or(1, |entry| if untold { entry.begun } else { entry.attempt });
        if !self.is_live(ticket) {
            // Whoever has the partition next decides.
            if untold {
                self.drop_it(ticket);
            } else {
                self.end(ticket, Verdict::Failed { retry_in });
            }
        } else if attempt >= self.config.max_attempts {
            self.give_up(ticket, Cause::Attempts, commands);
        } else if !self.config.retries {
            self.stop(ticket, Cause::Failed, Verdict::Failed { retry_in: Time::ZERO }, commands);
        } else if untold {
            self.resume(now, ticket, retry_in.max(Time::from_millis(1)));
        } else if self.config.has(Flaw::RetryWithoutClaim) {
            self.make_ready(ticket);
        } else {
            if let Some(entry) = self.table.get_mut(ticket) {
                entry.resume_in = retry_in;
            }
            // Nothing behind it is begun from now on, whatever the store says.
            self.stall(ticket);
            self.end(ticket, Verdict::Failed { retry_in });
        }
    }

    /// Starts a lane's next messages if they can be, and forgets a lane that has none.
    pub(super) fn look_at(&mut self, id: u32) {
        if id == NONE {
            return;
        }
        self.file(id);
        if self.lanes.get(id).is_some_and(|lane| lane.running) {
            // Nothing of it starts before its chain is over, which looks at it again.
            return;
        }
        if self.lanes.advance(id, &self.table) {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.listed = true;
                self.startable.push_back(id);
            }
            return;
        }
        self.forget(id);
    }

    /// Forgets a lane of a key that has no messages, unless it is listed anywhere: whoever takes it off the list comes back to this.
    pub(super) fn forget(&mut self, id: u32) {
        if self.config.order != super::Order::Key {
            return;
        }
        let Some(lane) = self.lanes.get(id) else { return };
        if lane.members.is_empty() && !lane.running && !lane.listed && !lane.filed {
            let (part, hash) = (lane.part, lane.hash);
            if let Some(part) = self.parts.get_mut(part as usize).and_then(Option::as_mut)
                && part.lanes.get(&hash) == Some(&id)
            {
                part.lanes.remove(&hash);
                self.lanes.close(id);
            }
        }
    }
}
