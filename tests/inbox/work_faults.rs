//! Workers and their database: commits whose reply is lost, deadlocks, locks that somebody keeps, a server that is killed.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use hapax::inbox::{Message, Order, WorkSummary};
use hapax::{Claim, Retry};
use sqlx::{MySql, Postgres};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, Site, everywhere, everywhere_served, id_of};
use crate::support::{PATIENCE, Relay, ThrowawayMariadb, ThrowawayPostgres, eventually, unique};
use crate::work::{Boxed, Shop, tuned};
use crate::world::{World, is_commit};

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

/// A database that cannot be asked: its connections are cut and refused; or, where there is no server, somebody writes and does not stop.
enum Away<DB: Base> {
    Relayed(Relay),
    Locked(DB::Connection),
}

impl<DB: Base> Away<DB> {
    /// With an inbox that feels it.
    async fn new(shop: &Shop<DB>) -> (Self, hapax::Inbox<DB>) {
        if DB::KIND == "sqlite" {
            return (Self::Locked(shop.world.session().await), shop.world.inbox().await);
        }
        let relay = Relay::start(&shop.world.site.url);
        let pool = DB::pool(&Site::at(relay.url(&shop.world.site.url)), 6).await;
        let inbox = shop.world.builder_over(&pool).build().await.unwrap();
        (Self::Relayed(relay), inbox)
    }

    async fn down(&mut self) {
        match self {
            Self::Relayed(relay) => relay.down(),
            Self::Locked(conn) => _ = DB::run(conn, "BEGIN IMMEDIATE").await.unwrap(),
        }
    }

    async fn restore(&mut self) {
        match self {
            Self::Relayed(relay) => relay.restore(),
            Self::Locked(conn) => _ = DB::run(conn, "COMMIT").await.unwrap(),
        }
    }
}

everywhere_served! {
    /// Nothing is handled that is not known to be this worker's. In SQLite, where somebody writes for ever, nobody can bring anything either.
    async fn f06_where_nothing_can_be_taken_no_handler_runs<DB>() {
        let shop = Shop::<DB>::open().await;
        let (mut away, inbox) = Away::new(&shop).await;
        let called: Arc<Mutex<Vec<i64>>> = Arc::default();
        let calls = Arc::clone(&called);
        let handler = move |m: Message, _: Claim| {
            calls.lock().unwrap().push(id_of(&m));
            async { Ok::<_, Boxed>(()) }
        };
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(tuned(inbox.worker()).run_outside(handler, shutdown.clone()));
        shop.stock(0, 5, 5).await;
        eventually(PATIENCE, "it works", async || called.lock().unwrap().len() == 5).await;
        shop.done().await;
        shop.stock(5, 6, 5).await;
        shop.done().await;
        away.down().await;
        shop.stock(6, 20, 5).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(called.lock().unwrap().len(), 6, "called without having taken");
        away.restore().await;
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        let mut called = called.lock().unwrap().clone();
        called.sort_unstable();
        assert_eq!(called, (0..20).collect::<Vec<_>>());
        assert_eq!((summary.succeeded, summary.failed, summary.lost, summary.unsettled), (20, 0, 0, 0), "{summary}");
    }
}

everywhere! {
    /// What happened elsewhere is told when there is somebody to tell, and not done again.
    async fn f05_ends_that_cannot_be_written_are_written_later<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 12, 3).await;
        let (mut away, inbox) = Away::new(&shop).await;
        let called: Arc<Mutex<Vec<i64>>> = Arc::default();
        let (calls, gate) = (Arc::clone(&called), Arc::new(tokio::sync::Semaphore::new(0)));
        let open = Arc::clone(&gate);
        let handler = move |m: Message, _: Claim| {
            calls.lock().unwrap().push(id_of(&m));
            let gate = Arc::clone(&gate);
            async move {
                let _passed = gate.acquire().await;
                Ok::<_, Boxed>(())
            }
        };
        let shutdown = CancellationToken::new();
        // Long enough for the machine to stand still meanwhile.
        let worker = tuned(inbox.worker()).order(Order::Key).lease(Duration::from_secs(60));
        let run = tokio::spawn(worker.run_outside(handler, shutdown.clone()));
        eventually(PATIENCE, "one of each key runs", async || called.lock().unwrap().len() == 3).await;
        away.down().await;
        open.add_permits(1_000);
        eventually(PATIENCE, "all have run, and nobody knows", async || called.lock().unwrap().len() == 12).await;
        assert_eq!(shop.open_messages().await, 12);
        away.restore().await;
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        let mut called = called.lock().unwrap().clone();
        called.sort_unstable();
        assert_eq!(called, (0..12).collect::<Vec<_>>(), "each once");
        assert_eq!((summary.succeeded, summary.late, summary.lost, summary.unsettled), (12, 0, 0, 0), "{summary}");
        assert_eq!(shop.world.count("_attempts", "1 = 1").await, 0);
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
        assert_eq!(shop.world.number(&format!("SELECT CAST(SUM(amount) AS {}) FROM {hot}", if DB::KIND == "mysql" { "SIGNED" } else { "BIGINT" })).await, 320);
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
    let shop = Shop::<DB>::over(World::over(site, pool, unique("i"))).await;
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
