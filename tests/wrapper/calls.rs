//! Calls that are no Kafka messages.

use std::time::Duration;

use hapax::identity::Identity;
use hapax::{AsJson, CallError, Done, Failure, HandleError, Retry, Unkept};
use serde_json::json;

use crate::probe::{Effects, Probe, builder};

#[tokio::test(start_paused = true)]
async fn a_second_call_gets_the_first_answer() {
    let (store, effects) = (Probe::new(), Effects::default());
    let once = builder(&store).keep_results(1000).build().await.unwrap();
    let order = async |answer: &str| {
        once.call(Identity::text("order-7"), "two cups", async |_| {
            effects.add("order");
            Ok::<_, String>(AsJson(json!({ "receipt": answer })))
        })
        .await
        .unwrap()
    };
    assert_eq!(order("first").await.0, json!({ "receipt": "first" }));
    assert_eq!(order("second").await.0, json!({ "receipt": "first" }));
    assert_eq!(effects.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn try_call_tells_a_kept_answer_from_a_new_one() {
    let once = builder(&Probe::new()).keep_results(8).build().await.unwrap();
    let call = async || once.try_call(7_u64, [], async |_| Ok::<_, String>(1_u64)).await.unwrap();
    assert_eq!(call().await, Done::Handled(1));
    assert!(matches!(call().await, Done::Duplicate { value: Some(1), .. }));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_not_kept_is_an_error_of_its_own() {
    let (plain, keeping) = (builder(&Probe::new()), builder(&Probe::new()).keep_results(100));
    let (plain, keeping) = (plain.build().await.unwrap(), keeping.build().await.unwrap());
    for round in 0..2 {
        let one = plain.call("k", "v", async |_| Ok::<_, String>(5_u8)).await;
        let two = keeping.call("k", "v", async |_| Ok::<_, String>(Unkept(5))).await;
        if round == 0 {
            assert_eq!((one.unwrap(), two.unwrap()), (5, Unkept(5)));
        } else {
            assert!(matches!(one, Err(CallError::NotKept { .. })), "{one:?}");
            assert!(matches!(two, Err(CallError::NotKept { .. })), "{two:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_identity_with_another_payload_is_a_conflict() {
    let once = builder(&Probe::new()).keep_results(100).build().await.unwrap();
    once.call("k", "two cups", async |_| Ok::<_, String>(())).await.unwrap();
    let error = once.call("k", "three cups", async |_| Ok::<_, String>(())).await.unwrap_err();
    assert!(matches!(error, CallError::Unfinished(HandleError::Conflict { .. })), "{error:?}");
    assert!(error.to_string().starts_with("the call has the identity of the call"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_identity_is_refused() {
    let once = builder(&Probe::new()).build().await.unwrap();
    let error = once.call("", "v", async |_| Ok::<_, String>(())).await.unwrap_err();
    assert!(matches!(error, CallError::Unfinished(HandleError::Identity { .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_says_why_and_stays_so() {
    let retry = Retry::fixed(Duration::from_secs(1)).attempts(2);
    let once = builder(&Probe::new()).retry(retry).build().await.unwrap();
    let call = async || once.call("k", "v", async |_| Err::<(), _>("no funds")).await.unwrap_err();
    let error = call().await;
    assert_eq!(error.to_string(), "the call was given up after 2 attempts: no funds");
    assert!(matches!(error, CallError::Dead { attempts: 2, error: Some(Failure::Error("no funds")) }));
    assert_eq!(call().await.to_string(), "the call was given up after 2 attempts");
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_says_so() {
    let store = Probe::new();
    let one = builder(&store).build().await.unwrap();
    let two = builder(&store.other()).wait_in_flight(Duration::ZERO).build().await.unwrap();
    let holder = tokio::spawn(async move {
        one.call("k", "v", async |_| {
            std::future::pending::<()>().await;
            Ok::<_, String>(())
        })
        .await
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let error = two.call("k", "v", async |_| Ok::<_, String>(())).await.unwrap_err();
    assert!(matches!(error, CallError::InFlight { .. }), "{error:?}");
    holder.abort();
}
