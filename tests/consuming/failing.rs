//! Messages that fail among others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::consumer::DeadLetter;
use hapax::identity::{Identify, header, position};
use hapax::{Fatal, Message, Order, Retry};
use sqlx::{Postgres, Sqlite};

use crate::base::{Base, everywhere, id_of};
use crate::ground::Ground;
use crate::support::{PATIENCE, eventually, unique};
use crate::world::Member;

type Failure = Box<dyn std::error::Error + Send + Sync>;

everywhere! {
    async fn one_that_fails_holds_what_is_behind_it_in_order_and_nothing_else<DB>() {
        for order in [Order::Partition, Order::Key, Order::Unordered] {
            let ground = Ground::<DB>::new(1).await;
            ground.produce(1, 0..100).await;
            let (open, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
            let (table, gate, called) = (ground.tables.effects.clone(), Arc::clone(&open), Arc::clone(&calls));
            let each = ground.once(position()).await.each(async move |message: Message, tx: &mut DB::Connection| {
                let id = id_of(&message);
                called.lock().unwrap().push(id);
                DB::effect(tx, &table, id).await?;
                if id == 37 && !gate.load(Ordering::SeqCst) {
                    return Err(Failure::from("not yet"));
                }
                Ok(())
            });
            let retry = Retry::fixed(Duration::from_millis(50)).attempts(1_000_000);
            let member = Member::start(ground.consumer().order(order).retry(retry), each);
            // What is before it, and what needs not wait: keys are the last digits, modulo 5.
            let others = match order {
                Order::Partition => 37,
                Order::Key => 100 - 13,
                Order::Unordered => 99,
            };
            ground.reach(others).await;
            eventually(PATIENCE, "it failed twice", async || {
                calls.lock().unwrap().iter().filter(|id| **id == 37).count() > 2
            })
            .await;
            assert_eq!(ground.effects().await, others, "{order:?}");
            ground.committed(&[37]).await;
            open.store(true, Ordering::SeqCst);
            ground.committed(&[100]).await;
            let summary = member.stop().await;
            ground.judge(0..100).await;
            assert_eq!((summary.handled, summary.dead), (100, 0));
        }
    }
}

/// The letter first, then the database hears that it is dead, then the window goes past it; none of it twice.
async fn buried<DB: Base>(identify: impl Identify + Clone + 'static) {
    let ground = Ground::<DB>::new(1).await;
    let dead = unique("dead");
    ground.kafka.create_topic(&dead, 1).await;
    ground.produce(1, 0..20).await;
    let start = async |ground: &Ground<DB>| {
        let table = ground.tables.effects.clone();
        let each = ground.once(identify.clone()).await.each(async move |message: Message, tx: &mut DB::Connection| {
            DB::effect(tx, &table, id_of(&message)).await?;
            match id_of(&message) {
                5 => Err(Failure::from(Fatal::new("never"))),
                9 => Err(Failure::from("again and again")),
                _ => Ok(()),
            }
        });
        Member::start(ground.consumer().dead_letter(DeadLetter::topic(&dead)), each)
    };
    let member = start(&ground).await;
    ground.committed(&[20]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead, summary.left), (18, 2, 0));
    assert_eq!(ground.kafka.watermarks(&dead, 0).await.1, 2);
    // All is delivered again, were it not for the window.
    ground.kafka.delete_group(&ground.group).await;
    ground.produce(1, 20..21).await;
    let member = start(&ground).await;
    ground.committed(&[21]).await;
    let summary = member.stop().await;
    assert_eq!((summary.handled, summary.dead), (1, 0));
    assert_eq!(ground.kafka.watermarks(&dead, 0).await.1, 2, "no second letter");
    ground.judge((0..21).filter(|id| ![5, 9].contains(id))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_up_with_a_letter_and_past_the_window_postgres() {
    buried::<Postgres>(position().and_then(header("id"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_up_with_a_letter_and_past_the_window_sqlite() {
    buried::<Sqlite>(position()).await;
}
