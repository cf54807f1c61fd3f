//! The store that `--store` names.

use std::time::Duration;

use hapax::store::{DedupStore, MemoryStore, MysqlStore, PostgresStore, RedisStore, SqliteStore, StoreError};
use hapax::{BuildError, Once};

const PURGE_EVERY: Duration = Duration::from_secs(60);
/// Few enough that nobody has to wait for it.
const PURGE_ROWS: usize = 1_000;

pub async fn open(url: &str) -> Result<Box<dyn DedupStore>, String> {
    let store: Box<dyn DedupStore> = match url.split_once(':').map_or(url, |(kind, _)| kind) {
        "memory" => Box::new(MemoryStore::new()),
        "sqlite" => Box::new(SqliteStore::connect(url).await.map_err(|e| cure(&e))?),
        "postgres" | "postgresql" => Box::new(PostgresStore::connect(url).await.map_err(|e| cure(&e))?),
        "mysql" => Box::new(MysqlStore::connect(url).await.map_err(|e| cure(&e))?),
        "redis" | "rediss" => Box::new(RedisStore::connect(url).await.map_err(|e| cure(&e))?),
        // The rest of the URL may hold a password: it is not shown.
        kind => {
            return Err(format!(
                "--store: there is no store `{kind}:`; write redis://…, postgres://…, mysql://…, sqlite:PATH or memory:"
            ));
        }
    };
    Ok(store)
}

fn cure(error: &StoreError) -> String {
    let cure = if error.is_retryable() {
        "start it, or check host and port in the URL"
    } else {
        "check the URL and what it names"
    };
    format!("--store: {}; {cure}", error.to_string().trim_end_matches('.'))
}

/// What to do when the store is there and cannot be used.
pub fn cannot_build(error: &BuildError) -> String {
    match error {
        BuildError::Store(error) => cure(error),
        // The others say it themselves.
        other => format!("--store: {other}"),
    }
}

/// Removes what is past its retention, bit by bit, for as long as it is awaited. Redis expires by itself.
pub async fn upkeep(once: Once) {
    loop {
        tokio::time::sleep(PURGE_EVERY).await;
        while let Ok(purged) = once.store().purge(PURGE_ROWS).await
            && purged.more
        {}
    }
}
