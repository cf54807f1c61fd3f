//! How a store that reads and swaps single records moves them by the rules of [`record`].
//!
//! A store brings three quick statements for what nothing contends (insert, finish, prolong), a read, and a compare-and-set.
//! What the quick statements could not do is read, decided by the pure rules, and swapped; what lost a race is read again.

use std::future::Future;
use std::time::Duration;

use super::{Ask, Batch, Keyed, StoreError};
use crate::identity::{Fingerprint, Key};
use crate::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Grant, Millis, Record, RequeueOutcome, Settle, SettleOutcome, Stamp,
    State, Step, Terms, Token, Verdict,
};

/// Rounds of read and swap before a batch is given up as contended. Each lost round means that another owner moved the record.
const ROUNDS: usize = 32;

/// A record as read, and the time then on the clock its own times are on.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) now: Millis,
    pub(crate) record: Option<Record>,
}

/// What an insert came to.
#[derive(Clone, Debug)]
pub(crate) enum Inserted {
    /// Nothing was there: claimed with [`Fence::FIRST`](record::Fence::FIRST).
    Claimed,
    /// Something is there, or it is not known whether the insert was ours; with the record where the insert showed it.
    Taken(Option<Found>),
    /// Somebody's open transaction holds it: nobody can tell yet whether it stands.
    #[cfg_attr(not(feature = "sql"), expect(dead_code, reason = "only SQL stores have open transactions"))]
    Locked,
}

/// How a claim that is still held ends.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) key: Key,
    /// What must stand too: the record may have been forgotten, and another message have taken the identity since.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) token: Token,
    /// [`State::code`] to write.
    pub(crate) code: u8,
    /// What to add to the store's clock for [`State::time`].
    pub(crate) delay: Millis,
    pub(crate) attempts: u32,
    pub(crate) result: Option<bytes::Bytes>,
}

impl Ending {
    fn of(settle: &Settle) -> (Self, SettleOutcome) {
        // While the token is current, the record's attempts are those of the claim.
        let attempts = settle.attempt;
        let at = State::Dead { at: 0 };
        let (state, attempts, result, outcome) = match &settle.verdict {
            Verdict::Succeeded { result } => {
                (State::Succeeded { at: 0, late: false }, attempts, result.clone(), SettleOutcome::Settled)
            }
            Verdict::Failed { max_attempts, .. } if attempts >= max_attempts.get() => {
                (at, attempts, None, SettleOutcome::Buried)
            }
            Verdict::Failed { retry_in, .. } => {
                (State::Failed { due: record::millis(*retry_in) }, attempts, None, SettleOutcome::Settled)
            }
            Verdict::Released => (State::Failed { due: 0 }, attempts.saturating_sub(1), None, SettleOutcome::Settled),
            Verdict::Dead => (at, attempts, None, SettleOutcome::Settled),
        };
        let ending = Self {
            key: settle.key(),
            fingerprint: settle.sighting.fingerprint,
            token: settle.token,
            code: state.code(),
            delay: state.time(),
            attempts,
            result,
        };
        (ending, outcome)
    }
}

/// A record to write where the one read still stands.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Key,
    /// What must stand; nothing must, if `None`.
    pub(crate) before: Option<Stamp>,
    pub(crate) after: Record,
    /// The time the record was decided at, on the clock its own times are on.
    pub(crate) now: Millis,
}

/// A store's statements. All answer in the order asked; all batches have distinct keys in ascending order.
pub(crate) trait Cells: Sync {
    /// The store's name, for errors.
    fn name(&self) -> &'static str;

    /// Inserts first claims where nothing stands. One that may have been inserted by an earlier call whose reply
    /// was lost is answered as taken.
    fn insert(
        &self,
        terms: &Terms,
        asks: &Batch<Ask>,
    ) -> impl Future<Output = Result<Vec<Inserted>, StoreError>> + Send;

    /// Ends the claims that are still held by their token, of messages with equal fingerprint; `false` where that is not so, or not known.
    fn finish(&self, endings: &[Ending]) -> impl Future<Output = Result<Vec<bool>, StoreError>> + Send;

    /// Prolongs the claims that are still held by their token, never shortening one; `false` where that is not so, for sure.
    fn prolong(&self, claims: &Batch<Extend>) -> impl Future<Output = Result<Vec<bool>, StoreError>> + Send;

    /// Reads records, from where writes go.
    fn read(&self, keys: &Batch<Key>) -> impl Future<Output = Result<Vec<Found>, StoreError>> + Send;

    /// Writes each change whose stamp still stands; `false` where it does not, or that is not known.
    fn swap(&self, changes: &[Change]) -> impl Future<Output = Result<Vec<bool>, StoreError>> + Send;
}

/// Claims a batch: one statement where all is new, one more read for what stands, one more swap for what is taken over.
pub(crate) async fn claim<C: Cells>(
    cells: &C,
    terms: &Terms,
    asks: &Batch<Ask>,
) -> Result<Vec<ClaimOutcome>, StoreError> {
    let mut outcomes: Vec<Option<ClaimOutcome>> = vec![None; asks.len()];
    let mut found: Vec<Option<Found>> = vec![None; asks.len()];
    // As a rule all are: then nothing is copied.
    let some = asks.items().iter().any(|ask| ask.read_first).then(|| asks.filter(|ask| !ask.read_first));
    let fresh = some.as_ref().unwrap_or(asks);
    if !fresh.is_empty() {
        let inserted = cells.insert(terms, fresh).await?;
        let places = asks.items().iter().enumerate().filter(|(_, ask)| !ask.read_first).map(|(place, _)| place);
        for (place, inserted) in places.zip(expect(cells, inserted, fresh.len())?) {
            match inserted {
                Inserted::Claimed => {
                    let token = Token { owner: terms.owner, fence: record::Fence::FIRST };
                    outcomes[place] = Some(ClaimOutcome::Acquired(Grant { token, attempt: 1, took_over: false }));
                }
                Inserted::Taken(seen) => found[place] = seen,
                Inserted::Locked => outcomes[place] = Some(ClaimOutcome::InFlight { remaining: Duration::ZERO }),
            }
        }
    }
    decide(cells, "claim", asks, outcomes, found, |record, ask, now| record::claim(record, &ask.sighting, terms, now))
        .await
}

/// Settles a batch: one statement where every claim is still held, one read and one swap more for the others.
pub(crate) async fn settle<C: Cells>(cells: &C, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
    let (endings, wanted): (Vec<Ending>, Vec<SettleOutcome>) = settles.items().iter().map(Ending::of).unzip();
    let finished = expect(cells, cells.finish(&endings).await?, endings.len())?;
    let outcomes = finished.into_iter().zip(wanted).map(|(done, outcome)| done.then_some(outcome)).collect();
    decide(cells, "settle", settles, outcomes, vec![None; settles.len()], record::settle).await
}

/// Extends a batch of claims in one statement.
pub(crate) async fn extend<C: Cells>(cells: &C, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
    let held = expect(cells, cells.prolong(claims).await?, claims.len())?;
    Ok(held.into_iter().map(|held| if held { ExtendOutcome::Held } else { ExtendOutcome::Lost }).collect())
}

/// Reads a batch of records in one statement.
pub(crate) async fn get<C: Cells>(cells: &C, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
    let found = expect(cells, cells.read(keys).await?, keys.len())?;
    Ok(found.into_iter().map(|found| found.record).collect())
}

/// Requeues a batch by one read and one swap.
pub(crate) async fn requeue<C: Cells>(cells: &C, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
    let none = vec![None; keys.len()];
    decide(cells, "requeue", keys, none, vec![None; keys.len()], |record, _, now| record::requeue(record, now)).await
}

/// Reads what has no outcome yet, decides it by the pure rules, and swaps; again for what lost a race.
async fn decide<C: Cells, T: Keyed + Clone + Sync, O: Send>(
    cells: &C,
    operation: &'static str,
    items: &Batch<T>,
    mut outcomes: Vec<Option<O>>,
    mut found: Vec<Option<Found>>,
    rule: impl Fn(Option<&Record>, &T, Millis) -> Step<O> + Send + Sync,
) -> Result<Vec<O>, StoreError> {
    for _ in 0..ROUNDS {
        let open: Vec<usize> = (0..items.len()).filter(|place| outcomes[*place].is_none()).collect();
        if open.is_empty() {
            break;
        }
        read_missing(cells, items, &open, &mut found).await?;
        let mut changes = Vec::new();
        let mut pending = Vec::new();
        for place in open {
            let Some(Found { now, record }) = found[place].take() else { continue };
            let step = rule(record.as_ref(), &items.items()[place], now);
            match step.write {
                None => outcomes[place] = Some(step.outcome),
                Some(after) => {
                    let before = record.as_ref().map(Record::stamp);
                    changes.push(Change { key: items.items()[place].key(), before, after, now });
                    pending.push((place, step.outcome));
                }
            }
        }
        if changes.is_empty() {
            continue;
        }
        let swapped = expect(cells, cells.swap(&changes).await?, changes.len())?;
        for ((place, outcome), swapped) in pending.into_iter().zip(swapped) {
            if swapped {
                outcomes[place] = Some(outcome);
            }
        }
    }
    outcomes.into_iter().collect::<Option<Vec<O>>>().ok_or_else(|| {
        StoreError::unavailable(cells.name(), operation, format!("others moved the same records {ROUNDS} times over"))
    })
}

async fn read_missing<C: Cells, T: Keyed + Clone + Sync>(
    cells: &C,
    items: &Batch<T>,
    open: &[usize],
    found: &mut [Option<Found>],
) -> Result<(), StoreError> {
    let missing: Vec<usize> = open.iter().copied().filter(|place| found[*place].is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let keys: Batch<Key> = missing.iter().map(|place| items.items()[*place].key()).collect();
    let read = expect(cells, cells.read(&keys).await?, missing.len())?;
    for (place, seen) in missing.into_iter().zip(read) {
        found[place] = Some(seen);
    }
    Ok(())
}

fn expect<C: Cells, T>(cells: &C, answers: Vec<T>, asked: usize) -> Result<Vec<T>, StoreError> {
    if answers.len() == asked {
        return Ok(answers);
    }
    let message = format!("it answered {} of {asked} items", answers.len());
    Err(StoreError::corrupt(cells.name(), "answer a batch", message))
}
