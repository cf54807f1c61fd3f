//! Every message is handled once, although a third of them is produced twice, and a consumer leaves without committing what it
//! did. `cargo run --release --example quickstart` needs nothing but Rust, gcc and make; `--help` shows what else it can do.

mod args;
mod effects;
mod kafka;
mod members;
#[path = "../shared/play.rs"]
#[allow(dead_code)]
mod play;
mod store;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use args::{Args, By};
use effects::{Effects, Verdict};
use kafka::Kafka;
use members::{Did, World, leaver, runner};
use store::Store;

/// The demonstration itself went wrong: neither OK nor a wrong flag.
const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let prepare = async |args: Args| prepare(&args).await.map(|prepared| (args, prepared));
    let run = async |(args, prepared): (Args, Prepared)| run(&args, prepared).await;
    play::play(args::parse(), || args::HELP.to_owned(), prepare, run).await
}

struct Prepared {
    world: Arc<World>,
    onces: [hapax::Once; 3],
    /// Removed with this.
    _folder: tempfile::TempDir,
}

/// Whatever the user may have given wrongly shows here.
async fn prepare(args: &Args) -> Result<Prepared, String> {
    let folder = play::folder("hapax-quickstart-")?;
    let store = Store::new(args.store.as_deref(), folder.path())?;
    // Before the broker is touched: a store that is away must not cost a topic.
    store.open().await?;
    let effects = Effects::open(folder.path()).await.map_err(|e| format!("no effects table: {e}"))?;
    let kafka = Kafka::start(args.brokers.as_deref()).await?;
    let world = Arc::new(World { kafka, store, effects, by: args.by });
    let onces = [world.once().await?, world.once().await?, world.once().await?];
    eprintln!(
        "broker: {}; store: {}, level {}; identity: {}",
        world.kafka.what(),
        onces[0].store().describe().store,
        onces[0].store().describe().level,
        args.by
    );
    for finding in onces[0].report().warnings() {
        eprintln!("the store warns: {finding}");
    }
    if args.by == By::Position {
        eprintln!("a position tells redelivery only: each copy is a message of its own, and has an effect of its own");
    }
    Ok(Prepared { world, onces, _folder: folder })
}

async fn run(args: &Args, prepared: Prepared) -> Result<bool, String> {
    let Prepared { world, onces: [a, b, c], _folder } = prepared;
    let started = Instant::now();
    let expected = world.kafka.produce(args).await?;
    let total = u64::from(args.messages) + u64::from(args.copies);
    say(
        started,
        &format!("produced {} messages and {} copies, on {} partitions", args.messages, args.copies, kafka::PARTITIONS),
    );

    let stop = CancellationToken::new();
    let first = tokio::spawn(leaver(Arc::clone(&world), a, (total / 4).max(1)));
    let second = tokio::spawn(runner(Arc::clone(&world), b, "B", stop.clone()));
    say(started, "members A and B have joined the group");
    let watch = watch(started, &world, &stop, total);
    let did_a = ended("A", first).await?;
    say(started, &format!("A leaves: it has taken {} messages, and committed none of them", did_a.delivered));
    let third = tokio::spawn(runner(Arc::clone(&world), c, "C", stop.clone()));
    say(started, "C has joined the group");

    let deadline = DEADLINE.max(Duration::from_millis(total * 5));
    let mut late = false;
    while !(late || second.is_finished() || third.is_finished() || world.kafka.is_caught_up().await) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        late = started.elapsed() > deadline;
    }
    say(started, if late { "not everything is committed, and the time is up" } else { "everything is committed" });
    stop.cancel();
    let (did_b, did_c) = (ended("B", second).await?, ended("C", third).await?);
    watch.abort();
    let verdict = world.effects.verdict(&expected).await.map_err(|e| e.to_string())?;
    world.kafka.clean_up().await;
    show(&[
        ("A", "own loop, leaves", &did_a),
        ("B", "run by hapax", &did_b),
        ("C", "run by hapax, joins late", &did_c),
    ]);
    Ok(judge(&verdict, expected.len(), late, &[did_a, did_b, did_c]))
}

async fn ended<E: std::fmt::Display>(member: &str, task: JoinHandle<Result<Did, E>>) -> Result<Did, String> {
    let did = tokio::time::timeout(DEADLINE, task).await.map_err(|_| format!("member {member} does not end"))?;
    did.map_err(|e| format!("member {member}: {e}"))?.map_err(|e| format!("member {member}: {e}"))
}

fn watch(started: Instant, world: &Arc<World>, stop: &CancellationToken, total: u64) -> JoinHandle<()> {
    let (world, stop) = (Arc::clone(world), stop.clone());
    tokio::spawn(async move {
        while !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Ok(effects) = world.effects.count().await else { return };
            say(started, &format!("{effects} effects of {total} messages and copies"));
        }
    })
}

fn say(started: Instant, what: &str) {
    eprintln!("{:5.1} s  {what}", started.elapsed().as_secs_f32());
}

fn show(members: &[(&str, &str, &Did)]) {
    let line = |name: &str, what: &str, cells: [String; 5]| {
        let [delivered, handled, same_id, redelivered, commits] = cells;
        println!("{name:<7} {what:<26} {delivered:>9} {handled:>9} {same_id:>9} {redelivered:>12} {commits:>8}");
    };
    println!();
    println!("{:44}{:>9} {:>22}", "", "", "duplicates by cause:");
    line("member", "", ["delivered", "handled", "same id", "redelivered", "commits"].map(str::to_owned));
    let mut sum = Did::default();
    for (name, what, did) in members {
        line(
            name,
            what,
            [did.delivered, did.handled, did.same_id, did.redelivered, did.commits].map(|n| n.to_string()),
        );
        sum.delivered += did.delivered;
        sum.handled += did.handled;
        sum.same_id += did.same_id;
        sum.redelivered += did.redelivered;
        sum.commits += did.commits;
    }
    line("all", "", [sum.delivered, sum.handled, sum.same_id, sum.redelivered, sum.commits].map(|n| n.to_string()));
    println!();
}

/// Says what it came to. Whether that is good.
fn judge(verdict: &Verdict, distinct: usize, late: bool, members: &[Did]) -> bool {
    let good = verdict.is_good() && verdict.effects == distinct && !late;
    println!(
        "{} delivered={} distinct={distinct} effects={} duplicates={} lost={} doubled={}",
        if good { "OK" } else { "FAILED" },
        members.iter().map(|did| did.delivered).sum::<u64>(),
        verdict.effects,
        members.iter().map(|did| did.same_id + did.redelivered).sum::<u64>(),
        verdict.lost,
        verdict.doubled
    );
    good
}
