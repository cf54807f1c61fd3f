//! What the way from Kafka to the handler costs while hardly anything happens.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hapax::consumer::{Consumer, Message};
use hapax::identity::header;
use hapax::store::Ask;
use hapax::{Claim, Once};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use tokio_util::sync::CancellationToken;

use crate::data::{fresh, settles, terms};
use crate::figures::{Bar, Failure, Figures, median};
use crate::kinds::Kind;
use crate::topics::{PARTITIONS, PATIENCE, PAYLOAD, Topics, config, producer};

const EVERY: Duration = Duration::from_millis(10);
/// Messages of one side of a round.
const MESSAGES: usize = 500;
/// The first ones find caches and connections cold.
const WARM: usize = 50;

pub async fn measure(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    for kind in Kind::available().0 {
        if matches!(kind, Kind::Sqlite | Kind::Mariadb(_)) {
            continue;
        }
        let names = ["p50", "p99"].map(|which| format!("latency_{}_{which}", kind.name()));
        if !figures.wants_any(&names) {
            continue;
        }
        if figures.args.list {
            names.iter().for_each(|name| println!("{name}"));
        } else {
            of(figures, topics, &kind, &names).await?;
        }
    }
    Ok(())
}

async fn of(figures: &mut Figures, topics: &Topics, kind: &Kind, names: &[String; 2]) -> Result<(), Failure> {
    let mut rounds: Vec<[[f64; 2]; 3]> = Vec::new();
    for _ in 0..figures.args.rounds {
        let ours = ours(&topics.brokers, kind).await?;
        let bare = bare(&topics.brokers).await?;
        let round_trip = round_trips(kind).await?;
        rounds.push([ours, bare, round_trip].map(|micros| [percentile(&micros, 0.5), percentile(&micros, 0.99)]));
    }
    let of = |side: usize, which: usize| median(rounds.iter().map(|round| round[side][which]).collect());
    println!(
        "# {}: from send to handler p50 {:.0} us, p99 {:.0} us; bare loop p50 {:.0} us, p99 {:.0} us",
        names[0],
        of(0, 0),
        of(0, 1),
        of(1, 0),
        of(1, 1)
    );
    for (which, bar) in [(0, Bar::Most(1.2)), (1, Bar::None)] {
        let added = median(rounds.iter().map(|[ours, bare, _]| ours[which] - bare[which]).collect());
        let trips = median(rounds.iter().map(|[ours, bare, trip]| (ours[which] - bare[which]) / trip[which]).collect());
        figures.state(&names[which], added, of(2, which), trips, bar);
    }
    Ok(())
}

/// A topic of one side's own, with a hundred messages a second in it from `go` on; when each was sent.
struct Trickle {
    topic: String,
    sent: Arc<Mutex<Vec<Instant>>>,
}

impl Trickle {
    async fn start(brokers: &str) -> Result<Self, Failure> {
        let mut own = Topics::new(brokers);
        // One message in each partition: what joined has found its place when it has read them.
        let topic = own.with(crate::topics::Filling::distinct(PARTITIONS as usize)).await?;
        std::mem::forget(own);
        Ok(Self { topic, sent: Arc::default() })
    }

    async fn send(&self, brokers: &str) -> Result<(), Failure> {
        let producer = producer(brokers, 0)?;
        let payload = [7_u8; PAYLOAD];
        let mut ticks = tokio::time::interval(EVERY);
        for n in 0..MESSAGES {
            ticks.tick().await;
            let id = format!("trickle {n}");
            let number = n.to_string();
            let record = BaseRecord::<str, [u8]>::to(&self.topic)
                .partition((n % PARTITIONS as usize) as i32)
                .key(&number)
                .payload(&payload[..])
                .headers(OwnedHeaders::new().insert(Header { key: "message-id", value: Some(&id) }));
            self.sent.lock().map_err(|_| "poisoned")?.push(Instant::now());
            producer.send(record).map_err(|(error, _)| error)?;
        }
        Ok(tokio::task::spawn_blocking(move || producer.flush(PATIENCE)).await??)
    }

    /// How long message `key` took until now; nothing for those that were there before.
    fn took(&self, key: Option<&[u8]>) -> Option<(usize, f64)> {
        let now = Instant::now();
        let n: usize = std::str::from_utf8(key?).ok()?.parse().ok()?;
        let sent = *self.sent.lock().ok()?.get(n)?;
        Some((n, now.duration_since(sent).as_secs_f64() * 1e6))
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(usize, Vec<f64>)>>);

impl Seen {
    /// Takes a message in; answers how many there were.
    fn note(&self, took: Option<(usize, f64)>) -> usize {
        let Ok(mut seen) = self.0.lock() else { return 0 };
        seen.0 += 1;
        seen.1.extend(took.filter(|(n, _)| *n >= WARM).map(|(_, micros)| micros));
        seen.0
    }

    fn count(&self) -> usize {
        self.0.lock().map_or(0, |seen| seen.0)
    }

    fn micros(&self) -> Vec<f64> {
        self.0.lock().map(|seen| seen.1.clone()).unwrap_or_default()
    }
}

async fn ours(brokers: &str, kind: &Kind) -> Result<Vec<f64>, Failure> {
    let opened = kind.ours().await?;
    let once = Once::builder(Arc::clone(&opened.side))
        .scope("bench", "latency")
        .identify(header("message-id"))
        .build()
        .await?;
    let trickle = Arc::new(Trickle::start(brokers).await?);
    let seen = Seen::default();
    let shutdown = CancellationToken::new();
    let handler = {
        let (trickle, seen, shutdown) = (Arc::clone(&trickle), seen.clone(), shutdown.clone());
        move |message: Message, _claim: Claim| {
            if seen.note(trickle.took(message.key())) == MESSAGES + PARTITIONS as usize {
                shutdown.cancel();
            }
            std::future::ready(Ok::<(), Failure>(()))
        }
    };
    let consumer = Consumer::new(config(brokers)).topics([&trickle.topic]);
    let running = tokio::spawn(consumer.run(once.each(handler), shutdown));
    joined(&seen).await?;
    trickle.send(brokers).await?;
    tokio::time::timeout(PATIENCE, running).await???;
    opened.close().await?;
    Ok(seen.micros())
}

async fn bare(brokers: &str) -> Result<Vec<f64>, Failure> {
    let trickle = Arc::new(Trickle::start(brokers).await?);
    let seen = Seen::default();
    let reading = {
        let (trickle, seen, config) = (Arc::clone(&trickle), seen.clone(), config(brokers));
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create()?;
            consumer.subscribe(&[&trickle.topic])?;
            let begun = Instant::now();
            while seen.count() < MESSAGES + PARTITIONS as usize && begun.elapsed() < PATIENCE {
                if let Some(message) = consumer.poll(Duration::from_millis(100)) {
                    seen.note(trickle.took(message?.key()));
                }
            }
            Ok::<(), Failure>(())
        })
    };
    joined(&seen).await?;
    trickle.send(brokers).await?;
    reading.await??;
    Ok(seen.micros())
}

async fn joined(seen: &Seen) -> Result<(), Failure> {
    let begun = Instant::now();
    while seen.count() < PARTITIONS as usize {
        if begun.elapsed() > PATIENCE {
            return Err("the group was not joined".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Claims of one message at the same pace: each is one round trip.
async fn round_trips(kind: &Kind) -> Result<Vec<f64>, Failure> {
    let opened = kind.ours().await?;
    let asks = fresh(1);
    let mut ticks = tokio::time::interval(EVERY);
    let mut micros = Vec::new();
    let terms = terms(1);
    let each = asks.iter().flat_map(|batch| batch.items()).take(MESSAGES);
    for (n, ask) in each.enumerate() {
        ticks.tick().await;
        let one: hapax::store::Batch<Ask> = [ask.clone()].into_iter().collect();
        let began = Instant::now();
        let outcomes = opened.side.claim(&terms, &one).await?;
        if n >= WARM {
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
        opened.side.settle(&settles(&one, &outcomes)?).await?;
    }
    opened.close().await?;
    Ok(micros)
}

fn percentile(values: &[f64], which: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * which) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
