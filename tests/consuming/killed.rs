//! Members that are killed, or stand still, in the middle of a batch.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hapax::identity::{Identify, header, position};
use hapax::{Message, Once, Order};
use sqlx::{MySql, Postgres, Sqlite};

use crate::base::{Base, Site, Tables, everywhere, id_of};
use crate::ground::Ground;
use crate::support::{PATIENCE, eventually};
use crate::world::Member;

/// The variable that holds what a member is to do.
pub const ORDER: &str = "HAPAX_CONSUMING_MEMBER";
/// The message at which the first member waits, with the effects of those before it in its transaction.
const GATE: i64 = 150;

/// What a process does: consumes until it is killed, or told to end, and waits at the gate as long as that file stands.
pub fn run(order: &str) {
    let mut lines = order.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap();
    let (kind, url, effects, bootstrap, group, topic, gate) = (next(), next(), next(), next(), next(), next(), next());
    let tables = tables_of(&effects);
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let site = Site::at(url);
    let kafka = crate::support::Kafka::at(&bootstrap);
    let config = kafka.consumer_config(&group);
    match kind.as_str() {
        "postgres" => runtime.block_on(live::<Postgres>(site, tables, config, topic, gate.into())),
        "mysql" => runtime.block_on(live::<MySql>(site, tables, config, topic, gate.into())),
        _ => runtime.block_on(live::<Sqlite>(site, tables, config, topic, gate.into())),
    }
}

pub fn tables_of(effects: &str) -> Tables {
    let name = effects.strip_suffix("_e").unwrap();
    Tables { records: format!("{name}_r"), windows: format!("{name}_w"), effects: effects.to_owned() }
}

async fn live<DB: Base>(site: Site, tables: Tables, config: rdkafka::ClientConfig, topic: String, gate: PathBuf) {
    let pool = DB::pool(&site, 4).await;
    let once = Once::transactional(pool)
        .scope("tests", &tables.effects)
        .identify(position().and_then(header("id")))
        .with_table(&tables.records)
        .with_windows_table(&tables.windows)
        .build()
        .await
        .unwrap();
    let table = tables.effects;
    let each = once.each(async move |message: Message, tx: &mut DB::Connection| {
        DB::effect(tx, &table, id_of(&message)).await?;
        if id_of(&message) == GATE && gate.exists() {
            std::fs::write(gate.with_extension("reached"), "").unwrap();
            while gate.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok::<_, sqlx::Error>(())
    });
    let consumer = crate::world::consumer(config, &topic).order(Order::Key);
    consumer.run(each, hapax::shutdown_signal()).await.unwrap();
}

/// A process, killed with the test.
pub struct Process(pub Child);

impl Process {
    /// One that is told by this variable what to do; the last part of it is `path`.
    pub fn start<DB: Base>(ground: &Ground<DB>, order: &str, path: &std::path::Path) -> Self {
        let parts = [
            DB::KIND,
            &ground.site.url,
            &ground.tables.effects,
            ground.kafka.bootstrap(),
            &ground.group,
            &ground.topic,
            path.to_str().unwrap(),
        ];
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "member_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(order, parts.join("\n"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

everywhere! {
    async fn killed_in_the_middle_of_a_batch<DB>() {
        let ground = Ground::<DB>::new(2).await;
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("gate");
        std::fs::write(&gate, "").unwrap();
        ground.produce(2, 0..300).await;
        // Made here, since two members that make tables at once are somebody else's test.
        drop(ground.once(position().and_then(header("id"))).await);
        let mut process = Process::start(&ground, ORDER, &gate);
        eventually(PATIENCE, "it waits in the middle", async || gate.with_extension("reached").exists()).await;
        // SIGKILL: no destructor runs, and nothing is said to the database.
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        std::fs::remove_file(&gate).unwrap();
        let before = ground.effects().await;
        let member = Member::start(ground.consumer().order(Order::Key), ground.noting(position().and_then(header("id"))).await);
        ground.committed(&[150, 150]).await;
        let summary = member.stop().await;
        ground.judge(0..300).await;
        assert_eq!(i64::try_from(summary.handled).unwrap() + before, 300);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_commits_nothing() {
    let ground = Ground::<Postgres>::new(2).await;
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    std::fs::write(&gate, "").unwrap();
    ground.produce(2, 0..300).await;
    drop(ground.once(position().and_then(header("id"))).await);
    let zombie = Process::start(&ground, ORDER, &gate);
    eventually(PATIENCE, "it waits in the middle", async || gate.with_extension("reached").exists()).await;
    // It stands still, with its transaction open, until others have all of its partitions. Records would be enough to keep the others waiting for
    // its rows: so they take what it does not hold, and the rest when its session is over and its transaction gone.
    zombie.signal("STOP");
    let member =
        Member::start(ground.consumer().order(Order::Key), ground.noting(position().and_then(header("id"))).await);
    let assigned = format!("SELECT COUNT(*) FROM {} WHERE fence >= 2", ground.tables.windows);
    eventually(PATIENCE, "another has taken both partitions", async || {
        let mut conn = Postgres::session(&ground.site).await;
        Postgres::number(&mut conn, &assigned).await.unwrap() == 2
    })
    .await;
    // It wakes up, goes on with its handler, and finds that it may not commit.
    std::fs::remove_file(&gate).unwrap();
    zombie.signal("CONT");
    // Both are members now, and share what is left and what comes.
    ground.produce(2, 300..400).await;
    ground.committed(&[200, 200]).await;
    ground.judge(0..400).await;
    zombie.signal("TERM");
    member.stop().await;
}
