//! Leases and due times, on the store's clock.

use std::time::{Duration, Instant};

use super::asks::{
    Held, acquire, acquire_all, claim, extend, extend_all, failed, granted, known, requeue, settle, settled, succeeded,
};
use super::ground::{Check, Ground, LONG, SHORT, attempts, ensure, eventually, same};
use super::pasts::{Past, one_of_each, same_record};
use crate::record::{self, ClaimOutcome, ExtendOutcome, Fence, Grant, Sighting, State, Terms, Verdict};

/// What a clock that ticks in milliseconds, and is steered a little, may be short of.
const TICKS: Duration = Duration::from_millis(3);

/// Claims until it is granted.
async fn await_grant(ground: &Ground, terms: &Terms, message: &Sighting) -> Check<Grant> {
    Ok(eventually!("a message may be claimed", {
        match claim(&*ground.store, terms, message).await? {
            ClaimOutcome::Acquired(grant) => Some(grant),
            ClaimOutcome::InFlight { .. } | ClaimOutcome::NotDue { .. } => None,
            other => return Err(format!("a message that is waited for answers {other:?}")),
        }
    }))
}

async fn in_flight(ground: &Ground, message: &Sighting, why: &str) -> Check {
    let got = claim(&*ground.store, &ground.terms(), message).await?;
    ensure(matches!(got, ClaimOutcome::InFlight { .. }), || format!("{why}, yet another owner's claim answers {got:?}"))
}

pub(super) async fn a_lease_runs_out_and_is_taken_over(ground: Ground) -> Check {
    let message = ground.message();
    let lease = Duration::from_millis(80);
    let begun = Instant::now();
    let old = acquire(&*ground.store, &Terms { lease, ..ground.terms() }, &message).await?;
    let terms = ground.terms();
    let grant = await_grant(&ground, &terms, &message).await?;
    ensure(begun.elapsed() + TICKS >= lease, || {
        format!("a lease of {lease:?} was taken over after {:?}", begun.elapsed())
    })?;
    let fence = Fence::new(old.token.fence.get() + 1);
    let token = crate::record::Token { owner: terms.owner, fence };
    same("the takeover", &grant, &Grant { token, attempt: 2, took_over: true })
}

pub(super) async fn a_retry_is_due_on_the_stores_clock(ground: Ground) -> Check {
    let message = ground.message();
    let pause = Duration::from_millis(80);
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    let begun = Instant::now();
    settled(&*ground.store, &held, failed(pause)).await?;
    let grant = await_grant(&ground, &ground.terms(), &message).await?;
    ensure(begun.elapsed() + TICKS >= pause, || {
        format!("a message to be tried after {pause:?} was claimed after {:?}", begun.elapsed())
    })?;
    ensure(!grant.took_over && grant.attempt == 2, || format!("the retry was granted as {grant:?}"))
}

/// A claim whose lease ran out and that nobody took over.
async fn ran_out(ground: &Ground) -> Check<Held> {
    let held = acquire(&*ground.store, &Terms { lease: SHORT, ..ground.terms() }, &ground.message()).await?;
    ground.ran_out(&*ground.store).await?;
    Ok(held)
}

pub(super) async fn a_claim_that_ran_out_may_still_succeed(ground: Ground) -> Check {
    let held = ran_out(&ground).await?;
    settled(&*ground.store, &held, succeeded()).await?;
    let record = known(&*ground.store, &held.message).await?;
    ensure(matches!(record.state, State::Succeeded { late: false, .. }), || format!("it reads as {record:?}"))
}

pub(super) async fn a_claim_that_ran_out_may_still_fail(ground: Ground) -> Check {
    let held = ran_out(&ground).await?;
    settled(&*ground.store, &held, failed(LONG)).await?;
    let held = ran_out(&ground).await?;
    settled(&*ground.store, &held, Verdict::Released).await?;
    let held = ran_out(&ground).await?;
    settled(&*ground.store, &held, Verdict::Dead).await
}

pub(super) async fn a_claim_that_ran_out_may_be_extended(ground: Ground) -> Check {
    let held = ran_out(&ground).await?;
    same("extending a claim that ran out", &extend(&*ground.store, &held, LONG).await?, &ExtendOutcome::Held)?;
    in_flight(&ground, &held.message, "the lease was extended by an hour").await
}

pub(super) async fn extending_prolongs_the_lease(ground: Ground) -> Check {
    let terms = Terms { lease: Duration::from_secs(20), ..ground.terms() };
    let held = acquire(&*ground.store, &terms, &ground.message()).await?;
    let end = known(&*ground.store, &held.message).await?.state.time();
    same("extending", &extend(&*ground.store, &held, LONG).await?, &ExtendOutcome::Held)?;
    let longer = known(&*ground.store, &held.message).await?;
    ensure(matches!(longer.state, State::Processing { until } if until >= end + 3_000_000), || {
        format!("a lease until {end} extended by an hour reads as {longer:?}")
    })?;
    same("the token after extending", &longer.token(), &held.token)?;
    in_flight(&ground, &held.message, "the lease was extended by an hour").await
}

pub(super) async fn extending_never_shortens(ground: Ground) -> Check {
    let held = acquire(&*ground.store, &ground.terms(), &ground.message()).await?;
    let before = known(&*ground.store, &held.message).await?;
    for lease in [SHORT, Duration::ZERO, Duration::from_micros(1)] {
        same("extending by less", &extend(&*ground.store, &held, lease).await?, &ExtendOutcome::Held)?;
        same("the record after that", &known(&*ground.store, &held.message).await?, &before)?;
    }
    ground.ran_out(&*ground.store).await?;
    in_flight(&ground, &held.message, "the lease is an hour, extended by less").await
}

pub(super) async fn claiming_again_prolongs_the_lease(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    acquire(&*ground.store, &Terms { lease: SHORT, ..terms }, &message).await?;
    ground.ran_out(&*ground.store).await?;
    let held = acquire(&*ground.store, &terms, &message).await?;
    same("the attempt of a claim asked for again", &held.attempt, &1)?;
    in_flight(&ground, &message, "the claim was asked for again with an hour").await
}

pub(super) async fn claiming_again_never_shortens(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    acquire(&*ground.store, &terms, &message).await?;
    let before = known(&*ground.store, &message).await?;
    acquire(&*ground.store, &Terms { lease: SHORT, ..terms }, &message).await?;
    same("the record asked for again", &known(&*ground.store, &message).await?, &before)?;
    ground.ran_out(&*ground.store).await?;
    in_flight(&ground, &message, "the lease is an hour, asked for again with less").await
}

pub(super) async fn extensions_follow_the_record_from_every_state(ground: Ground) -> Check {
    for who in ["the current token", "the first claim's token", "the right fence of a wrong owner", "a wrong fence"] {
        for lease in [LONG * 2, SHORT] {
            let stories = one_of_each(&ground, &*ground.store).await?;
            let stranger = ground.owner();
            let holder = |story: &super::pasts::Story| match who {
                "the current token" => story.current(),
                "the first claim's token" => story.first.clone(),
                "a wrong fence" => story.wrong_fence(),
                _ => story.foreign(stranger),
            };
            let asks: Vec<_> = stories.iter().map(|story| holder(story).extend(lease)).collect();
            let got = extend_all(&*ground.store, asks.clone()).await?;
            for ((story, ask), got) in stories.iter().zip(&asks).zip(&got) {
                let what = format!("extending by {lease:?} with {who} a claim that is {:?}", story.past);
                let mut step = record::extend(story.record.as_ref(), ask, story.now());
                same(&what, got, &step.outcome)?;
                if story.past == Past::RanOut {
                    // Prolonged from the store's own time: leave the time out.
                    step.write = step.write.or_else(|| story.record.clone());
                }
                same_record(&*ground.store, &what, story, &step).await?;
            }
        }
    }
    Ok(())
}

pub(super) async fn a_taken_over_claim_is_lost(ground: Ground) -> Check {
    let old = ran_out(&ground).await?;
    let new = acquire(&*ground.store, &ground.terms(), &old.message).await?;
    let record = known(&*ground.store, &old.message).await?;
    same("the old owner's extension", &extend(&*ground.store, &old, LONG * 2).await?, &ExtendOutcome::Lost)?;
    same("the record after that", &known(&*ground.store, &old.message).await?, &record)?;
    same("the taker's extension", &extend(&*ground.store, &new, LONG).await?, &ExtendOutcome::Held)
}

pub(super) async fn crashes_use_up_the_attempts(ground: Ground) -> Check {
    let message = ground.message();
    let terms = || Terms { lease: SHORT, max_attempts: attempts(3), ..ground.terms() };
    for attempt in 1..=3 {
        // Each owner vanishes without a word.
        let grant = await_grant(&ground, &terms(), &message).await?;
        same("the attempt", &grant.attempt, &attempt)?;
        same("the fence", &grant.token.fence, &Fence::new(u64::from(attempt)))?;
        same("whether it took over", &grant.took_over, &(attempt > 1))?;
    }
    ground.ran_out(&*ground.store).await?;
    let got = claim(&*ground.store, &terms(), &message).await?;
    same("a claim after three owners vanished", &got, &ClaimOutcome::Dead { attempts: 3 })
}

pub(super) async fn the_fence_grows_all_life_long(ground: Ground) -> Check {
    let message = ground.message();
    let mut last = 0;
    let mut seen = Vec::new();
    for turn in 0..12_u32 {
        let terms = Terms { lease: SHORT, max_attempts: attempts(1000), ..ground.terms() };
        let grant = await_grant(&ground, &terms, &message).await?;
        ensure(grant.token.fence.get() > last, || {
            format!("turn {turn} was granted {:?} after fence {last}", grant.token.fence)
        })?;
        last = grant.token.fence.get();
        let held = Held { message: message.clone(), token: grant.token, attempt: grant.attempt };
        match turn % 4 {
            0 => {}
            1 => settled(&*ground.store, &held, failed(Duration::ZERO)).await?,
            2 => settled(&*ground.store, &held, Verdict::Released).await?,
            _ => {
                settled(&*ground.store, &held, Verdict::Dead).await?;
                requeue(&*ground.store, &message).await?;
            }
        }
        seen.push(held);
        let stands = known(&*ground.store, &message).await?.fence.get();
        ensure(stands >= last, || format!("the fence fell from {last} to {stands}"))?;
    }
    let holder = acquire(&*ground.store, &ground.terms(), &message).await?;
    for old in &seen {
        let got = settle(&*ground.store, old, Verdict::Released).await?;
        same("a release by an earlier token", &got, &crate::record::SettleOutcome::Refused)?;
    }
    settled(&*ground.store, &holder, succeeded()).await
}

pub(super) async fn the_shortest_leases_work(ground: Ground) -> Check {
    for lease in [SHORT, Duration::from_micros(10), Duration::ZERO] {
        let messages = ground.messages(3);
        let terms = Terms { lease, ..ground.terms() };
        let held = acquire_all(&*ground.store, &terms, &messages).await?;
        settled(&*ground.store, &held[0], succeeded()).await?;
        settled(&*ground.store, &held[1], failed(lease)).await?;
        for message in &messages[1..] {
            await_grant(&ground, &ground.terms(), message).await?;
        }
    }
    Ok(())
}

pub(super) async fn huge_durations_saturate(ground: Ground) -> Check {
    for lease in [Duration::MAX, Duration::from_millis(i64::MAX.unsigned_abs()), Duration::from_secs(u64::MAX / 2)] {
        let messages = ground.messages(2);
        let held = acquire_all(&*ground.store, &Terms { lease, ..ground.terms() }, &messages).await?;
        in_flight(&ground, &messages[0], "the lease is as long as can be").await?;
        let terms = Terms { lease, owner: held[0].token.owner, ..ground.terms() };
        let again = acquire(&*ground.store, &terms, &messages[0]).await?;
        same("the token asked for again", &again.token, &held[0].token)?;
        same("extending", &extend(&*ground.store, &held[0], lease).await?, &ExtendOutcome::Held)?;
        settled(&*ground.store, &held[0], succeeded()).await?;
        settled(&*ground.store, &held[1], failed(lease)).await?;
        let got = claim(&*ground.store, &ground.terms(), &messages[1]).await?;
        ensure(matches!(got, ClaimOutcome::NotDue { .. }), || {
            format!("a message to be tried at the end of time answers {got:?}")
        })?;
        let brief = acquire(&*ground.store, &Terms { lease: SHORT, ..ground.terms() }, &ground.message()).await?;
        same("extending", &extend(&*ground.store, &brief, lease).await?, &ExtendOutcome::Held)?;
        ground.ran_out(&*ground.store).await?;
        in_flight(&ground, &brief.message, "the lease was extended as far as can be").await?;
        granted(&claim(&*ground.store, &Terms { owner: brief.token.owner, ..ground.terms() }, &brief.message).await?)?;
    }
    Ok(())
}
