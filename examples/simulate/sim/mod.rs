//! A seeded world around the engine that runs in production: brokers, a store, processes, and everything that goes wrong with them.
//!
//! One number decides everything. The world is a queue of timed events; whatever happens is written to a history, and a checker holds the
//! history to the invariants entry by entry. It is shared by `examples/simulate` and `tests/simulator`.
//!
//! ```text
//!   plan.rs      what the seed decides: messages, settings, weather, faults
//!   world.rs     the queue of events, beginnings and ends
//!   faults.rs    what strikes from outside
//!   process.rs   one process: an engine and what its driver keeps
//!   kafka.rs     its Kafka thread            group.rs   the coordinator
//!   drive.rs     its calls to the store      store.rs   the store, on the crate's pure record rules
//!   handlers.rs  its handlers             letters.rs  its dead letters
//!   transaction.rs  batches in transactions     windows.rs  the windows it holds
//!   database.rs  the database under them, on the crate's pure record rules and windows
//!   inbox/       the table that batches are accepted into, its workers and its operator
//!   history.rs   what happened               check.rs   the invariants
//!   flaws.rs     bugs to build in            run.rs     seeds, one or many
//! ```

pub mod check;
pub mod database;
pub mod drive;
pub mod faults;
pub mod flaws;
pub mod group;
pub mod handlers;
pub mod history;
pub mod inbox;
pub mod kafka;
pub mod letters;
pub mod plan;
pub mod process;
#[path = "../../shared/random.rs"]
#[allow(dead_code)]
pub mod random;
pub mod run;
pub mod store;
pub mod transaction;
pub mod windows;
pub mod world;
