//! What is produced: messages, and copies of them at other places, all the while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::support::{Kafka, Record};

pub const PARTITIONS: i32 = 8;
const KEYS: u64 = 97;
/// Copies for each hundred messages.
const COPIES: u32 = 40;
const EVERY: Duration = Duration::from_millis(100);

/// What a producer does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub per_second: u64,
    /// Without them every message is produced once.
    pub copies: bool,
    /// A key has its partition; otherwise messages of one key are all over the topic, and have no order.
    pub by_key: bool,
    pub seed: u64,
}

/// A producer at work.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Traffic {
    pub fn start(kafka: Kafka, topic: &str, plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (topic, stopped) = (topic.to_owned(), Arc::clone(&stop));
        let produce = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(produce(&kafka, &topic, plan, &stopped))
        };
        let thread = std::thread::Builder::new().name("traffic".into()).spawn(produce).expect("a thread");
        Self { stop, thread }
    }

    /// Ends it. Every id that the broker acknowledged.
    pub fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("everything could be produced")
    }
}

async fn produce(kafka: &Kafka, topic: &str, plan: Plan, stop: &AtomicBool) -> BTreeSet<String> {
    let Plan { per_second, copies, seed, .. } = plan;
    let mut random = Random::new(seed);
    let (started, mut sent) = (Instant::now(), 0);
    let mut produced = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let due = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX) * per_second / 1_000;
        let mut records = Vec::new();
        let from = sent;
        while sent < due {
            sent += 1;
            records.push(record(topic, plan, sent, &mut random));
            if copies && random.chance(COPIES * 100) {
                // Most producers repeat themselves at once; some replay what is long past.
                let back = if random.chance(7_000) { random.below(20) } else { random.below(sent) };
                records.push(record(topic, plan, sent - back.min(sent - 1), &mut random));
            }
        }
        kafka.produce(&records).await;
        produced.extend((from + 1..=sent).map(|number| id(seed, number)));
        tokio::time::sleep(EVERY).await;
    }
    produced
}

fn id(seed: u64, number: u64) -> String {
    format!("m{seed}-{number:07}")
}

fn record(topic: &str, plan: Plan, number: u64, random: &mut Random) -> Record {
    let (id, key) = (id(plan.seed, number), number % KEYS);
    let place = if plan.by_key { key % PARTITIONS as u64 } else { random.below(PARTITIONS as u64) };
    Record::to(topic)
        .partition(i32::try_from(place).unwrap_or(0))
        .key(format!("key {key}"))
        .payload(format!(r#"{{"id":"{id}","cents":{}}}"#, number * 37 % 10_000))
        .header("message-id", &id)
}
