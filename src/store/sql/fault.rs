//! What went wrong, in the few kinds that decide what is done about it.

use std::fmt;

use crate::store::{StoreError, StoreErrorKind};

/// A failed statement or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is dead, or the server is going away: a fresh one may work.
    Broken(String),
    /// The server gave the statement up in favour of another: it may be repeated at once.
    Contended(String),
    /// A row, or the file, stayed locked for longer than a statement waits.
    Locked(String),
    /// Overloaded, starting, or out of room.
    Unavailable(String),
    /// Understood and refused.
    Refused(String),
    /// Not what this crate wrote.
    Corrupt(String),
}

impl Fault {
    /// Sorts a client error; `database` sorts what the server itself said.
    pub(crate) fn of(error: &sqlx::Error, database: fn(&dyn sqlx::error::DatabaseError) -> Self) -> Self {
        use sqlx::Error;
        match error {
            Error::Database(said) => database(said.as_ref()),
            // The host's name is told by nobody: only that it could not be found.
            Error::Io(io) if io.to_string().starts_with("failed to lookup address") => {
                Self::Broken("the host's name could not be resolved: check the URL, or the name service.".into())
            }
            Error::Io(io) => Self::Broken(format!("the connection broke ({}).", io.kind())),
            Error::Protocol(_) => Self::Broken("the server broke the protocol, as dying servers do.".into()),
            Error::WorkerCrashed => Self::Broken("the connection's thread ended.".into()),
            Error::Tls(_) => Self::Refused(
                "TLS could not be set up: check the server's certificate and the URL's TLS settings, and that one of \
                 the features sql-tls-rustls and sql-tls-native is on."
                    .into(),
            ),
            Error::PoolTimedOut => {
                // A pool asks a server that is away until its time is over, and then says only that.
                Self::Unavailable(
                    "the pool had no connection in time: the server is not reached, or every connection stayed in use (then give the pool more)."
                        .into(),
                )
            }
            Error::PoolClosed => Self::Refused("the pool was closed.".into()),
            // The text may quote the URL, and the URL may hold a password.
            Error::Configuration(_) => Self::Refused("the URL or one of its settings is not understood.".into()),
            Error::RowNotFound
            | Error::ColumnDecode { .. }
            | Error::ColumnNotFound(_)
            | Error::ColumnIndexOutOfBounds { .. }
            | Error::Decode(_)
            | Error::TypeNotFound { .. } => {
                Self::Corrupt("a row does not hold what this crate writes. Run check() to see what is wrong.".into())
            }
            Error::Encode(_) => Self::Refused("a value is too large to send.".into()),
            _ => Self::Unavailable("the client gave up.".into()),
        }
    }

    /// Whether the connection may be used again.
    pub(crate) const fn spares_connection(&self) -> bool {
        !matches!(self, Self::Broken(_))
    }

    fn parts(&self) -> (StoreErrorKind, &str) {
        match self {
            Self::Broken(text) | Self::Contended(text) | Self::Locked(text) | Self::Unavailable(text) => {
                (StoreErrorKind::Unavailable, text)
            }
            Self::Refused(text) => (StoreErrorKind::Refused, text),
            Self::Corrupt(text) => (StoreErrorKind::Corrupt, text),
        }
    }

    /// The store's error.
    pub(crate) fn error(&self, store: &'static str, operation: &'static str) -> StoreError {
        let (kind, text) = self.parts();
        StoreError::new(kind, store, operation, text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parts().1)
    }
}
