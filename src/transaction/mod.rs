//! Effects once: the handler's effects and what is remembered of the message commit together. Level L2.

#[cfg(all(test, feature = "sqlite"))]
mod contract;
mod core;
mod dialect;
mod link;
#[cfg(feature = "mysql")]
mod mysql;
mod outcome;
#[cfg(feature = "postgres")]
mod postgres;
mod records;
mod runner;
#[cfg(feature = "sqlite")]
mod sqlite;
mod trial;
mod windows;

/// A database that a handler and this crate can share a transaction in: `sqlx::Postgres`, `sqlx::MySql`, `sqlx::Sqlite`. Sealed.
#[allow(private_bounds, reason = "sealed")]
pub trait TransactionalDatabase: sealed::Sealed {}

mod sealed {
    use super::dialect::Transact;

    #[allow(unreachable_pub, reason = "sealed")]
    pub(crate) trait Sealed: sqlx::Database + Sized {
        type Dialect: Transact<Db = Self>;
        const DIALECT: Self::Dialect;
    }
}

#[cfg(feature = "postgres")]
impl sealed::Sealed for sqlx::Postgres {
    type Dialect = crate::store::postgres::Postgres;
    const DIALECT: Self::Dialect = crate::store::postgres::Postgres;
}
#[cfg(feature = "postgres")]
impl TransactionalDatabase for sqlx::Postgres {}

#[cfg(feature = "mysql")]
impl sealed::Sealed for sqlx::MySql {
    type Dialect = crate::store::mysql::Mysql;
    const DIALECT: Self::Dialect = crate::store::mysql::Mysql;
}
#[cfg(feature = "mysql")]
impl TransactionalDatabase for sqlx::MySql {}

#[cfg(feature = "sqlite")]
impl sealed::Sealed for sqlx::Sqlite {
    type Dialect = crate::store::sqlite::Sqlite;
    const DIALECT: Self::Dialect = crate::store::sqlite::Sqlite;
}
#[cfg(feature = "sqlite")]
impl TransactionalDatabase for sqlx::Sqlite {}
