//! Processes that are killed by what they handle (F36), and between a letter's acknowledgement and its settle (F37).
//!
//! A member is this test binary run as a process of its own, a static member of its group, so that it is back at once.

#![cfg(unix)]

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use hapax::consumer::letter::{self, Cause, LetterInfo};
use hapax::consumer::{Consumer, DeadLetter, Message};
use hapax::identity::header;
use hapax::record::{Settle, Verdict};
use hapax::store::{Batch, MemoryStore, SqliteStore};
use hapax::{Claim, Fatal, Once, Retry};
use tokio_util::sync::CancellationToken;

use crate::support::store::{Looks, Watched};
use crate::support::{Kafka, PATIENCE, Record, eventually, eventually_blocking, unique};
use crate::world::{Effects, header_of, letters};

/// The variable that holds what a member is to do.
const ORDER: &str = "HAPAX_DEAD_LETTER_MEMBER";
const ATTEMPTS: u32 = 3;

/// A member: started by the other tests, not by hand.
#[test]
#[ignore = "a process that the other tests start"]
fn member_process() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let fields: Vec<&str> = order.split('\n').collect();
    let [bootstrap, orders, dead, group, dir, dies_at_settle] = fields[..] else { panic!("{fields:?}") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(live(bootstrap, orders, dead, group, PathBuf::from(dir), dies_at_settle == "true"));
}

/// Ends this process as the kernel would: no destructor runs, nothing is said.
fn die() -> ! {
    let _ = Command::new("sh").args(["-c", &format!("kill -9 {}", std::process::id())]).status();
    loop {
        std::thread::park();
    }
}

async fn live(bootstrap: &str, orders: &str, dead: &str, group: &str, dir: PathBuf, dies_at_settle: bool) {
    let store = SqliteStore::connect(&format!("sqlite:{}", dir.join("records.db").display())).await.unwrap();
    let once = Once::builder(Watched::new(store, DyingAtDeath(dies_at_settle)))
        .scope(group, "ship")
        .identify(header("id"))
        .lease(Duration::from_secs(1))
        .accept_unsafe_settings()
        .build()
        .await
        .unwrap();
    let mut config = Kafka::at(bootstrap).consumer_config(group);
    // Back at once after a kill; and not taken for dead by a machine that is busy.
    config.set("group.instance.id", "one").set("session.timeout.ms", "30000");
    let shutdown = CancellationToken::new();
    let (effects, done) = (dir.join("effects"), shutdown.clone());
    let handling = once.each(move |message: Message, _: Claim| {
        let id = header_of(&message, "id").unwrap().to_owned();
        let mut effects = std::fs::OpenOptions::new().append(true).create(true).open(&effects).unwrap();
        effects.write_all(format!("{id}\n").as_bytes()).unwrap();
        let done = done.clone();
        async move {
            match &*id {
                "kills" => die(),
                "never" => return Err(Fatal::new("no such customer")),
                "last" => done.cancel(),
                _ => {}
            }
            Ok(())
        }
    });
    Consumer::new(config)
        .topics([orders])
        .commit_every(Duration::from_millis(100))
        .retry(Retry::fixed(Duration::from_millis(5)).attempts(ATTEMPTS))
        .dead_letter(DeadLetter::topic(dead))
        .run(handling, shutdown)
        .await
        .unwrap();
}

struct World {
    kafka: Kafka,
    orders: String,
    dead: String,
    group: String,
    dir: tempfile::TempDir,
}

impl World {
    async fn new(ids: &[&str]) -> Self {
        let kafka = Kafka::real();
        let (orders, dead, group) = (unique("orders"), unique("dead"), unique("group"));
        kafka.create_topic(&orders, 1).await;
        kafka.create_topic(&dead, 1).await;
        let records: Vec<Record> = ids.iter().map(|id| Record::to(&orders).payload(id).header("id", id)).collect();
        kafka.produce(&records).await;
        Self { kafka, orders, dead, group, dir: tempfile::tempdir().unwrap() }
    }

    /// Runs a member until it ends by itself or is killed.
    async fn live(&self, dies_at_settle: bool) -> ExitStatus {
        let order = [
            self.kafka.bootstrap(),
            &self.orders,
            &self.dead,
            &self.group,
            self.dir.path().to_str().unwrap(),
            if dies_at_settle { "true" } else { "false" },
        ];
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::member_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, order.join("\n"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let member = Member(child);
        tokio::task::spawn_blocking(move || member.ended()).await.unwrap()
    }

    /// Lines that handlers wrote, before they did anything else.
    fn begun(&self, id: &str) -> usize {
        read(&self.dir.path().join("effects")).lines().filter(|line| *line == id).count()
    }

    async fn letters(&self) -> Vec<LetterInfo> {
        letters(&self.kafka, &self.dead).await.into_iter().map(|(_, info)| info).collect()
    }

    async fn committed(&self) -> Option<i64> {
        self.kafka.committed(&self.group, &self.orders, 0).await
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A process that is ended with the test.
struct Member(Child);

impl Member {
    fn ended(mut self) -> ExitStatus {
        let mut status = None;
        eventually_blocking(Duration::from_secs(120), "the member ends, or is killed", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A message that kills the process that handles it is given up after its attempts, and nobody else with it.
#[tokio::test]
async fn what_kills_its_process_is_given_up_after_its_attempts() {
    let world = World::new(&["before", "kills", "behind", "last"]).await;
    let mut kills = 0;
    loop {
        let status = world.live(false).await;
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "{status}");
        kills += 1;
        assert!(kills <= ATTEMPTS, "it is never given up");
    }
    assert_eq!(kills, ATTEMPTS, "as many as it has attempts");
    assert_eq!(world.begun("kills"), kills as usize);
    assert_eq!((world.begun("behind"), world.begun("last")), (1, 1));
    // L1: what was not settled when the process was killed may be handled again.
    assert!((1..=1 + kills as usize).contains(&world.begun("before")), "{}", world.begun("before"));
    let found = world.letters().await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].offset, found[0].attempts, found[0].hops), (1, Some(ATTEMPTS), 1));
    assert_eq!((found[0].cause, found[0].class), (Cause::DeadBefore, None), "nobody was left to say more");
    assert_eq!(world.committed().await, Some(4));
}

/// Killed when the letter is acknowledged and the store has not heard: the letter comes again, under the identity that it had.
#[tokio::test]
async fn a_letter_that_comes_again_after_a_kill_is_handled_once() {
    let world = World::new(&["before", "never", "last"]).await;
    let status = world.live(true).await;
    assert_eq!(status.signal(), Some(9), "{status}");
    assert_eq!(world.letters().await.len(), 1, "acknowledged before it is settled");
    assert!(world.committed().await.unwrap_or(0) <= 1, "and settled before it is committed");
    let status = world.live(false).await;
    assert!(status.success(), "{status}");
    let found = world.letters().await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].cause, &found[0].identity), (found[1].cause, &found[1].identity));
    // L1: begun when the letter was acknowledged, and not settled when the process was killed.
    assert!((1..=2).contains(&world.begun("last")), "{}", world.begun("last"));
    assert_eq!(world.committed().await, Some(3));

    // Whoever reads the letters.
    let effects = Effects::default();
    let once = Once::builder(MemoryStore::new())
        .scope("alerts", "tell")
        .identify(header(letter::IDENTITY))
        .accept_unsafe_settings()
        .build()
        .await
        .unwrap();
    let noted = effects.clone();
    let handling = once.each(move |message: Message, _: Claim| {
        noted.note(header_of(&message, "id").unwrap());
        std::future::ready(Ok::<_, String>(()))
    });
    let (alerts, shutdown) = (unique("alerts"), CancellationToken::new());
    let consumer = Consumer::new(world.kafka.consumer_config(&alerts))
        .topics([&*world.dead])
        .commit_every(Duration::from_millis(100));
    let token = shutdown.clone();
    let reader = tokio::spawn(async move { consumer.run(handling, token).await });
    eventually(PATIENCE, "both letters are read", async || {
        world.kafka.committed(&alerts, &world.dead, 0).await == Some(2)
    })
    .await;
    shutdown.cancel();
    let summary = reader.await.unwrap().unwrap();
    assert_eq!((effects.of("never"), summary.handled, summary.same_id), (1, 1, 1), "{summary}");
}

/// The process is killed when something is to be settled as dead.
struct DyingAtDeath(bool);

impl Looks for DyingAtDeath {
    fn settling(&self, settles: &Batch<Settle>) {
        if self.0 && settles.items().iter().any(|settle| matches!(settle.verdict, Verdict::Dead)) {
            die();
        }
    }
}
