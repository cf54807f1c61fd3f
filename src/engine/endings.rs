//! From over to finished: what the store hears, what is given up, what moves the frontier.

use super::event::{Cause, Command, Ending, Settled, Ticket, Time, Verdict};
use super::partition::Stage;
use super::table::{Entry, NONE, Phase};
use super::{Engine, Flaw, OnDead};

impl Engine {
    /// The store is to hear how its claim ends.
    pub(super) fn end(&mut self, ticket: Ticket, verdict: Verdict) {
        self.set(ticket, Phase::Ending(verdict));
        self.ending.push(ticket);
        let lane = self.table.get(ticket).map_or(NONE, |entry| entry.lane);
        self.look_at(lane);
    }

    /// Tells the store all that has ended, unless it still owes an answer.
    pub(super) fn tell(&mut self, now: Time, commands: &mut Vec<Command>) {
        if self.telling || self.ending.is_empty() || self.store.is_open(now) {
            return;
        }
        let most = self.config.claims.max(1).saturating_mul(2).min(self.ending.len());
        let verdict = |ticket: Ticket| match self.table.phase(ticket) {
            Phase::Ending(verdict) => Some((ticket, verdict)),
            Phase::First => Some((ticket, Verdict::Succeeded)),
            _ => None,
        };
        let told: Vec<(Ticket, Verdict)> = self.ending.drain(..most).filter_map(verdict).collect();
        if !told.is_empty() {
            self.telling = true;
            commands.push(Command::Settle(told));
        }
    }

    pub(super) fn settled(&mut self, now: Time, answers: Vec<(Ticket, Settled)>, commands: &mut Vec<Command>) {
        self.telling = false;
        self.store.succeed();
        for (ticket, answer) in answers {
            match self.table.phase(ticket) {
                Phase::First => self.settled_first(ticket, answer),
                Phase::Ending(verdict) => self.settled_one(now, ticket, verdict, answer, commands),
                _ => {}
            }
        }
    }

    fn settled_first(&mut self, ticket: Ticket, answer: Settled) {
        if answer != Settled::Recorded {
            // The claim had been taken over, and another owner may have run it.
            self.requeue(ticket);
        } else if self.is_live(ticket) {
            if let Some(entry) = self.table.get_mut(ticket) {
                entry.spent = true;
            }
            self.make_ready(ticket);
        } else {
            self.finish(ticket, Ending::Handled);
        }
    }

    fn settled_one(
        &mut self,
        now: Time,
        ticket: Ticket,
        verdict: Verdict,
        answer: Settled,
        commands: &mut Vec<Command>,
    ) {
        let Some(entry) = self.table.get_mut(ticket) else { return };
        let wait = std::mem::take(&mut entry.resume_in);
        let suspect = std::mem::take(&mut entry.suspect);
        let stopped = std::mem::take(&mut entry.stopped);
        entry.attempt = 0;
        self.suspected -= usize::from(suspect);
        match (verdict, answer) {
            // Not finished here: where the partition is ours all the same, it begins anew.
            (Verdict::Succeeded, Settled::Fenced) => self.begin_anew(ticket),
            (Verdict::Succeeded, _) => self.finish(ticket, Ending::Handled),
            (Verdict::Dead, Settled::Recorded | Settled::Buried | Settled::Late) => self.finish(ticket, Ending::Dead),
            (Verdict::Released, _) if self.config.has(Flaw::PassReleased) => self.finish(ticket, Ending::Handled),
            (_, _) if stopped => {
                // It keeps its place, and nothing behind it is committed.
                self.leave_hand(ticket, None);
                self.park(ticket, Time::MAX, Phase::Parked);
            }
            (Verdict::Failed { .. }, Settled::Buried) if self.is_live(ticket) => {
                self.give_up(ticket, Cause::DeadBefore, commands);
            }
            (Verdict::Failed { .. }, Settled::Buried) if self.config.on_dead == OnDead::Record => {
                self.finish(ticket, Ending::Dead);
            }
            // It was taken over meanwhile: the store knows what became of it.
            (_, Settled::Refused | Settled::Fenced) => self.requeue(ticket),
            (Verdict::Released, _) if suspect => {
                self.leave_hand(ticket, None);
                self.suspect(ticket);
            }
            (Verdict::Failed { .. } | Verdict::Released, _) => self.resume(now, ticket, wait),
        }
    }

    /// Its turn comes again although it has left its lane, whose number may be another key's by now: it waits for nobody, and nobody for it.
    fn begin_anew(&mut self, ticket: Ticket) {
        self.leave_hand(ticket, None);
        self.unstall(ticket);
        if let Some(entry) = self.table.get_mut(ticket) {
            entry.lane = NONE;
        }
        if self.is_live(ticket) {
            self.set(ticket, Phase::Queued);
            self.queue.push_back(ticket);
        } else {
            self.drop_it(ticket);
        }
    }

    pub(super) fn settle_failed(&mut self, now: Time, tickets: Vec<Ticket>, random: u64, commands: &mut Vec<Command>) {
        if self.config.has(Flaw::SwallowSettleError) {
            self.settled(now, tickets.into_iter().map(|ticket| (ticket, Settled::Recorded)).collect(), commands);
            return;
        }
        self.telling = false;
        self.store.fail(now, random);
        let later = std::mem::replace(&mut self.ending, tickets);
        self.ending.extend(later);
    }

    /// A message is not tried any more.
    pub(super) fn give_up(&mut self, ticket: Ticket, cause: Cause, commands: &mut Vec<Command>) {
        let claimed = self.table.get(ticket).is_some_and(Entry::holds_claim);
        let spent = self.table.get(ticket).is_some_and(|entry| entry.spent);
        let own = self.table.get(ticket).is_some_and(Entry::is_own);
        // What the store does not know, and never will, would be lost.
        let known = if own {
            self.is_live(ticket) && !matches!(cause, Cause::Identity | Cause::Conflict)
        } else {
            claimed || spent || cause == Cause::DeadBefore
        };
        let passes = self.config.on_dead == OnDead::Record && known;
        if !self.is_live(ticket) && !passes {
            // Whoever gets it next finds it as it is, and does what is to be done.
            if claimed {
                self.end(ticket, Verdict::Failed { retry_in: Time::ZERO });
            } else {
                self.drop_it(ticket);
            }
            return;
        }
        match self.config.on_dead {
            OnDead::Letter if self.config.has(Flaw::SettleBeforeLetter) && claimed => {
                commands.push(Command::DeadLetter(vec![(ticket, cause)]));
                self.end(ticket, Verdict::Dead);
            }
            OnDead::Letter => {
                self.set(ticket, Phase::Lettering(cause));
                self.letters.push((ticket, cause));
            }
            OnDead::Record if passes && (claimed || own) => self.end(ticket, Verdict::Dead),
            OnDead::Record if passes => self.finish(ticket, Ending::Dead),
            OnDead::Record | OnDead::Stop => self.stop(ticket, cause, Verdict::Released, commands),
        }
    }

    /// The consumer has to end at this message.
    pub(super) fn stop(&mut self, ticket: Ticket, cause: Cause, verdict: Verdict, commands: &mut Vec<Command>) {
        commands.push(Command::Stop { ticket, cause });
        let claimed = self.table.get(ticket).is_some_and(Entry::holds_claim);
        self.stall(ticket);
        if claimed {
            if let Some(entry) = self.table.get_mut(ticket) {
                entry.stopped = true;
            }
            self.end(ticket, verdict);
        } else {
            self.leave_hand(ticket, None);
            self.park(ticket, Time::MAX, Phase::Parked);
        }
    }

    pub(super) fn lettered(&mut self, tickets: &[Ticket]) {
        self.lettering.succeed();
        for ticket in tickets {
            if !matches!(self.table.phase(*ticket), Phase::Lettering(_)) {
                continue;
            }
            if self.table.get(*ticket).is_some_and(|entry| entry.holds_claim() || entry.is_own()) {
                self.end(*ticket, Verdict::Dead);
            } else {
                self.finish(*ticket, Ending::Dead);
            }
        }
    }

    pub(super) fn letters_failed(&mut self, now: Time, tickets: &[Ticket], random: u64) {
        let wait = self.lettering.fail(now, random);
        for ticket in tickets {
            let Phase::Lettering(cause) = self.table.phase(*ticket) else { continue };
            if self.is_live(*ticket) {
                self.stall(*ticket);
                self.park(*ticket, now + wait, Phase::Unlettered(cause));
            } else {
                self.give_up(*ticket, cause, &mut Vec::new());
            }
        }
    }

    /// A message is finished: it may be committed when all before it are.
    pub(super) fn finish(&mut self, ticket: Ticket, ending: Ending) {
        self.move_frontier(ticket);
        self.leave_hand(ticket, Some(ending));
        self.unstall(ticket);
        self.set(ticket, Phase::Free);
        let lane = self.table.clear(ticket);
        self.finished.push((ticket, ending));
        self.look_at(lane);
    }

    pub(super) fn move_frontier(&mut self, ticket: Ticket) {
        let Some(entry) = self.table.get(ticket) else { return };
        let (at, slot, offset) = (entry.part, entry.slot, entry.offset);
        if self.config.has(Flaw::LateResultsCount) && self.stage(ticket) == Stage::Gone {
            self.move_next(at, offset);
            return;
        }
        let past_gaps = self.config.has(Flaw::CommitPastGap);
        let Some(part) = self.parts.get_mut(at as usize).and_then(Option::as_mut) else { return };
        if part.stage == Stage::Gone {
            return;
        }
        part.finish(slot);
        if past_gaps {
            part.finished_beyond(offset);
        }
        self.finished_since += 1;
    }

    /// What [`Flaw::LateResultsCount`] does: a result of an assignment that is over counts in the next one.
    fn move_next(&mut self, over: u32, offset: i64) {
        let Some(old) = self.part(over).map(|part| (part.topic.clone(), part.partition)) else { return };
        let mut live = self.parts.iter_mut().flatten().filter(|part| part.stage == Stage::Live);
        if let Some(next) = live.find(|part| part.topic == old.0 && part.partition == old.1) {
            next.finished_beyond(offset);
            self.finished_since += 1;
        }
    }
}
