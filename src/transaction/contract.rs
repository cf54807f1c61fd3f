//! What every dialect must do with windows.

use std::time::Duration;

use sqlx::{Connection, Pool};

use super::dialect::{Beginning, NEVER, Row, Shift, Source, Transact};
use crate::store::sql::{Conn, Dialect, Engine, Layout, TableName};

const BEGINNING: Beginning =
    Beginning { patience: Duration::from_secs(1), longest: None, again: false, owner: None, guarded: false };

fn source(number: u8) -> Source {
    [number; 16]
}

fn shift(number: u8, fence: i64, next: i64, note: Option<&[u8]>) -> Shift {
    Shift { source: source(number), fence, next, state: vec![number, 0, 0xff], note: note.map(<[u8]>::to_vec) }
}

/// Rows in the order of their sources.
fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|row| row.source);
    rows
}

async fn commit<D: Transact>(dialect: &D, conn: &mut Conn<D>)
where
    <D as Dialect>::Db: sqlx::Database,
{
    use sqlx_core::transaction::TransactionManager;
    super::dialect::Manager::<D>::commit(conn).await.unwrap();
    dialect.restore(conn).await.unwrap();
}

async fn roll_back<D: Transact>(dialect: &D, conn: &mut Conn<D>) {
    use sqlx_core::transaction::TransactionManager;
    super::dialect::Manager::<D>::rollback(conn).await.unwrap();
    dialect.restore(conn).await.unwrap();
}

/// Makes a table, raises, plants, loads and moves windows in it.
pub(super) async fn holds<D: Transact>(dialect: D, pool: Pool<D::Db>, table: &str) {
    use sqlx_core::transaction::TransactionManager as _;

    let table = &TableName::parse(D::NAME, table).unwrap();
    let engine = Engine::pooled(dialect.clone(), pool.clone());
    engine.ensure(Layout::Windows, table).await.unwrap();
    engine.ensure(Layout::Windows, table).await.unwrap();
    let report = engine.examine(&[(Layout::Windows, table)]).await.unwrap();
    assert_eq!(report.errors().map(|finding| finding.setting).collect::<Vec<_>>(), Vec::<&str>::new(), "{report:?}");
    let refused = engine.ensure(Layout::Records, table).await.unwrap_err();
    assert!(refused.to_string().contains("did not make"), "{refused}");

    let conn = &mut *pool.acquire().await.unwrap();
    let sources: Vec<Source> = (1..=5).map(source).collect();

    // Raised from nothing, and again.
    for fence in [1, 2] {
        dialect.begin(conn, BEGINNING).await.unwrap();
        let rows = sorted(dialect.raise(conn, table, &sources).await.unwrap());
        let wanted = |source: &Source| Row { source: *source, fence, next: NEVER, state: Vec::new(), note: None };
        assert_eq!(rows, sources.iter().map(wanted).collect::<Vec<_>>());
        commit(&dialect, conn).await;
    }

    // Planted beside them: those that stand are left alone.
    dialect.begin(conn, BEGINNING).await.unwrap();
    let more = [source(3), source(7)];
    dialect.plant(conn, table, &more).await.unwrap();
    dialect.plant(conn, table, &more).await.unwrap();
    let rows = sorted(dialect.load(conn, table, &[source(3), source(6), source(7)]).await.unwrap());
    assert_eq!(rows.iter().map(|row| (row.source[0], row.fence)).collect::<Vec<_>>(), [(3, 2), (7, 0)]);
    commit(&dialect, conn).await;

    // Moved one by one and together; written as they were, they count; with another fence, they do not.
    dialect.begin(conn, BEGINNING).await.unwrap();
    assert_eq!(dialect.shift(conn, table, &[]).await.unwrap(), 0);
    for _ in 0..2 {
        assert_eq!(dialect.shift(conn, table, &[shift(1, 2, 10, Some(b"mark"))]).await.unwrap(), 1);
        let many: Vec<Shift> = (2..=4).map(|number| shift(number, 2, 20, Some(b"mark"))).collect();
        assert_eq!(dialect.shift(conn, table, &many).await.unwrap(), 3);
    }
    assert_eq!(dialect.shift(conn, table, &[shift(1, 1, 99, None)]).await.unwrap(), 0);
    assert_eq!(dialect.shift(conn, table, &[shift(1, 2, 11, None), shift(2, 3, 99, None)]).await.unwrap(), 1);
    assert_eq!(dialect.shift(conn, table, &[shift(7, 0, i64::MAX, None)]).await.unwrap(), 1);
    commit(&dialect, conn).await;

    // Rolled back, nothing has moved.
    dialect.begin(conn, BEGINNING).await.unwrap();
    assert_eq!(dialect.shift(conn, table, &[shift(1, 2, 77, Some(b"other")), shift(2, 2, 77, None)]).await.unwrap(), 2);
    roll_back(&dialect, conn).await;

    dialect.begin(conn, BEGINNING).await.unwrap();
    let rows = sorted(dialect.load(conn, table, &[source(1), source(2), source(5), source(7)]).await.unwrap());
    let row = |number: u8, fence, next, note: Option<&[u8]>| Row {
        source: source(number),
        fence,
        next,
        state: vec![number, 0, 0xff],
        note: note.map(<[u8]>::to_vec),
    };
    let untouched = Row { state: Vec::new(), ..row(5, 2, NEVER, None) };
    let wanted = [row(1, 2, 11, Some(b"mark")), row(2, 2, 20, Some(b"mark")), untouched, row(7, 0, i64::MAX, None)];
    assert_eq!(rows, wanted);

    // Savepoints: what stands before one is kept, and what came after it is not.
    dialect.shift(conn, table, &[shift(1, 2, 12, None)]).await.unwrap();
    dialect.savepoint(conn).await.unwrap();
    dialect.shift(conn, table, &[shift(1, 2, 13, None)]).await.unwrap();
    dialect.back_to_savepoint(conn).await.unwrap();
    dialect.shift(conn, table, &[shift(2, 2, 22, None)]).await.unwrap();
    dialect.next_savepoint(conn).await.unwrap();
    dialect.shift(conn, table, &[shift(3, 2, 33, None)]).await.unwrap();
    dialect.back_to_savepoint(conn).await.unwrap();
    dialect.release(conn).await.unwrap();
    assert!(dialect.release(conn).await.is_err(), "there is none any more");
    // PostgreSQL gives a transaction up with its first error.
    roll_back(&dialect, conn).await;
    dialect.begin(conn, BEGINNING).await.unwrap();
    dialect.shift(conn, table, &[shift(1, 2, 12, None)]).await.unwrap();
    dialect.savepoint(conn).await.unwrap();
    dialect.shift(conn, table, &[shift(1, 2, 13, None)]).await.unwrap();
    dialect.back_to_savepoint(conn).await.unwrap();
    dialect.next_savepoint(conn).await.unwrap();
    dialect.shift(conn, table, &[shift(2, 2, 22, None)]).await.unwrap();
    dialect.release(conn).await.unwrap();
    commit(&dialect, conn).await;
    dialect.begin(conn, BEGINNING).await.unwrap();
    let rows = sorted(dialect.load(conn, table, &[source(1), source(2)]).await.unwrap());
    assert_eq!(rows.iter().map(|row| row.next).collect::<Vec<_>>(), [12, 22]);
    commit(&dialect, conn).await;

    // Guarded: moved with the release of the batch's savepoint; not moved where that is gone.
    let guarded = Beginning { guarded: true, longest: Some(Duration::from_secs(60)), ..BEGINNING };
    dialect.begin(conn, guarded).await.unwrap();
    let moves = [shift(1, 2, 101, None), shift(2, 3, 99, None), shift(3, 2, 103, Some(b"new"))];
    assert_eq!(dialect.release_and_shift(conn, table, &moves).await.unwrap(), 2, "one has another fence");
    let gone = dialect.release_and_shift(conn, table, &moves).await.unwrap_err();
    assert!(dialect.is_unguarded(&gone), "{gone}");
    roll_back(&dialect, conn).await;
    dialect.begin(conn, guarded).await.unwrap();
    dialect.shift(conn, table, &[shift(1, 2, 55, None)]).await.unwrap();
    dialect.back_to_batch(conn).await.unwrap();
    assert_eq!(dialect.release_and_shift(conn, table, &moves).await.unwrap(), 2);
    assert!(!dialect.is_unguarded(&dialect.plain(conn, "SELECT nothing FROM nowhere").await.unwrap_err()));
    roll_back(&dialect, conn).await;
    dialect.begin(conn, guarded).await.unwrap();
    assert_eq!(dialect.release_and_shift(conn, table, &moves).await.unwrap(), 2);
    commit(&dialect, conn).await;
    // Begun again with what was set left as it was: waits and all are put back at the end.
    for again in [false, true, true] {
        dialect.begin(conn, Beginning { again, ..guarded }).await.unwrap();
        assert_eq!(dialect.shift(conn, table, &[shift(2, 2, 102, None)]).await.unwrap(), 1);
        dialect.release_batch(conn).await.unwrap();
        super::dialect::Manager::<D>::commit(conn).await.unwrap();
    }
    dialect.restore(conn).await.unwrap();
    dialect.begin(conn, BEGINNING).await.unwrap();
    let rows = sorted(dialect.load(conn, table, &[source(1), source(2), source(3)]).await.unwrap());
    assert_eq!(rows.iter().map(|row| row.next).collect::<Vec<_>>(), [101, 102, 103]);
    assert_eq!(rows[2].note.as_deref(), Some(&b"new"[..]));
    assert_eq!(rows[0].note.as_deref(), Some(&b"mark"[..]), "none given leaves what stands");
    commit(&dialect, conn).await;
    conn.ping().await.unwrap();
}
