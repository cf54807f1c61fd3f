//! What a message costs from its batch's buffer to its end: pump, engine, wrapper and store, without Kafka.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::consumer::{MemoryWindows, Message, Order, dry_run, plain};
use hapax::identity::{Identify, header, position};
use hapax::message::MessageView;
use hapax::store::{DedupStore, MemoryStore, RedisStore, Retention};
use hapax::{Claim, Once};

const PARTITIONS: i32 = 4;
/// Messages of one partition that come one after the other.
const ROW: u64 = 256;
const PAYLOAD: [u8; 200] = [7; 200];

pub const MODES: [&str; 4] = ["pump_plain", "pump_windows", "pump_records", "pump_header"];
/// They need a service.
pub const WITH_REDIS: [&str; 2] = ["pump_redis", "pump_redis_slow_by_key"];

/// One of many: 200 bytes, one header.
struct Made {
    number: u64,
    id: [u8; 32],
    key: Option<[u8; 8]>,
}

impl Made {
    fn new(number: u64, run: u64, keys: Option<u64>) -> Self {
        let mut id = [b'0'; 32];
        id[..8].copy_from_slice(&run.to_le_bytes());
        id[8..16].copy_from_slice(&number.to_le_bytes());
        Self { number, id, key: keys.map(|keys| (number % keys).to_be_bytes()) }
    }
}

impl MessageView for Made {
    fn topic(&self) -> &str {
        "orders"
    }
    fn partition(&self) -> i32 {
        (self.number / ROW % PARTITIONS as u64) as i32
    }
    fn offset(&self) -> i64 {
        let round = ROW * PARTITIONS as u64;
        (self.number / round * ROW + self.number % ROW) as i64
    }
    fn timestamp_ms(&self) -> Option<i64> {
        Some(0)
    }
    fn key(&self) -> Option<&[u8]> {
        self.key.as_ref().map(<[u8; 8]>::as_slice)
    }
    fn payload(&self) -> Option<&[u8]> {
        Some(&PAYLOAD)
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        (name == "message-id").then_some(&self.id)
    }
    fn for_each_header(&self, show: &mut dyn FnMut(&str, Option<&[u8]>)) {
        show("message-id", Some(&self.id));
    }
}

fn look(message: &Message) {
    black_box((message.payload().map(<[u8]>::len), message.header("message-id").map(<[u8]>::len)));
}

/// Runs a mode; `None` where its store is not there.
pub fn run(mode: &str, messages: u64) -> Option<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let run = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let made = |keys| (0..messages).map(move |number| Made::new(number, run, keys));
        let looking = plain(|message: Message| {
            look(&message);
            std::future::ready(Ok::<(), std::io::Error>(()))
        });
        let began = Instant::now();
        let order = Order::Partition;
        let handled = match mode {
            "pump_plain" => dry_run(looking, order, 64, PARTITIONS, made(None)).await,
            "pump_windows" => dry_run(looking.windows(&MemoryWindows::new()), order, 64, PARTITIONS, made(None)).await,
            "pump_records" => stored(MemoryStore::new(), position(), false, made(None)).await?,
            "pump_header" => stored(MemoryStore::new(), header("message-id"), false, made(None)).await?,
            "pump_redis" => stored(redis().await?, header("message-id"), false, made(None)).await?,
            _ => stored(redis().await?, header("message-id"), true, made(Some(1_000))).await?,
        };
        assert_eq!(handled, messages, "{mode} did not handle all");
        Some(began.elapsed())
    })
}

async fn redis() -> Option<Arc<RedisStore>> {
    let url = std::env::var("HAPAX_TEST_REDIS").ok().filter(|url| !url.is_empty())?;
    // Nothing is to be left behind.
    let minute = Duration::from_secs(60);
    let retention = Retention::default().succeeded(minute).unsettled(minute);
    Some(Arc::new(RedisStore::builder().prefix("pump:").retention(retention).connect(&url).await.ok()?))
}

async fn stored(
    store: impl DedupStore + 'static,
    identity: impl Identify + 'static,
    slow: bool,
    messages: impl Iterator<Item = Made>,
) -> Option<u64> {
    let once = Once::builder(store).scope("bench", "pump").identify(identity).build().await.ok()?;
    let quick = |message: Message, _: Claim| {
        look(&message);
        std::future::ready(Ok::<(), std::io::Error>(()))
    };
    if !slow {
        return Some(dry_run(once.each(quick), Order::Partition, 64, PARTITIONS, messages).await);
    }
    let waiting = async |message: Message, _: Claim| {
        tokio::time::sleep(Duration::from_millis(10)).await;
        look(&message);
        Ok::<(), std::io::Error>(())
    };
    Some(dry_run(once.each(waiting), Order::Key, 1_000, PARTITIONS, messages).await)
}
