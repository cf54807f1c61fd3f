//! Everything is as it should be again: what is left is finished, and everybody leaves.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;

use super::{LEAVE, Later, Run, TICK};
use crate::lag::{self, Lag};
use crate::members::{Member, in_words};
use crate::schedule::{SLOTS, STEADY};
use crate::support::net;
use crate::world::Role;

/// How long what is left may stay as much once nothing is harmed any more. A backlog on a slow machine is no fault while it shrinks.
pub(super) const DRAIN: Duration = Duration::from_secs(180);

impl Run<'_> {
    /// Everything is as it should be again, and every steady place taken.
    pub(super) fn heal(&mut self) {
        self.say("no more faults");
        let mut open = std::mem::take(&mut self.later);
        // Links first: members that start need them.
        open.sort_by_key(|(_, later)| matches!(later, Later::Start(_)));
        open.into_iter().for_each(|(_, later)| self.end(later));
        self.aborts.fill(None);
        for slot in 0..STEADY {
            if self.members[slot].is_none() {
                self.start(slot);
            }
        }
    }

    /// Waits until the broker has everything committed. `None` when it does not in time.
    pub(super) fn drain(&mut self) -> Option<Duration> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.ground.kafka().bootstrap())
            .set("group.id", &self.topic)
            .create()
            .expect("a client");
        let (started, topics) = (Instant::now(), [self.topic.clone()]);
        let mut told = Instant::now();
        let (mut least, mut shrank) = (u64::MAX, started);
        while shrank.elapsed() < DRAIN {
            let lag = lag::of(&client, &topics, Duration::from_secs(20));
            let open = if self.subject.is_inbox() { self.left_open() } else { 0 };
            if let Ok(Lag { behind: 0, .. }) = lag
                && open == 0
            {
                let what = if self.subject.is_inbox() { "committed and worked" } else { "committed" };
                self.say(&format!(
                    "everything is {what}, {:.1} s after the last fault",
                    started.elapsed().as_secs_f32()
                ));
                return Some(started.elapsed());
            }
            if let Ok(Lag { behind, .. }) = lag
                && behind.unsigned_abs() + (open as u64) < least
            {
                (least, shrank) = (behind.unsigned_abs() + open as u64, Instant::now());
            }
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                self.say(&format!("waiting: {lag:?}, {open} messages in the inbox"));
            }
            (0..10).for_each(|_| self.tick());
        }
        // What they are waiting for.
        for (slot, member) in self.members.iter().enumerate() {
            if let Some(member) = member {
                self.say(&format!("member {slot} ({}): {}", member.pid, member.health()));
            }
        }
        None
    }

    /// Asks every member to leave, in good order.
    pub(super) fn leave(&mut self) {
        for slot in 0..SLOTS {
            if let Some(member) = &self.members[slot] {
                member.signal("TERM");
            }
        }
        for slot in 0..SLOTS {
            let Some(mut member) = self.members[slot].take() else { continue };
            match member.wait(LEAVE) {
                Some(status) if status.success() => {}
                Some(status) => self.broken.push(format!(
                    "member {slot} ({}) was asked to end: {}: {}",
                    member.pid,
                    in_words(status),
                    member.last_words()
                )),
                None => self.broken.push(format!("member {slot} ({}) did not end within {LEAVE:?}", member.pid)),
            }
        }
    }

    /// One more member of each kind finds everything done, tells so, and ends by itself.
    pub(super) fn last_ones(&mut self) {
        self.last_one(0);
        if self.subject.is_inbox() {
            self.last_one(1);
        }
    }

    fn last_one(&mut self, slot: usize) {
        let mut flags = self.flags(slot);
        let port = net::free_port();
        flags.extend(["--exit-when-idle".into(), "3".into()]);
        flags.extend(["--metrics-port".into(), port.to_string()]);
        let files = self.folder.join(format!("last-{slot}.x"));
        let mut member = Member::start(&self.orders.service, &flags, files, port, false);
        self.pids.push((member.pid, slot));
        let (mut metrics, mut health) = (String::new(), String::new());
        // Of a consumer, or of an inbox in which nothing is left.
        let (told, good) = match self.subject.role(slot) {
            Role::Work => ("hapax_inbox_messages", r#""backlog":0,"#),
            Role::Accept | Role::Service => ("hapax_", r#""phase":"running""#),
        };
        let is_running = |health: &str| health.contains(good);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = member.ended() {
                break Some(status);
            }
            if started.elapsed() > LEAVE {
                break None;
            }
            if let Ok(answer) = member.ask("/metrics") {
                metrics = answer;
            }
            if let Ok(answer) = member.ask("/health")
                && !is_running(&health)
            {
                health = answer;
            }
            std::thread::sleep(TICK);
        };
        let words = member.last_words();
        let done = words.rsplit(" / ").next().is_some_and(|last| last.starts_with("DONE "));
        if !status.is_some_and(|status| status.success()) || !done {
            let ended = status.map_or_else(|| "not at all".into(), in_words);
            self.broken.push(format!("the last member was to end by itself, and ended: {ended}: {words}"));
        }
        if !metrics.contains(told) || !is_running(&health) {
            self.broken.push(format!("the last member told its metrics and health as: {metrics:?}, {health:?}"));
        }
        self.say(&format!("a last member: {words}"));
    }
}
