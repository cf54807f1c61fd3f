//! The tables: made, brought up to date, refused.

use crate::base::everywhere;
use crate::world::World;

everywhere! {
async fn one_scope_has_one_inbox<DB>() {
    let world = World::<DB>::new().await;
    world.inbox().await;
    world.inbox().await;
    world.builder().scope("tests", "another").build().await.unwrap();
    assert_eq!(world.count("_handlers", "inbox IN (1, 2)").await, 2);
    assert_eq!(world.count("_handlers", "1 = 1").await, 2);
}
}
