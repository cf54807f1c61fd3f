//! What is erased is nowhere in the tables any more, and does not come back with a copy.

use std::time::Duration;

use hapax::inbox::{Accepted, By, Message, State, Which};
use hapax::message::Parts;
use hapax::{Fatal, OnConflict, Retry};

use crate::base::{Base, everywhere};
use crate::work::{Boxed, Shop};

/// Stands in key, headers, payload, an edit, and what a handler says.
const SECRET: &str = "mrs-silver";

fn secret(id: i64) -> Parts {
    let message = Parts::new("orders").at(0, id).timestamp(1_700_000_000_000 + id).key(format!("{SECRET} {}", id % 2));
    message.header("id", id.to_string()).header("name", SECRET).payload(format!("{SECRET} orders {id}"))
}

/// In how many cells of all tables it stands.
async fn traces<DB: Base>(shop: &Shop<DB>) -> i64 {
    let columns = [
        ("", "topic, record_key, headers, payload, message_key, fingerprint"),
        ("_attempts", "owner, text"),
        ("_edits", "who, why, payload"),
        ("_runs", "owner, taken, done"),
        ("_acts", "who, why, request, detail"),
        ("_handlers", "consumer_group, handler"),
        ("_windows", "state, note"),
    ];
    let mut conn = shop.world.session().await;
    let mut found = 0;
    for (end, columns) in columns {
        for column in columns.split(", ") {
            let is_text =
                matches!(column, "topic" | "owner" | "text" | "who" | "why" | "detail" | "consumer_group" | "handler");
            let holds = match DB::KIND {
                "postgres" if is_text => format!("position('{SECRET}' IN {column}) > 0"),
                "postgres" => format!("position(convert_to('{SECRET}', 'UTF8') IN {column}) > 0"),
                "mysql" => format!("INSTR(CAST({column} AS BINARY), CAST('{SECRET}' AS BINARY)) > 0"),
                _ => format!("instr(CAST({column} AS BLOB), CAST('{SECRET}' AS BLOB)) > 0"),
            };
            let text = format!("SELECT COUNT(*) FROM {} WHERE {holds}", shop.world.table(end));
            found += DB::number(&mut conn, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }
    found
}

everywhere! {
async fn nothing_of_what_was_erased_is_left<DB>() {
    let shop = Shop::<DB>::open().await;
    let by = || By::new("ada", "request 88");
    let all: Vec<Parts> = (0..12).map(secret).collect();
    let done = shop.inbox.accept_batch(&all).await;
    assert!(done.outcomes.iter().all(Result::is_ok), "{done:?}");
    // Of each key some succeed, some fail, quoting what they were given, and some are dead.
    let handler = async |message: Message, _: &mut DB::Connection| {
        let said = format!("cannot ship to {}", String::from_utf8_lossy(message.payload().unwrap_or_default()));
        match message.offset() % 3 {
            0 => Ok(()),
            1 if message.attempt() == 1 => Err(Boxed::from(said)),
            1 => Ok(()),
            _ => Err(Boxed::from(Fatal::new(said))),
        }
    };
    let worker = shop.worker().await.retry(Retry::fixed(Duration::from_millis(10)).attempts(3));
    shop.work(worker, handler).await;
    let dead = shop.inbox.list(State::Dead).limit(50).await.unwrap();
    assert_eq!(dead.len(), 4);
    shop.inbox.edit_and_requeue(dead[0].id, format!("{SECRET} again"), by()).await.unwrap();
    // And some that were never tried.
    let more: Vec<Parts> = (12..16).map(secret).collect();
    assert!(shop.inbox.accept_batch(&more).await.outcomes.iter().all(Result::is_ok));
    // Keys, headers and payloads of sixteen, twelve texts at least, and an edit.
    assert!(traces(&shop).await >= 16 * 3 + 4, "it is looked for where it is");
    for key in 0..2 {
        let erased = shop.inbox.erase(Which::keys([format!("{SECRET} {key}")]), by()).await.unwrap();
        assert_eq!((erased.erased, erased.processing), (8, 0));
    }
    assert_eq!(traces(&shop).await, 0, "{}", DB::KIND);

    // Copies of them: delivered again to another process, and produced again; with the windows, and without.
    let copies: Vec<Parts> = (0..16).map(|id| secret(id).at(0, 100 + id)).collect();
    for forgotten in [false, true] {
        if forgotten {
            let forget = format!("DELETE FROM {}", shop.world.table("_windows"));
            DB::run(&mut shop.world.session().await, &forget).await.unwrap();
        }
        let other = shop.world.inbox().await;
        let again = other.accept_batch(&all).await;
        let known = |outcome: &Result<Accepted, _>| match outcome {
            Ok(Accepted::Duplicate(_)) => forgotten,
            Ok(Accepted::Redelivered) => !forgotten,
            _ => false,
        };
        assert!(again.outcomes.iter().all(known), "{again:?}");
        let again = other.accept_batch(&copies).await;
        let known = |outcome: &Result<Accepted, _>| matches!(outcome, Ok(Accepted::Duplicate(_) | Accepted::Redelivered));
        assert!(again.outcomes.iter().all(known), "{again:?}");
        assert_eq!(traces(&shop).await, 0, "{}", DB::KIND);
    }
    // Nor does one that says something else, where such are passed.
    let skips = shop.world.builder().on_conflict(OnConflict::Skip).build().await.unwrap();
    let other = secret(3).at(0, 500).payload(format!("{SECRET} moves"));
    assert!(matches!(skips.accept_batch(&[other]).await.outcomes[0], Ok(Accepted::Conflict(_))));
    assert_eq!((traces(&shop).await, shop.world.count("", "1 = 1").await), (0, 16));
}
}
