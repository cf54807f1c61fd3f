//! Workers inside transactions (L2): each message has one effect, whatever handlers do. Effects are counted in a table that nothing keeps from
//! having one twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use hapax::inbox::{Class, Message, Order, WorkError, WorkSummary, Worker};
use hapax::{Inbox, Retry, Unavailable};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, Tables, everywhere, id_of};
use crate::support::{PATIENCE, eventually};
use crate::world::{World, message};

/// An error as handlers box it.
pub type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// An inbox, and a table of effects.
pub struct Shop<DB: Base> {
    pub world: World<DB>,
    pub inbox: Inbox<DB>,
    pub effects: String,
}

impl<DB: Base> Shop<DB> {
    pub async fn open() -> Self {
        Self::over(World::new().await).await
    }

    pub async fn over(world: World<DB>) -> Self {
        let inbox = world.inbox().await;
        let effects = format!("{}_e", world.prefix);
        let number = match DB::KIND {
            "postgres" => "BIGSERIAL",
            "mysql" => "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
            _ => "INTEGER PRIMARY KEY AUTOINCREMENT",
        };
        let text = format!("CREATE TABLE {effects} (number {number}, message BIGINT NOT NULL)");
        world.run(&text).await;
        Self { world, inbox, effects }
    }

    /// Messages with these ids, of so many keys.
    pub async fn stock(&self, from: i64, to: i64, keys: i64) {
        let messages: Vec<_> = (from..to).map(|id| message(id, &format!("k{}", id % keys), 0, id)).collect();
        let done = self.inbox.accept_batch(&messages).await;
        assert!(done.outcomes.iter().all(Result::is_ok), "{:?}", done.outcomes);
    }

    /// A worker of a process of its own, as far as the database can tell.
    pub async fn worker(&self) -> Worker<DB> {
        tuned(self.world.inbox().await.worker())
    }

    /// Messages that are open, but not dead.
    pub async fn open_messages(&self) -> i64 {
        self.world.count("_open", "lot <> 2").await
    }

    /// Waits until nothing is left to do.
    pub async fn done(&self) {
        eventually(PATIENCE, "everything is worked", async || self.open_messages().await == 0).await;
    }

    /// Each of these has one effect, and no others have any.
    pub async fn judge(&self, ids: impl Iterator<Item = i64>) {
        let tables = Tables { records: String::new(), windows: String::new(), effects: self.effects.clone() };
        tables.judge::<DB>(&mut self.world.session().await, ids).await;
    }

    /// What was done, in order.
    pub async fn history(&self) -> Vec<i64> {
        let text = format!("SELECT message FROM {} ORDER BY number", self.effects);
        self.world.numbers(&text).await
    }

    /// Effects of one key are in the order of its messages.
    pub async fn judge_order(&self, keys: i64) {
        let mut last: BTreeMap<i64, i64> = BTreeMap::new();
        for id in self.history().await {
            if let Some(before) = last.insert(id % keys, id) {
                assert!(before < id, "{}: {id} came after {before}", DB::KIND);
            }
        }
    }

    /// Runs one worker until nothing is left to do.
    pub async fn work(
        &self,
        worker: Worker<DB>,
        handler: impl AsyncFn(Message, &mut DB::Connection) -> Result<(), Boxed> + Send + Sync + 'static,
    ) -> WorkSummary {
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(worker.run(handler, shutdown.clone()));
        self.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        assert!(summary.drained && summary.left == 0, "{summary}");
        summary
    }
}

pub fn tuned<DB: Base>(worker: Worker<DB>) -> Worker<DB> {
    worker.retry(Retry::fixed(Duration::from_millis(20)).attempts(3)).lease(Duration::from_secs(5))
}

everywhere! {
    async fn each_message_has_one_effect<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 500, 7).await;
        let shutdown = CancellationToken::new();
        let mut workers = Vec::new();
        for _ in 0..2 {
            let effects = shop.effects.clone();
            let worker = shop.worker().await.batch_size(50);
            let handler = async move |m: Message, tx: &mut DB::Connection| DB::effect(tx, &effects, id_of(&m)).await;
            workers.push(tokio::spawn(worker.run(handler, shutdown.clone())));
        }
        // Some come while they work.
        shop.stock(500, 600, 7).await;
        shop.done().await;
        shutdown.cancel();
        let summaries: Vec<WorkSummary> =
            join_all(workers).await.into_iter().map(|ended| ended.unwrap().unwrap()).collect();
        shop.judge(0..600).await;
        assert_eq!(summaries.iter().map(|summary| summary.succeeded).sum::<u64>(), 600, "{summaries:?}");
        assert!(summaries.iter().all(|summary| summary.failed == 0 && summary.left == 0 && summary.drained));
        assert_eq!(shop.world.count("_open", "1 = 1").await, 0);
        assert_eq!(shop.world.count("", "1 = 1").await, 600, "what was accepted stays");
        assert_eq!(shop.world.count("_runs", "ended IS NULL").await, 0);
    }
}

everywhere! {
    async fn eight_workers_keep_the_order_of_keys<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 400, 5).await;
        let shutdown = CancellationToken::new();
        let failed_once = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for _ in 0..8 {
            let (effects, failed_once) = (shop.effects.clone(), Arc::clone(&failed_once));
            let worker = shop.worker().await.order(Order::Key).batch_size(20).concurrency(1);
            let handler = async move |m: Message, tx: &mut DB::Connection| {
                DB::effect(tx, &effects, id_of(&m)).await?;
                if id_of(&m) == 101 && !failed_once.swap(true, Ordering::SeqCst) {
                    return Err(Boxed::from("not yet"));
                }
                Ok(())
            };
            workers.push(tokio::spawn(worker.run(handler, shutdown.clone())));
        }
        shop.done().await;
        shutdown.cancel();
        let summaries: Vec<WorkSummary> =
            join_all(workers).await.into_iter().map(|ended| ended.unwrap().unwrap()).collect();
        shop.judge(0..400).await;
        shop.judge_order(5).await;
        assert_eq!(summaries.iter().map(|summary| summary.failed).sum::<u64>(), 1, "{summaries:?}");
        assert_eq!(shop.world.count("_attempts", "attempt = 1").await, 1, "the failed attempt is in the history");
    }
}

/// What a message's handler does, after its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Fails in so many attempts.
    Fails(u32),
    Gives,
    Panics,
    /// Hangs, the first time.
    Hangs,
    /// Ends the transaction with this; instead of an effect.
    Ends(&'static str),
}

/// Messages of whose handlers some do something else than their effect, and what comes of it.
struct Case {
    keys: i64,
    does: &'static [(i64, Does)],
    dead: &'static [i64],
    /// Attempts that did not succeed, by class.
    classes: &'static [(Class, i64)],
}

const CASES: [Case; 6] = [
    // By itself: tried as often as it may be.
    Case { keys: 60, does: &[(13, Does::Fails(3))], dead: &[13], classes: &[(Class::Retryable, 3)] },
    // Its key waits for it while it may be tried again, and no longer.
    Case {
        keys: 4,
        does: &[(9, Does::Fails(2)), (21, Does::Fails(3))],
        dead: &[21],
        classes: &[(Class::Retryable, 5)],
    },
    Case { keys: 2, does: &[(4, Does::Gives)], dead: &[4], classes: &[(Class::Fatal, 1)] },
    // The transaction is gone with them: the others are run again without them.
    Case {
        keys: 3,
        does: &[(7, Does::Panics), (11, Does::Hangs)],
        dead: &[7],
        classes: &[(Class::Panic, 3), (Class::Timeout, 1)],
    },
    // Those before it in its transaction were committed with it, and are not run again; or were rolled back, and are.
    Case { keys: 60, does: &[(8, Does::Ends("COMMIT"))], dead: &[8], classes: &[(Class::Fatal, 1)] },
    Case { keys: 60, does: &[(8, Does::Ends("ROLLBACK"))], dead: &[8], classes: &[(Class::Fatal, 1)] },
];

async fn comes_to<DB: Base>(case: &'static Case) {
    const MESSAGES: i64 = 30;
    let shop = Shop::<DB>::open().await;
    shop.stock(0, MESSAGES, case.keys).await;
    let effects = shop.effects.clone();
    let hangs = case.does.iter().any(|(_, does)| *does == Does::Hangs);
    let mut worker = shop.worker().await.order(Order::Key).lease(Duration::from_secs(30));
    if hangs {
        worker = worker.handler_timeout(Duration::from_secs(10));
    }
    let summary = shop
        .work(worker, async move |m: Message, tx: &mut DB::Connection| {
            let does = case.does.iter().find(|(id, _)| *id == id_of(&m)).map(|(_, does)| *does);
            if let Some(Does::Ends(how)) = does {
                return DB::run(tx, how).await.map(drop).map_err(Boxed::from);
            }
            DB::effect(tx, &effects, id_of(&m)).await?;
            match does {
                Some(Does::Fails(times)) if m.attempt() <= times => Err("unlucky".into()),
                Some(Does::Gives) => Err(hapax::Fatal::new("never").into()),
                Some(Does::Panics) => panic!("poison"),
                Some(Does::Hangs) if m.attempt() == 1 => std::future::pending().await,
                _ => Ok(()),
            }
        })
        .await;
    shop.judge((0..MESSAGES).filter(|id| !case.dead.contains(id))).await;
    shop.judge_order(case.keys).await;
    let failed = case.classes.iter().map(|(_, attempts)| attempts).sum::<i64>();
    let counted = [summary.succeeded, summary.failed, summary.dead, summary.lost].map(u64::cast_signed);
    let dead = case.dead.len() as i64;
    assert_eq!(counted, [MESSAGES - dead, failed, dead, 0], "{:?}: {summary}", case.does);
    for (class, attempts) in case.classes {
        assert_eq!(
            shop.world.count("_attempts", &format!("class = {}", class.code())).await,
            *attempts,
            "{:?}",
            case.does
        );
    }
    assert_eq!(shop.world.count("_attempts", "1 = 1").await, failed, "{:?}", case.does);
    assert_eq!(shop.world.count("_open", "lot = 2").await, dead, "{:?}", case.does);
}

everywhere! {
    async fn f36_f42_whatever_one_handler_does_the_others_have_one_effect<DB>() {
        join_all(CASES.iter().map(comes_to::<DB>)).await;
    }
}

everywhere! {
    async fn by_key_nothing_passes_a_failed_message_and_other_keys_go_on<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 40, 4).await;
        let (effects, calls) = (shop.effects.clone(), AtomicUsize::new(0));
        // 9 is of key 1: 13, 17, … wait for it.
        let worker = shop.worker().await.order(Order::Key).retry(Retry::fixed(Duration::from_millis(300)).attempts(3));
        let summary = shop
            .work(worker, async move |m: Message, tx: &mut DB::Connection| {
                DB::effect(tx, &effects, id_of(&m)).await?;
                if id_of(&m) == 9 && calls.fetch_add(1, Ordering::SeqCst) < 2 {
                    return Err("later".into());
                }
                Ok(())
            })
            .await;
        shop.judge(0..40).await;
        shop.judge_order(4).await;
        let history = shop.history().await;
        let at = |id: i64| history.iter().position(|own| *own == id).unwrap();
        assert!(at(9) > at(38), "other keys did not wait: {history:?}");
        assert_eq!((summary.failed, summary.dead), (2, 0), "{summary}");
    }
}

everywhere! {
    async fn a_bulk_handler_that_fails_is_run_with_fewer<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 100, 9).await;
        let effects = shop.effects.clone();
        let shutdown = CancellationToken::new();
        let handler = async move |messages: &[Message], tx: &mut DB::Connection| {
            assert!(!messages.is_empty());
            for m in messages {
                DB::effect(tx, &effects, id_of(m)).await?;
            }
            match messages.iter().find(|m| id_of(*m) == 42) {
                Some(_) => Err(Boxed::from("not with this one")),
                None => Ok(()),
            }
        };
        let worker = shop.worker().await.order(Order::Key);
        let run = tokio::spawn(worker.run_batch(handler, shutdown.clone()));
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge((0..100).filter(|id| *id != 42)).await;
        shop.judge_order(9).await;
        assert_eq!((summary.failed, summary.dead), (3, 1), "{summary}");
    }
}

everywhere! {
    async fn what_is_down_burns_no_attempt_and_work_goes_on_when_it_is_back<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 200, 11).await;
        let (effects, up, calls) = (shop.effects.clone(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (back, counted) = (Arc::clone(&up), Arc::clone(&calls));
        let shutdown = CancellationToken::new();
        let handler = async move |m: Message, tx: &mut DB::Connection| {
            DB::effect(tx, &effects, id_of(&m)).await?;
            assert_eq!(m.attempt(), 1);
            if !back.load(Ordering::SeqCst) {
                counted.fetch_add(1, Ordering::SeqCst);
                return Err(Boxed::from(Unavailable::new("the bank does not answer")));
            }
            Ok(())
        };
        let run = tokio::spawn(shop.worker().await.concurrency(1).run(handler, shutdown.clone()));
        eventually(PATIENCE, "it was found down, and probed", async || calls.load(Ordering::SeqCst) >= 4).await;
        assert_eq!(shop.world.count("_open", "lot = 0").await, 200);
        eventually(PATIENCE, "one message finds out", async || shop.world.count("_open", "run <> 0").await <= 1).await;
        up.store(true, Ordering::SeqCst);
        shop.done().await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        shop.judge(0..200).await;
        assert_eq!((summary.failed, summary.succeeded), (0, 200), "{summary}");
        assert_eq!(shop.world.count("_attempts", "1 = 1").await, 0);
    }
}

everywhere! {
    async fn f43_who_is_told_to_end_finishes_what_runs_and_gives_the_rest_back<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 100, 100).await;
        let (effects, begun, gate) = (shop.effects.clone(), Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
        let (counted, wait) = (Arc::clone(&begun), Arc::clone(&gate));
        let shutdown = CancellationToken::new();
        let handler = async move |m: Message, tx: &mut DB::Connection| {
            DB::effect(tx, &effects, id_of(&m)).await?;
            counted.fetch_add(1, Ordering::SeqCst);
            let _passed = wait.acquire().await;
            Ok::<_, sqlx::Error>(())
        };
        let worker = shop.worker().await.concurrency(1).drain_deadline(PATIENCE);
        let run = tokio::spawn(worker.run(handler, shutdown.clone()));
        eventually(PATIENCE, "one runs", async || begun.load(Ordering::SeqCst) == 1).await;
        shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.add_permits(1_000);
        let summary = run.await.unwrap().unwrap();
        assert_eq!((summary.succeeded, summary.left, summary.drained), (1, 0, true), "{summary}");
        assert_eq!(summary.released, summary.taken - 1, "{summary}");
        shop.judge(shop.history().await.into_iter().take(1)).await;
        // Free at once, and no attempt burnt.
        assert_eq!(shop.world.count("_open", "lot = 0 AND run = 0 AND attempts = 0").await, 99);
    }
}

everywhere! {
    async fn f43_what_still_runs_at_the_deadline_is_dropped_and_given_back<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 10, 10).await;
        let (effects, begun) = (shop.effects.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&begun);
        let shutdown = CancellationToken::new();
        let handler = async move |m: Message, tx: &mut DB::Connection| {
            DB::effect(tx, &effects, id_of(&m)).await?;
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
            Ok::<_, sqlx::Error>(())
        };
        let worker = shop.worker().await.drain_deadline(Duration::from_millis(100));
        let run = tokio::spawn(worker.run(handler, shutdown.clone()));
        eventually(PATIENCE, "one runs", async || begun.load(Ordering::SeqCst) >= 1).await;
        shutdown.cancel();
        let summary = run.await.unwrap().unwrap();
        assert!(!summary.drained && summary.left == 0 && summary.succeeded == 0, "{summary}");
        shop.judge(0..0).await;
        assert_eq!(shop.world.count("_open", "lot = 0 AND run = 0 AND attempts = 0").await, 10);
        // Others go on at once.
        let effects = shop.effects.clone();
        shop.work(shop.worker().await, async move |m: Message, tx: &mut DB::Connection| {
            Ok(DB::effect(tx, &effects, id_of(&m)).await?)
        })
        .await;
        shop.judge(0..10).await;
    }
}

everywhere! {
    /// Fails where such a worker starts: every message would be dead.
    async fn a_worker_without_time_for_its_handlers_does_not_start<DB>() {
        let shop = Shop::<DB>::open().await;
        let handler = async |_: Message, _: &mut DB::Connection| Ok::<_, sqlx::Error>(());
        let run = tuned(shop.inbox.worker()).handler_timeout(Duration::ZERO).run(handler, CancellationToken::new());
        let error = tokio::time::timeout(PATIENCE, run).await.expect("it goes on").expect_err("it ended well");
        assert!(matches!(error, WorkError::Setting { setting: "handler_timeout", .. }), "{error:?}");
        assert!(!error.is_retryable() && error.summary().is_none());
        assert_eq!(error.to_string(), "handler_timeout: zero would drop every handler. Set the time that a handler may take, or leave it out.");
    }
}

everywhere! {
    async fn f39_dropped_at_any_time_no_connection_goes_back_inside_a_transaction<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 200, 13).await;
        for number in 0_u64..12 {
            let effects = shop.effects.clone();
            let handler = async move |m: Message, tx: &mut DB::Connection| {
                DB::effect(tx, &effects, id_of(&m)).await?;
                tokio::task::yield_now().await;
                Ok::<_, sqlx::Error>(())
            };
            let worker = tuned(shop.inbox.worker()).lease(Duration::from_secs(1)).retry(Retry::fixed(Duration::ZERO).attempts(99)).batch_size(10);
            let run = worker.run(handler, CancellationToken::new());
            let _ = tokio::time::timeout(Duration::from_millis(7 * number), run).await;
        }
        // The pool's connections are as good as new ones: each sees what others commit.
        let effects = shop.effects.clone();
        let worker = tuned(shop.inbox.worker()).lease(Duration::from_secs(1)).retry(Retry::fixed(Duration::ZERO).attempts(99));
        shop.work(worker, async move |m: Message, tx: &mut DB::Connection| {
            Ok(DB::effect(tx, &effects, id_of(&m)).await?)
        })
        .await;
        shop.judge(0..200).await;
    }
}
