//! One test for each store, so that a failure names it.

use std::sync::Arc;

use hapax::store::conformance::Suite;
use hapax::store::{DedupStore, MemoryStore, Retention};

use crate::conforms;
#[allow(unused_imports)]
use crate::support;

/// Handles of one retention share their records.
pub fn memory(layer: impl Fn(MemoryStore) -> Arc<dyn DedupStore> + Send + Sync + 'static) -> Suite {
    let shared = MemoryStore::new();
    Suite::new(move |retention| {
        let lasting = retention == Retention::default();
        let store = layer(if lasting { shared.clone() } else { MemoryStore::with_retention(retention) });
        async move { Ok(store) }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_store() {
    conforms("memory", memory(|store| Arc::new(store))).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_file() {
    use hapax::store::SqliteStore;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let suite = Suite::new(move |retention| {
        let path = path.clone();
        async move { Ok(Arc::new(SqliteStore::open(path).await?.with_retention(retention)) as Arc<dyn DedupStore>) }
    });
    conforms("sqlite, two pools on one file", suite).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_in_memory() {
    use hapax::store::SqliteStore;
    let store = SqliteStore::open(":memory:").await.unwrap();
    let suite = Suite::new(move |retention| {
        let store = store.clone().with_retention(retention);
        async move { Ok(Arc::new(store) as Arc<dyn DedupStore>) }
    });
    conforms("sqlite, in memory", suite).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_standalone() {
    use hapax::store::RedisStore;
    let (url, prefix) = (support::service("HAPAX_TEST_REDIS"), support::unique("conform"));
    let suite = Suite::new(move |retention| {
        let (url, builder) = (url.clone(), RedisStore::builder().prefix(&*prefix).retention(retention));
        async move { Ok(Arc::new(builder.connect(&url).await?) as Arc<dyn DedupStore>) }
    });
    conforms("redis, standalone", suite).await;
}

#[cfg(feature = "redis-cluster")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_cluster() {
    use hapax::store::RedisStore;
    let (urls, prefix) = (support::redis_cluster(), support::unique("conform"));
    let suite = Suite::new(move |retention| {
        let (urls, builder) = (urls.clone(), RedisStore::builder().prefix(&*prefix).retention(retention));
        async move { Ok(Arc::new(builder.cluster(&urls).await?) as Arc<dyn DedupStore>) }
    });
    conforms("redis, cluster", suite).await;
}

#[cfg(feature = "redis-sentinel")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_sentinel() {
    use hapax::store::RedisStore;
    let ((urls, master), prefix) = (support::redis_sentinel(), support::unique("conform"));
    let suite = Suite::new(move |retention| {
        let (urls, master) = (urls.clone(), master.clone());
        let builder = RedisStore::builder().prefix(&*prefix).retention(retention);
        async move { Ok(Arc::new(builder.sentinel(&urls, &master).await?) as Arc<dyn DedupStore>) }
    });
    conforms("redis, sentinel", suite).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres() {
    use hapax::store::PostgresStore;
    let (url, table) = (support::service("HAPAX_TEST_POSTGRES"), support::unique("conform"));
    let suite = Suite::new(move |retention| {
        let (url, table) = (url.clone(), table.clone());
        async move {
            let store = PostgresStore::connect(&url).await?.with_table(&table)?.with_retention(retention);
            Ok(Arc::new(store) as Arc<dyn DedupStore>)
        }
    });
    conforms("postgres", suite).await;
}

#[cfg(feature = "mysql")]
fn mysql_suite(url: String) -> Suite {
    use hapax::store::MysqlStore;
    let table = support::unique("conform");
    Suite::new(move |retention| {
        let (url, table) = (url.clone(), table.clone());
        async move {
            let store = MysqlStore::connect(&url).await?.with_table(&table)?.with_retention(retention);
            Ok(Arc::new(store) as Arc<dyn DedupStore>)
        }
    })
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mariadb() {
    conforms("mariadb", mysql_suite(support::service("HAPAX_TEST_MARIADB"))).await;
}

/// The same server again where only MariaDB is there; with Compose, MySQL itself.
#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mysql() {
    conforms("mysql", mysql_suite(support::service("HAPAX_TEST_MYSQL"))).await;
}
