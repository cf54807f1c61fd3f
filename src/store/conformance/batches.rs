//! Batches of every size, and what stands in them side by side.

use std::time::Duration;

use super::asks::{
    Held, acquire, acquire_all, claim_all, extend_all, failed, failed_for_good, records, requeue_all, settle_all,
    settled, succeeded, succeeded_with,
};
use super::ground::{Check, Ground, LONG, SHORT, another, ensure, same};
use super::pasts::Past;
use super::pasts::one_of_each;
use crate::record::{ClaimOutcome, ExtendOutcome, Fence, RequeueOutcome, SettleOutcome, Sighting, State, Verdict};
use crate::store::{Ask, Batch};

pub(super) async fn empty_batches_answer_nothing(ground: Ground) -> Check {
    let store = &*ground.store;
    let failed = |error| format!("an empty batch failed: {error}");
    let claims = store.claim(&ground.terms(), &std::iter::empty::<Ask>().collect()).await.map_err(failed)?;
    same("claiming none", &claims, &Vec::new())?;
    let settles = store.settle(&std::iter::empty().collect()).await.map_err(failed)?;
    same("settling none", &settles, &Vec::new())?;
    let extends = store.extend(&std::iter::empty().collect()).await.map_err(failed)?;
    same("extending none", &extends, &Vec::new())?;
    let none: Batch<crate::identity::Key> = std::iter::empty().collect();
    same("reading none", &store.get(&none).await.map_err(failed)?, &Vec::new())?;
    same("requeueing none", &store.requeue(&none).await.map_err(failed)?, &Vec::new())
}

/// Claim, ask again, ask as another, extend, settle, ask again: all in batches of one size.
async fn lives(ground: &Ground, size: usize) -> Check {
    let store = &*ground.store;
    let (terms, messages) = (ground.terms(), ground.messages(size));
    let held = acquire_all(store, &terms, &messages).await?;
    ensure(held.iter().all(|held| held.attempt == 1 && held.token.fence == Fence::FIRST), || {
        "a first claim is not attempt 1 with the first fence".into()
    })?;
    let again = acquire_all(store, &terms, &messages).await?;
    ensure(held.iter().zip(&again).all(|(one, two)| one.token == two.token && two.attempt == 1), || {
        "a batch asked for again is not the same claims".into()
    })?;
    for (place, outcome) in claim_all(store, &ground.terms(), &messages).await?.iter().enumerate() {
        ensure(matches!(outcome, ClaimOutcome::InFlight { .. }), || {
            format!("held message {place} of {size} answers {outcome:?} to another owner")
        })?;
    }
    let extended = extend_all(store, held.iter().map(|held| held.extend(LONG * 2)).collect()).await?;
    same("extending the batch", &extended, &vec![ExtendOutcome::Held; size])?;
    // Results tell whether an answer belongs to the item in its place.
    let result = |place: usize| format!("result {place}").into_bytes();
    let settles = held.iter().enumerate().map(|(place, held)| held.settle(succeeded_with(result(place))));
    same("settling the batch", &settle_all(store, settles.collect()).await?, &vec![SettleOutcome::Settled; size])?;
    let settles = held.iter().enumerate().map(|(place, held)| held.settle(succeeded_with(result(place))));
    same("settling it again", &settle_all(store, settles.collect()).await?, &vec![SettleOutcome::Settled; size])?;
    for (place, outcome) in claim_all(store, &ground.terms(), &messages).await?.iter().enumerate() {
        let right = matches!(outcome, ClaimOutcome::Duplicate { result: Some(kept), first }
            if *kept == result(place) && first.origin == messages[place].origin);
        ensure(right, || format!("succeeded message {place} of {size} answers {outcome:?}"))?;
    }
    let read = records(store, &messages).await?;
    let right = |(message, record): (&Sighting, &Option<crate::record::Record>)| {
        record.as_ref().is_some_and(|record| {
            matches!(record.state, State::Succeeded { late: false, .. }) && record.fingerprint == message.fingerprint
        })
    };
    ensure(messages.iter().zip(&read).all(right), || "a record of the batch does not read as succeeded".into())
}

pub(super) async fn a_batch_of_one_lives_its_life(ground: Ground) -> Check {
    lives(&ground, 1).await
}

pub(super) async fn a_batch_of_two_lives_its_life(ground: Ground) -> Check {
    lives(&ground, 2).await
}

pub(super) async fn a_batch_of_512_lives_its_life(ground: Ground) -> Check {
    lives(&ground, 512).await
}

pub(super) async fn a_batch_of_5000_lives_its_life(ground: Ground) -> Check {
    lives(&ground, 5000).await
}

pub(super) async fn answers_stand_in_the_order_asked(ground: Ground) -> Check {
    let store = &*ground.store;
    let terms = ground.terms();
    // The claims of one batch go six ways; which way a message goes has nothing to do with its key.
    let messages = ground.messages(120);
    let known: Vec<Sighting> =
        messages.iter().enumerate().filter(|(n, _)| n % 6 != 0).map(|(_, m)| m.clone()).collect();
    let held = acquire_all(store, &ground.terms(), &known).await?;
    let verdict = |place: usize| match place % 6 {
        1 => Some(succeeded_with(place.to_be_bytes().to_vec())),
        2 => Some(failed(LONG)),
        3 => Some(Verdict::Dead),
        _ => None,
    };
    let of = |place: usize| {
        let key = messages[place].key;
        held.iter().find(|held| held.message.key == key)
    };
    let settles = (0..messages.len()).filter_map(|place| Some(of(place)?.settle(verdict(place)?)));
    settle_all(store, settles.collect()).await?;
    let asked: Vec<Sighting> = messages
        .iter()
        .enumerate()
        .map(|(place, message)| match place % 6 {
            5 => Sighting { fingerprint: another(message.fingerprint), ..message.clone() },
            _ => message.clone(),
        })
        .collect();
    for (place, outcome) in claim_all(store, &terms, &asked).await?.iter().enumerate() {
        let right = match (place % 6, outcome) {
            (0, ClaimOutcome::Acquired(grant)) => grant.token.owner == terms.owner,
            (1, ClaimOutcome::Duplicate { result, first }) => {
                result.as_deref() == Some(&place.to_be_bytes()[..]) && first.origin == messages[place].origin
            }
            (2, ClaimOutcome::NotDue { .. })
            | (3, ClaimOutcome::Dead { attempts: 1 })
            | (4, ClaimOutcome::InFlight { .. }) => true,
            (5, ClaimOutcome::Conflict { first }) => first.origin == messages[place].origin,
            _ => false,
        };
        ensure(right, || format!("item {place} of a mixed batch answers {outcome:?}, which is another item's answer"))?;
    }
    let requeued = requeue_all(store, messages.iter().map(|message| message.key).collect()).await?;
    for (place, outcome) in requeued.iter().enumerate() {
        let want = if place % 6 == 3 { RequeueOutcome::Requeued } else { RequeueOutcome::NotDead };
        same(&format!("requeueing item {place} of a mixed batch"), outcome, &want)?;
    }
    let extends = (0..messages.len()).filter_map(|place| Some((place, of(place)?.extend(LONG))));
    let (places, extends): (Vec<usize>, Vec<_>) = extends.unzip();
    for (place, outcome) in places.iter().zip(extend_all(store, extends).await?) {
        let want = if matches!(place % 6, 4 | 5) { ExtendOutcome::Held } else { ExtendOutcome::Lost };
        same(&format!("extending item {place} of a mixed batch"), &outcome, &want)?;
    }
    for (place, record) in records(store, &messages).await?.iter().enumerate() {
        let right = record.as_ref().is_some_and(|record| record.origin == messages[place].origin);
        ensure(right, || format!("item {place} of a mixed batch reads as {record:?}"))?;
    }
    Ok(())
}

pub(super) async fn new_and_old_mix_in_one_batch(ground: Ground) -> Check {
    let store = &*ground.store;
    for old in [1_usize, 10, 63] {
        let messages = ground.messages(64);
        let held = acquire_all(store, &ground.terms(), &messages[..old]).await?;
        settle_all(store, held.iter().map(|held| held.settle(succeeded())).collect()).await?;
        for (place, outcome) in claim_all(store, &ground.terms(), &messages).await?.iter().enumerate() {
            let right = match outcome {
                ClaimOutcome::Duplicate { .. } => place < old,
                ClaimOutcome::Acquired(grant) => place >= old && grant.attempt == 1,
                _ => false,
            };
            ensure(right, || format!("item {place} of a batch with {old} old ones answers {outcome:?}"))?;
        }
    }
    Ok(())
}

pub(super) async fn verdicts_mix_in_one_batch(ground: Ground) -> Check {
    let store = &*ground.store;
    let messages = ground.messages(60);
    let held = acquire_all(store, &ground.terms(), &messages).await?;
    let verdicts: Vec<Verdict> = (0..messages.len())
        .map(|place| match place % 6 {
            0 => succeeded(),
            1 => succeeded_with(place.to_be_bytes().to_vec()),
            2 => failed(LONG),
            3 => failed_for_good(),
            4 => Verdict::Released,
            _ => Verdict::Dead,
        })
        .collect();
    let settles = || held.iter().zip(&verdicts).map(|(held, verdict)| held.settle(verdict.clone())).collect();
    for turn in ["settling", "settling again"] {
        for (place, outcome) in settle_all(store, settles()).await?.iter().enumerate() {
            let want = if place % 6 == 3 { SettleOutcome::Buried } else { SettleOutcome::Settled };
            same(&format!("{turn} item {place}, {:?}", verdicts[place]), outcome, &want)?;
        }
    }
    for (place, record) in records(store, &messages).await?.iter().enumerate() {
        let Some(record) = record else { return Err(format!("item {place} is not there")) };
        let right = match (place % 6, record.state) {
            (0, State::Succeeded { late: false, .. }) => record.result.is_none(),
            (1, State::Succeeded { late: false, .. }) => record.result.as_deref() == Some(&place.to_be_bytes()[..]),
            (2, State::Failed { .. }) | (3 | 5, State::Dead { .. }) => record.attempts == 1,
            (4, State::Failed { .. }) => record.attempts == 0,
            _ => false,
        };
        ensure(right, || format!("item {place} after {:?} reads as {record:?}", verdicts[place]))?;
    }
    Ok(())
}

pub(super) async fn one_refused_item_stops_no_other(ground: Ground) -> Check {
    let store = &*ground.store;
    let messages = ground.messages(21);
    let terms = crate::record::Terms { lease: SHORT, ..ground.terms() };
    let held = acquire_all(store, &terms, &messages).await?;
    ground.ran_out(store).await?;
    let taken = acquire(store, &ground.terms(), &messages[10]).await?;
    for verdict in [failed(LONG), Verdict::Released] {
        let settles = held.iter().map(|held| held.settle(verdict.clone())).collect();
        for (place, outcome) in settle_all(store, settles).await?.iter().enumerate() {
            let want = if place == 10 { SettleOutcome::Refused } else { SettleOutcome::Settled };
            same(&format!("settling item {place} of a batch with one stale claim"), outcome, &want)?;
        }
    }
    settled(store, &taken, succeeded()).await?;
    let extends = one_of_each(&ground, store).await?;
    let asked = extends.iter().map(|story| story.current().extend(LONG * 2)).collect();
    for (story, outcome) in extends.iter().zip(extend_all(store, asked).await?) {
        let holds = matches!(story.past, Past::Held | Past::RanOut | Past::TakenOver);
        let want = if holds { ExtendOutcome::Held } else { ExtendOutcome::Lost };
        same(&format!("extending one that is {:?} among others", story.past), &outcome, &want)?;
    }
    Ok(())
}

pub(super) async fn unknown_keys_are_none(ground: Ground) -> Check {
    let store = &*ground.store;
    let messages = ground.messages(9);
    let known: Vec<Sighting> = messages.iter().step_by(2).cloned().collect();
    let held: Vec<Held> = acquire_all(store, &ground.terms(), &known).await?;
    for (place, record) in records(store, &messages).await?.iter().enumerate() {
        same(&format!("whether message {place} is known"), &record.is_some(), &(place % 2 == 0))?;
    }
    let keys = messages.iter().map(|message| message.key).collect();
    for (place, outcome) in requeue_all(store, keys).await?.iter().enumerate() {
        let want = if place % 2 == 0 { RequeueOutcome::NotDead } else { RequeueOutcome::Unknown };
        same(&format!("requeueing message {place}"), outcome, &want)?;
    }
    for held in held {
        settled(store, &held, failed(Duration::ZERO)).await?;
    }
    Ok(())
}
