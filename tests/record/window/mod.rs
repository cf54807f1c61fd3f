//! A partition's window in the database of the effects, its fence, and owners that come and go: every order of steps and mishaps within a budget.
//!
//! The window is the crate's own. An owner raises the fence, reads the row, handles messages in transactions, moves the row in the same
//! transaction where the fence is still its own, and finds out what became of a commit whose reply was lost. Kafka gives the partition away while the
//! old owner goes on, unaware.

mod explore;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hapax::window::{Moves, Row, Window};
use stateright::{Model, Property};

/// Offsets are sparse.
const OFFSETS: [i64; 2] = [3, 7];
const OWNERS: usize = 2;
/// Whoever began it is gone.
const NOBODY: usize = usize::MAX;

/// A window as it is written.
type Stored = (i64, Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// As it is done.
    Right,
    FenceUnchecked,
    /// The row is moved under the fence held by then, rather than the one under which the batch began.
    FenceOfTheMoment,
    /// Two transactions of one owner move the row from the same window.
    NoGate,
    /// The row is moved at once, whether the transaction commits or not.
    MovedBefore,
    /// The row is moved once the transaction has committed.
    MovedAfter,
    /// The mark moves to the highest that is finished.
    PastUnfinished,
    /// A message that failed counts as finished.
    FailedIsFinished,
    /// Where the partition begins, Kafka's committed offset is taken instead of the row.
    RowIgnored,
    LostReplyCommitted,
    LostReplyRolledBack,
    /// Whoever is fenced off while the assignment stands leaves it at that.
    FencedForGood,
}

/// How often each mishap may happen in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Budget {
    /// The partition goes to the other owner, or again to the same.
    moves: u8,
    /// A former owner that does not know it yet raises the fence.
    zombies: u8,
    crashes: u8,
    /// A request or a reply is lost or late.
    losses: u8,
    failures: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Its handlers run.
    Handling,
    /// The row is moved, and locked.
    Moved,
    /// The commit was sent, and nothing was heard.
    Doubt,
}

/// What the server has of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Server {
    Open { sent: bool },
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Tx {
    owner: usize,
    assignment: u8,
    fence: u64,
    /// Messages handled, and failed, as bits.
    handles: u8,
    fails: u8,
    stage: Stage,
    server: Server,
    /// What it makes of the row.
    row: Option<Stored>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Owner {
    assigned: bool,
    assignment: u8,
    /// It waits for its raise.
    waits: bool,
    /// It was fenced off under this assignment.
    fenced: bool,
    /// The fence that is its own, and its window.
    held: Option<(u64, Stored)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    fence: u64,
    row: Stored,
    effects: [u8; OFFSETS.len()],
    kafka: Option<usize>,
    owners: [Owner; OWNERS],
    txs: Vec<Tx>,
    /// Raises on their way.
    wire: Vec<usize>,
    left: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Assign(usize),
    /// Hears that the partition is somebody else's.
    Told(usize),
    Ask(usize),
    Raise(usize),
    RaiseUnheard(usize),
    /// Waits no longer; the request is still on its way.
    GiveUp(usize),
    Begin {
        owner: usize,
        handles: u8,
        fails: u8,
    },
    Move(usize),
    Commit(usize),
    CommitUnheard(usize),
    CommitLate(usize),
    /// What is in doubt arrives, or its connection is found gone.
    Arrive(usize),
    Drop(usize),
    Verify(usize),
    Crash(usize),
}

/// What happened while exploring.
#[derive(Debug, Default)]
struct Events {
    fenced: AtomicU64,
    made: AtomicU64,
    not_made: AtomicU64,
    late_raises: AtomicU64,
    late_commits: AtomicU64,
    out_of_order: AtomicU64,
    raised_anew: AtomicU64,
}

fn count(event: &AtomicU64) {
    event.fetch_add(1, Ordering::Relaxed);
}

#[derive(Clone)]
struct Partition {
    habit: Habit,
    budget: Budget,
    events: Arc<Events>,
}

/// The window that was written so, with everything delivered.
fn window(stored: &Stored) -> Window {
    let mut window = Window::restore(stored.0, &stored.1).unwrap();
    for offset in OFFSETS {
        window.deliver(offset);
    }
    window
}

fn stored(row: Row) -> Stored {
    (row.next, row.state)
}

fn bits(mask: u8) -> impl Iterator<Item = (usize, i64)> {
    OFFSETS.into_iter().enumerate().filter(move |(at, _)| mask & (1 << at) != 0)
}

impl Tx {
    fn moves(&self, habit: Habit) -> Moves {
        let mut moves = Moves::new();
        bits(self.handles).for_each(|(_, offset)| moves.finish(offset));
        for (_, offset) in bits(self.fails) {
            if habit == Habit::FailedIsFinished {
                moves.finish(offset);
            } else {
                moves.fail(offset, 1);
            }
        }
        moves
    }

    fn locks(&self) -> bool {
        self.stage != Stage::Handling && matches!(self.server, Server::Open { .. })
    }
}

impl World {
    fn is_locked(&self) -> bool {
        self.txs.iter().any(Tx::locks)
    }

    fn is_done(&self) -> bool {
        self.effects.iter().all(|effects| *effects > 0)
    }

    /// Effects and row, together.
    fn commit(&mut self, at: usize, habit: Habit) {
        let tx = &mut self.txs[at];
        tx.server = Server::Over;
        bits(tx.handles).for_each(|(message, _)| self.effects[message] += 1);
        if let (Some(row), true) = (tx.row.clone(), habit != Habit::MovedAfter) {
            self.row = row;
        }
    }

    /// The owner knows that its transaction committed.
    fn applied(&mut self, at: usize, habit: Habit) {
        let tx = self.txs.remove(at);
        if habit == Habit::MovedAfter
            && self.fence == tx.fence
            && let Some(row) = tx.row.clone()
        {
            self.row = row;
        }
        let Some(owner) = self.owners.get_mut(tx.owner) else { return };
        if let Some((fence, own)) = &mut owner.held
            && *fence == tx.fence
        {
            let mut after = window(own);
            after.apply(&tx.moves(habit));
            *own = stored(after.row());
        }
    }
}

impl Partition {
    fn new(habit: Habit, budget: Budget) -> Self {
        Self { habit, budget, events: Arc::default() }
    }

    fn may_ask(&self, world: &World, number: usize) -> bool {
        let owner = &world.owners[number];
        let gives_up = self.habit == Habit::FencedForGood && owner.fenced;
        let may = world.kafka == Some(number) || world.left.zombies > 0;
        owner.assigned && owner.held.is_none() && !owner.waits && !gives_up && may
    }

    fn enabled(&self, world: &World, actions: &mut Vec<Action>) {
        let left = world.left;
        for (number, owner) in world.owners.iter().enumerate() {
            let moves = world.kafka.is_none() || left.moves > 0;
            if moves && !world.is_done() {
                actions.push(Action::Assign(number));
            }
            if owner.assigned && world.kafka != Some(number) {
                actions.push(Action::Told(number));
            }
            if self.may_ask(world, number) && !world.is_done() {
                actions.push(Action::Ask(number));
            }
            if owner.waits && left.losses > 0 {
                actions.push(Action::GiveUp(number));
            }
            if left.crashes > 0 && owner.assigned {
                actions.push(Action::Crash(number));
            }
            let Some((_, own)) = &owner.held else { continue };
            let own = window(own);
            let busy = world.txs.iter().filter(|tx| (tx.owner, tx.assignment) == (number, owner.assignment));
            let busy = busy.fold(0, |busy, tx| busy | tx.handles | tx.fails);
            let free = |mask: u8| mask & busy == 0 && bits(mask).all(|(_, offset)| !own.is_finished(offset));
            for handles in 0..1 << OFFSETS.len() {
                for fails in 0..1 << OFFSETS.len() {
                    let may_fail = fails == 0 || left.failures > 0;
                    if handles & fails == 0 && handles | fails != 0 && may_fail && free(handles | fails) {
                        actions.push(Action::Begin { owner: number, handles, fails });
                    }
                }
            }
        }
        let mut last = None;
        for from in world.wire.iter().copied().filter(|from| last.replace(*from) != Some(*from)) {
            if !world.is_locked() {
                actions.push(Action::Raise(from));
                if left.losses > 0 && world.owners[from].waits {
                    actions.push(Action::RaiseUnheard(from));
                }
            }
        }
        for (at, tx) in world.txs.iter().enumerate() {
            match (tx.stage, tx.server) {
                (Stage::Handling, _) => {
                    let mut others = world.txs.iter().filter(|other| other.owner == tx.owner);
                    let passes = self.habit == Habit::NoGate || others.all(|other| other.stage == Stage::Handling);
                    if passes && !world.is_locked() {
                        actions.push(Action::Move(at));
                    }
                }
                (Stage::Moved, _) => {
                    actions.push(Action::Commit(at));
                    if left.losses > 0 {
                        actions.push(Action::CommitUnheard(at));
                        actions.push(Action::CommitLate(at));
                    }
                }
                (Stage::Doubt, Server::Open { sent }) => {
                    actions.push(Action::Drop(at));
                    if sent {
                        actions.push(Action::Arrive(at));
                    }
                    let guesses = matches!(self.habit, Habit::LostReplyCommitted | Habit::LostReplyRolledBack);
                    if guesses && tx.owner != NOBODY {
                        actions.push(Action::Verify(at));
                    }
                }
                (Stage::Doubt, Server::Over) if !world.is_locked() => actions.push(Action::Verify(at)),
                (Stage::Doubt, Server::Over) => {}
            }
        }
    }

    fn step(&self, world: &World, action: Action) -> World {
        let mut world = world.clone();
        match action {
            Action::Assign(number) => {
                world.left.moves -= u8::from(world.kafka.is_some());
                world.kafka = Some(number);
                let owner = &mut world.owners[number];
                owner.assignment += 1;
                (owner.assigned, owner.waits, owner.fenced, owner.held) = (true, false, false, None);
            }
            Action::Told(number) => {
                let owner = &mut world.owners[number];
                (owner.assigned, owner.waits, owner.held) = (false, false, None);
            }
            Action::Ask(number) => {
                world.left.zombies -= u8::from(world.kafka != Some(number));
                if world.owners[number].fenced {
                    count(&self.events.raised_anew);
                }
                world.owners[number].waits = true;
                let place = world.wire.partition_point(|other| *other <= number);
                world.wire.insert(place, number);
            }
            Action::GiveUp(number) => {
                world.left.losses -= 1;
                world.owners[number].waits = false;
            }
            Action::Raise(from) | Action::RaiseUnheard(from) => {
                let place = world.wire.iter().position(|other| *other == from).unwrap();
                world.wire.remove(place);
                world.fence += 1;
                let row = if self.habit == Habit::RowIgnored { (0, Vec::new()) } else { world.row.clone() };
                let owner = &mut world.owners[from];
                if !std::mem::take(&mut owner.waits) {
                    count(&self.events.late_raises);
                } else if action == Action::Raise(from) {
                    owner.held = Some((world.fence, row));
                } else {
                    world.left.losses -= 1;
                }
            }
            Action::Begin { owner, handles, fails } => {
                world.left.failures -= u8::from(fails != 0);
                let own = &world.owners[owner];
                let fence = own.held.as_ref().unwrap().0;
                let tx = Tx {
                    owner,
                    assignment: own.assignment,
                    fence,
                    handles,
                    fails,
                    stage: Stage::Handling,
                    server: Server::Open { sent: false },
                    row: None,
                };
                world.txs.push(tx);
            }
            Action::Move(at) => self.move_row(&mut world, at),
            Action::Commit(at) => {
                world.commit(at, self.habit);
                world.applied(at, self.habit);
            }
            Action::CommitUnheard(at) => {
                world.left.losses -= 1;
                world.commit(at, self.habit);
                world.txs[at].stage = Stage::Doubt;
            }
            Action::CommitLate(at) => {
                world.left.losses -= 1;
                world.txs[at].stage = Stage::Doubt;
                world.txs[at].server = Server::Open { sent: true };
            }
            Action::Arrive(at) => {
                count(&self.events.late_commits);
                world.commit(at, self.habit);
                if world.txs[at].owner == NOBODY {
                    world.txs.remove(at);
                }
            }
            Action::Drop(at) => {
                world.txs[at].server = Server::Over;
                if world.txs[at].owner == NOBODY {
                    world.txs.remove(at);
                }
            }
            Action::Verify(at) => self.verify(&mut world, at),
            Action::Crash(number) => {
                world.left.crashes -= 1;
                let assignment = world.owners[number].assignment;
                world.owners[number] = Owner { assignment, ..Owner::default() };
                if world.kafka == Some(number) {
                    world.kafka = None;
                }
                world.txs.retain(|tx| tx.owner != number || tx.locks());
                for tx in world.txs.iter_mut().filter(|tx| tx.owner == number) {
                    tx.owner = NOBODY;
                    tx.stage = Stage::Doubt;
                }
            }
        }
        world
    }

    /// `UPDATE … WHERE fence = ?`.
    fn move_row(&self, world: &mut World, at: usize) {
        let tx = world.txs[at].clone();
        let owner = &mut world.owners[tx.owner];
        let moment = self.habit == Habit::FenceOfTheMoment;
        let held = owner.held.clone().filter(|(fence, _)| moment || *fence == tx.fence);
        // A window that is not its own any more is not moved: nor is one that was fenced off.
        let Some((fence, own)) = held else {
            world.txs.remove(at);
            return;
        };
        if fence != world.fence && self.habit != Habit::FenceUnchecked {
            count(&self.events.fenced);
            (owner.held, owner.fenced) = (None, true);
            world.txs.remove(at);
            return;
        }
        let own = window(&own);
        let mut row = stored(own.after(&tx.moves(self.habit)));
        if !row.1.is_empty() && tx.handles != 0 {
            count(&self.events.out_of_order);
        }
        if self.habit == Habit::PastUnfinished
            && let Some((_, highest)) = bits(tx.handles).last()
        {
            row = (row.0.max(highest + 1), Vec::new());
        }
        if self.habit == Habit::MovedBefore {
            world.row = row.clone();
        }
        world.txs[at].row = Some(row);
        world.txs[at].stage = Stage::Moved;
    }

    /// What became of a commit is read from the row, once that is not locked.
    fn verify(&self, world: &mut World, at: usize) {
        let tx = world.txs[at].clone();
        let row = window(&world.row);
        let there = match self.habit {
            Habit::LostReplyCommitted => true,
            Habit::LostReplyRolledBack => false,
            _ => row.after(&tx.moves(self.habit)) == row.row(),
        };
        count(if there { &self.events.made } else { &self.events.not_made });
        if matches!(tx.server, Server::Open { .. }) {
            // A guess: what was sent is still on its way.
            let mut orphan = tx.clone();
            orphan.owner = NOBODY;
            world.txs.push(orphan);
        }
        if there {
            world.applied(at, self.habit);
        } else {
            world.txs.remove(at);
        }
    }
}

impl Model for Partition {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            fence: 0,
            row: (0, Vec::new()),
            effects: [0; OFFSETS.len()],
            kafka: None,
            owners: Default::default(),
            txs: Vec::new(),
            wire: Vec::new(),
            left: self.budget,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.enabled(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let next = self.step(world, action);
        // What begins under one name or another is the same.
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TWICE, |_, world: &World| world.effects.iter().all(|effects| *effects <= 1)),
            Property::always(PASSED, |_, world: &World| {
                let row = window(&world.row);
                let handled = |(at, offset): (usize, i64)| world.effects[at] > 0 || !row.is_finished(offset);
                OFFSETS.into_iter().enumerate().all(handled)
            }),
            Property::always(SUPPRESSED, |_, world: &World| {
                let held = world.owners.iter().filter_map(|owner| owner.held.as_ref());
                held.map(|(_, own)| window(own)).all(|own| {
                    let handled = |(at, offset): (usize, i64)| world.effects[at] > 0 || !own.is_finished(offset);
                    OFFSETS.into_iter().enumerate().all(handled)
                })
            }),
            Property::always(LOST, |model: &Self, world: &World| {
                let mut actions = Vec::new();
                model.enabled(world, &mut actions);
                !actions.is_empty() || world.is_done()
            }),
            Property::always(FORGOTTEN, |model: &Self, world: &World| {
                // At rest, what happened is in the row: whoever comes next will know.
                let rests = world.txs.is_empty() && model.habit != Habit::MovedBefore;
                let row = window(&world.row);
                let known = |(at, offset): (usize, i64)| world.effects[at] == 0 || row.is_finished(offset);
                !rests || OFFSETS.into_iter().enumerate().all(known)
            }),
        ]
    }
}

const TWICE: &str = "no message has two effects";
const PASSED: &str = "the row says finished of nothing that has no effect";
const SUPPRESSED: &str = "no owner takes for finished what has no effect";
const LOST: &str = "where nothing more can happen, everything is handled";
const FORGOTTEN: &str = "what has an effect is finished in the row once its transaction is over";
