//! What this service can be told.

use std::path::PathBuf;
use std::time::Duration;

use hapax::consumer::OnReset;
use hapax::identity::{Identify, Sha256, digest, header, json, position, record_key};
use hapax::{Mode, Order};

use crate::flags::{Flag, Given, describe};
use crate::injection::Injection;

const FLAGS: &[Flag] = &[
    ("brokers", "HOST:PORT,…", "where Kafka is"),
    ("topics", "NAME,…", "what to read"),
    ("group", "NAME", "the consumer group; identities are unique within it"),
    ("group-protocol", "KIND", "cooperative (default), classic (eager, range) or consumer (KIP-848)"),
    ("instance-id", "NAME", "static membership: a restart takes its partitions back at once"),
    (
        "session-timeout-ms",
        "N",
        "how long a member that fell silent keeps its partitions (default: 10000; KIP-848: the broker's)",
    ),
    ("max-poll-interval-ms", "N", "how long a member may go without polling (default: Kafka's 300000)"),
    (
        "memory",
        "KIND",
        "effect and memory in one transaction of the --effects database (level L2), without a --store: records, window, or both of \
         them; or inbox: messages are stored there first, and worked later",
    ),
    (
        "role",
        "KIND",
        "with --memory inbox: accept (Kafka to table), work (table to effect, by key, without Kafka, level L2) or work-outside (the same \
         under a lease, level L1: the effects may be in another database than the inbox, which --store names then)",
    ),
    ("most", "N", "with --role work…: messages taken at once (default: 512)"),
    (
        "store",
        "URL",
        "where hapax remembers otherwise: redis://…, postgres://…, mysql://…, sqlite:PATH, memory:; with --memory inbox: the inbox's database, \
         if it is not that of the effects",
    ),
    (
        "identity",
        "KIND",
        "what makes two messages the same: header:NAME (default: header:message-id), key, json:/POINTER, sha256, position",
    ),
    ("mode", "KIND", "deduplicated (default), at-least-once, at-most-once"),
    ("order", "KIND", "which messages wait for which: partition (default), key, unordered"),
    ("concurrency", "N", "handlers that may run at once (default: 64)"),
    (
        "dead-letter",
        "TOPIC",
        "where messages go that are given up; it must exist (default: they are dead in the store)",
    ),
    (
        "on-reset",
        "KIND",
        "where the group's offset is gone or means nothing any more: refuse (default from L1 on), warn, accept",
    ),
    ("lease-ms", "N", "how long a claim lasts unless it is renewed (default: 30000)"),
    ("retry-ms", "N", "the wait after the first failed attempt; each further one doubles it (default: 200)"),
    ("attempts", "N", "attempts before a message is given up (default: 8)"),
    (
        "effects",
        "URL",
        "postgres://…, mysql://… or sqlite:PATH: a row in the table `effect` for each effect, without a unique index",
    ),
    ("member", "NAME", "how this process is called in that table (default: the instance id, or service-PID)"),
    ("handler-delay-ms", "N", "how long handling takes: half of it before the effect, half behind it (default: 0)"),
    ("fail-percent", "P", "attempts that fail, for demonstration: they are tried again"),
    ("panic-percent", "P", "attempts that panic, for demonstration: they are tried again"),
    ("fatal-percent", "P", "messages that never succeed, for demonstration: they are given up at once"),
    ("seed", "N", "which attempts and messages those are (default: 0)"),
    ("kill-after", "N", "the process aborts right after its N-th effect, for demonstration"),
    ("metrics-port", "PORT", "serves /metrics (Prometheus) and /health (JSON) on 127.0.0.1, workers too"),
    ("exit-when-idle", "SECONDS", "ends by itself when the group has been at the end of its topics for so long"),
    (
        "log",
        "FILE",
        "where the log goes (default: standard error); RUST_LOG says how much (default: hapax=info,service=info)",
    ),
    (
        "journal",
        "FILE",
        "one line for each claim that is granted, prolonged and settled, with its time: evidence for a judge",
    ),
];

pub fn help() -> String {
    format!(
        "Handles the messages of Kafka topics, each one once, with an effect that can be counted.\n\n\
         Usage: cargo run --release --features full --example service -- FLAGS\n\n{}\n\
         Every flag may stand in the environment instead: --retry-ms as SERVICE_RETRY_MS. SIGTERM and SIGINT end the service in order.\n\
         It ends with 0 when it was told to end, 1 when it could not go on, 2 when it could not start.",
        describe(FLAGS)
    )
}

pub struct Args {
    pub kafka: Kafka,
    pub once: Once,
    pub flow: Flow,
    pub work: Work,
    pub member: String,
    pub metrics_port: Option<u16>,
    pub exit_when_idle: Option<Duration>,
    pub log: Option<PathBuf>,
    pub journal: Option<PathBuf>,
}

/// Where messages come from.
pub struct Kafka {
    pub brokers: String,
    pub topics: Vec<String>,
    pub group: String,
    pub protocol: Protocol,
    pub instance: Option<String>,
    pub session_timeout: Duration,
    pub max_poll_interval: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Cooperative,
    Eager,
    /// KIP-848.
    Consumer,
}

/// How messages are handled once.
pub struct Once {
    pub store: Store,
    pub identity: By,
    pub mode: Mode,
    pub lease: Duration,
    pub retry: Duration,
    pub attempts: u32,
    /// Messages in one transaction of a worker.
    pub most: usize,
}

/// Where hapax remembers.
pub enum Store {
    Url(String),
    /// In the effects' own transaction.
    Effects(Memory),
    /// Stored first and worked later: there too, or in the database of this URL.
    Inbox(Role, Option<String>),
}

/// What this process does for an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Accept,
    /// The effects in the inbox's own transactions.
    Work,
    /// The effects elsewhere.
    WorkOutside,
}

/// What it remembers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// One of each message: told again when it is produced again.
    Records,
    /// One of each partition: told again when it is delivered again.
    Window,
    Both,
}

/// What waits for what.
pub struct Flow {
    pub order: Order,
    pub concurrency: usize,
    pub dead_letter: Option<String>,
    /// `None`: as the store's level says.
    pub on_reset: Option<OnReset>,
}

/// What makes two messages the same.
pub enum By {
    Header(String),
    Key,
    Json(String),
    Sha256,
    Position,
}

impl By {
    pub fn identity(&self) -> Box<dyn Identify> {
        match self {
            Self::Header(name) => Box::new(header(name.as_str())),
            Self::Key => Box::new(record_key()),
            Self::Json(pointer) => Box::new(json(pointer.as_str())),
            Self::Sha256 => Box::new(digest(Sha256)),
            Self::Position => Box::new(position()),
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("header", "") => Ok(Self::Header("message-id".into())),
            ("header", name) => Ok(Self::Header(name.into())),
            ("json", pointer) if pointer.starts_with('/') => Ok(Self::Json(pointer.into())),
            ("key", "") => Ok(Self::Key),
            ("sha256", "") => Ok(Self::Sha256),
            ("position", "") => Ok(Self::Position),
            _ => Err(format!("--identity {text}: choose header:NAME, key, json:/POINTER, sha256 or position")),
        }
    }
}

/// What is done with a message.
pub struct Work {
    pub effects: String,
    pub delay: Duration,
    pub injection: Injection,
    pub kill_after: Option<u64>,
}

/// What the flags ask for; `None` for `--help`.
pub fn read() -> Result<Option<Args>, String> {
    let Some(given) = Given::read(FLAGS, Some("SERVICE"), std::env::args_os().skip(1))? else { return Ok(None) };
    let instance = given.text("instance-id").map(str::to_owned);
    let member = given.text("member").or(instance.as_deref()).map(str::to_owned);
    let args = Args {
        kafka: Kafka {
            brokers: brokers(given.needed("brokers", "127.0.0.1:9092")?)?,
            topics: given.needed("topics", "orders")?.split(',').map(|topic| topic.trim().to_owned()).collect(),
            group: given.needed("group", "payments")?,
            protocol: given.one_of(
                "group-protocol",
                &[
                    ("cooperative", Protocol::Cooperative),
                    ("classic", Protocol::Eager),
                    ("consumer", Protocol::Consumer),
                ],
                Protocol::Cooperative,
            )?,
            instance,
            session_timeout: given.millis("session-timeout-ms", 1_000)?.unwrap_or(Duration::from_secs(10)),
            max_poll_interval: given.millis("max-poll-interval-ms", 1_000)?,
        },
        once: Once {
            store: store(&given)?,
            identity: By::read(given.text("identity").unwrap_or("header"))?,
            mode: given.one_of(
                "mode",
                &[
                    ("deduplicated", Mode::Deduplicated),
                    ("at-least-once", Mode::AtLeastOnce),
                    ("at-most-once", Mode::AtMostOnce),
                ],
                Mode::Deduplicated,
            )?,
            lease: given.millis("lease-ms", 1_000)?.unwrap_or(Duration::from_secs(30)),
            retry: given.millis("retry-ms", 0)?.unwrap_or(Duration::from_millis(200)),
            attempts: given.number("attempts", 1, 1_000_000)?.map_or(8, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            most: given.number("most", 1, 100_000)?.map_or(512, |n| usize::try_from(n).unwrap_or(512)),
        },
        flow: Flow {
            order: given.one_of(
                "order",
                &[("partition", Order::Partition), ("key", Order::Key), ("unordered", Order::Unordered)],
                Order::Partition,
            )?,
            concurrency: given.number("concurrency", 1, 1_000_000)?.map_or(64, |n| usize::try_from(n).unwrap_or(64)),
            dead_letter: given.text("dead-letter").map(str::to_owned),
            on_reset: given.one_of(
                "on-reset",
                &[("refuse", Some(OnReset::Refuse)), ("warn", Some(OnReset::Warn)), ("accept", Some(OnReset::Accept))],
                None,
            )?,
        },
        work: Work {
            effects: given.needed("effects", "sqlite:effects.db")?,
            delay: given.millis("handler-delay-ms", 0)?.unwrap_or_default(),
            injection: Injection {
                seed: given.number("seed", 0, u64::MAX)?.unwrap_or(0),
                fail: given.percent("fail-percent")?,
                panic: given.percent("panic-percent")?,
                fatal: given.percent("fatal-percent")?,
            },
            kill_after: given.number("kill-after", 1, u64::MAX)?,
        },
        member: member.unwrap_or_else(|| format!("service-{}", std::process::id())),
        metrics_port: given.number("metrics-port", 1, 65_535)?.and_then(|port| u16::try_from(port).ok()),
        exit_when_idle: given.number("exit-when-idle", 1, 86_400)?.map(Duration::from_secs),
        log: given.text("log").map(PathBuf::from),
        journal: given.text("journal").map(PathBuf::from),
    };
    Ok(Some(args))
}

fn store(given: &Given) -> Result<Store, String> {
    if given.text("memory") == Some("inbox") {
        given.needed("role", "work")?;
        let roles = [("accept", Role::Accept), ("work", Role::Work), ("work-outside", Role::WorkOutside)];
        let role = given.one_of("role", &roles, Role::Work)?;
        let store = given.text("store").map(str::to_owned);
        if role == Role::Work && store.is_some() {
            return Err(
                "--role work: effects and inbox are in one database; leave out --store, or choose work-outside".into(),
            );
        }
        return Ok(Store::Inbox(role, store));
    }
    let (records, window, both) = (Some(Memory::Records), Some(Memory::Window), Some(Memory::Both));
    let kinds = [("records", records), ("window", window), ("both", both), ("inbox", None)];
    let Some(memory) = given.one_of("memory", &kinds, None)? else {
        return given.needed("store", "redis://127.0.0.1").map(Store::Url);
    };
    match ["store", "mode", "lease-ms"].into_iter().find(|name| given.text(name).is_some()) {
        Some(name) => Err(format!("--memory: what is remembered is in the --effects database; leave out --{name}")),
        None => Ok(Store::Effects(memory)),
    }
}

fn brokers(value: String) -> Result<String, String> {
    let good =
        |one: &str| one.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if value.split(',').all(|one| good(one.trim())) {
        Ok(value)
    } else {
        Err(format!("--brokers {value}: give HOST:PORT, such as 127.0.0.1:9092, several with commas"))
    }
}
