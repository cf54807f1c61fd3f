//! One store's run: traffic, members, faults by the schedule, then quiet, and the verdict.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;

use crate::injection::Injection;
use crate::judge::{self, Effect, Evidence, Fault, Pid, Time, Verdict, What};
use crate::lag::{self, Lag};
use crate::letters;
use crate::members::{Member, in_words};
use crate::random::Random;
use crate::schedule::{Action, LEASE, Link, POLL_INTERVAL, SESSION, SLOTS, STEADY, Trouble, plan};
use crate::support::{net, unique};
use crate::traffic::{PARTITIONS, Traffic};
use crate::world::{Ground, Store, trouble, ways};
use crate::{Orders, Sabotage};

/// How long everything may take to be handled and committed once nothing is harmed any more.
const DRAIN: Duration = Duration::from_secs(180);
/// How long a member may take to leave.
const LEAVE: Duration = Duration::from_secs(45);
const TICK: Duration = Duration::from_millis(20);

/// The end of something that lasts.
#[derive(Clone, Copy, Debug)]
enum Later {
    Start(usize),
    Continue(usize, Pid),
    StoreStarts { emptied: bool },
    Restore(Option<usize>, Link),
}

#[derive(Debug, Default)]
struct Counts {
    kills: usize,
    pauses: usize,
    store_restarts: usize,
    relay_cuts: usize,
}

pub struct Run<'g> {
    orders: &'g Orders,
    ground: &'g Ground,
    store_name: String,
    store: Store,
    /// Since when the store is down.
    down_since: Option<Time>,
    topic: String,
    folder: PathBuf,
    protocol: &'static str,
    order: &'static str,
    injection: Injection,
    random: Random,
    members: Vec<Option<Member>>,
    started_members: usize,
    /// Set for a member that is to abort after its n-th effect.
    aborts: Vec<Option<u64>>,
    later: Vec<(Instant, Later)>,
    faults: Vec<Fault>,
    pids: Vec<(Pid, usize)>,
    counts: Counts,
    /// What members did that they may not do.
    broken: Vec<String>,
    began: Instant,
}

pub fn now() -> Time {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

impl<'g> Run<'g> {
    pub fn prepare(orders: &'g Orders, ground: &'g Ground, store_name: &str, folder: &Path) -> Self {
        let mut random = Random::new(orders.seed ^ store_name.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte)));
        let protocol = orders.protocol.unwrap_or_else(|| random.pick(&["cooperative", "classic", "consumer"]));
        let order = orders.order.unwrap_or_else(|| random.pick(&["partition", "key", "unordered"]));
        let store = Store::start(store_name);
        let folder = folder.join(store_name);
        fs::create_dir_all(&folder).expect("the run's folder can be written to");
        ground.effects("DROP TABLE IF EXISTS effect");
        Self {
            orders,
            ground,
            store_name: store_name.to_owned(),
            store,
            down_since: None,
            topic: unique("faults"),
            folder,
            protocol,
            order,
            injection: Injection { seed: orders.seed, fail: 2.0, panic: 0.5, fatal: 0.5 },
            random,
            members: (0..SLOTS).map(|_| None).collect(),
            started_members: 0,
            aborts: vec![None; SLOTS],
            later: Vec::new(),
            faults: Vec::new(),
            pids: Vec::new(),
            counts: Counts::default(),
            broken: Vec::new(),
            began: Instant::now(),
        }
    }

    /// Runs, and prints the line. Whether all was well.
    pub fn go(mut self) -> bool {
        let kafka = self.ground.kafka();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            kafka.create_topic(&self.topic, PARTITIONS).await;
            kafka.create_topic(&self.letters(), letters::PARTITIONS).await;
        });
        self.began = Instant::now();
        self.say(&format!(
            "store {}, protocol {}, order by {}, seed {}",
            self.store_name, self.protocol, self.order, self.orders.seed
        ));
        let traffic = Traffic::start(kafka, &self.topic, self.orders.rate, self.orders.seed);
        (0..STEADY).for_each(|slot| self.start(slot));
        self.harm();
        self.heal();
        let produced = traffic.finish();
        self.say(&format!("{} messages were produced; everything is left to finish", produced.len()));
        let drained = self.drain();
        self.leave();
        self.last_one();
        let verdict = self.judge(produced);
        self.print(&verdict, drained)
    }

    /// Carries out the schedule.
    fn harm(&mut self) {
        let length = Duration::from_secs(self.orders.seconds);
        let actions = plan(&mut self.random, length, self.store.is_server(), self.store.may_forget());
        let mut actions = VecDeque::from(actions);
        while self.began.elapsed() < length {
            while let Some((at, action)) = actions.front().copied()
                && at <= self.began.elapsed()
            {
                actions.pop_front();
                self.act(action);
            }
            self.tick();
        }
    }

    /// What is due, and who ended.
    fn tick(&mut self) {
        while let Some(at) = self.later.iter().position(|(due, _)| *due <= Instant::now()) {
            let (_, later) = self.later.swap_remove(at);
            self.end(later);
        }
        for slot in 0..SLOTS {
            self.look_after(slot);
        }
        std::thread::sleep(TICK);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Kill(slot, after) => {
                let slot = self.taken(slot);
                if self.kill(slot) {
                    self.again(slot, after);
                }
            }
            Action::Abort(slot, effects) => {
                // It takes effect with the next start: this one is asked to leave.
                self.aborts[slot] = Some(effects);
                self.ask_to_leave(slot, Duration::from_millis(100));
            }
            Action::Pause(slot, length) => self.pause(self.taken(slot), length),
            Action::Leave(slot, after) => self.ask_to_leave(self.taken(slot), after),
            Action::Join(slot) => {
                if self.members[slot].is_none() {
                    self.start(slot);
                }
            }
            Action::StoreRestart(down) => self.store_goes_down(down, false),
            Action::StoreEmptied(down) => self.store_goes_down(down, true),
            Action::Trouble(slot, link, what) => self.trouble(slot.map(|slot| self.taken(slot)), link, what),
        }
    }

    /// That place, or the next one that is taken.
    fn taken(&self, slot: usize) -> usize {
        (slot..SLOTS).chain(0..slot).find(|slot| self.members[*slot].is_some()).unwrap_or(slot)
    }

    fn end(&mut self, later: Later) {
        match later {
            Later::Start(slot) if self.members[slot].is_none() => self.start(slot),
            Later::Start(_) => {}
            Later::Continue(slot, pid) => {
                if let Some(member) = self.members[slot].as_mut().filter(|member| member.pid == pid && member.paused) {
                    member.paused = false;
                    member.signal("CONT");
                    self.close(|what| what == What::Paused(pid));
                    self.say(&format!("member {slot} ({pid}) goes on"));
                }
            }
            Later::StoreStarts { emptied } => {
                if emptied {
                    self.store.empty();
                    let time = now();
                    self.faults.push(Fault { from: time, to: time, what: What::StoreEmptied });
                }
                self.store.start_again();
                self.down_since = None;
                self.counts.store_restarts += 1;
                self.close(|what| what == What::StoreDown);
                self.say(if emptied { "the store is back, and empty" } else { "the store is back" });
            }
            Later::Restore(slot, link) => {
                ways(self.ground, &self.store, link, slot).into_iter().for_each(|way| way.restore());
                if link == Link::Store {
                    let pids = self.pids_in(slot);
                    self.close(|what| matches!(what, What::StoreLink(pid) if pids.contains(&pid)));
                }
            }
        }
    }

    // ---- members ----

    fn start(&mut self, slot: usize) {
        self.started_members += 1;
        let abort = self.aborts[slot].take();
        let files = self.folder.join(format!("member-{slot}-{}.x", self.started_members));
        let mut flags = self.flags(slot);
        if let Some(effects) = abort {
            flags.extend(["--kill-after".into(), effects.to_string()]);
        }
        let port = net::free_port();
        flags.extend(["--metrics-port".into(), port.to_string()]);
        let member = Member::start(&self.orders.service, &flags, files, port, abort.is_some());
        let pid = member.pid;
        self.say(&format!("member {slot} ({pid}) starts{}", if abort.is_some() { ", to abort" } else { "" }));
        assert!(self.pids.iter().all(|(known, _)| *known != pid), "process ids tell members apart");
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

    fn flags(&self, slot: usize) -> Vec<String> {
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
            ("store", self.store.url(slot)),
            ("mode", mode.into()),
            ("lease-ms", millis(LEASE)),
            ("retry-ms", "50".into()),
            ("attempts", "40".into()),
            ("effects", self.ground.effects_url()),
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
        // Half of the places are static members: their restart takes their partitions back. Not with KIP-848, where the broker refuses the
        // successor of a member that was killed until the session is over.
        if slot % 2 == 1 && self.protocol != "consumer" {
            flags.extend(["--instance-id".into(), format!("place-{slot}")]);
        }
        flags
    }

    fn kill(&mut self, slot: usize) -> bool {
        let Some(mut member) = self.members[slot].take() else { return false };
        let from = now();
        member.kill();
        self.killed(member.pid, from);
        self.say(&format!("member {slot} ({}) is killed", member.pid));
        true
    }

    fn killed(&mut self, pid: Pid, from: Time) {
        self.counts.kills += 1;
        self.close(|what| matches!(what, What::Paused(other) | What::StoreLink(other) if other == pid));
        // For ever: it never settles anything again.
        self.faults.push(Fault { from, to: Time::MAX, what: What::Killed(pid) });
    }

    /// A steady place is taken again.
    fn again(&mut self, slot: usize, after: Duration) {
        if slot < STEADY {
            self.later.push((Instant::now() + after, Later::Start(slot)));
        }
    }

    fn pause(&mut self, slot: usize, length: Duration) {
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

    fn ask_to_leave(&mut self, slot: usize, after: Duration) {
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
    fn look_after(&mut self, slot: usize) {
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
            None if will_abort => {
                self.killed(pid, now() - 100_000);
                self.say(&format!("member {slot} ({pid}) aborted, behind an effect"));
                self.again(slot, Duration::from_millis(500));
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

    // ---- the store, and the ways ----

    fn store_goes_down(&mut self, down: Duration, emptied: bool) {
        if self.down_since.is_some() {
            return;
        }
        self.down_since = Some(now());
        self.open(What::StoreDown);
        self.store.kill();
        self.later.push((Instant::now() + down, Later::StoreStarts { emptied }));
        self.say("the store is killed");
    }

    fn trouble(&mut self, slot: Option<usize>, link: Link, what: Trouble) {
        self.counts.relay_cuts += 1;
        if link == Link::Store {
            for pid in self.pids_in(slot) {
                self.open(What::StoreLink(pid));
            }
        }
        for way in ways(self.ground, &self.store, link, slot) {
            trouble(way, what);
        }
        let length = match what {
            Trouble::Cut => Duration::ZERO,
            // The next request comes soon, or the trap is taken away.
            Trouble::CutReply => Duration::from_secs(2),
            Trouble::Down(length)
            | Trouble::Delay(_, length)
            | Trouble::ToServerLost(length)
            | Trouble::ToClientLost(length) => length,
        };
        self.later.push((Instant::now() + length, Later::Restore(slot, link)));
        let whose = slot.map_or("all members".into(), |slot| format!("member {slot}"));
        self.say(&format!("between {whose} and the {link:?}: {what:?}"));
    }

    /// Processes that are in that place now; all of them without a place.
    fn pids_in(&self, slot: Option<usize>) -> Vec<Pid> {
        let inside = |at: usize| slot.is_none_or(|slot| slot == at);
        let members = self.members.iter().enumerate().filter(|(at, _)| inside(*at));
        members.filter_map(|(_, member)| Some(member.as_ref()?.pid)).collect()
    }

    fn open(&mut self, what: What) {
        self.faults.push(Fault { from: now(), to: Time::MAX, what });
    }

    /// Ends open faults of a kind.
    fn close(&mut self, which: impl Fn(What) -> bool) {
        let time = now();
        self.faults
            .iter_mut()
            .filter(|fault| fault.to == Time::MAX && which(fault.what))
            .for_each(|fault| fault.to = time);
    }

    // ---- the end ----

    /// Everything is as it should be again, and every steady place taken.
    fn heal(&mut self) {
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
    fn drain(&mut self) -> Option<Duration> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.ground.kafka().bootstrap())
            .set("group.id", &self.topic)
            .create()
            .expect("a client");
        let (started, topics) = (Instant::now(), [self.topic.clone()]);
        let mut told = Instant::now();
        while started.elapsed() < DRAIN {
            let lag = lag::of(&client, &topics, Duration::from_secs(20));
            if let Ok(Lag { behind: 0, .. }) = lag {
                self.say(&format!(
                    "everything is committed, {:.1} s after the last fault",
                    started.elapsed().as_secs_f32()
                ));
                return Some(started.elapsed());
            }
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                self.say(&format!("waiting: {lag:?}"));
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
    fn leave(&mut self) {
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

    /// One more member finds everything done, tells so, and ends by itself.
    fn last_one(&mut self) {
        let mut flags = self.flags(0);
        let port = net::free_port();
        flags.extend(["--metrics-port".into(), port.to_string(), "--exit-when-idle".into(), "3".into()]);
        let mut member = Member::start(&self.orders.service, &flags, self.folder.join("last.x"), port, false);
        self.pids.push((member.pid, 0));
        let (mut metrics, mut health) = (String::new(), String::new());
        let is_running = |health: &str| health.contains(r#""phase":"running""#);
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
        let done = words.rsplit(" / ").next().is_some_and(|last| last.starts_with("DONE delivered="));
        if !status.is_some_and(|status| status.success()) || !done {
            let ended = status.map_or_else(|| "not at all".into(), in_words);
            self.broken.push(format!("the last member was to end by itself, and ended: {ended}: {words}"));
        }
        if !metrics.contains("hapax_") || !is_running(&health) {
            self.broken.push(format!("the last member told its metrics and health as: {metrics:?}, {health:?}"));
        }
        self.say(&format!("a last member: {words}"));
    }

    fn judge(&mut self, produced: BTreeSet<String>) -> Verdict {
        self.sabotage();
        let hopeless = produced.iter().filter(|id| self.injection.is_fatal(id)).cloned().collect();
        let mut evidence = Evidence {
            produced,
            hopeless,
            letters: Some(letters::read(self.ground.kafka().bootstrap(), &self.letters())),
            effects: self.effects(),
            lines: Vec::new(),
            faults: std::mem::take(&mut self.faults),
            lease: u64::try_from(LEASE.as_micros()).unwrap_or(0),
        };
        for path in self.files("journal") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let pid = text.lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok());
            // Without a first line it never got as far as asking the store.
            if let Some(pid) = pid {
                evidence.lines.extend(judge::read_journal(pid, &text));
            }
        }
        judge::judge(&evidence)
    }

    /// Shows that the judge can tell.
    fn sabotage(&self) {
        match self.orders.sabotage {
            Some(Sabotage::Double) => {
                self.ground.effects("INSERT INTO effect SELECT id, key, fence, member, pid, attempt, at + 1000 FROM effect ORDER BY at LIMIT 1");
            }
            Some(Sabotage::Remove) => {
                self.ground.effects("DELETE FROM effect WHERE id = (SELECT id FROM effect ORDER BY at LIMIT 1)");
            }
            Some(Sabotage::Lose | Sabotage::NoDedup) | None => {}
        }
    }

    fn effects(&self) -> Vec<Effect> {
        let rows = self.ground.effects("SELECT id, key, fence, pid, at FROM effect");
        let effect = |row: &str| {
            let mut columns = row.split('|');
            Some(Effect {
                id: columns.next()?.to_owned(),
                key: columns.next()?.to_owned(),
                fence: columns.next()?.parse().ok()?,
                pid: columns.next()?.parse().ok()?,
                at: columns.next()?.parse().ok()?,
            })
        };
        rows.lines().map(|row| effect(row).unwrap_or_else(|| panic!("a row of effects: {row}"))).collect()
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.folder).expect("the run's folder can be read");
        files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|own| own == kind)).collect()
    }

    /// Times that partitions came to a member or went from it.
    fn rebalances(&self) -> usize {
        let journals = self.files("journal").into_iter().filter_map(|path| fs::read_to_string(path).ok());
        let is_one = |line: &&str| line.split(' ').nth(1).is_some_and(|what| matches!(what, "assigned" | "revoked"));
        journals.map(|journal| journal.lines().filter(is_one).count()).sum()
    }

    /// The dead letter topic.
    fn letters(&self) -> String {
        format!("{}.dead", self.topic)
    }

    fn print(&self, verdict: &Verdict, drained: Option<Duration>) -> bool {
        let mut complaints = judge::complaints(verdict);
        for broken in &self.broken {
            let _ = writeln!(complaints, "broken: {broken}");
        }
        if drained.is_none() {
            let _ = writeln!(complaints, "not everything was committed within {DRAIN:?} of the last fault");
        }
        let good = complaints.is_empty() && verdict.is_good();
        eprint!("{complaints}");
        self.say(&format!("doubled effects by cause: {:?}; given up: {}", verdict.causes, verdict.dead));
        let Counts { kills, pauses, store_restarts, relay_cuts } = self.counts;
        println!(
            "FAULTS store={} level={} kills={kills} pauses={pauses} rebalances={} store_restarts={store_restarts} relay_cuts={relay_cuts} \
             distinct={} effects={} lost={} doubled={} explained={} max_stall_s={:.1} {}",
            self.store_name,
            self.store.level(),
            self.rebalances(),
            verdict.distinct,
            verdict.effects,
            verdict.lost.len(),
            verdict.doubled,
            verdict.explained,
            verdict.max_stall as f64 / 1e6,
            if good { "OK" } else { "FAILED" }
        );
        good
    }

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.began.elapsed().as_secs_f32());
    }
}
