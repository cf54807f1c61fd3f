//! What happened, in order. Appended to, never changed: facts of the world, not what an engine says of itself.

use std::fmt;

use hapax::engine::Ending;

use super::plan::{Fault, Micros};

/// How a handler ended, as the world knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Succeeded,
    Failed,
    Fatal,
    Unavailable,
    /// Dropped where it waited.
    Aborted,
}

/// What became of a message of the inbox: committed, or done outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Accepted {
        id: i64,
    },
    Took {
        generation: u32,
    },
    /// Its effect.
    Worked,
    Succeeded,
    /// Succeeded, after its run was taken over.
    Late,
    Failed,
    /// What its handler needs was down.
    Unavailable,
    Released,
    /// Its run's lease ran out; `blameless`: since a message of that run ended the worker.
    Lost {
        dead: bool,
        blameless: bool,
    },
    Dead,
    /// By the operator, as what follows.
    Skipped,
    Reopened,
    Purged,
}

/// What a store recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    Succeeded,
    Failed,
    Released,
    Dead,
    /// Nothing: the claim had been taken over, or it was so already.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A process began, under this owner, in this place.
    Started {
        place: u32,
    },
    Crashed,
    /// It ended in good order.
    Left,
    Fault(Fault),
    Healed,
    /// The coordinator gave it a partition, or took it back.
    Granted {
        partition: u32,
    },
    Ungranted {
        partition: u32,
    },
    /// It heard of its partition.
    Assigned {
        partition: u32,
        epoch: u32,
    },
    /// Its assignment is over from here on; `lost`: before it could do anything about it.
    Over {
        epoch: u32,
        lost: bool,
    },
    Delivered {
        message: u32,
        epoch: u32,
    },
    /// The store granted a claim; `again`: the owner held it.
    Claimed {
        message: u32,
        attempt: u32,
        took_over: bool,
        again: bool,
    },
    /// The store has the message as dead, its attempts being used up.
    FoundDead {
        message: u32,
    },
    /// A handler call began, the process now running so many.
    Called {
        call: u32,
        running: u32,
    },
    /// A handler began with a message, in that call.
    Began {
        message: u32,
        epoch: u32,
        call: u32,
    },
    Effect {
        message: u32,
        epoch: u32,
    },
    /// Its handler did not begin, since its lease had run out.
    NotBegun {
        message: u32,
    },
    Ended {
        message: u32,
        epoch: u32,
        how: Ended,
        effect: bool,
    },
    /// A store call for a message took effect.
    Settled {
        message: u32,
        recorded: Recorded,
    },
    /// A dead letter was appended.
    Lettered {
        message: u32,
    },
    /// The engine says that it is done with a message.
    Finished {
        message: u32,
        ending: Ending,
    },
    /// The engine asked for a commit.
    Asked {
        epoch: u32,
        offset: i64,
    },
    /// The broker recorded a commit; refused it.
    Committed {
        partition: u32,
        offset: i64,
    },
    Refused {
        partition: u32,
        offset: i64,
    },
    /// A partition's log begins there from now on.
    Begins {
        partition: u32,
        offset: i64,
    },
    /// A committed offset was set back.
    SetBack {
        partition: u32,
        offset: i64,
    },
    /// The fence of a partition's window was raised by its new owner.
    Raised {
        partition: u32,
        epoch: u32,
        fence: u64,
        next: i64,
    },
    /// A window moved.
    Moved {
        partition: u32,
        next: i64,
    },
    /// Something became of a message of the inbox, by a run or by an operator (0).
    Inbox {
        message: u32,
        run: u32,
        act: Act,
    },
    /// A run whose lease is over was taken over; `open`: a transaction of its worker had it locked.
    Swept {
        run: u32,
        open: bool,
    },
    /// The member found that it was removed from the group.
    Fenced,
    Note(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub at: Micros,
    pub process: u32,
    pub what: What,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.3} ms  p{:<3} {:?}", self.at as f64 / 1_000.0, self.process, self.what)
    }
}

/// Something that must never happen did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}
