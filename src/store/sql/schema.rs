//! Making the table, and telling whose it is.

use sqlx::Connection;

use super::dialect::{Conn, Dialect, Marker};
use super::engine::{Engine, Run};
use super::name::DEFAULT_TABLE;
use crate::store::{Report, StoreError};

/// What this version writes and reads.
const VERSION: u32 = 1;
/// What stands before the version in a table's comment.
const MARK: &str = "hapax schema ";

struct Look;

impl<D: Dialect> Run<D> for Look {
    type Answer = Marker;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<Marker, sqlx::Error> {
        engine.dialect.marker(conn, &engine.table).await
    }
}

struct Create;

impl<D: Dialect> Run<D> for Create {
    type Answer = ();

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<(), sqlx::Error> {
        let default = format!("{0}{DEFAULT_TABLE}{0}", D::QUOTE);
        let text = D::SCHEMA.replace(&default, &engine.table.quoted(D::QUOTE));
        engine.dialect.create(conn, text).await
    }
}

struct Inspect;

impl<D: Dialect> Run<D> for Inspect {
    type Answer = Report;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<Report, sqlx::Error> {
        let mut report = Report::new();
        conn.ping().await?;
        engine.dialect.inspect(conn, &engine.table, &mut report).await?;
        Ok(report)
    }
}

impl<D: Dialect> Engine<D> {
    /// Makes the table where it is missing; refuses one that is not ours, or newer.
    pub(crate) async fn ensure_schema(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "make its table";
        if self.run(OPERATION, &Look).await? == Marker::Absent {
            self.run(OPERATION, &Create).await?;
        }
        match judge(&self.run(OPERATION, &Look).await?) {
            None => Ok(()),
            Some((problem, cure)) => Err(StoreError::refused(D::NAME, OPERATION, format!("{problem} {cure}"))),
        }
    }

    /// Looks for unsafe settings.
    pub(crate) async fn check(&self) -> Result<Report, StoreError> {
        const OPERATION: &str = "check its settings";
        let mut report = Report::new();
        let marker = self.run(OPERATION, &Look).await?;
        if let Some((problem, cure)) = judge(&marker) {
            report.error("table", problem, cure);
        }
        report.extend(self.run(OPERATION, &Inspect).await?);
        Ok(report)
    }
}

/// What is wrong with a table, and the cure.
fn judge(marker: &Marker) -> Option<(String, &'static str)> {
    let comment = match marker {
        Marker::Absent => {
            return Some(("the table is missing.".into(), "Run ensure_schema(), or the file in migrations/."));
        }
        #[cfg(feature = "sqlite")]
        Marker::Unusable(problem, cure) => return Some(((*problem).into(), cure)),
        Marker::Says(comment) => comment,
    };
    let version = comment.split_once(MARK).map(|(_, rest)| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse::<u32>()
    });
    match version {
        Some(Ok(VERSION)) => None,
        Some(Ok(newer)) if newer > VERSION => Some((
            format!("the table has schema {newer}, and this version of hapax knows {VERSION}."),
            "Use the version of hapax that made it, or a newer one.",
        )),
        Some(Ok(older)) => Some((
            format!("the table has schema {older}, and this version of hapax needs {VERSION}."),
            "Run the newer files in migrations/.",
        )),
        _ => Some((
            "a table of that name is there that hapax did not make: its comment lacks the schema's version.".into(),
            "Give another name, or make the table with ensure_schema() or the file in migrations/.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{Marker, judge};

    #[test]
    fn schemas_are_told_apart() {
        let says = |text: &str| judge(&Marker::Says(text.into()));
        assert_eq!(says("hapax schema 1"), None);
        assert_eq!(says("-- hapax schema 1\n more"), None);
        assert!(says("hapax schema 2").unwrap().0.contains("schema 2"));
        assert!(says("hapax schema 0").unwrap().1.contains("newer files"));
        assert!(says("orders of 2024").unwrap().0.contains("did not make"));
        assert!(says("hapax schema ").unwrap().0.contains("did not make"));
        assert!(judge(&Marker::Absent).unwrap().1.contains("ensure_schema()"));
    }
}
