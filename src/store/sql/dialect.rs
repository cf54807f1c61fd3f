//! What one database does in its own way.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use std::sync::Arc;

use sqlx::Database;
use sqlx::error::DatabaseError;

use super::fault::Fault;
use super::name::TableName;
use super::rows::{Kind, Reading, Values};
use super::schema::Layout;
use super::statement::{Expr, Field, Join, Statement, insert_select, update_alike, update_from};
use crate::store::Report;

/// A dialect's connection.
pub(crate) type Conn<D> = <<D as Dialect>::Db as Database>::Connection;

/// What a table says about who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    /// There is no such table.
    Absent,
    /// There is one, with this comment.
    Says(String),
    /// The database itself cannot be used: what is wrong, and the cure.
    #[cfg(feature = "sqlite")]
    Unusable(&'static str, &'static str),
}

/// A statement to run.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) statement: Statement,
    pub(crate) text: Arc<str>,
    pub(crate) values: &'a Values,
    /// Rows it is written for.
    pub(crate) size: usize,
    /// Whether it is kept prepared.
    pub(crate) keep: bool,
}

/// Text, binding and decoding of one database. Everything else is the engine's.
pub(crate) trait Dialect: Debug + Clone + Send + Sync + 'static {
    /// The client's type for it.
    type Db: Database;
    /// The store's name.
    const NAME: &'static str;
    /// What stands around names.
    const QUOTE: char;
    /// The function that gives the larger of two.
    const GREATEST: &'static str;
    /// Rows in one statement.
    const LARGEST: usize;
    /// Whether a connection is usable after a statement's future was dropped.
    const SURVIVES_CANCEL: bool;
    /// Whether locks are held on rows, so that a smaller batch may get through.
    const LOCKS_ROWS: bool;

    /// How an insert from a table begins and ends that leaves alone what stands.
    const IGNORING: [&'static str; 2] = ["INSERT", " ON CONFLICT DO NOTHING"];

    /// The clock, in milliseconds. Naming it makes a statement that waits for a lock give up after `patience`, where
    /// that is not a setting of the connection.
    fn now(&self, patience: Duration) -> String;

    /// The placeholder of a value, by number from 1.
    fn placeholder(number: usize, kind: Kind) -> String;

    /// The batch as a table.
    fn source(fields: &[Field], first: usize, size: usize) -> String;

    /// `IN` or `= ANY` over a batch of keys.
    fn among(first: usize, size: usize) -> String;

    /// An insert that leaves alone what stands, and counts only what it inserted.
    fn insert(
        table: &str,
        columns: &[&str],
        exprs: &[Expr],
        fields: &[Field],
        scalars: usize,
        now: &str,
        size: usize,
    ) -> String {
        insert_select::<Self>(table, columns, exprs, fields, scalars, now, size)
    }

    /// An update that counts the rows that met its conditions.
    fn update(table: &str, join: &Join<'_>, size: usize) -> String {
        update_from::<Self>(table, join, size)
    }

    /// An update that sets the same in the rows of a batch of keys and fingerprints.
    fn update_alike(table: &str, set: &[(&'static str, String)], on: &str, first: usize, size: usize) -> String {
        update_alike::<Self>(table, set, on, first, size)
    }

    /// A read of a batch of keys that gives the clock even where nothing stands.
    fn read(table: &str, now: &str, size: usize) -> String;

    /// Of so many rows: how many the next statement takes, and for how many it is written.
    fn step(rows: usize) -> (usize, usize) {
        let take = rows.min(Self::LARGEST);
        (take, 1)
    }

    /// The size a statement is written for, where that depends on the values.
    fn shape(_values: &Values, size: usize) -> usize {
        size
    }

    /// Prepares a connection of the store's own.
    fn greet(&self, conn: &mut Conn<Self>, patience: Duration) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Runs a statement and says how many rows it changed.
    fn execute(&self, conn: &mut Conn<Self>, call: Call<'_>) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Reads records.
    fn fetch(
        &self,
        conn: &mut Conn<Self>,
        call: Call<'_>,
    ) -> impl Future<Output = Result<Option<Reading>, sqlx::Error>> + Send;

    /// Reads keys.
    fn keys(
        &self,
        conn: &mut Conn<Self>,
        call: Call<'_>,
    ) -> impl Future<Output = Result<Vec<Vec<u8>>, sqlx::Error>> + Send;

    /// Who made the table.
    fn marker(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
    ) -> impl Future<Output = Result<Marker, sqlx::Error>> + Send;

    /// The statements that make a table, under [`Layout::name`], quoted.
    fn schema(layout: Layout) -> &'static str;

    /// Runs the statements that make the table; safe when several do so at once.
    fn create(&self, conn: &mut Conn<Self>, text: String) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Looks for unsafe settings of the server.
    fn settings(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
        report: &mut Report,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Looks for what is wrong with a table, if it is there.
    fn inspect(
        &self,
        conn: &mut Conn<Self>,
        layout: Layout,
        table: &TableName,
        report: &mut Report,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Sorts what the server said.
    fn fault(error: &dyn DatabaseError) -> Fault;
}
