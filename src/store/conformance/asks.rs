//! Asking a store about messages in any order: sorted into batches, and the answers put back into the order given.

use std::time::Duration;

use bytes::Bytes;

use super::ground::{Check, attempts};
use crate::identity::Key;
use crate::record::{
    ClaimOutcome, Extend, ExtendOutcome, Grant, Record, RequeueOutcome, Settle, SettleOutcome, Sighting, Terms, Token,
    Verdict,
};
use crate::store::{Ask, Batch, DedupStore, Gathered, Keyed, StoreError};

/// A claim that was granted, with its message.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) message: Sighting,
    pub(super) token: Token,
    pub(super) attempt: u32,
}

impl Held {
    pub(super) fn settle(&self, verdict: Verdict) -> Settle {
        Settle { sighting: self.message.clone(), token: self.token, attempt: self.attempt, verdict }
    }

    pub(super) const fn extend(&self, lease: Duration) -> Extend {
        Extend { key: self.message.key, token: self.token, lease }
    }
}

pub(super) const fn succeeded() -> Verdict {
    Verdict::Succeeded { result: None }
}

pub(super) fn succeeded_with(result: impl Into<Bytes>) -> Verdict {
    Verdict::Succeeded { result: Some(result.into()) }
}

/// Failed with attempts left.
pub(super) fn failed(retry_in: Duration) -> Verdict {
    Verdict::Failed { retry_in, max_attempts: attempts(1000) }
}

/// Failed for the last time.
pub(super) fn failed_for_good() -> Verdict {
    Verdict::Failed { retry_in: Duration::ZERO, max_attempts: attempts(1) }
}

fn answered<O>(operation: &str, asked: &[usize], answer: Result<Vec<O>, StoreError>) -> Check<Vec<O>> {
    let answer = answer.map_err(|error| format!("{operation} failed: {error}"))?;
    if answer.len() != asked.len() {
        return Err(format!("{operation} of {} items got {} answers", asked.len(), answer.len()));
    }
    let mut placed: Vec<(usize, O)> = asked.iter().copied().zip(answer).collect();
    placed.sort_by_key(|(place, _)| *place);
    Ok(placed.into_iter().map(|(_, outcome)| outcome).collect())
}

fn gather<T: Keyed>(items: impl IntoIterator<Item = T>) -> Check<(Batch<T>, Vec<usize>)> {
    let Gathered { batch, places, later } = Batch::gather(items);
    if later.is_empty() { Ok((batch, places)) } else { Err("the case itself is wrong: a key stands twice".into()) }
}

pub(super) async fn ask_all(store: &dyn DedupStore, terms: &Terms, asks: Vec<Ask>) -> Check<Vec<ClaimOutcome>> {
    let (batch, places) = gather(asks)?;
    answered("claim", &places, store.claim(terms, &batch).await)
}

pub(super) async fn claim_all(
    store: &dyn DedupStore,
    terms: &Terms,
    messages: &[Sighting],
) -> Check<Vec<ClaimOutcome>> {
    ask_all(store, terms, messages.iter().cloned().map(Ask::from).collect()).await
}

pub(super) async fn claim(store: &dyn DedupStore, terms: &Terms, message: &Sighting) -> Check<ClaimOutcome> {
    one(claim_all(store, terms, std::slice::from_ref(message)).await?)
}

pub(super) fn granted(outcome: &ClaimOutcome) -> Check<Grant> {
    match outcome {
        ClaimOutcome::Acquired(grant) => Ok(*grant),
        other => Err(format!("a claim that should be acquired answers {other:?}")),
    }
}

pub(super) async fn acquire_all(store: &dyn DedupStore, terms: &Terms, messages: &[Sighting]) -> Check<Vec<Held>> {
    let outcomes = claim_all(store, terms, messages).await?;
    let hold = |(message, outcome): (&Sighting, &ClaimOutcome)| {
        let grant = granted(outcome)?;
        if grant.token.owner != terms.owner {
            return Err(format!("a claim by {} was granted to {}", terms.owner, grant.token.owner));
        }
        Ok(Held { message: message.clone(), token: grant.token, attempt: grant.attempt })
    };
    messages.iter().zip(&outcomes).map(hold).collect()
}

pub(super) async fn acquire(store: &dyn DedupStore, terms: &Terms, message: &Sighting) -> Check<Held> {
    one(acquire_all(store, terms, std::slice::from_ref(message)).await?)
}

pub(super) async fn settle_all(store: &dyn DedupStore, settles: Vec<Settle>) -> Check<Vec<SettleOutcome>> {
    let (batch, places) = gather(settles)?;
    answered("settle", &places, store.settle(&batch).await)
}

pub(super) async fn settle(store: &dyn DedupStore, held: &Held, verdict: Verdict) -> Check<SettleOutcome> {
    one(settle_all(store, vec![held.settle(verdict)]).await?)
}

/// Settles, and fails the case unless it was in time.
pub(super) async fn settled(store: &dyn DedupStore, held: &Held, verdict: Verdict) -> Check {
    let (name, want) = match &verdict {
        Verdict::Failed { max_attempts, .. } if held.attempt >= max_attempts.get() => ("fail", SettleOutcome::Buried),
        Verdict::Failed { .. } => ("fail", SettleOutcome::Settled),
        Verdict::Succeeded { .. } => ("succeed", SettleOutcome::Settled),
        Verdict::Released => ("release", SettleOutcome::Settled),
        Verdict::Dead => ("give up", SettleOutcome::Settled),
    };
    let got = settle(store, held, verdict).await?;
    if got == want { Ok(()) } else { Err(format!("the holder could not {name}: {got:?}")) }
}

pub(super) async fn extend_all(store: &dyn DedupStore, claims: Vec<Extend>) -> Check<Vec<ExtendOutcome>> {
    let (batch, places) = gather(claims)?;
    answered("extend", &places, store.extend(&batch).await)
}

pub(super) async fn extend(store: &dyn DedupStore, held: &Held, lease: Duration) -> Check<ExtendOutcome> {
    one(extend_all(store, vec![held.extend(lease)]).await?)
}

pub(super) async fn records(store: &dyn DedupStore, messages: &[Sighting]) -> Check<Vec<Option<Record>>> {
    let (batch, places) = gather(messages.iter().map(|message| message.key))?;
    answered("get", &places, store.get(&batch).await)
}

pub(super) async fn record(store: &dyn DedupStore, message: &Sighting) -> Check<Option<Record>> {
    one(records(store, std::slice::from_ref(message)).await?)
}

/// Reads a record that must be there.
pub(super) async fn known(store: &dyn DedupStore, message: &Sighting) -> Check<Record> {
    record(store, message).await?.ok_or_else(|| "a record that was written cannot be read".into())
}

pub(super) async fn requeue_all(store: &dyn DedupStore, keys: Vec<Key>) -> Check<Vec<RequeueOutcome>> {
    let (batch, places) = gather(keys)?;
    answered("requeue", &places, store.requeue(&batch).await)
}

pub(super) async fn requeue(store: &dyn DedupStore, message: &Sighting) -> Check<RequeueOutcome> {
    one(requeue_all(store, vec![message.key]).await?)
}

fn one<T>(answers: Vec<T>) -> Check<T> {
    answers.into_iter().next().ok_or_else(|| "a batch of one got no answer".into())
}
