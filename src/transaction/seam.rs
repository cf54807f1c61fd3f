//! What the consumer drives.

use std::time::Duration;

use super::sealed::Sealed;
use crate::engine::Conflicts;
use crate::level::Level;
use crate::retry::Retry;
use crate::store::Retention;
use crate::store::sql::Dialect;
use crate::wrapper::{Described, Mode, OnConflict};

pub(crate) use super::bury::Buried;
pub(crate) use super::core::Core;
pub(crate) use super::outcome::{Item, Known, Outcome, Pinned, Prepared, Work};
pub(crate) use super::outside::Ended;
pub(crate) use super::trial::Rules;
pub(crate) use super::windows::{Held, Verdict};

impl<DB: Sealed> Core<DB> {
    /// How often and when failed messages are tried again, where the consumer was not told.
    pub(crate) const fn retry(&self) -> Retry {
        self.settings.retry
    }

    /// Messages in one transaction.
    pub(crate) const fn most(&self) -> usize {
        self.settings.most
    }

    /// What happens to conflicts. What is to be handled all the same is so without being asked about.
    pub(crate) const fn conflicts(&self) -> Conflicts {
        match self.settings.on_conflict {
            OnConflict::Skip => Conflicts::Skip,
            OnConflict::Stop | OnConflict::Handle => Conflicts::GiveUp,
        }
    }

    /// Whether a number too far below the highest of its source is passed.
    pub(crate) const fn skips_too_old(&self) -> bool {
        matches!(self.settings.on_too_old, OnConflict::Skip)
    }

    /// What it is set to.
    pub(crate) fn described(&self) -> Described {
        let settings = &self.settings;
        let keeps = match (self.keeps_records, self.window_by.is_some()) {
            (true, true) => "a window, and a record for each message",
            (true, false) => "a record for each message",
            (false, _) => "a window",
        };
        Described {
            group: settings.scope.group().to_owned(),
            handler: settings.scope.handler().to_owned(),
            mode: Mode::Deduplicated,
            level: Some(Level::L2),
            store: DB::Dialect::NAME,
            // Windows forget nothing.
            retention: match self.keeps_records {
                true => self.engine.retention(),
                false => Retention { succeeded: Duration::MAX, dead: Duration::MAX, unsettled: Duration::MAX },
            },
            identity: format!("{:?} ({keeps})", settings.identify),
            on_missing: settings.on_missing,
            on_conflict: settings.on_conflict,
            lease: Duration::ZERO,
            handler_timeout: settings.handler_timeout,
            findings: self.report.findings().iter().map(ToString::to_string).collect(),
        }
    }
}
