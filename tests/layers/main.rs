//! The layers over a store: joined calls, the cache, the filter. Alone, stacked in every order, and over real stores.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod batched;
mod cached;
mod items;
mod lives;
mod prechecked;
mod probe;
mod stacks;
mod stores;
