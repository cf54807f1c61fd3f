//! The server is killed in the middle of batches, and started again.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use hapax::Transactional;
use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use sqlx::{MySql, Postgres};

use crate::base::{Base, Site, Tables, id_of, message};
use crate::support::{PATIENCE, ThrowawayMariadb, ThrowawayPostgres, eventually, random};
use crate::tune;

const LANES: i32 = 3;
const MESSAGES: i64 = 900;
const BATCH: usize = 25;
const KILLS: i64 = 2;

/// A partition, read to its end. Whatever may not be committed is delivered again, and some of what was.
async fn lane<DB: Base>(once: &Transactional<DB>, tables: &Tables, partition: i32, finished: &Cell<i64>) {
    let messages: Vec<_> =
        (0..MESSAGES).map(|offset| message(i64::from(partition) * MESSAGES + offset, partition, offset)).collect();
    let (mut next, mut reached) = (0, 0);
    while next < messages.len() {
        // As after a crash between effect and commit of the offset.
        let from = next.saturating_sub(usize::try_from(random() % 10).unwrap());
        let batch = &messages[from..messages.len().min(next + BATCH)];
        let done = once
            .handle_batch(batch, async |message: &Parts, conn: &mut DB::Connection| {
                DB::effect(conn, &tables.effects, id_of(message)).await
            })
            .await;
        let through = done
            .outcomes()
            .iter()
            .take_while(|outcome| match outcome {
                Ok(done) => done.may_commit(),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    false
                }
            })
            .count();
        next = next.max(from + through);
        finished.set(finished.get() + i64::try_from(next.saturating_sub(reached)).unwrap());
        reached = next;
        if through == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Kills and restarts while lanes run, then counts.
async fn survives<DB: Base>(url: String, identify: impl Identify + 'static, windows: i64, kill: &Kill) {
    let site = Site::at(url);
    let pool = DB::pool(&site, 6).await;
    let mut conn = DB::session(&site).await;
    let tables = Tables::make::<DB>(&mut conn).await;
    drop(conn);
    let once = tune(&pool, &tables, identify).store_patience(PATIENCE).build().await.unwrap();
    let finished = Cell::new(0);
    let lanes = join_all((0..LANES).map(|partition| lane(&once, &tables, partition, &finished)));
    let killing = async {
        let all = MESSAGES * i64::from(LANES);
        for number in 1..=KILLS {
            let mark = all * number / (KILLS + 1);
            eventually(PATIENCE, "the lanes go on", async || finished.get() >= mark).await;
            assert!(finished.get() < all, "it is killed in the middle");
            let kill = Arc::clone(kill);
            // The lanes go on meanwhile, and meet a server that is gone.
            tokio::task::spawn_blocking(move || kill()).await.unwrap();
        }
    };
    tokio::join!(lanes, killing);
    let mut conn = DB::session(&site).await;
    tables.judge::<DB>(&mut conn, 0..MESSAGES * i64::from(LANES)).await;
    if windows > 0 {
        let rows = DB::number(&mut conn, &format!("SELECT COUNT(*) FROM {}", tables.windows)).await.unwrap();
        assert_eq!(rows, windows, "one row for each partition");
    }
}

/// Kills the server and starts it again.
type Kill = Arc<dyn Fn() + Send + Sync>;

macro_rules! killed {
    ($name:ident, $db:ty, $server:ty) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $name() {
            let server = <$server>::start(&[]);
            let url = server.url();
            let server = Mutex::new(server);
            let kill: Kill = Arc::new(move || {
                let mut server = server.lock().unwrap();
                server.kill9();
                server.restart();
            });
            let (window, records) = (i64::from(LANES), 0);
            survives::<$db>(url.clone(), position(), window, &kill).await;
            survives::<$db>(url.clone(), header("id"), records, &kill).await;
            survives::<$db>(url, position().and_then(header("id")), window, &kill).await;
        }
    };
}

killed!(postgres_killed_in_the_middle_loses_and_doubles_nothing, Postgres, ThrowawayPostgres);
killed!(mariadb_killed_in_the_middle_loses_and_doubles_nothing, MySql, ThrowawayMariadb);
