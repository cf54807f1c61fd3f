//! The store's statements, and successes.

use redis::Value;

use super::RedisStore;
use super::calls::{AGE, Calls, END, PROLONG, Run, SWAP, number};
use super::errors::{self, NAME};
use super::link::integer;
use super::value::{Draft, Packed, Reader, capped, hold, stamp};
use crate::identity::Key;
use crate::record::{self, Extend, Fence, Millis, Record, Settle, SettleOutcome, State, Terms, Token, Verdict};
use crate::store::cells::{Cells, Change, Ending, Found, Inserted};
use crate::store::{Ask, Batch, Keyed, StoreError};

impl Cells for RedisStore {
    fn name(&self) -> &'static str {
        NAME
    }

    /// `SET key value NX GET PX ttl` for each: nil means ours, anything else is what stands there.
    async fn insert(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<Inserted>, StoreError> {
        let now = self.wire.now().await;
        let until = now + capped(terms.lease);
        let mut calls = Calls::new(&self.prefix, asks.len());
        let mut value = Vec::with_capacity(128);
        for ask in asks.items() {
            let draft = Draft {
                state: State::Processing { until },
                token: Token { owner: terms.owner, fence: Fence::FIRST },
                attempts: 1,
                fingerprint: ask.sighting.fingerprint,
                origin: &ask.sighting.origin,
                result: None,
            };
            let ttl = draft.pack(&mut value, now, &self.retention);
            calls.set(&self.prefix, ask.key(), &value, &["NX", "GET"], ttl);
        }
        let answers = self.wire.run("claim", &calls).await?;
        let mut taken = Vec::new();
        let mut inserted = Vec::with_capacity(answers.len());
        for (ask, answer) in asks.items().iter().zip(answers) {
            match answer {
                Value::Nil => inserted.push(Inserted::Claimed),
                Value::BulkString(bytes) => {
                    taken.push((ask.key(), Some(bytes)));
                    inserted.push(Inserted::Taken(None));
                }
                other => return Err(errors::shape("claim", &other)),
            }
        }
        let mut found = self.found("claim", taken).await?.into_iter();
        for inserted in &mut inserted {
            if let Inserted::Taken(seen) = inserted {
                *seen = found.next();
            }
        }
        Ok(inserted)
    }

    async fn finish(&self, endings: &[Ending]) -> Result<Vec<bool>, StoreError> {
        let now = self.wire.now().await;
        let mut done = vec![false; endings.len()];
        let mut places = Vec::with_capacity(endings.len());
        let mut runs = Vec::with_capacity(endings.len());
        for (place, ending) in endings.iter().enumerate() {
            let Some(state @ (State::Failed { .. } | State::Dead { .. })) = State::from_code(ending.code, 0) else {
                continue;
            };
            // This script writes no result. Successes, which may bring one, go their own way anyway.
            if ending.result.is_some() {
                continue;
            }
            let delay = ending.delay.clamp(0, capped(std::time::Duration::MAX));
            let ttl = (delay + capped(self.retention.of(state))).max(1);
            let (mut held, mut ended) = (Vec::new(), Vec::new());
            hold(&mut held, State::Processing { until: 0 }.code(), ending.token);
            hold(&mut ended, ending.code, ending.token);
            let attempts = Millis::from(ending.attempts);
            let fingerprint = ending.fingerprint.as_bytes().to_vec();
            let arguments = vec![held, ended, number(delay), number(ttl), number(attempts), number(now), fingerprint];
            runs.push(Run { key: ending.key, arguments });
            places.push(place);
        }
        for (place, ended) in places.into_iter().zip(self.wire.ask_script("settle", &self.prefix, &END, &runs).await?) {
            done[place] = ended;
        }
        Ok(done)
    }

    async fn prolong(&self, claims: &Batch<Extend>) -> Result<Vec<bool>, StoreError> {
        let now = self.wire.now().await;
        let keep = capped(self.retention.unsettled);
        let run = |claim: &Extend| {
            let mut held = Vec::new();
            hold(&mut held, State::Processing { until: 0 }.code(), claim.token);
            Run { key: claim.key, arguments: vec![held, number(capped(claim.lease)), number(keep), number(now)] }
        };
        let runs: Vec<Run> = claims.items().iter().map(run).collect();
        self.wire.ask_script("extend", &self.prefix, &PROLONG, &runs).await
    }

    async fn read(&self, keys: &Batch<Key>) -> Result<Vec<Found>, StoreError> {
        let values = self.wire.read("read", &self.prefix, keys).await?;
        let values = keys.keys().zip(values).collect();
        self.found("read", values).await
    }

    async fn swap(&self, changes: &[Change]) -> Result<Vec<bool>, StoreError> {
        let mut swapped = vec![false; changes.len()];
        let mut value = Vec::with_capacity(128);
        let (mut new, mut runs) = (Calls::new(&self.prefix, 0), Vec::new());
        let (mut new_places, mut run_places) = (Vec::new(), Vec::new());
        for (place, change) in changes.iter().enumerate() {
            let ttl = Draft::of(&change.after).pack(&mut value, change.now, &self.retention);
            match &change.before {
                None => {
                    // GET, because it refuses what is no string: reading many at once shows that as nothing.
                    new.set(&self.prefix, change.key, &value, &["NX", "GET"], ttl);
                    new_places.push(place);
                }
                Some(before) => {
                    runs.push(Run { key: change.key, arguments: vec![stamp(before), value.clone(), number(ttl)] });
                    run_places.push(place);
                }
            }
        }
        for (place, answer) in new_places.into_iter().zip(self.wire.run("move", &new).await?) {
            swapped[place] = matches!(answer, Value::Nil);
        }
        for (place, done) in run_places.into_iter().zip(self.wire.ask_script("move", &self.prefix, &SWAP, &runs).await?)
        {
            swapped[place] = done;
        }
        Ok(swapped)
    }
}

impl RedisStore {
    /// Records from their bytes. Only one that may still move needs to know what time it is, and so a second pipeline, which
    /// reads it anew together with what it has left to live.
    async fn found(
        &self,
        operation: &'static str,
        values: Vec<(Key, Option<Vec<u8>>)>,
    ) -> Result<Vec<Found>, StoreError> {
        let now = self.wire.now().await;
        let mut reader = Reader::default();
        let mut found = Vec::with_capacity(values.len());
        let (mut places, mut runs) = (Vec::new(), Vec::new());
        for (key, bytes) in values {
            let mut record = None;
            if let Some(bytes) = bytes {
                let packed = Packed::new(&bytes).ok_or_else(|| errors::corrupt(operation))?;
                if packed.state().is_final() {
                    record = Some(reader.read(bytes).ok_or_else(|| errors::corrupt(operation))?);
                } else {
                    places.push(found.len());
                    runs.push(Run { key, arguments: Vec::new() });
                }
            }
            found.push(Found { now, record });
        }
        let aged = self.wire.script(operation, &self.prefix, &AGE, &runs).await?;
        for (place, answer) in places.into_iter().zip(aged) {
            let shape = || errors::shape(operation, &Value::Nil);
            let Value::Array(pair) = answer else { return Err(shape()) };
            let [value, left] = <[Value; 2]>::try_from(pair).map_err(|_| shape())?;
            match value {
                // It went in between: nothing stands there.
                Value::Nil => {}
                Value::BulkString(bytes) => {
                    let line = Packed::new(&bytes).ok_or_else(|| errors::corrupt(operation))?.line();
                    let record = reader.read(bytes).ok_or_else(|| errors::corrupt(operation))?;
                    let now = line.now(integer(&left).ok_or_else(shape)?, now);
                    found[place] = Found { now, record: Some(record) };
                }
                other => return Err(errors::shape(operation, &other)),
            }
        }
        Ok(found)
    }

    /// Records successes: facts, which need no right. One plain `SET … GET` each writes the success and shows what it was
    /// written over; where that was not this claim, still held, the record is put right by compare-and-set afterwards:
    ///
    /// - over nothing (forgotten), over another's claim, over failed or dead: flagged as late, under the last claim's token;
    /// - over an earlier success: that one is put back;
    /// - over another message's record (forgotten, and taken by a message with another fingerprint): that one is put back.
    ///
    /// In between, others see a success where the pure rules have one too, but for the last case: there the other
    /// message is seen as the conflicting one for as long as a round trip takes. Of two late successes at once, one may lose its flag, never
    /// the success: whatever is put back over a success of the same message is a success.
    pub(super) async fn succeed(&self, settles: &[&Settle]) -> Result<Vec<SettleOutcome>, StoreError> {
        let now = self.wire.now().await;
        let mut calls = Calls::new(&self.prefix, settles.len());
        let mut value = Vec::with_capacity(128);
        for settle in settles {
            let ttl = success(settle, now).pack(&mut value, now, &self.retention);
            calls.set(&self.prefix, settle.key(), &value, &["GET"], ttl);
        }
        let answers = self.wire.run("settle", &calls).await?;
        let mut outcomes = Vec::with_capacity(settles.len());
        let mut mends = Vec::new();
        let mut foreign = false;
        for (settle, answer) in settles.iter().zip(answers) {
            let old = match answer {
                Value::Nil => None,
                Value::BulkString(bytes) => Some(bytes),
                other => return Err(errors::shape("settle", &other)),
            };
            if old.as_deref().and_then(Packed::new).is_some_and(|old| is_plain(old, settle)) {
                outcomes.push(SettleOutcome::Settled);
                continue;
            }
            let (outcome, mend) = self.mend(settle, old, now);
            foreign |= outcome.is_none();
            outcomes.push(outcome.unwrap_or(SettleOutcome::Refused));
            mends.extend(mend);
        }
        if !mends.is_empty() {
            // One that finds its success replaced leaves it so: what stands there has been put right by another.
            self.wire.ask_script("settle", &self.prefix, &SWAP, &mends).await?;
        }
        if foreign { Err(errors::corrupt("settle")) } else { Ok(outcomes) }
    }

    /// What a success that was not plain came to (`None`: over something this version did not write), and what to put in its place.
    fn mend(&self, settle: &Settle, old: Option<Vec<u8>>, now: Millis) -> (Option<SettleOutcome>, Option<Run>) {
        let state = State::Succeeded { at: now, late: false };
        let token = settle.token;
        let stands =
            stamp(&record::Stamp { state: state.code(), owner: token.owner, fence: token.fence, time: state.time() });
        let (old, record) = match old {
            None => (None, None),
            Some(bytes) => match Reader::default().read(bytes.clone()) {
                Some(record) => (Some(bytes), Some(record)),
                None => {
                    let keep = number(capped(self.retention.unsettled).max(1));
                    return (None, Some(Run { key: settle.key(), arguments: vec![stands, bytes, keep] }));
                }
            },
        };
        let step = record::settle(record.as_ref(), settle, now);
        let (value, ttl) = match (step.write, old) {
            (Some(after), _) => self.packed(&after, now),
            (None, Some(old)) => {
                let left = Packed::new(&old).map_or(1, |packed| packed.line().left(now));
                (old, left)
            }
            // The rules write a success over nothing.
            (None, None) => return (Some(step.outcome), None),
        };
        let run = Run { key: settle.key(), arguments: vec![stands, value, number(ttl)] };
        (Some(step.outcome), Some(run))
    }

    fn packed(&self, record: &Record, now: Millis) -> (Vec<u8>, Millis) {
        let mut value = Vec::with_capacity(128);
        let ttl = Draft::of(record).pack(&mut value, now, &self.retention);
        (value, ttl)
    }
}

/// The record of a success by a claim that is still held.
fn success(settle: &Settle, now: Millis) -> Draft<'_> {
    let result = match &settle.verdict {
        Verdict::Succeeded { result } => result.as_deref(),
        _ => None,
    };
    Draft {
        state: State::Succeeded { at: now, late: false },
        token: settle.token,
        attempts: settle.attempt,
        fingerprint: settle.sighting.fingerprint,
        origin: &settle.sighting.origin,
        result,
    }
}

/// Whether what was written over is this very claim, still held, so that what was written is what the rules say.
fn is_plain(old: Packed<'_>, settle: &Settle) -> bool {
    matches!(old.state(), State::Processing { .. })
        && old.token() == settle.token
        && old.fingerprint() == settle.sighting.fingerprint
        && old.attempts() == settle.attempt
        && old.is_from(&settle.sighting.origin)
}
