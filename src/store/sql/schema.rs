//! Making our tables, and telling whose they are.

use sqlx::Connection;

use super::dialect::{Conn, Dialect, Marker};
use super::engine::{Engine, Run};
use super::name::TableName;
use crate::store::{Report, StoreError};

/// One of our tables, and the version of it that this crate writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A row for each message.
    Records,
    /// A row for each partition, or source.
    Windows,
}

impl Layout {
    /// The table's name unless another one is given. The files in `migrations/` use it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Records => "hapax_records",
            Self::Windows => "hapax_windows",
        }
    }

    /// The column that no two rows may share.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Records => "message_key",
            Self::Windows => "source",
        }
    }

    /// What happens where two rows do share it.
    pub(crate) const fn danger(self) -> &'static str {
        match self {
            Self::Records => "one message could be claimed twice",
            Self::Windows => "one partition could have two windows",
        }
    }

    const fn version(self) -> u32 {
        match self {
            Self::Records | Self::Windows => 1,
        }
    }

    /// What stands before the version in a table's comment. None is the end of another.
    const fn mark(self) -> &'static str {
        match self {
            Self::Records => "hapax schema ",
            Self::Windows => "hapax windows schema ",
        }
    }
}

/// A question about one table.
struct Look<'a>(&'a TableName);

impl<D: Dialect> Run<D> for Look<'_> {
    type Answer = Marker;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<Marker, sqlx::Error> {
        engine.dialect.marker(conn, self.0).await
    }
}

struct Create<'a>(Layout, &'a TableName);

impl<D: Dialect> Run<D> for Create<'_> {
    type Answer = ();

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<(), sqlx::Error> {
        let usual = TableName::of(self.0).quoted(D::QUOTE);
        let text = D::schema(self.0).replace(&usual, &self.1.quoted(D::QUOTE));
        engine.dialect.create(conn, text).await
    }
}

struct Script<'a>(&'a str);

impl<D: Dialect> Run<D> for Script<'_> {
    type Answer = ();

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<(), sqlx::Error> {
        engine.dialect.create(conn, self.0.to_owned()).await
    }
}

struct Inspect<'a>(&'a [(Layout, &'a TableName)]);

impl<D: Dialect> Run<D> for Inspect<'_> {
    type Answer = Report;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<Report, sqlx::Error> {
        let mut report = Report::new();
        conn.ping().await?;
        for (number, &(layout, table)) in self.0.iter().enumerate() {
            if number == 0 {
                engine.dialect.settings(conn, table, &mut report).await?;
            }
            engine.dialect.inspect(conn, layout, table, &mut report).await?;
        }
        Ok(report)
    }
}

impl<D: Dialect> Engine<D> {
    /// Makes the store's table where it is missing; refuses one that is not ours, or newer.
    pub(crate) async fn ensure_schema(&self) -> Result<(), StoreError> {
        self.ensure(Layout::Records, &self.table).await
    }

    /// Looks for unsafe settings, of the server and of the store's table.
    pub(crate) async fn check(&self) -> Result<Report, StoreError> {
        self.examine(&[(Layout::Records, &self.table)]).await
    }

    /// Who made a table.
    pub(crate) async fn marker(&self, table: &TableName) -> Result<Marker, StoreError> {
        self.run("look at its tables", &Look(table)).await
    }

    /// Runs statements that make tables, and are safe to repeat.
    pub(crate) async fn script(&self, text: &str) -> Result<(), StoreError> {
        self.run("make its tables", &Script(text)).await
    }

    /// Makes a table where it is missing; refuses one that is not ours, or newer.
    pub(crate) async fn ensure(&self, layout: Layout, table: &TableName) -> Result<(), StoreError> {
        const OPERATION: &str = "make its table";
        if self.run(OPERATION, &Look(table)).await? == Marker::Absent {
            self.run(OPERATION, &Create(layout, table)).await?;
        }
        match judge(layout, table, &self.run(OPERATION, &Look(table)).await?) {
            None => Ok(()),
            Some((problem, cure)) => Err(StoreError::refused(D::NAME, OPERATION, format!("{problem} {cure}"))),
        }
    }

    /// Looks for unsafe settings, of the server and of tables.
    pub(crate) async fn examine(&self, tables: &[(Layout, &TableName)]) -> Result<Report, StoreError> {
        const OPERATION: &str = "check its settings";
        let mut report = Report::new();
        for &(layout, table) in tables {
            let marker = self.run(OPERATION, &Look(table)).await?;
            if let Some((problem, cure)) = judge(layout, table, &marker) {
                report.error("table", problem, cure);
            }
        }
        report.extend(self.run(OPERATION, &Inspect(tables)).await?);
        Ok(report)
    }
}

/// What is wrong with a table, and the cure.
fn judge(layout: Layout, table: &TableName, marker: &Marker) -> Option<(String, &'static str)> {
    let known = layout.version();
    let comment = match marker {
        Marker::Absent => {
            return Some((
                format!("the table {table} is missing."),
                "Run ensure_schema(), or the file in migrations/.",
            ));
        }
        #[cfg(feature = "sqlite")]
        Marker::Unusable(problem, cure) => return Some(((*problem).into(), cure)),
        Marker::Says(comment) => comment,
    };
    let version = comment.split_once(layout.mark()).map(|(_, rest)| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse::<u32>()
    });
    match version {
        Some(Ok(version)) if version == known => None,
        Some(Ok(newer)) if newer > known => Some((
            format!("the table {table} has schema {newer}, and this version of hapax knows {known}."),
            "Use the version of hapax that made it, or a newer one.",
        )),
        Some(Ok(older)) => Some((
            format!("the table {table} has schema {older}, and this version of hapax needs {known}."),
            "Run the newer files in migrations/.",
        )),
        _ => Some((
            format!(
                "a table {table} is there that hapax did not make for this: its comment lacks the schema's version."
            ),
            "Give another name, or make the table with ensure_schema() or the file in migrations/.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, Marker, TableName, judge};

    const LAYOUTS: [Layout; 2] = [Layout::Records, Layout::Windows];

    #[test]
    fn schemas_are_told_apart() {
        for layout in LAYOUTS {
            let mark = layout.mark();
            let says = |text: String| judge(layout, &TableName::of(layout), &Marker::Says(text));
            assert_eq!(says(format!("{mark}1")), None);
            assert_eq!(says(format!("-- {mark}1\n more")), None);
            assert!(says(format!("{mark}2")).unwrap().0.contains("schema 2"));
            assert!(says(format!("{mark}0")).unwrap().1.contains("newer files"));
            assert!(says("orders of 2024".into()).unwrap().0.contains("did not make"));
            assert!(says(mark.into()).unwrap().0.contains("did not make"));
            let absent = judge(layout, &TableName::of(layout), &Marker::Absent).unwrap();
            assert!(absent.1.contains("ensure_schema()") && absent.0.contains(layout.name()), "{absent:?}");
        }
    }

    #[test]
    fn one_of_our_tables_is_not_taken_for_another() {
        for layout in LAYOUTS {
            for other in LAYOUTS.into_iter().filter(|other| *other != layout) {
                let marker = Marker::Says(format!("{}1", other.mark()));
                assert!(judge(layout, &TableName::of(layout), &marker).unwrap().0.contains("did not make"));
            }
        }
    }
}
