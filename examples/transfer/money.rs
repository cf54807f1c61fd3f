//! What is moved.

use hapax::Message;

use crate::random::Random;

/// As many branches does the bank have.
pub const PARTITIONS: i32 = 8;
pub const ACCOUNTS: i64 = 1_000;
/// What is on each account at the start, in cents.
pub const OPENING: i64 = 100_000;
/// The header with the transfer's id.
pub const ID: &str = "transfer-id";

/// So much goes from one account to another, in cents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub id: String,
    pub source: i64,
    pub target: i64,
    pub cents: i64,
}

impl Transfer {
    /// Between two accounts of one branch. The branch is the partition, so that nobody else moves money on its accounts meanwhile.
    pub fn draw(number: u64, random: &mut Random) -> (i32, Self) {
        let branch = i32::try_from(random.below(PARTITIONS.unsigned_abs().into())).unwrap_or(0);
        let size = ACCOUNTS / i64::from(PARTITIONS);
        let below = |random: &mut Random, bound: i64| i64::try_from(random.below(bound.unsigned_abs())).unwrap_or(0);
        let source = below(random, size);
        let target = (source + 1 + below(random, size - 1)) % size;
        let first = i64::from(branch) * size;
        let cents = 1 + below(random, 5_000);
        (branch, Self { id: format!("t{number:07}"), source: first + source, target: first + target, cents })
    }

    pub fn payload(&self) -> String {
        format!(r#"{{"from":{},"to":{},"cents":{}}}"#, self.source, self.target, self.cents)
    }

    pub fn read(message: &Message) -> Option<Self> {
        let id = std::str::from_utf8(message.header(ID)?).ok()?.to_owned();
        let body: serde_json::Value = serde_json::from_slice(message.payload()?).ok()?;
        let number = |name: &str| body.get(name)?.as_i64();
        Some(Self { id, source: number("from")?, target: number("to")?, cents: number("cents")? })
    }
}
