//! SQLite.

use hapax::store::{DedupStore, SqliteStore};

use crate::agree::agree;

#[tokio::test]
async fn sqlite_agrees_with_memory() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("records.db")).await.unwrap();
    store.ensure_schema().await.unwrap();
    agree(&store, 150).await;
    let memory = SqliteStore::connect("sqlite::memory:").await.unwrap();
    memory.ensure_schema().await.unwrap();
    agree(&memory, 150).await;
}
