//! A member of a group: a task of this process, or a process of its own.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use hapax::consumer::{Consumer, ConsumerError, Handed, Summary};
use hapax::identity::header;
use hapax::store::{DedupStore, MemoryStore, MysqlStore, PostgresStore, RedisStore, SqliteStore};
use hapax::{Claim, Message, Once, Retry, Unavailable};
use rdkafka::ClientConfig;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, eventually};

/// The variable that holds what a member is to do.
pub const ORDER: &str = "HAPAX_BROKER_MEMBER";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// One for all members of a group in this process.
    #[default]
    Memory,
    Url(String),
}

/// What a member is to do.
#[derive(Clone, Debug)]
pub struct Order {
    pub name: String,
    pub bootstrap: String,
    pub group: String,
    pub topic: String,
    /// rdkafka's settings, over those of every member.
    pub settings: Vec<(String, String)>,
    pub store: Store,
    pub effects: PathBuf,
    /// Where gates and reports are.
    pub folder: PathBuf,
    pub lease: Duration,
    pub drain: Duration,
    pub commit_every: Duration,
    /// How long a handler takes, until a file `hurry` stands in the folder.
    pub slow: Duration,
    /// How long a handler of a message with the header `long` blocks its thread.
    pub block: Duration,
    /// The same, waiting without blocking.
    pub wait: Duration,
    /// Whether handlers of this member wait at messages with the header `gate`.
    pub gates: bool,
    pub way: Way,
    /// Messages that one call of the handler takes, where it takes more than one.
    pub batch: usize,
    pub step_aside: bool,
}

/// Which messages wait for which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Partition,
    Key,
    Unordered,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Partition, Self::Key, Self::Unordered];

    const fn order(self) -> hapax::consumer::Order {
        match self {
            Self::Partition => hapax::consumer::Order::Partition,
            Self::Key => hapax::consumer::Order::Key,
            Self::Unordered => hapax::consumer::Order::Unordered,
        }
    }
}

impl Default for Order {
    fn default() -> Self {
        Self {
            name: String::new(),
            bootstrap: String::new(),
            group: String::new(),
            topic: String::new(),
            settings: Vec::new(),
            store: Store::Memory,
            effects: PathBuf::new(),
            folder: PathBuf::new(),
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(20),
            commit_every: Duration::from_millis(100),
            slow: Duration::ZERO,
            block: Duration::ZERO,
            wait: Duration::ZERO,
            gates: false,
            way: Way::Partition,
            batch: 1,
            step_aside: false,
        }
    }
}

impl Order {
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    fn write(&self) -> String {
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let store = match &self.store {
            Store::Memory => String::new(),
            Store::Url(url) => url.clone(),
        };
        let millis = |duration: Duration| duration.as_millis().to_string();
        [
            self.name.clone(),
            self.bootstrap.clone(),
            self.group.clone(),
            self.topic.clone(),
            settings.join(","),
            store,
            self.effects.display().to_string(),
            self.folder.display().to_string(),
            millis(self.lease),
            millis(self.drain),
            millis(self.commit_every),
            millis(self.slow),
            millis(self.block),
            millis(self.wait),
            self.gates.to_string(),
            format!("{:?}", self.way),
            self.batch.to_string(),
            self.step_aside.to_string(),
        ]
        .join("\n")
    }

    fn read(text: &str) -> Self {
        let mut lines = text.split('\n');
        let mut next = || lines.next().unwrap().to_owned();
        let millis = |text: String| Duration::from_millis(text.parse().unwrap());
        Self {
            name: next(),
            bootstrap: next(),
            group: next(),
            topic: next(),
            settings: next()
                .split(',')
                .map(|setting| setting.split_once('=').unwrap())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            store: match next() {
                url if url.is_empty() => Store::Memory,
                url => Store::Url(url),
            },
            effects: next().into(),
            folder: next().into(),
            lease: millis(next()),
            drain: millis(next()),
            commit_every: millis(next()),
            slow: millis(next()),
            block: millis(next()),
            wait: millis(next()),
            gates: next() == "true",
            way: match next().as_str() {
                "Partition" => Way::Partition,
                "Key" => Way::Key,
                "Unordered" => Way::Unordered,
                other => panic!("no such order: {other}"),
            },
            batch: next().parse().unwrap(),
            step_aside: next() == "true",
        }
    }

    fn file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", self.name))
    }

    async fn once(&self) -> Once {
        let store: Box<dyn DedupStore> = match &self.store {
            Store::Memory => Box::new(memory(&self.group)),
            Store::Url(url) => connect(url).await,
        };
        Once::builder(store)
            .scope(&*self.group, "effect")
            .identify(header("id"))
            .lease(self.lease)
            .retry(Retry::fixed(Duration::from_millis(200)).attempts(5))
            .accept_unsafe_settings()
            .build()
            .await
            .unwrap()
    }

    fn consumer(&self) -> Consumer {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", &self.group)
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "50")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("reconnect.backoff.max.ms", "500");
        if !self.settings.iter().any(|(name, _)| name == "group.protocol") {
            config.set("heartbeat.interval.ms", "500");
        }
        for (name, value) in &self.settings {
            config.set(name, value);
        }
        let consumer = Consumer::new(config)
            .topics([&*self.topic])
            .order(self.way.order())
            .commit_every(self.commit_every)
            .drain_deadline(self.drain);
        if self.step_aside { consumer.step_aside() } else { consumer }
    }

    /// The effect, between two gates.
    async fn handle(&self, message: &Message, claim: &Claim) -> Result<(), Failure> {
        if self.folder.join("down").exists() {
            append(&self.folder.join("asked"), ".");
            return Err(Unavailable::new("the downstream is down").into());
        }
        let fails = message.header("fails").map_or(0, |fails| std::str::from_utf8(fails).unwrap().parse().unwrap());
        if claim.attempt() <= fails {
            return Err("it fails".into());
        }
        if !self.slow.is_zero() && !self.folder.join("hurry").exists() {
            tokio::time::sleep(self.slow).await;
        }
        if message.header("long").is_some() {
            std::thread::sleep(self.block);
            tokio::time::sleep(self.wait).await;
        }
        let gate = message.header("gate").filter(|_| self.gates);
        if gate == Some(b"before") {
            self.gate(message).await;
        }
        let id = std::str::from_utf8(message.header("id").unwrap()).unwrap();
        let lost = claim.is_lost() || claim.remaining().is_zero();
        let line = format!(
            "{} {id} {} {} {} {} {lost}\n",
            self.name,
            message.partition(),
            message.offset(),
            claim.attempt(),
            claim.took_over(),
        );
        append(&self.effects, &line);
        if gate == Some(b"after") {
            self.gate(message).await;
        }
        Ok(())
    }

    async fn gate(&self, message: &Message) {
        append(&self.file("gate"), &format!("{}\n", message.partition()));
        let open = self.file("open");
        while !open.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn live(self, shutdown: CancellationToken) -> Result<Summary, ConsumerError> {
        let (once, consumer, most) = (self.once().await, self.consumer(), self.batch);
        let order = std::sync::Arc::new(self);
        if most > 1 {
            let batches = move |batch: Vec<Handed>| {
                let order = std::sync::Arc::clone(&order);
                async move {
                    let mut answers = Vec::new();
                    for Handed { message, claim, .. } in &batch {
                        answers.push(order.handle(message, claim).await);
                    }
                    answers
                }
            };
            return consumer.run(once.batch(most, batches), shutdown).await;
        }
        let one = move |message: Message, claim: Claim| {
            let order = std::sync::Arc::clone(&order);
            async move { order.handle(&message, &claim).await }
        };
        consumer.run(once.each(one), shutdown).await
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn append(path: &Path, line: &str) {
    // One write each: lines of different processes do not mix.
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

fn memory(group: &str) -> MemoryStore {
    static STORES: OnceLock<Mutex<HashMap<String, MemoryStore>>> = OnceLock::new();
    STORES.get_or_init(Mutex::default).lock().unwrap().entry(group.to_owned()).or_default().clone()
}

async fn connect(url: &str) -> Box<dyn DedupStore> {
    match url.split_once(':').unwrap().0 {
        "sqlite" => Box::new(SqliteStore::connect(url).await.unwrap()),
        "postgres" | "postgresql" => Box::new(PostgresStore::connect(url).await.unwrap()),
        "mysql" => Box::new(MysqlStore::connect(url).await.unwrap()),
        "redis" => Box::new(RedisStore::connect(url).await.unwrap()),
        other => panic!("no store for {other}"),
    }
}

/// What a process does: consumes until it is told to end by SIGTERM.
pub fn run(order: &str) {
    let order = Order::read(order);
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let shutdown = hapax::shutdown_signal();
        let report = order.file("report");
        let summary =
            order.live(shutdown).await.unwrap_or_else(|error| panic!("the consumer ended by itself: {error}"));
        let (handled, left, unsettled) = (summary.handled, summary.left, summary.unsettled);
        let text = format!(
            "handled={handled}\nredelivered={}\nleft={left}\nunsettled={unsettled}\nfailed_commits={}\nlate={}\n",
            summary.redelivered, summary.failed_commits, summary.late
        );
        let next = report.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, report).unwrap();
    });
}

/// A member in a task of this process.
pub struct Task {
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, ConsumerError>>,
}

impl Task {
    pub fn start(order: Order) -> Self {
        // Shown where a test fails, and where RUST_LOG asks for it.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let shutdown = CancellationToken::new();
        Self { task: tokio::spawn(order.live(shutdown.clone())), shutdown }
    }

    /// Ends it in good order.
    pub async fn stop(self) -> Summary {
        self.shutdown.cancel();
        self.end().await.expect("a clean end")
    }

    /// Waits until it ends by itself.
    pub async fn end(self) -> Result<Summary, ConsumerError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the consumer ends within a minute").expect("no panic")
    }
}

/// A member that is a process. It is killed with the test.
pub struct Process {
    child: Child,
    report: PathBuf,
}

impl Process {
    pub fn start(order: &Order) -> Self {
        let _ = fs::remove_file(order.file("report"));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "member_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, order.write())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, report: order.file("report") }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    /// SIGKILL: no destructor runs, nothing is said.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGSTOP: it stands still, and its connections stay.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// SIGTERM, and what it reports when it has ended in good order.
    pub async fn terminate(mut self) -> HashMap<String, u64> {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{status}");
        let text = fs::read_to_string(&self.report).unwrap();
        text.lines()
            .map(|line| line.split_once('=').unwrap())
            .map(|(k, v)| (k.to_owned(), v.parse().unwrap()))
            .collect()
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually(PATIENCE, "the process ends", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Kills one that stands still, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
