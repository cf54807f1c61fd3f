//! Messages with a past: one for each thing that can have happened to a message.

use super::asks::{Held, acquire_all, failed, failed_for_good, known, records, requeue_all, settle_all, succeeded};
use super::ground::{Check, Ground, LONG, SHORT, ensure, same};
use crate::record::{
    ClaimOutcome, Fence, Millis, Owner, Record, RequeueOutcome, SettleOutcome, Sighting, State, Step, Terms, Token,
    Verdict,
};
use crate::store::DedupStore;

/// What happened to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    Unknown,
    Held,
    RanOut,
    TakenOver,
    FailedAndWaiting,
    FailedAndDue,
    Released,
    Succeeded,
    SucceededLate,
    GivenUp,
    UsedUp,
    Requeued,
}

impl Past {
    pub(super) const ALL: [Self; 12] = [
        Self::Unknown,
        Self::Held,
        Self::RanOut,
        Self::TakenOver,
        Self::FailedAndWaiting,
        Self::FailedAndDue,
        Self::Released,
        Self::Succeeded,
        Self::SucceededLate,
        Self::GivenUp,
        Self::UsedUp,
        Self::Requeued,
    ];

    /// Whether its lease is short.
    const fn runs_out(self) -> bool {
        matches!(self, Self::RanOut | Self::TakenOver | Self::SucceededLate)
    }

    const fn is_taken_over(self) -> bool {
        matches!(self, Self::TakenOver | Self::SucceededLate)
    }
}

/// A message with its past.
#[derive(Clone, Debug)]
pub(super) struct Story {
    pub(super) past: Past,
    /// Its first claim, or one that never was.
    pub(super) first: Held,
    /// The record as the store reads it.
    pub(super) record: Option<Record>,
}

impl Story {
    pub(super) fn message(&self) -> &Sighting {
        &self.first.message
    }

    /// A time on the store's clock that stands to the record's as the real one does.
    pub(super) fn now(&self) -> Millis {
        let Some(record) = &self.record else { return 0 };
        match self.past {
            // Its end is an hour from when it was written.
            Past::Held | Past::TakenOver | Past::FailedAndWaiting => record.state.time().saturating_sub(1_800_000),
            _ => record.state.time(),
        }
    }

    /// The claim with the record's own token, or the first if there is no record.
    pub(super) fn current(&self) -> Held {
        let mut held = self.first.clone();
        if let Some(record) = &self.record {
            held.token = record.token();
            held.attempt = record.attempts.max(1);
        }
        held
    }

    /// A claim by nobody, with the record's fence.
    pub(super) fn foreign(&self, owner: Owner) -> Held {
        let mut held = self.current();
        held.token.owner = owner;
        held
    }

    /// A claim by the record's owner with a fence that is wrong.
    pub(super) fn wrong_fence(&self) -> Held {
        let mut held = self.current();
        held.token.fence = Fence::new(held.token.fence.get().saturating_add(7));
        held
    }
}

/// One message of each past, written through `store` in batches.
pub(super) async fn one_of_each(ground: &Ground, store: &dyn DedupStore) -> Check<Vec<Story>> {
    let first = ground.terms();
    let cast: Vec<(Past, Sighting)> = Past::ALL.iter().map(|past| (*past, ground.message())).collect();
    let pick = |choose: &dyn Fn(Past) -> bool| -> Vec<Sighting> {
        cast.iter().filter(|(past, _)| choose(*past)).map(|(_, message)| message.clone()).collect()
    };
    let lasting = pick(&|past| past != Past::Unknown && !past.runs_out());
    let mut held = acquire_all(store, &first, &lasting).await?;
    held.extend(acquire_all(store, &Terms { lease: SHORT, ..first }, &pick(&Past::runs_out)).await?);
    ground.ran_out(store).await?;
    acquire_all(store, &ground.terms(), &pick(&Past::is_taken_over)).await?;

    let held = |message: &Sighting| {
        let never =
            Held { message: message.clone(), token: Token { owner: first.owner, fence: Fence::FIRST }, attempt: 1 };
        held.iter().find(|held| held.message.key == message.key).cloned().unwrap_or(never)
    };
    let mut settles = Vec::new();
    let mut expected = Vec::new();
    for (past, message) in &cast {
        let (verdict, outcome) = match past {
            Past::FailedAndWaiting => (failed(LONG), SettleOutcome::Settled),
            Past::FailedAndDue => (failed(std::time::Duration::ZERO), SettleOutcome::Settled),
            Past::Released => (Verdict::Released, SettleOutcome::Settled),
            Past::Succeeded => (succeeded(), SettleOutcome::Settled),
            Past::SucceededLate => (succeeded(), SettleOutcome::Late),
            Past::GivenUp | Past::Requeued => (Verdict::Dead, SettleOutcome::Settled),
            Past::UsedUp => (failed_for_good(), SettleOutcome::Buried),
            Past::Unknown | Past::Held | Past::RanOut | Past::TakenOver => continue,
        };
        settles.push(held(message).settle(verdict));
        expected.push((*past, outcome));
    }
    let outcomes = settle_all(store, settles).await?;
    for ((past, want), got) in expected.iter().zip(&outcomes) {
        same(&format!("settling a message that is to be {past:?}"), got, want)?;
    }
    let requeued = pick(&|past| past == Past::Requeued).iter().map(|message| message.key).collect();
    same("requeueing a dead message", &requeue_all(store, requeued).await?, &vec![RequeueOutcome::Requeued])?;

    let messages: Vec<Sighting> = cast.iter().map(|(_, message)| message.clone()).collect();
    let read = records(store, &messages).await?;
    cast.iter().zip(read).map(|((past, message), record)| story(*past, held(message), record)).collect()
}

/// A record that is not in the state that its past leads to would make the expected answers wrong too.
fn story(past: Past, first: Held, record: Option<Record>) -> Check<Story> {
    let right = matches!(
        (past, record.as_ref().map(|record| record.state)),
        (Past::Unknown, None)
            | (Past::Held | Past::RanOut | Past::TakenOver, Some(State::Processing { .. }))
            | (
                Past::FailedAndWaiting | Past::FailedAndDue | Past::Released | Past::Requeued,
                Some(State::Failed { .. })
            )
            | (Past::Succeeded, Some(State::Succeeded { late: false, .. }))
            | (Past::SucceededLate, Some(State::Succeeded { late: true, .. }))
            | (Past::GivenUp | Past::UsedUp, Some(State::Dead { .. }))
    );
    ensure(right, || format!("a message that is {past:?} reads as {record:?}"))?;
    Ok(Story { past, first, record })
}

/// Compares a claim's answer with what the rule says. Durations need only be possible, and times within the slack allowed.
pub(super) fn same_claim(ground: &Ground, what: &str, got: &ClaimOutcome, want: &ClaimOutcome) -> Check {
    match (got, want) {
        (ClaimOutcome::InFlight { remaining }, ClaimOutcome::InFlight { .. })
        | (ClaimOutcome::NotDue { remaining }, ClaimOutcome::NotDue { .. }) => {
            ensure(!remaining.is_zero() && *remaining <= LONG + std::time::Duration::from_secs(1), || {
                format!("{what}: got {got:?}, which is not within an hour")
            })
        }
        _ => same(what, &ground.near(got.clone(), want), want),
    }
}

/// Compares the record that stands with the one that the rule wrote, or with the one before. A written record's time is the store's own.
pub(super) async fn same_record<O>(store: &dyn DedupStore, what: &str, story: &Story, step: &Step<O>) -> Check {
    match (&step.write, &story.record) {
        (None, None) => {
            let got = super::asks::record(store, story.message()).await?;
            ensure(got.is_none(), || format!("{what}: a record appeared: {got:?}"))
        }
        (None, Some(before)) => {
            let got = known(store, story.message()).await.map_err(|error| format!("{what}: {error}"))?;
            same(&format!("{what}: the record should stand as it was"), &got, before)
        }
        (Some(after), _) => {
            let got = known(store, story.message()).await.map_err(|error| format!("{what}: {error}"))?;
            let timeless = |record: &Record| {
                let mut record = record.clone();
                record.state = State::from_code(record.state.code(), 0).unwrap_or(record.state);
                record
            };
            same(&format!("{what}: the record written (times aside)"), &timeless(&got), &timeless(after))
        }
    }
}
