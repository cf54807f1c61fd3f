//! Calls to the store, and letters.

use std::collections::HashSet;

use super::*;
use crate::engine::Settled;
use crate::observe::{Claims, Operation, Settles};

/// Polls a call once; gives it back if it waits.
fn poll_once<T>(mut call: Call<T>) -> Result<T, Call<T>> {
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => Ok(reply),
        Poll::Pending => Err(call),
    }
}

/// Those of which nothing was said. There are none while whoever remembers messages does as [`Records`] says: one that is left out would stand still
/// for ever, and its partition with it.
fn unsaid<T>(asked: &[Ticket], answers: &[(Ticket, T)]) -> Vec<Ticket> {
    if answers.len() >= asked.len() {
        return Vec::new();
    }
    let said: HashSet<Ticket> = answers.iter().map(|(ticket, _)| *ticket).collect();
    asked.iter().copied().filter(|ticket| !said.contains(ticket)).collect()
}

impl<H: Drive> Pump<H> {
    pub(super) fn claim(&mut self, tickets: Vec<Ticket>) {
        let sent = std::time::Instant::now();
        let call = self.handling.records().claim(&mut self.slab, &tickets, self.attempts);
        let out = Out { tickets, task: None, sent };
        match poll_once(call) {
            Ok(reply) => {
                self.claiming = Some(out);
                self.claimed(Some(Box::new(reply)));
            }
            Err(call) => {
                let mut saying = Saying { to: self.report.clone(), what: Some(Report::Claimed(None)) };
                let task = tokio::spawn(async move { saying.instead(Report::Claimed(Some(Box::new(call.await)))) });
                self.claiming = Some(Out { task: Some(task.abort_handle()), ..out });
            }
        }
    }

    pub(super) fn claimed(&mut self, reply: Option<Box<ClaimReply>>) {
        let Some(Out { tickets, sent, .. }) = self.claiming.take() else { return };
        let answers = match reply {
            Some(reply) => self.handling.records().claimed(&mut self.slab, *reply),
            None => {
                warn!(messages = tickets.len(), "a call to the store was lost: it panicked");
                self.handling.records().unclaimed(&mut self.slab, &tickets);
                self.watch.store_failed(Operation::Claim, tickets.len(), sent.elapsed());
                let random = self.random();
                self.events.push(Event::ClaimFailed { tickets, random });
                return;
            }
        };
        match answers {
            Ok(mut answers) => {
                self.said.store_answered();
                let unsaid = unsaid(&tickets, &answers);
                if !unsaid.is_empty() {
                    warn!(messages = unsaid.len(), "nothing was said of some claims: they are asked for again");
                    self.handling.records().unclaimed(&mut self.slab, &unsaid);
                    let again = Answer::InFlight { remaining: Duration::ZERO };
                    answers.extend(unsaid.into_iter().map(|ticket| (ticket, again)));
                }
                if self.watch.is_on() {
                    self.watch.claimed(tickets.len(), self.counted(&answers), sent.elapsed());
                }
                for (ticket, answer) in &answers {
                    if let Answer::InFlight { .. } | Answer::NotDue { .. } = answer {
                        self.park(*ticket);
                    }
                }
                self.events.push(Event::Claimed(answers));
            }
            Err(error) => {
                self.said.store_failed(&error);
                if !error.is_retryable() {
                    self.stop(tickets.first().copied(), refused(Stage::Claim, error));
                }
                self.watch.store_failed(Operation::Claim, tickets.len(), sent.elapsed());
                let random = self.random();
                self.events.push(Event::ClaimFailed { tickets, random });
            }
        }
    }

    /// What claims came to, in numbers.
    fn counted(&self, answers: &[(Ticket, Answer)]) -> Claims {
        let mut claims = Claims::default();
        for (ticket, answer) in answers {
            let count = match answer {
                Answer::Acquired { attempt } => {
                    let state = self.slab.get(*ticket).map(|entry| &entry.state);
                    let claim = state.map(|state| self.handling.records().claim_of(state, *attempt));
                    let took_over = claim.is_some_and(|claim| claim.took_over());
                    if took_over { &mut claims.took_over } else { &mut claims.acquired }
                }
                Answer::Redelivered => &mut claims.redelivered,
                Answer::SameId => &mut claims.same_id,
                Answer::InFlight { .. } => &mut claims.in_flight,
                Answer::NotDue { .. } => &mut claims.not_due,
                Answer::Dead => &mut claims.dead,
                Answer::Conflict => &mut claims.conflicts,
                // A claim of what has no identity is never asked for.
                Answer::Refused => continue,
            };
            *count += 1;
        }
        claims
    }

    /// A message that waits for long is not to keep the bytes of its whole batch alive.
    pub(super) fn park(&mut self, ticket: Ticket) {
        if let Some(entry) = self.slab.get_mut(ticket) {
            entry.message = entry.message.compact();
        }
    }

    pub(super) fn settle(&mut self, ends: &[(Ticket, Verdict)]) {
        let sent = std::time::Instant::now();
        let call = self.handling.records().settle(&mut self.slab, ends, self.attempts);
        let tickets = ends.iter().map(|(ticket, _)| *ticket).collect();
        let out = Out { tickets, task: None, sent };
        match poll_once(call) {
            Ok(reply) => {
                self.settling = Some(out);
                self.settled(Some(Box::new(reply)));
            }
            Err(call) => {
                let mut saying = Saying { to: self.report.clone(), what: Some(Report::Settled(None)) };
                let task = tokio::spawn(async move { saying.instead(Report::Settled(Some(Box::new(call.await)))) });
                self.settling = Some(Out { task: Some(task.abort_handle()), ..out });
            }
        }
    }

    pub(super) fn settled(&mut self, reply: Option<Box<SettleReply>>) {
        let Some(Out { tickets, sent, .. }) = self.settling.take() else { return };
        let random = self.random();
        let failed = |tickets| Event::SettleFailed { tickets, random };
        let event = match reply.map(|reply| self.handling.records().settled(&mut self.slab, *reply)) {
            Some(Ok(answers)) => {
                self.said.store_answered();
                let unsaid = unsaid(&tickets, &answers);
                if !unsaid.is_empty() {
                    warn!(messages = unsaid.len(), "nothing was said of some claims' ends: they are told again");
                    // Before the answers, which let the next call go.
                    self.events.push(failed(unsaid));
                }
                let count = |wanted| answers.iter().filter(|(_, answer)| *answer == wanted).count() as u64;
                let fenced = count(Settled::Fenced);
                self.tally.fenced += fenced;
                self.watch.fenced(fenced);
                if self.watch.is_on() {
                    let settles = Settles {
                        recorded: count(Settled::Recorded),
                        buried: count(Settled::Buried),
                        late: count(Settled::Late),
                        refused: count(Settled::Refused) + fenced,
                    };
                    self.watch.settled(settles, sent.elapsed());
                }
                Event::Settled(answers)
            }
            Some(Err(error)) => {
                self.said.store_failed(&error);
                if !error.is_retryable() {
                    self.stop(tickets.first().copied(), refused(Stage::Settle, error));
                }
                self.watch.store_failed(Operation::Settle, tickets.len(), sent.elapsed());
                failed(tickets)
            }
            None => {
                warn!(messages = tickets.len(), "a call to the store was lost: it panicked");
                self.watch.store_failed(Operation::Settle, tickets.len(), sent.elapsed());
                failed(tickets)
            }
        };
        self.events.push(event);
    }

    pub(super) fn dead_letter(&mut self, dead: &[(Ticket, Cause)]) {
        let records = self.handling.records();
        let (tickets, letters): (Vec<Ticket>, Vec<Letter>) = dead
            .iter()
            .filter_map(|(ticket, cause)| {
                let entry = self.slab.get(*ticket)?;
                let trouble = entry.trouble.as_deref();
                let letter = Letter {
                    message: entry.message.clone(),
                    cause: *cause,
                    fault: trouble.map(|trouble| trouble.last.clone()),
                    attempts: records.attempts(&entry.state).or((entry.attempt > 0).then_some(entry.attempt)),
                    first_at: trouble.map(|trouble| trouble.first_at),
                    last_at: trouble.map(|trouble| trouble.last_at),
                    key: records.key(&entry.state),
                };
                Some((*ticket, letter))
            })
            .unzip();
        let Some(keeper) = &self.letters else {
            // The engine asks only where there is a topic.
            self.lettered(
                tickets
                    .iter()
                    .map(|ticket| (*ticket, Err(Undelivered::Never("there is no dead letter topic".into()))))
                    .collect(),
            );
            return;
        };
        let sending = keeper.send(letters);
        let lost = || Err(Undelivered::Later("it was not sent".into()));
        let what = Some(Report::Lettered(tickets.iter().map(|ticket| (*ticket, lost())).collect()));
        let mut saying = Saying { to: self.report.clone(), what };
        tokio::spawn(async move {
            let answers = sending.await.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
            let answers =
                answers.map(|answer| answer.unwrap_or_else(|| Err(Undelivered::Later("it was not answered".into()))));
            saying.instead(Report::Lettered(tickets.into_iter().zip(answers).collect()));
        });
    }

    pub(super) fn lettered(&mut self, answers: Vec<(Ticket, Result<(), Undelivered>)>) {
        let (mut sent, mut unsent) = (Vec::new(), Vec::new());
        let mut told = false;
        for (ticket, answer) in answers {
            match answer {
                Ok(()) => {
                    sent.push(ticket);
                    continue;
                }
                Err(Undelivered::Later(failure)) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(%failure, "a dead letter could not be produced, and is tried again");
                    }
                }
                Err(Undelivered::Never(failure)) => self.stop(Some(ticket), failure),
            }
            unsent.push(ticket);
        }
        if !sent.is_empty() {
            self.watch.dead_lettered(sent.len());
            self.events.push(Event::DeadLettered(sent));
        }
        if !unsent.is_empty() {
            self.watch.dead_letter_failed(unsent.len());
            let random = self.random();
            self.events.push(Event::DeadLetterFailed { tickets: unsent, random });
        }
    }
}
