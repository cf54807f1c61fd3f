//! Produces transfers, and some of them again at other places, all the while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::args::Args;
use crate::broker::Kafka;
use crate::money::{ID, PARTITIONS, Transfer};
use crate::random::Random;
use crate::support::Record;

/// Copies for each hundred transfers.
const COPIES: u32 = 25;
const EVERY: Duration = Duration::from_millis(50);

pub struct Produced {
    pub transfers: BTreeMap<String, Transfer>,
    pub copies: u64,
}

/// A producer at work.
pub struct Traffic {
    task: JoinHandle<Produced>,
    allowed: Arc<AtomicU64>,
}

impl Traffic {
    /// So many at the pace of the run, and no more than is [allowed](Self::allow).
    pub fn start(kafka: Arc<Kafka>, args: &Args) -> Self {
        let allowed = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(produce(kafka, args.transfers, args.length, args.seed, Arc::clone(&allowed)));
        Self { task, allowed }
    }

    /// What is produced is held back until this, so that there is something to do whatever happens to the service how late.
    pub fn allow(&self, transfers: u64) {
        self.allowed.store(transfers, Ordering::Relaxed);
    }

    pub async fn finish(self) -> Result<Produced, String> {
        self.allow(u64::MAX);
        self.task.await.map_err(|e| format!("the transfers could not be produced: {e}"))
    }
}

async fn produce(kafka: Arc<Kafka>, transfers: u64, length: Duration, seed: u64, allowed: Arc<AtomicU64>) -> Produced {
    let mut random = Random::new(seed);
    let (started, mut sent) = (Instant::now(), Vec::<(i32, Transfer)>::new());
    let mut copies = 0;
    while (sent.len() as u64) < transfers {
        let due = started.elapsed().as_secs_f64() / length.as_secs_f64() * transfers as f64;
        let due = (due as u64).min(transfers).min(allowed.load(Ordering::Relaxed));
        let mut records = Vec::new();
        while (sent.len() as u64) < due {
            let (partition, transfer) = Transfer::draw(sent.len() as u64 + 1, &mut random);
            records.push(record(&kafka.topic, partition, &transfer));
            sent.push((partition, transfer));
            if random.chance(COPIES * 100) {
                // Most producers repeat themselves at once; some replay what is long past.
                let back = if random.chance(7_000) { random.index(20) } else { random.index(sent.len()) };
                let (partition, transfer) = &sent[sent.len() - 1 - back.min(sent.len() - 1)];
                let other =
                    (partition + 1 + i32::try_from(random.below(PARTITIONS as u64 - 1)).unwrap_or(0)) % PARTITIONS;
                records.push(record(&kafka.topic, other, transfer));
                copies += 1;
            }
        }
        kafka.producer().produce(&records).await;
        tokio::time::sleep(EVERY).await;
    }
    Produced { transfers: sent.into_iter().map(|(_, transfer)| (transfer.id.clone(), transfer)).collect(), copies }
}

fn record(topic: &str, partition: i32, transfer: &Transfer) -> Record {
    Record::to(topic)
        .partition(partition)
        .key(transfer.source.to_string())
        .payload(transfer.payload())
        .header(ID, &transfer.id)
}
