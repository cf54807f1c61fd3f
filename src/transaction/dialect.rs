//! What one database does in its own way inside a transaction of ours.
//!
//! Records are written by the statements of the store ([`Dialect`]); here is what a store does not need: transactions, and windows.

use std::future::Future;
use std::time::Duration;

use sqlx::{ColumnIndex, Database, Decode, Error, Type};

use crate::record::Owner;
use crate::store::sql::{Conn, Dialect, TableName};
use crate::window::Sequences;

/// sqlx's keeper of how deep transactions are nested.
pub(crate) type Manager<D> = <<D as Dialect>::Db as Database>::TransactionManager;

/// A window's row is found by this: a digest of scope and partition, or of scope and producer's source.
pub(crate) type Source = [u8; 16];

/// The `next` of a row that has never moved.
pub(crate) const NEVER: i64 = -1;

/// A window as it stands in its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) source: Source,
    pub(crate) fence: i64,
    /// [`NEVER`] until it first moves.
    pub(crate) next: i64,
    /// Encoded by `window`; empty until it first moves.
    pub(crate) state: Vec<u8>,
    pub(crate) note: Option<Vec<u8>>,
}

impl Row {
    /// Reads the columns source, fence, next, state and note, in this order.
    pub(super) fn read<'r, R>(row: &'r R) -> Result<Self, Error>
    where
        R: sqlx::Row,
        usize: ColumnIndex<R>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
        &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
        Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    {
        let source: &[u8] = row.try_get(0)?;
        Ok(Self {
            source: source.try_into().map_err(|_| Error::Decode("a window's source has 16 bytes".into()))?,
            fence: row.try_get(1)?,
            next: row.try_get(2)?,
            state: row.try_get(3)?,
            note: row.try_get(4)?,
        })
    }

    /// What to write of a producer's window that was read from here, under the same fence.
    pub(super) fn shift(&self, window: &Sequences) -> Shift {
        let written = window.row();
        Shift { source: self.source, fence: self.fence, next: written.next, state: written.state, note: None }
    }
}

/// A window to write where its fence still stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shift {
    pub(crate) source: Source,
    /// What must stand.
    pub(crate) fence: i64,
    pub(crate) next: i64,
    pub(crate) state: Vec<u8>,
    /// `None` leaves what stands.
    pub(crate) note: Option<Vec<u8>>,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    /// How long its statements wait for somebody's lock.
    pub(crate) patience: Duration,
    /// How long any of its statements may take, where somebody who waits for it gives up then.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) longest: Option<Duration>,
    /// The last transaction of this connection began with the same patience, and what was set for it was not put back.
    pub(crate) again: bool,
    /// Whoever owns what the transaction remembers of messages; `None` where it remembers nothing by their identity.
    #[cfg_attr(not(feature = "mysql"), allow(dead_code))]
    pub(crate) owner: Option<Owner>,
    /// Sets the batch's savepoint too: who finds it set at the end knows that nobody has ended the transaction meanwhile.
    pub(crate) guarded: bool,
}

impl Beginning {
    /// Sets the batch's savepoint, if it is to be set: to be appended to what begins a transaction.
    #[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
    pub(super) const fn guard(self) -> &'static str {
        if self.guarded { "; SAVEPOINT hapax_batch" } else { "" }
    }
}

/// Bytes in hexadecimal digits, for a statement's text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A dialect that can share a transaction with a handler. All statements are run inside a transaction that [`begin`](Self::begin) began.
/// Batches of sources are sorted, without repetition, and small: one for each partition in hand.
pub(crate) trait Transact: Dialect {
    /// Whether the database may end a transaction by itself, as MySQL does at a deadlock and SQLite when its disk is full.
    const ROLLS_BACK: bool = true;
    /// Whether one transaction writes at a time, so that those of one process had better queue here.
    const ONE_WRITER: bool = false;

    /// Whether all that is written under a savepoint costs more than what is written before it: then records are written first.
    const GUARDS_LATE: bool = false;

    /// Begins a transaction on a connection that is in none, through sqlx's transaction manager, so that a handler's own `begin` makes a
    /// savepoint. None of its statements may wait longer than its patience (or the shortest time the database knows, if that is
    /// longer) for somebody's lock.
    fn begin(&self, conn: &mut Conn<Self>, how: Beginning) -> impl Future<Output = Result<(), Error>> + Send;

    /// Puts back what [`begin`](Self::begin) set and the end of the transaction did not; called after commit or rollback, once for all
    /// transactions since. A connection on which this fails is closed.
    fn restore(&self, _conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// Runs statements without values, in one round trip where the database takes several at once.
    fn plain(&self, conn: &mut Conn<Self>, text: &'static str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Raises the fence of each row by one, makes it with fence 1 and [`NEVER`] where it is missing, and reads it then. Rows come in
    /// any order.
    fn raise(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
        sources: &[Source],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// Makes the rows that are missing, with fence 0 and [`NEVER`]; leaves alone what stands.
    fn plant(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
        sources: &[Source],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads rows as they stand now, and locks them until the transaction ends, in the order given. Rows come in any order.
    fn load(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
        sources: &[Source],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// Writes `next`, `state`, `note` (if given) and `time` (the database's clock) of each row whose fence still stands, and says of
    /// how many that was so (whether or not a value changed).
    fn shift(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
        shifts: &[Shift],
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Releases the batch's savepoint, and then does what [`shift`](Self::shift) does, in one round trip.
    fn release_and_shift(
        &self,
        conn: &mut Conn<Self>,
        table: &TableName,
        shifts: &[Shift],
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Whether this says that a savepoint could not be released: it was gone, or a statement after it had been refused.
    fn is_unguarded(&self, error: &Error) -> bool;

    /// Sets the batch's savepoint in a transaction that began without.
    fn guard(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "SAVEPOINT hapax_batch")
    }

    /// Releases the batch's savepoint. An error means that the transaction is over, or that one of its statements was refused.
    fn release_batch(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "RELEASE SAVEPOINT hapax_batch")
    }

    /// Goes back to the batch's savepoint, which stays set. An error means that the transaction is over.
    fn back_to_batch(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "ROLLBACK TO SAVEPOINT hapax_batch")
    }

    /// The database's clock in milliseconds.
    fn clock(&self) -> String {
        self.now(Duration::from_secs(1))
    }

    /// Sets the savepoint. Savepoints are ours, not sqlx's: a handler's own nest inside it.
    fn savepoint(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "SAVEPOINT hapax_handler")
    }

    /// Releases the savepoint. An error means that the transaction is over, or that one of its statements was refused.
    fn release(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "RELEASE SAVEPOINT hapax_handler")
    }

    /// Releases the savepoint and sets it anew, in one round trip.
    fn next_savepoint(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "RELEASE SAVEPOINT hapax_handler; SAVEPOINT hapax_handler")
    }

    /// Goes back to the savepoint, which stays set. An error means that the transaction is over.
    fn back_to_savepoint(&self, conn: &mut Conn<Self>) -> impl Future<Output = Result<(), Error>> + Send {
        self.plain(conn, "ROLLBACK TO SAVEPOINT hapax_handler")
    }
}
