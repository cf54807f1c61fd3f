//! Carries out what an engine asks of the store and the dead letter topic, and what of its messages it is done with.

use std::time::Duration;

use hapax::engine::{Answer, Command, Event, Settled, Ticket, Verdict};
use hapax::record::{ClaimOutcome, Grant, Record, Sighting, State, Token};

use super::flaws::DriverFlaw;
use super::history::{Recorded, What};
use super::plan::{MS, Micros, Mode, Plan, SECOND};
use super::process::{Held, NONE, Process};
use super::store::{Ask, Call, Item};
use super::world::{Happening, Sent, World};

/// How long the reply to a renewal takes.
const REPLY: Micros = 300;
/// How much earlier than the store a process takes its lease for over: stores count in milliseconds.
const MARGIN: Micros = 2 * MS;

impl World {
    pub fn carry_out(&mut self, process: usize, command: Command) {
        match command {
            Command::Claim(tickets) => {
                if std::mem::replace(&mut self.processes[process].claiming, true) {
                    self.violate("contract", format!("process {process} claims while a claim is on its way"));
                }
                if self.plan.mode != Mode::Dedup {
                    self.violate("contract", format!("process {process} claims, and nothing has a claim"));
                }
                if tickets.is_empty() || tickets.len() > self.plan.config.claims {
                    self.violate("contract", format!("process {process} claims {} messages at once", tickets.len()));
                }
                self.look_at_names(process, tickets.iter().copied());
                let items = tickets.into_iter().map(|ticket| self.item(process, ticket, None)).collect();
                self.call(process, Ask::Claim, items);
            }
            Command::Settle(ends) => {
                if std::mem::replace(&mut self.processes[process].settling, true) {
                    self.violate("contract", format!("process {process} settles while a settle is on its way"));
                }
                self.look_at_names(process, ends.iter().map(|(ticket, _)| *ticket));
                if self.plan.is_transactional() {
                    return self.bury(process, ends);
                }
                let items =
                    ends.into_iter().map(|(ticket, verdict)| self.item(process, ticket, Some(verdict))).collect();
                self.call(process, Ask::Settle, items);
            }
            Command::Run(starts) => self.run(process, &starts),
            Command::DeadLetter(letters) => self.send_letters(process, letters.into_iter().map(|(ticket, _)| ticket)),
            Command::Halt(epochs) => self.halt(process, &epochs),
            Command::Abort(tickets) => self.abort(process, &tickets),
            Command::Finished(ended) => {
                for (ticket, ending) in ended {
                    let message = self.processes[process].get(ticket).message;
                    self.log(process, What::Finished { message, ending });
                    self.free(process, ticket);
                }
            }
            Command::Dropped(tickets) => tickets.into_iter().for_each(|ticket| self.free(process, ticket)),
            Command::Stop { .. } => {
                self.log(process, What::Note("stopped at a message"));
                self.at(self.now, Sent::To(process as u32), Happening::Close);
            }
            other => self.carry_out_kafka(process, other),
        }
    }

    /// A number may be used again.
    fn free(&mut self, process: usize, ticket: Ticket) {
        let one = &mut self.processes[process];
        one.let_go(ticket);
        let over = one.kafka.answered && one.kafka.close_wanted;
        let held = one.get(ticket);
        let (live, run, calls) = (held.live, held.run, held.calls);
        held.live = false;
        if !over && (!live || run != NONE || calls > 0) {
            let what = if run != NONE {
                "its handler runs"
            } else if live {
                "a call names it"
            } else {
                "it is free already"
            };
            self.violate("contract", format!("process {process} puts ticket {} down although {what}", ticket.0));
        }
        self.processes[process].free.push(ticket.0);
    }

    /// A call names a message once: a batch has each key once, and one answer for it.
    fn look_at_names(&mut self, process: usize, tickets: impl Iterator<Item = Ticket>) {
        let mut named: Vec<Ticket> = tickets.collect();
        named.sort_unstable();
        if let Some(twice) = named.windows(2).find(|pair| pair[0] == pair[1]) {
            let ticket = twice[0].0;
            self.violate("contract", format!("process {process} names ticket {ticket} twice in one call"));
        }
    }

    fn item(&mut self, process: usize, ticket: Ticket, verdict: Option<Verdict>) -> Item {
        let held = self.processes[process].get(ticket);
        held.calls += 1;
        let held = *held;
        let identity = self.plan.messages[held.message as usize].identity;
        let key = identity.map_or(0, |identity| self.flaws.key(&self.plan, identity));
        Item {
            ticket,
            message: held.message,
            key,
            token: held.token,
            attempt: held.attempt,
            verdict,
            claim: None,
            settled: None,
            write: None,
        }
    }

    /// Sends a call on its way to the store, and decides what becomes of it.
    fn call(&mut self, process: usize, ask: Ask, items: Vec<Item>) {
        let (now, weather) = (self.now, self.weather);
        let owner = self.processes[process].owner;
        let sent = now + self.processes[process].ahead;
        let reach = items.len();
        let mut call = Call { ask, process, owner, reach, items, reply: true, sent, pending: 0, read: false };
        let trip = self.plan.round_trip;
        let slow = self.random.chance(weather.slow);
        let there = if slow { self.random.between(SECOND / 4, 3 * SECOND) } else { self.random.between(50, trip) };
        let patience = self.random.between(SECOND / 2, 3 * SECOND);
        let renewal = ask == Ask::Extend;
        let (mut arrives, mut fails) = (Some(now + there), None);
        if now < self.store.down_until {
            // Refused at once, or never answered.
            arrives = None;
            fails = Some(now + if self.random.chance(5_000) { MS } else { patience });
        } else if self.random.chance(weather.request_lost) || (renewal && self.random.chance(weather.renewal_lost)) {
            arrives = None;
            fails = Some(now + patience);
        } else if self.random.chance(weather.reply_lost) {
            fails = Some(now + patience.max(there));
        } else if self.random.chance(weather.late) {
            fails = Some(now + patience);
            arrives = Some(now + patience + self.random.between(MS, 3 * SECOND));
        } else if self.random.chance(weather.partial) {
            call.reach = self.random.index(call.items.len() + 1);
            fails = Some(now + there * 2);
        }
        if slow || fails.is_some() {
            // The next renewal is a third of a lease away.
            let late = arrives.max(fails).unwrap_or(now) + self.plan.lease / 3;
            self.excuse = self.excuse.max(late);
        }
        call.reply = fails.is_none();
        let index = self.free_calls.pop().unwrap_or_else(|| {
            self.calls.push(Call::default());
            self.calls.len() as u32 - 1
        });
        if renewal {
            fails = None;
        }
        call.pending = u8::from(arrives.is_some()) + u8::from(fails.is_some());
        if call.pending == 0 {
            self.free_calls.push(index);
            return;
        }
        self.calls[index as usize] = call;
        if let Some(at) = fails {
            self.at(at, Sent::To(process as u32), Happening::CallFailed(index));
        }
        if let Some(at) = arrives {
            self.at(at, Sent::World(process as u32), Happening::CallArrives(index));
        }
    }

    fn done_with(&mut self, index: u32) {
        let call = &mut self.calls[index as usize];
        call.pending -= 1;
        if call.pending == 0 {
            self.free_calls.push(index);
        }
    }

    /// A call that nobody waits for any more.
    pub fn forget(&mut self, what: &Happening) {
        if let Happening::CallFailed(index) | Happening::CallReplied(index) = what {
            self.done_with(*index);
        }
    }

    pub fn call_arrives(&mut self, index: u32) {
        let mut call = std::mem::take(&mut self.calls[index as usize]);
        let late = self.now < self.store.down_until;
        if !late {
            match call.ask {
                Ask::Claim if self.flaws.driver == Some(DriverFlaw::CheckThenAct) => self.check_or_act(&mut call),
                Ask::Claim => self.claim(&mut call),
                Ask::Settle => self.settle(&mut call),
                Ask::Extend => {
                    for item in &mut call.items[..call.reach] {
                        if !self.store.extend(self.now, item, Plan::key(item.key)) {
                            item.settled = Some(Settled::Refused);
                        }
                    }
                }
            }
        }
        if call.read && call.ask == Ask::Claim && !late && call.items.iter().any(|item| item.write.is_some()) {
            let delay = self.random.between(50, 5 * MS);
            self.calls[index as usize] = call;
            self.at(self.now + delay, Sent::World(NONE), Happening::CallArrives(index));
            return;
        }
        if call.ask == Ask::Extend && call.reply && !late {
            let process = call.process as u32;
            self.calls[index as usize] = call;
            self.at(self.now + REPLY, Sent::To(process), Happening::CallReplied(index));
            return;
        }
        if call.ask == Ask::Extend || !call.reply {
            self.calls[index as usize] = call;
            self.done_with(index);
            return;
        }
        let back = self.random.between(50, self.plan.round_trip);
        let process = call.process as u32;
        self.calls[index as usize] = call;
        // The call is as it was if the store went down meanwhile: the connection broke.
        let what = if late { Happening::CallFailed(index) } else { Happening::CallReplied(index) };
        self.at(self.now + back, Sent::To(process), what);
    }

    fn sighting(&self, message: u32, key: u32) -> Sighting {
        let body = self.plan.messages[message as usize].body;
        Sighting { key: Plan::key(key), fingerprint: Plan::fingerprint(body), origin: self.plan.origin(message) }
    }

    fn claim(&mut self, call: &mut Call) {
        let reach = call.reach;
        for item in &mut call.items[..reach] {
            let sighting = self.sighting(item.message, item.key);
            let again = self.holds(call.owner, item.key);
            let before = self.store.records[item.key as usize].as_ref().map(Record::token);
            self.store.claim(self.now, call.owner, item, &sighting, false);
            if let (Some(ClaimOutcome::Acquired(Grant { took_over: true, .. })), Some(token)) = (&item.claim, before) {
                self.look_at_lease(item.key, token);
            }
            self.log_claim(call.process, item, again);
        }
    }

    /// Whether an owner holds the claim of a record.
    fn holds(&self, owner: u64, key: u32) -> bool {
        let record = self.store.records[key as usize].as_ref();
        record.is_some_and(|record| record.owner.get() == owner && matches!(record.state, State::Processing { .. }))
    }

    fn log_claim(&mut self, process: usize, item: &Item, again: bool) {
        let message = item.message;
        match &item.claim {
            Some(ClaimOutcome::Acquired(grant)) => {
                let Grant { attempt, took_over, .. } = *grant;
                self.log(process, What::Claimed { message, attempt, took_over, again });
            }
            Some(ClaimOutcome::Dead { .. }) => self.log(process, What::FoundDead { message }),
            _ => {}
        }
    }

    /// A lease ran out: fine, unless its holder is well and nothing kept it from renewing it.
    fn look_at_lease(&mut self, key: u32, token: Token) {
        let of =
            |held: &Held| self.plan.messages[held.message as usize].identity.map(|one| self.flaws.key(&self.plan, one));
        let holds = |one: &Process| {
            let held = |held: &Held| held.live && held.token == Some(token) && of(held) == Some(key);
            one.alive && one.owner == token.owner.get() && one.held.iter().any(held)
        };
        let Some(process) = self.processes.iter().position(holds) else { return };
        let excuse = self.excuse.max(self.processes[process].paused_until);
        if self.now > excuse + self.plan.lease {
            self.violate(
                "effects",
                format!("a lease of process {process} ran out, which holds it and could have renewed it"),
            );
        }
    }

    /// What a store does that looks first and writes then.
    fn check_or_act(&mut self, call: &mut Call) {
        let reach = call.reach;
        let acts = std::mem::replace(&mut call.read, true);
        for item in &mut call.items[..reach] {
            if acts {
                if let Some(write) = item.write.take() {
                    self.store.records[item.key as usize] = Some(write);
                    self.log_claim(call.process, item, false);
                }
            } else {
                let sighting = self.sighting(item.message, item.key);
                self.store.claim(self.now, call.owner, item, &sighting, true);
            }
        }
    }

    fn settle(&mut self, call: &mut Call) {
        let reach = call.reach;
        for item in &mut call.items[..reach] {
            let Some(mut token) = item.token else {
                // Nothing to prove: a claim was never held.
                item.settled = Some(Settled::Recorded);
                continue;
            };
            let record = self.store.records[item.key as usize].as_ref();
            let is_late = |record: &Record| {
                let over = matches!(record.state, State::Processing { until } if until < self.store.now(self.now));
                over && record.token() == token
            };
            if record.is_some_and(is_late) {
                self.look_at_lease(item.key, token);
            }
            let record = self.store.records[item.key as usize].as_ref();
            if self.flaws.driver == Some(DriverFlaw::SettleWithoutToken)
                && let Some(record) = record
            {
                token = record.token();
            }
            if self.flaws.driver == Some(DriverFlaw::DeleteOnError)
                && matches!(item.verdict, Some(Verdict::Failed { .. }))
            {
                self.store.records[item.key as usize] = None;
                item.settled = Some(Settled::Recorded);
                continue;
            }
            let sighting = self.sighting(item.message, item.key);
            let (before, after) = self.store.settle(self.now, item, sighting, token);
            let message = item.message;
            let recorded = match after {
                _ if before == after => Recorded::Nothing,
                Some(State::Succeeded { .. }) if matches!(before, Some(State::Succeeded { .. })) => Recorded::Nothing,
                Some(State::Succeeded { .. }) => Recorded::Succeeded,
                Some(State::Dead { .. }) if item.verdict == Some(Verdict::Dead) => Recorded::Dead,
                Some(State::Dead { .. }) => {
                    self.log(call.process, What::FoundDead { message });
                    Recorded::Nothing
                }
                Some(State::Failed { .. }) if item.verdict == Some(Verdict::Released) => Recorded::Released,
                Some(State::Failed { .. }) => Recorded::Failed,
                Some(State::Processing { .. }) | None => Recorded::Nothing,
            };
            self.log(call.process, What::Settled { message, recorded });
            if self.flaws.driver == Some(DriverFlaw::Evicts) && item.key % 4 == 0 {
                self.store.records[item.key as usize] = None;
            }
        }
    }

    pub fn call_replied(&mut self, process: usize, index: u32) {
        let mut call = std::mem::take(&mut self.calls[index as usize]);
        let ask = call.ask;
        let until = call.sent + self.plan.lease - MARGIN;
        let items = std::mem::take(&mut call.items);
        self.calls[index as usize] = call;
        self.done_with(index);
        if ask == Ask::Extend {
            return self.extended(process, &items, until);
        }
        if self.crash_at_step(process) {
            return;
        }
        match ask {
            Ask::Claim => {
                for item in &items {
                    self.processes[process].get(item.ticket).until = until;
                }
                let answers = items.into_iter().map(|item| (item.ticket, self.answer(process, &item))).collect();
                self.processes[process].claiming = false;
                self.arm_renew(process);
                self.look_at_claims(process);
                self.feed(process, Event::Claimed(answers));
            }
            Ask::Settle => {
                let one = &mut self.processes[process];
                one.settling = false;
                let told = |item: Item| {
                    one.let_go(item.ticket);
                    one.get(item.ticket).calls -= 1;
                    (item.ticket, item.settled.unwrap_or(Settled::Refused))
                };
                let settled = items.into_iter().map(told).collect();
                self.feed(process, Event::Settled(settled));
            }
            Ask::Extend => {}
        }
    }

    /// Leases were prolonged, or found to be over.
    fn extended(&mut self, process: usize, items: &[Item], until: Micros) {
        for item in items {
            let held = self.processes[process].get(item.ticket);
            if held.live && held.token.is_some() && held.token == item.token {
                held.until = if item.settled.is_some() { 0 } else { held.until.max(until) };
            }
        }
    }

    /// What the engine hears of a claim.
    fn answer(&mut self, process: usize, item: &Item) -> Answer {
        let message = &self.plan.messages[item.message as usize];
        let log = &self.plan.logs[message.partition];
        let one = &mut self.processes[process];
        one.get(item.ticket).calls -= 1;
        if self.flaws.driver == Some(DriverFlaw::CacheOfClaimed) && one.cache.contains(&item.key) {
            return Answer::SameId;
        }
        match &item.claim {
            Some(ClaimOutcome::Acquired(grant)) => {
                let held = one.get(item.ticket);
                held.begun = false;
                held.attempt = grant.attempt;
                if held.token.replace(grant.token).is_none() {
                    one.unbegun += 1;
                }
                if self.flaws.driver == Some(DriverFlaw::CacheOfClaimed) {
                    one.cache.push(item.key);
                }
                Answer::Acquired { attempt: grant.attempt }
            }
            Some(ClaimOutcome::Duplicate { first, .. }) => {
                let origin = &first.origin;
                let same =
                    origin.topic == log.topic && origin.partition == log.number && origin.offset == message.offset;
                if same { Answer::Redelivered } else { Answer::SameId }
            }
            Some(ClaimOutcome::InFlight { remaining }) => Answer::InFlight { remaining: *remaining },
            Some(ClaimOutcome::NotDue { remaining }) => Answer::NotDue { remaining: *remaining },
            Some(ClaimOutcome::Dead { .. }) => Answer::Dead,
            Some(ClaimOutcome::Conflict { .. }) => Answer::Conflict,
            None => Answer::InFlight { remaining: Duration::ZERO },
        }
    }

    /// Claims must not age under their lease behind slow handlers: what free handlers can start, and one call ahead. Some room beyond that, since what is
    /// given back counts until the store has heard.
    fn look_at_claims(&mut self, process: usize) {
        let config = &self.plan.config;
        let most = 16 + 4 * (config.concurrency * config.batch.unwrap_or(1) + 2 * config.claims);
        let unbegun = self.processes[process].unbegun as usize;
        if unbegun > most {
            self.violate(
                "concurrency",
                format!("process {process} holds {unbegun} claims that it has not begun, {most} at most may be"),
            );
        }
    }

    pub fn call_failed(&mut self, process: usize, index: u32) {
        let call = &self.calls[index as usize];
        let ask = call.ask;
        let tickets: Vec<Ticket> = call.items.iter().map(|item| item.ticket).collect();
        self.done_with(index);
        let one = &mut self.processes[process];
        for ticket in &tickets {
            one.get(*ticket).calls -= 1;
        }
        let random = self.random.next();
        match ask {
            Ask::Claim => {
                self.processes[process].claiming = false;
                self.feed(process, Event::ClaimFailed { tickets, random });
            }
            Ask::Settle => {
                self.processes[process].settling = false;
                self.feed(process, Event::SettleFailed { tickets, random });
            }
            Ask::Extend => {}
        }
    }

    fn arm_renew(&mut self, process: usize) {
        let one = &mut self.processes[process];
        if !one.renew_armed && one.held.iter().any(|held| held.live && held.token.is_some()) {
            one.renew_armed = true;
            self.at(self.now + self.plan.lease / 3, Sent::To(process as u32), Happening::Renew);
        }
    }

    /// Leases are renewed while the process runs.
    pub fn renew(&mut self, process: usize) {
        self.processes[process].renew_armed = false;
        let held = self.processes[process].held.iter().enumerate();
        let tickets: Vec<Ticket> =
            held.filter(|(_, held)| held.live && held.token.is_some()).map(|(at, _)| Ticket(at as u32)).collect();
        if tickets.is_empty() || self.flaws.driver == Some(DriverFlaw::NoRenewal) {
            return;
        }
        let items: Vec<Item> = tickets.iter().map(|ticket| self.item(process, *ticket, None)).collect();
        tickets.iter().for_each(|ticket| self.processes[process].get(*ticket).calls -= 1);
        self.call(process, Ask::Extend, items);
        self.arm_renew(process);
    }
}
