//! The moves: what each question does to a record.

use std::time::Duration;

use bytes::Bytes;

use super::types::{
    ClaimOutcome, Extend, ExtendOutcome, Fence, Grant, LONGEST, Millis, Record, RequeueOutcome, Settle, SettleOutcome,
    Sighting, State, Step, Terms, Token, Verdict,
};

/// Adds a duration to a time on a store's clock; saturates.
#[must_use]
pub fn after(now: Millis, duration: Duration) -> Millis {
    now.saturating_add(millis(duration))
}

/// A duration in whole milliseconds, at most [`LONGEST`].
#[must_use]
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).map_or(LONGEST, |millis| millis.min(LONGEST))
}

fn until(now: Millis, then: Millis) -> Duration {
    Duration::from_millis(u64::try_from(then.saturating_sub(now)).unwrap_or(0))
}

/// The record of a message that nothing is known of, claimed.
#[must_use]
pub fn first_claim(sighting: &Sighting, terms: &Terms, now: Millis) -> (Grant, Record) {
    let record = Record {
        state: State::Processing { until: after(now, terms.lease) },
        owner: terms.owner,
        fence: Fence::FIRST,
        attempts: 1,
        fingerprint: sighting.fingerprint,
        origin: sighting.origin.clone(),
        result: None,
    };
    (Grant { token: record.token(), attempt: 1, took_over: false }, record)
}

/// Decides a claim.
#[must_use]
pub fn claim(record: Option<&Record>, sighting: &Sighting, terms: &Terms, now: Millis) -> Step<ClaimOutcome> {
    let Some(record) = record else {
        let (grant, record) = first_claim(sighting, terms, now);
        return Step::write(ClaimOutcome::Acquired(grant), record);
    };
    if record.fingerprint != sighting.fingerprint {
        return Step::keep(ClaimOutcome::Conflict { first: record.seen() });
    }
    match record.state {
        State::Succeeded { .. } => {
            Step::keep(ClaimOutcome::Duplicate { result: record.result.clone(), first: record.seen() })
        }
        State::Dead { .. } => Step::keep(ClaimOutcome::Dead { attempts: record.attempts }),
        State::Processing { until: end } if record.owner == terms.owner => {
            let grant = Grant { token: record.token(), attempt: record.attempts, took_over: false };
            let longer = after(now, terms.lease).max(end);
            let mut held = record.clone();
            held.state = State::Processing { until: longer };
            Step { outcome: ClaimOutcome::Acquired(grant), write: (longer != end).then_some(held) }
        }
        State::Processing { until: end } if end > now => {
            Step::keep(ClaimOutcome::InFlight { remaining: until(now, end) })
        }
        State::Failed { due } if due > now => Step::keep(ClaimOutcome::NotDue { remaining: until(now, due) }),
        State::Processing { .. } | State::Failed { .. } => again(record, terms, now),
    }
}

/// Claims a record that is free: failed and due, or its lease ran out.
fn again(record: &Record, terms: &Terms, now: Millis) -> Step<ClaimOutcome> {
    let mut next = record.clone();
    if record.attempts >= terms.max_attempts.get() {
        next.state = State::Dead { at: now };
        return Step::write(ClaimOutcome::Dead { attempts: record.attempts }, next);
    }
    next.state = State::Processing { until: after(now, terms.lease) };
    next.owner = terms.owner;
    next.fence = record.fence.next();
    next.attempts = record.attempts.saturating_add(1);
    let grant = Grant {
        token: next.token(),
        attempt: next.attempts,
        took_over: matches!(record.state, State::Processing { .. }),
    };
    Step::write(ClaimOutcome::Acquired(grant), next)
}

/// Decides how a claim ends.
#[must_use]
pub fn settle(record: Option<&Record>, ask: &Settle, now: Millis) -> Step<SettleOutcome> {
    if let Verdict::Succeeded { result } = &ask.verdict {
        return succeed(record, ask, result.as_ref(), now);
    }
    // Forgotten; or forgotten, and another message has taken the identity since, maybe with an equal token.
    let Some(record) = record.filter(|record| record.fingerprint == ask.sighting.fingerprint) else {
        return Step::keep(SettleOutcome::Refused);
    };
    let (state, attempts, outcome) = match &ask.verdict {
        Verdict::Failed { max_attempts, .. } if record.attempts >= max_attempts.get() => {
            (State::Dead { at: now }, record.attempts, SettleOutcome::Buried)
        }
        Verdict::Failed { retry_in, .. } => {
            (State::Failed { due: after(now, *retry_in) }, record.attempts, SettleOutcome::Settled)
        }
        Verdict::Released => (State::Failed { due: now }, record.attempts.saturating_sub(1), SettleOutcome::Settled),
        Verdict::Dead | Verdict::Succeeded { .. } => (State::Dead { at: now }, record.attempts, SettleOutcome::Settled),
    };
    end(record, ask.token, state, attempts, outcome)
}

/// Ends a claim without success: a right of the current token. Asking again changes nothing.
fn end(record: &Record, token: Token, state: State, attempts: u32, outcome: SettleOutcome) -> Step<SettleOutcome> {
    if record.is_held_by(token) {
        let mut next = record.clone();
        next.state = state;
        next.attempts = attempts;
        return Step::write(outcome, next);
    }
    match record.state {
        State::Failed { .. } if record.token() == token => Step::keep(SettleOutcome::Settled),
        State::Dead { .. } if record.token() == token => Step::keep(match outcome {
            SettleOutcome::Settled if matches!(state, State::Failed { .. }) => SettleOutcome::Buried,
            other => other,
        }),
        _ => Step::keep(SettleOutcome::Refused),
    }
}

fn succeed(record: Option<&Record>, ask: &Settle, result: Option<&Bytes>, now: Millis) -> Step<SettleOutcome> {
    let Some(record) = record else {
        // Forgotten (evicted, expired, lost in a failover): the effect happened all the same.
        let record = Record {
            state: State::Succeeded { at: now, late: true },
            owner: ask.token.owner,
            fence: ask.token.fence,
            attempts: ask.attempt,
            fingerprint: ask.sighting.fingerprint,
            origin: ask.sighting.origin.clone(),
            result: result.cloned(),
        };
        return Step::write(SettleOutcome::Late, record);
    };
    if record.fingerprint != ask.sighting.fingerprint {
        // Forgotten, and another message took the identity since.
        return Step::keep(SettleOutcome::Refused);
    }
    if let State::Succeeded { late, .. } = record.state {
        let mine = record.token() == ask.token && !late;
        return Step::keep(if mine { SettleOutcome::Settled } else { SettleOutcome::Late });
    }
    let late = !record.is_held_by(ask.token);
    let mut next = record.clone();
    next.state = State::Succeeded { at: now, late };
    next.result = result.cloned();
    let outcome = if late { SettleOutcome::Late } else { SettleOutcome::Settled };
    Step::write(outcome, next)
}

/// Decides whether a claim goes on.
#[must_use]
pub fn extend(record: Option<&Record>, ask: &Extend, now: Millis) -> Step<ExtendOutcome> {
    match record {
        Some(record) if record.is_held_by(ask.token) => {
            let longer = after(now, ask.lease).max(record.state.time());
            let mut next = record.clone();
            next.state = State::Processing { until: longer };
            Step { outcome: ExtendOutcome::Held, write: (next.state != record.state).then_some(next) }
        }
        _ => Step::keep(ExtendOutcome::Lost),
    }
}

/// Brings a dead record back: due at once, attempts forgotten, every earlier token stale.
#[must_use]
pub fn requeue(record: Option<&Record>, now: Millis) -> Step<RequeueOutcome> {
    match record {
        None => Step::keep(RequeueOutcome::Unknown),
        Some(record) => match record.state {
            State::Dead { .. } => {
                let mut next = record.clone();
                next.state = State::Failed { due: now };
                next.fence = record.fence.next();
                next.attempts = 0;
                Step::write(RequeueOutcome::Requeued, next)
            }
            _ => Step::keep(RequeueOutcome::NotDead),
        },
    }
}
