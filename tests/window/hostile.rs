//! Bytes that no window was written as: refused, or read as what they say, and never a panic or a large allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use hapax::window::{Malformed, Sequences, Window};
use proptest::prelude::*;

struct Counting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The largest allocation that this makes, in bytes.
fn largest<T>(run: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.with(|largest| largest.set(0));
    let result = run();
    (result, LARGEST.with(Cell::get))
}

/// What both windows make of these bytes; whatever is read can be written and read again.
fn read(next: i64, bytes: &[u8]) -> Result<(), TestCaseError> {
    // An item is two bytes at least, and 16 in memory; the bits of the longest span are 8 KiB.
    let most = 64 + 32 * bytes.len();
    let (window, took) = largest(|| Window::restore(next, bytes));
    prop_assert!(took <= most, "{took} of {most}");
    if let Ok(window) = window {
        let row = window.row();
        prop_assert_eq!(Window::restore(row.next, &row.state), Ok(window));
    }
    let (sequences, took) = largest(|| Sequences::restore(4_096, bytes));
    prop_assert!(took <= most + 1_024, "{took} of {most}");
    if let Ok(sequences) = sequences {
        prop_assert_eq!(Sequences::restore(4_096, &sequences.encode()), Ok(sequences));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn any_bytes(next in any::<i64>(), bytes in proptest::collection::vec(any::<u8>(), 0..64), version in any::<bool>()) {
        let mut bytes = bytes;
        if version && let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        read(next, &bytes)?;
    }

    #[test]
    fn bytes_with_a_fault(
        numbers in proptest::collection::btree_set(0_u64..3_000, 1..60),
        failed in proptest::collection::vec((0_u64..3_000, any::<u32>()), 0..10),
        fault in (any::<prop::sample::Index>(), any::<u8>()),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut window, mut sequences) = (Window::at(0), Sequences::new(4_096));
        (0..3_000).for_each(|offset| { window.deliver(offset); });
        for number in &numbers {
            window.finish(*number as i64);
            sequences.see(*number);
        }
        for (number, attempt) in failed {
            window.fail(number as i64, attempt);
            sequences.fail(number, attempt);
        }
        for bytes in [window.encode(), sequences.encode()] {
            if bytes.is_empty() {
                continue;
            }
            let mut faulty = bytes.clone();
            faulty[fault.0.index(bytes.len())] = fault.1;
            read(window.next(), &faulty)?;
            read(window.next(), &bytes[..cut.index(bytes.len())])?;
        }
        // Cut short or too long, they are never taken for whole.
        let bytes = window.encode();
        let cut = cut.index(bytes.len().max(1));
        if cut > 0 {
            prop_assert!(Window::restore(window.next(), &bytes[..cut]).is_err());
        }
        if !bytes.is_empty() {
            prop_assert_eq!(Window::restore(0, &[&bytes[..], &[0]].concat()), Err(Malformed::Left(1)));
        }
        let bytes = sequences.encode();
        prop_assert_eq!(Sequences::restore(4_096, &[&bytes[..], &[0, 0]].concat()), Err(Malformed::Left(2)));
    }
}

#[test]
fn a_number_of_items_alone_takes_no_memory() {
    let huge = [1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let (read, took) = largest(|| Window::restore(0, &huge));
    assert_eq!(read, Err(Malformed::Cut));
    assert!(took < 1_024, "{took}");
    let bits = [1, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(Sequences::restore(64, &bits), Err(Malformed::Number));
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(Window::restore(-1, &[]), Err(Malformed::Negative(-1)));
    assert_eq!(Window::restore(0, &[2, 0, 0]), Err(Malformed::Version(2)));
    assert_eq!(Window::restore(0, &[1, 1, 5, 0, 1, 5, 1]), Err(Malformed::Order), "finished and failed");
    assert_eq!(Window::restore(0, &[1, 0, 2, 5, 1, 0, 1]), Err(Malformed::Order), "failed twice");
    assert_eq!(Sequences::restore(64, &[1, 3]), Err(Malformed::Order), "no such kind");
    assert_eq!(Sequences::restore(64, &[1, 1, 5, 6, 0, 0]), Err(Malformed::Number), "reaches below 0");
    assert_eq!(Sequences::restore(64, &[1, 1, 5, 5, 1, 0, 5, 0]), Err(Malformed::Number), "the highest was handled");
    assert_eq!(Sequences::restore(64, &[1, 2, 5, 5, 0b0111_1111, 0]), Err(Malformed::Order), "bits above the highest");
}
