//! The messages that one call has in hand.
//!
//! Whatever happens to that call, nothing is forgotten: dropped with messages in hand, it leaves in the registry what the
//! store has to hear about them. Nothing is settled by dropping.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::claim::{Claim, Hold, Slot};
use super::class::ErrorClass;
use super::registry;
use super::shared::Shared;
use crate::record::{Grant, Settle, SettleOutcome, Sighting, Verdict};
use crate::store::{Ask, Batch, Keyed, StoreError};

/// One message.
pub(super) struct Seat {
    pub(super) sighting: Sighting,
    phase: Phase,
    held: Option<Held>,
}

struct Held {
    grant: Grant,
    hold: Arc<Hold>,
    slot: u32,
}

#[derive(Debug)]
enum Phase {
    /// Not in hand.
    Out,
    /// Nobody else in this process may claim it; whether the store granted it is not known.
    Entered,
    /// Claimed; its handler has not begun.
    Unbegun,
    /// Its handler runs.
    Running,
    /// Its handler is over; the store is to hear how it ended.
    Over(Verdict),
}

/// Messages, in the order delivered.
pub(super) struct Seats {
    shared: Arc<Shared>,
    list: Vec<Option<Seat>>,
}

impl Seats {
    pub(super) fn new(shared: &Arc<Shared>, capacity: usize) -> Self {
        Self { shared: Arc::clone(shared), list: Vec::with_capacity(capacity) }
    }

    /// Adds a message that is not in hand.
    pub(super) fn push(&mut self, sighting: Sighting) {
        self.list.push(Some(Seat::new(sighting)));
    }

    /// Adds a place for a message that is handled some other way.
    pub(super) fn skip(&mut self) {
        self.list.push(None);
    }

    /// Forgets the places from `at` on. None of them may be in hand.
    pub(super) fn truncate(&mut self, at: usize) {
        self.list.truncate(at);
    }

    fn seat(&self, at: usize) -> Option<&Seat> {
        self.list.get(at)?.as_ref()
    }

    fn seat_mut(&mut self, at: usize) -> Option<&mut Seat> {
        self.list.get_mut(at)?.as_mut()
    }

    /// The message at a place.
    pub(super) fn sighting(&self, at: usize) -> Option<&Sighting> {
        self.seat(at).map(|seat| &seat.sighting)
    }

    /// Notes that the registry let a message in.
    pub(super) fn entered(&mut self, at: usize) {
        if let Some(seat) = self.seat_mut(at) {
            seat.entered();
        }
    }

    /// The claim calls to make for the entered messages from `from` on, and the place of each.
    pub(super) fn asks(&self, from: usize) -> (Batch<Ask>, Vec<usize>) {
        let entered = (from..).zip(self.list.iter().skip(from)).filter_map(|(at, seat)| {
            let seat = seat.as_ref().filter(|seat| matches!(seat.phase, Phase::Entered))?;
            Some((at, Ask::from(seat.sighting.clone())))
        });
        let (places, asks): (Vec<usize>, Vec<Ask>) = entered.unzip();
        let gathered = Batch::gather(asks);
        let places = gathered.places.iter().filter_map(|given| places.get(*given).copied()).collect();
        (gathered.batch, places)
    }

    /// Notes what a call sent at `sent` granted.
    pub(super) fn granted(&mut self, grants: &[(usize, Grant)], sent: Instant) {
        if grants.is_empty() {
            return;
        }
        let slots = grants.iter().filter_map(|(at, grant)| Some(Slot::new(self.seat(*at)?.sighting.key, grant.token)));
        let hold = Hold::new(slots.collect(), sent, self.shared.terms.lease);
        let mut took_over = 0;
        for (slot, (at, grant)) in (0..).zip(grants) {
            took_over += u64::from(grant.took_over);
            if let Some(seat) = self.seat_mut(*at) {
                seat.granted(*grant, &hold, slot);
            }
        }
        self.shared.counters.took_over.add(took_over);
        self.shared.watch(&hold);
    }

    /// The claim to give to a handler that is about to run.
    pub(super) fn begin(&mut self, at: usize) -> Option<Claim> {
        let seat = self.seat_mut(at)?;
        let claim = seat.claim()?;
        seat.begun();
        Some(claim)
    }

    /// Which attempt it is.
    pub(super) fn attempt(&self, at: usize) -> u32 {
        self.held(at).map_or(0, |held| held.grant.attempt)
    }

    /// Whether the store said that the claim is somebody else's.
    pub(super) fn is_taken(&self, at: usize) -> bool {
        self.held(at).and_then(|held| held.hold.slots.get(held.slot as usize)).is_some_and(Slot::is_taken)
    }

    fn held(&self, at: usize) -> Option<&Held> {
        self.seat(at)?.held.as_ref()
    }

    /// Notes how it ended; the store is to hear it.
    pub(super) fn over(&mut self, at: usize, verdict: Verdict) {
        if let Some(seat) = self.seat_mut(at) {
            seat.over(verdict);
        }
    }

    /// The claimed messages from `from` on whose handlers have not begun.
    pub(super) fn unbegun(&self, from: usize) -> Vec<usize> {
        self.places(from, |phase| matches!(phase, Phase::Unbegun))
    }

    fn places(&self, from: usize, wanted: impl Fn(&Phase) -> bool) -> Vec<usize> {
        let seats = (from..).zip(self.list.iter().skip(from));
        seats.filter(|(_, seat)| seat.as_ref().is_some_and(|seat| wanted(&seat.phase))).map(|(at, _)| at).collect()
    }

    /// The settle calls to make for those of `places` that are over, and the place of each.
    pub(super) fn settles(&self, places: impl IntoIterator<Item = usize>) -> (Batch<Settle>, Vec<usize>) {
        let (places, settles): (Vec<usize>, Vec<Settle>) =
            places.into_iter().filter_map(|at| Some((at, self.seat(at)?.settle()?))).unzip();
        let gathered = Batch::gather(settles);
        let places = gathered.places.iter().filter_map(|given| places.get(*given).copied()).collect();
        (gathered.batch, places)
    }

    /// Notes what the store answered, counts it, and puts the messages down.
    pub(super) fn heard(&mut self, places: &[usize], outcomes: &[SettleOutcome]) {
        let (mut late, mut refused) = (0, 0);
        for outcome in outcomes {
            match outcome {
                SettleOutcome::Late => late += 1,
                SettleOutcome::Refused => refused += 1,
                SettleOutcome::Settled | SettleOutcome::Buried => {}
            }
        }
        self.shared.counters.late.add(late);
        self.shared.counters.refused.add(refused);
        self.leave(places);
    }

    /// Puts messages down of which the store has nothing more to hear.
    pub(super) fn leave(&mut self, places: &[usize]) {
        for at in places {
            if let Some(seat) = self.seat_mut(*at) {
                seat.put_down();
            }
        }
        let keys = places.iter().filter_map(|at| self.seat(*at)).map(|seat| seat.sighting.key);
        self.shared.registry.leave(keys);
    }

    /// Puts messages down although the store has not heard how they ended: it is told before anything else about them.
    pub(super) fn abandon(&mut self, places: &[usize]) {
        let mut owed = Vec::with_capacity(places.len());
        for at in places {
            if let Some(seat) = self.seat_mut(*at)
                && let Some(settle) = seat.settle()
            {
                owed.push(settle);
                seat.put_down();
            }
        }
        self.shared.owe(owed);
    }

    /// Enters the messages from `from` on in order, while they can be entered or `refused` says to go on.
    pub(super) fn enter(&mut self, from: usize, mut refused: impl FnMut(usize, registry::Entry) -> bool) {
        let list = self.list.get_mut(from..).unwrap_or_default();
        let seats = (from..).zip(list).filter_map(|(at, seat)| {
            let seat = seat.as_mut()?;
            Some((seat.sighting.key, (at, seat)))
        });
        self.shared.registry.enter_all(seats, |(at, seat), entry| match entry {
            registry::Entry::Entered => {
                seat.entered();
                true
            }
            other => refused(at, other),
        });
    }
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// Another attempt, after this pause.
    Again(Duration),
    /// None: it is dead.
    Dead { attempts: u32 },
    /// It is not tried again in place.
    GivenBack,
    /// It is not tried again in place, and somebody else has the claim.
    Lost,
}

impl Seats {
    /// Tells the store that the handler of a message failed, and says what follows.
    pub(super) async fn fail(&mut self, at: usize, class: ErrorClass, patience: Duration) -> Result<Next, StoreError> {
        let shared = Arc::clone(&self.shared);
        shared.counters.failed.one();
        let attempt = self.attempt(at);
        let fatal = class == ErrorClass::Fatal;
        let down = class == ErrorClass::Unavailable && !shared.config.retry.is_in_place();
        let verdict = match class {
            ErrorClass::Fatal => Verdict::Dead,
            _ if down => Verdict::Released,
            _ => shared.failed(attempt),
        };
        let pause = match &verdict {
            Verdict::Failed { retry_in, .. } => *retry_in,
            _ => Duration::ZERO,
        };
        let taken = if self.is_taken(at) {
            // No longer ours to fail: whoever took it over decides.
            self.leave(&[at]);
            true
        } else {
            self.settle_one(at, verdict, patience).await? == SettleOutcome::Refused
        };
        let next = if down && !taken { Next::GivenBack } else { shared.next(attempt, fatal, taken, pause) };
        tracing::debug!(attempt, ?class, ?next, "an attempt failed");
        Ok(next)
    }

    /// Settles one message at once.
    pub(super) async fn settle_one(
        &mut self,
        at: usize,
        verdict: Verdict,
        patience: Duration,
    ) -> Result<SettleOutcome, StoreError> {
        self.over(at, verdict);
        let (settles, places) = self.settles([at]);
        let outcomes = self.shared.settle(&settles, patience).await?;
        self.heard(&places, &outcomes);
        Ok(outcomes.first().copied().unwrap_or(SettleOutcome::Refused))
    }
}

/// What dropping a message leaves behind.
pub(super) enum Left {
    Nothing,
    /// It was in hand, and no claim is known.
    Entered,
    /// The store has to hear this.
    Owed(Settle),
}

impl Seat {
    /// A message that is not in hand.
    pub(super) const fn new(sighting: Sighting) -> Self {
        Self { sighting, phase: Phase::Out, held: None }
    }

    /// Notes that the registry let it in.
    pub(super) fn entered(&mut self) {
        self.phase = Phase::Entered;
    }

    /// Notes that the store granted it.
    pub(super) fn granted(&mut self, grant: Grant, hold: &Arc<Hold>, slot: u32) {
        self.phase = Phase::Unbegun;
        self.held = Some(Held { grant, hold: Arc::clone(hold), slot });
    }

    /// Whether the registry let it in, and no claim is known.
    #[cfg(feature = "kafka")]
    pub(super) const fn is_entered(&self) -> bool {
        matches!(self.phase, Phase::Entered)
    }

    /// Whether its claim is held.
    #[cfg(feature = "kafka")]
    pub(super) const fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Which attempt its claim is.
    #[cfg(feature = "kafka")]
    pub(super) fn attempt(&self) -> u32 {
        self.held.as_ref().map_or(1, |held| held.grant.attempt)
    }

    /// The claim to give to its handler.
    pub(super) fn claim(&self) -> Option<Claim> {
        let held = self.held.as_ref()?;
        Some(Claim::held(&held.hold, held.slot, held.grant.attempt, held.grant.took_over))
    }

    /// Notes that its handler runs.
    pub(super) fn begun(&mut self) {
        if self.held.is_some() {
            self.phase = Phase::Running;
        }
    }

    /// Notes that its handler did not begin after all.
    #[cfg(feature = "kafka")]
    pub(super) fn not_begun(&mut self) {
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Unbegun;
        }
    }

    /// Notes how its handler ended; the store is to hear it.
    pub(super) fn over(&mut self, verdict: Verdict) {
        self.phase = Phase::Over(verdict);
        if let Some(held) = &self.held
            && let Some(slot) = held.hold.slots.get(held.slot as usize)
        {
            slot.ending();
        }
    }

    /// Whether its handler ended well, and the store is to hear it.
    #[cfg(feature = "kafka")]
    pub(super) const fn has_succeeded(&self) -> bool {
        matches!(self.phase, Phase::Over(Verdict::Succeeded { .. }))
    }

    /// The call to make for it, if it is over.
    pub(super) fn settle(&self) -> Option<Settle> {
        let Phase::Over(verdict) = &self.phase else { return None };
        Some(self.settle_as(self.held.as_ref()?.grant, verdict.clone()))
    }

    fn settle_as(&self, grant: Grant, verdict: Verdict) -> Settle {
        Settle { sighting: self.sighting.clone(), token: grant.token, attempt: grant.attempt, verdict }
    }

    /// Notes that the store has nothing more to hear; whoever calls takes it out of the registry.
    pub(super) fn put_down(&mut self) {
        self.phase = Phase::Out;
        if let Some(held) = self.held.take() {
            held.hold.over(held.slot);
        }
    }

    /// Drops it where it is.
    pub(super) fn abandon(&mut self, shared: &Shared) -> Left {
        let verdict = match std::mem::replace(&mut self.phase, Phase::Out) {
            Phase::Out => return Left::Nothing,
            Phase::Entered => None,
            Phase::Unbegun => Some(Verdict::Released),
            Phase::Running => {
                shared.counters.failed.one();
                let attempt = self.held.as_ref().map_or(1, |held| held.grant.attempt);
                Some(shared.failed(attempt))
            }
            Phase::Over(verdict) => Some(verdict),
        };
        let left = match (verdict, &self.held) {
            (Some(verdict), Some(held)) => Left::Owed(self.settle_as(held.grant, verdict)),
            _ => Left::Entered,
        };
        self.put_down();
        left
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        let mut entered = Vec::new();
        let mut owed = Vec::new();
        for seat in self.list.iter_mut().flatten() {
            match seat.abandon(&self.shared) {
                Left::Nothing => {}
                Left::Entered => entered.push(seat.sighting.key),
                Left::Owed(settle) => owed.push(settle),
            }
        }
        if !entered.is_empty() {
            self.shared.registry.leave(entered);
        }
        if !owed.is_empty() {
            tracing::debug!(claims = owed.len(), first = %owed[0].key(), "a call was dropped before the store heard how its claims ended");
            self.shared.owe(owed);
        }
    }
}
