//! The other side: what a quick hand-written loop does, with one connection, prepared statements and pipelines.

pub mod mariadb;
pub mod postgres;
pub mod redis;
pub mod sqlite;

use async_trait::async_trait;

use crate::data::Row;
use crate::figures::Failure;

#[async_trait]
pub trait Bare: Send {
    /// Inserts rows that are not there yet, and says how many were not.
    async fn insert(&mut self, rows: &[Row]) -> Result<usize, Failure>;

    /// Sets the number of rows that are there, and says how many were.
    async fn update(&mut self, rows: &[Row]) -> Result<usize, Failure>;
}

/// `prefix`, then `count` times `group` with commas between, then `suffix`.
pub fn repeated(prefix: &str, group: &str, count: usize, suffix: &str) -> String {
    let mut sql = String::with_capacity(prefix.len() + count * (group.len() + 1) + suffix.len());
    sql.push_str(prefix);
    for n in 0..count {
        if n > 0 {
            sql.push(',');
        }
        sql.push_str(group);
    }
    sql.push_str(suffix);
    sql
}
