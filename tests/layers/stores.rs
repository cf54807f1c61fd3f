//! Where the stores under the layers live.

use std::sync::Arc;

use hapax::store::{
    DedupStore, MemoryStore, MysqlStore, PostgresStore, RedisStore, Retention, SqliteStore, StoreError,
};

use crate::support::{service, unique};

/// A place for records, empty at first. Every handle opened on it with the same retention shares them.
#[derive(Clone, Debug)]
pub enum Place {
    Memory(MemoryStore),
    Sqlite(Arc<tempfile::TempDir>),
    Redis { url: String, prefix: String },
    Postgres { url: String, table: String },
    Mariadb { url: String, table: String },
}

impl Place {
    pub fn memory() -> Self {
        Self::Memory(MemoryStore::new())
    }

    pub fn sqlite() -> Self {
        Self::Sqlite(Arc::new(tempfile::tempdir().unwrap()))
    }

    pub fn redis() -> Self {
        Self::Redis { url: service("HAPAX_TEST_REDIS"), prefix: unique("layers") }
    }

    pub fn postgres() -> Self {
        Self::Postgres { url: service("HAPAX_TEST_POSTGRES"), table: unique("layers") }
    }

    pub fn mariadb() -> Self {
        Self::Mariadb { url: service("HAPAX_TEST_MARIADB"), table: unique("layers") }
    }

    /// A handle of its own, as another process would have.
    pub async fn open(&self, retention: Retention) -> Result<Arc<dyn DedupStore>, StoreError> {
        Ok(match self {
            Self::Memory(shared) if retention == Retention::default() => Arc::new(shared.clone()),
            Self::Memory(_) => Arc::new(MemoryStore::with_retention(retention)),
            Self::Sqlite(folder) => {
                Arc::new(SqliteStore::open(folder.path().join("records.db")).await?.with_retention(retention))
            }
            Self::Redis { url, prefix } => {
                Arc::new(RedisStore::builder().prefix(prefix).retention(retention).connect(url).await?)
            }
            Self::Postgres { url, table } => {
                Arc::new(PostgresStore::connect(url).await?.with_table(table)?.with_retention(retention))
            }
            Self::Mariadb { url, table } => {
                Arc::new(MysqlStore::connect(url).await?.with_table(table)?.with_retention(retention))
            }
        })
    }

    /// Removes all records behind the store's back.
    pub async fn empty(&self) {
        let Self::Sqlite(folder) = self else { panic!("only a file can be emptied by hand here") };
        let url = format!("sqlite:{}", folder.path().join("records.db").display());
        let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
        let done = sqlx::query("DELETE FROM hapax_records").execute(&pool).await.unwrap();
        assert!(done.rows_affected() > 0);
        pool.close().await;
    }
}
