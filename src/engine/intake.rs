//! Partitions and messages come and go.

use super::event::{Arrival, Assigned, Command, Position, Subject, Ticket, Time, Verdict};
use super::partition::{Partition, Stage};
use super::table::{Entry, Member, NONE, Phase};
use super::{Drain, DrainKind, Engine, Flaw, Order};
use crate::frontier::Epoch;

impl Engine {
    pub(super) fn assigned(&mut self, assigned: Assigned, commands: &mut Vec<Command>) {
        // Assigned again without a revoke in between: what was known of it is over.
        let same = |part: &Partition| {
            part.stage != Stage::Gone && part.topic == assigned.topic && part.partition == assigned.partition
        };
        let old = (0..).zip(&self.parts).find(|(_, part)| part.as_ref().is_some_and(same)).map(|(at, _)| at);
        if let Some(at) = old {
            self.let_wait_go(&[at]);
            if let Some(part) = self.part(at) {
                commands.push(Command::Halt(vec![part.frontier.epoch()]));
            }
            self.retire(at);
        }
        if self.closing {
            return;
        }
        let epoch = assigned.epoch;
        let part = Partition::new(assigned);
        let at = self.parts.iter().position(Option::is_none).unwrap_or_else(|| {
            self.parts.push(None);
            self.parts.len() - 1
        });
        if let Some(place) = self.parts.get_mut(at) {
            *place = Some(part);
            self.by_epoch.insert(epoch, u32::try_from(at).unwrap_or(NONE));
        }
    }

    pub(super) fn delivered_all(&mut self, arrivals: Vec<Arrival>) {
        // Messages of one partition come in a row.
        let mut last: Option<(Epoch, Option<u32>)> = None;
        for arrival in arrivals {
            let at = match last {
                Some((epoch, at)) if epoch == arrival.epoch => at,
                _ => {
                    let at = self.by_epoch.get(&arrival.epoch).copied();
                    last = Some((arrival.epoch, at));
                    at
                }
            };
            self.delivered(at, arrival);
        }
    }

    fn delivered(&mut self, at: Option<u32>, arrival: Arrival) {
        let Arrival { ticket, offset, lane, subject, .. } = arrival;
        let part = at.and_then(|at| self.parts.get_mut(at as usize)?.as_mut()).filter(|part| part.stage == Stage::Live);
        let config = &self.config;
        let place = part.and_then(|part| Some((part.frontier.deliver(offset)?, !part.watched && part.is_full(config))));
        let (Some((slot, full)), Some(at)) = (place, at) else {
            self.dropped.push(ticket);
            return;
        };
        if full {
            self.look_after(at);
        }
        self.bare |= !matches!(subject, Subject::Known { .. });
        let hash = match self.config.order {
            Order::Partition => Some(0),
            Order::Key => lane,
            Order::Unordered => None,
        };
        let lane = hash.map_or(NONE, |hash| self.lane_of(at, hash));
        self.table.put(ticket, Entry::new(slot, offset, subject, at, lane));
        // What needs no claim, and has nothing before it that does, is ready at once.
        let alone = self.alone.is_some() || self.suspected > 0 || !self.suspects.is_empty();
        let at_once = matches!(subject, Subject::Bare | Subject::Own) && !alone;
        match self.lanes.get_mut(lane) {
            Some(own) => {
                own.members.push_back(Member { ticket, slot });
                if at_once && own.pending.is_empty() && own.stalled.is_empty() {
                    let goes_on = own.running || own.listed;
                    self.set(ticket, Phase::Ready);
                    if !goes_on {
                        self.look_at(lane);
                    }
                    return;
                }
                own.pending.push_back(Member { ticket, slot });
                self.file(lane);
            }
            None if at_once && self.queue.is_empty() => self.make_ready(ticket),
            None => self.queue.push_back(ticket),
        }
    }

    fn lane_of(&mut self, at: u32, hash: u64) -> u32 {
        let Some(part) = self.parts.get_mut(at as usize).and_then(Option::as_mut) else { return NONE };
        if self.config.order == Order::Partition {
            // It is closed with the partition.
            if part.lane == NONE {
                part.lane = *part.lanes.entry(hash).or_insert_with(|| self.lanes.open(at, hash));
            }
            return part.lane;
        }
        *part.lanes.entry(hash).or_insert_with(|| self.lanes.open(at, hash))
    }

    pub(super) fn revoke(&mut self, epochs: Vec<Epoch>, lost: bool, by: Time, commands: &mut Vec<Command>) {
        let parts = self.parts_of(&epochs);
        self.let_wait_go(&parts);
        let kind = if lost { DrainKind::Lost } else { DrainKind::Revoke };
        if lost {
            let commit = if self.config.has(Flaw::CommitLost) { self.unconfirmed(&parts) } else { Vec::new() };
            parts.iter().for_each(|at| self.retire(*at));
            commands.push(Command::Revoked { epochs: epochs.clone(), commit, left: 0 });
        }
        commands.push(Command::Halt(epochs.clone()));
        self.drains.push(Drain { epochs, parts, by, kind });
    }

    pub(super) fn close(&mut self, by: Time, commands: &mut Vec<Command>) {
        self.closing = true;
        let live = |part: &Partition| part.stage != Stage::Gone;
        let epochs: Vec<Epoch> =
            self.parts.iter().flatten().filter(|part| live(part)).map(|part| part.frontier.epoch()).collect();
        // Those of assignments that are over are waited for as well: the store is to hear of them.
        let parts: Vec<u32> = (0..).zip(&self.parts).filter(|(_, part)| part.is_some()).map(|(at, _)| at).collect();
        self.let_wait_go(&parts);
        commands.push(Command::Halt(epochs.clone()));
        self.drains.push(Drain { epochs, parts, by, kind: DrainKind::Close });
    }

    fn parts_of(&self, epochs: &[Epoch]) -> Vec<u32> {
        epochs.iter().filter_map(|epoch| self.by_epoch.get(epoch).copied()).collect()
    }

    /// Begins nothing more of these partitions: drops what waits, gives back what is claimed and was not begun.
    fn let_wait_go(&mut self, parts: &[u32]) {
        for at in parts {
            if let Some(part) = self.parts.get_mut(*at as usize).and_then(Option::as_mut)
                && part.stage == Stage::Live
            {
                part.stage = Stage::Draining;
            }
        }
        let theirs = |entry: &Entry| parts.contains(&entry.part);
        let tickets: Vec<(Ticket, Entry)> =
            self.table.iter().filter(|(_, entry)| theirs(entry)).map(|(ticket, entry)| (ticket, *entry)).collect();
        let table = &self.table;
        let stays = |ticket: &Ticket| table.get(*ticket).is_none_or(|entry| !theirs(entry));
        self.queue.retain(stays);
        self.suspects.retain(stays);
        self.loose.retain(stays);
        self.letters.retain(|(ticket, _)| stays(ticket));
        self.lanes.of(parts).for_each(|lane| lane.pending.clear());
        for hand in self.hands.values_mut() {
            hand.waiting.retain(stays);
        }
        for (ticket, entry) in tickets {
            match entry.phase {
                Phase::Queued | Phase::Parked | Phase::Twin { .. } | Phase::Suspect => self.drop_it(ticket),
                Phase::Ready if entry.holds_claim() => self.end(ticket, Verdict::Released),
                // Settled before it ran, and never will run: it counts as handled, as at most once says.
                Phase::Ready if entry.spent => self.finish(ticket, super::Ending::Handled),
                Phase::Ready => self.drop_it(ticket),
                // Whoever gets it next finds its attempts used up, and writes its letter.
                Phase::Unlettered(_) if entry.holds_claim() => {
                    self.end(ticket, Verdict::Failed { retry_in: Time::ZERO });
                }
                Phase::Unlettered(_) => self.drop_it(ticket),
                Phase::Free
                | Phase::Claiming
                | Phase::First
                | Phase::Running
                | Phase::Lettering(_)
                | Phase::Ending(_) => {}
            }
        }
    }

    /// What ends from now on moves nothing.
    fn retire(&mut self, at: u32) {
        if let Some(part) = self.parts.get_mut(at as usize).and_then(Option::as_mut) {
            self.gone += usize::from(part.stage != Stage::Gone);
            part.stage = Stage::Gone;
            self.by_epoch.remove(&part.frontier.epoch());
        }
    }

    fn unconfirmed(&self, parts: &[u32]) -> Vec<Position> {
        let parts = parts.iter().filter_map(|at| self.part(*at)).filter(|part| part.stage != Stage::Gone);
        parts.filter_map(|part| part.unconfirmed(&self.config)).collect()
    }

    /// Lets partitions go of which nothing runs any more, or whose time is over.
    pub(super) fn drain(&mut self, now: Time, commands: &mut Vec<Command>) {
        if self.drains.is_empty() {
            self.sweep();
            return;
        }
        for mut drain in std::mem::take(&mut self.drains) {
            // A place may have been given to another assignment since.
            let is_it = |epoch| drain.kind == DrainKind::Close || drain.epochs.contains(&epoch);
            drain.parts.retain(|at| self.part(*at).is_some_and(|part| is_it(part.frontier.epoch())));
            let done = drain.parts.iter().all(|at| self.part(*at).is_none_or(|part| part.in_hand == 0));
            if !done && now < drain.by {
                self.drains.push(drain);
                continue;
            }
            let running = |entry: &Entry| entry.phase == Phase::Running && drain.parts.contains(&entry.part);
            let abort: Vec<Ticket> =
                self.table.iter().filter(|(_, entry)| running(entry)).map(|(ticket, _)| ticket).collect();
            let ours = |at: &u32| self.part(*at).filter(|part| part.stage != Stage::Gone);
            let unfinished = |at: &u32| ours(at).map_or(0, |part| part.frontier.unfinished());
            let left = match drain.kind {
                DrainKind::Close => drain.parts.iter().map(unfinished).sum(),
                DrainKind::Revoke | DrainKind::Lost => abort.len(),
            };
            if !abort.is_empty() {
                commands.push(Command::Abort(abort));
            }
            let commit = self.unconfirmed(&drain.parts);
            drain.parts.iter().for_each(|at| self.retire(*at));
            match drain.kind {
                DrainKind::Lost => {}
                DrainKind::Revoke => commands.push(Command::Revoked { epochs: drain.epochs, commit, left }),
                DrainKind::Close => commands.push(Command::Closed { commit, left }),
            }
        }
        self.sweep();
    }

    /// Forgets partitions that are gone and of which nothing is left.
    fn sweep(&mut self) {
        if self.gone == 0 {
            return;
        }
        let is_over = |part: &Partition| part.stage == Stage::Gone && part.in_hand == 0;
        for at in 0..self.parts.len() {
            let Some(part) = self.parts.get_mut(at) else { continue };
            if part.as_ref().is_some_and(is_over)
                && let Some(part) = part.take()
            {
                self.gone = self.gone.saturating_sub(1);
                // In an order that a seed repeats: numbers are given again.
                let mut lanes: Vec<u32> = part.lanes.into_values().collect();
                lanes.sort_unstable();
                lanes.into_iter().for_each(|lane| self.lanes.close(lane));
            }
        }
    }

    /// Forgets a message: it will be delivered again.
    pub(super) fn drop_it(&mut self, ticket: Ticket) {
        self.leave_hand(ticket, None);
        self.unstall(ticket);
        self.set(ticket, Phase::Free);
        let lane = self.table.clear(ticket);
        self.dropped.push(ticket);
        self.look_at(lane);
    }

    /// Puts a message back where its turn to be claimed will come.
    pub(super) fn requeue(&mut self, ticket: Ticket) {
        self.leave_hand(ticket, None);
        self.unstall(ticket);
        if !self.is_live(ticket) {
            self.drop_it(ticket);
            return;
        }
        self.set(ticket, Phase::Queued);
        let Some(entry) = self.table.get_mut(ticket) else { return };
        entry.attempt = 0;
        entry.spent = false;
        let (slot, id) = (entry.slot, entry.lane);
        match self.lanes.get_mut(id) {
            Some(lane) => {
                lane.put_back(Member { ticket, slot });
                self.file(id);
            }
            None => self.queue.push_front(ticket),
        }
    }
}

impl Entry {
    fn new(slot: crate::frontier::Slot, offset: i64, subject: Subject, part: u32, lane: u32) -> Self {
        Self {
            phase: Phase::Queued,
            slot,
            offset,
            subject,
            part,
            lane,
            chain: NONE,
            attempt: 0,
            begun: 0,
            looks: 0,
            spent: false,
            stalls: false,
            suspect: false,
            stopped: false,
            resume_in: Time::ZERO,
            parking: 0,
        }
    }
}
