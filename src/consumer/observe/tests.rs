//! What observers hear of a turn, and what a handler call is told as.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tracing::Span;

use super::Probe;
use super::sight::Sight;
use super::watch::{POST, SAMPLE};
use crate::consumer::handling::{Few, Handed};
use crate::consumer::message::{Filling, Message, Row};
use crate::consumer::summary::Tally;
use crate::engine::{self, Ending};
use crate::identity::Key;
use crate::message::Parts;
use crate::observe::{Observed, Observer, Process};
use crate::wrapper::drive::{Ended, Fault};
use crate::{Claim, ErrorClass};

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn on(&self, event: &Observed<'_>) {
        let text = match event {
            Observed::Finished { place, counts } => format!("{place} {} {}", counts.handled, counts.same_id),
            Observed::Ran(runs) => format!("ran {}", runs.len()),
            Observed::Sampled(snapshot) => format!("sampled {}", snapshot.parked),
            Observed::Circuit { what, open } => format!("{} {open}", what.name()),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(text);
    }
}

fn messages() -> Vec<Message> {
    let mut filling = Filling::default();
    for n in 0..6 {
        filling.push(&Parts::new("t").at(n % 2, i64::from(n)));
    }
    filling.seal().flat_map(Row::messages).collect()
}

fn handed(message: &Message, attempt: u32) -> Few<Handed> {
    let claim = Claim::bare(Key::from_bytes([7; 16]), attempt);
    Few::One(Handed { message: message.clone(), claim, row: None, own: None })
}

/// A handler call that ends so, at once.
fn run(probe: &Probe, message: &Message, end: impl FnOnce() -> Ended) {
    let running = probe.sight(&handed(message, 1)).at(async { Few::One(end()) });
    assert!(running.now_or_never().is_some());
}

fn state(parked: usize, store_down: bool) -> (engine::Snapshot, Tally) {
    (engine::Snapshot { parked, store_down, ..engine::Snapshot::default() }, Tally::default())
}

#[test]
fn a_turn_is_told_at_once_and_partition_by_partition() {
    let heard = Arc::new(Heard::default());
    let mut probe = Probe::default();
    probe.add(Arc::clone(&heard));
    let mut watch = probe.watch();
    assert!(watch.is_on());
    for message in messages() {
        run(&probe, &message, || Ended::Succeeded(None));
        watch.finished(&message, if message.offset() == 3 { Ending::SameId } else { Ending::Handled });
    }
    watch.late(2);
    let now = Instant::now();
    watch.tell(now, || state(1, true));
    let first = std::mem::take(&mut *heard.0.lock().unwrap());
    assert_eq!(first, ["ran 6", "t[0] 3 0", "t[1] 2 1", "Late(2)", "store true", "sampled 1"]);
    // Nothing is told twice; the state is looked at again when its time has come, and once more after the last change.
    watch.tell(now + Duration::from_millis(50), || unreachable!("too early"));
    assert!(heard.0.lock().unwrap().is_empty());
    assert_eq!(watch.wake_at(), Some(now + POST));
    watch.tell(now + POST, || state(0, false));
    assert_eq!(std::mem::take(&mut *heard.0.lock().unwrap()), ["store false"]);
    assert_eq!(watch.wake_at(), Some(now + SAMPLE));
    watch.tell(now + SAMPLE, || state(3, false));
    assert_eq!(std::mem::take(&mut *heard.0.lock().unwrap()), ["sampled 3"]);
    assert_eq!(watch.wake_at(), None, "nothing is owed: the pump may sleep");
}

#[test]
fn a_monitor_alone_gathers_nothing_and_sees_the_state() {
    let probe = Probe::default();
    let monitor = probe.monitor();
    let mut watch = probe.watch();
    assert!(!watch.is_on());
    for message in messages() {
        watch.finished(&message, Ending::Handled);
        run(&probe, &message, || Ended::Succeeded(None));
    }
    assert!(watch.finished.is_empty() && probe.runs.lock().unwrap().is_empty());
    watch.turn(|| state(4, true));
    assert_eq!((monitor.snapshot().parked, monitor.snapshot().store_down), (4, true));
}

#[test]
fn where_nobody_looks_nothing_is_looked_at() {
    let mut watch = Probe::default().watch();
    watch.turn(|| unreachable!("nobody looks"));
    assert_eq!(watch.wake_at(), None);
}

#[test]
fn the_first_observer_with_a_span_makes_it() {
    struct Silent;
    impl Observer for Silent {}
    struct Own;
    impl Observer for Own {
        fn span(&self, process: &Process<'_>) -> Option<Span> {
            assert_eq!((process.group, process.attempt, process.messages), ("g", 2, 1));
            Some(tracing::error_span!("own"))
        }
    }
    let mut probe = Probe::default();
    probe.add(Silent);
    probe.add(Own);
    probe.started("g", Some("h"));
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
    tracing::subscriber::with_default(subscriber, || {
        let Sight(seen) = probe.sight(&handed(&messages()[0], 2));
        assert_eq!(seen.expect("seen").span.metadata().map(|meta| meta.name()), Some("own"));
        let Sight(none) = Probe::default().sight(&handed(&messages()[0], 1));
        assert!(none.is_none(), "DEBUG is off");
    });
}

#[test]
fn however_a_call_ends_that_is_what_is_told() {
    #[derive(Default)]
    struct Ends(Mutex<Vec<&'static str>>);
    impl Observer for Ends {
        fn on(&self, event: &Observed<'_>) {
            if let Observed::Ran(runs) = event {
                self.0.lock().unwrap().extend(runs.iter().map(|run| run.outcome.name()));
            }
        }
    }
    let ends = Arc::new(Ends::default());
    let mut probe = Probe::default();
    probe.add(Arc::clone(&ends));
    let message = messages().remove(0);
    for (kind, class) in [
        ("error", ErrorClass::Retryable),
        ("error", ErrorClass::Fatal),
        ("error", ErrorClass::Unavailable),
        ("panic", ErrorClass::Retryable),
        ("timeout", ErrorClass::Retryable),
    ] {
        run(&probe, &message, || Ended::Failed(Box::new(Fault { class, ..*Fault::new(kind, "x") })));
    }
    drop(probe.sight(&handed(&message, 1)).at(std::future::pending()));
    let many = || Few::Many(vec![Ended::Succeeded(None), Ended::Failed(Fault::new("error", "x"))]);
    let two = Few::Many(handed(&message, 1).into_iter().chain(handed(&message, 1)).collect());
    assert!(probe.sight(&two).at(async { many() }).now_or_never().is_some());
    probe.watch().turn(|| state(0, false));
    let told = std::mem::take(&mut *ends.0.lock().unwrap());
    assert_eq!(told, ["failed", "fatal", "unavailable", "panicked", "timed_out", "aborted", "failed"]);
}
