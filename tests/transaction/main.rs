//! Effects once (level L2): handlers inside the database's own transactions, on PostgreSQL, MariaDB and SQLite. Effects are counted by connections of
//! their own.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod base;
mod cancel;
mod contend;
mod failing;
mod killed;
mod lost;
mod misuse;
mod once;
mod poison;
mod schema;
mod trust;
mod window;

pub use world::{once, tune};

mod world {
    use std::time::Duration;

    use hapax::identity::Identify;
    use hapax::{Once, Retry, Transactional, TransactionalBuilder};
    use sqlx::Pool;

    use crate::base::{Base, Tables};

    /// What tests change of a builder.
    pub fn tune<DB: Base>(
        pool: &Pool<DB>,
        tables: &Tables,
        identify: impl Identify + 'static,
    ) -> TransactionalBuilder<DB> {
        Once::transactional(pool.clone())
            .scope("tests", &tables.effects)
            .identify(identify)
            .retry(Retry::fixed(Duration::from_millis(5)).attempts(3))
            .lock_timeout(Duration::from_millis(300))
            .store_patience(Duration::from_secs(40))
            .with_table(&tables.records)
            .with_windows_table(&tables.windows)
    }

    /// A process of its own, as far as the database can tell.
    pub async fn once<DB: Base>(
        pool: &Pool<DB>,
        tables: &Tables,
        identify: impl Identify + 'static,
    ) -> Transactional<DB> {
        tune(pool, tables, identify).build().await.unwrap()
    }
}
