//! Several owners at once, each a task of its own.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::asks::{
    Held, acquire, acquire_all, claim, claim_all, extend, failed, known, requeue, settle, settle_all, succeeded,
    succeeded_with,
};
use super::ground::{Check, Ground, LONG, PATIENCE, SHORT, STEP, attempts, ensure, same};
use crate::record::{
    ClaimOutcome, ExtendOutcome, Fence, Owner, RequeueOutcome, SettleOutcome, Sighting, State, Terms, Verdict,
};
use crate::store::{Ask, Batch, DedupStore};

/// Runs tasks that start together; the handles take turns.
async fn together<T, F>(ground: &Ground, count: usize, task: impl Fn(usize, Arc<dyn DedupStore>) -> F) -> Check<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Check<T>> + Send + 'static,
{
    let start = Arc::new(Barrier::new(count));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let work = task(number, ground.handles()[number % 2].clone());
        let start = start.clone();
        tasks.spawn(async move {
            start.wait().await;
            work.await.map(|done| (number, done))
        });
    }
    let mut done = Vec::with_capacity(count);
    while let Some(joined) = tasks.join_next().await {
        done.push(joined.map_err(|_| "the store panicked in a race".to_owned())??);
    }
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

/// How many owners were granted each message.
fn winners(outcomes: &[Vec<ClaimOutcome>], place: usize) -> usize {
    outcomes.iter().filter(|outcomes| matches!(outcomes[place], ClaimOutcome::Acquired(_))).count()
}

/// Owners claim one batch at once; each message must be granted once and be in flight for the others.
async fn race(ground: &Ground, owners: usize, messages: Vec<Sighting>, attempt: u32) -> Check {
    let messages = Arc::new(messages);
    let terms: Vec<Terms> = (0..owners).map(|_| ground.terms()).collect();
    let outcomes = together(ground, owners, |number, store| {
        let (terms, messages) = (terms[number], messages.clone());
        async move { claim_all(&*store, &terms, &messages).await }
    })
    .await?;
    for place in 0..messages.len() {
        let won = winners(&outcomes, place);
        ensure(won == 1, || format!("{won} of {owners} owners that claimed at once were granted one message"))?;
        for outcome in outcomes.iter().map(|outcomes| &outcomes[place]) {
            let right = match outcome {
                ClaimOutcome::Acquired(grant) => {
                    grant.attempt == attempt
                        && grant.took_over == (attempt > 1)
                        && grant.token.fence == Fence::new(u64::from(attempt))
                }
                ClaimOutcome::InFlight { .. } => true,
                _ => false,
            };
            ensure(right, || format!("a race for attempt {attempt} answers {outcome:?}"))?;
        }
        let record = known(&*ground.store, &messages[place]).await?;
        same("the attempts after a race", &record.attempts, &attempt)?;
        let winner = outcomes.iter().zip(&terms).find(|(all, _)| matches!(all[place], ClaimOutcome::Acquired(_)));
        same("the owner kept, and the one granted", &Some(record.owner), &winner.map(|(_, terms)| terms.owner))?;
    }
    Ok(())
}

pub(super) async fn one_of_two_owners_wins(ground: Ground) -> Check {
    for size in [1, 1, 2, 3, 16, 16, 64] {
        race(&ground, 2, ground.messages(size), 1).await?;
    }
    Ok(())
}

pub(super) async fn one_of_eight_owners_wins(ground: Ground) -> Check {
    for size in [1, 1, 1, 5, 32] {
        race(&ground, 8, ground.messages(size), 1).await?;
    }
    Ok(())
}

pub(super) async fn single_claims_race_to_one_winner(ground: Ground) -> Check {
    let messages = Arc::new(ground.messages(60));
    let terms: Vec<Terms> = (0..4).map(|_| ground.terms()).collect();
    let outcomes = together(&ground, 4, |number, store| {
        let (terms, messages) = (terms[number], messages.clone());
        async move {
            let mut outcomes = Vec::new();
            for message in messages.iter() {
                outcomes.push(claim(&*store, &terms, message).await?);
            }
            Ok(outcomes)
        }
    })
    .await?;
    for place in 0..messages.len() {
        let won = winners(&outcomes, place);
        ensure(won == 1, || format!("{won} of 4 owners were granted message {place}, each asking for one at a time"))?;
    }
    Ok(())
}

pub(super) async fn one_owner_asking_twice_at_once_gets_one_claim(ground: Ground) -> Check {
    for _ in 0..10 {
        let (terms, message) = (ground.terms(), ground.message());
        let held = together(&ground, 3, |_, store| {
            let message = message.clone();
            async move { acquire(&*store, &terms, &message).await }
        })
        .await?;
        let record = known(&*ground.store, &message).await?;
        for held in held {
            same("the token given to one owner asking at once", &held.token, &record.token())?;
            same("the attempt given to one owner asking at once", &held.attempt, &1)?;
        }
        same("the attempts counted", &record.attempts, &1)?;
    }
    Ok(())
}

pub(super) async fn one_of_eight_takes_over(ground: Ground) -> Check {
    for size in [1, 4, 32] {
        let messages = ground.messages(size);
        acquire_all(&*ground.store, &Terms { lease: SHORT, ..ground.terms() }, &messages).await?;
        ground.ran_out(&*ground.store).await?;
        race(&ground, 8, messages, 2).await?;
    }
    Ok(())
}

pub(super) async fn takeovers_in_turn_have_growing_fences(ground: Ground) -> Check {
    const TURNS: u64 = 24;
    let message = ground.message();
    let owners: Vec<Owner> = (0..4).map(|_| ground.owner()).collect();
    let granted = together(&ground, owners.len(), |number, store| {
        let message = message.clone();
        let terms = Terms { owner: owners[number], lease: SHORT, max_attempts: attempts(u32::MAX) };
        async move {
            let begun = std::time::Instant::now();
            let mut fences = Vec::new();
            loop {
                match claim(&*store, &terms, &message).await? {
                    ClaimOutcome::Acquired(grant) => {
                        fences.push(grant.token.fence.get());
                        if grant.token.fence.get() >= TURNS {
                            return Ok(fences);
                        }
                    }
                    ClaimOutcome::InFlight { .. } => {}
                    other => return Err(format!("a lease that others fight for answers {other:?}")),
                }
                if begun.elapsed() > PATIENCE {
                    return Ok(fences);
                }
                // Leave the lease its millisecond.
                tokio::time::sleep(STEP).await;
                if let Some(record) = super::asks::record(&*store, &message).await?
                    && record.fence.get() >= TURNS
                {
                    return Ok(fences);
                }
            }
        }
    })
    .await?;
    let mut holders: HashMap<u64, usize> = HashMap::new();
    for (owner, fences) in granted.iter().enumerate() {
        ensure(fences.is_sorted(), || format!("fences granted to one owner one after another fell: {fences:?}"))?;
        for fence in fences {
            let holder = *holders.entry(*fence).or_insert(owner);
            ensure(holder == owner, || format!("fence {fence} was granted to two owners"))?;
        }
    }
    let last = holders.keys().max().copied().unwrap_or(0);
    ensure(last >= TURNS, || format!("only {last} of {TURNS} takeovers came about"))?;
    let missing = (1..=last).find(|fence| !holders.contains_key(fence));
    ensure(missing.is_none(), || format!("fence {missing:?} was granted to nobody"))
}

pub(super) async fn overlapping_batches_do_not_wait_in_a_circle(ground: Ground) -> Check {
    const OWNERS: usize = 6;
    let messages = Arc::new(ground.messages(96));
    let terms: Vec<Terms> = (0..OWNERS).map(|_| ground.terms()).collect();
    let won = together(&ground, OWNERS, |number, store| {
        let (terms, messages) = (terms[number], messages.clone());
        async move {
            let mut won = Vec::new();
            for round in 0..12 {
                // Windows that begin elsewhere for each owner, one half of the owners going up and the other down.
                let step = round * 8;
                let begin = if number % 2 == 0 { step } else { 88 - step };
                let mut window: Vec<Sighting> = messages.iter().cycle().skip(begin).take(48).cloned().collect();
                if number % 2 == 1 {
                    window.reverse();
                }
                let outcomes = claim_all(&*store, &terms, &window).await?;
                let mut settles = Vec::new();
                for (message, outcome) in window.iter().zip(outcomes) {
                    if let ClaimOutcome::Acquired(grant) = outcome {
                        let held = Held { message: message.clone(), token: grant.token, attempt: grant.attempt };
                        settles.push(held.settle(succeeded()));
                        won.push(message.key);
                    }
                }
                let count = settles.len();
                same(
                    "settling what was won",
                    &settle_all(&*store, settles).await?,
                    &vec![SettleOutcome::Settled; count],
                )?;
            }
            Ok(won)
        }
    })
    .await?;
    let mut times: HashMap<_, usize> = HashMap::new();
    for key in won.into_iter().flatten() {
        *times.entry(key).or_default() += 1;
    }
    for message in messages.iter() {
        let won = times.get(&message.key).copied().unwrap_or(0);
        ensure(won == 1, || {
            format!("a message of overlapping batches was granted {won} times, and each time settled")
        })?;
    }
    Ok(())
}

/// Claims whose leases ran out, and the terms of one who takes them over at once with what `holder` does.
async fn against_a_takeover<T: Send + 'static, F: Future<Output = Check<T>> + Send + 'static>(
    ground: &Ground,
    holder: impl Fn(Arc<dyn DedupStore>, Held) -> F + Clone + Send + 'static,
) -> Check<Vec<(Held, T, ClaimOutcome)>> {
    let messages = ground.messages(24);
    let held = acquire_all(&*ground.store, &Terms { lease: SHORT, ..ground.terms() }, &messages).await?;
    ground.ran_out(&*ground.store).await?;
    let mut tasks = JoinSet::new();
    for (number, held) in held.into_iter().enumerate() {
        let (store, other, terms) = (ground.store.clone(), ground.other.clone(), ground.terms());
        let holder = holder.clone();
        let start = Arc::new(Barrier::new(2));
        tasks.spawn(async move {
            let mine = {
                let (held, start) = (held.clone(), start.clone());
                async move {
                    start.wait().await;
                    holder(store, held).await
                }
            };
            let theirs = async {
                start.wait().await;
                // Now one comes first, now the other.
                if number % 3 == 1 {
                    tokio::task::yield_now().await;
                }
                claim(&*other, &terms, &held.message).await
            };
            let mine = tokio::spawn(mine);
            let theirs = theirs.await?;
            let mine = mine.await.map_err(|_| "the store panicked in a race".to_owned())??;
            Ok::<_, String>((held, mine, theirs))
        });
    }
    let mut done = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        done.push(joined.map_err(|_| "the store panicked in a race".to_owned())??);
    }
    Ok(done)
}

pub(super) async fn success_races_a_takeover(ground: Ground) -> Check {
    let done =
        against_a_takeover(&ground, |store, held| async move { settle(&*store, &held, succeeded_with("made")).await });
    for (held, mine, theirs) in done.await? {
        let record = known(&*ground.store, &held.message).await?;
        let State::Succeeded { late, .. } = record.state else {
            return Err(format!("a success that raced a takeover reads as {record:?}"));
        };
        let right = match (mine, &theirs) {
            (SettleOutcome::Settled, ClaimOutcome::Duplicate { .. }) => !late && record.attempts == 1,
            (SettleOutcome::Late, ClaimOutcome::Acquired(grant)) => late && grant.took_over && record.attempts == 2,
            _ => false,
        };
        ensure(right, || format!("success answered {mine:?}, the takeover {theirs:?}, and the record is {record:?}"))?;
    }
    Ok(())
}

pub(super) async fn failure_races_a_takeover(ground: Ground) -> Check {
    let done = against_a_takeover(&ground, |store, held| async move { settle(&*store, &held, failed(LONG)).await });
    for (held, mine, theirs) in done.await? {
        let record = known(&*ground.store, &held.message).await?;
        let right = match (mine, &theirs) {
            (SettleOutcome::Settled, ClaimOutcome::NotDue { .. }) => {
                matches!(record.state, State::Failed { .. }) && record.attempts == 1
            }
            (SettleOutcome::Refused, ClaimOutcome::Acquired(grant)) => {
                matches!(record.state, State::Processing { .. }) && record.token() == grant.token && grant.took_over
            }
            _ => false,
        };
        ensure(right, || format!("failure answered {mine:?}, the takeover {theirs:?}, and the record is {record:?}"))?;
    }
    Ok(())
}

pub(super) async fn extension_races_a_takeover(ground: Ground) -> Check {
    let done = against_a_takeover(&ground, |store, held| async move { extend(&*store, &held, LONG).await });
    for (held, mine, theirs) in done.await? {
        let record = known(&*ground.store, &held.message).await?;
        let right = match (mine, &theirs) {
            (ExtendOutcome::Held, ClaimOutcome::InFlight { .. }) => record.token() == held.token,
            (ExtendOutcome::Lost, ClaimOutcome::Acquired(grant)) => record.token() == grant.token,
            _ => false,
        };
        ensure(right, || {
            format!("extending answered {mine:?}, the takeover {theirs:?}, and the record is {record:?}")
        })?;
    }
    Ok(())
}

pub(super) async fn settling_twice_at_once_is_harmless(ground: Ground) -> Check {
    for verdict in [succeeded_with("made"), failed(LONG), Verdict::Released, Verdict::Dead] {
        for _ in 0..5 {
            let held = acquire(&*ground.store, &ground.terms(), &ground.message()).await?;
            let outcomes = together(&ground, 3, |_, store| {
                let (held, verdict) = (held.clone(), verdict.clone());
                async move { settle(&*store, &held, verdict).await }
            })
            .await?;
            same(&format!("{verdict:?} sent thrice at once"), &outcomes, &vec![SettleOutcome::Settled; 3])?;
            let attempts = known(&*ground.store, &held.message).await?.attempts;
            let want = u32::from(!matches!(verdict, Verdict::Released));
            same(&format!("the attempts after {verdict:?}"), &attempts, &want)?;
        }
    }
    Ok(())
}

pub(super) async fn requeueing_at_once_requeues_once(ground: Ground) -> Check {
    for _ in 0..8 {
        let held = acquire(&*ground.store, &ground.terms(), &ground.message()).await?;
        settle(&*ground.store, &held, Verdict::Dead).await?;
        let outcomes = together(&ground, 4, |_, store| {
            let message = held.message.clone();
            async move { requeue(&*store, &message).await }
        })
        .await?;
        // Nobody owns a requeue, so a store that cannot tell whose write it was may tell more than one that it was theirs.
        let requeued = outcomes.contains(&RequeueOutcome::Requeued) && !outcomes.contains(&RequeueOutcome::Unknown);
        ensure(requeued, || format!("four that requeued one dead message at once were told {outcomes:?}"))?;
        let record = known(&*ground.store, &held.message).await?;
        same("the fence after one requeue", &record.fence, &Fence::new(held.token.fence.get() + 1))?;
    }
    Ok(())
}

/// Drops what `work` does after having looked at it `polls` times.
async fn dropped_after<T: Send + 'static>(polls: usize, work: impl Future<Output = T> + Send + 'static) {
    let mut work = Box::pin(work);
    for _ in 0..polls {
        if futures_util::poll!(&mut work).is_ready() {
            return;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

pub(super) async fn a_dropped_claim_can_be_asked_again(ground: Ground) -> Check {
    for polls in 0..12 {
        let (terms, messages) = (ground.terms(), ground.messages(5));
        let batch: Batch<Ask> = messages.iter().cloned().map(Ask::from).collect();
        let store = ground.store.clone();
        dropped_after(polls, async move { store.claim(&terms, &batch).await.is_ok() }).await;
        for held in acquire_all(&*ground.store, &terms, &messages).await? {
            same("the attempt of a claim dropped and asked again", &held.attempt, &1)?;
        }
        let others = claim_all(&*ground.other, &ground.terms(), &messages).await?;
        ensure(others.iter().all(|outcome| matches!(outcome, ClaimOutcome::InFlight { .. })), || {
            format!("a claim dropped and asked again answers {others:?} to others")
        })?;
    }
    Ok(())
}

pub(super) async fn a_dropped_settle_can_be_asked_again(ground: Ground) -> Check {
    for polls in 0..12 {
        let messages = ground.messages(5);
        let held = acquire_all(&*ground.store, &ground.terms(), &messages).await?;
        let batch: Batch<_> = held.iter().map(|held| held.settle(Verdict::Released)).collect();
        let store = ground.store.clone();
        dropped_after(polls, async move { store.settle(&batch).await.is_ok() }).await;
        let settles = held.iter().map(|held| held.settle(Verdict::Released)).collect();
        let outcomes = settle_all(&*ground.store, settles).await?;
        same("a settle dropped and asked again", &outcomes, &vec![SettleOutcome::Settled; 5])?;
        for message in &messages {
            let record = known(&*ground.store, message).await?;
            same("the attempts after one release", &record.attempts, &0)?;
        }
    }
    Ok(())
}
