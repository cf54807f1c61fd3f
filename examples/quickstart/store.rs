//! Opens the store that `--store` names. Each member opens it for itself, as a process of its own would.

use std::path::Path;

use hapax::store::{DedupStore, MemoryStore, SqliteStore};

pub enum Store {
    /// Shared: another member's memory would be another store.
    Memory(MemoryStore),
    Url(String),
}

impl Store {
    pub fn new(url: Option<&str>, folder: &Path) -> Result<Self, String> {
        let Some(url) = url else { return Ok(Self::Url(format!("sqlite:{}", folder.join("hapax.db").display()))) };
        let (kind, _) = url.split_once(':').unwrap_or((url, ""));
        match kind {
            "memory" => Ok(Self::Memory(MemoryStore::new())),
            "sqlite" | "postgres" | "postgresql" | "mysql" | "redis" | "rediss" => Ok(Self::Url(url.to_owned())),
            // The rest of the URL may hold a password: it is not shown.
            _ => Err(format!(
                "--store: there is no store `{kind}:`; write memory:, sqlite:PATH, postgres://…, mysql://… or redis://…"
            )),
        }
    }

    pub async fn open(&self) -> Result<Box<dyn DedupStore>, String> {
        let url = match self {
            Self::Memory(store) => return Ok(Box::new(store.clone())),
            Self::Url(url) => url,
        };
        let store: Box<dyn DedupStore> = match url.split_once(':').map(|(kind, _)| kind) {
            Some("sqlite") => Box::new(SqliteStore::connect(url).await.map_err(|e| cure(&e))?),
            #[cfg(feature = "postgres")]
            Some("postgres" | "postgresql") => {
                Box::new(hapax::store::PostgresStore::connect(url).await.map_err(|e| cure(&e))?)
            }
            #[cfg(feature = "mysql")]
            Some("mysql") => Box::new(hapax::store::MysqlStore::connect(url).await.map_err(|e| cure(&e))?),
            #[cfg(feature = "redis")]
            Some("redis" | "rediss") => Box::new(hapax::store::RedisStore::connect(url).await.map_err(|e| cure(&e))?),
            Some(kind) => {
                let feature = match kind {
                    "postgres" | "postgresql" => "postgres",
                    "mysql" => "mysql",
                    _ => "redis",
                };
                return Err(format!(
                    "--store: this build has no {feature} store; build it in: cargo run --release --example quickstart --features {feature} -- …"
                ));
            }
            None => return Err("--store: write memory:, sqlite:PATH, postgres://…, mysql://… or redis://…".into()),
        };
        Ok(store)
    }
}

fn cure(error: &hapax::store::StoreError) -> String {
    let cure = if error.is_retryable() {
        "start it, or check host and port in the URL"
    } else {
        "check the URL and what it names"
    };
    format!("--store: {}; {cure}", error.to_string().trim_end_matches('.'))
}
