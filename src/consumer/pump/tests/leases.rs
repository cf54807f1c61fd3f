//! Leases that run out while the process stands still: nothing begins under one.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use super::desk::{Desk, SOON, id};
use super::probe::{Effects, LEASE, Probe, messages, once};
use crate::consumer::message::Message;
use crate::{Claim, Handed};

/// The process stands still for two leases: nothing else runs meanwhile, no renewal either.
fn stand_still() {
    let advance = pin!(tokio::time::advance(2 * LEASE));
    let _ = advance.poll(&mut Context::from_waker(Waker::noop()));
}

/// Of five messages, one after the other, the third one's handler stands still: the two behind it are claimed again before they begin.
#[tokio::test(start_paused = true)]
async fn a_message_does_not_begin_under_a_lease_that_ran_out_wherever_it_stands_in_its_chain() {
    let (store, effects, lost) = (Probe::new(), Effects::default(), Effects::default());
    let once = once(&store).await;
    let each = once.each({
        let (effects, lost) = (effects.clone(), lost.clone());
        move |message: Message, claim: Claim| {
            if claim.is_lost() {
                lost.add(id(&message));
            }
            effects.add(id(&message));
            if id(&message) == "m2" {
                stand_still();
            }
            std::future::ready(Ok::<_, String>(()))
        }
    });
    let mut desk = Desk::new(each);
    desk.deliver(&messages(5));
    desk.finished(5).await;
    assert_eq!(lost.all(), Vec::<String>::new(), "begun under a lease that had run out");
    assert_eq!(effects.all(), ["m0", "m1", "m2", "m3", "m4"]);
    let (_, tally, committed) = desk.close(SOON).await;
    // Every fourth offset is missing.
    assert_eq!((tally.handled, committed[&0]), (5, 4 + 1 + 1));
}

/// The same with calls of two messages: the call behind the one that stands still does not begin.
#[tokio::test(start_paused = true)]
async fn a_batch_does_not_begin_with_a_message_whose_lease_ran_out() {
    let (store, effects, lost) = (Probe::new(), Effects::default(), Effects::default());
    let once = once(&store).await;
    let batch = once.batch(2, {
        let (effects, lost) = (effects.clone(), lost.clone());
        move |batch: Vec<Handed>| {
            for handed in &batch {
                if handed.claim.is_lost() {
                    lost.add(id(&handed.message));
                }
                effects.add(id(&handed.message));
            }
            if effects.of("m1") == 1 && effects.of("m2") == 0 {
                stand_still();
            }
            std::future::ready(batch.iter().map(|_| Ok::<_, String>(())).collect::<Vec<_>>())
        }
    });
    let mut desk = Desk::new(batch);
    desk.deliver(&messages(6));
    desk.finished(6).await;
    assert_eq!(lost.all(), Vec::<String>::new(), "begun under a lease that had run out");
    assert!((0..6).all(|n| effects.of(&format!("m{n}")) == 1), "{:?}", effects.all());
    tokio::time::sleep(Duration::from_millis(1)).await;
    desk.close(SOON).await;
}
