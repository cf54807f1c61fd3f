//! The handlers of a process: how long they take, how they end, and when their effects happen.

use std::time::Duration;

use hapax::engine::{Ran, Start, Ticket};
use hapax::frontier::Epoch;
use hapax::record::State;

use super::flaws::DriverFlaw;
use super::history::{Ended, What};
use super::plan::{Kind, MS, Mode, SECOND};
use super::process::{NONE, Outcome};
use super::world::{Happening, Sent, World};

/// What is left of a call.
enum Next {
    /// It goes on by an event, or is over.
    Later,
    /// The next of the chain begins.
    Go,
}

impl World {
    /// Starts chains side by side.
    pub fn run(&mut self, process: usize, starts: &[Start]) {
        let mut from = 0;
        while from < starts.len() && self.processes[process].alive {
            let chained = starts[from + 1..].iter().take_while(|start| start.chained).count();
            self.calls_begun += 1;
            let number = self.calls_begun;
            let one = &mut self.processes[process];
            let at = one.open_run(number);
            let batch = one.config.batch.is_some();
            let run = &mut one.runs[at as usize];
            run.batch = batch;
            run.items.extend(starts[from..=from + chained].iter().map(|start| start.ticket));
            for start in &starts[from..=from + chained] {
                one.get(start.ticket).run = at;
                one.starts(start.ticket);
            }
            one.running += 1;
            let running = one.running;
            self.log(process, What::Called { call: number, running });
            if self.plan.is_transactional() {
                self.transact(process, at);
            } else {
                self.go(process, at);
            }
            from += chained + 1;
        }
    }

    /// Begins handlers of a call until one waits.
    fn go(&mut self, process: usize, at: u32) {
        while self.processes[process].alive {
            if let Next::Later = self.begin(process, at) {
                return;
            }
        }
    }

    fn begin(&mut self, process: usize, at: u32) -> Next {
        let run = &self.processes[process].runs[at as usize];
        let (number, serial) = (run.number, run.serial);
        let range = if run.batch { 0..run.items.len() } else { run.at..run.at + 1 };
        if self.is_late(process, at, range.clone()) {
            self.lose_run(process, at, range.start);
            return Next::Later;
        }
        self.processes[process].runs[at as usize].outcomes.clear();
        let mut hangs = false;
        for index in range {
            let ticket = self.processes[process].runs[at as usize].items[index];
            let held = self.processes[process].get(ticket);
            let (message, epoch) = (held.message, held.epoch);
            self.look_at_begin(process, ticket);
            self.log(process, What::Began { message, epoch, call: number });
            let outcome = self.outcome(message);
            hangs |= self.random.chance(self.weather.handler_hangs);
            self.processes[process].runs[at as usize].outcomes.push(outcome);
        }
        let pace = self.plan.pace;
        let inline = if pace == 0 { 9_000 } else { 2_000 };
        let duration = if hangs {
            self.random.between(SECOND, 30 * SECOND)
        } else if self.random.chance(inline) {
            0
        } else {
            self.random.between(1, pace.max(2 * MS))
        };
        if duration == 0 {
            return if self.effects(process, at) { self.finish_run(process, at) } else { Next::Later };
        }
        let ends = self.now + duration;
        if self.random.chance(2_500) {
            let effect = self.now + self.random.between(duration / 2, duration);
            self.at(effect, Sent::To(process as u32), Happening::Run { at, serial, end: false });
        } else {
            self.at(ends, Sent::To(process as u32), Happening::Run { at, serial, end: true });
            return Next::Later;
        }
        self.at(ends, Sent::To(process as u32), Happening::Run { at, serial, end: true });
        Next::Later
    }

    /// Whether a lease has run out of what is about to begin: another owner may have it.
    fn is_late(&self, process: usize, at: u32, range: std::ops::Range<usize>) -> bool {
        let one = &self.processes[process];
        let local = self.now + one.ahead;
        let over = |ticket: &Ticket| {
            let held = &one.held[ticket.0 as usize];
            held.token.is_some() && local >= held.until
        };
        let looks = !self.plan.config.settle_first && self.flaws.driver != Some(DriverFlaw::BeginLate);
        looks && one.runs[at as usize].items[range].iter().any(over)
    }

    /// Nothing begins under a lease that is over for the store, unless that one's clock jumped.
    fn look_at_begin(&mut self, process: usize, ticket: Ticket) {
        let held = self.processes[process].held[ticket.0 as usize];
        let identity = self.plan.messages[held.message as usize].identity;
        if self.checker.leases_jump || self.plan.config.settle_first || held.token.is_none() {
            return;
        }
        let Some(key) = identity.map(|identity| self.flaws.key(&self.plan, identity)) else { return };
        let Some(record) = self.store.records[key as usize].as_ref() else { return };
        let State::Processing { until } = record.state else { return };
        if Some(record.token()) == held.token && until < self.store.now(self.now) {
            self.violate("states", format!("message {} begins under a lease that ran out", held.message));
        }
    }

    /// What was about to begin does not, nor what is behind it.
    fn lose_run(&mut self, process: usize, at: u32, first: usize) {
        let lost = self.processes[process].runs[at as usize].items.split_off(first);
        for ticket in lost {
            let one = &mut self.processes[process];
            let held = one.get(ticket);
            held.run = NONE;
            let message = held.message;
            one.has_not_begun(ticket);
            one.ran.push((ticket, Ran::Lost));
            self.log(process, What::NotBegun { message });
        }
        self.processes[process].runs[at as usize].at = first;
        self.close_run(process, at);
    }

    pub fn run_goes_on(&mut self, process: usize, at: u32, serial: u32, end: bool) {
        let run = &self.processes[process].runs[at as usize];
        if run.serial != serial || !run.live || !self.effects(process, at) || !end {
            return;
        }
        if let Next::Go = self.finish_run(process, at) {
            self.processes[process].runs[at as usize].serial += 1;
            self.go(process, at);
        }
    }

    /// How a message's handler ends this time.
    pub fn outcome(&mut self, message: u32) -> Outcome {
        let kind = self.plan.messages[message as usize].kind;
        let outcome = |how, effect| Outcome { how, effect, kills: false, done: false };
        if self.now < self.downstream_down_until && self.random.chance(9_000) {
            return outcome(Ended::Unavailable, false);
        }
        match kind {
            Kind::Killer => {
                let effect = self.random.chance(5_000);
                Outcome { how: Ended::Aborted, effect, kills: true, done: false }
            }
            Kind::Poison => outcome(Ended::Failed, false),
            Kind::Fatal => outcome(Ended::Fatal, false),
            Kind::Flaky if self.random.chance(5_000) => outcome(Ended::Failed, false),
            Kind::Flaky | Kind::Plain if self.random.chance(self.weather.handler_fails) => {
                outcome(Ended::Failed, false)
            }
            Kind::Flaky | Kind::Plain if self.random.chance(self.weather.fails_after_effect) => {
                // A transaction takes its effect back.
                outcome(Ended::Failed, self.plan.mode != Mode::Transaction)
            }
            Kind::Flaky | Kind::Plain => outcome(Ended::Succeeded, true),
        }
    }

    /// The effects of what runs, unless they happened. `false` if that was the process's end.
    fn effects(&mut self, process: usize, at: u32) -> bool {
        let run = &self.processes[process].runs[at as usize];
        let first = if run.batch { 0 } else { run.at };
        for index in 0..run.outcomes.len() {
            let run = &mut self.processes[process].runs[at as usize];
            let outcome = &mut run.outcomes[index];
            if std::mem::replace(&mut outcome.done, true) {
                continue;
            }
            let ticket = run.items[first + index];
            let (kills, effect) = (outcome.kills, outcome.effect);
            let held = *self.processes[process].get(ticket);
            if effect {
                self.log(process, What::Effect { message: held.message, epoch: held.epoch });
            }
            if kills {
                self.crash(process);
                return false;
            }
            if self.crash_at_step(process) {
                return false;
            }
        }
        true
    }

    /// What ran ends.
    fn finish_run(&mut self, process: usize, at: u32) -> Next {
        let run = &self.processes[process].runs[at as usize];
        let first = if run.batch { 0 } else { run.at };
        let mut goes_on = true;
        for index in 0..run.outcomes.len() {
            let run = &self.processes[process].runs[at as usize];
            let (ticket, outcome) = (run.items[first + index], run.outcomes[index]);
            let random = self.random.next();
            let ran = match outcome.how {
                Ended::Succeeded => Ran::Succeeded,
                Ended::Failed => {
                    Ran::Failed { retry_in: Duration::from_micros(random % self.retry_longest), attempt: None }
                }
                Ended::Fatal => Ran::Fatal,
                Ended::Unavailable => Ran::Unavailable { random },
                Ended::Aborted => Ran::Aborted,
            };
            goes_on = outcome.how == Ended::Succeeded;
            self.end_one(process, ticket, outcome.how, outcome.effect, ran);
        }
        let run = &mut self.processes[process].runs[at as usize];
        let goes_on = goes_on && !run.batch && !run.halted && run.at + 1 < run.items.len();
        if goes_on {
            run.at += 1;
            Next::Go
        } else {
            self.close_run(process, at);
            Next::Later
        }
    }

    fn end_one(&mut self, process: usize, ticket: Ticket, how: Ended, effect: bool, ran: Ran) {
        let held = self.processes[process].get(ticket);
        held.run = NONE;
        let (message, epoch) = (held.message, held.epoch);
        self.log(process, What::Ended { message, epoch, how, effect });
        self.processes[process].ran.push((ticket, ran));
        self.arm_ran(process);
    }

    /// What was not begun of a call is reported, and its place is free.
    pub fn close_run(&mut self, process: usize, at: u32) {
        let one = &mut self.processes[process];
        let run = &mut one.runs[at as usize];
        run.live = false;
        run.serial += 1;
        let rest = if run.batch || run.at >= run.items.len() { Vec::new() } else { run.items.split_off(run.at + 1) };
        one.free_runs.push(at);
        one.running -= 1;
        for ticket in rest {
            one.get(ticket).run = NONE;
            one.has_not_begun(ticket);
            one.ran.push((ticket, Ran::NotBegun));
        }
        self.arm_ran(process);
    }

    fn arm_ran(&mut self, process: usize) {
        if !std::mem::replace(&mut self.processes[process].ran_armed, true) {
            let delay = if self.plan.prompt { 0 } else { self.random.below(3 * MS) };
            self.at(self.now + delay, Sent::To(process as u32), Happening::Ran);
        }
    }

    /// No further handler of these assignments begins.
    pub fn halt(&mut self, process: usize, epochs: &[Epoch]) {
        let one = &mut self.processes[process];
        for run in one.runs.iter_mut().filter(|run| run.live) {
            let epoch = one.held[run.items[run.at].0 as usize].epoch;
            run.halted |= epochs.iter().any(|own| own.get() == u64::from(epoch));
        }
    }

    /// Drops handlers where they wait: at once, or when they next come to a point where they can be dropped.
    pub fn abort(&mut self, process: usize, tickets: &[Ticket]) {
        for ticket in tickets {
            let at = self.processes[process].get(*ticket).run;
            if at == NONE || !self.processes[process].runs[at as usize].live {
                continue;
            }
            if self.random.chance(2_000) {
                let serial = self.processes[process].runs[at as usize].serial;
                let delay = self.random.below(50 * MS);
                self.at(self.now + delay, Sent::To(process as u32), Happening::Abort { at, serial });
            } else {
                self.abort_run(process, at);
            }
        }
    }

    pub fn abort_run(&mut self, process: usize, at: u32) {
        if self.plan.is_transactional() {
            return self.abort_job(self.processes[process].runs[at as usize].job);
        }
        let run = &self.processes[process].runs[at as usize];
        let first = if run.batch { 0 } else { run.at };
        for index in 0..run.outcomes.len() {
            let run = &self.processes[process].runs[at as usize];
            let (ticket, outcome) = (run.items[first + index], run.outcomes[index]);
            self.end_one(process, ticket, Ended::Aborted, outcome.done && outcome.effect, Ran::Aborted);
        }
        self.close_run(process, at);
    }
}
