//! Partitions that come and go, and the end: what is waited for, and what is committed last.
//!
//! All of it runs on the Kafka thread, most of it inside librdkafka's rebalance callback: as long as that waits, the partitions are ours.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tracing::{debug, info, warn};

use super::super::assignment::{Owned, Place};
use super::super::committer::may_pass;
use super::super::continuity::{Begin, Refusal};
use super::super::dead_letter::DeadLetter;
use super::super::letter::LetterError;
use super::super::link::{Drained, Input};
use super::super::summary::Summary;
use super::{Client, Context, End, Refused};
use crate::engine::{Assigned, Position};
use crate::frontier::Epoch;

/// For how long the pump may answer after the deadline that it was given.
const MARGIN: Duration = Duration::from_secs(2);
/// While an answer of the pump is waited for, what it asks for is done this often.
const SERVE: Duration = Duration::from_millis(20);

/// Before a refused last commit is asked for again; then twice as long each time, up to the second.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(1);
/// For how long a commit is asked for again inside of a revoke, where the broker says that the group is in a rebalance. A broker takes the commits of a
/// member that it waits for; should it not, it does not either as long as it waits for this one.
const WAITED_FOR: Duration = Duration::from_millis(500);

/// Whose last commit it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// That of partitions that go, inside of the callback: the group waits for us.
    Revoke,
    /// That of the consumer.
    Close,
}

impl Context {
    /// Commits what is finished last and waits for the broker's answer, but not for ever: librdkafka itself would wait until the coordinator is back.
    ///
    /// What is refused for a reason that may pass is asked for again in that time, as long as the partitions are ours: neither `lost` nor revoked.
    fn commit_and_wait(&self, mut positions: Vec<Position>, last: Last, lost: impl Fn() -> bool) {
        let began = Instant::now();
        let mut pause = AGAIN;
        while !positions.is_empty() {
            let Some(refused) = self.commit_by(positions, began + self.settings.commit_wait) else { return };
            let (passing, waited) = (began.elapsed() + pause, self.settings.commit_wait);
            let again = |error: &KafkaError| {
                let in_vain = last == Last::Revoke && error.rdkafka_error_code() == Some(Code::RebalanceInProgress);
                may_pass(error) && passing < if in_vain { WAITED_FOR.min(waited) } else { waited } && !lost()
            };
            let (refused, over): (Vec<Refused>, Vec<Refused>) =
                refused.into_iter().partition(|(_, error)| again(error));
            over.iter().for_each(|refused| self.not_committed(&mut self.lock().summary, refused));
            let Some((_, error)) = refused.first() else { return };
            info!(%error, "a last commit was refused, and is asked for again");
            self.serve_for(pause);
            pause = (pause * 2).min(AGAIN_MOST);
            let mut state = self.lock();
            if lost() {
                return refused.iter().for_each(|refused| self.not_committed(&mut state.summary, refused));
            }
            let ours = |position: &Position| state.assignment.is_ours(position.epoch);
            positions = refused.into_iter().flat_map(|(positions, _)| positions).filter(ours).collect();
        }
    }

    /// Does what is asked for, for so long.
    fn serve_for(&self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.serve();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.bell.wait(left);
        }
    }

    /// Asks for a commit. Answers what the broker refused of it; `None` if it did not answer in time, which is told.
    fn commit_by(&self, positions: Vec<Position>, deadline: Instant) -> Option<Vec<Refused>> {
        // What the pump asked for before it answered goes first: an older commit after this one would set the group back.
        self.serve();
        let ticket = {
            let mut state = self.lock();
            let ticket = self.ask(&mut state, positions, false);
            state.awaited = Some((ticket, Vec::new()));
            ticket
        };
        loop {
            self.serve();
            let mut state = self.lock();
            if state.answered >= ticket {
                return state.awaited.take().map(|(_, refused)| refused);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.awaited = None;
                state.summary.failed_commits += 1;
                warn!(waited = ?self.settings.commit_wait, "a last commit was not answered; what it was about may be delivered again");
                return None;
            }
            drop(state);
            self.bell.wait(left);
        }
    }

    fn margin(&self) -> Duration {
        // Drain, margin and last commit together have to fit into max.poll.interval.ms.
        MARGIN.min(self.settings.commit_wait / 5)
    }

    /// Waits for the pump's answer until a little after `by`; meanwhile does what it asks for.
    fn wait(&self, drained: &mpsc::Receiver<Drained>, by: Instant) -> Option<Drained> {
        let deadline = by + self.margin();
        loop {
            self.serve();
            let left = deadline.saturating_duration_since(Instant::now());
            match drained.recv_timeout(left.min(SERVE)) {
                Ok(drained) => return Some(drained),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(RecvTimeoutError::Timeout) => {
                    warn!("the handlers were not drained in time; nothing is committed for what they finished last");
                    return None;
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Partitions are ours from now on. Where they begin is decided first.
    pub(super) fn assigned(&self, client: &Client, partitions: &TopicPartitionList) {
        // A regular expression may take it in.
        let letters = self.settings.dead_letter.as_ref().map(DeadLetter::name);
        if partitions.elements().iter().any(|element| Some(element.topic()) == letters) {
            let topic = letters.unwrap_or_default().to_owned();
            self.lock().end.get_or_insert(End::DeadLetter(LetterError::Loop { topic }));
            return;
        }
        let begins = match self.continuity.before_assign(client, partitions) {
            Ok(begins) => begins,
            Err(refusal) => return self.refuse(refusal),
        };
        let elements = partitions.elements();
        let places = elements.iter().map(|element| (element.topic(), element.partition()));
        // The others begin once their windows are read.
        self.begin(places.zip(begins).filter_map(|(place, begin)| Some((place, begin?))));
    }

    fn refuse(&self, refusal: Refusal) {
        self.lock().end.get_or_insert(match refusal {
            Refusal::Discontinuity(discontinuity) => End::Discontinuity(discontinuity),
            Refusal::Windows(error) => End::Windows(error),
        });
    }

    /// Begins an epoch of each of these.
    fn begin<'a>(&self, begins: impl Iterator<Item = ((&'a str, i32), Begin)>) {
        let assigned: Vec<Assigned> = {
            let mut state = self.lock();
            let state = &mut *state;
            let mut assign = |((topic, partition), begin): ((&str, i32), Begin)| {
                let (epoch, name, before) = state.assignment.assign(topic, partition);
                before.iter().for_each(|before| state.summary.delivered_of(before));
                state.summary.partition(topic, partition).assigned += 1;
                self.continuity.begin(epoch, topic, partition, &begin);
                let committed = begin.committed;
                debug!(topic, partition, epoch = epoch.get(), committed, "assigned");
                Assigned { topic: name, partition, epoch, committed }
            };
            begins.map(&mut assign).collect()
        };
        if !assigned.is_empty() {
            if self.probe.is_on() {
                let spots: Vec<Place> =
                    assigned.iter().map(|assigned| (Arc::clone(&assigned.topic), assigned.partition)).collect();
                self.probe.assigned(&spots);
            }
            let _ = self.inputs.send(Input::Assigned(assigned));
        }
    }

    /// Where librdkafka stopped since it would have jumped: decides how that goes on.
    pub(in crate::consumer) fn go_on(&self, client: &Client) {
        for moved in [self.continuity.after_windows(client), self.continuity.after_fence(client)] {
            match moved {
                Ok(moved) if moved.is_empty() => {}
                Ok(moved) => self.begin(moved.iter().map(|moved| ((&*moved.topic, moved.partition), moved.begin))),
                Err(refusal) => return self.refuse(refusal),
            }
        }
        if self.continuity.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        match self.continuity.after_reset(client, || self.finish_in_hand()) {
            Ok(moved) => self.begin(moved.iter().map(|moved| ((&*moved.topic, moved.partition), moved.begin))),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Waits until all that was delivered is finished, at most for the drain deadline.
    fn finish_in_hand(&self) {
        let by = Instant::now() + self.settings.drain;
        while !self.serve() && self.lock().valve.out() > 0 {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.bell.wait(left.min(SERVE));
        }
    }

    /// Partitions go: finish what runs, commit what is finished. Those that are lost may be somebody else's by now: commit nothing.
    pub(super) fn revoked(&self, client: &Client, partitions: &TopicPartitionList, lost: bool) {
        let places: Vec<(String, i32)> =
            partitions.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        let waited = self.continuity.forget(&places);
        self.resume(client, &waited);
        let (epochs, gone): (Vec<Epoch>, bool) = {
            let state = self.lock();
            (
                places.iter().filter_map(|(topic, partition)| state.assignment.epoch(topic, *partition)).collect(),
                state.gone,
            )
        };
        if epochs.is_empty() {
            return;
        }
        // Running handlers of lost partitions go on for a while too: an effect that is half done is better finished and
        // remembered, under its own token, than dropped and done again. Their results move no frontier.
        let began = Instant::now();
        let by = began + self.settings.drain;
        let (answer, drained) = mpsc::channel();
        let mut unfinished = 0;
        let told = !gone && self.inputs.send(Input::Revoke { epochs, lost, by, answer }).is_ok();
        if told
            && !lost
            && let Some(Drained { commit, left }) = self.wait(&drained, by)
        {
            unfinished = left as u64;
            if left > 0 {
                warn!(left, deadline = ?self.settings.drain, "handlers did not finish in time; they are dropped and delivered again");
            }
            self.commit_and_wait(commit, Last::Revoke, || client.assignment_lost());
        }
        let (mut paused, mut gone) = (Vec::new(), Vec::new());
        {
            let mut state = self.lock();
            for (topic, partition) in &places {
                if let Some((epoch, owned)) = state.assignment.revoke(topic, *partition) {
                    state.summary.delivered_of(&owned);
                    gone.push((Arc::clone(&owned.topic), owned.partition));
                    self.continuity.over(epoch);
                    if owned.paused {
                        paused.push((owned.topic, owned.partition));
                    }
                }
            }
        }
        self.probe.revoked(&gone, lost, unfinished, began.elapsed());
        // librdkafka would remember the pause, and deliver nothing were the partition to come back.
        self.resume(client, &paused);
    }

    /// All partitions may be somebody else's by now.
    pub(in crate::consumer) fn lose(&self, client: &Client) {
        let mut all = TopicPartitionList::new();
        for (topic, partition) in self.lock().assignment.places() {
            all.add_partition(topic, partition);
        }
        for (topic, partition) in self.continuity.awaited() {
            all.add_partition(&topic, partition);
        }
        self.revoked(client, &all, true);
    }

    /// Ends everything: waits for what runs, commits what is finished, forgets all partitions.
    pub(in crate::consumer) fn finish(&self, client: &Client, deadline: Duration) {
        let lost = client.assignment_lost();
        let by = Instant::now() + deadline;
        let (answer, drained) = mpsc::channel();
        let gone = {
            let mut state = self.lock();
            state.closing = true;
            state.gone
        };
        let told = !gone && self.inputs.send(Input::Close { by, answer }).is_ok();
        let answer = if told { self.wait(&drained, by) } else { None };
        let left = answer.as_ref().map_or_else(|| self.lock().valve.out(), |drained| drained.left as u64);
        if let Some(Drained { commit, .. }) = answer
            && !lost
        {
            self.commit_and_wait(commit, Last::Close, || client.assignment_lost());
        }
        let mut state = self.lock();
        state.summary.left = left;
        for owned in state.assignment.revoke_all() {
            state.summary.delivered_of(&owned);
        }
    }
}

impl Summary {
    /// Keeps the count of a partition that goes.
    fn delivered_of(&mut self, owned: &Owned) {
        self.partition(&owned.topic, owned.partition).delivered += owned.delivered;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rdkafka::ClientConfig;

    use super::super::super::bell::{Bell, Word};
    use super::super::super::committer::{Answered, Committer, Ticket};
    use super::super::super::config::Wishes;
    use super::super::super::gate::Gate;
    use super::super::super::link::Request;
    use super::super::super::observe::Probe;
    use super::*;

    type Asked = mpsc::Receiver<(Ticket, Vec<Position>)>;

    /// A consumer of `orders` without a broker, and the commits that it asks for.
    fn context(commit_wait: Duration) -> (Context, Arc<Bell>, Asked) {
        let mut client = ClientConfig::new();
        client.set("group.id", "g").set("bootstrap.servers", "localhost:1");
        let mut wishes = Wishes::new(client);
        wishes.topics = vec!["orders".into()];
        let bell = Arc::new(Bell::default());
        let (inputs, _pump) = tokio::sync::mpsc::unbounded_channel();
        let mut settings = wishes.check().expect("complete");
        settings.commit_wait = commit_wait;
        let gate = Arc::new(Gate::new(Arc::clone(&bell)));
        let context = Context::new(settings, Arc::clone(&bell), gate, inputs, Probe::default());
        let (committer, tasks) = Committer::noting();
        context.attach(committer);
        (context, bell, tasks)
    }

    fn at(partition: i32, epoch: Epoch, offset: i64) -> Position {
        Position { topic: "orders".into(), partition, epoch, offset }
    }

    #[test]
    fn a_last_commit_comes_after_those_that_the_pump_asked_for_before() {
        let (context, bell, tasks) = context(Duration::from_secs(60));
        let broker = thread::spawn({
            let bell = Arc::clone(&bell);
            move || {
                let mut committed = Vec::new();
                while committed.len() < 2
                    && let Ok((ticket, positions)) = tasks.recv()
                {
                    committed.extend(positions.iter().map(|position| position.offset));
                    bell.tell(Word::Committed(Answered { ticket, accepted: positions, ..Answered::default() }));
                }
                committed
            }
        });
        let at = |offset| vec![at(0, Epoch::new(1), offset)];
        // The pump asked for a commit in its rhythm, was told to let go, and answered with the last one, all while nobody listened.
        bell.tell(Word::Request(Request::Commit(at(7))));
        context.commit_and_wait(at(9), Last::Close, || false);
        assert_eq!(broker.join().expect("no panic"), [7, 9]);
    }

    /// A last commit of two partitions, whose first answers are these: which partitions the broker was asked for each time, and what failed.
    fn asked(
        wait: Duration,
        last: Last,
        answers: &[Code],
        between: impl Fn(&Context, usize) + Send,
        lost: bool,
    ) -> (Vec<Vec<i32>>, u64) {
        let (context, bell, tasks) = context(wait);
        let epochs: Vec<Epoch> =
            (0..2).map(|partition| context.lock().assignment.assign("orders", partition).0).collect();
        let positions = (0..).zip(&epochs).map(|(partition, epoch)| at(partition, *epoch, 9)).collect();
        let asked = thread::scope(|scope| {
            let context = &context;
            let broker = scope.spawn(move || {
                let mut asked = Vec::new();
                while let Ok((ticket, positions)) = tasks.recv() {
                    if positions.is_empty() {
                        break;
                    }
                    let answer = answers.get(asked.len()).copied();
                    asked.push(positions.iter().map(|position| position.partition).collect());
                    between(context, asked.len());
                    let answered = match answer {
                        Some(code) => Answered {
                            ticket,
                            refused: vec![(positions, KafkaError::ConsumerCommit(code))],
                            ..Answered::default()
                        },
                        None => Answered { ticket, accepted: positions, ..Answered::default() },
                    };
                    bell.tell(Word::Committed(answered));
                }
                asked
            });
            context.commit_and_wait(positions, last, || lost);
            context.committer.get().expect("attached").ask(0, Vec::new(), false);
            broker.join().expect("no panic")
        });
        let failed = context.lock().summary.failed_commits;
        (asked, failed)
    }

    #[test]
    fn a_last_commit_that_is_refused_for_a_while_is_asked_for_again() {
        let long = Duration::from_secs(60);
        for code in [Code::RebalanceInProgress, Code::CoordinatorLoadInProgress, Code::StaleMemberEpoch] {
            let (asked, failed) = asked(long, Last::Close, &[code; 2], |_, _| {}, false);
            assert_eq!((asked, failed), (vec![vec![0, 1]; 3], 0), "{code}");
        }
        let (asked, failed) = asked(long, Last::Revoke, &[Code::RebalanceInProgress], |_, _| {}, false);
        assert_eq!((asked, failed), (vec![vec![0, 1]; 2], 0));
    }

    #[test]
    fn a_last_commit_that_can_never_be_taken_is_told_at_once() {
        let long = Duration::from_secs(60);
        for code in [Code::IllegalGeneration, Code::UnknownMemberId, Code::GroupAuthorizationFailed] {
            let (asked, failed) = asked(long, Last::Close, &[code; 9], |_, _| {}, false);
            assert_eq!((asked, failed), (vec![vec![0, 1]], 1), "{code}");
        }
        let (asked, failed) = asked(long, Last::Close, &[Code::RebalanceInProgress; 9], |_, _| {}, true);
        assert_eq!((asked.len(), failed), (1, 1), "the partitions are lost");
    }

    #[test]
    fn a_last_commit_is_not_asked_for_beyond_its_time() {
        let answers = [Code::RequestTimedOut; 50];
        let (asked, failed) = asked(Duration::from_millis(400), Last::Close, &answers, |_, _| {}, false);
        assert!((2..=3).contains(&asked.len()) && failed == 1, "{asked:?}: {failed}");
        let answers = [Code::RebalanceInProgress; 50];
        let (asked, failed) = self::asked(Duration::from_secs(60), Last::Revoke, &answers, |_, _| {}, false);
        assert!((2..=3).contains(&asked.len()) && failed == 1, "the group waits for this member: {asked:?}: {failed}");
    }

    #[test]
    fn f10_a_last_commit_is_not_asked_for_again_once_its_epoch_is_over() {
        let goes = |context: &Context, time: usize| {
            if time == 1 {
                context.lock().assignment.revoke("orders", 0);
            }
            if time == 2 {
                context.lock().assignment.assign("orders", 1);
            }
        };
        let answers = [Code::RebalanceInProgress; 50];
        let (asked, failed) = asked(Duration::from_secs(60), Last::Close, &answers, goes, false);
        assert_eq!((asked, failed), (vec![vec![0, 1], vec![1]], 0), "neither revoked nor assigned anew");
    }
}
