//! What can go wrong with a store.

use std::error::Error;
use std::sync::Arc;

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Not reached, timed out, overloaded, or too much contention: what was asked may or may not have been done. Retryable.
    Unavailable,
    /// Understood and refused: missing table, missing right, wrong setting, value out of bounds. Not retryable.
    Refused,
    /// What stands in the store is not something this crate wrote. Not retryable.
    Corrupt,
}

/// A store's failure. Cheap to clone, so that each of many callers of one batch gets it.
///
/// Never shows a payload, a key's plain identity, or a connection string.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{store} store could not {operation}: {message}")]
pub struct StoreError {
    store: &'static str,
    operation: &'static str,
    message: String,
    kind: StoreErrorKind,
    #[source]
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of a kind. `operation` completes "could not …"; `message` says why, and what cures it.
    #[must_use]
    pub fn new(kind: StoreErrorKind, store: &'static str, operation: &'static str, message: impl Into<String>) -> Self {
        Self { store, operation, message: message.into(), kind, source: None }
    }

    /// [`StoreErrorKind::Unavailable`].
    #[must_use]
    pub fn unavailable(store: &'static str, operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Unavailable, store, operation, message)
    }

    /// [`StoreErrorKind::Refused`].
    #[must_use]
    pub fn refused(store: &'static str, operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Refused, store, operation, message)
    }

    /// [`StoreErrorKind::Corrupt`].
    #[must_use]
    pub fn corrupt(store: &'static str, operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Corrupt, store, operation, message)
    }

    /// Adds the client library's own error.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What kind of trouble it is.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The store's name.
    #[must_use]
    pub const fn store(&self) -> &'static str {
        self.store
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable)
    }
}
