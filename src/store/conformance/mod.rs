//! Checks that a third party runs against a store of its own. The stores of this crate run the same.
//!
#![cfg_attr(feature = "memory", doc = "```")]
#![cfg_attr(not(feature = "memory"), doc = "```ignore")]
//! use std::sync::Arc;
//! use hapax::store::conformance::Suite;
//! use hapax::store::{DedupStore, MemoryStore, Retention};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let shared = MemoryStore::new();
//! let suite = Suite::new(move |retention: Retention| {
//!     // A handle on the same records; with another retention it may be other records.
//!     let store = if retention == Retention::default() { shared.clone() } else { MemoryStore::with_retention(retention) };
//!     async move { Ok(Arc::new(store) as Arc<dyn DedupStore>) }
//! });
//! let verdicts = suite.only(["an_unknown_message_is_acquired", "a_held_message_is_in_flight"]).run().await;
//! verdicts.assert_all();
//! # }
//! ```
//!
//! Each case has a name that says what it found, and a promise in words. It works on messages of its own, so that the
//! cases do not meet. Expected answers are computed by the functions of [`record`](crate::record), from the record as
//! the store read it.
//!
//! The suite is not part of the stable interface: a later version may hold more cases.

mod asks;
mod batches;
mod claims;
mod ground;
mod leases;
mod pasts;
mod races;
mod settles;
mod upkeep;
mod values;

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use self::ground::{Check, Ground, Opener};
use super::{DedupStore, Retention, StoreError};

/// A named check, and what it holds a store to.
struct Case {
    name: &'static str,
    promise: &'static str,
    run: fn(Ground) -> BoxFuture<'static, Check>,
}

macro_rules! cases {
    ($($module:ident::$name:ident: $promise:literal,)*) => {
        const CASES: &[Case] = &[$(
            Case { name: stringify!($name), promise: $promise, run: |ground| Box::pin($module::$name(ground)) },
        )*];
    };
}

cases! {
    claims::an_unknown_message_is_acquired: "a first claim is attempt 1, and takes over from nobody",
    claims::a_held_message_is_in_flight: "another owner's live claim answers in flight, with the time its lease still runs",
    claims::claiming_again_is_the_same_claim: "an owner that asks again gets the same token and attempt",
    claims::a_succeeded_message_is_a_duplicate: "a duplicate names the first message and when it was handled",
    claims::a_failed_message_waits_until_due: "a failed message is not due before its time, for its last owner too",
    claims::a_due_message_is_the_next_attempt: "a due message is claimed with the next attempt and a higher fence",
    claims::a_released_message_repeats_its_attempt: "a released attempt is not counted, but the fence grows",
    claims::a_dead_message_stays_dead: "a dead message is never claimed, whatever the terms",
    claims::used_up_attempts_bury_at_the_claim: "a claim beyond the attempts allowed buries the message",
    claims::another_fingerprint_is_a_conflict: "another fingerprint is a conflict in every state, and changes nothing",
    claims::the_first_origin_is_kept: "a record keeps the origin of the message that made it",
    claims::claims_follow_the_record_from_every_state: "every claim from every state answers and writes what the pure record says",
    claims::reading_first_changes_no_outcome: "the hint to read first changes no outcome, in any state or mixture",
    claims::handles_see_each_others_claims: "two handles on one store hold one set of records",

    settles::success_follows_the_record_from_every_state: "every success, by current and stale tokens, answers and writes what the pure record says",
    settles::failure_follows_the_record_from_every_state: "every failure, by current and stale tokens, answers and writes what the pure record says",
    settles::last_failure_follows_the_record_from_every_state: "every last failure, by current and stale tokens, answers and writes what the pure record says",
    settles::release_follows_the_record_from_every_state: "every release, by current and stale tokens, answers and writes what the pure record says",
    settles::giving_up_follows_the_record_from_every_state: "every giving up, by current and stale tokens, answers and writes what the pure record says",
    settles::succeeding_twice_changes_nothing: "a success whose reply was lost is reported again without harm",
    settles::failing_twice_changes_nothing: "a failure whose reply was lost is reported again without harm, and its due time stays",
    settles::releasing_twice_counts_once: "a release whose reply was lost is reported again without harm",
    settles::giving_up_twice_changes_nothing: "giving up, when the reply was lost, is reported again without harm",
    settles::the_last_failure_buries: "a failure that uses up the attempts buries, and says so each time it is asked",
    settles::a_late_success_is_remembered: "a success after a takeover is remembered and flagged, and the taker is told",
    settles::a_late_success_undoes_a_failure: "a success after a takeover that failed is remembered",
    settles::a_late_success_undoes_death: "a success of a message given up meanwhile is remembered",
    settles::a_forgotten_success_is_remembered: "a success whose record was lost is remembered whole, and flagged",
    settles::a_success_of_another_message_is_refused: "a success never lands on a record with another fingerprint",
    settles::an_end_of_another_message_is_refused: "failing, releasing and giving up never land on a record with another fingerprint",
    settles::a_stale_failure_is_refused: "an owner whose claim was taken over cannot fail it",
    settles::a_stale_release_is_refused: "an owner whose claim was taken over cannot release it",
    settles::a_stale_giving_up_is_refused: "an owner whose claim was taken over cannot give it up",
    settles::a_guessed_token_is_refused: "owner and fence must both be right to fail, release or extend",
    settles::success_is_never_undone: "nothing moves a succeeded record",
    settles::the_first_result_stays: "a second success does not replace the kept result",

    leases::a_lease_runs_out_and_is_taken_over: "a lease ends on the store's clock, not before, and is then taken over",
    leases::a_retry_is_due_on_the_stores_clock: "a failed message becomes due on the store's clock, not before",
    leases::a_claim_that_ran_out_may_still_succeed: "a lease that ran out is no loss while nobody took over: success is in time",
    leases::a_claim_that_ran_out_may_still_fail: "a lease that ran out is no loss while nobody took over: failing is a right",
    leases::a_claim_that_ran_out_may_be_extended: "a lease that ran out may be extended while nobody took over",
    leases::extending_prolongs_the_lease: "an extended lease does not run out at its first end",
    leases::extending_never_shortens: "a shorter extension leaves the lease as it is",
    leases::claiming_again_prolongs_the_lease: "a claim asked for again lasts from then on",
    leases::claiming_again_never_shortens: "a claim asked for again with a shorter lease is not shortened",
    leases::extensions_follow_the_record_from_every_state: "every extension, by current and stale tokens, answers and writes what the pure record says",
    leases::a_taken_over_claim_is_lost: "an owner whose claim was taken over learns it when it extends",
    leases::crashes_use_up_the_attempts: "an attempt counts when it is claimed: owners that vanish use the attempts up",
    leases::the_fence_grows_all_life_long: "the fence grows with every takeover, retry, release and requeue",
    leases::the_shortest_leases_work: "a lease of a millisecond, and one of less, can be claimed, settled and taken over",
    leases::huge_durations_saturate: "the longest durations mean for ever, and overflow nothing",

    batches::empty_batches_answer_nothing: "a batch of none is answered with none",
    batches::a_batch_of_one_lives_its_life: "a batch of one is claimed, extended, settled and a duplicate afterwards",
    batches::a_batch_of_two_lives_its_life: "a batch of two is claimed, extended, settled and a duplicate afterwards",
    batches::a_batch_of_512_lives_its_life: "a batch of 512 is claimed, extended, settled and a duplicate afterwards",
    batches::a_batch_of_5000_lives_its_life: "a batch of 5000 is claimed, extended, settled and a duplicate afterwards",
    batches::answers_stand_in_the_order_asked: "each answer of a mixed batch belongs to the item in its place",
    batches::new_and_old_mix_in_one_batch: "new and known messages of one batch do not disturb each other",
    batches::verdicts_mix_in_one_batch: "all verdicts may stand in one batch, and each gets its own answer",
    batches::one_refused_item_stops_no_other: "a refused item of a batch leaves the others settled",
    batches::unknown_keys_are_none: "reading answers none, in its place, for what the store does not know",

    values::kept_results_come_back: "kept results of every size come back byte for byte",
    values::no_result_is_not_an_empty_result: "no result and an empty result are told apart",
    values::a_late_result_comes_back: "a result that came with a late success is kept",
    values::origins_come_back: "origins with empty, long and foreign topics and extreme offsets come back",
    values::keys_of_all_zeros_and_all_ones_work: "extreme keys live their life like any other",
    values::keys_that_look_alike_are_distinct: "keys that differ in case, blanks, quotes, NUL or one bit are distinct",
    values::fingerprints_are_compared_whole: "fingerprints that differ in one bit, or case, or a trailing blank, are a conflict",
    values::owners_of_every_size_are_distinct: "owners from 0 to the largest number are told apart",
    values::any_number_of_attempts_may_be_allowed: "the largest number of attempts allowed overflows nothing",

    races::one_of_two_owners_wins: "of two owners that claim at once, one wins each message",
    races::one_of_eight_owners_wins: "of eight owners that claim at once, one wins each message",
    races::single_claims_race_to_one_winner: "of many single claims at once, one wins each message",
    races::one_owner_asking_twice_at_once_gets_one_claim: "one owner that asks twice at once gets one token, counted once",
    races::one_of_eight_takes_over: "of eight owners that take over at once, one wins each message, with the next fence",
    races::takeovers_in_turn_have_growing_fences: "however owners race for leases that run out, no fence is granted twice",
    races::overlapping_batches_do_not_wait_in_a_circle: "owners with overlapping batches finish, and each message has one winner",
    races::success_races_a_takeover: "when success and takeover race, the success is remembered and both are told the truth",
    races::failure_races_a_takeover: "when failure and takeover race, one is refused and the record follows the other",
    races::extension_races_a_takeover: "when extension and takeover race, a claim said to be held is not taken over",
    races::settling_twice_at_once_is_harmless: "a settle sent twice at once is settled once, and both are told so",
    races::requeueing_at_once_requeues_once: "when many requeue at once, the record is requeued once",
    races::a_dropped_claim_can_be_asked_again: "a claim dropped half way is asked again without harm",
    races::a_dropped_settle_can_be_asked_again: "a settle dropped half way is asked again without harm",

    upkeep::requeues_follow_the_record_from_every_state: "every requeue answers and writes what the pure record says",
    upkeep::a_requeued_message_starts_anew: "a requeued message is due at once, from attempt 1, and every earlier token is stale",
    upkeep::purging_keeps_what_is_within_retention: "purging removes nothing that is within its retention",
    upkeep::purging_keeps_leases_that_run: "retention of what is unsettled counts from the end of the lease or the due time",
    upkeep::purging_by_nothing_removes_nothing: "purging at most none removes none",
    upkeep::succeeded_records_leave_in_small_steps: "succeeded records past retention leave, at most so many a step",
    upkeep::dead_records_leave: "dead records past retention leave",
    upkeep::unsettled_records_leave: "failed and abandoned records past retention leave",
    upkeep::each_state_has_its_own_retention: "retention of one state removes no record of another",
    upkeep::the_schema_can_be_ensured_again: "ensuring the schema again, and at once from several handles, keeps the records",
    upkeep::the_store_describes_itself: "name, level and retention are given, and the start-up check can be run",
}

/// How one case went.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The case.
    pub name: &'static str,
    /// What it holds a store to.
    pub promise: &'static str,
    /// What was found instead, in a sentence.
    pub result: Result<(), String>,
    /// How long it took.
    pub took: Duration,
}

/// How all cases went.
#[derive(Clone, Debug)]
pub struct Verdicts {
    outcomes: Vec<Outcome>,
}

impl Verdicts {
    /// Every case that ran, in order.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.result.is_err())
    }

    /// For tests: returns if every case passed, and at least one ran.
    ///
    /// # Panics
    ///
    /// Otherwise, with the failed cases.
    #[track_caller]
    #[expect(clippy::panic, reason = "an assertion for tests")]
    pub fn assert_all(&self) {
        if self.outcomes.is_empty() || self.failures().next().is_some() {
            panic!("{self}");
        }
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.failures().count();
        write!(f, "{} of {} cases passed", self.outcomes.len() - failed, self.outcomes.len())?;
        for Outcome { name, promise, result, .. } in self.failures() {
            if let Err(found) = result {
                write!(f, "\n  {name}: {found}\n    promised: {promise}")?;
            }
        }
        Ok(())
    }
}

/// The cases, and how to open the store they run against.
pub struct Suite {
    open: Opener,
    only: Option<Vec<String>>,
    deadline: Duration,
    slack: Duration,
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("only", &self.only).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Suite {
    /// A suite for the store that `open` opens.
    ///
    /// `open` is called several times in one run. Each call with one retention gives a handle of its own (as another process
    /// would have) on the same records; with another retention it may be the same or other records. The records must be
    /// none at first: give each run a table, file or key prefix of its own. A store that cannot choose its retention may
    /// ignore it, and then fails the cases on what leaves.
    pub fn new<F, Fut>(open: F) -> Self
    where
        F: Fn(Retention) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn DedupStore>, StoreError>> + Send + 'static,
    {
        Self {
            open: Arc::new(move |retention| open(retention).boxed()),
            only: None,
            deadline: Duration::from_secs(60),
            slack: Duration::ZERO,
        }
    }

    /// Runs these cases only. A name that no case has fails the run.
    #[must_use]
    pub fn only<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.only = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets after how long a case that does not end is failed. Default: 60 s.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Names and promises of all cases.
    pub fn cases() -> impl ExactSizeIterator<Item = (&'static str, &'static str)> {
        CASES.iter().map(|case| (case.name, case.promise))
    }

    /// Sets by how much the time told to a duplicate or conflict may differ from the record's. Default: not at all, which is
    /// right for every store. A layer such as [`Cached`](super::Cached), which may reckon that time, needs the length of a slow store call.
    #[must_use]
    pub const fn told_times_within(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// Runs the cases one after another, in a tokio runtime with time and, better, several threads.
    ///
    /// A panic of the store fails the case it happened in.
    ///
    /// # Cancel safety
    ///
    /// A dropped run leaves its records behind, and the case that runs goes on to its end.
    pub async fn run(&self) -> Verdicts {
        let mut outcomes = Vec::with_capacity(CASES.len());
        let salt = RandomState::new().build_hasher().finish();
        let begun = Instant::now();
        let opened = async {
            let (store, other) = (open(&self.open).await?, open(&self.open).await?);
            store.ensure_schema().await.map_err(|error| format!("the schema could not be ensured: {error}"))?;
            Ok::<_, String>((store, other))
        };
        let (store, other) = match opened.await {
            Ok(opened) => opened,
            Err(found) => {
                let promise = "a store can be opened twice with its default retention";
                outcomes.push(Outcome { name: "open", promise, result: Err(found), took: begun.elapsed() });
                return Verdicts { outcomes };
            }
        };
        for name in self.only.iter().flatten().filter(|name| !CASES.iter().any(|case| case.name == **name)) {
            let found = format!("there is no case {name:?}");
            outcomes.push(Outcome {
                name: "only",
                promise: "names are those of cases",
                result: Err(found),
                took: Duration::ZERO,
            });
        }
        for case in CASES {
            if self.only.as_ref().is_some_and(|only| !only.iter().any(|name| name == case.name)) {
                continue;
            }
            let begun = Instant::now();
            let ground = Ground::new(store.clone(), other.clone(), self.open.clone(), salt, case.name, self.slack);
            let result = self.one(case, ground).await;
            outcomes.push(Outcome { name: case.name, promise: case.promise, result, took: begun.elapsed() });
        }
        Verdicts { outcomes }
    }

    async fn one(&self, case: &Case, ground: Ground) -> Check {
        let mut task = tokio::spawn((case.run)(ground));
        match tokio::time::timeout(self.deadline, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the store panicked".into()),
            Err(_) => {
                task.abort();
                Err(format!("it did not end within {:?}: something waits for ever", self.deadline))
            }
        }
    }
}

async fn open(open: &Opener) -> Check<Arc<dyn DedupStore>> {
    open(Retention::default()).await.map_err(|error| format!("it could not be opened: {error}"))
}
