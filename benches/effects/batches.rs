//! Messages in batches: new ones for every side of every round.

use hapax::message::Parts;

use crate::data::{BATCH, sightings};
use crate::topics::PAYLOAD;

/// Messages of one partition, from offset 0 on, each with an id of its own.
pub fn fresh(messages: usize) -> Vec<Vec<Parts>> {
    let payload = vec![7_u8; PAYLOAD];
    let message = |(offset, id): (i64, String)| {
        Parts::new("orders").at(0, offset).payload(payload.clone()).header("message-id", id)
    };
    let ids = sightings(messages.next_multiple_of(BATCH)).into_iter().map(|sighting| sighting.key.to_string());
    let mut all = (0..).zip(ids).map(message).peekable();
    let mut batches = Vec::new();
    while all.peek().is_some() {
        batches.push(all.by_ref().take(BATCH).collect());
    }
    batches
}
