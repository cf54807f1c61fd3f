//! A service that handles the messages of Kafka topics, each one once: what a team would copy.
//!
//! `cargo run --release --features full --example service -- --help`
//!
//! `run` below reads top to bottom: check what is there, build the `Once`, run the `Consumer` until a signal comes. What would be yours
//! is in `handler.rs`; everything else is flags, files and figures.

mod args;
mod effects;
#[path = "../shared/flags.rs"]
mod flags;
mod handler;
mod http;
mod inbox;
#[path = "../shared/injection.rs"]
mod injection;
mod journal;
mod kafka;
#[path = "../shared/lag.rs"]
mod lag;
mod log;
mod store;
mod transaction;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::consumer::DeadLetter;
use hapax::inbox::{WorkError, WorkSummary};
use hapax::observe::Metrics;
use hapax::{Claim, Consumer, ConsumerError, Message, Once, Retry, Summary, shutdown_signal};

use args::{Args, Role, Store};
use effects::Effects;
use handler::Handler;
use journal::{Journal, Journaled};

#[tokio::main]
async fn main() -> ExitCode {
    let args = match args::read() {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{}", args::help());
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return refused(&wrong),
    };
    let started = Instant::now();
    if let Store::Inbox(Role::Work | Role::WorkOutside, _) = args.once.store {
        return match work(args).await {
            Ok(Ok(summary)) => {
                println!("DONE {summary} seconds={:.1}", started.elapsed().as_secs_f64());
                ExitCode::SUCCESS
            }
            Ok(Err(error)) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
            Err(wrong) => refused(&wrong),
        };
    }
    match run(args).await {
        Ok(Ok(summary)) => {
            println!("{}", done(&summary, started.elapsed()));
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("{error}");
            if let Some(summary) = error.summary() {
                eprintln!("until then: {}", done(summary, started.elapsed()));
            }
            ExitCode::FAILURE
        }
        Err(wrong) => refused(&wrong),
    }
}

fn refused(wrong: &str) -> ExitCode {
    eprintln!("{wrong}");
    ExitCode::from(2)
}

/// The outer error is for what is wrong before the first message is taken.
async fn run(args: Args) -> Result<Result<Summary, ConsumerError>, String> {
    log::start(args.log.as_deref())?;
    // First of all: a service that is asked to end while it still starts leaves too.
    let shutdown = shutdown_signal();
    let journal = args.journal.as_deref().map(Journal::open).transpose()?;
    let observer = args.kafka.check().await?;
    let effects = match &args.once.store {
        // It has no effects.
        Store::Inbox(_, Some(url)) => Effects::connect("store", url).await?,
        Store::Inbox(_, None) => Effects::connect("effects", &args.work.effects).await?,
        _ => Effects::open(&args.work.effects).await?,
    };

    let mut consumer = Consumer::new(args.kafka.member())
        .topics(&args.kafka.topics)
        .order(args.flow.order)
        .concurrency(args.flow.concurrency);
    if let Some(topic) = &args.flow.dead_letter {
        consumer = consumer.dead_letter(DeadLetter::topic(topic));
    }
    if let Some(policy) = args.flow.on_reset {
        consumer = consumer.on_reset(policy);
    }
    if let Some(journal) = journal.clone() {
        consumer = consumer.observer(journal);
    }
    let mut metrics = None;
    if let Some(port) = args.metrics_port {
        let page = http::Page::new(http::Health::of_consumer(consumer.monitor()))?;
        let shared = Arc::new(Metrics::new());
        consumer = consumer.observer(Arc::clone(&shared));
        metrics = Some(shared);
        tokio::spawn(http::serve(http::listen(port).await?, page));
    }

    if let Some(quiet) = args.exit_when_idle {
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            observer.idle(quiet).await;
            shutdown.cancel();
        });
    }
    match &args.once.store {
        Store::Effects(memory) => {
            let memory = *memory;
            effects::on!(effects, pool => transaction::run(pool, args, memory, consumer, shutdown).await)
        }
        Store::Inbox(..) => effects::on!(effects, pool => inbox::accept(pool, args, consumer, metrics, shutdown).await),
        Store::Url(url) => {
            let once = once(&args, url, journal).await?;
            tokio::spawn(store::upkeep(once.clone()));
            let handler = Handler::new(args.work, &args.member);
            let each = once.each(move |message: Message, claim: Claim| {
                let (handler, effects) = (handler.clone(), effects.clone());
                async move { handler.handle(&message, &claim, &effects).await }
            });
            Ok(consumer.run(each, shutdown).await)
        }
    }
}

/// What is stored is worked, without Kafka.
async fn work(args: Args) -> Result<Result<WorkSummary, WorkError>, String> {
    log::start(args.log.as_deref())?;
    let shutdown = shutdown_signal();
    // For the gaps in its own clock, which it notes by itself.
    let _journal = args.journal.as_deref().map(Journal::open).transpose()?;
    let effects = Effects::open(&args.work.effects).await?;
    let Store::Inbox(Role::WorkOutside, store) = &args.once.store else {
        return effects::on!(effects, pool => inbox::work(pool, args, shutdown).await);
    };
    let inbox = match store {
        Some(url) => Effects::connect("store", url).await?,
        None => effects.clone(),
    };
    effects::on!(inbox, pool => inbox::work_outside(pool, args, effects, shutdown).await)
}

/// Records in a store, effects elsewhere: levels L0 and L1.
async fn once(args: &Args, url: &str, journal: Option<Journal>) -> Result<Once, String> {
    let mut store = store::open(url).await?;
    if let Some(journal) = journal {
        store = Box::new(Journaled { store, journal });
    }
    Once::builder(store)
        .scope(&args.kafka.group, "service")
        .identify(args.once.identity.identity())
        .mode(args.once.mode)
        .lease(args.once.lease)
        .retry(Retry::exponential(args.once.retry).attempts(args.once.attempts))
        .build()
        .await
        .map_err(|e| store::cannot_build(&e))
}

fn done(summary: &Summary, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    format!(
        "DONE delivered={} handled={} duplicates={} dead={} seconds={seconds:.1} per_second={:.0}",
        summary.delivered,
        summary.handled,
        summary.duplicates(),
        summary.dead,
        summary.delivered as f64 / seconds
    )
}
