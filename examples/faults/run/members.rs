//! The members in their places: what happens to them, and how they end.

use std::time::{Duration, Instant};

use super::{LEAVE, Later, Run, now};
use crate::Sabotage;
use crate::judge::{Fault, Pid, Time, What};
use crate::members::{Member, in_words};
use crate::schedule::{LEASE, POLL_INTERVAL, SESSION, STEADY};
use crate::support::net;
use crate::world::Role;

impl Run<'_> {
    pub(super) fn start(&mut self, slot: usize) {
        self.started_members += 1;
        let abort = self.aborts[slot].take();
        let files = self.folder.join(format!("member-{slot}-{}.x", self.started_members));
        let mut flags = self.flags(slot);
        if let Some(effects) = abort {
            flags.extend(["--kill-after".into(), effects.to_string()]);
        }
        let port = net::free_port();
        flags.extend(["--metrics-port".into(), port.to_string()]);
        let begin = || Member::start(&self.orders.service, &flags, files.clone(), port, abort.is_some());
        let mut member = begin();
        // Process ids tell members apart. One that the system gives out again ends before it has done anything.
        while self.pids.iter().any(|(known, _)| *known == member.pid) {
            member.kill();
            member = begin();
        }
        let pid = member.pid;
        self.say(&format!("member {slot} ({pid}) starts{}", if abort.is_some() { ", to abort" } else { "" }));
        self.pids.push((pid, slot));
        // It starts into the trouble that there is.
        let cut_off = |fault: &Fault| match fault.what {
            What::StoreLink(other) if fault.to == Time::MAX => self.pids.contains(&(other, slot)),
            _ => false,
        };
        if self.faults.iter().any(cut_off) {
            self.open(What::StoreLink(pid));
        }
        self.members[slot] = Some(member);
    }

    pub(super) fn flags(&self, slot: usize) -> Vec<String> {
        let mode = match self.orders.sabotage {
            Some(Sabotage::Lose) => "at-most-once",
            Some(Sabotage::NoDedup) => "at-least-once",
            _ => "deduplicated",
        };
        let millis = |duration: Duration| duration.as_millis().to_string();
        let mut flags: Vec<String> = [
            ("brokers", self.ground.brokers(slot)),
            ("topics", self.topic.clone()),
            ("group", self.topic.clone()),
            ("group-protocol", self.protocol.into()),
            ("session-timeout-ms", millis(SESSION)),
            ("max-poll-interval-ms", millis(POLL_INTERVAL)),
            ("retry-ms", "50".into()),
            ("attempts", "40".into()),
            ("member", format!("member-{slot}")),
            ("handler-delay-ms", "6".into()),
            ("order", self.order.into()),
            ("concurrency", "32".into()),
            ("fail-percent", self.injection.fail.to_string()),
            ("panic-percent", self.injection.panic.to_string()),
            ("fatal-percent", self.injection.fatal.to_string()),
            ("seed", self.injection.seed.to_string()),
            ("dead-letter", self.letters()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [format!("--{name}"), value])
        .collect();
        let mut add = |name: &str, value: String| flags.extend([format!("--{name}"), value]);
        let effects = if self.subject.is_transactional() { self.store.url(slot) } else { self.ground.effects_url() };
        add("effects", effects);
        match self.subject.memory {
            Some(memory) if self.subject.is_inbox() => {
                add("memory", memory.into());
                let role = match self.subject.role(slot) {
                    Role::Accept => "accept",
                    _ if self.subject.outside => "work-outside",
                    _ => "work",
                };
                add("role", role.into());
                if self.subject.outside {
                    add("store", self.store.url(slot));
                }
                add("lease-ms", millis(LEASE));
                add("most", "64".into());
                if self.orders.sabotage == Some(Sabotage::NoDedup) {
                    add("identity", "position".into());
                }
            }
            Some(memory) if mode == "deduplicated" => add("memory", memory.into()),
            _ => {
                add("store", self.store.url(slot));
                add("mode", mode.into());
                add("lease-ms", millis(LEASE));
            }
        }
        // Half of the places are static members: their restart takes their partitions back. Not with KIP-848, where the broker refuses the
        // successor of a member that was killed until the session is over.
        if slot % 2 == 1 && self.protocol != "consumer" {
            flags.extend(["--instance-id".into(), format!("place-{slot}")]);
        }
        flags
    }

    pub(super) fn kill(&mut self, slot: usize) -> bool {
        let Some(mut member) = self.members[slot].take() else { return false };
        let from = now();
        member.kill();
        self.killed(member.pid, from);
        self.say(&format!("member {slot} ({}) is killed", member.pid));
        true
    }

    pub(super) fn killed(&mut self, pid: Pid, from: Time) {
        self.counts.kills += 1;
        self.close(|what| matches!(what, What::Paused(other) | What::StoreLink(other) if other == pid));
        // For ever: it never settles anything again.
        self.faults.push(Fault { from, to: Time::MAX, what: What::Killed(pid) });
    }

    /// A steady place is taken again.
    pub(super) fn again(&mut self, slot: usize, after: Duration) {
        if slot < STEADY {
            self.later.push((Instant::now() + after, Later::Start(slot)));
        }
    }

    pub(super) fn pause(&mut self, slot: usize, length: Duration) {
        let awake = self.members.iter().flatten().filter(|member| !member.paused && member.leaving.is_none()).count();
        let Some(member) = self.members[slot].as_mut().filter(|member| !member.paused && member.leaving.is_none())
        else {
            return;
        };
        if awake < 2 {
            return;
        }
        member.paused = true;
        member.signal("STOP");
        let pid = member.pid;
        self.counts.pauses += 1;
        self.open(What::Paused(pid));
        self.later.push((Instant::now() + length, Later::Continue(slot, pid)));
        self.say(&format!("member {slot} ({pid}) is stopped for {length:?}"));
    }

    pub(super) fn ask_to_leave(&mut self, slot: usize, after: Duration) {
        let Some(member) = self.members[slot].as_mut().filter(|member| !member.paused && member.leaving.is_none())
        else {
            return;
        };
        member.leaving = Some(Instant::now());
        member.signal("TERM");
        let pid = member.pid;
        self.again(slot, after.max(Duration::from_secs(1)));
        self.say(&format!("member {slot} ({pid}) is asked to leave"));
    }

    /// Notices who ended, and whether it may have.
    pub(super) fn look_after(&mut self, slot: usize) {
        let Some(member) = &mut self.members[slot] else { return };
        let (pid, leaving, will_abort) = (member.pid, member.leaving, member.will_abort);
        let Some(status) = member.ended() else {
            if leaving.is_some_and(|since| since.elapsed() > LEAVE) {
                self.broken.push(format!("member {slot} ({pid}) did not leave within {LEAVE:?}"));
                self.kill(slot);
                self.again(slot, Duration::ZERO);
            }
            return;
        };
        let words = member.last_words();
        self.members[slot] = None;
        let ended = in_words(status);
        match status.code() {
            Some(0) if leaving.is_some() => {
                self.say(&format!("member {slot} ({pid}) has left: {words}"));
                // Its place was to be taken again while it was still there.
                if slot < STEADY
                    && !self.later.iter().any(|(_, later)| matches!(later, Later::Start(other) if *other == slot))
                {
                    self.again(slot, Duration::ZERO);
                }
            }
            // Asked to before it caught signals, it ends by the signal.
            None if leaving.is_some() && ended.contains("signal 15") => {
                self.say(&format!("member {slot} ({pid}) has left before it began"));
                if slot < STEADY
                    && !self.later.iter().any(|(_, later)| matches!(later, Later::Start(other) if *other == slot))
                {
                    self.again(slot, Duration::ZERO);
                }
            }
            None if will_abort => {
                self.killed(pid, now() - 100_000);
                self.say(&format!("member {slot} ({pid}) aborted, behind an effect"));
                self.again(slot, Duration::from_millis(500));
            }
            // The broker's answer to its joining was cut off, and its place is another member's to the broker: it has to end, and is started again.
            Some(1) if words.contains("FencedInstanceId") => {
                self.say(&format!("member {slot} ({pid}) was fenced by the broker: {words}"));
                self.again(slot, Duration::from_secs(1));
            }
            // It could not start: whoever restarts processes starts it again.
            Some(2) => {
                self.say(&format!("member {slot} ({pid}) could not start: {words}"));
                self.again(slot, Duration::from_secs(1));
            }
            _ => {
                self.broken.push(format!("member {slot} ({pid}) ended by itself, {ended}: {words}"));
                self.say(&format!("member {slot} ({pid}) ended by itself, {ended}: {words}"));
                self.again(slot, Duration::from_secs(1));
            }
        }
    }
}
