//! One record's life: states, moves and what each answers. Pure: no clock, no I/O.
//!
//! ```text
//!                  claim                     succeed
//!    (none) ──────────────▶ processing ─────────────────▶ succeeded     final
//!                            ▲    │ fail, release ▲
//!                   claim    │    ▼               │ success reported late
//!                            └─ failed            │
//!                                 │ attempts used up, or fatal
//!                                 └────────────────────▶ dead           final until requeued
//! ```
//!
//! Every function takes the record as a store read it, and the time on the store's clock, and answers
//! with an outcome and the record to write instead, if any. A store writes that only where
//! nothing changed meanwhile (see [`Record::stamp`]), and reads again otherwise.
//!
//! The rules, shown by the model checker in `tests/record`:
//!
//! - The fence grows with every claim by another owner, and never falls.
//! - Claiming is re-entrant: the owner of a claim that asks again gets the same claim.
//! - Attempts are counted by the claim, before the handler runs.
//! - Failing, releasing and extending are rights of the current token. Success is a fact: it is remembered
//!   whoever reports it, and flagged when it came late.
//! - Nothing that another message reports (one with another fingerprint) moves a record.
//! - Succeeded is never undone.

mod rules;
mod types;

pub use rules::{after, claim, extend, first_claim, millis, requeue, settle};
pub use types::{
    ClaimOutcome, Extend, ExtendOutcome, Fence, Grant, LONGEST, Millis, Origin, Owner, Record, RequeueOutcome, Seen,
    Settle, SettleOutcome, Sighting, Stamp, State, Step, Terms, Token, Verdict,
};
