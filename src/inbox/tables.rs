//! Names of the inbox's tables: all of them from one checked prefix.

use crate::store::StoreError;
use crate::store::sql::{Dialect, TableName};

/// What the names begin with unless told otherwise. The files in `migrations/` use it.
pub(crate) const PREFIX: &str = "hapax_inbox";
/// The crate's own table of versions, in the same schema.
pub(crate) const VERSIONS: &str = "hapax_schema";
/// So long that the longest name made of it is still one.
const LONGEST: usize = 40;

/// The tables of an inbox, quoted as they stand in statements.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    /// `…_handlers`: one row for each scope.
    pub(crate) handlers: String,
    /// The messages, as they came.
    pub(crate) messages: String,
    /// `…_open`: what is not finished.
    pub(crate) open: String,
    /// `…_runs`
    pub(crate) runs: String,
    /// `…_attempts`
    pub(crate) attempts: String,
    /// `…_edits`
    pub(crate) edits: String,
    /// `…_acts`
    pub(crate) acts: String,
    /// `hapax_schema`
    pub(crate) versions: String,
    /// The prefix, with its schema if there is one.
    pub(crate) prefix: TableName,
}

impl Tables {
    /// Takes `prefix` or `schema.prefix`, each as for a table's name; the prefix has 40 characters at most.
    pub(crate) fn parse<D: Dialect>(prefix: &str) -> Result<Self, StoreError> {
        let name = TableName::parse(D::NAME, prefix)?;
        if name.table().len() > LONGEST {
            let text = "the prefix of the inbox's tables may have 40 characters at most.";
            return Err(StoreError::refused(D::NAME, "take a table name", text));
        }
        let quoted = |end: &'static str| name.with_end(end).quoted(D::QUOTE);
        Ok(Self {
            handlers: quoted("_handlers"),
            messages: quoted(""),
            open: quoted("_open"),
            runs: quoted("_runs"),
            attempts: quoted("_attempts"),
            edits: quoted("_edits"),
            acts: quoted("_acts"),
            versions: name.beside(VERSIONS).quoted(D::QUOTE),
            prefix: name,
        })
    }

    /// The table of windows, made by a file of its own.
    pub(crate) fn windows(&self) -> TableName {
        self.prefix.with_end("_windows")
    }
}
