//! What settling answers.

use std::time::Duration;

use super::asks::{
    Held, acquire, claim, extend, failed, failed_for_good, granted, known, record, settle, settle_all, settled,
    succeeded, succeeded_with,
};
use super::ground::{Check, Ground, LONG, SHORT, another, attempts, ensure, same};
use super::pasts::{one_of_each, same_record};
use crate::record::{self, ClaimOutcome, ExtendOutcome, Fence, SettleOutcome, Sighting, State, Terms, Token, Verdict};

/// The same claim, as a message would hold it that says something else.
fn another_message(held: Held) -> Held {
    let fingerprint = another(held.message.fingerprint);
    Held { message: Sighting { fingerprint, ..held.message }, ..held }
}

/// Settles one message of each past with current and stale tokens, and compares with the pure record.
async fn follows(ground: &Ground, verdict: impl Fn() -> Verdict + Send) -> Check {
    for who in [
        "the current token",
        "the current token of another message",
        "the first claim's token",
        "the right fence of a wrong owner",
        "a wrong fence",
    ] {
        let stories = one_of_each(ground, &*ground.store).await?;
        let stranger = ground.owner();
        let holder = |story: &super::pasts::Story| match who {
            "the current token" => story.current(),
            "the current token of another message" => another_message(story.current()),
            "the first claim's token" => story.first.clone(),
            "a wrong fence" => story.wrong_fence(),
            _ => story.foreign(stranger),
        };
        let settles: Vec<_> = stories.iter().map(|story| holder(story).settle(verdict())).collect();
        let got = settle_all(&*ground.store, settles.clone()).await?;
        for ((story, ask), got) in stories.iter().zip(&settles).zip(&got) {
            let what = format!("{:?} with {who} of a message that is {:?}", ask.verdict, story.past);
            let step = record::settle(story.record.as_ref(), ask, story.now());
            same(&what, got, &step.outcome)?;
            same_record(&*ground.store, &what, story, &step).await?;
        }
    }
    Ok(())
}

pub(super) async fn success_follows_the_record_from_every_state(ground: Ground) -> Check {
    follows(&ground, || succeeded_with("kept")).await
}

pub(super) async fn failure_follows_the_record_from_every_state(ground: Ground) -> Check {
    follows(&ground, || failed(LONG)).await
}

pub(super) async fn last_failure_follows_the_record_from_every_state(ground: Ground) -> Check {
    follows(&ground, failed_for_good).await
}

pub(super) async fn release_follows_the_record_from_every_state(ground: Ground) -> Check {
    follows(&ground, || Verdict::Released).await
}

pub(super) async fn giving_up_follows_the_record_from_every_state(ground: Ground) -> Check {
    follows(&ground, || Verdict::Dead).await
}

/// Settles thrice, through both handles: the answer must repeat, and the record must stand.
async fn repeats(ground: &Ground, held: &Held, verdict: &Verdict, want: SettleOutcome) -> Check {
    same("the first answer", &settle(&*ground.store, held, verdict.clone()).await?, &want)?;
    let before = known(&*ground.store, &held.message).await?;
    for store in ground.handles() {
        same("the answer when asked again", &settle(&**store, held, verdict.clone()).await?, &want)?;
        same("the record when asked again", &known(&**store, &held.message).await?, &before)?;
    }
    Ok(())
}

pub(super) async fn succeeding_twice_changes_nothing(ground: Ground) -> Check {
    let held = acquire(&*ground.store, &ground.terms(), &ground.message()).await?;
    repeats(&ground, &held, &succeeded_with("once"), SettleOutcome::Settled).await
}

pub(super) async fn failing_twice_changes_nothing(ground: Ground) -> Check {
    let held = acquire(&*ground.store, &ground.terms(), &ground.message()).await?;
    repeats(&ground, &held, &failed(LONG), SettleOutcome::Settled).await
}

pub(super) async fn releasing_twice_counts_once(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let first = acquire(&*ground.store, &terms, &message).await?;
    settled(&*ground.store, &first, failed(Duration::ZERO)).await?;
    let held = acquire(&*ground.store, &terms, &message).await?;
    repeats(&ground, &held, &Verdict::Released, SettleOutcome::Settled).await?;
    same("the attempts after one failure and a release", &known(&*ground.store, &message).await?.attempts, &1)
}

pub(super) async fn giving_up_twice_changes_nothing(ground: Ground) -> Check {
    let held = acquire(&*ground.store, &ground.terms(), &ground.message()).await?;
    repeats(&ground, &held, &Verdict::Dead, SettleOutcome::Settled).await
}

pub(super) async fn the_last_failure_buries(ground: Ground) -> Check {
    let message = ground.message();
    let first = acquire(&*ground.store, &ground.terms(), &message).await?;
    let two = || Verdict::Failed { retry_in: Duration::ZERO, max_attempts: attempts(2) };
    same("the first failure of two", &settle(&*ground.store, &first, two()).await?, &SettleOutcome::Settled)?;
    let second = acquire(&*ground.store, &ground.terms(), &message).await?;
    repeats(&ground, &second, &two(), SettleOutcome::Buried).await?;
    let got = claim(&*ground.store, &ground.terms(), &message).await?;
    same("a claim of a buried message", &got, &ClaimOutcome::Dead { attempts: 2 })
}

/// A claim whose lease ran out, and the claim that took it over.
async fn taken_over(ground: &Ground) -> Check<(Held, Held)> {
    let message = ground.message();
    let old = acquire(&*ground.store, &Terms { lease: SHORT, ..ground.terms() }, &message).await?;
    ground.ran_out(&*ground.store).await?;
    let terms = ground.terms();
    let grant = granted(&claim(&*ground.store, &terms, &message).await?)?;
    ensure(grant.took_over, || "a takeover does not say that it took over".into())?;
    Ok((old, Held { message, token: grant.token, attempt: grant.attempt }))
}

pub(super) async fn a_late_success_is_remembered(ground: Ground) -> Check {
    let (old, new) = taken_over(&ground).await?;
    repeats(&ground, &old, &succeeded_with("old"), SettleOutcome::Late).await?;
    let record = known(&*ground.store, &old.message).await?;
    ensure(matches!(record.state, State::Succeeded { late: true, .. }), || format!("it reads as {record:?}"))?;
    let got = settle(&*ground.store, &new, failed(LONG)).await?;
    same("the taker's failure after a late success", &got, &SettleOutcome::Refused)?;
    let got = settle(&*ground.store, &new, succeeded_with("new")).await?;
    same("the taker's success after a late success", &got, &SettleOutcome::Late)?;
    same("the record after both", &known(&*ground.store, &old.message).await?, &record)?;
    let got = claim(&*ground.store, &ground.terms(), &old.message).await?;
    ensure(matches!(&got, ClaimOutcome::Duplicate { result: Some(result), .. } if result == "old"), || {
        format!("a message that succeeded late answers {got:?}")
    })
}

pub(super) async fn a_late_success_undoes_a_failure(ground: Ground) -> Check {
    let (old, new) = taken_over(&ground).await?;
    settled(&*ground.store, &new, failed(LONG)).await?;
    repeats(&ground, &old, &succeeded(), SettleOutcome::Late).await?;
    let got = claim(&*ground.store, &ground.terms(), &old.message).await?;
    ensure(matches!(got, ClaimOutcome::Duplicate { .. }), || format!("it answers {got:?}"))
}

pub(super) async fn a_late_success_undoes_death(ground: Ground) -> Check {
    let (old, new) = taken_over(&ground).await?;
    settled(&*ground.store, &new, Verdict::Dead).await?;
    repeats(&ground, &old, &succeeded(), SettleOutcome::Late).await?;
    let got = claim(&*ground.store, &ground.terms(), &old.message).await?;
    ensure(matches!(got, ClaimOutcome::Duplicate { .. }), || format!("it answers {got:?}"))
}

pub(super) async fn a_forgotten_success_is_remembered(ground: Ground) -> Check {
    let message = ground.message();
    let token = Token { owner: ground.owner(), fence: Fence::new(6) };
    let held = Held { message: message.clone(), token, attempt: 4 };
    for verdict in [failed(LONG), failed_for_good(), Verdict::Released, Verdict::Dead] {
        let what = format!("{verdict:?} of a forgotten message");
        same(&what, &settle(&*ground.store, &held, verdict).await?, &SettleOutcome::Refused)?;
        let stands = record(&*ground.store, &message).await?;
        ensure(stands.is_none(), || format!("{what} left {stands:?}"))?;
    }
    same("extending a forgotten claim", &extend(&*ground.store, &held, LONG).await?, &ExtendOutcome::Lost)?;
    repeats(&ground, &held, &succeeded_with("kept"), SettleOutcome::Late).await?;
    let record = known(&*ground.store, &message).await?;
    ensure(matches!(record.state, State::Succeeded { late: true, .. }), || format!("it reads as {record:?}"))?;
    same("the token", &record.token(), &token)?;
    same("the attempts", &record.attempts, &4)?;
    same("the fingerprint", &record.fingerprint, &message.fingerprint)?;
    same("the origin", &record.origin, &message.origin)?;
    let got = claim(&*ground.store, &ground.terms(), &message).await?;
    ensure(matches!(got, ClaimOutcome::Duplicate { .. }), || format!("it answers {got:?}"))
}

pub(super) async fn a_success_of_another_message_is_refused(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    let stands = known(&*ground.store, &message).await?;
    let liar = Held {
        message: Sighting { fingerprint: another(message.fingerprint), ..message.clone() },
        token: Token { owner: ground.owner(), fence: Fence::FIRST },
        attempt: 1,
    };
    same("another message's success", &settle(&*ground.store, &liar, succeeded()).await?, &SettleOutcome::Refused)?;
    same("the record after that", &known(&*ground.store, &message).await?, &stands)?;
    settled(&*ground.store, &held, succeeded()).await?;
    let stands = known(&*ground.store, &message).await?;
    same(
        "another message's success, later",
        &settle(&*ground.store, &liar, succeeded()).await?,
        &SettleOutcome::Refused,
    )?;
    same("the record after that", &known(&*ground.store, &message).await?, &stands)
}

/// A store that forgot a record may have granted its identity to another message since, to the same owner and so with an equal token.
pub(super) async fn an_end_of_another_message_is_refused(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    let liar = another_message(held.clone());
    for moment in ["while it is handled", "after it failed"] {
        let stands = known(&*ground.store, &message).await?;
        for verdict in [failed(Duration::ZERO), failed_for_good(), Verdict::Released, Verdict::Dead] {
            let what = format!("{verdict:?} of another message with an equal token, {moment}");
            same(&what, &settle(&*ground.store, &liar, verdict).await?, &SettleOutcome::Refused)?;
            same("the record after that", &known(&*ground.store, &message).await?, &stands)?;
        }
        settled(&*ground.store, &held, failed(LONG)).await?;
    }
    Ok(())
}

/// What a stale owner asks for must be refused while the taker holds, and after it has failed.
async fn stale(ground: &Ground, verdict: Verdict) -> Check {
    let (old, new) = taken_over(ground).await?;
    let held = known(&*ground.store, &new.message).await?;
    same("what a stale owner asks", &settle(&*ground.store, &old, verdict.clone()).await?, &SettleOutcome::Refused)?;
    same("the taker's record after that", &known(&*ground.store, &new.message).await?, &held)?;
    same("the taker's claim after that", &extend(&*ground.store, &new, LONG).await?, &ExtendOutcome::Held)?;
    settled(&*ground.store, &new, failed(LONG)).await?;
    let failed = known(&*ground.store, &new.message).await?;
    same("what a stale owner asks later", &settle(&*ground.store, &old, verdict).await?, &SettleOutcome::Refused)?;
    same("the failed record after that", &known(&*ground.store, &new.message).await?, &failed)
}

pub(super) async fn a_stale_failure_is_refused(ground: Ground) -> Check {
    stale(&ground, failed(Duration::ZERO)).await?;
    stale(&ground, failed_for_good()).await
}

pub(super) async fn a_stale_release_is_refused(ground: Ground) -> Check {
    stale(&ground, Verdict::Released).await
}

pub(super) async fn a_stale_giving_up_is_refused(ground: Ground) -> Check {
    stale(&ground, Verdict::Dead).await
}

pub(super) async fn a_guessed_token_is_refused(ground: Ground) -> Check {
    let (terms, message) = (ground.terms(), ground.message());
    let first = acquire(&*ground.store, &terms, &message).await?;
    settled(&*ground.store, &first, failed(Duration::ZERO)).await?;
    let held = acquire(&*ground.store, &terms, &message).await?;
    let stands = known(&*ground.store, &message).await?;
    let fence = held.token.fence.get();
    let guesses = [
        first.token,
        Token { fence: Fence::new(fence + 1), ..held.token },
        Token { fence: Fence::new(0), ..held.token },
        Token { fence: Fence::new(u64::MAX), ..held.token },
        Token { owner: ground.owner(), ..held.token },
    ];
    for token in guesses {
        let guess = Held { token, ..held.clone() };
        for verdict in [failed(Duration::ZERO), failed_for_good(), Verdict::Released, Verdict::Dead] {
            let what = format!("{verdict:?} with {token:?} while {:?} is current", held.token);
            same(&what, &settle(&*ground.store, &guess, verdict).await?, &SettleOutcome::Refused)?;
        }
        same("extending with a guessed token", &extend(&*ground.store, &guess, LONG * 2).await?, &ExtendOutcome::Lost)?;
        same("the record after guesses", &known(&*ground.store, &message).await?, &stands)?;
    }
    settled(&*ground.store, &held, succeeded()).await
}

pub(super) async fn success_is_never_undone(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    settled(&*ground.store, &held, succeeded_with("made")).await?;
    let record = known(&*ground.store, &message).await?;
    for verdict in [failed(Duration::ZERO), failed_for_good(), Verdict::Released, Verdict::Dead] {
        let what = format!("{verdict:?} after success");
        same(&what, &settle(&*ground.store, &held, verdict).await?, &SettleOutcome::Refused)?;
    }
    same("extending after success", &extend(&*ground.store, &held, LONG).await?, &ExtendOutcome::Lost)?;
    let got = super::asks::requeue(&*ground.store, &message).await?;
    same("requeueing after success", &got, &crate::record::RequeueOutcome::NotDead)?;
    for terms in [ground.terms(), Terms { owner: held.token.owner, max_attempts: attempts(1), ..ground.terms() }] {
        let got = claim(&*ground.store, &terms, &message).await?;
        ensure(matches!(got, ClaimOutcome::Duplicate { .. }), || format!("a claim after success answers {got:?}"))?;
    }
    same("the record after all that", &known(&*ground.store, &message).await?, &record)
}

pub(super) async fn the_first_result_stays(ground: Ground) -> Check {
    let message = ground.message();
    let held = acquire(&*ground.store, &ground.terms(), &message).await?;
    settled(&*ground.store, &held, succeeded_with("first")).await?;
    settle(&*ground.store, &held, succeeded_with("second")).await?;
    settle(&*ground.store, &held, succeeded()).await?;
    let stranger = Held { token: Token { owner: ground.owner(), ..held.token }, ..held };
    settle(&*ground.store, &stranger, succeeded_with("third")).await?;
    let result = known(&*ground.store, &message).await?.result;
    same("the result kept", &result, &Some("first".into()))
}
