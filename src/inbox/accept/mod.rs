//! Taking messages in.

use crate::transaction::Transact;

/// What each database does in its own way here.
pub(crate) trait Sql: Transact {}

#[cfg(feature = "postgres")]
impl Sql for crate::store::postgres::Postgres {}
#[cfg(feature = "mysql")]
impl Sql for crate::store::mysql::Mysql {}
#[cfg(feature = "sqlite")]
impl Sql for crate::store::sqlite::Sqlite {}
