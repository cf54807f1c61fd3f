//! What a consumer takes in memory while a backlog of 1 GB waits behind handlers that do not get on.
//!
//! Measured in a process of its own: this program, started again.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hapax::consumer::{Consumer, Message};
use hapax::identity::header;
use hapax::store::MemoryStore;
use hapax::{Claim, Once};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use crate::figures::{Bar, Failure, Figures};
use crate::topics::{Filling, PATIENCE, Topics, config};

const NAME: &str = "memory_mib";
const PAYLOAD: usize = 1_000;
const MESSAGES: usize = 1_000_000;
/// What the consumer may have in hand, as it is told.
const MAX_BYTES: usize = 64 << 20;
/// librdkafka's own bound, as it is told.
const QUEUED_KBYTES: u64 = 65_536;
/// For how long nothing may grow before it counts as all that there is.
const STILL: Duration = Duration::from_secs(3);
const MIB: f64 = 1_048_576.0;

pub async fn measure(figures: &mut Figures, topics: &mut Topics) -> Result<(), Failure> {
    if !figures.wants(NAME) {
        return Ok(());
    }
    if figures.args.list {
        println!("{NAME}");
        return Ok(());
    }
    let topic = topics.with(Filling { payload: PAYLOAD, ..Filling::distinct(MESSAGES) }).await?;
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--memory-of", &topic])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().ok_or("no output")?;
    let mut lines = BufReader::new(out).lines();
    let mut numbers = Vec::new();
    while let Some(line) = tokio::time::timeout(PATIENCE, lines.next_line()).await?? {
        println!("# memory: {line}");
        numbers.extend(line.split_whitespace().filter_map(|word| word.split_once('=')?.1.parse::<f64>().ok()));
    }
    if !child.wait().await?.success() {
        return Err("the process whose memory is measured failed".into());
    }
    let [start, peak, ..] = numbers[..] else { return Err("no numbers".into()) };
    let bound = MAX_BYTES as f64 / MIB + QUEUED_KBYTES as f64 / 1024.0;
    let grown = peak - start;
    figures.state(NAME, grown, bound, grown / bound, Bar::Most(1.0));
    Ok(())
}

/// The process that is measured.
pub async fn child(brokers: &str, topic: &str) -> Result<(), Failure> {
    let once =
        Once::builder(MemoryStore::new()).scope("bench", "memory").identify(header("message-id")).build().await?;
    let shutdown = CancellationToken::new();
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (begun, shutdown) = (Arc::clone(&begun), shutdown.clone());
        move |_message: Message, _claim: Claim| {
            begun.fetch_add(1, Ordering::Relaxed);
            let shutdown = shutdown.clone();
            async move {
                shutdown.cancelled().await;
                Ok::<(), Failure>(())
            }
        }
    };
    let mut config = config(brokers);
    config.set("queued.max.messages.kbytes", QUEUED_KBYTES.to_string());
    // The only bound that holds is the one on bytes.
    let consumer = Consumer::new(config)
        .topics([topic])
        .max_bytes(MAX_BYTES)
        .max_messages(10_000_000)
        .partition_messages(10_000_000);
    let start = resident("VmRSS:")?;
    let running = tokio::spawn(consumer.run(once.each(handler), shutdown.clone()));
    let (mut most, mut grew) = (0, Instant::now());
    let began = Instant::now();
    while begun.load(Ordering::Relaxed) == 0 || grew.elapsed() < STILL {
        if began.elapsed() > PATIENCE {
            return Err("memory never stopped growing".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = resident("VmRSS:")?;
        if now > most + (1 << 20) {
            (most, grew) = (now, Instant::now());
        }
    }
    let peak = resident("VmHWM:")?;
    println!("start_mib={:.1} peak_mib={:.1}", start as f64 / MIB, peak as f64 / MIB);
    shutdown.cancel();
    let summary = tokio::time::timeout(PATIENCE, running).await???;
    println!("most_unfinished={}", summary.most_unfinished);
    Ok(())
}

fn resident(which: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(which)).ok_or("no such number in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
