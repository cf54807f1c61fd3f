//! Holds a history to the invariants, entry by entry. It knows the plan and the history, and nothing of any engine's state.
//!
//! | name | what |
//! |---|---|
//! | `effects` | a message has at most one effect, plus one for each lease that ran out, each effect whose handler failed or was dropped, and each time the store forgot it; in a transaction one, and nothing explains another |
//! | `window` | a window's mark passes nothing that is not through, and in the end knows everything |
//! | `no loss` | whatever lies below a committed offset is handled, a duplicate of something handled, dead with its letter, or passed by policy |
//! | `no false duplicate` | nothing is called finished that is not; nothing is recorded as succeeded without an effect |
//! | `states` | dead only after the letter; nothing runs without a claim, or under a lease that ran out; attempts are bounded |
//! | `commits` | never backwards, never beyond what was delivered, never by a member that does not own the partition, never for an assignment that is over |
//! | `order` | with partition or key order, a handler begins only when all before it in its partition or key are through |
//! | `concurrency` | as many handler calls as allowed, and no message twice at once |
//! | `states` of the inbox | forward only within a generation, moved by the run that holds them; lost with another one's worker once at most; none purged that is open |
//! | `order` of the inbox | ids ascend along a lane, whoever accepts; nothing of a key is in two runs, or taken or done before an earlier one of it is through |
//! | `liveness` | everything drains once the faults stop, and no claim is left (the world itself looks at that) |

mod database;
mod inbox;

use std::collections::VecDeque;

use hapax::engine::{Conflicts, Ending, OnDead, Order};

use super::history::{Ended, Recorded, Violation, What};
use super::plan::{Fault, Mode, Plan};

const NOTHING: u32 = u32::MAX;

/// The settings of a process that the invariants depend on.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub on_dead: OnDead,
    pub conflicts: Conflicts,
}

/// One identity. Bodies are counted from 0; `NOTHING` for none.
#[derive(Clone, Debug)]
struct Known {
    /// Which body took the identity first.
    first: u32,
    succeeded: u32,
    dead: u32,
    /// Bodies with a dead letter.
    lettered: Vec<u32>,
    effects: u32,
    /// Effects that are explained: leases that ran out, handlers that failed or were dropped after theirs.
    explained: u32,
    begun: u32,
    /// Attempts that are noted as failed.
    failures: u32,
    /// Runs that count as no attempt.
    unburnt: u32,
    /// Who holds the claim that stands, whether a handler began under it, and how it ended.
    holder: u32,
    ran: bool,
    ended: Option<Ended>,
}

#[derive(Clone, Debug)]
struct Assignment {
    over: bool,
    /// What was delivered and is not known to be through, by record key.
    lanes: Vec<VecDeque<u32>>,
}

#[derive(Clone, Debug, Default)]
struct One {
    /// Its effect happened at least once, and its handler said so.
    handled: bool,
    lettered: bool,
    /// It is in no log any more.
    gone: bool,
    /// Processes in which its handler came through.
    through: Vec<u32>,
    /// The attempt that it was claimed for last.
    attempt: u32,
    /// Processes in which its handler failed for the last time.
    given_up: Vec<u32>,
    /// Its effects, in one database; attempts that are noted as failed there; and whether it is noted as given up.
    effects: u32,
    failures: u32,
    buried: bool,
    /// Where it runs: process, call, assignment.
    running: Vec<(u32, u32, u32)>,
}

#[derive(Debug)]
pub struct Checker {
    known: Vec<Known>,
    messages: Vec<One>,
    epochs: Vec<Assignment>,
    policies: Vec<Policy>,
    owner: Vec<u32>,
    committed: Vec<i64>,
    /// The first place of each partition that is not committed; that its window has not passed.
    place: Vec<usize>,
    marks: Vec<usize>,
    /// Messages of each partition by record key, from the first on that was not known to be through when one behind it had its effect.
    lanes: Vec<Vec<VecDeque<u32>>>,
    /// The clock of the store jumps: a lease is over earlier than its holder can know.
    pub leases_jump: bool,
    /// What was accepted into the inbox, if there is one.
    pub inbox: Option<inbox::Inboxed>,
    pub effects: u64,
    pub explained: u64,
    pub repeated: u64,
}

type Checked = Result<(), Violation>;

fn broken(invariant: &'static str, text: String) -> Checked {
    Err(Violation { invariant, text })
}

impl Checker {
    pub fn new(plan: &Plan) -> Self {
        let known = Known {
            first: NOTHING,
            succeeded: NOTHING,
            dead: NOTHING,
            lettered: Vec::new(),
            effects: 0,
            explained: 0,
            begun: 0,
            failures: 0,
            unburnt: 0,
            holder: NOTHING,
            ran: false,
            ended: None,
        };
        Self {
            known: vec![known; plan.identities],
            messages: vec![One::default(); plan.messages.len()],
            epochs: Vec::new(),
            policies: Vec::new(),
            owner: vec![NOTHING; plan.logs.len()],
            committed: vec![0; plan.logs.len()],
            place: vec![0; plan.logs.len()],
            marks: vec![0; plan.logs.len()],
            leases_jump: plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::StoreJump(_) | Fault::Forget)),
            lanes: Self::lanes(plan),
            inbox: inbox::Inboxed::new(plan),
            effects: 0,
            explained: 0,
            repeated: 0,
        }
    }

    /// A process with this policy begins: the next number.
    pub fn process(&mut self, policy: Policy) {
        self.policies.push(policy);
    }

    pub fn observe(&mut self, plan: &Plan, process: u32, what: &What) -> Checked {
        match *what {
            What::Granted { partition } => self.owner[partition as usize] = process,
            What::Ungranted { partition } if self.owner[partition as usize] == process => {
                self.owner[partition as usize] = NOTHING;
            }
            What::Assigned { epoch, .. } => {
                debug_assert_eq!(epoch as usize, self.epochs.len());
                self.epochs.push(Assignment { over: false, lanes: Vec::new() });
            }
            What::Fault(Fault::Forget) => self.forgot(),
            What::Over { epoch, .. } => self.epochs[epoch as usize].over = true,
            What::Delivered { message, epoch } => self.delivered(plan, message, epoch),
            What::Claimed { message, attempt, took_over, again } => {
                self.claimed(plan, (process, message), attempt, took_over, again)
            }
            What::FoundDead { message } => self.found_dead(plan, message),
            What::Called { running, .. } if running as usize > plan.config.concurrency => {
                return broken(
                    "concurrency",
                    format!("{running} handler calls run at once, {} may", plan.config.concurrency),
                );
            }
            What::Began { message, epoch, call } => return self.began(plan, process, message, epoch, call),
            What::Effect { message, .. } => return self.effect(plan, process, message),
            What::Ended { message, epoch, how, effect } => self.ended(plan, (process, message, epoch), how, effect),
            What::Settled { message, recorded } => return self.settled(plan, process, message, recorded),
            What::Lettered { message } => {
                let one = &plan.messages[message as usize];
                self.messages[message as usize].lettered = true;
                if let Some(identity) = one.identity {
                    self.known[identity as usize].lettered.push(one.body);
                }
            }
            What::Finished { message, ending } => return self.finished(plan, process, message, ending),
            What::Asked { epoch, offset } if self.epochs[epoch as usize].over => {
                return broken("commits", format!("offset {offset} asked for, for assignment {epoch}, which is over"));
            }
            What::Begins { partition, offset } => {
                for message in &plan.logs[partition as usize].messages {
                    self.messages[*message as usize].gone |= plan.messages[*message as usize].offset < offset;
                }
            }
            What::SetBack { partition, offset } => {
                let at = partition as usize;
                self.committed[at] = offset;
                let log = &plan.logs[at].messages;
                self.place[at] = log.partition_point(|message| plan.messages[*message as usize].offset < offset);
            }
            What::Inbox { message, run, act } => {
                return self.inbox.as_mut().map_or(Ok(()), |inbox| inbox.observe(plan, message, run, act));
            }
            What::Swept { run, open: true } => {
                return broken("states", format!("run {run} is swept, and a transaction of its worker has it locked"));
            }
            What::Moved { partition, next } => return self.moved(plan, process, partition, next),
            What::Committed { partition, offset } => return self.committed(plan, process, partition, offset),
            What::Crashed | What::Left => {
                self.messages.iter_mut().for_each(|one| one.running.retain(|(by, ..)| *by != process));
            }
            _ => {}
        }
        Ok(())
    }

    fn delivered(&mut self, plan: &Plan, message: u32, epoch: u32) {
        if plan.config.step_aside {
            return;
        }
        let lane = match (plan.config.order, plan.messages[message as usize].lane) {
            (Order::Partition, _) => 0,
            (Order::Key, Some(lane)) => lane as usize,
            _ => return,
        };
        let lanes = &mut self.epochs[epoch as usize].lanes;
        if lanes.len() <= lane {
            lanes.resize(lane + 1, VecDeque::new());
        }
        lanes[lane].push_back(message);
    }

    fn claimed(&mut self, plan: &Plan, (process, message): (u32, u32), attempt: u32, took_over: bool, again: bool) {
        self.messages[message as usize].attempt = attempt;
        let one = &plan.messages[message as usize];
        let Some(identity) = one.identity else { return };
        let known = &mut self.known[identity as usize];
        if known.first == NOTHING {
            known.first = one.body;
        }
        known.ran &= again;
        known.holder = process;
        if took_over {
            known.explained += 1;
            self.explained += 1;
        }
    }

    /// A store that forgets: what was claimed or handled may happen once more, and attempts count anew.
    fn forgot(&mut self) {
        for known in self.known.iter_mut().filter(|known| known.first != NOTHING) {
            known.explained += 1;
            self.explained += 1;
            // The claim that stood may begin once more.
            known.unburnt += known.begun + 1;
        }
    }

    fn found_dead(&mut self, plan: &Plan, message: u32) {
        let one = &plan.messages[message as usize];
        if let Some(identity) = one.identity {
            self.known[identity as usize].dead = one.body;
        }
    }

    /// Whether a message has a record of its own: it is known, and not in conflict with the one that was first.
    fn record(&self, plan: &Plan, message: u32) -> Option<usize> {
        let one = &plan.messages[message as usize];
        let identity = one.identity? as usize;
        let first = self.known[identity].first;
        (plan.mode == Mode::Dedup && (first == NOTHING || first == one.body)).then_some(identity)
    }

    /// Whether a message may be passed, by what really happened.
    fn is_through(&self, plan: &Plan, message: u32, policy: Policy) -> bool {
        let one = &plan.messages[message as usize];
        let own = &self.messages[message as usize];
        if own.gone {
            return true;
        }
        if plan.is_transactional() {
            return self.is_through_in_database(plan, message, policy);
        }
        let Some(identity) = one.identity else {
            return own.lettered || (!plan.refuses() && own.handled);
        };
        let known = &self.known[identity as usize];
        match plan.mode {
            Mode::Plain => own.handled || own.lettered,
            Mode::Transaction => false,
            Mode::Dedup if known.succeeded == one.body => true,
            Mode::Dedup if known.dead == one.body => match policy.on_dead {
                OnDead::Letter => known.lettered.contains(&one.body),
                OnDead::Record => true,
                OnDead::Stop => false,
            },
            Mode::Dedup if known.first == NOTHING || known.first == one.body => false,
            Mode::Dedup => match policy.conflicts {
                Conflicts::Skip => true,
                Conflicts::GiveUp => own.lettered,
                Conflicts::Handle => own.handled || own.lettered,
            },
        }
    }

    fn began(&mut self, plan: &Plan, process: u32, message: u32, epoch: u32, call: u32) -> Checked {
        let one = &plan.messages[message as usize];
        if plan.is_transactional() {
            // A zombie may begin what it likes: what counts is whose effects are committed, and in which order.
            if self.runs_in(message, process, epoch) {
                return broken("concurrency", format!("message {message} runs twice at once in process {process}"));
            }
            self.messages[message as usize].running.push((process, call, epoch));
            return Ok(());
        }
        if self.epochs[epoch as usize].over {
            return broken("order", format!("message {message} begins in assignment {epoch}, which is over"));
        }
        let record = self.record(plan, message);
        let twice = match record {
            Some(_) => plan.twins(message).iter().any(|twin| self.runs(*twin, process)),
            // Without a record two assignments are told apart by nothing.
            None => self.runs_in(message, process, epoch),
        };
        if twice {
            return broken("concurrency", format!("message {message} runs twice at once in process {process}"));
        }
        self.messages[message as usize].running.push((process, call, epoch));
        if let Some(identity) = record {
            let known = &mut self.known[identity];
            if known.first == NOTHING {
                return broken("states", format!("message {message} is run without a claim"));
            }
            known.begun += 1;
            // Of a claim that was taken over meanwhile it says nothing.
            known.ran |= known.holder == process;
            if known.holder != process && !self.leases_jump && !plan.config.settle_first {
                return broken("states", format!("message {message} begins under a claim that was taken over"));
            }
            let (begun, unburnt) = (known.begun, known.unburnt);
            if begun > plan.config.max_attempts + unburnt {
                return broken(
                    "states",
                    format!(
                        "message {message} is run {begun} times, {unburnt} of them without burning one of its {} attempts",
                        plan.config.max_attempts
                    ),
                );
            }
        }
        let lane = match (plan.config.order, one.lane) {
            _ if plan.config.step_aside => return Ok(()),
            // What left the log while it was in hand was passed as it left.
            _ if self.messages[message as usize].gone => return Ok(()),
            (Order::Partition, _) => 0,
            (Order::Key, Some(lane)) => lane as usize,
            _ => return Ok(()),
        };
        loop {
            let Some(first) = self.epochs[epoch as usize].lanes.get(lane).and_then(|lane| lane.front()).copied() else {
                return broken("order", format!("message {message} begins after one behind it in its lane"));
            };
            if first == message {
                return Ok(());
            }
            if self.messages[first as usize].running.contains(&(process, call, epoch)) {
                // One call takes both, in order: look at what lies in between.
                return self.behind(plan, process, message, epoch, call, lane);
            }
            let running = self.runs_in(first, process, epoch);
            let through = self.is_over(plan, first, (process, call, epoch));
            if running || !through {
                return broken(
                    "order",
                    format!("message {message} begins before {first}, which lies before it in its lane"),
                );
            }
            self.epochs[epoch as usize].lanes[lane].pop_front();
        }
    }

    /// The slow way, for messages of one lane in one batch.
    fn behind(&self, plan: &Plan, process: u32, message: u32, epoch: u32, call: u32, lane: usize) -> Checked {
        for before in &self.epochs[epoch as usize].lanes[lane] {
            if *before == message {
                return Ok(());
            }
            let own = &self.messages[*before as usize];
            let through = self.is_over(plan, *before, (process, call, epoch));
            if !own.running.contains(&(process, call, epoch)) && (!through || self.runs_in(*before, process, epoch)) {
                return broken(
                    "order",
                    format!("message {message} begins before {before}, which lies before it in its lane"),
                );
            }
        }
        broken("order", format!("message {message} begins after one behind it in its lane"))
    }

    /// Whether those behind a message may begin: its handler came through, or it was given up.
    fn is_over(&self, plan: &Plan, message: u32, (process, call, epoch): (u32, u32, u32)) -> bool {
        let policy = self.policies[process as usize];
        let own = &self.messages[message as usize];
        // Given up, and its letter is written: what the store is to hear of it decides nothing any more.
        let given_up = own.given_up.contains(&process) && (policy.on_dead == OnDead::Record || own.lettered);
        // A copy came through here, is given up, or goes into the same call: this one will come out as that does.
        let comes_out = |twin: &u32| {
            let twin = &self.messages[*twin as usize];
            let given_up = twin.given_up.contains(&process) && (policy.on_dead == OnDead::Record || twin.lettered);
            twin.through.contains(&process) || given_up || twin.running.contains(&(process, call, epoch))
        };
        let copied =
            plan.mode == Mode::Dedup && plan.twins(message).iter().filter(|twin| **twin != message).any(comes_out);
        own.through.contains(&process) || given_up || copied || self.is_through(plan, message, policy)
    }

    fn runs(&self, message: u32, process: u32) -> bool {
        self.messages[message as usize].running.iter().any(|(by, ..)| *by == process)
    }

    fn runs_in(&self, message: u32, process: u32, epoch: u32) -> bool {
        self.messages[message as usize].running.iter().any(|(by, _, of)| (*by, *of) == (process, epoch))
    }

    fn effect(&mut self, plan: &Plan, process: u32, message: u32) -> Checked {
        self.effects += 1;
        let identity = match plan.mode {
            Mode::Plain => return Ok(()),
            Mode::Dedup => self.record(plan, message),
            Mode::Transaction => return self.effect_in_database(plan, process, message),
        };
        let Some(identity) = identity else { return Ok(()) };
        let known = &mut self.known[identity];
        known.effects += 1;
        self.repeated += u64::from(known.effects > 1);
        let most = if plan.config.settle_first { 1 } else { 1 + known.explained };
        if known.effects > most {
            let text = format!("message {message} has effect number {}, {} of them explained", known.effects, most - 1);
            return broken("effects", text);
        }
        Ok(())
    }

    fn ended(&mut self, plan: &Plan, (process, message, epoch): (u32, u32, u32), how: Ended, effect: bool) {
        let own = &mut self.messages[message as usize];
        own.running.retain(|(by, _, of)| (*by, *of) != (process, epoch));
        if how == Ended::Succeeded || plan.config.settle_first {
            own.through.push(process);
        }
        own.handled |= how == Ended::Succeeded;
        if how == Ended::Fatal || (how == Ended::Failed && own.attempt >= plan.config.max_attempts) {
            own.given_up.push(process);
        }
        let Some(identity) = self.record(plan, message) else { return };
        let known = &mut self.known[identity];
        known.ended = Some(how);
        if effect && how != Ended::Succeeded {
            known.explained += 1;
            self.explained += 1;
        }
    }

    fn settled(&mut self, plan: &Plan, process: u32, message: u32, recorded: Recorded) -> Checked {
        if plan.is_transactional() {
            return self.settled_in_database(plan, process, message, recorded);
        }
        let one = &plan.messages[message as usize];
        let Some(identity) = one.identity else {
            return broken("states", format!("message {message} has no identity and is settled"));
        };
        let known = &mut self.known[identity as usize];
        match recorded {
            Recorded::Succeeded => {
                if known.effects == 0 && !plan.config.settle_first {
                    return broken("no false duplicate", format!("message {message} is succeeded without an effect"));
                }
                known.succeeded = one.body;
            }
            Recorded::Dead => {
                known.dead = one.body;
                let letters = self.policies[process as usize].on_dead == OnDead::Letter;
                if letters && !known.lettered.contains(&one.body) {
                    return broken(
                        "states",
                        format!("message {message} is settled as dead before its letter was written"),
                    );
                }
            }
            Recorded::Released if known.ran => {
                // Only what needs something that is down, or ends the consumer, is given back after it ran.
                let ended = known.ended;
                if ended != Some(Ended::Unavailable) && self.policies[process as usize].on_dead != OnDead::Stop {
                    return broken(
                        "states",
                        format!("message {message} ran ({ended:?}), and its attempt is given back"),
                    );
                }
                known.unburnt += 1;
            }
            Recorded::Failed | Recorded::Released | Recorded::Nothing => {}
        }
        Ok(())
    }

    /// The engine says how a message finished: it may say so only where that is how things are.
    fn finished(&self, plan: &Plan, process: u32, message: u32, ending: Ending) -> Checked {
        let own = &self.messages[message as usize];
        let is_true = match ending {
            // At most once: it counts as handled from its settle on.
            Ending::Handled => own.through.contains(&process) || plan.config.settle_first,
            Ending::SameId => plan.mode == Mode::Transaction || plan.twins(message).len() > 1,
            _ => true,
        };
        if !is_true {
            return broken(
                "no false duplicate",
                format!("message {message} is said to be {ending:?}, which is not so"),
            );
        }
        let handled_first = plan.config.settle_first && ending == Ending::Handled;
        if handled_first || self.is_through(plan, message, self.policies[process as usize]) {
            return Ok(());
        }
        broken("no false duplicate", format!("message {message} is called finished ({ending:?}), and is not"))
    }

    fn committed(&mut self, plan: &Plan, process: u32, partition: u32, offset: i64) -> Checked {
        let at = partition as usize;
        if self.owner[at] != process {
            return broken(
                "commits",
                format!("offset {offset} of partition {partition} is committed by a process that does not own it"),
            );
        }
        if offset < self.committed[at] {
            return broken(
                "commits",
                format!("partition {partition}: committed {offset} after {}", self.committed[at]),
            );
        }
        self.committed[at] = offset;
        let log = &plan.logs[at].messages;
        let policy = self.policies[process as usize];
        while let Some(message) = log.get(self.place[at]).copied()
            && plan.messages[message as usize].offset < offset
        {
            if !self.is_through(plan, message, policy) {
                let text = format!(
                    "partition {partition}: offset {offset} is committed, message {message} below it is not finished"
                );
                return broken("no loss", text);
            }
            self.place[at] += 1;
        }
        let last = self.place[at].checked_sub(1).map(|place| plan.messages[log[place] as usize].offset);
        if last.is_none_or(|last| offset > last + 1) {
            return broken("commits", format!("partition {partition}: offset {offset} lies beyond what was delivered"));
        }
        Ok(())
    }

    /// Identities, or messages of an inbox, that are neither succeeded nor dead.
    pub fn open(&self, plan: &Plan) -> Vec<usize> {
        if let Some(inbox) = &self.inbox {
            return inbox.open();
        }
        if plan.mode != Mode::Dedup {
            return Vec::new();
        }
        let is_open = |known: &Known| known.first != NOTHING && known.succeeded == NOTHING && known.dead == NOTHING;
        let gone = |identity: usize| {
            let same = |one: &super::plan::Message| one.identity == Some(identity as u32);
            plan.messages.iter().zip(&self.messages).any(|(one, own)| own.gone && same(one))
        };
        let open = self.known.iter().enumerate().filter(|(_, known)| is_open(known)).map(|(at, _)| at);
        open.filter(|at| !gone(*at)).collect()
    }
}
