//! What is told of an inbox and its workers: the state, what was accepted, what was worked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::inbox::{By, Message};
use hapax::observe::{Accepts, InboxSnapshot, Observed, Observer, Worked};
use hapax::{Fatal, Retry};
use tokio_util::sync::CancellationToken;

use crate::base::{Base, everywhere};
use crate::support::{PATIENCE, eventually};
use crate::work::{Boxed, Shop};
use crate::world::message;

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<(Accepts, Worked, Option<InboxSnapshot>)>>);

impl Heard {
    fn last(&self) -> (Accepts, Worked, Option<InboxSnapshot>) {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Heard {
    fn on(&self, event: &Observed<'_>) {
        let mut heard = self.0.lock().unwrap();
        match event {
            Observed::Accepted(accepts) => heard.0 += *accepts,
            Observed::Worked(worked) => heard.1 += *worked,
            Observed::Inbox(snapshot) => heard.2 = Some((*snapshot).clone()),
            _ => {}
        }
    }
}

everywhere! {
async fn the_state_and_what_was_done_are_told<DB>() {
    let shop = Shop::<DB>::open().await;
    let empty = shop.inbox.snapshot().await.unwrap();
    assert_eq!((empty.backlog(), empty.dead, empty.oldest, empty.paused, empty.group.as_str()), (0, 0, None, false, "tests"));
    let heard = Heard::default();
    let stop = CancellationToken::new();
    let watching = tokio::spawn(shop.inbox.watch(Duration::from_millis(100), heard.clone(), stop.clone()));
    shop.stock(0, 20, 5).await;
    // The same ids on another partition: duplicates.
    let again: Vec<_> = (0..3).map(|id| message(id, "k", 1, id)).collect();
    assert!(shop.inbox.accept_batch(&again).await.outcomes.iter().all(Result::is_ok));
    eventually(PATIENCE, "the backlog is told", async || {
        let (accepts, _, snapshot) = heard.last();
        (accepts.new, accepts.duplicates) == (20, 3) && snapshot.is_some_and(|snapshot| snapshot.received == 20)
    })
    .await;
    let first = shop.inbox.snapshot().await.unwrap().oldest.expect("there is one that waits");
    shop.inbox.pause(By::new("ada", "test")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let paused = shop.inbox.snapshot().await.unwrap();
    assert!(paused.paused && paused.oldest > Some(first), "{paused}");
    shop.inbox.resume(By::new("ada", "test")).await.unwrap();
    // What waits for its first time is received, and not late.
    let later = shop.world.builder().not_before(|_| Some(4_000_000_000_000)).build().await.unwrap();
    assert!(later.accept_batch(&[message(77, "z", 2, 0)]).await.outcomes[0].is_ok());

    let told = Heard::default();
    let worker = shop.worker().await.retry(Retry::fixed(Duration::from_millis(10)).attempts(3)).observer(told.clone());
    let handler = async |message: Message, _: &mut DB::Connection| match message.offset() {
        3 if message.attempt() < 3 => Err(Boxed::from("not yet")),
        7 => Err(Boxed::from(Fatal::new("never"))),
        _ => Ok(()),
    };
    let ended = CancellationToken::new();
    let running = tokio::spawn(worker.run(handler, ended.clone()));
    eventually(PATIENCE, "all but one are worked", async || shop.open_messages().await == 1).await;
    ended.cancel();
    let summary = running.await.unwrap().unwrap();
    let worked = told.last().1;
    assert_eq!((worked.succeeded, worked.failed, worked.dead, worked.late, worked.lost), (19, 2, 1, 0, 0), "{worked:?}");
    assert_eq!((worked.taken, worked.ended(), worked.released), (summary.taken, summary.taken, summary.released));
    eventually(PATIENCE, "the end is told", async || {
        let snapshot = heard.last().2.unwrap();
        (snapshot.received, snapshot.processing, snapshot.failed, snapshot.dead, snapshot.oldest) == (1, 0, 0, 1, None)
    })
    .await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, watching).await.expect("it ends when it is told to").unwrap();
    // Of the process's own since it was built, and no other's.
    assert_eq!(heard.last().0.total(), 23);
}
}
