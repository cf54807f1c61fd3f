//! The tables against the pure rules: the same random calls through both, and every row compared after each.
//!
//! Two processes share an inbox: they accept, take, end, sweep, forget, and an operator is at it too. Calls come one after the other; what happens
//! when they meet is shown elsewhere. Nothing waits: leases, back-offs and due times are an hour, or over.

mod pure;
mod tables;

use hapax::inbox::rules::Class;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use self::tables::Tables;
use crate::base::Base;
use crate::world::World;

/// Keys.
const LANES: u8 = 4;

/// How a handler ended, as far as a call says so.
#[derive(Clone, Copy, Debug)]
enum How {
    Succeeded,
    Failed(Class),
    Released,
    /// Not said by this call.
    Open,
}

/// Which messages an operator means.
#[derive(Clone, Copy, Debug)]
enum Some {
    Lane(u8),
    /// Offsets from one that was produced on.
    Offsets(Index, i64),
}

/// What somebody does; `who` is one of two processes.
#[derive(Clone, Debug)]
enum Call {
    /// New messages with these keys.
    Accept(Vec<u8>),
    /// What was produced before is produced once more.
    Again(Vec<Index>),
    Take {
        who: bool,
        most: usize,
        inside: bool,
    },
    /// Of all runs that were ever taken, one: in a handler's transaction, or in a call of its own.
    End {
        who: bool,
        run: Index,
        inside: bool,
        how: Vec<How>,
    },
    /// The lease of a run is over, and somebody sweeps.
    Sweep {
        who: bool,
        run: Index,
    },
    /// The time of all that waits has come.
    Due,
    /// Everything that is over is past its retention, and leaves.
    Forget {
        who: bool,
    },
    Requeue(Index),
    Skip(Index),
    Edit(Index, u8),
    Replay(Some),
    Erase(Some),
    Purge(Some),
    Pause(bool),
}

fn hows() -> impl Strategy<Value = How> {
    let class = prop_oneof![
        3 => Just(Class::Retryable),
        1 => Just(Class::Fatal),
        1 => Just(Class::Unavailable),
        1 => Just(Class::Panic),
        1 => Just(Class::Timeout),
    ];
    prop_oneof![
        4 => Just(How::Succeeded),
        3 => class.prop_map(How::Failed),
        1 => Just(How::Released),
        1 => Just(How::Open),
    ]
}

fn some() -> impl Strategy<Value = Some> {
    prop_oneof![
        (0..LANES).prop_map(Some::Lane),
        (any::<Index>(), 0..8_i64).prop_map(|(from, many)| Some::Offsets(from, many)),
    ]
}

fn calls() -> impl Strategy<Value = Call> {
    let (index, who) = (any::<Index>, any::<bool>);
    prop_oneof![
        10 => prop::collection::vec(0..LANES, 1..6).prop_map(Call::Accept),
        2 => prop::collection::vec(index(), 1..4).prop_map(Call::Again),
        24 => (who(), 1..6_usize, any::<bool>()).prop_map(|(who, most, inside)| Call::Take { who, most, inside }),
        24 => (who(), index(), any::<bool>(), prop::collection::vec(hows(), 5))
            .prop_map(|(who, run, inside, how)| Call::End { who, run, inside, how }),
        6 => (who(), index()).prop_map(|(who, run)| Call::Sweep { who, run }),
        9 => Just(Call::Due),
        2 => who().prop_map(|who| Call::Forget { who }),
        6 => index().prop_map(Call::Requeue),
        3 => index().prop_map(Call::Skip),
        4 => (index(), 0..3_u8).prop_map(|(which, payload)| Call::Edit(which, payload)),
        4 => some().prop_map(Call::Replay),
        2 => some().prop_map(Call::Erase),
        2 => some().prop_map(Call::Purge),
        1 => any::<bool>().prop_map(Call::Pause),
    ]
}

type Checked = Result<(), TestCaseError>;

async fn life<DB: Base>(world: &World<DB>, by_key: bool, calls: &[Call]) -> Checked {
    let mut tables = Tables::open(world, by_key).await;
    for call in calls {
        tables.go(call).await?;
        tables.compare(call).await?;
    }
    tables.look_over().await
}

/// The same lives each time; with `HAPAX_MODEL_LIVES`, so many others.
fn lives<DB: Base>(cases: u32, longest: usize) {
    let more: Option<u32> = std::env::var("HAPAX_MODEL_LIVES").ok().and_then(|lives| lives.parse().ok());
    let cases = more.unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = match more {
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
        Some(_) => TestRunner::new(config),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::<DB>::new());
    let strategy = (any::<bool>(), prop::collection::vec(calls(), longest / 2..longest));
    let outcome = runner.run(&strategy, |(by_key, calls)| runtime.block_on(life(&world, by_key, &calls)));
    if let Err(error) = outcome {
        panic!("{}: {error}", DB::KIND);
    }
}

#[test]
fn sqlite_follows_the_rules() {
    lives::<sqlx::Sqlite>(20, 60);
}

#[test]
fn postgres_follows_the_rules() {
    lives::<sqlx::Postgres>(8, 60);
}

#[test]
fn mariadb_follows_the_rules() {
    lives::<sqlx::MySql>(6, 60);
}
