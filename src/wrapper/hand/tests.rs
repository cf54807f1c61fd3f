//! Claims and settles of many messages, one call each: every message has its own answer.

use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::identity::header;
use crate::message::Parts;
use crate::store::MemoryStore;

struct Held(Vec<InHand>);

impl Hands<InHand> for Held {
    fn hand(&mut self, ticket: Ticket) -> Option<&mut InHand> {
        self.0.get_mut(ticket.0 as usize)
    }
}

const MOST: NonZeroU32 = NonZeroU32::MIN.saturating_add(7);

async fn once() -> Once {
    let builder = Once::builder(MemoryStore::new()).scope("g", "h").identify(header("id"));
    builder.build().await.unwrap()
}

/// That many messages with different ids, in no order of their keys.
fn held(once: &Once, messages: u32) -> (Held, Vec<Ticket>) {
    let message = |n: u32| Parts::new("t").header("id", format!("m{n}")).at(0, i64::from(n));
    let hands = (0..messages).map(|n| once.look(&message(n), Epoch::new(1)).1).collect();
    (Held(hands), (0..messages).map(Ticket).collect())
}

async fn claimed(once: &Once, hands: &mut Held, tickets: &[Ticket]) -> Vec<(Ticket, Answer)> {
    let reply = once.claim(hands, tickets, MOST).await;
    once.claimed(hands, reply).unwrap()
}

#[tokio::test]
async fn answers_to_claims_come_in_the_order_asked() {
    let once = once().await;
    let (mut hands, tickets) = held(&once, 40);
    let first = claimed(&once, &mut hands, &tickets[..20]).await;
    assert!(first.iter().all(|(_, answer)| *answer == Answer::Acquired { attempt: 1 }), "{first:?}");
    assert_eq!(first.iter().map(|(ticket, _)| *ticket).collect::<Vec<_>>(), tickets[..20]);
    // Each under its own token: what one is told says nothing of the others.
    let ends: Vec<_> = tickets[..20].iter().map(|ticket| (*ticket, engine::Verdict::Succeeded)).collect();
    let told = once.settle(&mut hands, &ends[..10], MOST).await;
    assert_eq!(once.settled(&mut hands, told).unwrap().len(), 10);
    let (mut again, _) = held(&once, 40);
    let answers = claimed(&once, &mut again, &tickets).await;
    for (ticket, answer) in &answers {
        let expected = match ticket.0 {
            0..10 => matches!(answer, Answer::Redelivered),
            10..20 => matches!(answer, Answer::InFlight { .. }),
            _ => matches!(answer, Answer::Acquired { attempt: 1 }),
        };
        assert!(expected, "{ticket:?}: {answer:?}");
    }
    assert_eq!(answers.len(), 40);
    for ticket in &tickets[20..] {
        let claim = once.claim_of(&again.0[ticket.0 as usize], 1);
        assert_eq!(claim.idempotency_key(), Records::key(&once, &again.0[ticket.0 as usize]).unwrap().to_string());
        assert!(claim.remaining() > Duration::ZERO);
    }
}

/// A message may be named twice: every other one has an answer of its own all the same.
#[tokio::test]
async fn a_message_named_twice_takes_no_answer_from_another() {
    let once = once().await;
    let (mut hands, tickets) = held(&once, 12);
    claimed(&once, &mut hands, &tickets).await;
    let mut ends: Vec<_> = tickets.iter().map(|ticket| (*ticket, engine::Verdict::Released)).collect();
    ends.extend([ends[5], ends[2], ends[5]]);
    let told = once.settle(&mut hands, &ends, MOST).await;
    let answers = once.settled(&mut hands, told).unwrap();
    for ticket in &tickets {
        let own: Vec<Settled> =
            answers.iter().filter(|(told, _)| told == ticket).map(|(_, settled)| *settled).collect();
        assert_eq!(own, [Settled::Recorded], "{ticket:?}");
    }
    let again = claimed(&once, &mut hands, &tickets).await;
    assert!(again.iter().all(|(_, answer)| *answer == Answer::Acquired { attempt: 1 }), "{again:?}");
}
