//! The pure record, explored by a model checker as its owners use it and held to its rules by property tests; and a window in the database of the
//! effects, explored in the same way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod explore;
mod flaws;
mod late;
mod properties;
mod protocol;
mod rules;
mod window;
mod world;
