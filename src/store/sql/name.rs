//! Names of tables, the only part of a statement that is not bound.

use std::fmt;

use super::schema::Layout;
use crate::store::StoreError;

/// A checked name, with the schema it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    /// The name a table has unless another one is given.
    pub(crate) fn of(layout: Layout) -> Self {
        Self { schema: None, table: layout.name().to_owned() }
    }

    /// Takes `table` or `schema.table`; each part must match `^[A-Za-z_][A-Za-z0-9_]{0,62}$`.
    pub(crate) fn parse(store: &'static str, name: &str) -> Result<Self, StoreError> {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, name),
        };
        if !(is_plain(table) && schema.is_none_or(is_plain)) {
            return Err(StoreError::refused(
                store,
                "take a table name",
                "it must be `table` or `schema.table`, each part a letter or underscore and then at most 62 letters, \
                 digits or underscores.",
            ));
        }
        Ok(Self { schema: schema.map(str::to_owned), table: table.to_owned() })
    }

    /// The name as it stands in a statement.
    pub(crate) fn quoted(&self, quote: char) -> String {
        match &self.schema {
            Some(schema) => format!("{quote}{schema}{quote}.{quote}{}{quote}", self.table),
            None => format!("{quote}{}{quote}", self.table),
        }
    }

    /// A name without a schema, which must be plain.
    pub(crate) fn plain(table: &str) -> Self {
        Self { schema: None, table: table.into() }
    }

    /// The name that begins like this one and ends so, which must be plain.
    pub(crate) fn with_end(&self, end: &'static str) -> Self {
        Self { schema: self.schema.clone(), table: format!("{}{end}", self.table) }
    }

    /// Another table of the same schema, whose name must be plain.
    pub(crate) fn beside(&self, table: &'static str) -> Self {
        Self { schema: self.schema.clone(), table: table.into() }
    }

    /// The schema, if one was given.
    pub(crate) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table without its schema.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }
}

/// As a sentence names it.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

fn is_plain(part: &str) -> bool {
    let mut bytes = part.bytes();
    part.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::TableName;

    #[test]
    fn plain_names_are_quoted() {
        let name = |name| TableName::parse("test", name).map(|name| name.quoted('"'));
        assert_eq!(name("records").unwrap(), "\"records\"");
        assert_eq!(name("_r2").unwrap(), "\"_r2\"");
        assert_eq!(name("app.records").unwrap(), "\"app\".\"records\"");
        assert_eq!(TableName::parse("test", "app.records").unwrap().to_string(), "app.records");
        assert_eq!(name(&"x".repeat(63)).unwrap().len(), 65);
    }

    #[test]
    fn hostile_names_are_refused() {
        for hostile in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "1a",
            "a-b",
            "a b",
            "a\"b",
            "a`b",
            "a'b",
            "a;DROP TABLE b",
            "a\0",
            "tafel\u{e9}",
            "a\n",
            &"x".repeat(64),
        ] {
            let error = TableName::parse("test", hostile).unwrap_err();
            assert!(!error.is_retryable(), "{hostile:?}");
        }
    }
}
