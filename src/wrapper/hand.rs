//! What a wrapper remembers of the messages that a consumer has in hand.

use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::builder::{Mode, OnConflict};
use super::claim::{Claim, Hold, Slot};
use super::class::{Failure, HandlerError};
use super::done::{At, HandleError};
use super::drive::{Asked, Call, ClaimReply, Ended, Fault, Hands, Records, SettleReply, Unfinished, given_up};
use super::registry::Entry;
use super::seats::{Left, Seat};
use super::shared::Subject;
use super::{Kept, Once};
use crate::engine::{self, Answer, Cause, Ending, Settled, Ticket};
use crate::frontier::Epoch;
use crate::identity::{IdentityError, Key};
use crate::message::MessageView;
use crate::record::{ClaimOutcome, Grant, Seen, Settle, SettleOutcome, Terms, Verdict};
use crate::store::{Ask, Batch, StoreError};

#[cfg(test)]
mod tests;

/// When to ask again for a message that is in another hand of this process.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a wrapper remembers of a message that a consumer has in hand.
pub struct InHand {
    what: What,
    /// It was counted as waited for.
    waited: bool,
    /// A claim of it took another owner's over: its effect may have happened, however often it is claimed anew.
    took_over: bool,
    /// The message it is in conflict with.
    first: Option<Box<Seen>>,
    /// The claim that was settled before the handler runs.
    spent: Option<Box<Claim>>,
    /// The store has it as dead, after so many attempts.
    dead_after: Option<u32>,
}

impl fmt::Debug for InHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InHand").finish_non_exhaustive()
    }
}

enum What {
    Known(Seat),
    Bare(Key),
    Refused(Box<IdentityError>),
}

impl InHand {
    const fn new(what: What) -> Self {
        Self { what, waited: false, took_over: false, first: None, spent: None, dead_after: None }
    }

    const fn seat(&mut self) -> Option<&mut Seat> {
        match &mut self.what {
            What::Known(seat) => Some(seat),
            What::Bare(_) | What::Refused(_) => None,
        }
    }
}

impl Once {
    /// What of a handler's result is kept.
    pub(crate) fn ended<T: Kept, E: HandlerError>(&self, result: Result<T, Failure<E>>) -> Ended {
        match result {
            Ok(value) => match self.shared.succeeded(&value) {
                Verdict::Succeeded { result } => Ended::Succeeded(result),
                _ => Ended::Succeeded(None),
            },
            Err(failure) => Ended::Failed(Fault::of(&failure)),
        }
    }

    /// Runs a handler as [`Once::handle`] does: panics caught, time bounded.
    pub(crate) fn guarded<T, E>(
        &self,
        claim: &Claim,
        handler: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, Failure<E>>> {
        super::run::run(&self.shared, claim, handler)
    }

    /// How a consumer is to treat conflicts.
    pub(crate) fn conflicts(&self) -> engine::Conflicts {
        match self.shared.config.on_conflict {
            OnConflict::Stop => engine::Conflicts::GiveUp,
            OnConflict::Skip => engine::Conflicts::Skip,
            OnConflict::Handle => engine::Conflicts::Handle,
        }
    }

    /// How often and when failed messages are tried again.
    pub(crate) fn retry(&self) -> crate::Retry {
        self.shared.config.retry
    }

    fn wait_for(&self, state: &mut InHand) {
        if !std::mem::replace(&mut state.waited, true) {
            self.shared.counters.waited.one();
        }
    }

    /// What the store said of a message that it did not grant.
    fn answer(&self, state: &mut InHand, outcome: ClaimOutcome) -> Answer {
        match outcome {
            ClaimOutcome::Acquired(Grant { attempt, .. }) => Answer::Acquired { attempt },
            ClaimOutcome::Duplicate { first, .. } => match state.seat() {
                Some(seat) if seat.sighting.origin == first.origin => Answer::Redelivered,
                _ => Answer::SameId,
            },
            ClaimOutcome::InFlight { remaining } => {
                self.wait_for(state);
                Answer::InFlight { remaining }
            }
            ClaimOutcome::NotDue { remaining } => Answer::NotDue { remaining },
            ClaimOutcome::Dead { attempts } => {
                state.dead_after = Some(attempts);
                Answer::Dead
            }
            ClaimOutcome::Conflict { first } => {
                self.shared.counters.conflicts.one();
                tracing::debug!(first = ?first.origin, "a conflict: the identity was used by another message");
                state.first = Some(Box::new(first));
                Answer::Conflict
            }
        }
    }

    /// What is remembered of a message from now on.
    fn seen(&self, subject: Result<Subject, IdentityError>) -> (engine::Subject, InHand) {
        match subject {
            Ok(Subject::Known(sighting)) => {
                let subject = engine::Subject::Known { key: sighting.key, fingerprint: sighting.fingerprint };
                (subject, InHand::new(What::Known(Seat::new(sighting))))
            }
            Ok(Subject::Bare { key, anonymous }) => {
                self.shared.counters.without_identity.add(u64::from(anonymous));
                (engine::Subject::Bare, InHand::new(What::Bare(key)))
            }
            Err(error) => {
                self.shared.counters.rejected.one();
                (engine::Subject::Refused, InHand::new(What::Refused(Box::new(error))))
            }
        }
    }

    /// Puts messages down of which no claim is held.
    fn leave(&self, hands: &mut dyn Hands<InHand>, tickets: &[Ticket]) {
        let mut keys = Vec::with_capacity(tickets.len());
        for ticket in tickets {
            if let Some(seat) = hands.hand(*ticket).and_then(InHand::seat) {
                seat.put_down();
                keys.push(seat.sighting.key);
            }
        }
        if !keys.is_empty() {
            self.shared.registry.leave(keys);
        }
    }

    fn store_failed(&self, operation: &'static str, error: &StoreError) {
        self.shared.counters.store_failures.one();
        tracing::debug!(operation, %error, "the store failed");
    }
}

impl Records for Once {
    type State = InHand;

    fn look(&self, message: &dyn MessageView, _: Epoch) -> (engine::Subject, InHand) {
        self.seen(self.shared.subject(message))
    }

    fn look_row<M: MessageView>(
        &self,
        messages: impl Iterator<Item = M>,
        _: Epoch,
        mut seen: impl FnMut(M, engine::Subject, InHand),
    ) {
        let mut topic = None;
        for message in messages {
            let name = || Arc::clone(topic.get_or_insert_with(|| self.shared.topic(message.topic())));
            let (subject, state) = self.seen(self.shared.subject_of(&message, name));
            seen(message, subject, state);
        }
    }

    fn claim(&self, hands: &mut dyn Hands<InHand>, tickets: &[Ticket], attempts: NonZeroU32) -> Call<ClaimReply> {
        let shared = Arc::clone(&self.shared);
        let mut keys = Vec::with_capacity(tickets.len());
        let mut busy = Vec::new();
        for ticket in tickets {
            match hands.hand(*ticket).and_then(InHand::seat) {
                Some(seat) => keys.push((seat.sighting.key, *ticket)),
                None => busy.push(*ticket),
            }
        }
        let mut asked = Vec::with_capacity(keys.len());
        let mut owed = false;
        let keyed = keys.into_iter().map(|(key, ticket)| (key, (key, ticket)));
        shared.registry.enter_all(keyed, |(key, ticket), entry| {
            match entry {
                Entry::Entered => {
                    let place = u32::try_from(asked.len()).unwrap_or(u32::MAX);
                    asked.push(Asked { key, ticket, place });
                }
                Entry::Busy(_) => busy.push(ticket),
                Entry::Owed => {
                    owed = true;
                    busy.push(ticket);
                }
            }
            true
        });
        if owed {
            // Told by the background task, before anything else about those messages.
            shared.renewal.nudge(&shared);
        }
        for ticket in &busy {
            if let Some(state) = hands.hand(*ticket) {
                self.wait_for(state);
            }
        }
        // Keys are sorted, which are small, and what is asked is made in their order. No two are the same: the registry lets none in twice.
        asked.sort_unstable_by_key(|asked| u128::from_be_bytes(*asked.key.as_bytes()));
        let mut asks = Vec::with_capacity(asked.len());
        asked.retain(|Asked { ticket, .. }| {
            let Some(seat) = hands.hand(*ticket).and_then(InHand::seat) else { return false };
            seat.entered();
            asks.push(Ask::from(seat.sighting.clone()));
            true
        });
        let asks = Batch::sorted(asks);
        let terms = Terms { max_attempts: attempts, ..shared.terms };
        Box::pin(async move {
            let sent = Instant::now();
            let answer = if asks.is_empty() {
                Ok(Vec::new())
            } else {
                shared.once("claim", asks.len(), shared.store.claim(&terms, &asks)).await
            };
            ClaimReply { asked, busy, sent, answer }
        })
    }

    fn claimed(&self, hands: &mut dyn Hands<InHand>, reply: ClaimReply) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        let ClaimReply { asked, busy, sent, answer } = reply;
        let outcomes = match answer {
            Ok(outcomes) => outcomes,
            Err(error) => {
                self.store_failed("claim", &error);
                let tickets: Vec<Ticket> = asked.iter().map(|asked| asked.ticket).collect();
                self.leave(hands, &tickets);
                return Err(error);
            }
        };
        let slots = asked.iter().zip(&outcomes).filter_map(|(asked, outcome)| match outcome {
            ClaimOutcome::Acquired(grant) => Some(Slot::new(asked.key, grant.token)),
            _ => None,
        });
        let slots: Vec<Slot> = slots.collect();
        let hold = (!slots.is_empty()).then(|| Hold::new(slots, sent, self.shared.terms.lease));
        // In the order given, which is not that of the keys; what is not said below is to be asked again.
        let unsaid = Answer::InFlight { remaining: LOOK_AGAIN };
        let mut answers = vec![(Ticket(u32::MAX), unsaid); asked.len()];
        answers.extend(busy.into_iter().map(|ticket| (ticket, unsaid)));
        let mut left = Vec::new();
        let (mut slot, mut took_over) = (0, 0);
        for (asked, outcome) in asked.iter().zip(outcomes) {
            let ticket = asked.ticket;
            let own_slot = slot;
            slot += u32::from(matches!(outcome, ClaimOutcome::Acquired(_)));
            let Some(state) = hands.hand(ticket) else { continue };
            let answer = match (outcome, &hold) {
                (ClaimOutcome::Acquired(grant), Some(hold)) => {
                    took_over += u64::from(grant.took_over && !state.took_over);
                    state.took_over |= grant.took_over;
                    let grant = Grant { took_over: state.took_over, ..grant };
                    if let Some(seat) = state.seat() {
                        seat.granted(grant, hold, own_slot);
                    }
                    Answer::Acquired { attempt: grant.attempt }
                }
                (outcome, _) => {
                    left.push(ticket);
                    self.answer(state, outcome)
                }
            };
            if let Some(own) = answers.get_mut(asked.place as usize) {
                *own = (ticket, answer);
            }
        }
        if !left.is_empty() {
            self.leave(hands, &left);
        }
        if let Some(hold) = hold {
            self.shared.counters.took_over.add(took_over);
            self.shared.watch(&hold);
        }
        Ok(answers)
    }

    fn unclaimed(&self, hands: &mut dyn Hands<InHand>, tickets: &[Ticket]) {
        let entered: Vec<Ticket> = tickets
            .iter()
            .copied()
            .filter(|ticket| hands.hand(*ticket).and_then(InHand::seat).is_some_and(|seat| seat.is_entered()))
            .collect();
        self.leave(hands, &entered);
    }

    fn claim_of(&self, state: &InHand, attempt: u32) -> Claim {
        let bare = |key| Claim::bare(key, attempt);
        match &state.what {
            What::Known(seat) => {
                let spent = || state.spent.as_deref().cloned();
                seat.claim().or_else(spent).unwrap_or_else(|| bare(seat.sighting.key))
            }
            What::Bare(key) => bare(*key),
            What::Refused(_) => bare(Key::from_bytes([0; 16])),
        }
    }

    fn begun(&self, state: &mut InHand) {
        if let Some(seat) = state.seat() {
            seat.begun();
        }
    }

    fn succeeded(&self, state: &mut InHand, result: Option<Bytes>) {
        if let Some(seat) = state.seat()
            && seat.is_held()
        {
            seat.over(Verdict::Succeeded { result });
        }
    }

    fn failed(&self, state: &mut InHand, burnt: bool) {
        self.shared.counters.failed.add(u64::from(burnt));
        if let Some(seat) = state.seat()
            && seat.is_held()
        {
            let attempt = seat.attempt();
            seat.over(if burnt { self.shared.failed(attempt) } else { Verdict::Released });
        }
    }

    fn not_begun(&self, state: &mut InHand) {
        if let Some(seat) = state.seat() {
            seat.not_begun();
        }
    }

    fn settle(
        &self,
        hands: &mut dyn Hands<InHand>,
        ends: &[(Ticket, engine::Verdict)],
        attempts: NonZeroU32,
    ) -> Call<SettleReply> {
        let shared = Arc::clone(&self.shared);
        let at_most_once = shared.config.mode == Mode::AtMostOnce;
        let mut over: Vec<(Key, Ticket)> = Vec::with_capacity(ends.len());
        let mut unheld = Vec::new();
        for (ticket, verdict) in ends {
            let Some(state) = hands.hand(*ticket) else { continue };
            let Some(seat) = state.seat().filter(|seat| seat.is_held()) else {
                unheld.push(*ticket);
                continue;
            };
            match verdict {
                // With its result, which it was given when its handler ended.
                engine::Verdict::Succeeded if seat.has_succeeded() => {}
                engine::Verdict::Succeeded => seat.over(Verdict::Succeeded { result: None }),
                engine::Verdict::Failed { retry_in } => {
                    seat.over(Verdict::Failed { retry_in: *retry_in, max_attempts: attempts });
                }
                engine::Verdict::Released => seat.over(Verdict::Released),
                engine::Verdict::Dead => seat.over(Verdict::Dead),
            }
            over.push((seat.sighting.key, *ticket));
            if at_most_once && *verdict == engine::Verdict::Succeeded {
                let spent = seat.claim();
                state.spent = spent.map(|claim| Box::new(claim.spent()));
            }
        }
        // As for claims: keys are sorted, and what is told is made in their order, each key once, so that every answer is about its own message.
        over.sort_unstable_by_key(|(key, _)| u128::from_be_bytes(*key.as_bytes()));
        over.dedup_by_key(|(key, _)| *key);
        let mut tickets = Vec::with_capacity(over.len());
        let mut settles: Vec<Settle> = Vec::with_capacity(over.len());
        for (_, ticket) in over {
            if let Some(settle) = hands.hand(ticket).and_then(InHand::seat).and_then(|seat| seat.settle()) {
                tickets.push(ticket);
                settles.push(settle);
            }
        }
        let settles = Batch::sorted(settles);
        Box::pin(async move {
            let answer = if settles.is_empty() {
                Ok(Vec::new())
            } else {
                shared.once("settle", settles.len(), shared.store.settle(&settles)).await
            };
            SettleReply { tickets, unheld, answer }
        })
    }

    fn settled(&self, hands: &mut dyn Hands<InHand>, reply: SettleReply) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        let SettleReply { tickets, unheld, answer } = reply;
        let outcomes = answer.inspect_err(|error| self.store_failed("settle", error))?;
        let (mut late, mut refused) = (0, 0);
        let answers = tickets.iter().zip(outcomes).map(|(ticket, outcome)| {
            let settled = match outcome {
                SettleOutcome::Settled => Settled::Recorded,
                SettleOutcome::Buried => Settled::Buried,
                SettleOutcome::Late => {
                    late += 1;
                    Settled::Late
                }
                SettleOutcome::Refused => {
                    refused += 1;
                    Settled::Refused
                }
            };
            (*ticket, settled)
        });
        let answers = answers.chain(unheld.into_iter().map(|ticket| (ticket, Settled::Refused))).collect();
        self.shared.counters.late.add(late);
        self.shared.counters.refused.add(refused);
        self.leave(hands, &tickets);
        Ok(answers)
    }

    fn finished(&self, ending: Ending, messages: u64) {
        let counters = &self.shared.counters;
        match ending {
            Ending::Handled => counters.handled.add(messages),
            Ending::Redelivered | Ending::SameId => counters.duplicates.add(messages),
            Ending::Dead => counters.dead.add(messages),
            // Counted when it was found.
            Ending::Conflict => {}
        }
    }

    fn put_down(&self, state: InHand) {
        if let What::Known(mut seat) = state.what {
            match seat.abandon(&self.shared) {
                Left::Nothing => {}
                Left::Entered => self.shared.registry.leave([seat.sighting.key]),
                Left::Owed(settle) => self.shared.owe(vec![settle]),
            }
        }
    }

    fn key(&self, state: &InHand) -> Option<Key> {
        match &state.what {
            What::Known(seat) => Some(seat.sighting.key),
            What::Bare(_) | What::Refused(_) => None,
        }
    }

    fn attempts(&self, state: &InHand) -> Option<u32> {
        state.dead_after
    }

    fn explain(&self, message: &dyn MessageView, state: &InHand, cause: Cause, last: Option<&Fault>) -> Unfinished {
        let at = || At(self.shared.origin(message));
        match (cause, &state.what, &state.first) {
            (Cause::Identity, What::Refused(error), _) => {
                Box::new(HandleError::<String>::Identity { at: at(), error: IdentityError::clone(error) })
            }
            (Cause::Conflict, _, Some(first)) => {
                Box::new(HandleError::<String>::Conflict { at: at(), first: Seen::clone(first) })
            }
            _ => given_up(cause, last),
        }
    }

    async fn finish(&self, longest: Duration) -> u64 {
        let left = self.settle_pending(longest).await;
        left.handled.len() as u64 + left.claims as u64
    }
}
