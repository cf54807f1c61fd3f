//! What is remembered of a sequenced source: one row for a partition or a producer, however many messages it has. Pure: no clock, no I/O.
//!
//! A *record* remembers one message. A *window* remembers all messages of one source that numbers them:
//!
//! - [`Window`]: a partition, whose messages have offsets. It stops redelivery.
//! - [`Sequences`]: a producer that numbers what it sends. It stops re-production, across partitions, sessions and restarts.
//!
//! Both are a mark below which everything is decided, and a compact set above or around it. Both are written as a [`Row`], and hold no more
//! than a stated number of bytes.
//!
//! ```
//! use hapax::window::{Known, Moves, Window};
//!
//! let mut window = Window::at(3);
//! for offset in [3, 4, 9] {
//!     assert_eq!(window.deliver(offset), Known::Unfinished { attempts: 0 });
//! }
//!
//! // A batch handled 3 and 9, and 4 failed. What would be written is known before anything changes.
//! let mut moves = Moves::new();
//! moves.finish(3);
//! moves.finish(9);
//! moves.fail(4, 1);
//! let row = window.after(&moves);
//! assert_eq!((row.next, window.next()), (4, 3));
//! window.apply(&moves); // its transaction committed
//!
//! // Another process goes on from there.
//! let mut window = Window::restore(row.next, &row.state)?;
//! assert_eq!(window.deliver(4), Known::Unfinished { attempts: 1 });
//! assert_eq!(window.deliver(9), Known::Finished);
//! window.finish(4);
//! assert_eq!(window.next(), 10);
//! # Ok::<(), hapax::window::Malformed>(())
//! ```
//!
//! # The bytes, version 1
//!
//! No bytes: nothing is known beyond the mark. Otherwise `01`, and numbers as LEB128. Of a [`Window`]: how many runs of finished offsets,
//! and of each the distance from the end of the one before (the first from 0) and its length less 1; how many offsets have failed, and of
//! each the distance from the one before, and the attempts. Of [`Sequences`]: `00` if no number was handled, or `01` or `02`, the highest
//! number, and how far below it the window reaches; under `01` runs of numbers that were *not* handled, as above but from the
//! lowest number on, under `02` a bit for each number, the lowest first; then the failed ones, as above.

mod encode;
mod position;
mod ranges;
mod sequence;

pub use position::{Known, Moves, Window};
pub use sequence::{Sequenced, Sequences};

/// What is written of a window.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Row {
    /// The mark.
    pub next: i64,
    /// What is known beyond it.
    pub state: Vec<u8>,
}

/// Bytes that no window was written as. Not retryable: the row was changed by something else, or is of a later release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A layout that this release does not know.
    #[error("the window's layout has version {0}, and this release reads version 1: it was written by a later release")]
    Version(u8),
    /// Fewer bytes than they say there are.
    #[error("the window's bytes are cut short")]
    Cut,
    /// More bytes than they say there are.
    #[error("the window has {0} bytes too many")]
    Left(usize),
    /// A number that cannot be.
    #[error("the window holds a number that cannot be")]
    Number,
    /// Parts that contradict each other.
    #[error("the window contradicts itself")]
    Order,
    /// A mark below 0.
    #[error("the window's mark is {0}, and offsets start at 0")]
    Negative(i64),
}
