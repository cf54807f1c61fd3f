//! Commits whose reply was lost (F7): what they came to is read before anything else is decided.

use std::sync::atomic::{AtomicUsize, Ordering};

use hapax::Done;
use hapax::identity::{Identify, header, position};
use hapax::message::Parts;

use crate::base::{Base, Site, Tables, everywhere_served, id_of, message};
use crate::once;
use crate::support::Relay;

/// The bytes of a commit, as clients send them.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.ends_with(b"COMMIT") || bytes.ends_with(b"COMMIT\0")
}

/// What is kept of the messages.
const KEPT: [&str; 3] = ["records", "window", "both"];

async fn run<DB: Base>(committed: bool) {
    for kept in KEPT {
        let site = DB::site();
        let relay = Relay::start(&site.url);
        let relayed = Site::at(relay.url(&site.url));
        let pool = DB::pool(&relayed, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = match kept {
            "records" => once(&pool, &tables, header("id")).await,
            "window" => once(&pool, &tables, position()).await,
            _ => once(&pool, &tables, position().and_then(header("id"))).await,
        };
        let calls = AtomicUsize::new(0);
        let effect = async |message: &Parts, conn: &mut DB::Connection| {
            calls.fetch_add(1, Ordering::Relaxed);
            DB::effect(conn, &tables.effects, id_of(message)).await
        };
        // What is prepared, what is held: the next COMMIT is the batch's.
        assert!(once.handle_batch(&[message(0, 0, 0)], effect).await.all_finished());
        let batch: Vec<Parts> = (1..9).map(|n| message(n, 0, n)).collect();
        match committed {
            true => relay.cut_reply_to(is_commit),
            false => relay.cut_request(is_commit),
        }
        let before = relay.caught();
        let done = once.handle_batch(&batch, effect).await;
        assert_eq!(relay.caught(), before + 1, "{kept}");
        // Handled, by the first try or by the second; and it says so either way.
        assert!(
            done.outcomes().iter().all(|done| matches!(done, Ok(Done::Handled(())))),
            "{kept}: {:?}",
            done.outcomes()
        );
        let ran = if committed { 9 } else { 17 };
        assert_eq!(calls.load(Ordering::Relaxed), ran, "{kept}");
        tables.judge::<DB>(&mut conn, 0..9).await;
        // What follows goes on from there.
        let rest: Vec<Parts> = (5..12).map(|n| message(n, 0, n)).collect();
        let trusting = once.handle_batch(&rest, effect).await;
        assert!(trusting.all_finished(), "{kept}: {:?}", trusting.outcomes());
        tables.judge::<DB>(&mut conn, 0..12).await;
    }
}

everywhere_served! {
    async fn f07_a_commit_that_was_made_counts<DB>() {
        run::<DB>(true).await;
    }
}

everywhere_served! {
    async fn f07_a_commit_that_was_not_made_is_made_again<DB>() {
        run::<DB>(false).await;
    }
}
