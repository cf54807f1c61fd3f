//! Every SQL store does what the memory store does, on long random runs of batches of every size and mix.

use std::time::Duration;

use bytes::Bytes;
use hapax::identity::{Fingerprint, Key};
use hapax::record::{ClaimOutcome, Extend, Fence, Origin, Owner, Record, Settle, Sighting, State, Token, Verdict};
use hapax::store::{Ask, Batch, DedupStore, MemoryStore};

use crate::common::{HOUR, key, terms};
use crate::support;

/// A small generator with a printed seed: a failed run can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.roll(choices.len() as u64)).unwrap()].clone()
    }
}

/// Leaves out what depends on the moment.
fn timeless(outcome: ClaimOutcome) -> ClaimOutcome {
    match outcome {
        ClaimOutcome::Duplicate { result, mut first } => {
            first.at = 0;
            ClaimOutcome::Duplicate { result, first }
        }
        ClaimOutcome::Conflict { mut first } => {
            first.at = 0;
            ClaimOutcome::Conflict { first }
        }
        ClaimOutcome::InFlight { .. } => ClaimOutcome::InFlight { remaining: Duration::ZERO },
        ClaimOutcome::NotDue { .. } => ClaimOutcome::NotDue { remaining: Duration::ZERO },
        other => other,
    }
}

fn timeless_record(record: Option<Record>) -> Option<Record> {
    record.map(|record| Record { state: State::from_code(record.state.code(), 0).unwrap(), ..record })
}

fn sighting(dice: &mut Dice, set: u64, number: u64) -> Sighting {
    let topics: [&str; 4] = ["orders", "orders", "a-much-longer-topic.name", ""];
    let topic = topics[usize::try_from(number % 4).unwrap()];
    Sighting {
        key: key(set, number),
        // One in thirty differs: a conflict. NUL and high bytes, as digests have.
        fingerprint: Fingerprint::from_bytes(if dice.roll(30) == 0 { [0; 16] } else { [0xf0; 16] }),
        origin: if topic.is_empty() {
            Origin::default()
        } else {
            Origin { topic: topic.into(), partition: 7, offset: i64::try_from(number).unwrap() }
        },
    }
}

fn size(dice: &mut Dice) -> u64 {
    match dice.roll(10) {
        0..4 => 1 + dice.roll(3),
        4..8 => 1 + dice.roll(70),
        _ => 1 + dice.roll(600),
    }
}

/// Records that must stand at the end for the comparison to mean something.
const LEAST: usize = 300;

/// At least `rounds` rounds, and as many more as it takes for [`LEAST`] records.
pub async fn agree(store: &dyn DedupStore, rounds: usize) {
    let seed = support::random() | 1;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let set = dice.roll(u64::MAX);
    let model = MemoryStore::new();
    let mut held: Vec<(Sighting, Token, u32)> = Vec::new();
    let span = 900;
    for round in 0.. {
        if round >= rounds && model.len() >= LEAST {
            break;
        }
        assert!(round < rounds + 1_000, "seed {seed}: {} records after {round} rounds", model.len());
        let owner = u64::MAX - dice.roll(3);
        let count = size(&mut dice);
        match dice.roll(10) {
            0..5 => {
                // A lease of nothing has run out at the next look; an hour never does here.
                let terms = terms(owner, dice.of(&[Duration::ZERO, HOUR, HOUR]));
                let hint = dice.roll(3);
                let batch: Batch<Ask> = (0..count)
                    .map(|_| {
                        let number = dice.roll(span);
                        let read_first = hint == 1 || (hint == 2 && dice.roll(2) == 0);
                        Ask { sighting: sighting(&mut dice, set, number), read_first }
                    })
                    .collect();
                let wanted = model.claim(&terms, &batch).await.unwrap();
                let got = store.claim(&terms, &batch).await.unwrap();
                for ((ask, wanted), got) in batch.items().iter().zip(wanted).zip(got) {
                    assert_eq!(timeless(got.clone()), timeless(wanted), "seed {seed} round {round} claim {ask:?}");
                    if let ClaimOutcome::Acquired(grant) = got {
                        held.push((ask.sighting.clone(), grant.token, grant.attempt));
                    }
                }
            }
            5..8 => {
                let verdicts = [
                    Verdict::Succeeded { result: None },
                    Verdict::Succeeded { result: None },
                    Verdict::Succeeded { result: Some(Bytes::from_static(b"\x00 kept, with; marks' \xff")) },
                    Verdict::Succeeded { result: Some(Bytes::new()) },
                    Verdict::Failed { retry_in: Duration::ZERO, max_attempts: 2.try_into().unwrap() },
                    Verdict::Failed { retry_in: HOUR, max_attempts: 9.try_into().unwrap() },
                    Verdict::Released,
                    Verdict::Dead,
                ];
                let one = (dice.roll(2) == 0).then(|| dice.of(&verdicts));
                let batch: Batch<Settle> = (0..count)
                    .map(|_| {
                        let (mut sighting, mut token, mut attempt) = match held.len() {
                            0 => (sighting(&mut dice, set, 5), Token { owner: Owner::new(1), fence: Fence::new(9) }, 1),
                            len => held[usize::try_from(dice.roll(len as u64)).unwrap()].clone(),
                        };
                        match dice.roll(25) {
                            0 => token.fence = Fence::new(token.fence.get() + 1000),
                            1 => token.owner = Owner::new(77),
                            2 => {
                                let number = dice.roll(span * 2);
                                sighting = self::sighting(&mut dice, set, number);
                                // A claim that might be: the first one always begins the first attempt.
                                token.fence = Fence::FIRST;
                                attempt = 1;
                            }
                            _ => {}
                        }
                        let verdict = one.clone().unwrap_or_else(|| dice.of(&verdicts));
                        Settle { sighting, token, attempt, verdict }
                    })
                    .collect();
                let wanted = model.settle(&batch).await.unwrap();
                let got = store.settle(&batch).await.unwrap();
                for ((settle, wanted), got) in batch.items().iter().zip(wanted).zip(got) {
                    assert_eq!(got, wanted, "seed {seed} round {round} settle {settle:?}");
                }
                if dice.roll(3) == 0 {
                    held.clear();
                }
            }
            8 => {
                let batch: Batch<Extend> = (0..count)
                    .filter_map(|_| {
                        let len = held.len() as u64;
                        let (sighting, token, _) = held.get(usize::try_from(dice.roll(len.max(1))).unwrap())?;
                        let token = if dice.roll(20) == 0 { Token { fence: Fence::new(99), ..*token } } else { *token };
                        Some(Extend { key: sighting.key, token, lease: dice.of(&[Duration::ZERO, HOUR]) })
                    })
                    .collect();
                assert_eq!(
                    store.extend(&batch).await.unwrap(),
                    model.extend(&batch).await.unwrap(),
                    "seed {seed} round {round} extend"
                );
            }
            _ => {
                let keys: Batch<Key> = (0..count).map(|_| key(set, dice.roll(span))).collect();
                assert_eq!(
                    store.requeue(&keys).await.unwrap(),
                    model.requeue(&keys).await.unwrap(),
                    "seed {seed} round {round} requeue"
                );
            }
        }
    }
    let all: Batch<Key> = (0..span * 2).map(|number| key(set, number)).collect();
    let wanted = model.get(&all).await.unwrap();
    let got = store.get(&all).await.unwrap();
    assert_eq!(wanted.iter().flatten().count(), model.len(), "seed {seed}: every record is compared");
    for (wanted, got) in wanted.into_iter().zip(got) {
        assert_eq!(timeless_record(got), timeless_record(wanted), "seed {seed} get");
    }
}
