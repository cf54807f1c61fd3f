//! PostgreSQL.

use hapax::store::{DedupStore, PostgresStore};

use crate::agree::agree;
use crate::support::{service, unique};

async fn store() -> PostgresStore {
    let store = PostgresStore::connect(&service("HAPAX_TEST_POSTGRES")).await.unwrap();
    let store = store.with_table(&unique("r")).unwrap();
    store.ensure_schema().await.unwrap();
    store
}

#[tokio::test]
async fn postgres_agrees_with_memory() {
    agree(&store().await, 150).await;
}
