//! Windows in a database while the effects are elsewhere (level L1): effects are lines of a file.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hapax::consumer::{ConsumerError, Finding, Handling, OnReset, StoredWindows, plain};
use hapax::identity::position;
use hapax::observe::{Observed, Observer};
use hapax::window::Window;
use hapax::{Message, Order, Retry};
use sqlx::{MySql, Postgres, Sqlite};

use crate::base::{Base, Site, everywhere, id_of};
use crate::ground::Ground;
use crate::killed::{Process, tables_of};
use crate::support::{Kafka, PATIENCE, eventually};
use crate::windows::commit;
use crate::world::{Gate, Member};

/// The variable that holds what a member is to do.
pub const ORDER: &str = "HAPAX_CONSUMING_STORED";
/// The message whose handler waits at the gate, its effect behind it.
const GATE: i64 = 150;

/// Effects outside of any database: a line for each.
#[derive(Clone)]
struct Elsewhere(PathBuf);

impl Elsewhere {
    fn note(&self, id: i64) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.0).unwrap();
        // One call: lines of two processes do not mix.
        file.write_all(format!("{id}\n").as_bytes()).unwrap();
    }

    /// How often each message had its effect.
    fn counts(&self) -> BTreeMap<i64, usize> {
        let mut counts = BTreeMap::new();
        for line in std::fs::read_to_string(&self.0).unwrap_or_default().lines() {
            *counts.entry(line.parse().unwrap()).or_default() += 1;
        }
        counts
    }

    async fn reach(&self, distinct: usize) {
        eventually(PATIENCE, &format!("{distinct} distinct effects"), async || self.counts().len() >= distinct).await;
    }

    /// Each of these has one effect, and no others have any.
    fn judge(&self, ids: impl Iterator<Item = i64>) {
        assert_eq!(self.counts(), ids.map(|id| (id, 1)).collect());
    }
}

/// A topic, a table of windows, and effects elsewhere.
struct Outside<DB: Base> {
    ground: Ground<DB>,
    effects: Elsewhere,
    folder: tempfile::TempDir,
}

impl<DB: Base> Outside<DB> {
    async fn new(partitions: i32) -> Self {
        let ground = Ground::new(partitions).await;
        let folder = tempfile::tempdir().unwrap();
        Self { ground, effects: Elsewhere(folder.path().join("effects")), folder }
    }

    async fn windows(&self) -> StoredWindows<DB> {
        let builder = StoredWindows::builder(self.ground.pool.clone()).scope("tests", &self.ground.tables.effects);
        builder.with_table(&self.ground.tables.windows).build().await.unwrap()
    }

    /// A handler that leaves its line.
    async fn noting(&self) -> impl Handling + use<DB> {
        let effects = self.effects.clone();
        plain(move |message: Message| {
            let effects = effects.clone();
            async move {
                effects.note(id_of(&message));
                Ok::<_, String>(())
            }
        })
        .windows(&self.windows().await)
    }

    /// What the row of the only partition says.
    async fn row(&self) -> Window {
        let hex = if DB::KIND == "postgres" { "encode(state, 'hex')" } else { "hex(state)" };
        let table = &self.ground.tables.windows;
        let mut conn = DB::session(&self.ground.site).await;
        let text = DB::text(&mut conn, &format!("SELECT {hex} FROM {table}")).await.unwrap();
        let next = DB::number(&mut conn, &format!("SELECT next FROM {table}")).await.unwrap();
        let digits: Vec<char> = text.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        Window::restore(next.max(0), &digits.chunks(2).map(byte).collect::<Vec<u8>>()).unwrap()
    }

    /// How many messages from 0 the row has as finished.
    async fn finished(&self, below: i64) -> Vec<i64> {
        let row = self.row().await;
        (0..below).filter(|offset| row.is_finished(*offset)).collect()
    }
}

everywhere! {
    async fn f20_offsets_that_are_lost_or_set_by_hand_repeat_no_effect<DB>() {
        let outside = Outside::<DB>::new(1).await;
        let ground = &outside.ground;
        let work = async |from: i64, to: i64| {
            ground.produce(1, from..to).await;
            let member = Member::start(ground.consumer(), outside.noting().await);
            ground.committed(&[to]).await;
            member.stop().await
        };
        let found = |summary: &hapax::Summary| summary.found.iter().map(|found| found.finding).collect::<Vec<_>>();
        assert_eq!(found(&work(0, 50).await), [Finding::FromFirst { low: 0, high: 50 }]);
        ground.kafka.delete_group(&ground.group).await;
        let lost = work(50, 60).await;
        assert_eq!(found(&lost), [Finding::Window { next: 50, committed: None }]);
        assert_eq!((lost.delivered, lost.handled), (10, 10), "read from the row on");
        commit(ground, 20).await;
        let rewound = work(60, 70).await;
        assert_eq!(found(&rewound), [Finding::Window { next: 60, committed: Some(20) }]);
        ground.produce(1, 70..80).await;
        commit(ground, 78).await;
        let forward = work(80, 81).await;
        assert_eq!(found(&forward), [Finding::Window { next: 70, committed: Some(78) }], "nothing is passed in silence");
        outside.effects.judge(0..81);
        assert_eq!(ground.marks().await, [81], "one row, however much came");
    }
}

everywhere! {
    async fn what_finished_out_of_order_is_not_repeated_after_a_crash<DB>() {
        for order in [Order::Key, Order::Unordered] {
            let outside = Outside::<DB>::new(1).await;
            let ground = &outside.ground;
            ground.produce(1, 0..60).await;
            let start = async |ready: bool| {
                let effects = outside.effects.clone();
                let handler = plain(move |message: Message| { let effects = effects.clone(); async move {
                    if id_of(&message) == 0 && !ready {
                        return Err("not yet");
                    }
                    effects.note(id_of(&message));
                    Ok(())
                } });
                let retry = Retry::fixed(Duration::from_millis(100)).attempts(1_000_000);
                let consumer = ground.consumer().order(order).concurrency(8).retry(retry);
                Member::start(consumer, handler.windows(&outside.windows().await))
            };
            let others = if order == Order::Key { 48 } else { 59 };
            let member = start(false).await;
            outside.effects.reach(others).await;
            eventually(PATIENCE, "the row knows", async || outside.finished(60).await.len() == others).await;
            assert_eq!(ground.marks().await, [0], "nothing is finished below the first");
            // Its future is dropped: nothing is drained.
            member.abort().await;
            let member = start(true).await;
            ground.committed(&[60]).await;
            let summary = member.stop().await;
            outside.effects.judge(0..60);
            assert_eq!((summary.handled, summary.redelivered), (60 - others as u64, others as u64), "{order:?}");
            assert_eq!(outside.row().await.encode(), Vec::<u8>::new(), "nothing is left above the mark");
        }
    }
}

/// What a process does: consumes until it is killed, or told to end, and waits at the gate as long as that file stands.
pub fn run(order: &str) {
    let mut lines = order.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap();
    let (kind, url, effects, bootstrap, group, topic, folder) =
        (next(), next(), next(), next(), next(), next(), next());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Kafka::at(&bootstrap).consumer_config(&group);
    let site = Site::at(url);
    match kind.as_str() {
        "postgres" => runtime.block_on(live::<Postgres>(site, &effects, config, topic, folder.into())),
        "mysql" => runtime.block_on(live::<MySql>(site, &effects, config, topic, folder.into())),
        _ => runtime.block_on(live::<Sqlite>(site, &effects, config, topic, folder.into())),
    }
}

async fn live<DB: Base>(site: Site, name: &str, config: rdkafka::ClientConfig, topic: String, folder: PathBuf) {
    let builder = StoredWindows::builder(DB::pool(&site, 4).await).scope("tests", name);
    let windows = builder.with_table(tables_of(name).windows).build().await.unwrap();
    let (effects, gate) = (Elsewhere(folder.join("effects")), folder.join("gate"));
    let handler = plain(move |message: Message| {
        let (effects, gate) = (effects.clone(), gate.clone());
        async move {
            effects.note(id_of(&message));
            if id_of(&message) == GATE && gate.exists() {
                std::fs::write(gate.with_extension("reached"), "").unwrap();
                while gate.exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok::<_, String>(())
        }
    });
    let consumer = crate::world::consumer(config, &topic).order(Order::Key).concurrency(4);
    consumer.run(handler.windows(&windows), hapax::shutdown_signal()).await.unwrap();
}

impl<DB: Base> Outside<DB> {
    /// A process that has reached the gate.
    async fn process(&self) -> Process {
        std::fs::write(self.gate(), "").unwrap();
        // Made here, since two members that make tables at once are somebody else's test.
        drop(self.windows().await);
        let process = Process::start(&self.ground, ORDER, self.folder.path());
        eventually(PATIENCE, "it waits at the gate", async || self.gate().with_extension("reached").exists()).await;
        // With its key, 29 more; the others are handled, and no transaction is open: a lock of one that stands still would keep others waiting.
        eventually(PATIENCE, "the others are in the row", async || self.finished(300).await.len() == 270).await;
        process
    }

    fn gate(&self) -> PathBuf {
        self.folder.path().join("gate")
    }
}

everywhere! {
    async fn killed_after_an_effect_repeats_what_the_row_does_not_know<DB>() {
        let outside = Outside::<DB>::new(1).await;
        let ground = &outside.ground;
        ground.produce(1, 0..300).await;
        let mut process = outside.process().await;
        // SIGKILL: no destructor runs, and nothing is said to the database.
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        std::fs::remove_file(outside.gate()).unwrap();
        let (known, before) = (outside.finished(300).await, outside.effects.counts());
        assert!(!known.contains(&GATE) && before.contains_key(&GATE), "its effect was there, and nothing knew of it");
        assert!(known.iter().all(|id| before.contains_key(id)), "the row knows of nothing that was not handled");
        let member = Member::start(ground.consumer().order(Order::Key), outside.noting().await);
        ground.committed(&[300]).await;
        let summary = member.stop().await;
        let after = outside.effects.counts();
        for id in 0..300 {
            let repeats = before.contains_key(&id) && known.binary_search(&id).is_err();
            assert_eq!(after.get(&id), Some(&(1 + usize::from(repeats))), "{id}, of which the row knew: {}", !repeats);
        }
        assert_eq!(summary.handled, 300 - known.len() as u64);
        assert_eq!(ground.marks().await, [300]);
    }
}

/// Counts messages that were left to another owner.
#[derive(Default)]
struct Fences(AtomicU64);

impl Observer for Fences {
    fn on(&self, event: &Observed<'_>) {
        if let Observed::Fenced(messages) = event {
            self.0.fetch_add(*messages, Ordering::SeqCst);
        }
    }
}

everywhere! {
    async fn a_fence_raised_by_another_leaves_the_messages_to_whoever_has_the_partition_next<DB>() {
        let outside = Outside::<DB>::new(1).await;
        let ground = &outside.ground;
        ground.produce(1, 0..20).await;
        let (effects, gate, closed) = (outside.effects.clone(), Gate::default(), Arc::new(AtomicBool::new(true)));
        let handler = {
            let (gate, closed) = (gate.clone(), Arc::clone(&closed));
            plain(move |message: Message| { let (effects, gate, closed) = (effects.clone(), gate.clone(), closed.clone()); async move {
                effects.note(id_of(&message));
                if id_of(&message) == 10 && closed.swap(false, Ordering::SeqCst) {
                    gate.pass().await;
                }
                Ok::<_, String>(())
            } })
        };
        let fences = Arc::new(Fences::default());
        let consumer = ground.consumer().observer(Arc::clone(&fences));
        let member = Member::start(consumer, handler.windows(&outside.windows().await));
        gate.holds(1).await;
        eventually(PATIENCE, "the row is where the handlers are", async || ground.marks().await == [10]).await;
        // Another process takes the partition, and handles what it finds: here, nothing.
        let other = ground.once(position()).await;
        let taken = other.assigned(&[(&ground.topic, 0)]).await.unwrap();
        assert_eq!(taken[0].seek, Some(10));
        gate.open();
        // It may not move the row any more. Being the group's owner, it raises the fence anew after a while, and begins where the row stands.
        ground.committed(&[20]).await;
        let summary = member.stop().await;
        let counts = outside.effects.counts();
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        assert!((0..10).all(|id| counts[&id] == 1), "what the row knew is not handled again: {counts:?}");
        assert_eq!(counts[&10], 2, "it was handled by one that had lost the partition, and nothing knew of it");
        let fenced = fences.0.load(Ordering::SeqCst);
        assert_eq!(fenced, summary.fenced);
        assert!(fenced >= 1, "{summary}");
        assert_eq!(ground.marks().await, [20]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_moves_nothing() {
    let outside = Outside::<Postgres>::new(1).await;
    let ground = &outside.ground;
    ground.produce(1, 0..300).await;
    let zombie = outside.process().await;
    // It stands still after an effect that its row does not know, until another has its partition.
    zombie.signal("STOP");
    let known = outside.finished(300).await;
    let member = Member::start(ground.consumer().order(Order::Key), outside.noting().await);
    ground.committed(&[300]).await;
    let moved = outside.row().await;
    // It wakes up, and finds that its messages are another's.
    std::fs::remove_file(outside.gate()).unwrap();
    zombie.signal("CONT");
    ground.produce(1, 300..400).await;
    ground.committed(&[400]).await;
    zombie.signal("TERM");
    member.stop().await;
    assert_eq!(moved.next(), 300);
    assert_eq!(ground.marks().await, [400], "what the zombie had in hand has not set it back");
    let counts = outside.effects.counts();
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), (0..400).collect::<Vec<_>>(), "nothing is lost");
    let repeated: Vec<i64> = counts.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
    assert!(repeated.contains(&GATE), "an effect that nobody knew of is repeated: that is what level L1 is");
    assert!(repeated.iter().all(|id| known.binary_search(id).is_err()), "what the row knew is not: {repeated:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_is_refused_and_read_where_that_is_accepted() {
    let mut outside = Outside::<Sqlite>::new(1).await;
    outside.ground.produce(1, 0..40).await;
    let member = Member::start(outside.ground.consumer(), outside.noting().await);
    outside.ground.committed(&[40]).await;
    member.stop().await;
    // A producer that still knows the topic would have the broker make it again by itself.
    outside.ground.kafka = Kafka::at(outside.ground.kafka.bootstrap());
    let ground = &outside.ground;
    ground.kafka.delete_topic(&ground.topic).await;
    ground.kafka.create_topic(&ground.topic, 1).await;
    // As long as the old one and longer: the offset alone says nothing.
    ground.produce(1, 100..160).await;
    match Member::start(ground.consumer(), outside.noting().await).end().await {
        Err(ConsumerError::Discontinuity { finding: Finding::OtherMessage { next: 40, .. }, .. }) => {}
        other => panic!("must be refused: {other:?}"),
    }
    outside.effects.judge(0..40);
    let member = Member::start(ground.consumer().on_reset(OnReset::Accept), outside.noting().await);
    ground.committed(&[60]).await;
    member.stop().await;
    outside.effects.judge((0..40).chain(100..160));
    assert_eq!(ground.marks().await, [60]);
}

everywhere! {
    async fn attempts_are_counted_over_restarts<DB>() {
        let outside = Outside::<DB>::new(1).await;
        let ground = &outside.ground;
        ground.produce(1, 0..1).await;
        let start = async |wait: Duration| {
            let effects = outside.effects.clone();
            let handler = plain(move |message: Message| { let effects = effects.clone(); async move {
                effects.note(id_of(&message));
                Err::<(), _>("never")
            } });
            let consumer = ground.consumer().retry(Retry::fixed(wait).attempts(3));
            Member::start(consumer, handler.windows(&outside.windows().await))
        };
        let member = start(Duration::from_secs(3_600)).await;
        outside.effects.reach(1).await;
        eventually(PATIENCE, "the row counts it", async || outside.row().await.attempts(0) == 1).await;
        member.abort().await;
        let ended = start(Duration::from_millis(10)).await.end().await;
        assert!(matches!(ended, Err(ConsumerError::Message { .. })), "nothing keeps it when it is passed: {ended:?}");
        assert_eq!(outside.effects.counts()[&0], 3, "over both");
        assert_eq!(outside.row().await.next(), 0);
    }
}

everywhere! {
    async fn a_message_that_ends_the_process_is_given_up<DB>() {
        let outside = Outside::<DB>::new(1).await;
        let ground = &outside.ground;
        ground.produce(1, 0..10).await;
        let hung = Arc::new(AtomicU64::new(0));
        let mut deaths = 0;
        let ended = loop {
            let (effects, hangs) = (outside.effects.clone(), Arc::clone(&hung));
            let handler = plain(move |message: Message| {
                let (effects, hangs) = (effects.clone(), Arc::clone(&hangs));
                async move {
                    if id_of(&message) == 4 {
                        hangs.fetch_add(1, Ordering::SeqCst);
                        std::future::pending::<()>().await;
                    }
                    effects.note(id_of(&message));
                    Ok::<_, String>(())
                }
            });
            let consumer = ground.consumer().retry(Retry::fixed(Duration::from_millis(10)).attempts(3));
            let member = Member::start(consumer, handler.windows(&outside.windows().await));
            eventually(PATIENCE, "it hangs, or gives up", async || {
                hung.load(Ordering::SeqCst) > deaths || !member.is_running()
            })
            .await;
            if !member.is_running() {
                break member.end().await;
            }
            eventually(PATIENCE, "the row knows those before it", async || outside.finished(10).await.len() == 4).await;
            // Its future is dropped, and nothing is settled.
            member.abort().await;
            deaths += 1;
            assert!(deaths < 10, "it is never given up");
        };
        assert!(matches!(ended, Err(ConsumerError::Message { .. })), "nothing keeps it when it is passed: {ended:?}");
        // Once without an attempt being counted, or twice if the row had moved before it came; then as often as it may be tried.
        assert!((4..=5).contains(&deaths), "{deaths}");
        let row = outside.row().await;
        assert_eq!((row.next(), row.attempts(4)), (4, 3));
        let beside: Vec<u32> = (5..10).map(|offset| row.attempts(offset)).collect();
        assert!(beside.iter().all(|attempts| *attempts < 3), "what never ran is not given up with it: {beside:?}");
        outside.effects.judge(0..4);
    }
}
