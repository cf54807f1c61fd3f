//! What goes wrong when: made from the seed before the run begins.

use std::time::Duration;

use crate::random::Random;

/// Places that members may take: each has relays of its own. The first [`STEADY`] are always taken again, the others come and go.
pub const SLOTS: usize = 5;
pub const STEADY: usize = 3;

/// How long a claim lasts.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a member that fell silent keeps its partitions.
pub const SESSION: Duration = Duration::from_secs(6);
/// How long a member may go without polling.
pub const POLL_INTERVAL: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Store,
    Broker,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Reset; new ones are accepted.
    Cut,
    /// The next request gets through, its reply does not.
    CutReply,
    /// Reset and refused for a while.
    Down(Duration),
    /// Everything comes late for a while.
    Delay(Duration, Duration),
    /// Nothing gets there for a while, and nobody is told.
    ToServerLost(Duration),
    /// Nothing comes back for a while, and nobody is told.
    ToClientLost(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL. Started again after a while.
    Kill(usize, Duration),
    /// Started again so that it aborts right after its n-th effect.
    Abort(usize, u64),
    /// SIGSTOP for longer than lease, session and poll interval.
    Pause(usize, Duration),
    /// SIGTERM: the member leaves. Another takes its place after a while.
    Leave(usize, Duration),
    /// A member more.
    Join(usize),
    /// The store is killed, and started again after a while.
    StoreRestart(Duration),
    /// The same, and what it remembered is gone. Only where the level allows it.
    StoreEmptied(Duration),
    /// Trouble on a link: of one member, or of all.
    Trouble(Option<usize>, Link, Trouble),
}

/// Actions in the order of their times.
pub fn plan(random: &mut Random, length: Duration, may_restart: bool, may_forget: bool) -> Vec<(Duration, Action)> {
    let mut plan = Vec::new();
    let mut at = Duration::from_secs(4);
    // What comes late in a short run must still have time to show.
    let end = length.saturating_sub(Duration::from_secs(5));
    let mut first = Vec::new();
    while at < end {
        if first.is_empty() {
            // One of each, in any order, again and again: every run sees every kind.
            first = one_of_each(random, may_restart, may_forget);
            random.shuffle(&mut first);
        }
        if let Some(action) = first.pop() {
            plan.push((at, action));
        }
        at += random.millis(500, 2_000);
    }
    plan
}

fn one_of_each(random: &mut Random, may_restart: bool, may_forget: bool) -> Vec<Action> {
    let slot = |random: &mut Random| random.index(SLOTS);
    let steady = |random: &mut Random| random.index(STEADY);
    let whose = |random: &mut Random| (!random.chance(3_000)).then_some(random.index(SLOTS));
    // Longer than all of them: what it comes back to belongs to others.
    let pause = |random: &mut Random| POLL_INTERVAL.max(SESSION).max(LEASE) + random.millis(1_500, 4_000);
    let long = |random: &mut Random| LEASE + random.millis(500, 3_000);
    let short = |random: &mut Random| random.millis(300, 2_000);
    let mut all = vec![
        Action::Kill(steady(random), short(random)),
        Action::Kill(steady(random), short(random)),
        Action::Kill(slot(random), short(random)),
        Action::Abort(steady(random), 1 + random.below(150)),
        Action::Abort(steady(random), 1 + random.below(40)),
        Action::Pause(steady(random), pause(random)),
        Action::Pause(slot(random), pause(random)),
        Action::Leave(slot(random), short(random)),
        Action::Join(STEADY),
        Action::Join(STEADY + 1),
        Action::Trouble(whose(random), Link::Broker, Trouble::Cut),
        Action::Trouble(whose(random), Link::Broker, Trouble::Down(random.millis(1_000, 9_000))),
        Action::Trouble(
            whose(random),
            Link::Broker,
            Trouble::Delay(random.millis(50, 700), random.millis(1_000, 4_000)),
        ),
        Action::Trouble(Some(steady(random)), Link::Broker, Trouble::ToServerLost(random.millis(1_000, 10_000))),
    ];
    if may_restart {
        all.extend([
            Action::StoreRestart(short(random)),
            Action::Trouble(whose(random), Link::Store, Trouble::Cut),
            Action::Trouble(whose(random), Link::Store, Trouble::CutReply),
            Action::Trouble(whose(random), Link::Store, Trouble::CutReply),
            Action::Trouble(whose(random), Link::Store, Trouble::Down(long(random))),
            Action::Trouble(
                whose(random),
                Link::Store,
                Trouble::Delay(random.millis(20, 400), random.millis(1_000, 4_000)),
            ),
            Action::Trouble(Some(steady(random)), Link::Store, Trouble::ToClientLost(long(random))),
            Action::Trouble(Some(steady(random)), Link::Store, Trouble::ToServerLost(long(random))),
        ]);
    }
    if may_forget {
        all.push(Action::StoreEmptied(short(random)));
    }
    all
}
