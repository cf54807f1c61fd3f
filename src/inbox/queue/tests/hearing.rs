//! New work is heard of, where there is something to hear.

use std::time::Duration;

use super::Ground;
use crate::base::everywhere;
use crate::support::PATIENCE;

everywhere! {
async fn a_notice_is_heard_when_it_is_committed<DB>() {
    let ground = Ground::<DB>::new().await;
    let core = ground.core();
    let mut listener = core.listen();
    assert_eq!(listener.hears(), DB::KIND == "postgres");
    let notify = async |commit: bool| {
        let mut tx = core.begin().await.unwrap();
        core.notify(tx.conn().unwrap()).await.unwrap();
        core.notify(tx.conn().unwrap()).await.unwrap();
        match commit {
            true => assert!(matches!(core.commit(tx).await, crate::transaction::Committed::Yes)),
            false => core.rollback(tx).await,
        }
    };
    if DB::KIND != "postgres" {
        notify(true).await;
        assert!(tokio::time::timeout(Duration::from_millis(50), listener.heard()).await.is_err());
        return;
    }
    // It says so once when it has begun to listen.
    tokio::time::timeout(PATIENCE, listener.heard()).await.unwrap();
    notify(false).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.heard()).await.is_err());
    notify(true).await;
    tokio::time::timeout(PATIENCE, listener.heard()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.heard()).await.is_err(), "heard once");
}
}
