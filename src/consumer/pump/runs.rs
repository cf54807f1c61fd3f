//! Handlers: begun here, taken along by tasks, and what came of them.

use super::*;
use crate::store::StoreError;

impl<H: Drive> Pump<H> {
    /// Begins handlers: one chain after the other here, as far as none waits; those that wait go on in tasks, side by side.
    pub(super) fn run<R, Fut>(&mut self, starts: &[Start], bench: &mut Bench<R, Fut>)
    where
        R: Fn(Few<Handed>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Few<Ended>> + Send + 'static,
    {
        let now = std::time::Instant::now();
        let begun_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let begun_at = begun_at.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        let mut place = std::mem::take(&mut self.place);
        let mut in_task = place.is_task(now);
        let mut watch = Stopwatch::new(&mut place, now);
        let mut ran = Vec::with_capacity(starts.len());
        let mut left = starts;
        while !left.is_empty() {
            let chained = left.iter().skip(1).take_while(|start| start.chained).count();
            let (chain, others) = left.split_at(1 + chained);
            left = others;
            let mut chain = chain;
            while !chain.is_empty() {
                let (call, rest) = chain.split_at(if self.batched { chain.len() } else { 1 });
                let Some(messages) = self.hand_out(call, begun_at) else {
                    chain.iter().for_each(|start| self.ended(start.ticket, Outcome::Lost, &mut ran));
                    break;
                };
                bench.begin(messages);
                let polled = if in_task { Poll::Pending } else { bench.poll() };
                let Poll::Ready(ended) = polled else {
                    self.take_along(call, rest, begun_at, bench);
                    break;
                };
                in_task |= watch.ran();
                chain = rest;
                let failed = matches!(ended, Few::One(Ended::Failed(_)));
                match (call, ended) {
                    ([start], Few::One(ended)) => self.ended(start.ticket, Outcome::Ended(ended), &mut ran),
                    (call, ended) => {
                        for (start, ended) in call.iter().zip(ended) {
                            self.ended(start.ticket, Outcome::Ended(ended), &mut ran);
                        }
                    }
                }
                if failed {
                    chain.iter().for_each(|start| self.ended(start.ticket, Outcome::NotBegun, &mut ran));
                    break;
                }
            }
        }
        self.place = place;
        if !ran.is_empty() {
            self.events.push(Event::Ran(ran));
        }
    }

    /// What the handler of these messages is given; it begins now. `None` if a lease among them has run out: others may have taken that message
    /// over while this process stood still, and those behind it wait for it.
    fn hand_out(&mut self, call: &[Start], begun_at: i64) -> Option<Few<Handed>> {
        let batched = self.batched;
        let mut begin = |start| self.handed(start, begun_at, true).filter(|handed| !handed.claim.is_lost());
        match call {
            [start] if !batched => begin(start).map(Few::One),
            call => call.iter().map(begin).collect::<Option<_>>().map(Few::Many),
        }
    }

    fn handed(&mut self, start: &Start, begun_at: i64, begins: bool) -> Option<Handed> {
        let records = self.handling.records();
        let entry = self.slab.get_mut(start.ticket)?;
        entry.attempt = start.attempt;
        entry.begun_at = begun_at;
        let claim = records.claim_of(&entry.state, start.attempt);
        if begins {
            records.begun(&mut entry.state);
        }
        let own = records.own(&entry.state);
        let row = if self.rows { row(&self.hasher, self.by_key, entry) } else { None };
        Some(Handed { message: entry.message.clone(), claim, row, own })
    }

    /// Gives what is on the bench a task of its own, with what is chained to it.
    fn take_along<R, Fut>(&mut self, call: &[Start], rest: &[Start], begun_at: i64, bench: &mut Bench<R, Fut>)
    where
        R: Fn(Few<Handed>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Few<Ended>> + Send + 'static,
    {
        let waiting = rest.iter().filter_map(|start| {
            let handed = self.handed(start, begun_at, false)?;
            let halted = self.periods.halted(self.slab.get(start.ticket)?.period);
            Some(Waiting { ticket: start.ticket, handed, halted })
        });
        let rest_waiting = waiting.collect();
        let running = match call {
            [start] if !self.batched => Few::One(start.ticket),
            call => Few::Many(call.iter().map(|start| start.ticket).collect()),
        };
        let chain = Chain { running: Some(running), rest: rest_waiting, reports: self.report.clone() };
        let (run, cell) = bench.take();
        let task = tokio::spawn(chain.work(run, cell)).abort_handle();
        let mut next = None;
        for start in rest.iter().rev() {
            if let Some(entry) = self.slab.get_mut(start.ticket) {
                (entry.next, entry.task) = (next, Some(task.clone()));
            }
            next = Some(start.ticket);
        }
        for start in call {
            if let Some(entry) = self.slab.get_mut(start.ticket) {
                (entry.next, entry.task) = (next, Some(task.clone()));
            }
        }
    }

    /// What a task reported.
    pub(super) fn ran(&mut self, outcomes: Few<(Ticket, Outcome)>, ran: &mut Vec<(Ticket, Ran)>) {
        for (ticket, outcome) in outcomes {
            let next = self.slab.get_mut(ticket).and_then(|entry| entry.next.take());
            let went_on = matches!(outcome, Outcome::Ended(Ended::Succeeded(_) | Ended::Finished(_)));
            self.ended(ticket, outcome, ran);
            // What did not begin says so right behind this.
            if went_on && let Some(entry) = next.and_then(|next| self.slab.get_mut(next)) {
                self.handling.records().begun(&mut entry.state);
            }
        }
    }

    /// Notes how a message's handler ended, and what the engine is to be told.
    fn ended(&mut self, ticket: Ticket, outcome: Outcome, ran: &mut Vec<(Ticket, Ran)>) {
        let rolls = matches!(outcome, Outcome::Ended(Ended::Failed(_) | Ended::Unknown(_)));
        let random = if rolls { self.random() } else { 0 };
        if let Outcome::Ended(Ended::Unknown(error)) = &outcome {
            if error.is_retryable() {
                self.said.needs_failed(&error.to_string());
            } else {
                self.stop(Some(ticket), refused(Stage::Claim, StoreError::clone(error)));
            }
        }
        let records = self.handling.records();
        let Some(entry) = self.slab.get_mut(ticket) else { return };
        (entry.task, entry.next) = (None, None);
        let what = match outcome {
            Outcome::Ended(Ended::Succeeded(result)) => {
                self.said.needs_answered();
                records.succeeded(&mut entry.state, result);
                Ran::Succeeded
            }
            Outcome::Ended(Ended::Finished(ending)) => Ran::Finished(ending),
            Outcome::Ended(Ended::Answered(answer)) => Ran::Answered(answer),
            Outcome::Ended(Ended::Fenced(remaining)) => {
                self.tally.fenced += 1;
                self.watch.fenced(1);
                Ran::Answered(Answer::InFlight { remaining })
            }
            Outcome::Ended(Ended::Unknown(_)) => {
                records.failed(&mut entry.state, false);
                Ran::Unavailable { random }
            }
            Outcome::Ended(Ended::Failed(fault)) => {
                let Fault { class, attempt, retry_in, .. } = *fault;
                if class == ErrorClass::Unavailable {
                    self.said.needs_failed(&fault.text);
                }
                // What counts by itself knows better, and over all processes.
                entry.attempt = attempt.unwrap_or(entry.attempt);
                debug!(
                    topic = entry.message.topic(),
                    partition = entry.message.partition(),
                    offset = entry.message.offset(),
                    attempt = entry.attempt,
                    ?class,
                    error = %crate::consumer::letter::clean(&fault.text, 512),
                    "an attempt failed"
                );
                records.failed(&mut entry.state, class != ErrorClass::Unavailable);
                note(entry, *fault);
                match class {
                    ErrorClass::Retryable => {
                        let wait = self.retry.delay(entry.attempt, random);
                        Ran::Failed { retry_in: retry_in.map_or(wait, |own| own.max(wait)), attempt }
                    }
                    ErrorClass::Fatal => Ran::Fatal,
                    ErrorClass::Unavailable => Ran::Unavailable { random },
                }
            }
            Outcome::NotBegun | Outcome::Ended(Ended::NotBegun) => {
                records.not_begun(&mut entry.state);
                Ran::NotBegun
            }
            Outcome::Lost => {
                records.not_begun(&mut entry.state);
                Ran::Lost
            }
            Outcome::Aborted => {
                records.failed(&mut entry.state, true);
                Ran::Aborted
            }
        };
        let waits = matches!(what, Ran::Answered(Answer::InFlight { .. } | Answer::NotDue { .. }));
        if waits || matches!(what, Ran::Failed { .. } | Ran::Unavailable { .. }) {
            self.park(ticket);
        }
        ran.push((ticket, what));
    }

    pub(super) fn abort(&self, tickets: &[Ticket]) {
        for task in tickets.iter().filter_map(|ticket| self.slab.get(*ticket)?.task.as_ref()) {
            task.abort();
        }
    }
}

/// What a message must stay in order with.
fn row<S>(hasher: &foldhash::fast::RandomState, by_key: bool, entry: &Entry<S>) -> Option<u64> {
    if by_key {
        return entry.message.key().map(|key| hasher.hash_one((entry.period, key)));
    }
    Some(u64::from(entry.period))
}

/// Keeps the last failure.
fn note<S>(entry: &mut Entry<S>, fault: Fault) {
    let at = entry.begun_at;
    match &mut entry.trouble {
        Some(trouble) => (trouble.last, trouble.last_at) = (fault, at),
        None => entry.trouble = Some(Box::new(Trouble { last: fault, first_at: at, last_at: at })),
    }
}
