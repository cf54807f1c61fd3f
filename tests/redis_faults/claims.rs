//! Claims that race, vanish, go stale, or meet what is not theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hapax::record::{ClaimOutcome, ExtendOutcome, Fence, SettleOutcome, State, Token, Verdict};
use hapax::store::{Ask, Batch, DedupStore, RedisStore, StoreErrorKind};
use redis::Value;

use crate::common::{
    LONG, Meddler, SHORT, acquire, claim, extend, failure, granted, holds, message, message_of, owner, owner_for,
    plain, prefixed, record, settle, success, with_prefix,
};
use crate::support::{PATIENCE, eventually, eventually_some, service, unique};

fn url() -> String {
    service("HAPAX_TEST_REDIS")
}

/// The key of a message, as the server knows it.
fn name(prefix: &str, message: &hapax::record::Sighting) -> Vec<u8> {
    [prefix.as_bytes(), message.key.as_bytes()].concat()
}

#[tokio::test]
async fn f14_the_clients_clock_decides_nothing() {
    let prefix = format!("{}:", unique("faults"));
    // Two members whose idea of the server's time is two hours apart.
    let skewed = async |hours: i64| {
        let meddler = Meddler::after(url(), move |answers| {
            // What TIME answers; a record's age is an array too, of bytes that are no text.
            if let [Value::Array(time)] = answers.as_mut_slice()
                && let Some(Value::BulkString(seconds)) = time.first_mut()
                && let Some(told) = std::str::from_utf8(seconds).ok().and_then(|told| told.parse::<i64>().ok())
            {
                *seconds = (told + hours * 3600).to_string().into_bytes();
            }
        });
        with_prefix(&prefix).with_connection(meddler.await).unwrap()
    };
    let (early, late) = (skewed(-1).await, skewed(1).await);

    // A live lease of the member in the past is not run out for the one in the future, nor the other way round.
    let lease = Duration::from_secs(600);
    let (a, b) = (owner_for(lease), owner_for(lease));
    for (number, (holder, other)) in [(&early, &late), (&late, &early)].into_iter().enumerate() {
        let held = message(number as u64);
        acquire(holder, &a, &held).await;
        match claim(other, &b, &held).await.unwrap() {
            ClaimOutcome::InFlight { remaining } => {
                assert!(remaining <= lease && remaining > lease / 2, "{remaining:?} of {lease:?}");
            }
            outcome => panic!("a live lease answers {outcome:?}"),
        }
        // And a lease that has run out has run out for both.
        let short = message(10 + number as u64);
        acquire(holder, &owner_for(SHORT), &short).await;
        let grant = eventually_some(PATIENCE, "a lease of a millisecond runs out", async || {
            match claim(other, &b, &short).await.unwrap() {
                ClaimOutcome::Acquired(grant) => Some(grant),
                _ => None,
            }
        });
        assert!(grant.await.took_over);
        // Extending, too, counts from the server's now.
        let token = granted(claim(holder, &a, &held).await.unwrap()).token;
        assert_eq!(extend(other, &held, token).await.unwrap(), ExtendOutcome::Held);
        match claim(other, &b, &held).await.unwrap() {
            ClaimOutcome::InFlight { remaining } => assert!(remaining <= LONG && remaining > LONG / 2, "{remaining:?}"),
            outcome => panic!("an extended lease answers {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn f14_the_time_a_key_has_left_is_its_clock() {
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&url()).await.unwrap();
    let mut server = plain(&url()).await;
    let held = message(1);
    acquire(&store, &owner(), &held).await;
    // An hour passes for the key, and none for any client: the same as if the server's clock had gone on.
    let left: i64 = redis::cmd("PTTL").arg(name(&prefix, &held)).query_async(&mut server).await.unwrap();
    let hour = 3_600_000;
    let set: i64 =
        redis::cmd("PEXPIRE").arg(name(&prefix, &held)).arg(left - hour).query_async(&mut server).await.unwrap();
    assert_eq!(set, 1);
    assert!(granted(claim(&store, &owner(), &held).await.unwrap()).took_over);
}

#[tokio::test]
async fn f14_a_key_that_was_made_to_live_for_ever_is_no_trap() {
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&url()).await.unwrap();
    let mut server = plain(&url()).await;
    let (held, short) = (message(1), message(2));
    let token = acquire(&store, &owner(), &held).await.token;
    acquire(&store, &owner_for(SHORT), &short).await;
    for message in [&held, &short] {
        let set: i64 = redis::cmd("PERSIST").arg(name(&prefix, message)).query_async(&mut server).await.unwrap();
        assert_eq!(set, 1);
    }
    assert!(matches!(claim(&store, &owner(), &held).await.unwrap(), ClaimOutcome::InFlight { .. }));
    let taker = owner();
    eventually(PATIENCE, "the short lease runs out all the same", async || {
        matches!(claim(&store, &taker, &short).await.unwrap(), ClaimOutcome::Acquired(_))
    })
    .await;
    assert_eq!(extend(&store, &held, token).await.unwrap(), ExtendOutcome::Held);
    for message in [&held, &short] {
        let left: i64 = redis::cmd("PTTL").arg(name(&prefix, message)).query_async(&mut server).await.unwrap();
        assert!(left > 0, "it has an end again");
    }
}

#[tokio::test]
async fn f29_keys_of_any_bytes_are_keys_of_their_own() {
    let store = prefixed().connect(&url()).await.unwrap();
    let mut keys = vec![
        [0; 16],
        [0xff; 16],
        *b"\r\n$3\r\nGET\r\n\0\0\0\0\0",
        *b"{a}{b}{}}{{}\0\0\0\0",
        *b"*?[a-z]*\\*\xc3\x28 \t  ",
    ];
    for at in 0..16 {
        let mut key = [b'a'; 16];
        key[at] = b'A';
        keys.push(key);
    }
    let terms = owner();
    let asks: Batch<Ask> = keys.iter().map(|key| Ask::from(message_of(*key))).collect();
    assert_eq!(asks.len(), keys.len());
    for outcome in store.claim(&terms, &asks).await.unwrap() {
        assert_eq!(granted(outcome).attempt, 1);
    }
    for key in keys {
        let message = message_of(key);
        let token = granted(claim(&store, &terms, &message).await.unwrap()).token;
        assert_eq!(settle(&store, &message, token, success()).await.unwrap(), SettleOutcome::Settled);
        assert!(matches!(claim(&store, &owner(), &message).await.unwrap(), ClaimOutcome::Duplicate { .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f30_real_connections_that_race_handle_each_message_once() {
    const MESSAGES: usize = 300;
    let prefix = format!("{}:", unique("faults"));
    let effects: Arc<Vec<AtomicU32>> = Arc::new((0..MESSAGES).map(|_| AtomicU32::new(0)).collect());
    let mut members = Vec::new();
    for member in 0..6 {
        let store = with_prefix(&prefix).connect(&url()).await.unwrap();
        let effects = effects.clone();
        members.push(tokio::spawn(async move {
            let terms = owner();
            // Some ask for all at once, some one by one, some read first.
            let asks: Vec<Ask> =
                (0..MESSAGES).map(|n| Ask { sighting: message(n as u64), read_first: member % 3 == 0 }).collect();
            let mut won = Vec::new();
            for chunk in asks.chunks(if member % 2 == 0 { MESSAGES } else { 1 }) {
                let batch: Batch<Ask> = chunk.iter().cloned().collect();
                for (ask, outcome) in batch.items().iter().zip(store.claim(&terms, &batch).await.unwrap()) {
                    match outcome {
                        ClaimOutcome::Acquired(grant) => won.push((ask.sighting.clone(), grant)),
                        ClaimOutcome::InFlight { .. } | ClaimOutcome::Duplicate { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            for (message, grant) in won {
                let number = u64::from_be_bytes(message.key.as_bytes()[8..].try_into().unwrap());
                effects[usize::try_from(number).unwrap()].fetch_add(1, Ordering::SeqCst);
                let settled = settle(&store, &message, grant.token, success()).await.unwrap();
                assert_eq!(settled, SettleOutcome::Settled);
            }
        }));
    }
    for member in members {
        member.await.unwrap();
    }
    let effects: Vec<u32> = effects.iter().map(|effects| effects.load(Ordering::SeqCst)).collect();
    assert_eq!(effects, vec![1; MESSAGES]);
}

#[tokio::test]
async fn f31_a_stale_owner_changes_nothing_but_by_success() {
    let store = prefixed().connect(&url()).await.unwrap();
    for (number, verdict) in [failure(), Verdict::Released, Verdict::Dead].into_iter().enumerate() {
        let message = message(number as u64);
        let stale = acquire(&store, &owner_for(SHORT), &message).await.token;
        let heir = owner();
        let taken = eventually_some(PATIENCE, "the lease runs out", async || {
            match claim(&store, &heir, &message).await.unwrap() {
                ClaimOutcome::Acquired(grant) => Some(grant),
                _ => None,
            }
        })
        .await;
        let before = record(&store, &message).await;
        assert_eq!(settle(&store, &message, stale, verdict).await.unwrap(), SettleOutcome::Refused);
        assert_eq!(extend(&store, &message, stale).await.unwrap(), ExtendOutcome::Lost);
        let guessed = Token { owner: stale.owner, fence: taken.token.fence };
        assert_eq!(settle(&store, &message, guessed, failure()).await.unwrap(), SettleOutcome::Refused);
        assert_eq!(record(&store, &message).await, before);

        // Its success is a fact, and is remembered as late; the heir learns it.
        assert_eq!(settle(&store, &message, stale, success()).await.unwrap(), SettleOutcome::Late);
        let after = record(&store, &message).await.unwrap();
        assert!(matches!(after.state, State::Succeeded { late: true, .. }), "{after:?}");
        assert_eq!(after.token(), taken.token, "under the last claim's token");
        assert_eq!(extend(&store, &message, taken.token).await.unwrap(), ExtendOutcome::Lost);
        assert_eq!(settle(&store, &message, taken.token, failure()).await.unwrap(), SettleOutcome::Refused);
        assert_eq!(settle(&store, &message, taken.token, success()).await.unwrap(), SettleOutcome::Late);
        assert_eq!(record(&store, &message).await.unwrap(), after);
    }
}

/// Claims a message that somebody else holds, and has its key removed right before the `nth` script of the claim.
async fn claim_while_it_vanishes(nth: usize, held_for: Duration) {
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&url()).await.unwrap();
    let message = message(1);
    acquire(&store, &owner_for(held_for), &message).await;
    if held_for == SHORT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let vanished = Arc::new(AtomicU32::new(0));
    let (seen, mut scripts, key) = (vanished.clone(), 0, name(&prefix, &message));
    let meddler = Meddler::before(url(), move |pipeline| {
        scripts += usize::from(holds(pipeline, "EVAL"));
        (scripts == nth && seen.fetch_add(1, Ordering::SeqCst) == 0).then(|| {
            let mut command = redis::cmd("DEL");
            command.arg(&key);
            vec![command]
        })
    });
    let other = with_prefix(&prefix).with_connection(meddler.await).unwrap();
    let taker = owner();
    let grant = acquire(&other, &taker, &message).await;
    assert!(vanished.load(Ordering::SeqCst) > 0, "the key was removed in between");
    // A new claim of a message that nothing is known of, and it stands in the store.
    assert_eq!((grant.token.fence, grant.attempt, grant.took_over), (Fence::FIRST, 1, false));
    assert_eq!(record(&store, &message).await.unwrap().token(), grant.token);
}

#[tokio::test]
async fn f32_a_key_that_vanishes_before_the_read_is_claimed_anew() {
    claim_while_it_vanishes(1, LONG).await;
}

#[tokio::test]
async fn f32_a_key_that_vanishes_before_the_takeover_is_claimed_anew() {
    claim_while_it_vanishes(2, SHORT).await;
}

#[tokio::test]
async fn f30_a_claim_right_before_the_first_write_is_not_overwritten() {
    let (here, there) = (format!("{}:", unique("faults")), format!("{}:", unique("faults")));
    let message = message(1);
    // Another owner's claim, made elsewhere, and copied in right after the reader has found nothing.
    let other = owner();
    acquire(&with_prefix(&there).connect(&url()).await.unwrap(), &other, &message).await;
    let (from, to) = (name(&there, &message), name(&here, &message));
    let meddler = Meddler::before(url(), move |pipeline| {
        holds(pipeline, "NX").then(|| {
            let mut command = redis::cmd("COPY");
            command.arg(&from).arg(&to);
            vec![command]
        })
    });
    let store = with_prefix(&here).with_connection(meddler.await).unwrap();
    let ask = Ask { sighting: message.clone(), read_first: true };
    let outcome = store.claim(&owner(), &Batch::one(ask)).await.unwrap().remove(0);
    assert!(matches!(outcome, ClaimOutcome::InFlight { .. }), "{outcome:?}");
    assert_eq!(record(&store, &message).await.unwrap().owner, other.owner);
}

#[tokio::test]
async fn f31_an_extension_right_before_the_takeover_is_not_missed() {
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&url()).await.unwrap();
    let message = message(1);
    let token = acquire(&store, &owner_for(SHORT), &message).await.token;
    tokio::time::sleep(Duration::from_millis(20)).await;
    // The taker has read that the lease ran out, and is about to swap: then the holder extends. Its extension is prepared
    // by recording what the store sends for it.
    let sent = Arc::new(std::sync::Mutex::new(None::<redis::Cmd>));
    let recorder = {
        let sent = sent.clone();
        Meddler::before(url(), move |pipeline| {
            if holds(pipeline, "EVALSHA") {
                *sent.lock().unwrap() = Some(parse(pipeline));
            }
            None
        })
    };
    let holder = with_prefix(&prefix).with_connection(recorder.await).unwrap();
    // On another message, so that this one's lease stays as it is; the key is then put right.
    let twin = crate::common::message(2);
    acquire(&store, &hapax::record::Terms { owner: token.owner, ..owner() }, &twin).await;
    assert_eq!(extend(&holder, &twin, token).await.unwrap(), ExtendOutcome::Held);
    let mut extension = redis::Cmd::new();
    for (place, argument) in sent.lock().unwrap().take().unwrap().args_iter().enumerate() {
        let redis::Arg::Simple(argument) = argument else { panic!("no cursor") };
        if place == 3 {
            extension.arg(name(&prefix, &message))
        } else {
            extension.arg(argument)
        };
    }
    let mut scripts = 0;
    let meddler = Meddler::before(url(), move |pipeline| {
        scripts += usize::from(holds(pipeline, "EVAL"));
        // The first reads the age, the second takes over.
        (scripts == 2).then(|| vec![extension.clone()])
    });
    let taker = with_prefix(&prefix).with_connection(meddler.await).unwrap();
    let outcome = claim(&taker, &owner(), &message).await.unwrap();
    assert!(matches!(outcome, ClaimOutcome::InFlight { .. }), "{outcome:?}");
    assert_eq!(record(&store, &message).await.unwrap().token(), token);
}

/// The only command of a packed pipeline.
fn parse(packed: &[u8]) -> redis::Cmd {
    let value = redis::parse_redis_value(packed).unwrap();
    let Value::Array(arguments) = value else { panic!("{value:?}") };
    let mut command = redis::Cmd::new();
    for argument in arguments {
        let Value::BulkString(argument) = argument else { panic!("{argument:?}") };
        command.arg(argument);
    }
    command
}

#[tokio::test]
async fn what_another_program_wrote_is_corrupt_and_stays() {
    let prefix = format!("{}:", unique("faults"));
    let store = with_prefix(&prefix).connect(&url()).await.unwrap();
    let mut server = plain(&url()).await;
    let (text, list, newer) = (message(1), message(2), message(3));
    let newer_value = [&[2_u8][..], &[0; 90]].concat();
    for (message, command, value) in
        [(&text, "SET", b"1".to_vec()), (&list, "LPUSH", b"1".to_vec()), (&newer, "SET", newer_value.clone())]
    {
        let _: Value =
            redis::cmd(command).arg(name(&prefix, message)).arg(value).query_async(&mut server).await.unwrap();
    }
    let terms = owner();
    let token = crate::common::first_token(&terms);
    for message in [&text, &list, &newer] {
        for read_first in [false, true] {
            // Alone, and among others: several are read in another way.
            let one = Ask { sighting: message.clone(), read_first };
            let two = Ask { sighting: crate::common::message(50), read_first };
            for batch in [Batch::one(one.clone()), [one.clone(), two].into_iter().collect()] {
                let error = store.claim(&terms, &batch).await.unwrap_err();
                assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
                assert!(!error.is_retryable());
            }
        }
        for verdict in [success(), failure()] {
            let error = settle(&store, message, token, verdict.clone()).await;
            // A failure looks for its own claim only, and finds none.
            let corrupt = matches!(&error, Err(error) if error.kind() == StoreErrorKind::Corrupt);
            assert!(corrupt, "{verdict:?} over what is not ours: {error:?}");
        }
    }
    let text: Vec<u8> = redis::cmd("GET").arg(name(&prefix, &text)).query_async(&mut server).await.unwrap();
    assert_eq!(text, b"1");
    let newer: Vec<u8> = redis::cmd("GET").arg(name(&prefix, &newer)).query_async(&mut server).await.unwrap();
    assert_eq!(newer, newer_value);
    let kind: String = redis::cmd("TYPE").arg(name(&prefix, &list)).query_async(&mut server).await.unwrap();
    assert_eq!(kind, "list");
}

#[tokio::test]
async fn prefixes_keep_applications_apart_and_are_validated() {
    let (a, b) = (prefixed().connect(&url()).await.unwrap(), prefixed().connect(&url()).await.unwrap());
    let message = message(1);
    // F45: the same message under two prefixes is two messages.
    acquire(&a, &owner(), &message).await;
    acquire(&b, &owner(), &message).await;
    let long = "x".repeat(65);
    for bad in ["", "with space", "{slot}", "a}", "line\n", "nul\0", "ü", &long] {
        let error = RedisStore::builder().prefix(bad).connect(&url()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{bad:?}");
    }
    assert!(prefixed().prefix("x".repeat(64)).connect(&url()).await.is_ok());
}

#[tokio::test]
async fn keys_leave_by_retention() {
    let prefix = format!("{}:", unique("faults"));
    let minute = Duration::from_secs(60);
    let retention = hapax::store::Retention::default().succeeded(minute * 10).dead(minute * 20).unsettled(minute * 30);
    let store = with_prefix(&prefix).retention(retention).connect(&url()).await.unwrap();
    let mut server = plain(&url()).await;
    let mut left = async |message: &hapax::record::Sighting| -> i64 {
        redis::cmd("PTTL").arg(name(&prefix, message)).query_async(&mut server).await.unwrap()
    };
    let about = |left: i64, want: Duration| {
        let want = i64::try_from(want.as_millis()).unwrap();
        assert!(left <= want && left > want - 50_000, "{left} ms left, wanted {want}");
    };
    let terms = owner();
    for (number, (verdict, want)) in [
        (None, LONG + minute * 30),
        (Some(success()), minute * 10),
        (Some(Verdict::Dead), minute * 20),
        (Some(failure()), LONG + minute * 30),
        (Some(Verdict::Released), minute * 30),
    ]
    .into_iter()
    .enumerate()
    {
        let message = message(number as u64);
        let token = acquire(&store, &terms, &message).await.token;
        if let Some(verdict) = verdict {
            settle(&store, &message, token, verdict).await.unwrap();
        }
        about(left(&message).await, want);
    }
    assert_eq!(store.purge(1000).await.unwrap().removed, 0, "Redis does it");
    // A late success that is put right, and one that is put back, have an end too.
    let message = message(90);
    let token = Token { owner: terms.owner, fence: Fence::FIRST };
    assert_eq!(settle(&store, &message, token, success()).await.unwrap(), SettleOutcome::Late);
    about(left(&message).await, minute * 10);
    assert_eq!(settle(&store, &message, token, success()).await.unwrap(), SettleOutcome::Late);
    about(left(&message).await, minute * 10);
}
