//! One record, its owners, and the letters between them: what can happen, and what must never have happened.
//!
//! Time is told as what is left of it: now is always 0, and a tick brings a lease or due time one nearer. The rules use
//! differences only, so this loses nothing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hapax::identity::{Fingerprint, Key};
use hapax::record::{
    ClaimOutcome, Extend, ExtendOutcome, Fence, Millis, Origin, Owner, Record, RequeueOutcome, Settle, SettleOutcome,
    Sighting, State, Terms, Token, Verdict,
};

use crate::rules::{Habit, Rules};

/// Ticks that a claim lasts.
pub const LEASE: Millis = 2;
/// Ticks that an extension lasts: less, so that it could shorten.
pub const EXTENSION: Millis = 1;
/// Ticks until a failed message is due.
pub const RETRY: Millis = 1;

pub fn ticks(ticks: Millis) -> Duration {
    Duration::from_millis(ticks.unsigned_abs())
}

/// How an owner ends a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    Succeeded,
    Failed,
    Released,
    Dead,
}

/// Owner and fence, as a pair that can be ordered.
pub type Pass = (u64, u64);

pub fn token((owner, fence): Pass) -> Token {
    Token { owner: Owner::new(owner), fence: Fence::new(fence) }
}

pub fn pass(token: Token) -> Pass {
    (token.owner.get(), token.fence.get())
}

/// A request under way. It may arrive late, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Letter {
    Claim { from: usize, owner: u64 },
    Settle { from: usize, pass: Pass, attempt: u32, end: End },
    Extend { from: usize, pass: Pass },
}

/// What an owner is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Has the message and has not asked.
    Idle,
    /// Has sent a claim.
    Asking,
    /// Was told to wait.
    Waiting,
    /// Its handler runs.
    Running { pass: Pass, attempt: u32, effect: bool, lost: bool },
    /// Has sent how it ended.
    Settling { pass: Pass, attempt: u32, end: End },
    /// Knows that the message is handled, or dead.
    Done { dead: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    pub owner: u64,
    pub phase: Phase,
}

/// How often each mishap may happen in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Budget {
    /// A process ends, and another begins in its place.
    pub crashes: u8,
    /// A request or a reply is lost.
    pub losses: u8,
    /// An owner asks again while its request is still under way.
    pub repeats: u8,
    pub extensions: u8,
    pub releases: u8,
    /// A handler says that it never will.
    pub fatal: u8,
    pub requeues: u8,
    /// The store forgets the record.
    pub forgets: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub record: Option<Record>,
    pub members: Vec<Member>,
    /// Sorted.
    pub wire: Vec<Letter>,
    pub left: Budget,
    /// Effects that happened.
    pub effects: u8,
    /// Leases that ran out and were found so by another owner, and records forgotten.
    pub excuses: u8,
    /// Handlers begun since the record was made or requeued, without those that were released.
    pub runs: u32,
    /// Fences granted, to whom, and whether a handler began with it. Sorted.
    pub grants: Vec<(u64, u64, bool)>,
    /// Rules found broken, as bits.
    pub broken: u32,
}

macro_rules! broken {
    ($($name:ident = $bit:literal,)*) => {
        $(pub const $name: u32 = 1 << $bit;)*
    };
}

broken! {
    TWO_OWNERS_ON_A_FENCE = 0,
    FENCE_FELL = 1,
    SUCCESS_UNDONE = 2,
    STALE_END = 3,
    ENDED_UNDER_A_HANDLER = 4,
    SUCCESS_FORGOTTEN = 5,
    LATE_NOT_FLAGGED = 6,
    NEITHER_DUE_NOR_DEAD = 7,
    NOT_COUNTED = 8,
    BEYOND_THE_LIMIT = 9,
    LIVE_LEASE_TAKEN = 10,
    NOT_REENTRANT = 11,
    HANDLED_AGAIN = 12,
    BAD_EXTENSION = 13,
    BAD_REQUEUE = 14,
    TOKEN_TWICE = 15,
    FALSE_DUPLICATE = 16,
    RIGHT_DENIED = 17,
    NOT_WRITTEN = 18,
    UNTRUE_ANSWER = 19,
}

/// What happened while exploring: an exploration in which something never happens shows nothing about it.
#[derive(Debug, Default)]
pub struct Events {
    pub takeovers: AtomicU64,
    pub late: AtomicU64,
    pub late_after_failure: AtomicU64,
    pub late_after_death: AtomicU64,
    pub late_after_forgetting: AtomicU64,
    pub second_effects: AtomicU64,
    pub buried_by_failure: AtomicU64,
    pub buried_by_claim: AtomicU64,
    pub refused: AtomicU64,
    pub reentered: AtomicU64,
    pub duplicates: AtomicU64,
    pub in_flight: AtomicU64,
    pub not_due: AtomicU64,
    pub lost: AtomicU64,
    pub revived: AtomicU64,
    pub requeued: AtomicU64,
    pub ghosts: AtomicU64,
}

fn count(event: &AtomicU64) {
    event.fetch_add(1, Ordering::Relaxed);
}

/// What stays the same in an exploration.
#[derive(Clone)]
pub struct Setting {
    pub rules: Rules,
    pub habit: Habit,
    pub max_attempts: NonZeroU32,
    pub sighting: Sighting,
    pub events: Arc<Events>,
}

impl Setting {
    pub fn new(rules: Rules, habit: Habit, max_attempts: u32) -> Self {
        let sighting = Sighting {
            key: Key::from_bytes([1; 16]),
            fingerprint: Fingerprint::from_bytes([2; 16]),
            origin: Origin::default(),
        };
        let max_attempts = NonZeroU32::new(max_attempts).unwrap();
        Self { rules, habit, max_attempts, sighting, events: Arc::default() }
    }

    fn terms(&self, owner: u64) -> Terms {
        Terms { owner: Owner::new(owner), lease: ticks(LEASE), max_attempts: self.max_attempts }
    }

    /// What a claim by somebody new would come to when the record's time has come.
    pub fn probe(&self, record: &Record) -> ClaimOutcome {
        let now = record.state.time();
        (self.rules.claim)(Some(record), &self.sighting, &self.terms(u64::MAX - 1), now).outcome
    }

    fn settle(&self, pass: Pass, attempt: u32, end: End) -> Settle {
        let verdict = match end {
            End::Succeeded => Verdict::Succeeded { result: None },
            End::Failed => Verdict::Failed { retry_in: ticks(RETRY), max_attempts: self.max_attempts },
            End::Released => Verdict::Released,
            End::Dead => Verdict::Dead,
        };
        Settle { sighting: self.sighting.clone(), token: token(pass), attempt, verdict }
    }
}

fn is_held_by(record: Option<&Record>, token: Token) -> bool {
    record.is_some_and(|record| matches!(record.state, State::Processing { .. }) && record.token() == token)
}

fn is_succeeded(record: Option<&Record>) -> bool {
    matches!(record, Some(Record { state: State::Succeeded { .. }, .. }))
}

impl World {
    pub fn new(members: usize, left: Budget) -> Self {
        let members = (0..members).map(|number| Member { owner: number as u64 + 1, phase: Phase::Idle }).collect();
        Self {
            record: None,
            members,
            wire: Vec::new(),
            left,
            effects: 0,
            excuses: 0,
            runs: 0,
            grants: Vec::new(),
            broken: 0,
        }
    }

    fn must(&mut self, holds: bool, rule: u32) {
        if !holds {
            self.broken |= rule;
        }
    }

    pub fn send(&mut self, letter: Letter) {
        let place = self.wire.partition_point(|other| *other <= letter);
        self.wire.insert(place, letter);
    }

    fn write(&mut self, record: Record) {
        let before = self.record.replace(record);
        let after = self.record.clone();
        if let (Some(before), Some(after)) = (&before, &after) {
            self.must(after.fence >= before.fence, FENCE_FELL);
            self.must(!is_succeeded(Some(before)) || before == after, SUCCESS_UNDONE);
        }
    }

    /// A claim arrives. The reply is what the owner is told.
    pub fn claim(&mut self, setting: &Setting, owner: u64) -> ClaimOutcome {
        let before = self.record.clone();
        let step = (setting.rules.claim)(before.as_ref(), &setting.sighting, &setting.terms(owner), 0);
        let ran_out = step.write.as_ref().is_some_and(|after| {
            matches!(&before, Some(before) if matches!(before.state, State::Processing { .. })
                && (before.owner != after.owner || after.state.is_final()))
        });
        if ran_out {
            self.excuses += 1;
        }
        if let Some(record) = step.write {
            self.write(record);
        }
        match &step.outcome {
            ClaimOutcome::Acquired(grant) => {
                if let Some(before) = &before {
                    let live = matches!(before.state, State::Processing { until } if until > 0);
                    let own = before.owner.get() == owner;
                    self.must(own || !live, LIVE_LEASE_TAKEN);
                    if own && matches!(before.state, State::Processing { .. }) {
                        self.must(grant.token == before.token() && grant.attempt == before.attempts, NOT_REENTRANT);
                        count(&setting.events.reentered);
                    }
                    self.must(!is_succeeded(Some(before)), HANDLED_AGAIN);
                }
                self.must(grant.attempt <= setting.max_attempts.get(), BEYOND_THE_LIMIT);
                let record = self.record.clone();
                self.must(is_held_by(record.as_ref(), grant.token), NOT_WRITTEN);
                self.must(grant.token.owner.get() == owner, NOT_WRITTEN);
                let fence = grant.token.fence.get();
                match self.grants.iter().find(|(granted, ..)| *granted == fence) {
                    Some((_, holder, _)) if *holder != owner => self.broken |= TWO_OWNERS_ON_A_FENCE,
                    Some(_) => {}
                    None => {
                        self.grants.push((fence, owner, false));
                        self.grants.sort_unstable();
                    }
                }
                if grant.took_over {
                    count(&setting.events.takeovers);
                }
            }
            ClaimOutcome::Duplicate { .. } => {
                self.must(self.effects > 0 && is_succeeded(before.as_ref()), FALSE_DUPLICATE);
                count(&setting.events.duplicates);
            }
            ClaimOutcome::Dead { .. } => {
                let dead = matches!(self.record.as_ref().map(|record| record.state), Some(State::Dead { .. }));
                self.must(dead, UNTRUE_ANSWER);
                if ran_out {
                    count(&setting.events.buried_by_claim);
                }
            }
            ClaimOutcome::InFlight { .. } => count(&setting.events.in_flight),
            ClaimOutcome::NotDue { .. } => count(&setting.events.not_due),
            ClaimOutcome::Conflict { .. } => self.broken |= UNTRUE_ANSWER,
        }
        step.outcome
    }

    /// The end of a claim arrives.
    pub fn settle(&mut self, setting: &Setting, pass: Pass, attempt: u32, end: End) -> SettleOutcome {
        let before = self.record.clone();
        let ask = setting.settle(pass, attempt, end);
        let held = is_held_by(before.as_ref(), ask.token);
        let step = (setting.rules.settle)(before.as_ref(), &ask, 0);
        let wrote = step.write.is_some();
        if let Some(record) = step.write {
            self.write(record);
        }
        let after = self.record.clone();
        if end == End::Succeeded {
            self.succeeded(setting, before.as_ref(), after.as_ref(), ask.token, step.outcome);
            return step.outcome;
        }
        self.must(held || !wrote, STALE_END);
        self.must(!held || wrote, RIGHT_DENIED);
        let running = |member: &Member| matches!(member.phase, Phase::Running { pass: other, .. } if other == pass);
        let ended = wrote
            && before.as_ref().is_some_and(|before| {
                let holder = (before.owner.get(), before.fence.get());
                self.members.iter().any(|member| matches!(member.phase, Phase::Running { pass, .. } if pass == holder))
            });
        let own = wrote && self.members.iter().any(running);
        self.must(!ended && !own, ENDED_UNDER_A_HANDLER);
        match step.outcome {
            SettleOutcome::Refused => count(&setting.events.refused),
            SettleOutcome::Settled | SettleOutcome::Buried => {
                // Told so, now or again: then it was this token that ended, and the record shows it.
                let true_for = after.as_ref().is_some_and(|after| {
                    after.token() == ask.token && matches!(after.state, State::Failed { .. } | State::Dead { .. })
                });
                self.must(true_for, UNTRUE_ANSWER);
            }
            SettleOutcome::Late => self.broken |= UNTRUE_ANSWER,
        }
        if wrote && end == End::Released {
            self.runs = self.runs.saturating_sub(1);
        }
        if wrote && end == End::Failed {
            let attempts = before.as_ref().map_or(0, |before| before.attempts);
            let right = match after.as_ref().map(|after| after.state) {
                Some(State::Failed { due }) => due <= RETRY && attempts < setting.max_attempts.get(),
                Some(State::Dead { .. }) => attempts >= setting.max_attempts.get(),
                _ => false,
            };
            self.must(right, NEITHER_DUE_NOR_DEAD);
            if step.outcome == SettleOutcome::Buried {
                count(&setting.events.buried_by_failure);
            }
        }
        step.outcome
    }

    fn succeeded(
        &mut self,
        setting: &Setting,
        before: Option<&Record>,
        after: Option<&Record>,
        token: Token,
        outcome: SettleOutcome,
    ) {
        self.must(is_succeeded(after), SUCCESS_FORGOTTEN);
        let in_time = match before {
            Some(Record { state: State::Succeeded { late, .. }, .. }) => {
                !late && before.map(Record::token) == Some(token)
            }
            _ => is_held_by(before, token),
        };
        let flagged = match outcome {
            SettleOutcome::Settled => in_time,
            SettleOutcome::Late => !in_time,
            SettleOutcome::Buried | SettleOutcome::Refused => false,
        };
        self.must(flagged, LATE_NOT_FLAGGED);
        if outcome == SettleOutcome::Late && !is_succeeded(before) {
            let events = &setting.events;
            count(match before.map(|before| before.state) {
                None => &events.late_after_forgetting,
                Some(State::Failed { .. }) => &events.late_after_failure,
                Some(State::Dead { .. }) => &events.late_after_death,
                Some(_) => &events.late,
            });
        }
    }

    /// An extension arrives.
    pub fn extend(&mut self, setting: &Setting, pass: Pass) -> ExtendOutcome {
        let before = self.record.clone();
        let ask = Extend { key: setting.sighting.key, token: token(pass), lease: ticks(EXTENSION) };
        let held = is_held_by(before.as_ref(), ask.token);
        let step = (setting.rules.extend)(before.as_ref(), &ask, 0);
        self.must(held || step.write.is_none(), BAD_EXTENSION);
        self.must(held == (step.outcome == ExtendOutcome::Held), BAD_EXTENSION);
        if let Some(record) = step.write {
            self.write(record);
        }
        if let (true, Some(before), Some(after)) = (held, &before, &self.record.clone()) {
            let (old, new) = (before.state.time(), after.state.time());
            self.must(new >= old && new >= EXTENSION && before.token() == after.token(), BAD_EXTENSION);
            if old == 0 {
                count(&setting.events.revived);
            }
        }
        if step.outcome == ExtendOutcome::Lost {
            count(&setting.events.lost);
        }
        step.outcome
    }

    /// An operator requeues, and whoever gave the message up gets it again.
    pub fn requeue(&mut self, setting: &Setting) {
        let before = self.record.clone();
        let step = (setting.rules.requeue)(before.as_ref(), 0);
        let dead = matches!(before.as_ref().map(|before| before.state), Some(State::Dead { .. }));
        self.must(dead == (step.outcome == RequeueOutcome::Requeued), BAD_REQUEUE);
        if let Some(after) = step.write {
            let stale = self.grants.iter().all(|(fence, ..)| *fence < after.fence.get());
            let due = matches!(after.state, State::Failed { due } if due <= 0);
            self.must(dead && stale && due && after.attempts == 0, BAD_REQUEUE);
            self.write(after);
            self.runs = 0;
            count(&setting.events.requeued);
        }
        for member in &mut self.members {
            if member.phase == (Phase::Done { dead: true }) {
                member.phase = Phase::Idle;
            }
        }
    }

    /// Whether a claim now would be told to wait. An owner that waits asks again when that has changed.
    pub fn would_wait(&self, owner: u64) -> bool {
        match &self.record {
            Some(record) => match record.state {
                State::Processing { until } => until > 0 && record.owner.get() != owner,
                State::Failed { due } => due > 0,
                State::Succeeded { .. } | State::Dead { .. } => false,
            },
            None => false,
        }
    }

    /// A lease or due time comes one nearer.
    pub fn tick(&mut self) -> bool {
        match self.record.as_mut().map(|record| &mut record.state) {
            Some(State::Processing { until: time } | State::Failed { due: time }) if *time > 0 => {
                *time -= 1;
                true
            }
            _ => false,
        }
    }

    /// A handler begins.
    pub fn begin(&mut self, setting: &Setting, pass: Pass) {
        self.runs += 1;
        let attempts = self.record.as_ref().map_or(0, |record| record.attempts);
        self.must(attempts >= self.runs, NOT_COUNTED);
        self.must(self.runs <= setting.max_attempts.get(), BEYOND_THE_LIMIT);
        let (owner, fence) = pass;
        if let Some(grant) = self.grants.iter_mut().find(|(granted, holder, _)| (*holder, *granted) == (owner, fence)) {
            let twice = std::mem::replace(&mut grant.2, true);
            self.must(!twice, TOKEN_TWICE);
        }
    }

    pub fn effect(&mut self, setting: &Setting) {
        self.effects += 1;
        if self.effects == 2 {
            count(&setting.events.second_effects);
        }
    }
}
