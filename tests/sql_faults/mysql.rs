//! MariaDB, and whatever `HAPAX_TEST_MYSQL` names.

use hapax::store::{DedupStore, MysqlStore};

use crate::agree::agree;
use crate::support::{service, unique};

async fn store(variable: &str) -> MysqlStore {
    let store = MysqlStore::connect(&service(variable)).await.unwrap().with_table(&unique("r")).unwrap();
    store.ensure_schema().await.unwrap();
    store
}

#[tokio::test]
async fn mariadb_agrees_with_memory() {
    agree(&store("HAPAX_TEST_MARIADB").await, 150).await;
}

#[tokio::test]
async fn mysql_agrees_with_memory() {
    agree(&store("HAPAX_TEST_MYSQL").await, 60).await;
}
