//! The effects: a table of this example's own. It has no unique index, so that an effect that happens twice is seen twice.

use std::collections::HashSet;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

#[derive(Clone)]
pub struct Effects(SqlitePool);

impl Effects {
    pub async fn open(folder: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(folder.join("effects.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Off);
        let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false).connect_with(options).await?;
        sqlx::query("CREATE TABLE effect (id TEXT NOT NULL, member TEXT NOT NULL)").execute(&pool).await?;
        Ok(Self(pool))
    }

    /// The effect: what must happen once for each message.
    pub async fn add(&self, id: &str, member: &str) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO effect (id, member) VALUES (?, ?)").bind(id).bind(member).execute(&self.0).await?;
        Ok(())
    }

    pub async fn count(&self) -> Result<u64, sqlx::Error> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM effect").fetch_one(&self.0).await?;
        Ok(count.unsigned_abs())
    }

    /// Counts the table against the ids that had to have an effect.
    pub async fn verdict(&self, expected: &HashSet<String>) -> Result<Verdict, sqlx::Error> {
        let all: Vec<String> = sqlx::query_scalar("SELECT id FROM effect").fetch_all(&self.0).await?;
        let distinct: HashSet<&String> = all.iter().collect();
        Ok(Verdict {
            effects: all.len(),
            lost: expected.iter().filter(|id| !distinct.contains(id)).count(),
            doubled: all.len() - distinct.len(),
            unknown: distinct.iter().filter(|id| !expected.contains(**id)).count(),
        })
    }
}

pub struct Verdict {
    pub effects: usize,
    /// Messages without an effect.
    pub lost: usize,
    /// Effects beyond the first of a message.
    pub doubled: usize,
    /// Effects of messages that nobody produced.
    pub unknown: usize,
}

impl Verdict {
    pub const fn is_good(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.unknown == 0
    }
}
