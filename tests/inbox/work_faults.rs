//! Workers and their database: commits whose reply is lost, deadlocks, locks that somebody keeps, a server that is killed.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use hapax::Retry;
use hapax::inbox::{Message, Order, WorkSummary};
use sqlx::{MySql, Postgres};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, Site, everywhere, everywhere_served, id_of};
use crate::support::{PATIENCE, Relay, ThrowawayMariadb, ThrowawayPostgres, eventually, unique};
use crate::work::{Boxed, Shop};
use crate::world::World;

/// The bytes of a commit, as clients send them.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.ends_with(b"COMMIT") || bytes.ends_with(b"COMMIT\0")
}

everywhere_served! {
    async fn f07_commits_whose_reply_is_lost_are_looked_up<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 240, 8).await;
        let relay = Relay::start(&shop.world.site.url);
        let relayed = Site::at(relay.url(&shop.world.site.url));
        let pool = DB::pool(&relayed, 6).await;
        let inbox = shop.world.builder_over(&pool).build().await.unwrap();
        let shutdown = CancellationToken::new();
        let effects = shop.effects.clone();
        let handler = async move |m: Message, tx: &mut DB::Connection| DB::effect(tx, &effects, id_of(&m)).await;
        // A run whose taking was committed, and not heard of, is found when its lease is over.
        let worker = inbox.worker().order(Order::Key).batch_size(10).concurrency(1);
        let worker = worker.lease(Duration::from_secs(1)).retry(Retry::fixed(Duration::ZERO).attempts(99));
        let run = tokio::spawn(worker.run(handler, shutdown.clone()));
        for number in 0..6 {
            let before = relay.caught();
            match number % 2 {
                0 => relay.cut_reply_to(is_commit),
                _ => relay.cut_request(is_commit),
            }
            eventually(PATIENCE, "a commit was cut", async || relay.caught() > before).await;
        }
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge(0..240).await;
        shop.judge_order(8).await;
        assert_eq!(summary.dead, 0, "{summary}");
    }
}

everywhere! {
    async fn f33_deadlocks_are_tried_again_and_burn_no_attempt<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 160, 160).await;
        let hot = format!("{}_h", shop.world.prefix);
        let mut conn = shop.world.session().await;
        for text in [
            format!("CREATE TABLE {hot} (place BIGINT NOT NULL PRIMARY KEY, amount BIGINT NOT NULL)"),
            format!("INSERT INTO {hot} (place, amount) VALUES (0, 0), (1, 0), (2, 0)"),
        ] {
            DB::run(&mut conn, &text).await.unwrap();
        }
        let shutdown = CancellationToken::new();
        let mut workers = Vec::new();
        for _ in 0..4 {
            let (effects, hot) = (shop.effects.clone(), hot.clone());
            // They take the same rows in different orders.
            let handler = async move |m: Message, tx: &mut DB::Connection| {
                let id = id_of(&m);
                for step in 0..2 {
                    let place = if id % 2 == 0 { (id / 2 + step) % 3 } else { (id / 2 + 3 - step) % 3 };
                    DB::run(tx, &format!("UPDATE {hot} SET amount = amount + 1 WHERE place = {place}")).await?;
                }
                DB::effect(tx, &effects, id).await
            };
            let worker = shop.worker().await.batch_size(8).concurrency(1);
            workers.push(tokio::spawn(worker.run(handler, shutdown.clone())));
        }
        shop.done().await;
        shutdown.cancel();
        let summaries: Vec<WorkSummary> =
            join_all(workers).await.into_iter().map(|ended| ended.unwrap().unwrap()).collect();
        shop.judge(0..160).await;
        assert_eq!(DB::number(&mut conn, &format!("SELECT CAST(SUM(amount) AS {}) FROM {hot}", if DB::KIND == "mysql" { "SIGNED" } else { "BIGINT" })).await.unwrap(), 320);
        assert!(summaries.iter().all(|summary| summary.dead == 0), "{summaries:?}");
        assert_eq!(shop.world.count("_attempts", "class <> 2").await, 0, "{summaries:?}");
    }
}

everywhere_served! {
    async fn f34_a_lock_that_somebody_keeps_holds_one_message_back<DB>() {
        let shop = Shop::<DB>::over(World::new().await).await;
        shop.stock(0, 40, 40).await;
        let hot = format!("{}_h", shop.world.prefix);
        let mut keeper = shop.world.session().await;
        for text in [
            format!("CREATE TABLE {hot} (place BIGINT NOT NULL PRIMARY KEY, amount BIGINT NOT NULL)"),
            format!("INSERT INTO {hot} (place, amount) VALUES (0, 0), (1, 0)"),
            "BEGIN".to_owned(),
            format!("UPDATE {hot} SET amount = 7 WHERE place = 1"),
        ] {
            DB::run(&mut keeper, &text).await.unwrap();
        }
        let shutdown = CancellationToken::new();
        let effects = shop.effects.clone();
        let handler = async move |m: Message, tx: &mut DB::Connection| {
            let place = i64::from(id_of(&m) == 17);
            DB::run(tx, &format!("UPDATE {hot} SET amount = amount + 1 WHERE place = {place}")).await?;
            DB::effect(tx, &effects, id_of(&m)).await
        };
        let run = tokio::spawn(shop.worker().await.concurrency(1).run(handler, shutdown.clone()));
        eventually(PATIENCE, "the others are done", async || shop.open_messages().await == 1).await;
        shop.judge((0..40).filter(|id| *id != 17)).await;
        DB::run(&mut keeper, "COMMIT").await.unwrap();
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge(0..40).await;
        assert_eq!((summary.dead, shop.world.count("_open", "attempts > 1").await), (0, 0), "{summary}");
    }
}

/// Kills and restarts the server while workers run.
async fn outlives<DB: Base>(url: String, kill: Arc<dyn Fn() + Send + Sync>) {
    const MESSAGES: i64 = 600;
    let site = Site::at(url);
    let pool = DB::pool(&site, 8).await;
    let shop = Shop::<DB>::over(World { site, pool, prefix: unique("i") }).await;
    shop.stock(0, MESSAGES, 6).await;
    let shutdown = CancellationToken::new();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let effects = shop.effects.clone();
        let handler = async move |m: Message, tx: &mut DB::Connection| {
            // Slow enough to be met in the middle.
            tokio::time::sleep(Duration::from_millis(2)).await;
            DB::effect(tx, &effects, id_of(&m)).await
        };
        let worker = shop.worker().await.order(Order::Key).batch_size(15);
        let worker = worker.lease(Duration::from_secs(1)).retry(Retry::fixed(Duration::ZERO).attempts(99));
        workers.push(tokio::spawn(worker.run(handler, shutdown.clone())));
    }
    for number in 1..=2 {
        eventually(PATIENCE, "they go on", async || shop.open_messages().await < MESSAGES * (3 - number) / 3).await;
        let kill = Arc::clone(&kill);
        tokio::task::spawn_blocking(move || kill()).await.unwrap();
    }
    shop.done().await;
    shutdown.cancel();
    for ended in join_all(workers).await {
        let summary = ended.unwrap().unwrap();
        assert_eq!(summary.dead, 0, "{summary}");
    }
    shop.judge(0..MESSAGES).await;
    shop.judge_order(6).await;
}

macro_rules! killed {
    ($name:ident, $db:ty, $server:ty) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let server = <$server>::start(&[]);
            let url = server.url();
            let server = Mutex::new(server);
            let kill: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
                let mut server = server.lock().unwrap();
                server.kill9();
                server.restart();
            });
            outlives::<$db>(url, kill).await;
        }
    };
}

killed!(f05_postgres_killed_under_workers_loses_and_doubles_nothing, Postgres, ThrowawayPostgres);
killed!(f05_mariadb_killed_under_workers_loses_and_doubles_nothing, MySql, ThrowawayMariadb);
