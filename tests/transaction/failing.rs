//! Messages that fail: alone, with their attempts counted, and without what they wrote.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use hapax::identity::{Identify, header, position};
use hapax::message::Parts;
use hapax::{Done, Failure, Misuse, Retry, TransactError};

use crate::base::{Base, Tables, everywhere, everywhere_served, id_of, message};
use crate::{once, tune};

everywhere! {
    async fn f42_the_kth_of_n_fails_and_the_rest_commits<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id")).retry(Retry::none().attempts(9)).build().await.unwrap();
        let batch: Vec<Parts> = (0..12).map(|n| message(n, 0, n)).collect();
        // Its effect is written before it fails, and is gone.
        let effect = async |message: &Parts, conn: &mut DB::Connection| {
            DB::effect(conn, &tables.effects, id_of(message)).await.map_err(|error| error.to_string())?;
            if id_of(message) == 5 { Err("the fifth".to_owned()) } else { Ok(()) }
        };
        let done = once.handle_batch(&batch, effect).await;
        for (n, outcome) in done.outcomes().iter().enumerate() {
            match n {
                5 => assert!(matches!(outcome, Err(TransactError::Handler(Failure::Error(text))) if text == "the fifth"), "{outcome:?}"),
                _ => assert!(matches!(outcome, Ok(Done::Handled(()))), "{n}: {outcome:?}"),
            }
        }
        assert_eq!(done.commits()[0].offset, 5);
        tables.judge::<DB>(&mut conn, (0..12).filter(|n| *n != 5)).await;
        let attempts = format!("SELECT count(*) FROM {} WHERE state = 1 AND attempts = 1", tables.records);
        assert_eq!(DB::number(&mut conn, &attempts).await.unwrap(), 1);
        // Delivered again, it alone is tried.
        let works = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        let done = once.handle_batch(&batch[5..], works).await;
        assert!(done.all_finished(), "{:?}", done.outcomes());
        tables.judge::<DB>(&mut conn, 0..12).await;
    }
}

everywhere! {
    async fn a_bulk_handler_that_fails_is_run_with_fewer<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, position().and_then(header("id"))).retry(Retry::none()).build().await.unwrap();
        let batch: Vec<Parts> = (0..33).map(|n| message(n, 0, n)).collect();
        let bulk = async |new: &[&Parts], conn: &mut DB::Connection| {
            for message in new {
                DB::effect(conn, &tables.effects, id_of(*message)).await.map_err(|error| error.to_string())?;
            }
            if new.iter().any(|message| id_of(*message) == 7) { Err("the seventh".to_owned()) } else { Ok(()) }
        };
        let done = once.handle_together(&batch, bulk).await;
        assert_eq!(done.first_unfinished(), Some(7));
        assert_eq!(done.outcomes().iter().filter(|done| matches!(done, Ok(Done::Handled(())))).count(), 32);
        tables.judge::<DB>(&mut conn, (0..33).filter(|n| *n != 7)).await;
        assert_eq!(DB::number(&mut conn, &format!("SELECT next FROM {}", tables.windows)).await.unwrap(), 7);
    }
}

everywhere! {
    async fn attempts_are_counted_in_the_database_and_used_up<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let runs: RefCell<HashMap<i64, u32>> = RefCell::default();
        for identity in 0..2_i64 {
            let fails = async |_: &mut DB::Connection| {
                *runs.borrow_mut().entry(identity).or_default() += 1;
                Err::<(), _>("no")
            };
            // Each process tries once; the third attempt is the last.
            for attempt in 1..=5 {
                let builder = match identity {
                    0 => tune(&pool, &tables, header("id")),
                    _ => tune(&pool, &tables, position()),
                };
                let once = builder.retry(Retry::none().attempts(3)).build().await.unwrap();
                let message = message(identity, 0, 7).timestamp(1000);
                match once.handle(&message, fails).await {
                    Err(TransactError::Handler(Failure::Error("no"))) if attempt < 3 => {}
                    Ok(Done::Dead { attempts: 3, error: Some(_) }) if attempt == 3 => {}
                    Ok(Done::Dead { attempts: 3, error: None }) if attempt > 3 && identity == 0 => {}
                    // The window has passed it.
                    Ok(Done::Duplicate { .. }) if attempt > 3 && identity == 1 => {}
                    other => panic!("{identity}, {attempt}: {other:?}"),
                }
            }
            assert_eq!(runs.borrow()[&identity], 3);
        }
        tables.judge::<DB>(&mut conn, 0..0).await;
    }
}

everywhere! {
    async fn what_failed_is_tried_again_in_place<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, header("id")).await;
        let left = RefCell::new(HashMap::from([(3, 2), (8, 1)]));
        let order = RefCell::new(Vec::new());
        let batch: Vec<Parts> = (0..10).map(|n| message(n, 0, n)).collect();
        let done = once
            .handle_batch(&batch, async |message, conn| {
                order.borrow_mut().push(id_of(message));
                DB::effect(conn, &tables.effects, id_of(message)).await.map_err(|error| error.to_string())?;
                match left.borrow_mut().get_mut(&id_of(message)) {
                    Some(left) if *left > 0 => {
                        *left -= 1;
                        Err("not yet".to_owned())
                    }
                    _ => Ok(()),
                }
            })
            .await;
        assert!(done.all_finished(), "{:?}", done.outcomes());
        assert_eq!(order.borrow().len(), 13);
        tables.judge::<DB>(&mut conn, 0..10).await;
        let tried = format!("SELECT attempts FROM {} WHERE state = 2 AND attempts > 1 ORDER BY attempts", tables.records);
        assert_eq!(DB::number(&mut conn, &tried.replace("SELECT attempts", "SELECT count(*)").replace(" ORDER BY attempts", "")).await.unwrap(), 2);
    }
}

everywhere! {
    async fn in_order_nothing_passes_a_failed_message<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id"))
            .retry(Retry::none().attempts(9))
            .stop_batches_at_failure()
            .build()
            .await
            .unwrap();
        let batch: Vec<Parts> = (0..6).map(|n| message(n, 0, n)).collect();
        let done = once
            .handle_batch(&batch, async |message, conn| {
                if id_of(message) == 2 {
                    return Err("no".to_owned());
                }
                DB::effect(conn, &tables.effects, id_of(message)).await.map_err(|error| error.to_string())
            })
            .await;
        assert!(matches!(done.outcomes()[2], Err(TransactError::Handler(_))), "{:?}", done.outcomes());
        for behind in &done.outcomes()[3..] {
            assert!(matches!(behind, Err(TransactError::NotBegun)), "{behind:?}");
        }
        tables.judge::<DB>(&mut conn, 0..2).await;
        // Those behind it burnt no attempt, and are due.
        let works = async |message: &Parts, conn: &mut DB::Connection| DB::effect(conn, &tables.effects, id_of(message)).await;
        assert!(once.handle_batch(&batch, works).await.all_finished());
        tables.judge::<DB>(&mut conn, 0..6).await;
        let once_only = format!("SELECT count(*) FROM {} WHERE state = 2 AND attempts = 1", tables.records);
        assert_eq!(DB::number(&mut conn, &once_only).await.unwrap(), 5);
    }
}

everywhere! {
    async fn a_panic_takes_no_other_message_with_it<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = once(&pool, &tables, position().and_then(header("id"))).await;
        let batch: Vec<Parts> = (0..6).map(|n| message(n, 0, n)).collect();
        let panics = Cell::new(0);
        let done = once
            .handle_batch(&batch, async |message, conn| {
                DB::effect(conn, &tables.effects, id_of(message)).await?;
                if id_of(message) == 4 {
                    panics.set(panics.get() + 1);
                    panic!("at four");
                }
                Ok::<_, sqlx::Error>(())
            })
            .await;
        assert!(matches!(&done.outcomes()[4], Ok(Done::Dead { attempts: 3, error: Some(Failure::Panicked(text)) }) if text == "at four"), "{:?}", done.outcomes());
        assert_eq!(panics.get(), 3);
        assert!(done.all_finished());
        tables.judge::<DB>(&mut conn, (0..6).filter(|n| *n != 4)).await;
        assert_eq!(once.counts().panicked, 3);
    }
}

everywhere! {
    async fn a_handler_that_takes_too_long_is_dropped_with_what_it_wrote<DB>() {
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id"))
            .retry(Retry::fixed(Duration::from_millis(1)).attempts(2))
            .handler_timeout(Duration::from_secs(3))
            .build()
            .await
            .unwrap();
        let batch: Vec<Parts> = (0..4).map(|n| message(n, 0, n)).collect();
        let done = once
            .handle_batch(&batch, async |message, conn| {
                DB::effect(conn, &tables.effects, id_of(message)).await?;
                if id_of(message) == 1 {
                    std::future::pending::<()>().await;
                }
                Ok::<_, sqlx::Error>(())
            })
            .await;
        assert!(matches!(done.outcomes()[1], Ok(Done::Dead { attempts: 2, error: Some(Failure::TimedOut(_)) })), "{:?}", done.outcomes());
        tables.judge::<DB>(&mut conn, [0, 2, 3].into_iter()).await;
    }
}

everywhere_served! {
    async fn a_message_that_loses_its_connection_each_time_fails_alone<DB>() {
        const BAD: i64 = 5;
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        // Without a savepoint for each, or with; an error that is returned, or overlooked.
        for (well, overlooked) in [(0, false), (0, true), (300, false), (300, true)] {
            let tables = Tables::make::<DB>(&mut conn).await;
            let once = tune(&pool, &tables, position().and_then(header("id"))).retry(Retry::none().attempts(2)).build().await.unwrap();
            let effect = async |message: &Parts, conn: &mut DB::Connection| {
                DB::effect(conn, &tables.effects, id_of(message)).await?;
                if id_of(message) == well + BAD {
                    let lost = lose_connection::<DB>(conn).await;
                    return if overlooked { Ok(()) } else { lost };
                }
                Ok(())
            };
            let before: Vec<Parts> = (0..well).map(|n| message(n, 0, n)).collect();
            assert!(once.handle_batch(&before, effect).await.all_finished());
            let batch: Vec<Parts> = (well..well + 12).map(|n| message(n, 0, n)).collect();
            let done = once.handle_batch(&batch, effect).await;
            for (n, outcome) in (0..).zip(done.outcomes()) {
                match outcome {
                    Err(TransactError::Handler(Failure::Error(_))) if n == BAD && !overlooked => {}
                    Err(TransactError::Misused { misuse: Misuse::Swallowed, .. }) if n == BAD && overlooked => {}
                    Ok(Done::Handled(())) if n != BAD => {}
                    _ => panic!("{n}, after {well}, overlooked: {overlooked}: {outcome:?}"),
                }
            }
            let others = |id: &i64| *id != well + BAD;
            tables.judge::<DB>(&mut conn, (0..well + 12).filter(others)).await;
            // Its attempts are counted, and used up.
            let done = once.handle_batch(&batch, effect).await;
            assert!(matches!(done.outcomes()[5], Ok(Done::Dead { attempts: 2, .. })), "{:?}", done.outcomes());
            tables.judge::<DB>(&mut conn, (0..well + 12).filter(others)).await;
        }
    }
}

everywhere_served! {
    async fn a_bulk_handler_that_loses_its_connection_each_time_is_run_with_fewer<DB>() {
        const BAD: i64 = 5;
        let site = DB::site();
        let pool = DB::pool(&site, 4).await;
        let mut conn = DB::session(&site).await;
        let tables = Tables::make::<DB>(&mut conn).await;
        let once = tune(&pool, &tables, header("id")).retry(Retry::none().attempts(9)).build().await.unwrap();
        let batch: Vec<Parts> = (0..12).map(|n| message(n, 0, n)).collect();
        let bulk = async |new: &[&Parts], conn: &mut DB::Connection| {
            for message in new {
                DB::effect(conn, &tables.effects, id_of(*message)).await?;
            }
            if new.iter().any(|message| id_of(*message) == BAD) { lose_connection::<DB>(conn).await } else { Ok(()) }
        };
        let done = once.handle_together(&batch, bulk).await;
        for (n, outcome) in (0..).zip(done.outcomes()) {
            match outcome {
                Err(TransactError::Handler(Failure::Error(_))) if n == BAD => {}
                Ok(Done::Handled(())) if n != BAD => {}
                _ => panic!("{n}: {outcome:?}"),
            }
        }
        tables.judge::<DB>(&mut conn, (0..12).filter(|id| *id != BAD)).await;
    }
}

/// What a statement that is larger than the server takes comes to, or a transaction that is idle for longer than it allows.
async fn lose_connection<DB: Base>(conn: &mut DB::Connection) -> Result<(), sqlx::Error> {
    let text = match DB::KIND {
        "mysql" => "KILL CONNECTION_ID()",
        _ => "SELECT pg_terminate_backend(pg_backend_pid())",
    };
    DB::run(conn, text).await.map(drop)
}
