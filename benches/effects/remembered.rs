//! Records among many others: the table's size must not be felt.

use crate::database::{Base, Place};
use crate::direct::{Kept, Way, Worker, work};
use crate::figures::{Bar, Failure, Figures, Side};

/// Parts in which a table is filled: each begins with a byte of its own, so that all of it is in order.
const PARTS: usize = 256;

/// A table that holds so many records.
async fn filled<B: Base>(records: usize) -> Result<(Place<B>, Worker<B>), Failure> {
    let place = Place::<B>::new().await?;
    let worker = Worker::new(&place.pool, Way::Together(Kept::Records)).await?;
    let mut conn = place.pool.acquire().await?;
    for part in 0..=u8::MAX {
        B::remember(&mut conn, part, (records / PARTS).max(1)).await?;
    }
    drop(conn);
    Ok((place, worker))
}

pub async fn measure<B: Base>(figures: &mut Figures) -> Result<(), Failure> {
    let name = format!("{}_remembered", B::WORD);
    let (messages, most) = (figures.args.number("messages"), figures.args.number("remembered"));
    if figures.args.list || !figures.wants(&name) {
        return figures.measure(&name, Bar::None, async |_| Err("not wanted".into())).await;
    }
    let (many, few) = (filled::<B>(most).await?, filled::<B>(most / 20).await?);
    let side = async |side| match side {
        Side::Ours => work(&many.0, &many.1, messages).await,
        Side::Bare => work(&few.0, &few.1, messages).await,
    };
    let measured = figures.measure(&name, Bar::Ratio(0.7), side).await;
    println!("#   {most} records against {}", most / 20);
    for (place, worker) in [many, few] {
        drop(worker);
        place.close().await?;
    }
    measured
}
