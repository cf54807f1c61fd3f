//! Properties of the pure rules over random lives of a record, with times and durations at both ends of their range.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use hapax::identity::{Fingerprint, Key};
use hapax::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Fence, Millis, Origin, Owner, Record, RequeueOutcome, Settle,
    SettleOutcome, Sighting, Stamp, State, Step, Terms, Token, Verdict,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config;

const OWNERS: u64 = 4;

/// Which token an owner shows.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// The one that the record has.
    Current,
    /// One granted before, counted from the last.
    Granted(usize),
    /// Any.
    Guessed(u64, u64),
}

#[derive(Clone, Debug)]
enum Move {
    Claim {
        owner: u64,
        lease: Duration,
        max_attempts: NonZeroU32,
        other_body: bool,
    },
    Settle {
        shown: Shown,
        verdict: Verdict,
        other_body: bool,
    },
    Extend {
        shown: Shown,
        lease: Duration,
    },
    Requeue,
    /// The store's clock goes on.
    Wait(Duration),
    /// The store forgets.
    Forget,
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (0..50_u64).prop_map(Duration::from_millis),
        2 => any::<u64>().prop_map(Duration::from_nanos),
        1 => Just(Duration::MAX),
        1 => any::<u64>().prop_map(Duration::from_secs),
    ]
}

fn limits() -> impl Strategy<Value = NonZeroU32> {
    prop_oneof![9 => 1..5_u32, 1 => Just(u32::MAX)].prop_map(|limit| NonZeroU32::new(limit).unwrap())
}

fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![
        6 => Just(Shown::Current),
        3 => (0..4_usize).prop_map(Shown::Granted),
        1 => (0..OWNERS, 0..8_u64).prop_map(|(owner, fence)| Shown::Guessed(owner, fence)),
    ]
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    let results = prop_oneof![Just(None), vec(any::<u8>(), 0..4).prop_map(|bytes| Some(Bytes::from(bytes)))];
    prop_oneof![
        2 => results.prop_map(|result| Verdict::Succeeded { result }),
        4 => (durations(), limits()).prop_map(|(retry_in, max_attempts)| Verdict::Failed { retry_in, max_attempts }),
        2 => Just(Verdict::Released),
        1 => Just(Verdict::Dead),
    ]
}

fn moves() -> impl Strategy<Value = Move> {
    let rarely = || prop::bool::weighted(0.1);
    prop_oneof![
        6 => (0..OWNERS, durations(), limits(), rarely())
            .prop_map(|(owner, lease, max_attempts, other_body)| Move::Claim { owner, lease, max_attempts, other_body }),
        5 => (shown(), verdicts(), rarely())
            .prop_map(|(shown, verdict, other_body)| Move::Settle { shown, verdict, other_body }),
        2 => (shown(), durations()).prop_map(|(shown, lease)| Move::Extend { shown, lease }),
        1 => Just(Move::Requeue),
        4 => durations().prop_map(Move::Wait),
    ]
}

fn lives() -> impl Strategy<Value = (Millis, Vec<Move>)> {
    // The store's clock may begin anywhere.
    let born = prop_oneof![8 => Just(0), 1 => Just(Millis::MAX - 100), 1 => Just(Millis::MIN), 1 => any::<Millis>()];
    (born, vec(moves(), 1..60))
}

/// A record's life so far.
struct Life {
    record: Option<Record>,
    now: Millis,
    granted: Vec<Token>,
    /// Tokens granted before the last requeue.
    stale: Vec<Token>,
    stamps: HashMap<Stamp, Record>,
    /// The highest fence so far.
    fence: Fence,
}

fn sighting(other_body: bool) -> Sighting {
    Sighting {
        key: Key::from_bytes([7; 16]),
        fingerprint: Fingerprint::from_bytes([u8::from(other_body); 16]),
        origin: Origin { topic: "orders".into(), partition: 3, offset: i64::from(other_body) },
    }
}

impl Life {
    fn new(now: Millis) -> Self {
        let (granted, stale, stamps) = Default::default();
        Self { record: None, now, granted, stale, stamps, fence: Fence::new(0) }
    }

    fn token(&self, shown: Shown) -> Token {
        let guessed = Token { owner: Owner::new(0), fence: Fence::new(0) };
        match shown {
            Shown::Current => self.record.as_ref().map_or(guessed, Record::token),
            Shown::Granted(back) => self.granted.iter().rev().nth(back).copied().unwrap_or(guessed),
            Shown::Guessed(owner, fence) => Token { owner: Owner::new(owner), fence: Fence::new(fence) },
        }
    }

    fn state(&self) -> Option<State> {
        self.record.as_ref().map(|record| record.state)
    }

    fn holds(&self, token: Token) -> bool {
        matches!(self.state(), Some(State::Processing { .. })) && self.token(Shown::Current) == token
    }

    fn succeeded(&self) -> bool {
        matches!(self.state(), Some(State::Succeeded { .. }))
    }

    /// Writes, and checks what every write must keep.
    fn write<T>(&mut self, step: Step<T>) -> Result<T, TestCaseError> {
        let Some(after) = step.write else { return Ok(step.outcome) };
        if let Some(before) = &self.record {
            prop_assert!(after.fence >= before.fence, "the fence fell: {before:?} to {after:?}");
            prop_assert!(!matches!(before.state, State::Succeeded { .. }), "success undone: {before:?} to {after:?}");
            prop_assert_eq!(&after.fingerprint, &before.fingerprint);
            prop_assert_eq!(&after.origin, &before.origin);
            prop_assert_ne!(before, &after, "a write that changes nothing");
            prop_assert_ne!(before.stamp(), after.stamp(), "a write that a conditional write cannot see");
        }
        prop_assert_eq!(matches!(after.state, State::Succeeded { .. }) || after.result.is_none(), true);
        // Two records of one key with equal stamps are equal in all that decides.
        if let Some(other) = self.stamps.insert(after.stamp(), after.clone()) {
            prop_assert_eq!(&other, &after, "one stamp for two records");
        }
        self.fence = self.fence.max(after.fence);
        self.record = Some(after);
        Ok(step.outcome)
    }

    fn go(&mut self, step: Move) -> Result<(), TestCaseError> {
        match step {
            Move::Claim { owner, lease, max_attempts, other_body } => {
                let terms = Terms { owner: Owner::new(owner), lease, max_attempts };
                self.claim(&terms, &sighting(other_body))
            }
            Move::Settle { shown, verdict, other_body } => self.settle(self.token(shown), verdict, other_body),
            Move::Extend { shown, lease } => self.extend(self.token(shown), lease),
            Move::Requeue => self.requeue(),
            Move::Wait(duration) => {
                self.now = record::after(self.now, duration);
                Ok(())
            }
            Move::Forget => {
                self.record = None;
                self.stamps.clear();
                self.granted.clear();
                self.stale.clear();
                Ok(())
            }
        }
    }

    fn claim(&mut self, terms: &Terms, sighting: &Sighting) -> Result<(), TestCaseError> {
        let before = self.record.clone();
        let outcome = self.write(record::claim(before.as_ref(), sighting, terms, self.now))?;
        let unchanged = self.record == before;
        match (&outcome, &before) {
            (ClaimOutcome::Conflict { first }, Some(before)) => {
                prop_assert!(unchanged && before.fingerprint != sighting.fingerprint);
                prop_assert_eq!(&first.origin, &before.origin);
                return Ok(());
            }
            (_, Some(before)) => prop_assert_eq!(before.fingerprint, sighting.fingerprint, "a conflict overlooked"),
            (_, None) => prop_assert!(matches!(outcome, ClaimOutcome::Acquired(_))),
        }
        match (&outcome, before.as_ref().map(|before| before.state)) {
            (ClaimOutcome::Acquired(grant), state) => {
                prop_assert!(self.holds(grant.token) && grant.token.owner == terms.owner);
                let now_is = self.record.as_ref().unwrap();
                prop_assert_eq!(grant.attempt, now_is.attempts);
                prop_assert!(now_is.state.time() >= record::after(self.now, terms.lease), "a lease cut short");
                match (state, &before) {
                    (Some(State::Processing { until }), Some(before)) if before.owner == terms.owner => {
                        prop_assert_eq!(grant.token, before.token(), "not re-entrant");
                        prop_assert!(!grant.took_over && now_is.state.time() >= until, "a lease shortened");
                    }
                    (Some(State::Processing { until: free } | State::Failed { due: free }), Some(before)) => {
                        prop_assert!(free <= self.now, "taken before its time");
                        prop_assert_eq!(grant.took_over, matches!(before.state, State::Processing { .. }));
                        prop_assert_eq!(grant.token.fence.get(), before.fence.get() + 1);
                        prop_assert_eq!(grant.attempt, before.attempts + 1);
                        prop_assert!(grant.attempt <= terms.max_attempts.get(), "an attempt beyond the limit");
                    }
                    (None, None) => {
                        prop_assert!(grant.attempt == 1 && grant.token.fence == Fence::FIRST && !grant.took_over)
                    }
                    other => prop_assert!(false, "acquired from {other:?}"),
                }
                let clash =
                    self.granted.iter().find(|old| old.fence == grant.token.fence && old.owner != grant.token.owner);
                prop_assert_eq!(clash, None, "two owners on one fence");
                if self.granted.last() != Some(&grant.token) {
                    self.granted.push(grant.token);
                }
                // A reply may be lost: the same owner asks again, at any time, and gets the same.
                let later = record::after(self.now, Duration::from_millis(1000));
                let again = record::claim(self.record.as_ref(), sighting, terms, later).outcome;
                let ClaimOutcome::Acquired(again) = again else { return Err(TestCaseError::fail("not re-entrant")) };
                prop_assert_eq!((again.token, again.attempt), (grant.token, grant.attempt));
            }
            (ClaimOutcome::Duplicate { result, .. }, Some(State::Succeeded { .. })) => {
                prop_assert!(unchanged);
                prop_assert_eq!(result, &before.unwrap().result);
            }
            (ClaimOutcome::InFlight { remaining }, Some(State::Processing { until })) => {
                prop_assert!(unchanged && until > self.now && !remaining.is_zero());
                prop_assert!(record::after(self.now, *remaining) <= until);
            }
            (ClaimOutcome::NotDue { remaining }, Some(State::Failed { due })) => {
                prop_assert!(unchanged && due > self.now && !remaining.is_zero());
                prop_assert!(record::after(self.now, *remaining) <= due);
            }
            (ClaimOutcome::Dead { attempts }, Some(State::Dead { .. })) => {
                prop_assert!(unchanged);
                prop_assert_eq!(*attempts, before.unwrap().attempts);
            }
            (
                ClaimOutcome::Dead { attempts },
                Some(State::Processing { until: free } | State::Failed { due: free }),
            ) => {
                prop_assert!(free <= self.now && *attempts >= terms.max_attempts.get(), "given up too early");
                let dead = matches!(self.state(), Some(State::Dead { .. }));
                prop_assert!(dead);
            }
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    fn settle(&mut self, token: Token, verdict: Verdict, other_body: bool) -> Result<(), TestCaseError> {
        let before = self.record.clone();
        let another = before.as_ref().is_some_and(|before| before.fingerprint != sighting(other_body).fingerprint);
        let held = self.holds(token) && !another;
        let attempt = before.as_ref().map_or(1, |before| before.attempts);
        let ask = Settle { sighting: sighting(other_body), token, attempt, verdict };
        let outcome = self.write(record::settle(before.as_ref(), &ask, self.now))?;
        let unchanged = self.record == before;
        if matches!(ask.verdict, Verdict::Succeeded { .. }) {
            prop_assert_eq!(outcome == SettleOutcome::Refused, another, "a success forgotten, or another's remembered");
            prop_assert!(another || self.succeeded());
            prop_assert!(!another || unchanged);
            if before.is_none() {
                prop_assert_eq!(outcome, SettleOutcome::Late);
                self.granted.push(token);
            }
            if outcome == SettleOutcome::Settled {
                prop_assert_eq!(self.token(Shown::Current), token);
                let in_time = matches!(self.state(), Some(State::Succeeded { late: false, .. }));
                prop_assert!(in_time);
            }
        } else {
            prop_assert!(unchanged || held, "ended by {token:?}, which does not hold {before:?}");
            prop_assert!(!held || !unchanged, "the holder could not end its claim");
            prop_assert!(outcome != SettleOutcome::Late);
            if held && let Some(before) = &before {
                let counted = self.record.as_ref().unwrap().attempts;
                let released = matches!(ask.verdict, Verdict::Released);
                prop_assert_eq!(counted, if released { before.attempts.saturating_sub(1) } else { before.attempts });
                match (&ask.verdict, self.state().unwrap()) {
                    (Verdict::Failed { retry_in, max_attempts }, State::Failed { due }) => {
                        prop_assert!(before.attempts < max_attempts.get() && due == record::after(self.now, *retry_in));
                        prop_assert_eq!(outcome, SettleOutcome::Settled);
                    }
                    (Verdict::Failed { max_attempts, .. }, State::Dead { at }) => {
                        prop_assert!(before.attempts >= max_attempts.get() && at == self.now);
                        prop_assert_eq!(outcome, SettleOutcome::Buried);
                    }
                    (Verdict::Released, State::Failed { due }) => prop_assert_eq!(due, self.now),
                    (Verdict::Dead, State::Dead { at }) => prop_assert_eq!(at, self.now),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let current = before.as_ref().is_some_and(|before| before.token() == token) && !another;
            let want = match (before.as_ref().map(|before| before.state), &ask.verdict) {
                // Checked above.
                _ if held => outcome,
                // Its reply was lost, or somebody who allows fewer attempts has buried it meanwhile.
                (Some(State::Failed { .. }), _) if current => SettleOutcome::Settled,
                (Some(State::Dead { .. }), Verdict::Dead) if current => SettleOutcome::Settled,
                (Some(State::Dead { .. }), _) if current => SettleOutcome::Buried,
                _ => SettleOutcome::Refused,
            };
            prop_assert_eq!(outcome, want, "{:?} by {:?} on {:?}", &ask.verdict, token, &before);
            if self.stale.contains(&token) {
                prop_assert!(unchanged, "a token from before the requeue ended a claim");
            }
        }
        // A reply may be lost: asking again, at any time, answers the same and changes nothing.
        let later = record::after(self.now, Duration::from_millis(1000));
        let again = record::settle(self.record.as_ref(), &ask, later);
        prop_assert_eq!(again.outcome, outcome, "{:?} is answered otherwise when asked again", &ask.verdict);
        prop_assert_eq!(again.write, None);
        Ok(())
    }

    fn extend(&mut self, token: Token, lease: Duration) -> Result<(), TestCaseError> {
        let (held, before) = (self.holds(token), self.record.clone());
        let ask = Extend { key: sighting(false).key, token, lease };
        let outcome = self.write(record::extend(before.as_ref(), &ask, self.now))?;
        prop_assert_eq!(outcome == ExtendOutcome::Held, held);
        prop_assert!(held || self.record == before);
        if held {
            let (old, new) = (before.unwrap().state.time(), self.state().unwrap().time());
            prop_assert_eq!(new, old.max(record::after(self.now, lease)), "never shorter, never longer than asked");
            prop_assert!(self.holds(token));
        }
        let again = record::extend(self.record.as_ref(), &ask, self.now);
        prop_assert_eq!((again.outcome, again.write), (outcome, None));
        Ok(())
    }

    fn requeue(&mut self) -> Result<(), TestCaseError> {
        let before = self.record.clone();
        let outcome = self.write(record::requeue(before.as_ref(), self.now))?;
        let want = match before.as_ref().map(|before| before.state) {
            None => RequeueOutcome::Unknown,
            Some(State::Dead { .. }) => RequeueOutcome::Requeued,
            Some(_) => RequeueOutcome::NotDead,
        };
        prop_assert_eq!(outcome, want);
        if outcome != RequeueOutcome::Requeued {
            prop_assert_eq!(&self.record, &before);
            return Ok(());
        }
        self.stale.clone_from(&self.granted);
        let terms = Terms { owner: Owner::new(OWNERS), lease: Duration::ZERO, max_attempts: NonZeroU32::MIN };
        let next = record::claim(self.record.as_ref(), &sighting(self.other_body()), &terms, self.now).outcome;
        let ClaimOutcome::Acquired(grant) = next else { return Err(TestCaseError::fail("requeued, and not due")) };
        prop_assert_eq!(grant.attempt, 1);
        prop_assert!(self.granted.iter().all(|old| old.fence < grant.token.fence));
        Ok(())
    }

    fn other_body(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.fingerprint == sighting(true).fingerprint)
    }
}

fn config() -> Config {
    Config { cases: 1500, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_life_keeps_the_rules((born, moves) in lives()) {
        let mut life = Life::new(born);
        for step in moves {
            life.go(step)?;
        }
    }

    /// A store that forgets loses the fence, and with it what fences promise; the rest holds in each part of the life.
    #[test]
    fn a_life_with_gaps_keeps_the_rules((born, parts) in (any::<i32>(), vec(vec(moves(), 1..15), 1..5))) {
        let mut life = Life::new(born.into());
        for part in parts {
            for step in part {
                life.go(step)?;
            }
            life.go(Move::Forget)?;
        }
    }

    /// What fails and is tried again, whatever happens, ends: it is due or dead, and dead after its attempts.
    #[test]
    fn failing_ends(limit in 1..20_u32, pauses in vec(0..5_u64, 20)) {
        let limit = NonZeroU32::new(limit).unwrap();
        let mut life = Life::new(0);
        let mut attempts = 0;
        for (turn, pause) in pauses.into_iter().enumerate() {
            let terms = Terms { owner: Owner::new(turn as u64), lease: Duration::from_millis(3), max_attempts: limit };
            let step = record::claim(life.record.as_ref(), &sighting(false), &terms, life.now);
            match life.write(step)? {
                ClaimOutcome::Acquired(grant) => {
                    attempts += 1;
                    prop_assert_eq!(grant.attempt, attempts);
                    // Every other owner vanishes without a word.
                    if turn % 2 == 0 {
                        let verdict = Verdict::Failed { retry_in: Duration::from_millis(pause), max_attempts: limit };
                        life.settle(grant.token, verdict, false)?;
                    }
                    life.now += 5;
                }
                ClaimOutcome::Dead { attempts: made } => {
                    prop_assert_eq!(made, limit.get());
                    prop_assert_eq!(attempts, limit.get());
                    return Ok(());
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(attempts == 20 || attempts == limit.get());
    }

    #[test]
    fn states_come_back_from_their_numbers(code in any::<u8>(), time in any::<i64>()) {
        match State::from_code(code, time) {
            Some(state) => {
                prop_assert!(code <= 4);
                prop_assert_eq!((state.code(), state.time()), (code, time));
                prop_assert_eq!(state.is_final(), code >= 2);
            }
            None => prop_assert!(code > 4),
        }
    }

    #[test]
    fn origins_come_back_from_their_bytes(topic in "\\PC{1,60}", partition in any::<i32>(), offset in any::<i64>()) {
        let origin = Origin { topic: topic.into(), partition, offset };
        let bytes = origin.to_bytes();
        prop_assert!(bytes.len() <= 12 + Origin::MAX_TOPIC);
        let back = Origin::from_bytes(&bytes).unwrap();
        prop_assert_eq!((back.partition, back.offset), (partition, offset));
        prop_assert!(origin.topic.starts_with(&*back.topic));
        prop_assert!(origin.topic.len() > Origin::MAX_TOPIC || back == origin);
        prop_assert_eq!(back.to_bytes(), bytes);
    }

    #[test]
    fn any_bytes_are_an_origin_or_none(bytes in vec(any::<u8>(), 0..40)) {
        match Origin::from_bytes(&bytes) {
            Some(origin) => prop_assert!(bytes.is_empty() || bytes.len() >= 12, "{origin:?}"),
            None => prop_assert!(!bytes.is_empty() && bytes.len() < 12),
        }
    }

    #[test]
    fn durations_saturate(now in any::<i64>(), duration in durations()) {
        let millis = record::millis(duration);
        prop_assert!((0..=record::LONGEST).contains(&millis));
        prop_assert_eq!(u128::try_from(millis).unwrap(), duration.as_millis().min(1 << 52));
        prop_assert!(record::after(now, duration) >= now);
    }
}

#[test]
fn long_topics_are_cut_between_characters() {
    for (topic, kept) in [("t".repeat(300), 249), ("é".repeat(200), 248), ("\u{1F980}".repeat(70), 248)] {
        let origin = Origin { topic: topic.as_str().into(), partition: 1, offset: 2 };
        let back = Origin::from_bytes(&origin.to_bytes()).unwrap();
        assert_eq!(back.topic.len(), kept);
        assert!(topic.starts_with(&*back.topic));
    }
    assert_eq!(Origin::from_bytes(&Origin::default().to_bytes()), Some(Origin::default()));
}
