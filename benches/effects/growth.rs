//! Bytes: what a message costs in the log and in the tables, and how many rows are kept of it.

use crate::database::{Base, Place};
use crate::direct::{Hand, Kept, Way, Worker, work};
use crate::figures::{Bar, Failure, Figures};

/// What so many messages left behind.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Bytes a message.
    logged: f64,
    /// Bytes a message.
    kept: f64,
    rows: usize,
}

pub async fn measure<B: Base>(figures: &mut Figures) -> Result<(), Failure> {
    let messages = figures.args.number("messages") / 2;
    let figures_of = [
        ("window", Way::Together(Kept::Window), Way::Hand(Hand::Effects)),
        ("records", Way::Together(Kept::Records), Way::Hand(Hand::Both)),
        ("window_records", Way::Together(Kept::Both), Way::Hand(Hand::Both)),
    ];
    for (name, ours, bare) in figures_of {
        let names = ["wal_bytes", "table_bytes"].map(|what| format!("{}_{name}_{what}", B::WORD));
        if !figures.wants_any(&names) {
            continue;
        }
        if figures.args.list {
            names.iter().for_each(|name| println!("{name}"));
            continue;
        }
        let (ours, bare) = (left::<B>(messages, ours).await?, left::<B>(messages, bare).await?);
        figures.state(&names[0], ours.logged, bare.logged, ours.logged / bare.logged, Bar::None);
        figures.state(&names[1], ours.kept, bare.kept, ours.kept / bare.kept, Bar::None);
        println!("#   {messages} messages: {} rows are remembered, {} by hand", ours.rows, bare.rows);
    }
    Ok(())
}

async fn left<B: Base>(messages: usize, way: Way) -> Result<Left, Failure> {
    let place = Place::<B>::make(false).await?;
    let worker = Worker::new(&place.pool, way).await?;
    let (logged, kept) = (B::logged(&place).await?, B::kept(&place).await?);
    let run = work(&place, &worker, messages).await?;
    // The first batch counts here.
    let each = |bytes: i64| bytes as f64 / (run.messages + crate::data::BATCH) as f64;
    let (logged, kept) = (each(B::logged(&place).await? - logged), each(B::kept(&place).await? - kept));
    let (records, windows) = ("SELECT COUNT(*) FROM hapax_records", "SELECT COUNT(*) FROM hapax_windows");
    let tables: &[&'static str] = match way {
        Way::Hand(_) => &["SELECT COUNT(*) FROM processed"],
        Way::Together(Kept::Window) | Way::Each(Kept::Window) => &[windows],
        Way::Together(Kept::Records) | Way::Each(Kept::Records) => &[records],
        Way::Together(Kept::Both) | Way::Each(Kept::Both) => &[records, windows],
    };
    let mut rows = 0;
    for table in tables {
        rows += place.number(table).await?;
    }
    drop(worker);
    place.close().await?;
    Ok(Left { logged, kept, rows })
}
