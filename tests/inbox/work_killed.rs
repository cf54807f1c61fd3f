//! Workers that are killed at each step, and messages that kill their worker.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hapax::inbox::{Message, Order};
use hapax::{Claim, Retry};
use sqlx::{MySql, Postgres, Sqlite};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, Site, everywhere, id_of};
use crate::support::{PATIENCE, eventually};
use crate::work::{Boxed, Shop};
use crate::world::World;

/// The variable that holds what a worker is to do.
pub const ORDER: &str = "HAPAX_INBOX_WORKER";
/// The message at which something happens.
pub const GATE: i64 = 15;

/// Where a worker waits to be killed, or what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Before the effect of a message: it is taken, and that is all.
    Before,
    /// After it, before its end is written.
    After,
    /// The same, outside of a transaction.
    Outside,
    /// The message takes the process down.
    Poison,
    /// Before the effect, until it is told to go on.
    Stopped,
    /// The same, outside of a transaction; it fails when it is told that its lease was lost.
    Zombie,
}

impl Step {
    const ALL: [Self; 6] = [Self::Before, Self::After, Self::Outside, Self::Poison, Self::Stopped, Self::Zombie];

    fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|step| format!("{step:?}") == name).unwrap()
    }
}

/// What a process does: works until it is killed.
pub fn run(order: &str) {
    let mut lines = order.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap();
    let (kind, url, prefix, step, gate) = (next(), next(), next(), Step::named(&next()), PathBuf::from(next()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let site = Site::at(url);
    match kind.as_str() {
        "postgres" => runtime.block_on(live::<Postgres>(site, prefix, step, gate)),
        "mysql" => runtime.block_on(live::<MySql>(site, prefix, step, gate)),
        _ => runtime.block_on(live::<Sqlite>(site, prefix, step, gate)),
    }
}

/// Says that it is there, and waits until it is told to go on, or killed.
async fn wait_at(gate: &Path) {
    std::fs::write(gate, "").unwrap();
    while !gate.with_extension("go").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn retry() -> Retry {
    Retry::fixed(Duration::from_millis(10)).attempts(3)
}

async fn live<DB: Base>(site: Site, prefix: String, step: Step, gate: PathBuf) {
    let pool = DB::pool(&site, 4).await;
    let effects = format!("{prefix}_e");
    let world = World::over(site, pool, prefix);
    let worker = world.inbox().await.worker().order(Order::Key).retry(retry()).lease(Duration::from_secs(3));
    let shutdown = CancellationToken::new();
    if matches!(step, Step::Outside | Step::Zombie) {
        let pool = world.pool.clone();
        let handler = move |m: Message, claim: Claim| {
            let (pool, effects, gate) = (pool.clone(), effects.clone(), gate.clone());
            async move {
                if id_of(&m) == GATE && step == Step::Zombie {
                    wait_at(&gate).await;
                    claim.lost().await;
                    return Err("others have it".into());
                }
                let mut conn = pool.acquire().await?;
                DB::effect(&mut conn, &effects, id_of(&m)).await?;
                drop(conn);
                if id_of(&m) == GATE {
                    wait_at(&gate).await;
                }
                Ok::<_, Boxed>(())
            }
        };
        worker.concurrency(1).run_outside(handler, shutdown).await.unwrap();
        return;
    }
    let handler = async move |m: Message, tx: &mut DB::Connection| {
        let here = id_of(&m) == GATE;
        if here && matches!(step, Step::Before | Step::Stopped) {
            wait_at(&gate).await;
        }
        DB::effect(tx, &effects, id_of(&m)).await?;
        if here && step == Step::After {
            wait_at(&gate).await;
        }
        if here && step == Step::Poison {
            // No destructor runs, and nothing is said to the database.
            std::process::abort();
        }
        Ok::<_, Boxed>(())
    };
    worker.concurrency(1).run(handler, shutdown).await.unwrap();
}

/// A process, killed with the test.
pub struct Process(Child);

impl Process {
    pub fn start<DB: Base>(shop: &Shop<DB>, step: Step, gate: &Path) -> Self {
        let step = format!("{step:?}");
        let parts = [DB::KIND, &shop.world.site.url, &shop.world.prefix, &step, gate.to_str().unwrap()];
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, parts.join("\n"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.0.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -{name}: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The leases of all runs are over, as if much time had passed. Waits for whoever holds one in a transaction that is being rolled back.
pub async fn lapse<DB: Base>(shop: &Shop<DB>) {
    let text = format!("UPDATE {} SET lease = 1 WHERE ended IS NULL", shop.world.table("_runs"));
    shop.world.run(&text).await;
}

/// Kills a worker at a step; another one does the rest.
async fn killed_at<DB: Base>(step: Step) -> Shop<DB> {
    let shop = Shop::<DB>::open().await;
    shop.stock(0, 60, 3).await;
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("reached");
    let process = Process::start(&shop, step, &gate);
    eventually(PATIENCE, "it waits in the middle", async || gate.exists()).await;
    // SIGKILL.
    drop(process);
    lapse(&shop).await;
    let effects = shop.effects.clone();
    let worker = shop.worker().await.order(Order::Key).lease(Duration::from_secs(1)).retry(retry());
    let summary = shop
        .work(worker, async move |m: Message, tx: &mut DB::Connection| Ok(DB::effect(tx, &effects, id_of(&m)).await?))
        .await;
    assert!(summary.swept > 0 && summary.dead == 0, "what it had was found: {summary}");
    assert_eq!(shop.world.count("_attempts", "class <> 3").await, 0, "lost, and nothing else");
    shop
}

everywhere! {
    async fn f02_killed_before_the_effect<DB>() {
        let shop = killed_at::<DB>(Step::Before).await;
        shop.judge(0..60).await;
        shop.judge_order(3).await;
    }
}

everywhere! {
    async fn f03_killed_after_the_effect<DB>() {
        let shop = killed_at::<DB>(Step::After).await;
        shop.judge(0..60).await;
        shop.judge_order(3).await;
    }
}

everywhere! {
    async fn f03_killed_after_an_effect_elsewhere_repeats_what_it_had<DB>() {
        let shop = killed_at::<DB>(Step::Outside).await;
        let history = shop.history().await;
        let times = |id: i64| history.iter().filter(|own| **own == id).count();
        assert!((0..60).all(|id| (1..=2).contains(&times(id))), "{history:?}");
        assert_eq!(times(GATE), 2, "its effect happened, and nobody knew");
        // What had ended was written before; of what it had in hand, each may have happened once more.
        let repeated = (0..60).filter(|id| times(*id) == 2).count();
        let lost = shop.world.count("_attempts", "class = 3").await;
        assert!(i64::try_from(repeated).unwrap() <= lost, "{repeated} of {lost}: {history:?}");
    }
}

everywhere! {
    async fn f36_a_message_that_kills_its_worker_is_isolated_and_dies<DB>() {
        let shop = Shop::<DB>::open().await;
        shop.stock(0, 60, 60).await;
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("reached");
        let mut deaths = 0;
        let mut process = Process::start(&shop, Step::Poison, &gate);
        eventually(PATIENCE, "all but one are done, and that one is dead", async || {
            if let Ok(Some(ended)) = process.0.try_wait() {
                assert!(!ended.success());
                deaths += 1;
                lapse(&shop).await;
                process = Process::start(&shop, Step::Poison, &gate);
            }
            shop.open_messages().await == 0
        })
        .await;
        drop(process);
        shop.judge((0..60).filter(|id| *id != GATE)).await;
        assert!((1..=3).contains(&deaths), "{deaths}: as often as it may be tried, and no more");
        assert_eq!(shop.world.count("_open", "lot = 2 AND attempts = 3").await, 1);
        // The others were in a run with it once, or behind it; after that it was alone in its process.
        let others = format!("attempt > 1 AND id NOT IN (SELECT id FROM {} WHERE lot = 2)", shop.world.table("_open"));
        assert_eq!(shop.world.count("_attempts", &others).await, 0);
    }
}
