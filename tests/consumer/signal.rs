//! The signals that end a service, sent to this very process.

use std::time::Duration;

use hapax::shutdown_signal;
use tokio::process::Command;

use crate::support::{MockKafka, PATIENCE};
use crate::world::{Effects, Gate, Member, committed, consumer, noting, plain, records};

async fn send(signal: &str) {
    let status = Command::new("kill").args([signal, &std::process::id().to_string()]).status().await.unwrap();
    assert!(status.success());
}

/// One test for all: a signal goes to the whole process.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_sigterm_and_sigint_end_the_consumer_in_good_order() {
    for signal in ["-TERM", "-INT"] {
        let kafka = MockKafka::start(&[("orders", 1)]);
        kafka.produce(&records("orders", 1, 100)).await;
        let (effects, gate) = (Effects::default(), Gate::default());
        let token = shutdown_signal();
        let member = Member::start_until(consumer(kafka.consumer_config("g"), "orders"), token.clone(), {
            let (effects, gate) = (effects.clone(), gate.clone());
            plain(move |message: hapax::Message| {
                let (effects, gate) = (effects.clone(), gate.clone());
                async move {
                    if message.offset() == 30 {
                        gate.pass().await;
                    }
                    effects.note(&message);
                    Ok(())
                }
            })
        });
        gate.holds(1).await;
        assert!(!token.is_cancelled());
        send(signal).await;
        tokio::time::timeout(PATIENCE, token.cancelled()).await.expect("the signal is heard");
        // What runs is waited for.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(member.is_running());
        gate.open();
        let summary = member.end().await.expect("a clean end");
        assert_eq!((summary.handled, summary.left, summary.closed), (31, 69, true), "{signal}");
        assert_eq!(kafka.committed("g", "orders", 0).await, Some(31), "{signal}");
        let member = Member::start(consumer(kafka.consumer_config("g"), "orders"), noting(&effects));
        effects.reach(100).await;
        committed(&kafka, "g", "orders", &[100]).await;
        member.stop().await;
        assert!(effects.counts().values().all(|count| *count == 1), "{signal}");
    }
}

#[test]
fn without_a_runtime_or_its_driver_nothing_is_heard_and_nothing_breaks() {
    assert!(!shutdown_signal().is_cancelled());
    let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(!bare.block_on(async { shutdown_signal() }).is_cancelled());
}
