//! A handler call inside a transaction that goes on after it: panics caught, time bounded, and back to its savepoint if it failed.

use std::future::Future;
use std::time::Duration;

use super::dialect::Transact;
use super::link::{Tx, sorted};
use super::outcome::{Misuse, Why};
use super::sealed::Sealed;
use crate::store::sql::Fault;
use crate::wrapper::{Failure, HandlerError, caught};

/// How a handler's call left the transaction.
pub(crate) enum Called<E> {
    /// The handler ended well, and its savepoint is released.
    Well,
    /// The handler failed, and its effects are gone: the savepoint is still set.
    Failed(Why<E>),
    /// The handler panicked, or was dropped: nobody knows what its connection is in the middle of. Close it.
    Torn(Failure<E>),
    /// The transaction was over when the handler returned, of which it said this. Close the connection.
    Over(Option<Why<E>>),
    /// The database gave up a statement of the handler in favour of another. Roll back.
    Rollback(Fault),
    /// The connection was gone when the handler returned, of which it said this. Close it.
    Lost(Why<E>, Fault),
    /// The database failed. Close the connection.
    Close(Fault),
}

/// Runs a handler: panics caught, time bounded.
pub(crate) async fn bounded<E>(
    longest: Option<Duration>,
    handler: impl Future<Output = Result<(), E>>,
) -> Result<(), Failure<E>> {
    let running = caught(handler);
    match longest {
        None => running.await,
        Some(longest) => match tokio::time::timeout(longest, running).await {
            Ok(ended) => ended,
            Err(_) => Err(Failure::TimedOut(longest)),
        },
    }
}

/// The handler was called under the savepoint and ended so. `next`: another one follows, under a savepoint of its own.
pub(crate) async fn called<DB: Sealed, E: HandlerError>(
    tx: &mut Tx<DB>,
    ended: Result<(), Failure<E>>,
    next: bool,
) -> Called<E> {
    match ended {
        Ok(()) => well(tx, next).await,
        Err(Failure::Error(error)) if error.is_contention() => Called::Rollback(Fault::Contended(error.to_string())),
        Err(Failure::Error(error)) => back(tx, Why::Handler(Failure::Error(error))).await,
        Err(failure) => Called::Torn(failure),
    }
}

/// It ended well: whether its transaction is what it was.
async fn well<DB: Sealed, E>(tx: &mut Tx<DB>, next: bool) -> Called<E> {
    let released = match tx.conn() {
        Ok(conn) if next => DB::DIALECT.next_savepoint(conn).await,
        Ok(conn) => DB::DIALECT.release(conn).await,
        Err(fault) => return Called::Close(fault),
    };
    let fault = match released {
        Ok(()) if tx.is_level() => return Called::Well,
        Ok(()) => return Called::Over(None),
        Err(error) => sorted::<DB::Dialect>(&error),
    };
    match fault {
        Fault::Broken(_) => return Called::Lost(Why::Misused(Misuse::Swallowed), fault),
        Fault::Contended(_) => return Called::Close(fault),
        _ => {}
    }
    match tx.conn() {
        Ok(conn) => match DB::DIALECT.back_to_savepoint(conn).await {
            Ok(()) => Called::Failed(Why::Misused(Misuse::Swallowed)),
            Err(_) => Called::Over(None),
        },
        Err(fault) => Called::Close(fault),
    }
}

/// It failed: back to where it began.
async fn back<DB: Sealed, E>(tx: &mut Tx<DB>, why: Why<E>) -> Called<E> {
    let undone = match tx.conn() {
        Ok(conn) => DB::DIALECT.back_to_savepoint(conn).await,
        Err(fault) => return Called::Close(fault),
    };
    match undone {
        Ok(()) if tx.is_level() => Called::Failed(why),
        Ok(()) => Called::Over(None),
        Err(error) => match sorted::<DB::Dialect>(&error) {
            fault @ Fault::Broken(_) => Called::Lost(why, fault),
            _ => Called::Over(Some(why)),
        },
    }
}
