//! What a scenario stands on: a topic and a group of its own, what was produced, the effects, and what the broker has as committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::member::{Order, Store, Way};
use crate::support::{Kafka, PATIENCE, Record, eventually, unique};

/// Which way a group is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Range,
    CooperativeSticky,
    Consumer,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Range, Self::CooperativeSticky, Self::Consumer];

    pub fn settings(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Range => vec![("partition.assignment.strategy", "range"), ("session.timeout.ms", "6000")],
            Self::CooperativeSticky => {
                vec![("partition.assignment.strategy", "cooperative-sticky"), ("session.timeout.ms", "6000")]
            }
            // The broker keeps the times: see `Ground::new`.
            Self::Consumer => vec![("group.protocol", "consumer")],
        }
    }
}

/// Runs a scenario by every protocol side by side, and names those that failed.
pub async fn by_each_protocol<F: Future<Output = ()>>(scenario: impl Fn(Protocol) -> F) {
    by(&Protocol::ALL, scenario).await;
}

pub async fn by<F: Future<Output = ()>>(protocols: &[Protocol], scenario: impl Fn(Protocol) -> F) {
    // Not spawned: one that fails does not end the others, and says which it was.
    let run = async |protocol: &Protocol| {
        let ended = AssertUnwindSafe(scenario(*protocol)).catch_unwind().await;
        ended.is_err().then_some(*protocol)
    };
    let failed: Vec<Protocol> = join_all(protocols.iter().map(run)).await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "failed by {failed:?}: see above");
}

/// Runs a scenario by every protocol and in every order side by side.
pub async fn by_each_protocol_and_order<F: Future<Output = ()>>(scenario: impl Fn(Protocol, Way) -> F) {
    let scenario = &scenario;
    by_each_protocol(|protocol| async move {
        join_all(Way::ALL.map(|way| scenario(protocol, way))).await;
    })
    .await;
}

/// One effect, as a handler noted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    pub member: String,
    pub id: String,
    pub partition: i32,
    pub offset: i64,
    pub attempt: u32,
    pub took_over: bool,
    /// Whether the handler could see that its lease was gone.
    pub lost: bool,
}

pub struct Ground {
    pub kafka: Kafka,
    pub protocol: Protocol,
    pub topic: String,
    pub group: String,
    pub partitions: i32,
    pub way: Way,
    folder: tempfile::TempDir,
    /// Each message, and its record key.
    produced: Mutex<BTreeMap<String, String>>,
}

impl Ground {
    pub async fn new(protocol: Protocol, name: &str, partitions: i32) -> Arc<Self> {
        let (kafka, topic) = (Kafka::real(), unique(name));
        kafka.create_topic(&topic, partitions).await;
        Self::on(kafka, protocol, Way::Partition, &topic, partitions).await
    }

    /// With another order than that by partition.
    pub async fn by(protocol: Protocol, way: Way, name: &str, partitions: i32) -> Arc<Self> {
        let (kafka, topic) = (Kafka::real(), unique(name));
        kafka.create_topic(&topic, partitions).await;
        Self::on(kafka, protocol, way, &topic, partitions).await
    }

    /// With a topic that is there.
    pub async fn on(kafka: Kafka, protocol: Protocol, way: Way, topic: &str, partitions: i32) -> Arc<Self> {
        let group = unique("g");
        if protocol == Protocol::Consumer {
            let short = AlterConfig::new(ResourceSpecifier::Group(&group)).set("consumer.session.timeout.ms", "6000");
            let admin: AdminClient<DefaultClientContext> =
                ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
            let options = AdminOptions::new().request_timeout(Some(PATIENCE));
            for altered in admin.alter_configs([&short], &options).await.expect("the broker answers") {
                altered.unwrap_or_else(|(_, error)| panic!("the group's session can be shortened: {error}"));
            }
        }
        Arc::new(Self {
            kafka,
            protocol,
            topic: topic.to_owned(),
            group,
            partitions,
            way,
            folder: tempfile::tempdir().unwrap(),
            produced: Mutex::default(),
        })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn effects_file(&self) -> PathBuf {
        self.folder().join("effects")
    }

    /// A member of this group, with the defaults of [`Order`].
    pub fn order(&self, name: &str) -> Order {
        Order {
            name: name.to_owned(),
            bootstrap: self.kafka.bootstrap().to_owned(),
            group: self.group.clone(),
            topic: self.topic.clone(),
            settings: self
                .protocol
                .settings()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            store: Store::Memory,
            effects: self.effects_file(),
            folder: self.folder().to_owned(),
            way: self.way,
            ..Order::default()
        }
    }

    /// A store that processes can share: another kind for each protocol, so that all are met.
    pub fn shared_store(&self) -> Store {
        use crate::support::service;
        match self.protocol {
            Protocol::Range => Store::Url(service("HAPAX_TEST_POSTGRES")),
            Protocol::CooperativeSticky => Store::Url(format!("sqlite:{}", self.folder().join("records.db").display())),
            Protocol::Consumer => Store::Url(service("HAPAX_TEST_REDIS")),
        }
    }

    /// A record with an identity of its own, which is expected to have its effect. Each partition has five keys.
    pub fn record(&self, partition: i32, id: &str) -> Record {
        let key = format!("k{}", id.bytes().map(usize::from).sum::<usize>() % 5);
        self.keyed(partition, id, &key)
    }

    pub fn keyed(&self, partition: i32, id: &str, key: &str) -> Record {
        let before = self.produced.lock().unwrap().insert(id.to_owned(), key.to_owned());
        assert_eq!(before, None, "{id} is produced once");
        Record::to(&self.topic).partition(partition).key(key).header("id", id).payload(format!("body of {id}"))
    }

    /// `each` records for each partition.
    pub async fn produce(&self, wave: &str, each: i32) {
        let record = |n: i32| self.record(n % self.partitions, &format!("{wave}-{}-{}", n % self.partitions, n));
        let records: Vec<Record> = (0..each * self.partitions).map(record).collect();
        self.kafka.produce(&records).await;
    }

    /// One record for each of these partitions at which a handler waits, before its effect or after it.
    pub async fn produce_gates(&self, gates: &[(i32, &str)]) {
        let record = |(partition, when): &(i32, &str)| {
            self.record(*partition, &format!("gate-{when}-{partition}")).header("gate", when)
        };
        self.kafka.produce(&gates.iter().map(record).collect::<Vec<_>>()).await;
    }

    pub fn produced(&self) -> usize {
        self.produced.lock().unwrap().len()
    }

    pub fn effects(&self) -> Vec<Effect> {
        let text = fs::read_to_string(self.effects_file()).unwrap_or_default();
        // A line that is being written is read the next time.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let mut next = || words.next().unwrap_or_else(|| panic!("a whole line: {line:?}")).to_owned();
            Effect {
                member: next(),
                id: next(),
                partition: next().parse().unwrap(),
                offset: next().parse().unwrap(),
                attempt: next().parse().unwrap(),
                took_over: next().parse().unwrap(),
                lost: next().parse().unwrap(),
            }
        };
        whole.lines().map(parse).collect()
    }

    /// Effects of each message, in order.
    pub fn by_id(&self) -> BTreeMap<String, Vec<Effect>> {
        let mut by_id: BTreeMap<String, Vec<Effect>> = BTreeMap::new();
        for effect in self.effects() {
            by_id.entry(effect.id.clone()).or_default().push(effect);
        }
        by_id
    }

    pub fn by_member(&self, member: &str) -> usize {
        self.effects().iter().filter(|effect| effect.member == member).count()
    }

    /// Messages with more than one effect.
    pub fn doubled(&self) -> BTreeMap<String, Vec<Effect>> {
        self.by_id().into_iter().filter(|(_, effects)| effects.len() > 1).collect()
    }

    pub fn missing(&self) -> Vec<String> {
        let had = self.by_id();
        self.produced.lock().unwrap().keys().filter(|id| !had.contains_key(*id)).cloned().collect()
    }

    /// Waits until so many messages had an effect.
    pub async fn reach(&self, distinct: usize) {
        let what = format!("{:?}: {distinct} messages have had an effect", self.protocol);
        eventually(PATIENCE, &what, async || self.by_id().len() >= distinct).await;
    }

    /// Waits until all that was produced had an effect and the broker has the end of every partition as committed. Nothing that was
    /// never produced has an effect, and every partition is in order.
    pub async fn drained(&self) {
        let what = format!("{:?}: every message had its effect", self.protocol);
        eventually(PATIENCE, &what, async || self.missing().is_empty()).await;
        let ends = self.offsets().await.1;
        let committed = Mutex::default();
        let all = eventually(PATIENCE, "every partition is committed to its end", async || {
            *committed.lock().unwrap() = self.committed().await;
            *committed.lock().unwrap() == ends
        });
        if AssertUnwindSafe(all).catch_unwind().await.is_err() {
            panic!("{:?}: committed are {:?} of {ends:?}", self.protocol, committed.into_inner().unwrap());
        }
        assert_eq!(self.by_id().len(), self.produced(), "{:?}: only what was produced has effects", self.protocol);
    }

    /// Every message had exactly one effect.
    pub fn assert_once(&self) {
        assert_eq!(self.missing(), Vec::<String>::new(), "{:?}: lost", self.protocol);
        assert_eq!(self.doubled(), BTreeMap::new(), "{:?}: handled twice", self.protocol);
    }

    /// The first effects of the messages of each partition, or of each key in it, are in the order of their offsets.
    pub fn assert_ordered(&self) {
        self.assert_ordered_but(|_| false);
    }

    /// The same, leaving out some messages.
    pub fn assert_ordered_but(&self, left_out: impl Fn(&str) -> bool) {
        let keys = self.produced.lock().unwrap().clone();
        let mut seen: BTreeMap<(i32, String), BTreeSet<i64>> = BTreeMap::new();
        for effect in self.effects().into_iter().filter(|effect| !left_out(&effect.id)) {
            let lane = match self.way {
                Way::Partition => String::new(),
                Way::Key => keys[&effect.id].clone(),
                Way::Unordered => effect.id.clone(),
            };
            let seen = seen.entry((effect.partition, lane)).or_default();
            let last = seen.last().copied().unwrap_or(-1);
            let new = !seen.contains(&effect.offset);
            assert!(!new || effect.offset > last, "{:?} {:?}: {effect:?} came after {last}", self.protocol, self.way);
            seen.insert(effect.offset);
        }
    }

    /// What is committed (0 for nothing), and the end, of each partition, as the broker tells another client.
    pub async fn offsets(&self) -> (Vec<i64>, Vec<i64>) {
        let (bootstrap, group) = (self.kafka.bootstrap().to_owned(), self.group.clone());
        let (topic, partitions) = (self.topic.clone(), self.partitions);
        let look = move || {
            let client: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            (0..partitions).for_each(|partition| {
                list.add_partition(&topic, partition);
            });
            // A coordinator that is busy may need a second question.
            let found = (0..6).find_map(|_| client.committed_offsets(list.clone(), PATIENCE / 4).ok());
            let found = found.expect("the broker tells the group's offsets");
            let committed = (0..partitions).map(|partition| {
                match found.find_partition(&topic, partition).map(|found| found.offset()) {
                    Some(Offset::Offset(offset)) => offset,
                    _ => 0,
                }
            });
            let end = |partition| client.fetch_watermarks(&topic, partition, PATIENCE).expect("and its end").1;
            (committed.collect(), (0..partitions).map(end).collect())
        };
        tokio::task::spawn_blocking(look).await.unwrap()
    }

    pub async fn committed(&self) -> Vec<i64> {
        self.offsets().await.0
    }

    /// Produces a message for each partition, again and again, until the last round was shared by all of these members.
    pub async fn shared_by(&self, members: &[&str]) {
        for _ in 0..200 {
            let wave = format!("warm{}", self.produced());
            self.produce(&wave, 1).await;
            self.reach(self.produced()).await;
            let round = format!("{wave}-");
            let effects = self.effects();
            let worked: BTreeSet<&str> =
                effects.iter().filter(|e| e.id.starts_with(&round)).map(|e| e.member.as_str()).collect();
            if members.iter().all(|member| worked.contains(member)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        panic!("{:?}: {members:?} never shared the partitions", self.protocol);
    }

    /// Partitions at whose gate this member waits.
    pub fn waiting(&self, member: &str) -> BTreeSet<i32> {
        let text = fs::read_to_string(self.folder().join(format!("{member}.gate"))).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// How often this member came to a gate.
    pub fn came(&self, member: &str) -> usize {
        fs::read_to_string(self.folder().join(format!("{member}.gate"))).unwrap_or_default().lines().count()
    }

    pub async fn waits(&self, member: &str, partitions: usize) {
        let what = format!("{:?}: {member} waits at {partitions} gates", self.protocol);
        eventually(PATIENCE, &what, async || self.waiting(member).len() >= partitions).await;
    }

    /// Opens the gates of a member.
    pub fn open(&self, member: &str) {
        fs::write(self.folder().join(format!("{member}.open")), "open").unwrap();
    }
}
