//! However many messages there were, what is kept stays small.

use std::collections::VecDeque;

use hapax::window::{Known, Sequenced, Sequences, Window};

const MESSAGES: i64 = if cfg!(debug_assertions) { 400_000 } else { 10_000_000 };

/// A number that looks like any other (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Four thousand in hand, and any of them ends next: as a consumer by key at its bound.
#[test]
fn a_partition_stays_one_small_row() {
    const HELD: usize = 4_096;
    let mut window = Window::at(0);
    let mut held = VecDeque::new();
    let (mut runs, mut bytes) = (0, 0);
    for offset in 0..MESSAGES {
        assert_eq!(window.deliver(offset), Known::Unfinished { attempts: 0 });
        held.push_back(offset);
        while held.len() >= HELD {
            let at = mixed(offset as u64) as usize % held.len();
            held.swap(0, at);
            let ended = held.pop_front().unwrap();
            assert!(window.finish(ended));
        }
        runs = runs.max(window.runs());
        if offset % 10_000 == 0 {
            bytes = bytes.max(window.encode().len());
        }
    }
    assert!(runs <= HELD && bytes <= 32_768, "{runs} runs, {bytes} bytes");
    assert!(bytes > 1_024, "this was to be out of order: {bytes} bytes");
    held.into_iter().for_each(|offset| assert!(window.finish(offset)));
    assert_eq!((window.next(), window.encode()), (MESSAGES, Vec::new()));
}

/// One message that waits for hours, while all behind it are handled.
#[test]
fn a_slow_message_costs_one_run() {
    let mut window = Window::at(0);
    window.deliver(0);
    for offset in 1..MESSAGES {
        window.deliver(offset);
        window.finish(offset);
    }
    assert_eq!((window.next(), window.runs()), (0, 1));
    assert!(window.encode().len() <= 10);
    window.finish(0);
    assert_eq!(window.next(), MESSAGES);
}

#[test]
fn a_source_stays_one_small_row() {
    let mut window = Sequences::default();
    let mut bytes = 0;
    for number in 0..MESSAGES as u64 {
        // Within the span, somewhat out of order, and one in a hundred missing.
        let number = number ^ 0x7f;
        if number % 100 != 0 {
            assert_eq!(window.see(number), Sequenced::New { attempts: 0 });
            assert_eq!(window.look(number), Sequenced::Seen);
        }
        if number % 10_000 == 0 {
            bytes = bytes.max(window.encode().len());
        }
    }
    assert!((40..=Sequences::longest(Sequences::SPAN, 0)).contains(&bytes), "{bytes}");
}
