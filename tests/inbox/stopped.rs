//! Workers that stand still, as a process under SIGSTOP does, until others have what they had; and then wake up.

use std::path::Path;
use std::time::Duration;

use hapax::Retry;
use hapax::inbox::{Message, Order};

use crate::base::{Base, everywhere, everywhere_served, id_of};
use crate::support::{PATIENCE, eventually};
use crate::work::Shop;
use crate::work_killed::{GATE, Process, Step};

/// A worker's process that waits at its gate.
async fn waiting<DB: Base>(shop: &Shop<DB>, step: Step, gate: &Path) -> Process {
    let process = Process::start(shop, step, gate);
    eventually(PATIENCE, "it waits in the middle", async || gate.exists()).await;
    process
}

/// Stops it while it holds no lock on its runs that meet a condition, and lets their leases be over.
async fn stop<DB: Base>(shop: &Shop<DB>, process: &Process, which: &str) {
    let runs = shop.world.table("_runs");
    let probe = match DB::KIND {
        "sqlite" => "PRAGMA busy_timeout = 0; BEGIN IMMEDIATE; COMMIT".to_owned(),
        _ => format!("SELECT 1 FROM {runs} WHERE {which} FOR UPDATE NOWAIT"),
    };
    eventually(PATIENCE, "it stands still between two statements", async || {
        process.signal("STOP");
        let still = DB::run(&mut shop.world.session().await, &probe).await.is_ok();
        if !still {
            process.signal("CONT");
        }
        still
    })
    .await;
    let lapse = format!("UPDATE {runs} SET lease = 1 WHERE {which}");
    assert_eq!(shop.world.run(&lapse).await, 1);
}

/// Somebody else works until this is so.
async fn others<DB: Base>(shop: &Shop<DB>, until: impl AsyncFn() -> bool) {
    let effects = shop.effects.clone();
    let retry = Retry::fixed(Duration::from_millis(10)).attempts(3);
    let worker = shop.worker().await.order(Order::Key).retry(retry).lease(Duration::from_secs(8));
    let shutdown = tokio_util::sync::CancellationToken::new();
    let handler = async move |m: Message, tx: &mut DB::Connection| DB::effect(tx, &effects, id_of(&m)).await;
    let run = tokio::spawn(worker.run(handler, shutdown.clone()));
    eventually(PATIENCE, "others have done what they could", until).await;
    shutdown.cancel();
    run.await.unwrap().unwrap();
}

everywhere! {
    async fn f31_who_stood_still_ends_nothing_that_others_have<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 60, 3).await;
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("reached");
        let zombie = waiting(&shop, Step::Zombie, &gate).await;
        // What ended before is written.
        eventually(PATIENCE, "it has told its ends", async || shop.open_messages().await == 60 - GATE).await;
        stop(&shop, &zombie, "ended IS NULL").await;
        others(&shop, async || shop.open_messages().await == 0).await;
        let lost = shop.world.count("_attempts", "class = 3").await;
        assert!(lost >= 1);
        shop.judge(0..60).await;
        // It wakes up, is told, and fails its message: nobody listens. It begins nothing more of what it had, and takes what comes.
        zombie.signal("CONT");
        std::fs::write(gate.with_extension("go"), "").unwrap();
        shop.stock(60, 90, 3).await;
        shop.done().await;
        shop.judge(0..90).await;
        shop.judge_order(3).await;
        assert_eq!((shop.world.count("_attempts", "1 = 1").await, shop.world.count("_open", "1 = 1").await), (lost, 0));
    }
}

everywhere_served! {
    async fn f31_a_run_that_waited_in_a_stopped_worker_is_not_worked_twice<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 60, 60).await;
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("reached");
        let zombie = waiting(&shop, Step::Stopped, &gate).await;
        // One run is in its handler's transaction, and one is taken ahead.
        eventually(PATIENCE, "it has two runs", async || shop.world.count("_runs", "ended IS NULL").await == 2).await;
        let latest = format!("SELECT MAX(run) FROM {}", shop.world.table("_runs"));
        let ahead = shop.world.number(&latest).await;
        let waits = shop.world.count("_open", &format!("run = {ahead}")).await;
        assert!(waits > 0);
        // By the whole of its key: a scan would meet the other one, which is locked.
        stop(&shop, &zombie, &format!("inbox = 1 AND run = {ahead}")).await;
        // Others have the one that waited; the other one is held by its transaction, whatever its lease says.
        others(&shop, async || shop.open_messages().await == 60 - waits).await;
        assert_eq!(shop.world.count("_attempts", "class = 3").await, waits);
        assert_eq!(shop.history().await.len(), usize::try_from(waits).unwrap());
        zombie.signal("CONT");
        std::fs::write(gate.with_extension("go"), "").unwrap();
        shop.stock(60, 70, 60).await;
        shop.done().await;
        shop.judge(0..70).await;
        assert_eq!(shop.world.count("_attempts", "1 = 1").await, waits);
    }
}
