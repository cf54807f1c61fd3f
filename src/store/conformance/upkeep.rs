//! Requeueing, purging, schema and self-description.

use std::time::Duration;

use tokio::task::JoinSet;

use super::asks::{
    acquire, acquire_all, claim, extend, failed, granted, known, record, records, requeue, requeue_all, settle,
    settle_all, settled, succeeded,
};
use super::ground::{Check, Ground, LONG, SHORT, ensure, eventually, same};
use super::pasts::{one_of_each, same_record};
use crate::record::{self, ExtendOutcome, RequeueOutcome, SettleOutcome, Sighting, State, Terms, Verdict};
use crate::store::{DedupStore, Retention};

pub(super) async fn requeues_follow_the_record_from_every_state(ground: Ground) -> Check {
    let stories = one_of_each(&ground, &*ground.store).await?;
    let keys = stories.iter().map(|story| story.message().key).collect();
    let got = requeue_all(&*ground.store, keys).await?;
    for (story, got) in stories.iter().zip(&got) {
        let what = format!("requeueing a message that is {:?}", story.past);
        let step = record::requeue(story.record.as_ref(), story.now());
        same(&what, got, &step.outcome)?;
        same_record(&*ground.store, &what, story, &step).await?;
    }
    Ok(())
}

pub(super) async fn a_requeued_message_starts_anew(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let first = acquire(&*ground.store, &terms, &message).await?;
    settled(&*ground.store, &first, failed(Duration::ZERO)).await?;
    let second = acquire(&*ground.store, &terms, &message).await?;
    settled(&*ground.store, &second, Verdict::Dead).await?;
    same("requeueing", &requeue(&*ground.store, &message).await?, &RequeueOutcome::Requeued)?;
    same("requeueing again", &requeue(&*ground.other, &message).await?, &RequeueOutcome::NotDead)?;
    let grant = granted(&claim(&*ground.store, &ground.terms(), &message).await?)?;
    same("the attempt after requeueing", &grant.attempt, &1)?;
    ensure(!grant.took_over, || "a requeued message was taken over from nobody".into())?;
    ensure(grant.token.fence > second.token.fence, || {
        format!("the fence went from {:?} to {:?}", second.token.fence, grant.token.fence)
    })?;
    for old in [first, second] {
        for verdict in [failed(LONG), Verdict::Released, Verdict::Dead] {
            let what = format!("{verdict:?} by a token from before the requeue");
            same(&what, &settle(&*ground.store, &old, verdict).await?, &SettleOutcome::Refused)?;
        }
        let got = extend(&*ground.store, &old, LONG).await?;
        same("extending by a token from before the requeue", &got, &ExtendOutcome::Lost)?;
    }
    same("the token after all that", &known(&*ground.store, &message).await?.token(), &grant.token)
}

/// Purges until nothing more is left to remove, in steps of `limit`, and says how many went.
async fn purge_all(store: &dyn DedupStore, limit: usize) -> Check<usize> {
    let mut removed = 0;
    loop {
        let purged = store.purge(limit).await.map_err(|error| format!("purge failed: {error}"))?;
        ensure(purged.removed <= limit, || format!("a purge of at most {limit} removed {}", purged.removed))?;
        removed += purged.removed;
        if !purged.more {
            return Ok(removed);
        }
        ensure(purged.removed > 0 && removed < 1_000_000, || {
            format!("a purge says that more is left, again and again, after {removed}")
        })?;
    }
}

pub(super) async fn purging_keeps_what_is_within_retention(ground: Ground) -> Check {
    let stories = one_of_each(&ground, &*ground.store).await?;
    for limit in [1, 7, 10_000] {
        purge_all(&*ground.store, limit).await?;
    }
    for story in &stories {
        let got = record(&*ground.store, story.message()).await?;
        same(&format!("a message that is {:?}, after a purge", story.past), &got, &story.record)?;
    }
    Ok(())
}

const AT_ONCE: Duration = Duration::from_millis(1);

pub(super) async fn purging_keeps_leases_that_run(ground: Ground) -> Check {
    let store = ground.keeping(Retention::default().succeeded(AT_ONCE).dead(AT_ONCE).unsettled(AT_ONCE)).await?;
    let messages = ground.messages(6);
    let held = acquire_all(&*store, &ground.terms(), &messages).await?;
    let settles = held[3..].iter().map(|held| held.settle(failed(LONG))).collect();
    settle_all(&*store, settles).await?;
    let before = records(&*store, &messages).await?;
    ground.ran_out(&*store).await?;
    purge_all(&*store, 10_000).await?;
    same("leases that run and retries to come, after a purge", &records(&*store, &messages).await?, &before)?;
    for held in &held[..3] {
        settled(&*store, held, Verdict::Released).await?;
    }
    Ok(())
}

pub(super) async fn purging_by_nothing_removes_nothing(ground: Ground) -> Check {
    let store = ground.keeping(Retention::default()).await?;
    let stories = one_of_each(&ground, &*store).await?;
    let purged = store.purge(0).await.map_err(|error| format!("purge failed: {error}"))?;
    same("what a purge of at most none removed", &purged.removed, &0)?;
    for story in &stories {
        same("a record after a purge of none", &record(&*store, story.message()).await?, &story.record)?;
    }
    Ok(())
}

/// Purges until none of the messages is known any more.
async fn leave(store: &dyn DedupStore, messages: &[Sighting], limit: usize, what: &str) -> Check {
    eventually!(format!("{what} records past their retention are gone"), {
        purge_all(store, limit).await?;
        let left = records(store, messages).await?.into_iter().flatten().count();
        (left == 0).then_some(())
    });
    Ok(())
}

pub(super) async fn succeeded_records_leave_in_small_steps(ground: Ground) -> Check {
    let store = ground.keeping(Retention::default().succeeded(AT_ONCE)).await?;
    let messages = ground.messages(25);
    let held = acquire_all(&*store, &ground.terms(), &messages).await?;
    let settles = held.iter().map(|held| held.settle(succeeded())).collect();
    same("settling", &settle_all(&*store, settles).await?, &vec![SettleOutcome::Settled; 25])?;
    leave(&*store, &messages, 4, "succeeded").await
}

pub(super) async fn dead_records_leave(ground: Ground) -> Check {
    let store = ground.keeping(Retention::default().dead(AT_ONCE)).await?;
    let messages = ground.messages(5);
    let held = acquire_all(&*store, &ground.terms(), &messages).await?;
    let settles = held.iter().map(|held| held.settle(Verdict::Dead)).collect();
    same("settling", &settle_all(&*store, settles).await?, &vec![SettleOutcome::Settled; 5])?;
    leave(&*store, &messages, 100, "dead").await
}

pub(super) async fn unsettled_records_leave(ground: Ground) -> Check {
    let store = ground.keeping(Retention::default().unsettled(AT_ONCE)).await?;
    let messages = ground.messages(6);
    let held = acquire_all(&*store, &Terms { lease: SHORT, ..ground.terms() }, &messages).await?;
    // A store that forgets at once may have forgotten these claims already: then there is nothing to fail.
    settle_all(&*store, held[..3].iter().map(|held| held.settle(failed(SHORT))).collect()).await?;
    leave(&*store, &messages, 100, "unsettled").await
}

pub(super) async fn each_state_has_its_own_retention(ground: Ground) -> Check {
    for brief in ["succeeded", "dead", "unsettled"] {
        let retention = match brief {
            "succeeded" => Retention::default().succeeded(AT_ONCE),
            "dead" => Retention::default().dead(AT_ONCE),
            _ => Retention::default().unsettled(AT_ONCE),
        };
        let store = ground.keeping(retention).await?;
        let messages = ground.messages(3);
        let held = acquire_all(&*store, &ground.terms(), &messages).await?;
        let verdicts = [succeeded(), Verdict::Dead, failed(SHORT)];
        settle_all(&*store, held.iter().zip(verdicts).map(|(held, verdict)| held.settle(verdict)).collect()).await?;
        let gone = match brief {
            "succeeded" => 0,
            "dead" => 1,
            _ => 2,
        };
        leave(&*store, &messages[gone..=gone], 100, brief).await?;
        for (place, left) in records(&*store, &messages).await?.iter().enumerate() {
            ensure(left.is_some() == (place != gone), || {
                format!(
                    "with a brief retention of {brief} records only, record {place} of succeeded, dead, failed reads as {left:?}"
                )
            })?;
        }
    }
    Ok(())
}

pub(super) async fn the_schema_can_be_ensured_again(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let held = acquire(&*ground.store, &terms, &message).await?;
    ground.store.ensure_schema().await.map_err(|error| format!("ensuring the schema again failed: {error}"))?;
    let mut tasks = JoinSet::new();
    for number in 0..4 {
        let store = ground.handles()[number % 2].clone();
        tasks.spawn(async move { store.ensure_schema().await });
    }
    while let Some(joined) = tasks.join_next().await {
        joined
            .map_err(|_| "the store panicked while its schema was ensured".to_owned())?
            .map_err(|error| format!("ensuring the schema from four tasks at once failed: {error}"))?;
    }
    settled(&*ground.store, &held, succeeded()).await?;
    let record = known(&*ground.other, &message).await?;
    ensure(matches!(record.state, State::Succeeded { .. }), || format!("it reads as {record:?}"))
}

pub(super) async fn the_store_describes_itself(ground: Ground) -> Check {
    let description = ground.store.describe();
    ensure(!description.store.is_empty(), || "its name is empty".into())?;
    same("the description through two handles", &description, &ground.other.describe())?;
    let Retention { succeeded, dead, unsettled, .. } = ground.store.retention();
    ensure(!succeeded.is_zero() && !dead.is_zero() && !unsettled.is_zero(), || {
        format!("it keeps nothing: {:?}", ground.store.retention())
    })?;
    let report = ground.store.check().await.map_err(|error| format!("the start-up check failed: {error}"))?;
    let mute = report.findings().iter().find(|finding| finding.problem.is_empty() || finding.cure.is_empty());
    ensure(mute.is_none(), || format!("a finding says no problem or no cure: {mute:?}"))
}
