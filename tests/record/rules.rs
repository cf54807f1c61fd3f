//! The rules under test, and the same rules with one flaw each.

use std::num::NonZeroU32;
use std::time::Duration;

use hapax::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Fence, Millis, Owner, Record, RequeueOutcome, Seen, Settle,
    SettleOutcome, Sighting, State, Step, Terms, Verdict,
};

use crate::world::Budget;

/// The four functions that decide.
#[derive(Clone, Copy)]
pub struct Rules {
    pub claim: fn(Option<&Record>, &Sighting, &Terms, Millis) -> Step<ClaimOutcome>,
    pub settle: fn(Option<&Record>, &Settle, Millis) -> Step<SettleOutcome>,
    pub extend: fn(Option<&Record>, &Extend, Millis) -> Step<ExtendOutcome>,
    pub requeue: fn(Option<&Record>, Millis) -> Step<RequeueOutcome>,
}

/// The crate's own.
pub const REAL: Rules =
    Rules { claim: record::claim, settle: record::settle, extend: record::extend, requeue: record::requeue };

/// How owners use the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// As the wrapper does.
    Right,
    /// A restarted process keeps its owner number.
    KeepsItsNumber,
    /// Claims again without an answer to its failure.
    AbandonsItsFailure,
    /// Reports success before the effect.
    SucceedsFirst,
    /// Takes a handler that was too slow for one that failed: its effect may have happened.
    FailsAfterItsEffect,
    /// All processes have one owner number.
    SharesANumber,
    /// Commits past a message that somebody else is handling.
    CommitsWhatIsInFlight,
}

fn processing(record: Option<&Record>) -> Option<(&Record, Millis)> {
    match record {
        Some(record) => match record.state {
            State::Processing { until } => Some((record, until)),
            _ => None,
        },
        None => None,
    }
}

fn is_success(ask: &Settle) -> bool {
    matches!(ask.verdict, Verdict::Succeeded { .. })
}

/// The asker is taken for the holder when `forged` says so.
fn with_current_token(record: Option<&Record>, ask: &Settle, forged: bool) -> Settle {
    let token = record.filter(|_| forged).map_or(ask.token, Record::token);
    Settle { token, ..ask.clone() }
}

/// Success is a right of the token's holder, as failing is: the rule that the late success was weighed against.
pub const NO_LATE_SUCCESS: Rules = Rules {
    settle: |record, ask, now| {
        let held = record.is_some_and(|record| record.token() == ask.token);
        if is_success(ask) && !held {
            return Step { outcome: SettleOutcome::Refused, write: None };
        }
        record::settle(record, ask, now)
    },
    ..REAL
};

/// A flaw: its name, the rules and habit that have it, the mishaps it takes, and a property that must be found broken.
pub struct Flaw {
    pub name: &'static str,
    pub rules: Rules,
    pub habit: Habit,
    pub takes: Budget,
    pub breaks: &'static str,
}

const NOTHING: Budget =
    Budget { crashes: 0, losses: 0, repeats: 0, extensions: 0, releases: 0, fatal: 0, requeues: 0, forgets: 0 };
const A_CRASH: Budget = Budget { crashes: 1, ..NOTHING };

const fn flaw(name: &'static str, breaks: &'static str, rules: Rules) -> Flaw {
    Flaw { name, rules, habit: Habit::Right, takes: NOTHING, breaks }
}

const fn misuse(name: &'static str, breaks: &'static str, habit: Habit, takes: Budget) -> Flaw {
    Flaw { name, rules: REAL, habit, takes, breaks }
}

impl Flaw {
    const fn takes(self, takes: Budget) -> Self {
        Self { takes, ..self }
    }
}

/// Ways to get the rules wrong, and then ways to use them wrongly.
pub const FLAWS: &[Flaw] = &[
    flaw(
        "fails without a token",
        "only the holder ends a claim without success",
        Rules {
            settle: |record, ask, now| {
                let forged = matches!(ask.verdict, Verdict::Failed { .. });
                record::settle(record, &with_current_token(record, ask, forged), now)
            },
            ..REAL
        },
    ),
    flaw(
        "releases without a token",
        "no claim is ended under a running handler",
        Rules {
            settle: |record, ask, now| {
                let forged = matches!(ask.verdict, Verdict::Released);
                record::settle(record, &with_current_token(record, ask, forged), now)
            },
            ..REAL
        },
    )
    .takes(Budget { releases: 1, ..NOTHING }),
    flaw(
        "compares the owner only",
        "a token begins one handler",
        Rules {
            // A failure that comes late ends the same owner's next attempt.
            settle: |record, ask, now| {
                let forged = !is_success(ask) && record.is_some_and(|record| record.owner == ask.token.owner);
                record::settle(record, &with_current_token(record, ask, forged), now)
            },
            claim: |record, sighting, terms, now| {
                let mut step = record::claim(record, sighting, terms, now);
                if let (Some(before), ClaimOutcome::Acquired(grant), Some(after)) =
                    (record, &mut step.outcome, &mut step.write)
                    && before.owner == terms.owner
                {
                    grant.token.fence = before.fence;
                    after.fence = before.fence;
                }
                step
            },
            ..REAL
        },
    ),
    flaw(
        "takes over with the same fence",
        "a fence is granted to one owner",
        Rules {
            claim: |record, sighting, terms, now| {
                let mut step = record::claim(record, sighting, terms, now);
                if let (Some((before, _)), ClaimOutcome::Acquired(grant), Some(after)) =
                    (processing(record), &mut step.outcome, &mut step.write)
                {
                    grant.token.fence = before.fence;
                    after.fence = before.fence;
                }
                step
            },
            ..REAL
        },
    ),
    flaw(
        "starts the fence anew after a failure",
        "the fence never falls",
        Rules {
            claim: |record, sighting, terms, now| {
                let mut step = record::claim(record, sighting, terms, now);
                if let (Some(Record { state: State::Failed { .. }, .. }), ClaimOutcome::Acquired(grant), Some(after)) =
                    (record, &mut step.outcome, &mut step.write)
                {
                    grant.token.fence = Fence::FIRST;
                    after.fence = Fence::new(0);
                }
                step
            },
            ..REAL
        },
    ),
    flaw(
        "takes over before the lease ends",
        "a live lease is not taken over",
        Rules { claim: |record, sighting, terms, now| record::claim(record, sighting, terms, now + 1), ..REAL },
    ),
    flaw(
        "is not re-entrant",
        "claiming again is the same claim",
        Rules {
            claim: |record, sighting, terms, now| match processing(record) {
                Some((held, _)) if held.owner == terms.owner => {
                    let stranger =
                        Record { owner: Owner::new(u64::MAX), state: State::Processing { until: now }, ..held.clone() };
                    record::claim(Some(&stranger), sighting, terms, now)
                }
                _ => record::claim(record, sighting, terms, now),
            },
            ..REAL
        },
    )
    .takes(Budget { losses: 1, ..NOTHING }),
    flaw(
        "counts attempts when they fail",
        "attempts are counted before the handler runs",
        Rules {
            claim: |record, sighting, terms, now| {
                let mut step = record::claim(record, sighting, terms, now);
                if let (ClaimOutcome::Acquired(_), Some(after)) = (&step.outcome, &mut step.write) {
                    after.attempts = record.map_or(0, |before| before.attempts);
                }
                step
            },
            ..REAL
        },
    ),
    flaw(
        "ignores the limit when it claims",
        "no attempt begins beyond the limit",
        Rules {
            claim: |record, sighting, terms, now| {
                record::claim(record, sighting, &Terms { max_attempts: NonZeroU32::MAX, ..*terms }, now)
            },
            ..REAL
        },
    ),
    flaw(
        "ignores the limit when it fails",
        "a failed message becomes due or dead",
        Rules {
            settle: |record, ask, now| match ask.verdict {
                Verdict::Failed { retry_in, .. } => {
                    let verdict = Verdict::Failed { retry_in, max_attempts: NonZeroU32::MAX };
                    record::settle(record, &Settle { verdict, ..ask.clone() }, now)
                }
                _ => record::settle(record, ask, now),
            },
            ..REAL
        },
    ),
    flaw(
        "fails into nowhere",
        "a failed message becomes due or dead",
        Rules {
            settle: |record, ask, now| {
                let mut step = record::settle(record, ask, now);
                if let Some(Record { state: State::Failed { due }, .. }) = &mut step.write {
                    *due = Millis::MAX;
                }
                step
            },
            ..REAL
        },
    ),
    flaw(
        "undoes a success",
        "succeeded is never undone",
        Rules {
            // Compares the token and forgets the state.
            settle: |record, ask, now| match record {
                Some(Record { state: State::Succeeded { .. }, .. }) if !is_success(ask) => {
                    let write = Record { state: State::Failed { due: now }, ..record.unwrap().clone() };
                    Step { outcome: SettleOutcome::Settled, write: Some(write) }
                }
                _ => record::settle(record, ask, now),
            },
            ..REAL
        },
    ),
    flaw("forgets a late success", "a success is remembered, early or late", NO_LATE_SUCCESS),
    flaw(
        "does not flag a late success",
        "a late success is flagged",
        Rules {
            settle: |record, ask, now| {
                let forged = is_success(ask);
                record::settle(record, &with_current_token(record, ask, forged), now)
            },
            ..REAL
        },
    ),
    flaw(
        "handles duplicates",
        "nothing is handled once it has succeeded",
        Rules {
            claim: |record, sighting, terms, now| match record {
                Some(before @ Record { state: State::Succeeded { .. }, .. }) => {
                    let due = Record { state: State::Failed { due: now }, attempts: 0, ..before.clone() };
                    Step { write: None, ..record::claim(Some(&due), sighting, terms, now) }
                }
                _ => record::claim(record, sighting, terms, now),
            },
            ..REAL
        },
    ),
    flaw(
        "extends a claim that was taken over",
        "only the holder extends, and never shortens",
        Rules {
            extend: |record, ask, now| {
                let token = processing(record).map_or(ask.token, |(record, _)| record.token());
                record::extend(record, &Extend { token, ..*ask }, now)
            },
            ..REAL
        },
    )
    .takes(Budget { extensions: 1, ..NOTHING }),
    flaw(
        "shortens when it extends",
        "only the holder extends, and never shortens",
        Rules {
            extend: |record, ask, now| {
                let mut step = record::extend(record, ask, now);
                if let (ExtendOutcome::Held, Some(before)) = (step.outcome, record) {
                    let state = State::Processing { until: record::after(now, ask.lease) };
                    step.write = Some(Record { state, ..before.clone() });
                }
                step
            },
            ..REAL
        },
    )
    .takes(Budget { extensions: 1, ..NOTHING }),
    flaw(
        "requeues with the old fence",
        "requeueing makes every earlier token stale",
        Rules {
            requeue: |record, now| {
                let mut step = record::requeue(record, now);
                if let (Some(before), Some(after)) = (record, &mut step.write) {
                    after.fence = before.fence;
                }
                step
            },
            ..REAL
        },
    )
    .takes(Budget { requeues: 1, ..NOTHING }),
    flaw(
        "leaves what ran out for ever in flight",
        "no record is stuck",
        Rules {
            claim: |record, sighting, terms, now| match processing(record) {
                Some((held, until)) if held.owner != terms.owner && until <= now => {
                    Step { outcome: ClaimOutcome::InFlight { remaining: Duration::from_millis(1) }, write: None }
                }
                _ => record::claim(record, sighting, terms, now),
            },
            ..REAL
        },
    ),
    flaw(
        "takes the dead for done",
        "a duplicate is of a success",
        Rules {
            claim: |record, sighting, terms, now| match record {
                Some(Record { state: State::Dead { at }, origin, .. }) => {
                    let first = Seen { origin: origin.clone(), at: *at };
                    Step { outcome: ClaimOutcome::Duplicate { result: None, first }, write: None }
                }
                _ => record::claim(record, sighting, terms, now),
            },
            ..REAL
        },
    ),
    flaw(
        "tells a stale owner that it failed",
        "answers are true",
        Rules {
            settle: |record, ask, now| {
                let mut step = record::settle(record, ask, now);
                if step.outcome == SettleOutcome::Refused {
                    step.outcome = SettleOutcome::Settled;
                }
                step
            },
            ..REAL
        },
    ),
    flaw(
        "refuses a failure after the lease",
        "the holder may always end its claim",
        Rules {
            settle: |record, ask, now| match processing(record) {
                Some((_, until)) if until <= now && !is_success(ask) => {
                    Step { outcome: SettleOutcome::Refused, write: None }
                }
                _ => record::settle(record, ask, now),
            },
            ..REAL
        },
    ),
    flaw(
        "grants without writing",
        "what is granted is written",
        Rules {
            claim: |record, sighting, terms, now| Step { write: None, ..record::claim(record, sighting, terms, now) },
            ..REAL
        },
    ),
    misuse(
        "restarts with the same owner number",
        "attempts are counted before the handler runs",
        Habit::KeepsItsNumber,
        A_CRASH,
    ),
    misuse(
        "claims again without an answer to its failure",
        "a token begins one handler",
        Habit::AbandonsItsFailure,
        NOTHING,
    ),
    misuse("reports success before the effect", "what succeeded had its effect", Habit::SucceedsFirst, NOTHING),
    misuse(
        "takes a slow handler for a failed one",
        "an effect repeats only where a lease ran out or the store forgot",
        Habit::FailsAfterItsEffect,
        NOTHING,
    ),
    misuse("shares an owner number", "no two handlers hold one token", Habit::SharesANumber, NOTHING),
    misuse(
        "commits past what is in flight",
        "every run ends with the message handled or dead",
        Habit::CommitsWhatIsInFlight,
        A_CRASH,
    ),
];
