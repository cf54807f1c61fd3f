//! The suite proves itself: each of these stores has one flaw, and is caught by a case that names it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hapax::store::conformance::{Suite, Verdicts};
use hapax::store::{DedupStore, Retention};

use crate::flawed::{Flaw, Flawed};

fn suite(flaw: Flaw) -> Suite {
    let shared = Flawed::new(flaw, Retention::default());
    let handles = AtomicI64::new(0);
    Suite::new(move |retention| {
        let store = if retention == Retention::default() {
            shared.another(handles.fetch_add(1, Ordering::Relaxed))
        } else {
            Flawed::new(flaw, retention)
        };
        async move { Ok(Arc::new(store) as Arc<dyn DedupStore>) }
    })
}

/// Each flaw, with a case that must catch it. Others may catch it too.
const CAUGHT: &[(Flaw, &str)] = &[
    (Flaw::CompletesWithoutToken, "a_late_success_is_remembered"),
    (Flaw::FailsWithoutToken, "a_stale_failure_is_refused"),
    (Flaw::ReleasesWithoutToken, "a_stale_release_is_refused"),
    (Flaw::GivesUpWithoutToken, "a_stale_giving_up_is_refused"),
    (Flaw::DeletesOnFailure, "a_failed_message_waits_until_due"),
    (Flaw::DeletesOnRelease, "a_released_message_repeats_its_attempt"),
    (Flaw::DuplicatesAreAcquired, "a_succeeded_message_is_a_duplicate"),
    (Flaw::ChecksThenActs, "one_of_eight_owners_wins"),
    (Flaw::AnswersUnsorted, "answers_stand_in_the_order_asked"),
    (Flaw::AnswersTooFew, "a_batch_of_512_lives_its_life"),
    (Flaw::ForgetsAttempts, "crashes_use_up_the_attempts"),
    (Flaw::CountsAttemptsWhenSettled, "crashes_use_up_the_attempts"),
    (Flaw::LeaseOnClientsClock, "a_held_message_is_in_flight"),
    (Flaw::LeaseIsIgnored, "a_held_message_is_in_flight"),
    (Flaw::LeaseEndsEarly, "a_lease_runs_out_and_is_taken_over"),
    (Flaw::TakeoverKeepsFence, "takeovers_in_turn_have_growing_fences"),
    (Flaw::TakeoverSaysNothing, "a_lease_runs_out_and_is_taken_over"),
    (Flaw::NotReentrant, "claiming_again_is_the_same_claim"),
    (Flaw::ReentrantByAnybody, "one_of_two_owners_wins"),
    (Flaw::ReentrantTakesNewFence, "claiming_again_is_the_same_claim"),
    (Flaw::RefusesLateSuccess, "a_late_success_is_remembered"),
    (Flaw::LateSuccessIsNotFlagged, "a_late_success_is_remembered"),
    (Flaw::LateSuccessIsLost, "a_late_success_is_remembered"),
    (Flaw::SettlingTwiceIsRefused, "failing_twice_changes_nothing"),
    (Flaw::ReleasingTwiceCountsTwice, "releasing_twice_counts_once"),
    (Flaw::NeverBuries, "the_last_failure_buries"),
    (Flaw::IgnoresMaxAttemptsAtClaim, "used_up_attempts_bury_at_the_claim"),
    (Flaw::IgnoresFingerprint, "another_fingerprint_is_a_conflict"),
    (Flaw::ConflictOnlyOnceSucceeded, "another_fingerprint_is_a_conflict"),
    (Flaw::EndsAnotherMessage, "an_end_of_another_message_is_refused"),
    (Flaw::EmptyResultIsNone, "no_result_is_not_an_empty_result"),
    (Flaw::CutsResults, "kept_results_come_back"),
    (Flaw::LosesResults, "kept_results_come_back"),
    (Flaw::ReplacesResults, "the_first_result_stays"),
    (Flaw::LossyResults, "kept_results_come_back"),
    (Flaw::KeysIgnoreCase, "keys_that_look_alike_are_distinct"),
    (Flaw::KeysTrimBlanks, "keys_that_look_alike_are_distinct"),
    (Flaw::KeysEndAtNul, "keys_of_all_zeros_and_all_ones_work"),
    (Flaw::OwnerIsSigned32, "owners_of_every_size_are_distinct"),
    (Flaw::OwnerIsADouble, "owners_of_every_size_are_distinct"),
    (Flaw::OriginForgotten, "origins_come_back"),
    (Flaw::OriginOfTheLastClaim, "the_first_origin_is_kept"),
    (Flaw::ExtendShortens, "extending_never_shortens"),
    (Flaw::ExtendByAnybody, "a_taken_over_claim_is_lost"),
    (Flaw::ExtendDoesNothing, "extending_prolongs_the_lease"),
    (Flaw::ExtendReopensSettled, "success_is_never_undone"),
    (Flaw::ReclaimShortens, "claiming_again_never_shortens"),
    (Flaw::RetryAtOnce, "a_failed_message_waits_until_due"),
    (Flaw::FailsTheWholeBatch, "one_refused_item_stops_no_other"),
    (Flaw::SmallBatchesOnly, "a_batch_of_5000_lives_its_life"),
    (Flaw::EmptyBatchFails, "empty_batches_answer_nothing"),
    (Flaw::DurationsOverflow, "huge_durations_saturate"),
    (Flaw::ReadFirstSkipsTheClaim, "reading_first_changes_no_outcome"),
    (Flaw::ReadFirstIsAcquiredBlindly, "reading_first_changes_no_outcome"),
    (Flaw::RequeueKeepsFence, "requeues_follow_the_record_from_every_state"),
    (Flaw::RequeueKeepsAttempts, "a_requeued_message_starts_anew"),
    (Flaw::RequeueOfAnything, "success_is_never_undone"),
    (Flaw::SuccessIsUndone, "success_is_never_undone"),
    (Flaw::ForgottenSuccessIsRefused, "a_forgotten_success_is_remembered"),
    (Flaw::PurgesEverything, "purging_keeps_what_is_within_retention"),
    (Flaw::PurgesRunningLeases, "purging_keeps_leases_that_run"),
    (Flaw::PurgeIgnoresLimit, "succeeded_records_leave_in_small_steps"),
    (Flaw::SchemaDropsRecords, "the_schema_can_be_ensured_again"),
    (Flaw::HandlesDoNotShare, "handles_see_each_others_claims"),
    (Flaw::Panics, "an_unknown_message_is_acquired"),
];

/// Flaws that show as waiting in vain: their cases are given less time.
const HANGS: &[(Flaw, &str)] = &[
    (Flaw::LeaseIsForEver, "a_lease_runs_out_and_is_taken_over"),
    (Flaw::PurgesNothing, "dead_records_leave"),
    (Flaw::HoldsALockForEver, "a_batch_of_512_lives_its_life"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_without_a_flaw_passes() {
    suite(Flaw::None).run().await.assert_all();
}

fn caught(verdicts: &Verdicts, flaw: Flaw, case: &str) -> Option<String> {
    match verdicts.outcomes() {
        [outcome] if outcome.name == case => match &outcome.result {
            Err(found) => {
                println!(
                    "{flaw:<28}  {case}: {}",
                    found.chars().take(110).collect::<String>(),
                    flaw = format!("{flaw:?}")
                );
                None
            }
            Ok(()) => Some(format!("{flaw:?} was not caught by {case}")),
        },
        outcomes => Some(format!("{flaw:?}: {case} did not run alone: {outcomes:?}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_flaw_is_caught_by_a_case_that_names_it() {
    let mut missed = Vec::new();
    for (flaw, case) in CAUGHT {
        missed.extend(caught(&suite(*flaw).only([*case]).run().await, *flaw, case));
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_hangs_is_caught() {
    let mut missed = Vec::new();
    for (flaw, case) in HANGS {
        let suite = suite(*flaw).only([*case]).deadline(Duration::from_secs(3));
        missed.extend(caught(&suite.run().await, *flaw, case));
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_a_verdict() {
    let suite =
        Suite::new(|_| async { Err(hapax::store::StoreError::unavailable("gone", "connect", "nobody listens there")) });
    let verdicts = suite.run().await;
    let found = verdicts.to_string();
    assert!(verdicts.failures().count() == 1 && found.contains("nobody listens there"), "{found}");
}

#[tokio::test]
async fn a_case_that_does_not_exist_is_a_verdict() {
    let verdicts = suite(Flaw::None).only(["no_such_case"]).run().await;
    assert!(verdicts.to_string().contains("no_such_case"), "{verdicts}");
}

#[test]
#[should_panic(expected = "0 of 0 cases passed")]
fn nothing_run_is_not_a_pass() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(suite(Flaw::None).only(Vec::<String>::new()).run()).assert_all();
}

#[test]
fn cases_have_distinct_names_and_promises() {
    let mut names: Vec<_> = Suite::cases().map(|(name, _)| name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 50, "{count}");
    assert!(Suite::cases().all(|(_, promise)| promise.len() > 20));
}
