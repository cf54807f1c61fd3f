//! The invariants of the inbox, by what was committed and what happened.

use std::collections::{HashMap, VecDeque};

use hapax::inbox::rules::State;

use super::{Checked, broken};
use crate::sim::history::Act;
use crate::sim::inbox::Settings;
use crate::sim::plan::{Kind, Plan};

/// A message that was accepted.
#[derive(Clone, Debug)]
struct One {
    state: State,
    run: u32,
    /// In this generation: attempts begun, effects, and those that a lease that ran out explains.
    attempts: u32,
    effects: u32,
    explained: u32,
    /// Lost because of others that ended their worker.
    blameless: u32,
    generation: u32,
    /// It was succeeded or dead once.
    through: bool,
    purged: bool,
}

/// Where a message belongs: its partition, and its key if there is an order of keys.
type Lane = (usize, Option<u16>);

#[derive(Debug)]
pub struct Inboxed {
    settings: Settings,
    messages: Vec<Option<One>>,
    /// Messages in the order of their offsets, from the first that was not through.
    lanes: HashMap<Lane, VecDeque<u32>>,
    /// The last offset and id of each lane.
    last: HashMap<Lane, (i64, i64)>,
    /// Which run has messages of a lane in its hands, and how many.
    held: HashMap<i64, (u32, u32)>,
    pub worked: u64,
}

impl Inboxed {
    pub fn new(plan: &Plan) -> Option<Self> {
        let settings = plan.inbox.clone()?;
        Some(Self {
            settings,
            messages: vec![None; plan.messages.len()],
            lanes: HashMap::new(),
            last: HashMap::new(),
            held: HashMap::new(),
            worked: 0,
        })
    }

    fn lane(plan: &Plan, message: u32) -> Option<Lane> {
        let one = &plan.messages[message as usize];
        // Messages without a key are accepted side by side, unless whole partitions are in order.
        let ordered = one.lane.is_some() || plan.config.order == hapax::engine::Order::Partition;
        ordered.then_some((one.partition, one.lane))
    }

    pub fn observe(&mut self, plan: &Plan, message: u32, run: u32, act: Act) -> Checked {
        if let Act::Accepted { id } = act {
            return self.accepted(plan, message, id);
        }
        let max = plan.config.max_attempts;
        let inside = self.settings.inside;
        let Some(mut one) = self.messages[message as usize].clone() else {
            return broken("no loss", format!("message {message} is worked and was never accepted"));
        };
        let holds = one.run == run && one.state == State::Processing;
        let before = one.clone();
        let is = |right: bool, what: &str| -> Checked {
            if right {
                Ok(())
            } else {
                broken("states", format!("message {message} {what} ({act:?} by run {run}, {before:?})"))
            }
        };
        match act {
            Act::Accepted { .. } => {}
            Act::Took { generation } => {
                is(matches!(one.state, State::Received | State::Failed) && !one.purged, "is taken")?;
                is(generation == one.generation, "is taken in another generation")?;
                is(one.attempts < max, "is taken once too often")?;
                self.took(plan, message, run)?;
                (one.state, one.run) = (State::Processing, run);
                one.attempts += 1;
            }
            Act::Worked => {
                self.worked += 1;
                one.effects += 1;
                if inside && !holds {
                    return broken(
                        "effects",
                        format!("message {message} has an effect by run {run}, which does not hold it"),
                    );
                }
                if one.effects > 1 + one.explained {
                    return broken(
                        "effects",
                        format!("message {message} has effect number {}, {} explained", one.effects, one.explained),
                    );
                }
                if holds && one.generation == 1 && self.settings.by_key {
                    self.in_order(plan, message, None)?;
                }
            }
            Act::Succeeded | Act::Late => {
                if one.effects == 0 {
                    return broken("no false duplicate", format!("message {message} is succeeded without an effect"));
                }
                is(holds || (act == Act::Late && !inside), "is ended by a run that does not hold it")?;
                is(!one.state.is_final() || one.state == State::Dead, "is succeeded twice")?;
                one.state = State::Succeeded;
            }
            Act::Failed => {
                is(holds, "is failed by a run that does not hold it")?;
                one.state = State::Failed;
                // What was done outside may be done again.
                one.explained += u32::from(!inside && one.effects > 0);
            }
            Act::Unavailable | Act::Released => {
                is(holds, "is given back by a run that does not hold it")?;
                one.attempts -= 1;
                one.state = if one.attempts == 0 { State::Received } else { State::Failed };
            }
            Act::Lost { dead, blameless } => {
                is(holds, "is lost by a run that does not hold it")?;
                one.explained += 1;
                if blameless && plan.messages[message as usize].kind != Kind::Killer {
                    one.blameless += 1;
                    is(one.blameless <= 1, "is lost again and again with another one that ends processes")?;
                }
                is(!dead || one.attempts >= max, "is dead before its attempts are used up")?;
                one.state = if dead { State::Dead } else { State::Failed };
            }
            Act::Dead => {
                is(holds, "is buried by a run that does not hold it")?;
                let used = one.attempts >= max || plan.messages[message as usize].kind == Kind::Fatal;
                is(used, "is dead before its attempts are used up")?;
                one.state = State::Dead;
            }
            Act::Skipped => {
                is(matches!(one.state, State::Received | State::Failed), "is skipped")?;
                one.state = State::Dead;
            }
            Act::Reopened => {
                is(one.state != State::Processing, "is opened anew in a run's hands")?;
                one.generation += 1;
                (one.state, one.attempts, one.effects, one.blameless) = (State::Received, 0, 0, 0);
                // Handlers outside may still run under a claim of the generation before.
                one.explained = if inside { 0 } else { one.explained };
            }
            Act::Purged => {
                if !one.state.is_final() {
                    return broken("no loss", format!("message {message} is purged, and is {}", one.state));
                }
                one.purged = true;
            }
        }
        one.through |= one.state.is_final();
        if one.state != State::Processing && one.run != 0 {
            let lane = plan.inbox_lane(message);
            if let Some((_, count)) = self.held.get_mut(&lane) {
                *count = count.saturating_sub(1);
            }
            one.run = 0;
        }
        self.messages[message as usize] = Some(one);
        Ok(())
    }

    fn accepted(&mut self, plan: &Plan, message: u32, id: i64) -> Checked {
        if self.messages[message as usize].is_some() {
            return broken("effects", format!("message {message} is accepted twice"));
        }
        self.messages[message as usize] = Some(One {
            state: State::Received,
            run: 0,
            attempts: 0,
            effects: 0,
            explained: 0,
            blameless: 0,
            generation: 1,
            through: false,
            purged: false,
        });
        let Some(lane) = Self::lane(plan, message) else { return Ok(()) };
        let offset = plan.messages[message as usize].offset;
        // Whole partitions in order: ids ascend along them, whoever accepts.
        let whole = plan.config.order == hapax::engine::Order::Partition;
        let along = if whole { (lane.0, None) } else { lane };
        let last = self.last.insert(along, (offset, id));
        if let Some((last_offset, last_id)) = last.filter(|last| (offset > last.0) != (id > last.1)) {
            return broken(
                "order",
                format!(
                    "message {message} at offset {offset} has id {id}, after offset {last_offset} with id {last_id}"
                ),
            );
        }
        self.lanes.entry(lane).or_default().push_back(message);
        Ok(())
    }

    /// Nothing of a lane is in two runs' hands, and nothing is taken past an earlier one that is not through.
    fn took(&mut self, plan: &Plan, message: u32, run: u32) -> Checked {
        if !self.settings.by_key {
            return Ok(());
        }
        let held = self.held.entry(plan.inbox_lane(message)).or_insert((run, 0));
        if held.1 > 0 && held.0 != run {
            let text = format!("run {run} takes message {message}, and run {} has another one of its key", held.0);
            return broken("order", text);
        }
        *held = (run, held.1 + 1);
        self.in_order(plan, message, Some(run))
    }

    /// All before a message in its lane are through, or in the same run (when it is taken), or have had their effect (when it has its own).
    fn in_order(&mut self, plan: &Plan, message: u32, run: Option<u32>) -> Checked {
        let generation = self.messages[message as usize].as_ref().map_or(1, |one| one.generation);
        let Some(lane) = Self::lane(plan, message).filter(|_| generation == 1) else { return Ok(()) };
        let Some(lane) = self.lanes.get_mut(&lane) else { return Ok(()) };
        let messages = &self.messages;
        let through = |message: &u32| messages[*message as usize].as_ref().is_none_or(|one| one.through);
        while lane.front().is_some_and(|first| *first != message && through(first)) {
            lane.pop_front();
        }
        for first in lane.iter().take_while(|first| **first != message) {
            let passes = messages[*first as usize].as_ref().is_none_or(|one| {
                one.through || run.is_some_and(|run| one.run == run) || (run.is_none() && one.effects > 0)
            });
            if !passes {
                let what = if run.is_some() { "is taken" } else { "has its effect" };
                return broken(
                    "order",
                    format!("message {message} {what} before {first}, which lies before it in its lane"),
                );
            }
        }
        Ok(())
    }

    /// Messages that are neither succeeded nor dead.
    pub fn open(&self) -> Vec<usize> {
        let is_open = |one: &Option<One>| one.as_ref().is_some_and(|one| !one.state.is_final());
        self.messages.iter().enumerate().filter(|(_, one)| is_open(one)).map(|(at, _)| at).collect()
    }
}
