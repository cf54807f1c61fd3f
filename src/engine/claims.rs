//! From the queue to the store and back: what is claimed, and what became of it.

use std::collections::hash_map;

use super::event::{Answer, Cause, Command, Ending, Subject, Ticket, Time, Verdict};
use super::lanes::is_passable;
use super::table::{Entry, Member, NONE, Phase};
use super::{Conflicts, Engine, Flaw, Hand};

/// Waits between two looks at a message in another owner's hand: 5 ms doubling to a second.
const FIRST_LOOK: Time = Time::from_millis(5);
const LAST_LOOK: Time = Time::from_secs(1);
/// How long a suspect waits for what runs, and others for a suspect that runs.
const ALONE: Time = Time::from_secs(5);

/// How many messages may be claimed: for handlers that are free, ahead of those that are not yet, and in all.
struct Room {
    free: usize,
    ahead: usize,
    most: usize,
}

impl Room {
    /// So many, wherever they are.
    const fn any(most: usize) -> Self {
        Self { free: most, ahead: most, most }
    }
}

impl Engine {
    /// Asks the store for messages, as many as will soon be begun; what has no record needs no asking.
    pub(super) fn ask(&mut self, now: Time, commands: &mut Vec<Command>) {
        if self.must_make_way() {
            self.ask_alone(now, commands);
        }
        if self.must_make_way() {
            return;
        }
        let mut room = self.room(now);
        let mut asked = Vec::new();
        if self.bare || room.free > 0 || room.ahead > 0 {
            self.ask_idle(&mut room, &mut asked, commands);
        }
        room.ahead = room.ahead.min(room.most.saturating_sub(asked.len()));
        if self.bare || room.ahead > 0 {
            self.ask_busy(now, &mut room, &mut asked, commands);
        }
        if !asked.is_empty() {
            self.asking = true;
            commands.push(Command::Claim(asked));
        }
    }

    /// First those that a free handler can begin at once: one (or one call's worth) of each lane whose first is not claimed, and what has no lane.
    fn ask_idle(&mut self, room: &mut Room, asked: &mut Vec<Ticket>, commands: &mut Vec<Command>) {
        let per_call = self.config.batch.unwrap_or(1).max(1);
        for _ in 0..self.filed.len() {
            if room.free == 0 && !self.bare {
                break;
            }
            let Some(id) = self.filed.pop_front() else { break };
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            lane.filed = false;
            let has_claimable = lane.has_claimable();
            if has_claimable && self.lanes.begins_with_pending(id, &self.table) {
                self.take_from(id, &mut room.free, asked, commands, per_call);
            }
            self.file(id);
            self.forget(id);
        }
        while let Some(ticket) = self.queue.front().copied() {
            let mut none = 0;
            let budget = match room {
                Room { free, .. } if *free > 0 => free,
                Room { ahead, most, .. } if asked.len() < *most => ahead,
                Room { .. } => &mut none,
            };
            if !self.take(ticket, budget, asked, commands) {
                break;
            }
            self.queue.pop_front();
        }
    }

    /// Then those that will be begun soon, lane by lane in turns. What is behind a slow handler will not be. Of many lanes each gets its share
    /// first: a lane that has none claimed when its handler ends waits for two calls.
    fn ask_busy(&mut self, now: Time, room: &mut Room, asked: &mut Vec<Ticket>, commands: &mut Vec<Command>) {
        const TURN: usize = 64;
        loop {
            let mut taken = 0;
            // What needs no claim takes no share.
            let share = if self.bare { TURN } else { room.ahead / self.filed.len().max(1) };
            let turn = share.clamp(1, TURN);
            for _ in 0..self.filed.len() {
                if room.ahead == 0 && !self.bare {
                    return;
                }
                let Some(id) = self.filed.pop_front() else { break };
                let Some(lane) = self.lanes.get_mut(id) else { continue };
                lane.filed = false;
                if lane.is_slow(now) {
                    // Listed again when its chain is over.
                    continue;
                }
                let own = lane.ahead().min(room.ahead);
                let mut left = own;
                taken += self.take_from(id, &mut left, asked, commands, turn);
                room.ahead -= own - left;
                self.file(id);
                self.forget(id);
            }
            if taken == 0 {
                return;
            }
        }
    }

    /// Takes up to `most` messages of a lane. Answers how many.
    fn take_from(
        &mut self,
        id: u32,
        budget: &mut usize,
        asked: &mut Vec<Ticket>,
        commands: &mut Vec<Command>,
        most: usize,
    ) -> usize {
        let mut taken = 0;
        while taken < most
            && let Some(lane) = self.lanes.get_mut(id)
            && lane.has_claimable()
            && let Some(member) = lane.pending.front().copied()
        {
            lane.pending.pop_front();
            if !self.take(member.ticket, budget, asked, commands) {
                if let Some(lane) = self.lanes.get_mut(id) {
                    lane.pending.push_front(member);
                }
                break;
            }
            taken += 1;
        }
        taken
    }

    /// Takes a message whose turn has come. `false` if the budget does not allow it.
    fn take(
        &mut self,
        ticket: Ticket,
        budget: &mut usize,
        asked: &mut Vec<Ticket>,
        commands: &mut Vec<Command>,
    ) -> bool {
        let Some(entry) = self.table.get(ticket).filter(|entry| entry.phase == Phase::Queued) else {
            return true;
        };
        let (subject, lane) = (entry.subject, entry.lane);
        match subject {
            Subject::Bare | Subject::Own => self.make_ready(ticket),
            Subject::Refused => self.give_up(ticket, Cause::Identity, commands),
            Subject::Known { .. } if *budget == 0 => return false,
            Subject::Known { key, fingerprint } => {
                if !self.wait_as_twin(ticket, key, fingerprint, lane) {
                    self.set(ticket, Phase::Claiming);
                    asked.push(ticket);
                    *budget -= 1;
                }
            }
        }
        true
    }

    /// Lists a lane that has something to claim.
    pub(super) fn file(&mut self, id: u32) {
        if let Some(lane) = self.lanes.get_mut(id).filter(|lane| !lane.filed && lane.has_claimable()) {
            lane.filed = true;
            self.filed.push_back(id);
        }
    }

    /// How many messages may be claimed now.
    fn room(&self, now: Time) -> Room {
        if self.asking || self.store.is_open(now) || self.downstream.is_open(now) {
            return Room::any(0);
        }
        if self.config.max_attempts <= 1 && !self.config.settle_first {
            // A crash would use up the only attempt of all that were claimed together.
            return Room::any(usize::from(self.hands.is_empty()));
        }
        if self.store.is_tripped() {
            return Room::any(1);
        }
        if self.downstream.is_tripped() {
            return Room::any(usize::from(self.running == 0 && self.firsts == 0));
        }
        let claims = self.config.claims.max(1);
        if self.ending.len() > 2 * claims {
            // Handlers are quicker than the store can be told: a crash would repeat all that it has not heard.
            return Room::any(0);
        }
        let per_call = self.config.batch.unwrap_or(1).max(1);
        // What could be started was: what is ready lies behind others in its lane, or all handlers are busy.
        let free = self.config.concurrency.saturating_sub(self.running).saturating_mul(per_call);
        let free = free.saturating_sub(self.firsts).min(claims);
        let ahead = self.pace.ahead().saturating_sub(self.ready + self.firsts + self.chained);
        Room { free, ahead: ahead.min(claims), most: claims }
    }

    /// Whether a message waits for another one with the same identity that is in hand; notes it in hand if not.
    fn wait_as_twin(
        &mut self,
        ticket: Ticket,
        key: crate::identity::Key,
        own: crate::identity::Fingerprint,
        lane: u32,
    ) -> bool {
        if self.config.has(Flaw::IgnoreTwins) {
            return false;
        }
        let hand = match self.hands.entry(key) {
            hash_map::Entry::Vacant(free) => {
                free.insert(Hand { first: ticket, waiting: Vec::new() });
                return false;
            }
            hash_map::Entry::Occupied(hand) => hand.into_mut(),
        };
        hand.waiting.push(ticket);
        let first = self.table.get(hand.first);
        let same = |subject: Subject| matches!(subject, Subject::Known { fingerprint, .. } if fingerprint == own);
        // A lane's number is given again, and a message of an assignment that is over keeps the one it had.
        let part = self.table.get(ticket).map(|entry| entry.part);
        let is_before = |first: &Entry| first.lane == lane && Some(first.part) == part && same(first.subject);
        let passable = lane != NONE && first.is_some_and(is_before);
        self.set(ticket, Phase::Twin { passable });
        if !passable {
            self.stall(ticket);
        }
        true
    }

    /// One message at a time, with nothing else in hand. Neither waits for the other for ever: a handler may take as long as it likes.
    fn ask_alone(&mut self, now: Time, commands: &mut Vec<Command>) {
        let mut until = *self.alone_until.get_or_insert(now + ALONE);
        if self.alone.is_some() {
            if now < until {
                return;
            }
            self.alone = None;
            self.alone_until = None;
            if !self.must_make_way() {
                return;
            }
            until = now + ALONE;
            self.alone_until = Some(until);
        }
        let claimed = |entry: &Entry| entry.phase == Phase::Ready && entry.holds_claim();
        let waiting: Vec<Ticket> =
            self.table.iter().filter(|(_, entry)| claimed(entry)).map(|(ticket, _)| ticket).collect();
        waiting.into_iter().for_each(|ticket| self.end(ticket, Verdict::Released));
        if (self.in_hand > 0 && now < until) || self.asking || self.store.is_open(now) || self.downstream.is_open(now) {
            return;
        }
        let at = self.suspects.iter().position(|ticket| !self.is_behind(*ticket));
        let Some(ticket) = at.and_then(|at| self.suspects.remove(at)) else { return };
        let Some(Subject::Known { key, fingerprint }) = self.table.get(ticket).map(|entry| entry.subject) else {
            return;
        };
        self.unstall(ticket);
        if self.wait_as_twin(ticket, key, fingerprint, NONE) {
            return;
        }
        self.alone = Some(ticket);
        self.alone_until = Some(now + ALONE);
        self.asking = true;
        self.set(ticket, Phase::Claiming);
        commands.push(Command::Claim(vec![ticket]));
    }

    pub(super) fn claimed(&mut self, now: Time, answers: Vec<(Ticket, Answer)>, commands: &mut Vec<Command>) {
        self.asking = false;
        self.store.succeed();
        for (ticket, answer) in answers {
            if self.table.phase(ticket) != Phase::Claiming {
                continue;
            }
            self.answered(now, ticket, answer, commands);
        }
    }

    /// What follows from an answer, be it to a claim or of whatever remembers the message by itself.
    pub(super) fn answered(&mut self, now: Time, ticket: Ticket, answer: Answer, commands: &mut Vec<Command>) {
        let own = self.table.get(ticket).is_some_and(Entry::is_own);
        match answer {
            // There was nothing to acquire: its turn comes again.
            Answer::Acquired { .. } if own => self.requeue(ticket),
            Answer::Acquired { attempt } => self.acquired(ticket, attempt),
            _ if !self.is_live(ticket) => self.drop_it(ticket),
            Answer::Redelivered => self.finish(ticket, Ending::Redelivered),
            Answer::SameId => self.finish(ticket, Ending::SameId),
            Answer::InFlight { .. } if self.config.has(Flaw::PassInFlight) => self.finish(ticket, Ending::SameId),
            Answer::InFlight { remaining } => {
                let looks = self.table.get(ticket).map_or(0, |entry| entry.looks);
                let step = FIRST_LOOK.saturating_mul(1 << looks.min(10)).min(LAST_LOOK);
                if let Some(entry) = self.table.get_mut(ticket) {
                    entry.looks = looks.saturating_add(1);
                }
                let remaining = if remaining.is_zero() { step } else { remaining };
                self.wait(ticket, now + remaining.max(Time::from_millis(1)).min(step));
            }
            Answer::NotDue { remaining } => self.wait(ticket, now + remaining.max(Time::from_millis(1))),
            Answer::Dead => self.give_up(ticket, Cause::DeadBefore, commands),
            Answer::Refused => self.give_up(ticket, Cause::Identity, commands),
            Answer::Conflict => match self.config.conflicts {
                Conflicts::Skip => self.finish(ticket, Ending::Conflict),
                Conflicts::GiveUp => self.give_up(ticket, Cause::Conflict, commands),
                // What remembers by itself would find the same conflict again: there, it is handled without being asked about.
                Conflicts::Handle if own => self.give_up(ticket, Cause::Conflict, commands),
                Conflicts::Handle => {
                    self.leave_hand(ticket, None);
                    if let Some(entry) = self.table.get_mut(ticket) {
                        entry.subject = Subject::Bare;
                    }
                    self.make_ready(ticket);
                }
            },
        }
    }

    fn acquired(&mut self, ticket: Ticket, attempt: u32) {
        let Some(entry) = self.table.get_mut(ticket) else { return };
        entry.attempt = attempt;
        entry.looks = 0;
        let (begun, lane, slot) = (entry.begun, entry.lane, entry.slot);
        if !self.is_live(ticket) {
            self.end(ticket, Verdict::Released);
        } else if self.alone == Some(ticket) {
            self.ready_or_first(ticket);
        } else if attempt > begun + 1 && attempt > (self.config.max_attempts / 2).max(1) {
            // Begun elsewhere, again and again, and never ended: it may be what ends processes, and must not take others with it.
            if let Some(entry) = self.table.get_mut(ticket) {
                entry.suspect = true;
                self.suspected += 1;
            }
            self.end(ticket, Verdict::Released);
        } else if self.lanes.get(lane).is_some_and(|lane| lane.is_behind_stall(slot)) || self.must_make_way() {
            self.end(ticket, Verdict::Released);
        } else {
            self.ready_or_first(ticket);
        }
    }

    /// Whether claims are given back so that a suspect can run alone.
    fn must_make_way(&self) -> bool {
        let may_run = |ticket: &Ticket| !self.is_behind(*ticket);
        self.suspected > 0 || self.alone.is_some() || self.suspects.iter().any(may_run)
    }

    /// Whether something before it in its lane has to be through first.
    fn is_behind(&self, ticket: Ticket) -> bool {
        let Some(entry) = self.table.get(ticket) else { return false };
        let Some(lane) = self.lanes.get(entry.lane) else { return false };
        let mut before = lane.members.iter().take_while(|member| member.slot.place() < entry.slot.place());
        before.any(|member| !member.is_passed(&self.table, entry.lane) && !is_passable(&self.table, member))
    }

    fn ready_or_first(&mut self, ticket: Ticket) {
        if self.config.settle_first {
            self.set(ticket, Phase::First);
            self.ending.push(ticket);
        } else {
            self.make_ready(ticket);
        }
    }

    pub(super) fn make_ready(&mut self, ticket: Ticket) {
        self.set(ticket, Phase::Ready);
        let lane = self.table.get(ticket).map_or(NONE, |entry| entry.lane);
        if lane == NONE {
            self.loose.push_back(ticket);
        } else {
            self.look_at(lane);
        }
    }

    pub(super) fn claim_failed(&mut self, now: Time, tickets: Vec<Ticket>, random: u64) {
        self.asking = false;
        self.store.fail(now, random);
        for ticket in tickets.into_iter().rev() {
            if self.table.phase(ticket) != Phase::Claiming {
                continue;
            }
            if self.alone == Some(ticket) {
                self.leave_hand(ticket, None);
                self.suspect(ticket);
            } else if self.config.has(Flaw::FailOpen) {
                self.make_ready(ticket);
            } else {
                self.requeue(ticket);
            }
        }
    }

    /// Waits for its turn to run alone.
    pub(super) fn suspect(&mut self, ticket: Ticket) {
        if !self.is_live(ticket) {
            self.drop_it(ticket);
            return;
        }
        self.set(ticket, Phase::Suspect);
        self.stall(ticket);
        self.suspects.push_back(ticket);
    }

    /// Waits until then, and is claimed again.
    pub(super) fn wait(&mut self, ticket: Ticket, until: Time) {
        self.leave_hand(ticket, None);
        self.stall(ticket);
        self.park(ticket, until, Phase::Parked);
    }

    /// Those behind it in its lane are not claimed, and what of them is claimed is given back.
    pub(super) fn stall(&mut self, ticket: Ticket) {
        let Some(entry) = self.table.get_mut(ticket).filter(|entry| entry.lane != NONE) else { return };
        if entry.stalls {
            return;
        }
        if self.config.step_aside || self.config.has(Flaw::ForgetOrder) {
            // The others go on without it.
            let id = std::mem::replace(&mut entry.lane, NONE);
            let active = entry.phase.is_active();
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.active = lane.active.saturating_sub(usize::from(active));
            }
            self.look_at(id);
            return;
        }
        entry.stalls = true;
        let (slot, at) = (entry.slot, entry.lane);
        let Some(lane) = self.lanes.get_mut(at) else { return };
        lane.stalled.push(slot.place());
        let behind = lane.members.iter().filter(|member| member.slot.place() > slot.place());
        // What finished out of turn left its place here, and its number may be that of a message further back: each is given back once.
        let any = self.config.has(Flaw::GivenBackTwice);
        let is_claimed = |member: &&Member| {
            let entry = if any { self.table.get(member.ticket) } else { member.entry(&self.table, at) };
            entry.is_some_and(|e| e.lane == at && e.phase == Phase::Ready && e.holds_claim())
        };
        let claimed: Vec<Ticket> = behind.filter(is_claimed).map(|member| member.ticket).collect();
        claimed.into_iter().for_each(|ticket| self.end(ticket, Verdict::Released));
    }

    /// Those behind it may be claimed again.
    pub(super) fn unstall(&mut self, ticket: Ticket) {
        let Some(entry) = self.table.get_mut(ticket).filter(|entry| entry.stalls) else { return };
        entry.stalls = false;
        let (place, at) = (entry.slot.place(), entry.lane);
        let Some(lane) = self.lanes.get_mut(at) else { return };
        lane.stalled.retain(|stalled| *stalled != place);
        self.file(at);
    }

    /// The store has heard, or need not hear, how it ended: others with the same identity may go on. `ending`: how it finished, if it did.
    pub(super) fn leave_hand(&mut self, ticket: Ticket, ending: Option<Ending>) {
        if self.alone == Some(ticket) {
            self.alone = None;
            self.alone_until = None;
        }
        let Some(entry) = self.table.get(ticket) else { return };
        let Subject::Known { key, fingerprint } = entry.subject else { return };
        let (part, offset) = (entry.part, entry.offset);
        let hash_map::Entry::Occupied(hand) = self.hands.entry(key) else { return };
        if hand.get().first != ticket {
            return;
        }
        let hand = hand.remove();
        let known = matches!(ending, Some(Ending::Handled | Ending::Redelivered | Ending::SameId));
        for twin in hand.waiting.into_iter().rev() {
            let Some(entry) = self.table.get(twin).filter(|entry| matches!(entry.phase, Phase::Twin { .. })) else {
                continue;
            };
            let same = matches!(entry.subject, Subject::Known { fingerprint: own, .. } if own == fingerprint);
            if known && same {
                // Delivered again while its first delivery, of an assignment that is over, was still being handled.
                let itself = entry.offset == offset && self.is_same_partition(entry.part, part);
                self.finish(twin, if itself { Ending::Redelivered } else { Ending::SameId });
            } else {
                self.requeue(twin);
            }
        }
    }

    fn is_same_partition(&self, a: u32, b: u32) -> bool {
        match (self.part(a), self.part(b)) {
            (Some(a), Some(b)) => a.partition == b.partition && a.topic == b.topic,
            _ => false,
        }
    }
}
