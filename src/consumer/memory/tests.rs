use super::*;
use crate::message::Parts;

/// One member's messages, by ticket.
struct Member {
    records: Remembered,
    hands: Vec<Option<InHand>>,
}

impl Hands<InHand> for Vec<Option<InHand>> {
    fn hand(&mut self, ticket: Ticket) -> Option<&mut InHand> {
        self.get_mut(ticket.0 as usize)?.as_mut()
    }
}

impl Member {
    fn of(windows: &MemoryWindows) -> Self {
        Self { records: Remembered::new(windows), hands: Vec::new() }
    }

    /// Takes the partition. Where to go on, if that is known.
    async fn assigned(&self, at: Option<i64>) -> Option<i64> {
        let place = ("orders".to_owned(), 0);
        let windows = &self.records;
        let standing = windows.assigned(std::slice::from_ref(&place)).await.unwrap().remove(0);
        let at = at.filter(|at| standing.next != Some(*at));
        windows.begin(&place, Epoch::new(1), at, Arc::new(|next| Some(format!("below {next}"))));
        assert_eq!(standing.note, standing.next.map(|next| format!("below {next}")));
        standing.next
    }

    /// A message, and whether it is begun at once.
    fn deliver(&mut self, offset: i64) -> (Ticket, bool) {
        let (subject, hand) = self.records.look(&Parts::new("orders").at(0, offset), Epoch::new(1));
        self.hands.push(Some(hand));
        (Ticket(self.hands.len() as u32 - 1), matches!(subject, Subject::Own))
    }

    fn fresh(&mut self, offset: i64) -> Ticket {
        let (ticket, fresh) = self.deliver(offset);
        assert!(fresh, "{offset} is new");
        ticket
    }

    async fn claim(&mut self, ticket: Ticket) -> Answer {
        let reply = self.records.claim(&mut self.hands, &[ticket], NonZeroU32::MIN).await;
        self.records.claimed(&mut self.hands, reply).unwrap().remove(0).1
    }

    fn succeed(&mut self, ticket: Ticket) {
        self.records.succeeded(self.hands.hand(ticket).unwrap(), None);
        // As the engine says at once of what ended well.
        self.put_down(ticket);
    }

    fn fail(&mut self, ticket: Ticket) {
        self.records.failed(self.hands.hand(ticket).unwrap(), true);
    }

    async fn settle(&mut self, ticket: Ticket, verdict: Verdict) {
        let reply = self.records.settle(&mut self.hands, &[(ticket, verdict)], NonZeroU32::MIN).await;
        assert_eq!(self.records.settled(&mut self.hands, reply).unwrap(), [(ticket, Settled::Recorded)]);
    }

    fn put_down(&mut self, ticket: Ticket) {
        if let Some(hand) = self.hands[ticket.0 as usize].take() {
            self.records.put_down_all(std::iter::once(hand));
        }
    }
}

#[tokio::test]
async fn what_one_member_handled_another_does_not() {
    let windows = MemoryWindows::new();
    let (mut first, mut second) = (Member::of(&windows), Member::of(&windows));
    assert_eq!(first.assigned(None).await, None);
    let tickets: Vec<Ticket> = (5..10).map(|offset| first.fresh(offset)).collect();
    first.succeed(tickets[0]);
    first.succeed(tickets[3]);
    tickets.into_iter().for_each(|ticket| first.put_down(ticket));
    // It goes on by the mark, not by what Kafka has.
    assert_eq!(second.assigned(Some(6)).await, Some(6));
    for (offset, done) in [(6, false), (7, false), (8, true), (9, false)] {
        let (ticket, fresh) = second.deliver(offset);
        assert_eq!(fresh, !done, "{offset}");
        if done {
            assert_eq!(second.claim(ticket).await, Answer::Redelivered);
        } else {
            second.succeed(ticket);
        }
    }
    let window = windows.window("orders", 0).unwrap();
    assert_eq!((window.next(), window.encode().len(), windows.len()), (10, 0, 1));
}

#[tokio::test]
async fn what_another_member_has_in_hand_waits() {
    let windows = MemoryWindows::new();
    let (mut first, mut second) = (Member::of(&windows), Member::of(&windows));
    first.assigned(None).await;
    let done = first.fresh(0);
    first.succeed(done);
    let (slow, dropped) = (first.fresh(1), first.fresh(2));
    // The partition moves while both are in hand.
    second.assigned(Some(1)).await;
    let (one, fresh) = second.deliver(1);
    let (two, _) = second.deliver(2);
    assert!(!fresh);
    assert_eq!(second.claim(one).await, Answer::InFlight { remaining: LOOK_AGAIN });
    assert_eq!(second.claim(two).await, Answer::InFlight { remaining: LOOK_AGAIN });
    first.succeed(slow);
    first.put_down(dropped);
    assert_eq!(second.claim(one).await, Answer::Redelivered);
    assert_eq!(second.claim(two).await, Answer::Acquired { attempt: 1 });
    let (again, _) = first.deliver(1);
    assert_eq!(first.claim(again).await, Answer::Redelivered);
    second.succeed(two);
    assert_eq!(windows.window("orders", 0).unwrap().next(), 3);
}

/// What was fetched under an assignment that is over, and is looked at only after another member has begun to read.
#[tokio::test]
async fn what_comes_late_does_not_move_the_mark_over_what_is_still_to_come() {
    let windows = MemoryWindows::new();
    let (mut first, mut second) = (Member::of(&windows), Member::of(&windows));
    first.assigned(None).await;
    let done = first.fresh(0);
    first.succeed(done);
    assert_eq!(second.assigned(None).await, Some(1));
    let (late, fresh) = first.deliver(9);
    assert!(!fresh);
    assert_eq!(first.claim(late).await, Answer::Acquired { attempt: 1 });
    first.succeed(late);
    for offset in 1..9 {
        let ticket = second.fresh(offset);
        second.succeed(ticket);
    }
    let (again, fresh) = second.deliver(9);
    assert!(!fresh);
    assert_eq!(second.claim(again).await, Answer::Redelivered);
    assert_eq!(windows.window("orders", 0).unwrap().next(), 10);
}

#[tokio::test]
async fn attempts_and_what_was_given_up_are_known_to_all_members() {
    let windows = MemoryWindows::new();
    let (mut first, mut second) = (Member::of(&windows), Member::of(&windows));
    first.assigned(None).await;
    let (bad, worse) = (first.fresh(0), first.fresh(1));
    first.fail(bad);
    first.fail(bad);
    first.fail(worse);
    first.settle(worse, Verdict::Dead).await;
    first.put_down(bad);
    second.assigned(None).await;
    let (again, fresh) = second.deliver(0);
    assert!(!fresh, "it has failed before");
    assert_eq!(second.claim(again).await, Answer::Acquired { attempt: 3 });
    second.fail(again);
    second.settle(again, Verdict::Failed { retry_in: Duration::ZERO }).await;
    assert_eq!(second.claim(again).await, Answer::Acquired { attempt: 4 });
    second.settle(again, Verdict::Released).await;
    assert_eq!(second.claim(again).await, Answer::Acquired { attempt: 4 }, "that cost none");
    let (dead, _) = second.deliver(1);
    assert_eq!(second.claim(dead).await, Answer::Dead);
    assert_eq!(second.records.attempts(second.hands[dead.0 as usize].as_ref().unwrap()), Some(1));
    second.succeed(again);
    assert_eq!(windows.window("orders", 0).unwrap().next(), 2);
}

#[tokio::test]
async fn another_topic_under_the_name_begins_anew() {
    let windows = MemoryWindows::new();
    let mut member = Member::of(&windows);
    member.assigned(None).await;
    let tickets: Vec<Ticket> = (0..3).map(|offset| member.fresh(offset)).collect();
    member.succeed(tickets[0]);
    member.succeed(tickets[1]);
    // Accepted: reading begins below the mark.
    assert_eq!(member.assigned(Some(0)).await, Some(1));
    let ticket = member.fresh(0);
    member.succeed(tickets[2]);
    let (other, fresh) = member.deliver(2);
    assert!(fresh, "the handler of the topic before says nothing of this one");
    member.put_down(tickets[0]);
    member.succeed(ticket);
    member.succeed(other);
    assert_eq!(windows.window("orders", 0).unwrap().next(), 3);
    // And what was deleted is passed.
    member.assigned(Some(100)).await;
    member.fresh(100);
    assert_eq!(windows.window("orders", 0).unwrap().next(), 100);
}

#[tokio::test]
async fn where_nothing_finished_nothing_is_taken_for_finished() {
    let windows = MemoryWindows::new();
    let mut member = Member::of(&windows);
    member.assigned(None).await;
    let ticket = member.fresh(50);
    member.assigned(None).await;
    member.fresh(40);
    member.put_down(ticket);
    member.fresh(45);
}

#[tokio::test]
async fn many_messages_leave_one_small_window() {
    let windows = MemoryWindows::new();
    let member = Member::of(&windows);
    member.assigned(None).await;
    for offset in 0..200_000 {
        let (subject, mut hand) = member.records.look(&Parts::new("orders").at(0, offset), Epoch::new(1));
        assert!(matches!(subject, Subject::Own));
        member.records.succeeded(&mut hand, None);
        member.records.put_down(hand);
    }
    let part = windows.part("orders", 0);
    let inner = open(&part.inner);
    assert_eq!(inner.window.as_ref().map(|window| (window.next(), window.row().state)), Some((200_000, Vec::new())));
    assert!(inner.held.is_empty() && inner.held.0.capacity() < 64 && inner.dead.is_empty());
    assert!(inner.noted.as_ref().is_some_and(|(next, _)| *next > 200_000 - NOTE_AFTER));
}
