//! Every order, one by one and all at once, with copies that were re-produced.

use hapax::identity::{Identify, header, position};
use hapax::{Message, Order};

use crate::base::{everywhere, id_of};
use crate::ground::Ground;
use crate::world::Member;

const PARTITIONS: i32 = 3;
const COUNT: i64 = 300;

everywhere! {
    async fn each_order_handles_each_once<DB>() {
        for order in [Order::Partition, Order::Key, Order::Unordered] {
            let ground = Ground::<DB>::new(PARTITIONS).await;
            ground.produce(PARTITIONS, 0..COUNT).await;
            // The same again, at other offsets.
            ground.produce(PARTITIONS, (0..COUNT).step_by(10)).await;
            let handling = ground.noting(position().and_then(header("id"))).await;
            let member = Member::start(ground.consumer().order(order), handling);
            ground.committed(&[110; PARTITIONS as usize]).await;
            let summary = member.stop().await;
            ground.judge(0..COUNT).await;
            assert_eq!((summary.handled, summary.same_id, summary.redelivered, summary.left), (300, 30, 0, 0), "{order:?}");
            assert_eq!(ground.marks().await, [110; PARTITIONS as usize]);
        }
    }
}

everywhere! {
    async fn a_batch_is_given_what_is_new<DB>() {
        let ground = Ground::<DB>::new(PARTITIONS).await;
        ground.produce(PARTITIONS, 0..COUNT).await;
        ground.produce(PARTITIONS, (0..COUNT).step_by(10)).await;
        let table = ground.tables.effects.clone();
        let batch = ground.once(position().and_then(header("id"))).await.batch(
            async move |messages: &[Message], tx: &mut DB::Connection| {
                assert!(!messages.is_empty());
                for message in messages {
                    DB::effect(tx, &table, id_of(message)).await?;
                }
                Ok::<_, sqlx::Error>(())
            },
        );
        let member = Member::start(ground.consumer(), batch);
        ground.committed(&[110; PARTITIONS as usize]).await;
        let summary = member.stop().await;
        ground.judge(0..COUNT).await;
        assert_eq!((summary.handled, summary.same_id, summary.left), (300, 30, 0));
    }
}
