//! The stores that can be measured here, each with its bare side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hapax::store::{DedupStore, MysqlStore, PostgresStore, RedisStore, SqliteStore};

use crate::bare::{Bare, mariadb, postgres, redis, sqlite};
use crate::figures::Failure;

#[derive(Clone, Debug)]
pub enum Kind {
    Sqlite,
    Postgres(String),
    Mariadb(String),
    Redis(String),
}

/// A store on a table of its own, which goes when this is closed.
pub struct Opened<T> {
    pub side: T,
    clean: Clean,
}

enum Clean {
    Folder(tempfile::TempDir),
    Table(Kind, String),
}

impl<T> Opened<T> {
    pub async fn close(self) -> Result<(), Failure> {
        drop(self.side);
        match self.clean {
            Clean::Folder(folder) => Ok(folder.close()?),
            Clean::Table(kind, table) => kind.drop_table(&table).await,
        }
    }
}

impl Kind {
    /// What can be measured, and the variables that are not set.
    pub fn available() -> (Vec<Self>, Vec<&'static str>) {
        let mut kinds = vec![Self::Sqlite];
        let mut without = Vec::new();
        let services = [
            ("HAPAX_TEST_POSTGRES", Self::Postgres as fn(String) -> Self),
            ("HAPAX_TEST_MARIADB", Self::Mariadb),
            ("HAPAX_TEST_REDIS", Self::Redis),
        ];
        for (variable, kind) in services {
            match std::env::var(variable) {
                Ok(url) if !url.is_empty() => kinds.push(kind(url)),
                _ => without.push(variable),
            }
        }
        (kinds, without)
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres(_) => "postgres",
            Self::Mariadb(_) => "mariadb",
            Self::Redis(_) => "redis",
        }
    }

    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Postgres(_) | Self::Redis(_))
    }

    /// A store of ours with an empty table.
    pub async fn ours(&self) -> Result<Opened<Arc<dyn DedupStore>>, Failure> {
        let table = unique();
        let clean = Clean::Table(self.clone(), table.clone());
        let (side, clean): (Arc<dyn DedupStore>, Clean) = match self {
            Self::Sqlite => {
                let folder = tempfile::tempdir()?;
                let store = SqliteStore::open(folder.path().join("ours.db")).await?;
                (Arc::new(store), Clean::Folder(folder))
            }
            Self::Postgres(url) => (Arc::new(PostgresStore::connect(url).await?.with_table(&table)?), clean),
            Self::Mariadb(url) => (Arc::new(MysqlStore::connect(url).await?.with_table(&table)?), clean),
            Self::Redis(url) => (Arc::new(RedisStore::builder().prefix(table).connect(url).await?), clean),
        };
        side.ensure_schema().await?;
        Ok(Opened { side, clean })
    }

    /// A hand-written side with an empty table.
    pub async fn bare(&self) -> Result<Opened<Box<dyn Bare>>, Failure> {
        let table = unique();
        let clean = Clean::Table(self.clone(), table.clone());
        let (side, clean): (Box<dyn Bare>, Clean) = match self {
            Self::Sqlite => {
                let folder = tempfile::tempdir()?;
                let side = sqlite::Sqlite::open(&folder.path().join("bare.db")).await?;
                (Box::new(side), Clean::Folder(folder))
            }
            Self::Postgres(url) => (Box::new(postgres::Postgres::open(url, &table).await?), clean),
            Self::Mariadb(url) => (Box::new(mariadb::Mariadb::open(url, &table).await?), clean),
            Self::Redis(url) => (Box::new(redis::Redis::open(url, &table).await?), clean),
        };
        Ok(Opened { side, clean })
    }

    async fn drop_table(&self, table: &str) -> Result<(), Failure> {
        match self {
            Self::Sqlite => Ok(()),
            Self::Postgres(url) => postgres::drop_table(url, table).await,
            Self::Mariadb(url) => mariadb::drop_table(url, table).await,
            Self::Redis(url) => redis::drop_keys(url, table).await,
        }
    }
}

/// A name for tables, key prefixes, topics and groups that nobody else uses.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("ratios_{millis:x}_{:x}", NEXT.fetch_add(1, Ordering::Relaxed))
}
