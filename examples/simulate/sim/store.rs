//! The store: records by the crate's own pure rules, a clock of its own, and what goes wrong on the way to it.

use std::num::NonZeroU32;
use std::time::Duration;

use hapax::engine::{Settled, Ticket, Verdict};
use hapax::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Millis, Owner, Record, Settle, SettleOutcome, Sighting, State, Terms,
    Token,
};

use super::plan::{MS, Micros};

/// What is asked for one message.
#[derive(Clone, Debug)]
pub struct Item {
    pub ticket: Ticket,
    pub message: u32,
    /// Number of its record.
    pub key: u32,
    pub token: Option<Token>,
    pub attempt: u32,
    pub verdict: Option<Verdict>,
    /// What a claim came to.
    pub claim: Option<ClaimOutcome>,
    /// What a settle came to.
    pub settled: Option<Settled>,
    /// What a flawed store read, and writes later.
    pub write: Option<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ask {
    #[default]
    Claim,
    Settle,
    Extend,
}

/// One call, on its way there and back.
#[derive(Clone, Debug, Default)]
pub struct Call {
    pub ask: Ask,
    pub process: usize,
    pub owner: u64,
    pub items: Vec<Item>,
    /// Only so many of them reach the store.
    pub reach: usize,
    /// Whether the caller hears.
    pub reply: bool,
    /// When it was sent, on the clock of the process.
    pub sent: Micros,
    /// Events that still name this call.
    pub pending: u8,
    /// A flawed store has read, and writes next.
    pub read: bool,
}

#[derive(Debug)]
pub struct Store {
    pub records: Vec<Option<Record>>,
    /// How far its clock is ahead of the world's.
    pub ahead: Micros,
    pub down_until: Micros,
    pub lease: Duration,
    pub max_attempts: NonZeroU32,
}

impl Store {
    pub fn now(&self, now: Micros) -> Millis {
        ((now + self.ahead) / MS) as Millis
    }

    /// Decides a claim; writes it unless `peek`.
    pub fn claim(&mut self, now: Micros, owner: u64, item: &mut Item, sighting: &Sighting, peek: bool) {
        let terms = Terms { owner: Owner::new(owner), lease: self.lease, max_attempts: self.max_attempts };
        let now = self.now(now);
        let place = &mut self.records[item.key as usize];
        let step = record::claim(place.as_ref(), sighting, &terms, now);
        if let Some(write) = step.write {
            if peek {
                item.write = Some(write);
            } else {
                *place = Some(write);
            }
        }
        item.claim = Some(step.outcome);
    }

    /// Ends a claim. Answers the state before and after.
    pub fn settle(
        &mut self,
        now: Micros,
        item: &mut Item,
        sighting: Sighting,
        token: Token,
    ) -> (Option<State>, Option<State>) {
        let now = self.now(now);
        let place = &mut self.records[item.key as usize];
        let before = place.as_ref().map(|record| record.state);
        let verdict = match item.verdict {
            Some(Verdict::Succeeded) | None => record::Verdict::Succeeded { result: None },
            Some(Verdict::Failed { retry_in }) => record::Verdict::Failed { retry_in, max_attempts: self.max_attempts },
            Some(Verdict::Released) => record::Verdict::Released,
            Some(Verdict::Dead) => record::Verdict::Dead,
        };
        let ask = Settle { sighting, token, attempt: item.attempt, verdict };
        let step = record::settle(place.as_ref(), &ask, now);
        if let Some(write) = step.write {
            *place = Some(write);
        }
        item.settled = Some(match step.outcome {
            SettleOutcome::Settled => Settled::Recorded,
            SettleOutcome::Buried => Settled::Buried,
            SettleOutcome::Late => Settled::Late,
            SettleOutcome::Refused => Settled::Refused,
        });
        (before, place.as_ref().map(|record| record.state))
    }

    /// Prolongs a claim. `false` if it is not held any more.
    pub fn extend(&mut self, now: Micros, item: &Item, key: hapax::identity::Key) -> bool {
        let Some(token) = item.token else { return false };
        let now = self.now(now);
        let place = &mut self.records[item.key as usize];
        let step = record::extend(place.as_ref(), &Extend { key, token, lease: self.lease }, now);
        if let Some(write) = step.write {
            *place = Some(write);
        }
        step.outcome == ExtendOutcome::Held
    }
}
