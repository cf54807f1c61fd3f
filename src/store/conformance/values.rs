//! Values that stores are known to bend: empty, long, binary, extreme, alike.

use std::time::Duration;

use bytes::Bytes;

use super::asks::{
    acquire, acquire_all, claim, claim_all, failed, granted, known, settle, settle_all, settled, succeeded,
    succeeded_with,
};
use super::ground::{Check, Ground, LONG, SHORT, attempts, ensure, same};
use crate::identity::{Fingerprint, Key};
use crate::record::{ClaimOutcome, Origin, Owner, SettleOutcome, Sighting, Terms, Verdict};

pub(super) async fn kept_results_come_back(ground: Ground) -> Check {
    let every_byte: Vec<u8> = (0..=255).collect();
    let results: [Bytes; 7] = [
        Bytes::new(),
        Bytes::from_static(&[0]),
        Bytes::from_static(b"plain words"),
        Bytes::from_static(b"'; -- \" \\ \0 \r\n $1 {} %s"),
        Bytes::from_static(&[0xff, 0xfe, 0x80, 0xc3, 0x28]),
        Bytes::from(every_byte),
        (0..65_536_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect(),
    ];
    let messages = ground.messages(results.len());
    let held = acquire_all(&*ground.store, &ground.terms(), &messages).await?;
    let settles = held.iter().zip(&results).map(|(held, result)| held.settle(succeeded_with(result.clone())));
    settle_all(&*ground.store, settles.collect()).await?;
    for store in ground.handles() {
        let outcomes = claim_all(&**store, &ground.terms(), &messages).await?;
        for ((outcome, want), message) in outcomes.iter().zip(&results).zip(&messages) {
            let ClaimOutcome::Duplicate { result: Some(got), .. } = outcome else {
                return Err(format!("a message with a kept result of {} bytes answers {outcome:?}", want.len()));
            };
            ensure(got == want, || format!("a kept result of {} bytes came back as {} others", want.len(), got.len()))?;
            let read = known(&**store, message).await?.result;
            ensure(read.as_ref() == Some(want), || format!("a kept result of {} bytes is read otherwise", want.len()))?;
        }
    }
    Ok(())
}

pub(super) async fn no_result_is_not_an_empty_result(ground: Ground) -> Check {
    let messages = ground.messages(2);
    let held = acquire_all(&*ground.store, &ground.terms(), &messages).await?;
    settle_all(&*ground.store, vec![held[0].settle(succeeded()), held[1].settle(succeeded_with(""))]).await?;
    for (message, want) in messages.iter().zip([None, Some(Bytes::new())]) {
        same("the result read", &known(&*ground.store, message).await?.result, &want)?;
        match claim(&*ground.store, &ground.terms(), message).await? {
            ClaimOutcome::Duplicate { result, .. } => same("the result given to a duplicate", &result, &want)?,
            other => return Err(format!("a succeeded message answers {other:?}")),
        }
    }
    Ok(())
}

pub(super) async fn a_late_result_comes_back(ground: Ground) -> Check {
    let store = &*ground.store;
    let messages = ground.messages(2);
    let held = acquire_all(store, &Terms { lease: SHORT, ..ground.terms() }, &messages).await?;
    ground.ran_out(store).await?;
    acquire_all(store, &ground.terms(), &messages).await?;
    let settles = vec![held[0].settle(succeeded_with(&b"late\0result"[..])), held[1].settle(succeeded())];
    same("two late successes", &settle_all(store, settles).await?, &vec![SettleOutcome::Late; 2])?;
    same("the late result", &known(store, &messages[0]).await?.result, &Some(Bytes::from_static(b"late\0result")))?;
    same("no late result", &known(store, &messages[1]).await?.result, &None)
}

pub(super) async fn origins_come_back(ground: Ground) -> Check {
    let long = "t".repeat(Origin::MAX_TOPIC);
    let origins = [
        Origin::default(),
        Origin { topic: "t".into(), partition: 0, offset: 0 },
        Origin { topic: long.as_str().into(), partition: i32::MAX, offset: i64::MAX },
        Origin { topic: "o'rders\" \\ %s $1".into(), partition: 1, offset: i64::from(u32::MAX) },
        Origin { topic: "заказы-订单-é".into(), partition: 12, offset: 1 << 53 },
        Origin { topic: "below".into(), partition: -1, offset: -1 },
        Origin { topic: "lowest".into(), partition: i32::MIN, offset: i64::MIN },
    ];
    let messages: Vec<Sighting> =
        origins.iter().map(|origin| Sighting { origin: origin.clone(), ..ground.message() }).collect();
    let held = acquire_all(&*ground.store, &ground.terms(), &messages).await?;
    for message in &messages {
        same("the origin of a held message", &known(&*ground.store, message).await?.origin, &message.origin)?;
    }
    settle_all(&*ground.store, held.iter().map(|held| held.settle(succeeded())).collect()).await?;
    let outcomes = claim_all(&*ground.other, &ground.terms(), &messages).await?;
    for (outcome, origin) in outcomes.iter().zip(&origins) {
        match outcome {
            ClaimOutcome::Duplicate { first, .. } => same("the origin given to a duplicate", &first.origin, origin)?,
            other => return Err(format!("a succeeded message answers {other:?}")),
        }
    }
    Ok(())
}

/// Claim, refusal to another, retry, success, duplicate: each message apart from the others.
async fn live_apart(ground: &Ground, what: &str, messages: &[Sighting]) -> Check {
    let store = &*ground.store;
    let terms = ground.terms();
    for message in messages {
        let got = claim(store, &terms, message).await?;
        let grant = granted(&got).map_err(|error| format!("{what} {}: {error}", message.key))?;
        same(&format!("the attempt of {what} {}", message.key), &grant.attempt, &1)?;
    }
    // Settled one by one, so that a store that confuses two of them shows it.
    for (place, message) in messages.iter().enumerate() {
        let held = acquire(store, &terms, message).await.map_err(|error| format!("{what} {}: {error}", message.key))?;
        settled(store, &held, failed(Duration::ZERO)).await?;
        let again = acquire(store, &terms, message).await?;
        settled(store, &again, succeeded_with(place.to_be_bytes().to_vec())).await?;
    }
    for (place, outcome) in claim_all(store, &ground.terms(), messages).await?.iter().enumerate() {
        let right = matches!(outcome, ClaimOutcome::Duplicate { result: Some(result), .. }
            if result[..] == place.to_be_bytes());
        ensure(right, || format!("{what} {} answers {outcome:?}, not its own result", messages[place].key))?;
    }
    Ok(())
}

pub(super) async fn keys_of_all_zeros_and_all_ones_work(ground: Ground) -> Check {
    let mut keys = vec![[0; 16], [0xff; 16], [0; 16], [0xff; 16], [0; 16], [0xff; 16]];
    keys[2][0] = 0x80;
    keys[3][0] = 0x7f;
    keys[4][15] = 1;
    keys[5][15] = 0xfe;
    let messages: Vec<Sighting> =
        keys.into_iter().map(|key| Sighting { key: Key::from_bytes(key), ..ground.message() }).collect();
    live_apart(&ground, "key", &messages).await
}

pub(super) async fn keys_that_look_alike_are_distinct(ground: Ground) -> Check {
    let mut keys: Vec<[u8; 16]> = [
        b"hapax key a    ",
        b"hapax key A    ",
        b"hapax key a   \0",
        b"hapax key a  \0\0",
        b"hapax key \0 a  ",
        b"hapax key \0 b  ",
        b"hapax key '    ",
        b"hapax key \"    ",
        b"hapax key \\    ",
        b"hapax key \n    ",
        b"hapax key \xe9    ",
        b"hapax key e    ",
        b"hapax key %    ",
        b"hapax key {a}  ",
        b"hapax key }    ",
        b"hapax key :x:y ",
        b"hapax key :x y:",
    ]
    .iter()
    .map(|text| {
        let mut key = [b' '; 16];
        key[..15].copy_from_slice(&text[..]);
        key
    })
    .collect();
    let base = *ground.message().key.as_bytes();
    keys.push(base);
    for bit in 0..128 {
        let mut key = base;
        key[bit / 8] ^= 1 << (bit % 8);
        if bit % 8 == 0 || bit % 8 == 7 {
            keys.push(key);
        }
    }
    let messages: Vec<Sighting> =
        keys.into_iter().map(|key| Sighting { key: Key::from_bytes(key), ..ground.message() }).collect();
    live_apart(&ground, "key", &messages).await
}

pub(super) async fn fingerprints_are_compared_whole(ground: Ground) -> Check {
    let base = *b"Fingerprint  e\0 ";
    let mut alike: Vec<[u8; 16]> = [
        *b"fingerprint  e\0 ",
        *b"Fingerprint  e\0\0",
        *b"Fingerprint  e \0",
        *b"Fingerprint  e  ",
        [0; 16],
        [0xff; 16],
    ]
    .into();
    for byte in 0..16 {
        let mut one = base;
        one[byte] ^= 0x80;
        alike.push(one);
    }
    for own in [base, [0; 16], [0xff; 16]] {
        let message = Sighting { fingerprint: Fingerprint::from_bytes(own), ..ground.message() };
        let held = acquire(&*ground.store, &ground.terms(), &message).await?;
        for settled_yet in [false, true] {
            if settled_yet {
                settled(&*ground.store, &held, succeeded()).await?;
            }
            for other in alike.iter().filter(|other| **other != own) {
                let liar = Sighting { fingerprint: Fingerprint::from_bytes(*other), ..message.clone() };
                let got = claim(&*ground.store, &ground.terms(), &liar).await?;
                ensure(matches!(got, ClaimOutcome::Conflict { .. }), || {
                    format!("fingerprint {} against {} answers {got:?}", liar.fingerprint, message.fingerprint)
                })?;
            }
        }
        let got = claim(&*ground.store, &ground.terms(), &message).await?;
        ensure(matches!(got, ClaimOutcome::Duplicate { .. }), || format!("an equal fingerprint answers {got:?}"))?;
    }
    Ok(())
}

pub(super) async fn owners_of_every_size_are_distinct(ground: Ground) -> Check {
    let numbers = [0, 1, u64::from(u32::MAX), 1 << 53, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX];
    for number in numbers {
        let message = ground.message();
        let terms = Terms { owner: Owner::new(number), ..ground.terms() };
        let held = acquire(&*ground.store, &terms, &message).await?;
        same("the owner read", &known(&*ground.store, &message).await?.owner, &terms.owner)?;
        for other in numbers.iter().filter(|other| **other != number) {
            let stranger = Terms { owner: Owner::new(*other), ..terms };
            let got = claim(&*ground.store, &stranger, &message).await?;
            ensure(matches!(got, ClaimOutcome::InFlight { .. }), || {
                format!("owner {other} is given {got:?} for a message that owner {number} holds")
            })?;
            let mut guess = held.clone();
            guess.token.owner = stranger.owner;
            let got = settle(&*ground.store, &guess, Verdict::Released).await?;
            same(&format!("owner {other} releasing for owner {number}"), &got, &SettleOutcome::Refused)?;
        }
        settled(&*ground.store, &held, succeeded()).await?;
    }
    Ok(())
}

pub(super) async fn any_number_of_attempts_may_be_allowed(ground: Ground) -> Check {
    let message = ground.message();
    let terms = Terms { max_attempts: attempts(u32::MAX), ..ground.terms() };
    let mut held = acquire(&*ground.store, &terms, &message).await?;
    for retry_in in [Duration::ZERO, LONG] {
        let verdict = Verdict::Failed { retry_in, max_attempts: attempts(u32::MAX) };
        same("a failure of ever so many", &settle(&*ground.store, &held, verdict).await?, &SettleOutcome::Settled)?;
        if retry_in.is_zero() {
            held = acquire(&*ground.store, &terms, &message).await?;
        }
    }
    let got = claim(&*ground.store, &terms, &message).await?;
    ensure(matches!(got, ClaimOutcome::NotDue { .. }), || format!("it answers {got:?}"))
}
