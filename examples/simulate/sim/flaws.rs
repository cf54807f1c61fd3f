//! Bugs to build in, so that the simulator can show that it finds them: in the engine, and in what stands around it.

use hapax::engine::Flaw;

use super::plan::Plan;
use super::run::{self, Options};

/// Bugs outside the engine: in the store, the driver, the identity. Most of them are shipped in real libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverFlaw {
    /// Two fields are joined by a separator, so that two identities share a key.
    JoinedKey,
    /// Whoever asks may end a claim.
    SettleWithoutToken,
    /// A failed message's record is deleted.
    DeleteOnError,
    /// A claim looks first and writes then.
    CheckThenAct,
    /// What was once claimed here counts as handled.
    CacheOfClaimed,
    /// The client commits by itself what it has delivered.
    CommitDelivered,
    /// Leases are not renewed.
    NoRenewal,
    /// A handler begins although its lease has run out.
    BeginLate,
    /// The store throws away what is to be kept.
    Evicts,
    /// A window is moved outside of the transaction.
    WindowOutside,
    /// A window is moved whatever its fence is.
    FenceUnchecked,
    /// It is moved under the fence that the process has by then, rather than the one under which the window was looked at.
    FenceOfTheMoment,
    /// Two transactions of one process move a window side by side.
    NoGate,
    /// Whoever is fenced off while the assignment stands never raises the fence anew.
    FencedForGood,
    /// A window's mark is moved past a message that is not finished.
    WindowPastUnfinished,
    /// The row is not looked at where a partition begins.
    RowIgnored,
    /// A failed message's effect stays.
    SavepointForgotten,
    /// A failed message's effect is rolled back, and its record stays as succeeded.
    RecordNotRolledBack,
    /// A commit without a reply is taken for made.
    LostReplyCommitted,
    /// A commit without a reply is taken for not made.
    LostReplyRolledBack,
    /// A commit in doubt is read again under the records' locks, with the window's gate held.
    DoubtLocksRecords,
    /// A message given up is not told to the database.
    DeadNotTold,
    /// What lies between where a log begins and its end is passed where an offset is out of range.
    ResetToLatest,
    /// A member with a name of its own that is started again begins where it had got to, rather than where it had committed.
    NamedGoesOn,
    /// A run takes what comes, whatever lies before it in its lane.
    TakeWithoutLanes,
    /// A run takes what lies behind a message that waits or is in another's hands.
    TakePastWaiting,
    /// Two runs take side by side, without locking what they take.
    TakeWithoutLock,
    /// What lies behind a failed message in its lane is begun by the same run.
    LaneGoesOn,
    /// A run ends messages that were taken over meanwhile.
    FinishWithoutRun,
    /// A run is swept while a transaction of its worker is open.
    SweepIgnoresLock,
    /// Attempts count when they end, rather than when they begin.
    AttemptsAtEnd,
    /// What was lost with its run is taken together with others again.
    LostInCompany,
    /// The row of a failed message is deleted.
    FailedForgotten,
    /// Offsets are committed before what was accepted is.
    OffsetsFirst,
    /// An assignment goes on with the ids drawn before it.
    IdsKept,
    /// Ids are drawn at the assignment, before the fence is raised.
    IdsBeforeFence,
    /// An operator requeues what a run holds.
    RequeueHeld,
    /// What is open is purged.
    PurgeOpen,
    /// What may still be delivered is purged.
    PurgeTooEarly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    pub engine: Option<Flaw>,
    pub driver: Option<DriverFlaw>,
}

/// All of the engine's.
pub const ENGINE: [Flaw; 13] = [
    Flaw::CommitBeforeSettle,
    Flaw::SwallowSettleError,
    Flaw::FailOpen,
    Flaw::RetryWithoutClaim,
    Flaw::PassInFlight,
    Flaw::CommitPastGap,
    Flaw::LateResultsCount,
    Flaw::CommitLost,
    Flaw::IgnoreTwins,
    Flaw::ForgetOrder,
    Flaw::SettleBeforeLetter,
    Flaw::PassReleased,
    Flaw::GivenBackTwice,
];

/// All of the driver's.
pub const DRIVER: [DriverFlaw; 39] = [
    DriverFlaw::JoinedKey,
    DriverFlaw::SettleWithoutToken,
    DriverFlaw::DeleteOnError,
    DriverFlaw::CheckThenAct,
    DriverFlaw::CacheOfClaimed,
    DriverFlaw::CommitDelivered,
    DriverFlaw::NoRenewal,
    DriverFlaw::BeginLate,
    DriverFlaw::Evicts,
    DriverFlaw::WindowOutside,
    DriverFlaw::FenceUnchecked,
    DriverFlaw::FenceOfTheMoment,
    DriverFlaw::NoGate,
    DriverFlaw::FencedForGood,
    DriverFlaw::WindowPastUnfinished,
    DriverFlaw::RowIgnored,
    DriverFlaw::SavepointForgotten,
    DriverFlaw::RecordNotRolledBack,
    DriverFlaw::LostReplyCommitted,
    DriverFlaw::LostReplyRolledBack,
    DriverFlaw::DoubtLocksRecords,
    DriverFlaw::DeadNotTold,
    DriverFlaw::ResetToLatest,
    DriverFlaw::NamedGoesOn,
    DriverFlaw::TakeWithoutLanes,
    DriverFlaw::TakePastWaiting,
    DriverFlaw::TakeWithoutLock,
    DriverFlaw::LaneGoesOn,
    DriverFlaw::FinishWithoutRun,
    DriverFlaw::SweepIgnoresLock,
    DriverFlaw::AttemptsAtEnd,
    DriverFlaw::LostInCompany,
    DriverFlaw::FailedForgotten,
    DriverFlaw::OffsetsFirst,
    DriverFlaw::IdsKept,
    DriverFlaw::IdsBeforeFence,
    DriverFlaw::RequeueHeld,
    DriverFlaw::PurgeOpen,
    DriverFlaw::PurgeTooEarly,
];

impl Flaws {
    pub fn all() -> Vec<Self> {
        let engine = ENGINE.iter().map(|flaw| Self { engine: Some(*flaw), driver: None });
        let driver = DRIVER.iter().map(|flaw| Self { engine: None, driver: Some(*flaw) });
        engine.chain(driver).collect()
    }

    pub fn name(&self) -> String {
        match (self.engine, self.driver) {
            (Some(flaw), _) => format!("{flaw:?}"),
            (None, Some(flaw)) => format!("{flaw:?}"),
            (None, None) => "none".into(),
        }
    }

    /// Whether it can show in this world: a hunt does not run the others.
    fn concerns(&self, plan: &Plan) -> bool {
        let of_inbox = DRIVER.iter().skip_while(|flaw| **flaw != DriverFlaw::TakeWithoutLanes);
        plan.inbox.is_some() || !of_inbox.into_iter().any(|flaw| self.driver == Some(*flaw))
    }

    /// The number of the record that an identity has.
    pub fn key(&self, plan: &Plan, identity: u32) -> u32 {
        if self.driver == Some(DriverFlaw::JoinedKey) { plan.joined(identity) } else { identity }
    }
}

/// A flaw that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Seeds that it took.
    pub seeds: u64,
    pub invariant: &'static str,
}

/// Runs seeds from 0 until the flaw shows.
pub fn hunt(flaws: Flaws, most: u64) -> Option<Found> {
    (0..most).find_map(|seed| {
        if !flaws.concerns(&Plan::new(seed)) {
            return None;
        }
        let report = run::seed(seed, &Options { flaws, ..Options::default() });
        let violation = report.violation?;
        Some(Found { seeds: seed + 1, invariant: violation.invariant })
    })
}

/// The table of what was found.
pub fn table(found: &[(Flaws, Option<Found>)]) -> String {
    let mut table = format!("{:<20} | {:<6} | {:>17} | {}\n", "flaw", "in", "seeds until found", "by invariant");
    for (flaws, found) in found {
        let place = if flaws.engine.is_some() { "engine" } else { "driver" };
        let (seeds, by) = match found {
            Some(found) => (found.seeds.to_string(), found.invariant),
            None => ("not found".into(), "-"),
        };
        table += &format!("{:<20} | {place:<6} | {seeds:>17} | {by}\n", flaws.name());
    }
    table
}
