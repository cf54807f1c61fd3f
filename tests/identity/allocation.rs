//! The way from a message to its key and fingerprint takes nothing from the heap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use hapax::identity::{Blake3, FingerprintBy, Identify, Part, Sha256, by, digest, header, position, record_key};
use hapax::message::{MessageView, Parts};

use crate::scope;

struct Counting;

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.with(|taken| taken.set(taken.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        TAKEN.with(|taken| taken.set(taken.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn taken(run: impl FnOnce()) -> usize {
    let before = TAKEN.with(Cell::get);
    run();
    TAKEN.with(Cell::get) - before
}

#[test]
fn short_identities_allocate_nothing() {
    let message = Parts::new("orders")
        .at(3, 42)
        .key("customer-7")
        .payload([b'x'; 200])
        .header("message-id", "0189f7ea-ae2c-7809-8aeb-b819cf5e9e7f");
    let scope = scope();
    let covers = FingerprintBy::payload();
    let cases: [(&str, &dyn Identify); 8] = [
        ("header", &header("message-id")),
        ("record key", &record_key()),
        ("position", &position()),
        ("digest", &digest(Sha256)),
        ("digest of parts", &digest(Blake3).of([Part::Payload, Part::Key])),
        ("or", &header("message-id").or(digest(Sha256))),
        ("and", &header("message-id").and(record_key())),
        ("closure", &by(|message: &dyn MessageView| message.offset())),
    ];
    for (name, identify) in cases {
        let count = taken(|| {
            let identity = identify.identity(black_box(&message)).unwrap();
            black_box((scope.key(&identity, message.topic()), scope.fingerprint(&covers, &message)));
        });
        assert_eq!(count, 0, "{name}");
    }
    // The counter counts: an identity over the inline size does allocate.
    let long = Parts::new("orders").key(vec![b'x'; 1000]);
    assert!(taken(|| drop(black_box(record_key().identity(&long)))) > 0);
}

#[cfg(feature = "json")]
#[test]
fn a_json_identity_copies_nothing_of_the_payload() {
    let find = |payload: String| {
        let message = Parts::new("orders").payload(payload);
        let identify = hapax::identity::json("/order/id");
        taken(|| drop(black_box(identify.identity(&message).unwrap())))
    };
    let id = r#""order":{"id":"0189f7ea-ae2c-7809-8aeb","total":1.5}"#;
    assert_eq!(find(format!("{{{id}}}")), 0);
    // Skipping what is nested takes one small stack for its brackets, however much there is.
    let items = vec![r#"{"sku":"a","n":[1,2]}"#; 1000].join(",");
    assert!(find(format!(r#"{{"items":[{items}],{id}}}"#)) <= 1);
}
