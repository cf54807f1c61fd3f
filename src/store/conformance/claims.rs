//! What a claim answers.

use std::time::Duration;

use super::asks::{
    acquire, ask_all, claim, failed, failed_for_good, granted, known, records, settle, settled, succeeded,
    succeeded_with,
};
use super::ground::{Check, Ground, LONG, another, attempts, ensure, same};
use super::pasts::{Past, one_of_each, same_claim, same_record};
use crate::record::{self, ClaimOutcome, Fence, Grant, Origin, Seen, Sighting, State, Terms, Token, Verdict};
use crate::store::Ask;

pub(super) async fn an_unknown_message_is_acquired(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let got = claim(&*ground.store, &terms, &message).await?;
    let token = Token { owner: terms.owner, fence: Fence::FIRST };
    same("a first claim", &got, &ClaimOutcome::Acquired(Grant { token, attempt: 1, took_over: false }))?;
    let record = known(&*ground.store, &message).await?;
    ensure(matches!(record.state, State::Processing { .. }), || format!("it reads as {record:?}"))?;
    same("the token kept", &record.token(), &token)?;
    same("the attempts kept", &record.attempts, &1)?;
    same("the fingerprint kept", &record.fingerprint, &message.fingerprint)?;
    same("the origin kept", &record.origin, &message.origin)?;
    same("the result kept", &record.result, &None)
}

pub(super) async fn a_held_message_is_in_flight(ground: Ground) -> Check {
    let message = ground.message();
    acquire(&*ground.store, &ground.terms(), &message).await?;
    for store in ground.handles() {
        match claim(&**store, &ground.terms(), &message).await? {
            ClaimOutcome::InFlight { remaining } => ensure(remaining <= LONG && remaining > LONG / 2, || {
                format!("a lease of an hour is said to run for {remaining:?}")
            })?,
            other => return Err(format!("a message that another owner holds answers {other:?}")),
        }
    }
    same("the attempts of a message asked for by others", &known(&*ground.store, &message).await?.attempts, &1)
}

pub(super) async fn claiming_again_is_the_same_claim(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let first = claim(&*ground.store, &terms, &message).await?;
    for store in ground.handles() {
        same("the claim asked for again", &claim(&**store, &terms, &message).await?, &first)?;
    }
    let record = known(&*ground.store, &message).await?;
    same("the attempts of one claim asked for thrice", &record.attempts, &1)?;
    same("the fence of one claim asked for thrice", &record.token(), &granted(&first)?.token)
}

pub(super) async fn a_succeeded_message_is_a_duplicate(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let held = acquire(&*ground.store, &terms, &message).await?;
    settled(&*ground.store, &held, succeeded_with("made")).await?;
    let record = known(&*ground.store, &message).await?;
    let copy = Sighting { origin: Origin { topic: "copies".into(), partition: 1, offset: 99 }, ..message.clone() };
    let want = ClaimOutcome::Duplicate {
        result: Some("made".into()),
        first: Seen { origin: message.origin.clone(), at: record.state.time() },
    };
    for store in ground.handles() {
        same_claim(&ground, "a copy, to another owner", &claim(&**store, &ground.terms(), &copy).await?, &want)?;
        same_claim(&ground, "a copy, to the same owner", &claim(&**store, &terms, &copy).await?, &want)?;
    }
    same("the record of a message seen again", &known(&*ground.store, &message).await?, &record)
}

pub(super) async fn a_failed_message_waits_until_due(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let held = acquire(&*ground.store, &terms, &message).await?;
    settled(&*ground.store, &held, failed(LONG)).await?;
    for terms in [terms, ground.terms()] {
        match claim(&*ground.store, &terms, &message).await? {
            ClaimOutcome::NotDue { remaining } => ensure(remaining <= LONG && remaining > LONG / 2, || {
                format!("a message to be tried in an hour is due in {remaining:?}")
            })?,
            other => return Err(format!("a message to be tried in an hour answers {other:?}")),
        }
    }
    Ok(())
}

pub(super) async fn a_due_message_is_the_next_attempt(ground: Ground) -> Check {
    let message = ground.message();
    let mut terms = ground.terms();
    let mut held = acquire(&*ground.store, &terms, &message).await?;
    for attempt in 2..=4 {
        settled(&*ground.store, &held, failed(Duration::ZERO)).await?;
        if attempt == 3 {
            terms = ground.terms();
        }
        let next = granted(&claim(&*ground.store, &terms, &message).await?)?;
        let want = Grant {
            token: Token { owner: terms.owner, fence: Fence::new(u64::from(attempt)) },
            attempt,
            took_over: false,
        };
        same("the claim of a due message", &next, &want)?;
        held.token = next.token;
        held.attempt = next.attempt;
    }
    Ok(())
}

pub(super) async fn a_released_message_repeats_its_attempt(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    settled(&*ground.store, &held, Verdict::Released).await?;
    same("the attempts after a release", &known(&*ground.store, &message).await?.attempts, &0)?;
    let terms = ground.terms();
    let got = claim(&*ground.store, &terms, &message).await?;
    let token = Token { owner: terms.owner, fence: Fence::new(2) };
    same("a claim after a release", &got, &ClaimOutcome::Acquired(Grant { token, attempt: 1, took_over: false }))
}

pub(super) async fn a_dead_message_stays_dead(ground: Ground) -> Check {
    let (given_up, used_up) = (ground.message(), ground.message());
    let terms = ground.terms();
    let held = acquire(&*ground.store, &terms, &given_up).await?;
    settled(&*ground.store, &held, Verdict::Dead).await?;
    let held = acquire(&*ground.store, &terms, &used_up).await?;
    settled(&*ground.store, &held, failed_for_good()).await?;
    for message in [given_up, used_up] {
        for terms in [terms, Terms { max_attempts: attempts(u32::MAX), ..ground.terms() }] {
            let got = claim(&*ground.other, &terms, &message).await?;
            same("a dead message", &got, &ClaimOutcome::Dead { attempts: 1 })?;
        }
    }
    Ok(())
}

pub(super) async fn used_up_attempts_bury_at_the_claim(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    settled(&*ground.store, &held, failed(Duration::ZERO)).await?;
    // The next owner allows fewer attempts than were made.
    let strict = Terms { max_attempts: attempts(1), ..ground.terms() };
    same(
        "a claim beyond its attempts",
        &claim(&*ground.store, &strict, &message).await?,
        &ClaimOutcome::Dead { attempts: 1 },
    )?;
    let record = known(&*ground.store, &message).await?;
    ensure(matches!(record.state, State::Dead { .. }), || format!("it should be dead, and reads as {record:?}"))?;
    same(
        "a claim after that",
        &claim(&*ground.store, &ground.terms(), &message).await?,
        &ClaimOutcome::Dead { attempts: 1 },
    )
}

pub(super) async fn another_fingerprint_is_a_conflict(ground: Ground) -> Check {
    for story in one_of_each(&ground, &*ground.store).await? {
        let Some(record) = &story.record else { continue };
        let liar = Sighting {
            fingerprint: another(record.fingerprint),
            origin: Origin { topic: "elsewhere".into(), partition: 0, offset: 1 },
            ..story.message().clone()
        };
        let first = Seen { origin: record.origin.clone(), at: record.state.time() };
        for terms in [ground.terms(), Terms { owner: record.owner, ..ground.terms() }] {
            let got = claim(&*ground.store, &terms, &liar).await?;
            let what = format!("another body for a message that is {:?}", story.past);
            same_claim(&ground, &what, &got, &ClaimOutcome::Conflict { first: first.clone() })?;
        }
        same("the record after a conflict", &known(&*ground.store, story.message()).await?, record)?;
    }
    Ok(())
}

pub(super) async fn the_first_origin_is_kept(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    settled(&*ground.store, &held, failed(Duration::ZERO)).await?;
    let copy = Sighting { origin: Origin { topic: "copies".into(), partition: 3, offset: 4 }, ..message.clone() };
    let held = acquire(&*ground.store, &ground.terms(), &copy).await?;
    same("the origin after a claim by a copy", &known(&*ground.store, &message).await?.origin, &message.origin)?;
    settle(&*ground.store, &held, succeeded()).await?;
    same("the origin after the copy succeeded", &known(&*ground.store, &message).await?.origin, &message.origin)
}

pub(super) async fn claims_follow_the_record_from_every_state(ground: Ground) -> Check {
    follows(&ground, |_| false).await
}

pub(super) async fn reading_first_changes_no_outcome(ground: Ground) -> Check {
    follows(&ground, |_| true).await?;
    follows(&ground, |place| place % 2 == 0).await?;
    follows(&ground, |place| place % 3 == 0).await
}

/// Claims one message of each past, on several terms, and compares with the pure record.
async fn follows(ground: &Ground, read_first: impl Fn(usize) -> bool + Send) -> Check {
    let strange = ground.terms();
    let asking: [(&str, Option<Terms>); 4] = [
        ("its own owner", None),
        ("another owner", Some(strange)),
        ("another owner who allows one attempt", Some(Terms { max_attempts: attempts(1), ..ground.terms() })),
        ("another owner who allows many attempts", Some(Terms { max_attempts: attempts(u32::MAX), ..ground.terms() })),
    ];
    for (who, terms) in asking {
        let stories = one_of_each(ground, &*ground.store).await?;
        // All first claims are by one owner; who took over is somebody else.
        let own = stories.iter().find(|story| story.past == Past::Held).map(|story| story.first.token.owner);
        let terms = terms.unwrap_or(Terms { owner: own.unwrap_or(strange.owner), ..strange });
        let asks = stories
            .iter()
            .enumerate()
            .map(|(place, story)| Ask { sighting: story.message().clone(), read_first: read_first(place) });
        let got = ask_all(&*ground.store, &terms, asks.collect()).await?;
        for (story, got) in stories.iter().zip(&got) {
            let what = format!("a claim by {who} of a message that is {:?}", story.past);
            let mut step = record::claim(story.record.as_ref(), story.message(), &terms, story.now());
            same_claim(ground, &what, got, &step.outcome)?;
            if story.past == Past::Held {
                // Prolonged or not, by a millisecond: leave the time out.
                step.write = step.write.or_else(|| story.record.clone());
            }
            same_record(&*ground.store, &what, story, &step).await?;
        }
    }
    Ok(())
}

pub(super) async fn handles_see_each_others_claims(ground: Ground) -> Check {
    let messages = ground.messages(8);
    let terms = ground.terms();
    for message in &messages {
        let held = acquire(&*ground.store, &terms, message).await?;
        let seen = claim(&*ground.other, &ground.terms(), message).await?;
        ensure(matches!(seen, ClaimOutcome::InFlight { .. }), || {
            format!("a message held through one handle answers {seen:?} through the other")
        })?;
        settled(&*ground.other, &held, succeeded_with("one")).await?;
        let seen = claim(&*ground.store, &ground.terms(), message).await?;
        ensure(matches!(seen, ClaimOutcome::Duplicate { .. }), || {
            format!("a message settled through the other handle answers {seen:?}")
        })?;
    }
    let (one, two) = (records(&*ground.store, &messages).await?, records(&*ground.other, &messages).await?);
    same("the records through two handles", &one, &two)
}
