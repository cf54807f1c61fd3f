//! One test for each store, so that a failure names it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hapax::store::{Batched, DedupStore, MemoryStore};

#[allow(unused_imports)]
use crate::support;
use crate::{differs, lives, runtime};

/// Lives against a server: each call is a round trip or more.
#[allow(dead_code)]
const ON_A_SERVER: u32 = 24;

fn over_memory(name: &str, layer: impl Fn(MemoryStore) -> Arc<dyn DedupStore>) {
    let shared = MemoryStore::new();
    lives(name, 128, &runtime(), [layer(shared.clone()), layer(shared)]);
}

#[test]
fn memory() {
    over_memory("memory", |store| Arc::new(store));
}

/// The machine proves itself.
#[test]
fn stores_with_a_flaw_are_found() {
    use crate::flawed::{Flaw, Flawed};
    let runtime = runtime();
    let place = |flaw, cases| {
        let store = Flawed::new(flaw, hapax::store::Retention::default());
        let handles: [Arc<dyn DedupStore>; 2] = [Arc::new(store.another(0)), Arc::new(store.another(1))];
        differs(cases, 5, &runtime, handles)
    };
    assert_eq!(place(Flaw::None, 40), None);
    // A panic that is caught still speaks; those of this thread are expected while the flaws are tried.
    let (speak, this, tried) = (std::panic::take_hook(), std::thread::current().id(), Arc::new(AtomicBool::new(false)));
    let done = tried.clone();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != this || tried.load(Ordering::Relaxed) {
            speak(info);
        }
    }));
    let flaws = [
        Flaw::CompletesWithoutToken,
        Flaw::FailsWithoutToken,
        Flaw::ReleasesWithoutToken,
        Flaw::GivesUpWithoutToken,
        Flaw::DeletesOnFailure,
        Flaw::DuplicatesAreAcquired,
        Flaw::AnswersUnsorted,
        Flaw::ForgetsAttempts,
        Flaw::CountsAttemptsWhenSettled,
        Flaw::LeaseOnClientsClock,
        Flaw::LeaseIsIgnored,
        Flaw::TakeoverKeepsFence,
        Flaw::TakeoverSaysNothing,
        Flaw::NotReentrant,
        Flaw::ReentrantByAnybody,
        Flaw::RefusesLateSuccess,
        Flaw::LateSuccessIsNotFlagged,
        Flaw::SettlingTwiceIsRefused,
        Flaw::ReleasingTwiceCountsTwice,
        Flaw::NeverBuries,
        Flaw::IgnoresFingerprint,
        Flaw::EmptyResultIsNone,
        Flaw::OriginForgotten,
        Flaw::ExtendShortens,
        Flaw::ExtendByAnybody,
        Flaw::ReclaimShortens,
        Flaw::RetryAtOnce,
        Flaw::ReadFirstIsAcquiredBlindly,
        Flaw::RequeueKeepsFence,
        Flaw::RequeueOfAnything,
        Flaw::SuccessIsUndone,
        Flaw::ForgottenSuccessIsRefused,
    ];
    let missed: Vec<Flaw> = flaws.into_iter().filter(|flaw| place(*flaw, 1000).is_none()).collect();
    done.store(true, Ordering::Relaxed);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn batched_over_memory() {
    over_memory("batched over memory", |store| Arc::new(Batched::new(store)));
}

#[cfg(feature = "cache")]
#[test]
fn cached_over_memory() {
    over_memory("cached over memory", |store| Arc::new(hapax::store::Cached::new(store)));
}

#[cfg(feature = "bloom")]
#[test]
fn prechecked_over_memory() {
    over_memory("prechecked over memory", |store| Arc::new(hapax::store::Prechecked::new(store).unwrap()));
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite() {
    use hapax::store::SqliteStore;
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let open = || async { Arc::new(SqliteStore::open(folder.path().join("records.db")).await.unwrap()) as Arc<_> };
    let handles = runtime.block_on(async { [open().await, open().await] });
    lives("sqlite", 64, &runtime, handles);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres() {
    use hapax::store::PostgresStore;
    let (runtime, url, table) = (runtime(), support::service("HAPAX_TEST_POSTGRES"), support::unique("machine"));
    let open = || async { Arc::new(PostgresStore::connect(&url).await.unwrap().with_table(&table).unwrap()) as Arc<_> };
    let handles = runtime.block_on(async { [open().await, open().await] });
    lives("postgres", ON_A_SERVER, &runtime, handles);
}

#[cfg(feature = "mysql")]
#[test]
fn mysql() {
    use hapax::store::MysqlStore;
    let (runtime, url, table) = (runtime(), support::service("HAPAX_TEST_MYSQL"), support::unique("machine"));
    let open = || async { Arc::new(MysqlStore::connect(&url).await.unwrap().with_table(&table).unwrap()) as Arc<_> };
    let handles = runtime.block_on(async { [open().await, open().await] });
    lives("mysql or mariadb", ON_A_SERVER, &runtime, handles);
}

#[cfg(feature = "redis")]
#[test]
fn redis() {
    use hapax::store::RedisStore;
    let (runtime, url, prefix) = (runtime(), support::service("HAPAX_TEST_REDIS"), support::unique("machine"));
    let open = || async { Arc::new(RedisStore::builder().prefix(&*prefix).connect(&url).await.unwrap()) as Arc<_> };
    let handles = runtime.block_on(async { [open().await, open().await] });
    lives("redis", ON_A_SERVER, &runtime, handles);
}

#[cfg(feature = "redis-cluster")]
#[test]
fn redis_cluster() {
    use hapax::store::RedisStore;
    let (runtime, urls, prefix) = (runtime(), support::redis_cluster(), support::unique("machine"));
    let open = || async { Arc::new(RedisStore::builder().prefix(&*prefix).cluster(&urls).await.unwrap()) as Arc<_> };
    let handles = runtime.block_on(async { [open().await, open().await] });
    lives("redis cluster", ON_A_SERVER, &runtime, handles);
}
