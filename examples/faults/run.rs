//! One store's run: traffic, members, faults by the schedule, then quiet, and the verdict.

mod end;
mod members;
mod trouble;
mod verdict;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Orders;
use crate::injection::Injection;
use crate::judge::{Fault, Pid, Time, What};
use crate::letters;
use crate::members::Member;
use crate::random::Random;
use crate::schedule::{Action, Link, SLOTS, STEADY, plan};
use crate::support::unique;
use crate::traffic::{self, PARTITIONS, Traffic};
use crate::world::{Ground, Store, Subject, ways};

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
    subject: Subject,
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
    pub fn prepare(orders: &'g Orders, ground: &'g Ground, subject: Subject, folder: &Path) -> Self {
        let mut random = Random::new(
            orders.seed ^ subject.name.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte)),
        );
        let protocol = orders.protocol.unwrap_or_else(|| random.pick(&["cooperative", "classic", "consumer"]));
        let order = orders.order.unwrap_or_else(|| random.pick(&["partition", "key", "unordered"]));
        // What is judged of an inbox.
        let order = if subject.is_inbox() { "key" } else { order };
        let store = Store::start(subject);
        let folder = folder.join(subject.name);
        fs::create_dir_all(&folder).expect("the run's folder can be written to");
        ground.sql("DROP TABLE IF EXISTS effect");
        Self {
            orders,
            ground,
            subject,
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
            self.subject.name, self.protocol, self.order, self.orders.seed
        ));
        let plan = traffic::Plan {
            per_second: self.orders.rate,
            copies: self.subject.knows_copies(),
            by_key: self.subject.is_inbox(),
            seed: self.orders.seed,
        };
        let traffic = Traffic::start(kafka, &self.topic, plan);
        (0..STEADY).for_each(|slot| self.start(slot));
        self.harm();
        self.heal();
        let produced = traffic.finish();
        self.say(&format!("{} messages were produced; everything is left to finish", produced.len()));
        let drained = self.drain();
        self.leave();
        self.last_ones();
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

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.began.elapsed().as_secs_f32());
    }
}
