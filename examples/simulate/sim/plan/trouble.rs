//! What goes wrong in a seed's world, how often and when.

use super::{Fault, MS, Plan, SECOND, Weather};
use crate::sim::random::Random;

pub(super) fn weather(r: &mut Random) -> Weather {
    let heavy = r.chance(3_000);
    let mut rate = |light: u32, much: u32| if r.chance(4_500) { if heavy { much } else { light } } else { 0 };
    Weather {
        request_lost: rate(200, 1_500),
        reply_lost: rate(200, 1_500),
        late: rate(100, 600),
        partial: rate(100, 600),
        slow: rate(200, 1_000),
        commit_fails: rate(1_000, 5_000),
        commit_reply_lost: rate(1_000, 3_000),
        letter_fails: rate(2_000, 5_000),
        letter_reply_lost: rate(2_000, 3_000),
        renewal_lost: rate(2_000, 5_000),
        handler_fails: rate(100, 800),
        fails_after_effect: rate(50, 300),
        handler_hangs: rate(20, 100),
        crash_at_step: rate(15, 60),
        committed_unknown: rate(3_000, 3_000),
        committed_lost: 0,
        aborts: 0,
    }
}

/// Logs begin later and later.
pub(super) fn retention(r: &mut Random, plan: &mut Plan) {
    for expires in [false, true] {
        if !r.chance(1_500) {
            continue;
        }
        for _ in 0..r.between(1, 4) {
            let (at, partition) = (r.below(plan.heal_at), r.index(plan.logs.len()));
            plan.faults.push((at, if expires { Fault::Expire(partition) } else { Fault::Retain(partition) }));
        }
    }
    plan.faults.sort_by_key(|(at, _)| *at);
}

pub(super) fn faults(r: &mut Random, plan: &mut Plan) {
    let end = plan.heal_at;
    let long = plan.lease.max(plan.session) + SECOND;
    let mut faults = Vec::new();
    for kind in 0..10_u32 {
        if !r.chance(3_500) {
            continue;
        }
        for _ in 0..r.between(1, 4) {
            // Early rather than late: that is when there is work.
            let at = r.below(end) * r.between(1, 4) / 4;
            let place = r.index(plan.places);
            let fault = match kind {
                0 => Fault::Crash(place),
                1 => Fault::Pause(place, r.between(SECOND / 2, long + 3 * SECOND)),
                2 => Fault::Stall(place, r.between(SECOND / 2, plan.max_poll + 3 * SECOND)),
                3 => Fault::Jump(place, r.between(MS, 20 * SECOND)),
                4 => Fault::StoreJump(r.between(MS, 2 * plan.lease)),
                5 => Fault::StoreDown(r.between(100 * MS, 8 * SECOND)),
                6 => Fault::DownstreamDown(r.between(100 * MS, 8 * SECOND)),
                7 => Fault::BrokerDown(r.between(100 * MS, 3 * SECOND)),
                8 if r.chance(5_000) => Fault::Leave(place),
                8 => Fault::Join(place),
                _ => Fault::Again(place),
            };
            faults.push((at, fault));
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    plan.faults = faults;
}
