//! How much a database takes at once.

use sqlx::Pool;

use super::Sql;
use crate::inbox::schema::Sql as _;
use crate::store::StoreError;
use crate::store::sql::{Dialect, Fault};
use crate::transaction::sealed::Sealed;
use crate::transaction::sorted;

/// What a statement has besides its rows' values: its head, and the client's own bytes.
const MARGIN: usize = 1024;

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Of the rows of one statement.
    pub(crate) statement: usize,
    /// Of one message: key, headers and payload, and what goes with them.
    pub(crate) message: usize,
}

impl Room {
    /// Within these limits: what a statement should have, and what the database takes.
    pub(super) fn within(statement: usize, taken: usize) -> Self {
        let message = taken.saturating_sub(MARGIN);
        Self { statement: statement.min(message), message }
    }

    /// Asks the database, where that is a setting of it.
    pub(crate) async fn ask<DB: Sealed>(pool: &Pool<DB>) -> Result<Self, StoreError> {
        const OPERATION: &str = "ask how much it takes at once";
        let most = <DB::Dialect as Sql>::TAKES;
        let statement = <DB::Dialect as Sql>::STATEMENT;
        let Some(text) = <DB::Dialect as Sql>::ASK_ROOM else { return Ok(Self::within(statement, most)) };
        let fault = |error: &sqlx::Error| sorted::<DB::Dialect>(error).error(DB::Dialect::NAME, OPERATION);
        let mut conn = pool.acquire().await.map_err(|error| fault(&error))?;
        let found = DB::DIALECT.numbers(&mut conn, text.into(), &[]).await.map_err(|error| fault(&error))?;
        match found.first().and_then(|bytes| usize::try_from(*bytes).ok()) {
            Some(bytes) => Ok(Self::within(statement, most.min(bytes))),
            None => Err(Fault::Corrupt("it did not say.".into()).error(DB::Dialect::NAME, OPERATION)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Room;

    #[test]
    fn a_statement_is_no_larger_than_a_message_may_be() {
        assert_eq!(Room::within(4 << 20, 16 << 20), Room { statement: 4 << 20, message: (16 << 20) - 1024 });
        assert_eq!(Room::within(4 << 20, 1 << 20), Room { statement: (1 << 20) - 1024, message: (1 << 20) - 1024 });
        assert_eq!(Room::within(4 << 20, 10), Room { statement: 0, message: 0 });
    }
}
