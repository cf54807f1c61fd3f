//! Failures on purpose, the same ones for the same seed in every process.

/// How often what goes wrong, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injection {
    pub seed: u64,
    /// Attempts that fail.
    pub fail: f64,
    /// Attempts that panic.
    pub panic: f64,
    /// Messages that never succeed.
    pub fatal: f64,
}

/// What goes wrong with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Fails,
    Panics,
    NeverSucceeds,
}

impl Injection {
    /// What goes wrong with this attempt at this message, if anything.
    pub fn of(&self, id: &str, attempt: u32) -> Option<Wrong> {
        if self.is_fatal(id) {
            return Some(Wrong::NeverSucceeds);
        }
        let dice = self.dice(id, u64::from(attempt));
        if dice < self.panic {
            Some(Wrong::Panics)
        } else if dice < self.panic + self.fail {
            Some(Wrong::Fails)
        } else {
            None
        }
    }

    /// Whether this message never succeeds.
    pub fn is_fatal(&self, id: &str) -> bool {
        self.dice(id, 0) < self.fatal
    }

    /// A number from 0 to 100, the same for the same arguments.
    fn dice(&self, id: &str, attempt: u64) -> f64 {
        let mut hash = mix(self.seed ^ mix(attempt));
        for byte in id.bytes() {
            hash = mix(hash ^ u64::from(byte));
        }
        (hash >> 11) as f64 / (1_u64 << 53) as f64 * 100.0
    }
}

/// The finalizer of SplitMix64.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
