//! What a seed decides before anything happens: the messages, the settings, the weather, the faults and when they strike.
//!
//! Each kind of fault is on or off for the whole seed, so that there are calm worlds, worlds with one fault, and worlds with all of them.

mod trouble;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hapax::engine::{Config, Conflicts, OnDead, Order};
use hapax::identity::{Fingerprint, Key};
use hapax::record::Origin;

use super::inbox::Settings;
use super::random::{Random, mix};

/// Microseconds since the world began.
pub type Micros = u64;

pub const MS: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;

/// How messages are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Claimed, run, settled.
    Dedup,
    /// No store: at least once.
    Plain,
    /// Effect and what is remembered of it in one transaction.
    Transaction,
}

/// What transactional handling remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A record for each identity.
    Records,
    /// A window for each partition.
    Window,
    Both,
}

impl Memory {
    pub fn records(self) -> bool {
        self != Self::Window
    }

    pub fn window(self) -> bool {
        self != Self::Records
    }
}

/// How partitions move between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Everybody gives up everything.
    Eager,
    /// Only what moves is given up, in a second round.
    Cooperative,
    /// The coordinator moves partitions one by one, without rounds (KIP-848).
    Next,
}

/// How a message's handler ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// Fails every other time.
    Flaky,
    /// Fails every time.
    Poison,
    /// Fails for good the first time.
    Fatal,
    /// Ends the process every time.
    Killer,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub partition: usize,
    pub offset: i64,
    /// What makes it the same as another: the truth, not what a store is told.
    pub identity: Option<u32>,
    /// What it says.
    pub body: u32,
    /// Its record key.
    pub lane: Option<u16>,
    pub kind: Kind,
    /// When it was produced.
    pub at: Micros,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub topic: Arc<str>,
    pub number: i32,
    /// Messages by place.
    pub messages: Vec<u32>,
}

/// What strikes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process in this place ends at once.
    Crash(usize),
    /// The process in this place stands still.
    Pause(usize, Micros),
    /// Its Kafka thread does not poll; everything else goes on.
    Stall(usize, Micros),
    /// Its clock jumps ahead.
    Jump(usize, Micros),
    /// The store's clock jumps ahead.
    StoreJump(Micros),
    /// The store cannot be reached.
    StoreDown(Micros),
    /// The store forgets everything: level L0.
    Forget,
    /// What the handlers need is down.
    DownstreamDown(Micros),
    /// Dead letters cannot be produced, offsets not committed.
    BrokerDown(Micros),
    /// A member comes.
    Join(usize),
    /// A member leaves in good order.
    Leave(usize),
    /// Partitions are assigned anew although nothing had been revoked.
    Again(usize),
    /// A worker of the inbox ends at once; stands still.
    WorkerCrash(usize),
    WorkerPause(usize, Micros),
    /// A partition's log begins where the group has committed; a part of what it has not goes with it.
    Retain(usize),
    Expire(usize),
}

/// Chances in ten thousand, each of one call or step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub request_lost: u32,
    pub reply_lost: u32,
    /// The caller gives up, and the request arrives after that.
    pub late: u32,
    /// The call fails half done.
    pub partial: u32,
    /// A call takes long.
    pub slow: u32,
    pub commit_fails: u32,
    pub commit_reply_lost: u32,
    pub letter_fails: u32,
    pub letter_reply_lost: u32,
    pub renewal_lost: u32,
    /// The handler fails although the message is well.
    pub handler_fails: u32,
    /// The effect happened, and the handler fails.
    pub fails_after_effect: u32,
    pub handler_hangs: u32,
    /// The process ends at a step: after a claim, an effect, a settle, before a commit.
    pub crash_at_step: u32,
    /// The broker's committed offset is not known at the assignment.
    pub committed_unknown: u32,
    /// It was set back, or lost, before the assignment.
    pub committed_lost: u32,
    /// The database ends a transaction: a deadlock, a serialization failure.
    pub aborts: u32,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mode: Mode,
    pub memory: Memory,
    /// What is handled is accepted into an inbox.
    pub inbox: Option<Settings>,
    /// One handler takes all messages of a transaction.
    pub together: bool,
    /// How long a statement waits for a lock.
    pub lock_wait: Micros,
    pub protocol: Protocol,
    /// Members have names of their own (`group.instance.id`): one that is started again goes on with what it had.
    pub named: bool,
    pub config: Config,
    /// Messages without identity are refused; if not, they are handled without a claim.
    pub refuse: bool,
    pub logs: Vec<Log>,
    pub messages: Vec<Message>,
    pub identities: usize,
    /// Messages that are copies of each other, and which of these groups each belongs to.
    groups: Vec<Vec<u32>>,
    group: Vec<u32>,
    /// The first identity that says the same.
    joined: Vec<u32>,
    pub lanes: usize,
    /// Places that are filled at first, and all there are.
    pub members: usize,
    pub places: usize,
    pub lease: Micros,
    pub session: Micros,
    pub max_poll: Micros,
    pub heartbeat: Micros,
    pub drain: Micros,
    /// Messages of one poll.
    pub poll: usize,
    /// The longest handler, hanging ones apart.
    pub pace: Micros,
    /// The longest round trip to the store, slow ones apart.
    pub round_trip: Micros,
    /// Results of handlers are reported one by one; if not, gathered for a moment.
    pub prompt: bool,
    pub weather: Weather,
    pub faults: Vec<(Micros, Fault)>,
    /// No fault strikes from then on.
    pub heal_at: Micros,
}

impl Plan {
    /// Everything that follows from a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let r = &mut random;
        let calm = r.chance(800);
        let heal_at = if calm { SECOND } else { r.between(4, 24) * SECOND };
        let mode = match r.below(20) {
            0 => Mode::Plain,
            1 | 2 => Mode::Transaction,
            _ => Mode::Dedup,
        };
        // What was added later draws from numbers of its own, so that the other worlds stay as they were.
        let later = &mut Random::new(seed ^ 0x7472_616e_7361_6374);
        let mode = if mode == Mode::Dedup && later.chance(3_500) { Mode::Transaction } else { mode };
        let own = &mut Random::new(seed ^ 0x696e_626f_7868_6170);
        let share = match mode {
            Mode::Plain => 0,
            Mode::Dedup => 800,
            Mode::Transaction => 2_500,
        };
        let inbox = own.chance(share).then(|| Settings::new(own));
        let mode = if inbox.is_some() { Mode::Transaction } else { mode };
        let mut config = config(r, mode);
        if inbox.is_some() {
            config.step_aside = false;
            if config.order == Order::Unordered {
                config.order = own.pick(&[Order::Partition, Order::Key]);
            }
        }
        if mode == Mode::Transaction && config.batch.is_none() {
            config.batch = Some(later.pick(&[1, 2, 8, 32]));
        }
        let (logs, lanes) = logs(r);
        let places = r.between(1, 4) as usize;
        let members = r.between(1, places as u64) as usize;
        let lease = r.between(15, 80) * 100 * MS;
        let session = r.between(15, 50) * 100 * MS;
        let max_poll = session + r.between(0, 30) * 100 * MS;
        let mut plan = Self {
            seed,
            mode,
            memory: later.pick(&[Memory::Records, Memory::Window, Memory::Both]),
            inbox,
            together: later.chance(2_000),
            lock_wait: later.pick(&[50 * MS, SECOND]),
            named: own.chance(2_500),
            protocol: r.pick(&[Protocol::Eager, Protocol::Cooperative, Protocol::Next]),
            config,
            refuse: r.chance(3_000),
            logs,
            messages: Vec::new(),
            identities: 0,
            groups: Vec::new(),
            group: Vec::new(),
            joined: Vec::new(),
            lanes,
            members,
            places,
            lease,
            session,
            max_poll,
            heartbeat: r.between(2, 5) * 100 * MS,
            drain: r.pick(&[0, 200 * MS, SECOND, 3 * SECOND]),
            poll: r.pick(&[1, 4, 16, 64, 200]),
            pace: r.pick(&[0, 2 * MS, 20 * MS, 150 * MS]),
            round_trip: r.pick(&[200, 2 * MS, 20 * MS]),
            prompt: r.chance(5_000),
            weather: if calm { Weather::default() } else { trouble::weather(r) },
            faults: Vec::new(),
            heal_at,
        };
        if mode == Mode::Transaction && !calm {
            plan.weather.committed_lost = later.pick(&[0, 0, 2_000, 5_000]);
            plan.weather.aborts = later.pick(&[0, 50, 500]);
        }
        messages(r, &mut plan);
        if plan.inbox.is_some() {
            // The table knows identities, and a window each partition.
            (plan.memory, plan.together) = (Memory::Both, false);
            if own.chance(2_000) {
                let one = own.index(plan.messages.len());
                let identity = plan.messages[one].identity;
                let same = plan.messages.iter_mut().filter(|other| identity.is_some() && other.identity == identity);
                same.for_each(|one| one.kind = Kind::Killer);
            }
        }
        plan.find_groups();
        if !calm {
            trouble::faults(r, &mut plan);
            plan.worker_faults(own);
            trouble::retention(own, &mut plan);
            if mode == Mode::Dedup && !plan.config.settle_first && !plan.has_conflicts() && later.chance(1_500) {
                plan.faults.push((later.below(heal_at), Fault::Forget));
                plan.faults.sort_by_key(|(at, _)| *at);
            }
        }
        plan
    }

    pub fn is_transactional(&self) -> bool {
        self.mode == Mode::Transaction
    }

    /// Messages without identity are given up.
    pub fn refuses(&self) -> bool {
        match self.mode {
            Mode::Plain => false,
            Mode::Dedup => self.refuse,
            Mode::Transaction => self.refuse && self.memory.records(),
        }
    }

    /// Where a message stands.
    pub fn origin(&self, message: u32) -> Origin {
        let one = &self.messages[message as usize];
        let log = &self.logs[one.partition];
        Origin { topic: Arc::clone(&log.topic), partition: log.number, offset: one.offset }
    }

    /// What the store knows an identity by.
    pub fn key(number: u32) -> Key {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mix(u64::from(number) + 1).to_le_bytes());
        bytes[12..].copy_from_slice(&number.to_le_bytes());
        Key::from_bytes(bytes)
    }

    pub fn fingerprint(body: u32) -> Fingerprint {
        let mut bytes = [0xb0; 16];
        bytes[12..].copy_from_slice(&body.to_le_bytes());
        Fingerprint::from_bytes(bytes)
    }

    /// All copies of a message, itself included.
    pub fn twins(&self, message: u32) -> &[u32] {
        &self.groups[self.group[message as usize] as usize]
    }

    /// The key of an identity whose parts were joined by a separator: another one's, where that says the same.
    pub fn joined(&self, identity: u32) -> u32 {
        self.joined[identity as usize]
    }

    /// The settings, on one line.
    pub fn summary(&self) -> String {
        let Self { seed, mode, memory, protocol, config, weather, faults, .. } = self;
        let mode = if let Some(inbox) = &self.inbox {
            format!("{inbox:?}")
        } else if self.is_transactional() {
            format!("{mode:?} ({memory:?})")
        } else {
            format!("{mode:?}")
        };
        let ms = |micros: Micros| micros / MS;
        format!(
            "seed {seed}: {mode}, {protocol:?}{}, {} messages in {} partitions, {} of {} members, lease {} ms, session {} ms, poll interval {} ms, drain {} ms, \
             poll {}, pace {} ms, heals at {} ms\n  {config:?}\n  {weather:?}\n  {faults:?}",
            if self.named { ", named" } else { "" },
            self.messages.len(),
            self.logs.len(),
            self.members,
            self.places,
            ms(self.lease),
            ms(self.session),
            ms(self.max_poll),
            ms(self.drain),
            self.poll,
            ms(self.pace),
            ms(self.heal_at),
        )
    }

    fn find_groups(&mut self) {
        let mut says: HashMap<u32, u32> = HashMap::new();
        self.joined = (0..self.identities as u32).collect();
        for message in &self.messages {
            if let Some(identity) = message.identity {
                let first = *says.entry(message.body).or_insert(identity);
                let joined = &mut self.joined[identity as usize];
                *joined = (*joined).min(first);
            }
        }
        let mut of: HashMap<(u32, u32), u32> = HashMap::new();
        for (number, message) in (0..).zip(&self.messages) {
            let fresh = self.groups.len() as u32;
            let group = match message.identity {
                Some(identity) => *of.entry((identity, message.body)).or_insert(fresh),
                None => fresh,
            };
            if group == fresh {
                self.groups.push(Vec::new());
            }
            self.groups[group as usize].push(number);
            self.group.push(group);
        }
    }

    /// Whether one identity says different things.
    fn has_conflicts(&self) -> bool {
        let mut says = vec![None; self.identities];
        self.messages.iter().any(|one| {
            let said = one.identity.map(|identity| says[identity as usize].replace(one.body));
            said.flatten().is_some_and(|body| body != one.body)
        })
    }

    /// When the last message has been produced.
    pub fn produced_at(&self) -> Micros {
        self.messages.iter().map(|message| message.at).max().unwrap_or(0)
    }
}

fn config(r: &mut Random, mode: Mode) -> Config {
    let on_dead = r.pick(&[
        OnDead::Letter,
        OnDead::Letter,
        OnDead::Letter,
        OnDead::Letter,
        OnDead::Record,
        OnDead::Record,
        OnDead::Record,
        OnDead::Stop,
    ]);
    let partition_messages = r.pick(&[2, 8, 32, 128, 4_096]);
    Config {
        order: r.pick(&[Order::Partition, Order::Partition, Order::Key, Order::Key, Order::Key, Order::Unordered]),
        step_aside: r.chance(2_500),
        concurrency: r.pick(&[1, 2, 4, 8, 16, 64]),
        batch: r.chance(2_500).then(|| r.pick(&[1, 2, 5, 16])),
        settle_first: mode == Mode::Dedup && r.chance(600),
        max_attempts: r.pick(&[1, 2, 3, 3, 4, 6]),
        retries: !r.chance(400),
        conflicts: if on_dead == OnDead::Letter || r.chance(2_000) {
            r.pick(&[Conflicts::GiveUp, Conflicts::Skip, Conflicts::Handle])
        } else {
            r.pick(&[Conflicts::Skip, Conflicts::Handle])
        },
        on_dead,
        claims: r.pick(&[1, 4, 16, 64, 512]),
        partition_messages,
        span: r.pick(&[partition_messages * 2, 1 << 17]),
        commit_every: Duration::from_millis(r.pick(&[5, 50, 200, 1_000])),
        commit_after: r.pick(&[1, 5, 50, 50_000]),
        ..Config::default()
    }
}

fn logs(r: &mut Random) -> (Vec<Log>, usize) {
    let mut logs = Vec::new();
    let topics = r.between(1, 3);
    for topic in 0..topics {
        let topic: Arc<str> = ["orders", "payments", "refunds"][topic as usize].into();
        for number in 0..r.between(1, 4) {
            logs.push(Log { topic: Arc::clone(&topic), number: number as i32, messages: Vec::new() });
        }
    }
    (logs, r.pick(&[1, 3, 10, 50]))
}

fn kind(r: &mut Random, bad: u32) -> Kind {
    if !r.chance(bad) {
        return Kind::Plain;
    }
    match r.below(8) {
        0..5 => Kind::Flaky,
        5 | 6 => Kind::Poison,
        _ => Kind::Fatal,
    }
}

fn messages(r: &mut Random, plan: &mut Plan) {
    let total = r.between(140, 260) as usize;
    let copies = r.pick(&[0, 500, 2_000, 5_000]);
    let conflicts = r.pick(&[0, 0, 100, 300]);
    let nameless = if plan.mode != Mode::Plain && !plan.config.settle_first { r.pick(&[0, 0, 500]) } else { 0 };
    let equal_bodies = r.pick(&[0, 300]);
    let bad = r.pick(&[0, 200, 1_000]);
    let killers = if plan.mode == Mode::Dedup && r.chance(1_000) { r.between(1, 2) } else { 0 };
    let gaps = r.pick(&[0, 1_000, 5_000]);
    let lanes_null = r.pick(&[0, 1_000, 3_000]);
    // Some is there from the beginning, the rest comes in bursts.
    let at_once = r.pick(&[2_000, 5_000, 10_000]);
    let mut offsets: Vec<i64> = plan.logs.iter().map(|_| r.pick(&[0, 0, 7, 1_000])).collect();
    let mut times: Vec<Micros> = (0..total)
        .map(|_| if r.chance(at_once) { 0 } else { r.below(plan.heal_at.max(2) / 250_000) * 200_000 })
        .collect();
    times.sort_unstable();
    let near = r.pick(&[20, 1_000]);
    for (number, at) in times.into_iter().enumerate() {
        let partition = r.index(plan.logs.len());
        let earlier = (number > 0).then(|| number - 1 - r.index(number.min(near)));
        let lane = (!r.chance(lanes_null)).then(|| r.index(plan.lanes) as u16);
        let fresh = |plan: &mut Plan| {
            plan.identities += 1;
            (plan.identities - 1) as u32
        };
        let body = number as u32 + 1;
        let mut message = Message { partition, offset: 0, identity: None, body, lane, kind: Kind::Plain, at };
        let copied = earlier.map(|earlier| plan.messages[earlier].clone());
        match copied {
            Some(copied) if r.chance(copies) => {
                message.identity = copied.identity;
                message.body = copied.body;
                message.kind = copied.kind;
                if r.chance(7_000) {
                    message.lane = copied.lane;
                }
            }
            Some(copied) if r.chance(conflicts) && copied.kind != Kind::Killer => {
                message.identity = copied.identity;
                message.kind = kind(r, bad);
            }
            Some(copied) if r.chance(equal_bodies) => {
                message.identity = Some(fresh(plan));
                message.body = copied.body;
                message.kind = kind(r, bad);
            }
            _ => {
                if !r.chance(nameless) {
                    message.identity = Some(fresh(plan));
                }
                message.kind = kind(r, bad);
            }
        }
        let offset = &mut offsets[partition];
        if r.chance(gaps) {
            *offset += r.between(1, 20) as i64;
        }
        message.offset = *offset;
        *offset += 1;
        plan.logs[partition].messages.push(number as u32);
        plan.messages.push(message);
    }
    for _ in 0..killers {
        let at = r.index(total);
        let killer = plan.messages[at].identity;
        // Attempts of a conflict are counted nowhere: it would end processes for ever.
        let body = plan.messages[at].body;
        let alone = plan.messages.iter().all(|other| other.identity != killer || other.body == body);
        if killer.is_some() && alone {
            plan.messages.iter_mut().filter(|one| one.identity == killer).for_each(|one| one.kind = Kind::Killer);
        }
    }
}
