//! Forgetting what is past retention, in small steps and without an index on time.

use std::sync::PoisonError;

use super::dialect::{Conn, Dialect};
use super::engine::{Engine, Run};
use super::rows::Values;
use super::statement::{Statement, keeps};
use crate::identity::Key;
use crate::store::{Purged, StoreError};

/// Records that one step looks at, in the order of their keys.
const PAGE: usize = 4096;
/// Steps of one call.
const PAGES: usize = 16;
/// At least every key.
const LAST: [u8; 16] = [0xff; 16];
const OPERATION: &str = "purge";

struct Keys<'a> {
    statement: Statement,
    values: &'a Values,
}

impl<D: Dialect> Run<D> for Keys<'_> {
    type Answer = Vec<Vec<u8>>;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<Vec<Vec<u8>>, sqlx::Error> {
        engine.dialect.keys(conn, engine.call(self.statement, self.values, 1)).await
    }
}

struct DropKeys<'a> {
    values: &'a Values,
    size: usize,
}

impl<D: Dialect> Run<D> for DropKeys<'_> {
    type Answer = u64;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<u64, sqlx::Error> {
        engine.dialect.execute(conn, engine.call(Statement::PurgeDrop, self.values, self.size)).await
    }
}

impl<D: Dialect> Engine<D> {
    /// Goes on where the last purge stopped, and looks at no more than [`PAGE`] times [`PAGES`] records.
    pub(crate) async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        let mut removed = 0;
        if limit == 0 {
            return Ok(Purged::default());
        }
        for _ in 0..PAGES {
            let (count, ended) = self.purge_page(limit - removed).await?;
            removed += count;
            if ended {
                return Ok(Purged::new(removed, false));
            }
            if removed >= limit {
                break;
            }
        }
        Ok(Purged::new(removed, true))
    }

    /// One step: how many were removed, and whether that was the end of the table.
    async fn purge_page(&self, limit: usize) -> Result<(usize, bool), StoreError> {
        let from = self.cursor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let page = Values::rows(0).blob(from.clone()).scalar(int(PAGE - 1));
        let edge = self.run(OPERATION, &Keys { statement: Statement::PurgeEdge, values: &page }).await?.pop();
        let ended = edge.is_none();
        let edge = edge.unwrap_or_else(|| LAST.to_vec());
        let pick = keeps(Values::rows(0).blob(from).blob(edge.clone()), &self.retention).scalar(int(limit));
        let picked = self.run(OPERATION, &Keys { statement: Statement::PurgePick, values: &pick }).await?;
        let keys: Vec<Key> = picked.iter().filter_map(|key| Key::from_slice(key)).collect();
        let mut removed = 0;
        let mut rest = keys.as_slice();
        while !rest.is_empty() {
            let (take, size) = D::step(rest.len());
            let (some, later) = rest.split_at(take);
            rest = later;
            let values = keeps(Values::rows(some.len()), &self.retention).keys(some);
            removed += self.run(OPERATION, &DropKeys { values: &values, size }).await?;
        }
        // A page that was cut off by the limit is looked at again.
        let cut = keys.len() >= limit;
        if !cut {
            let next = if ended { Vec::new() } else { edge };
            *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = next;
        }
        Ok((usize::try_from(removed).unwrap_or(limit), ended && !cut))
    }
}

fn int(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
