//! What a wrapper is set to, for start-up reports.

use std::time::Duration;

use super::Once;
use super::builder::{Mode, OnConflict};
use crate::identity::OnMissing;
use crate::level::Level;
use crate::store::Retention;

/// What an [`Once`] is set to.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code, unreachable_pub))]
pub struct Described {
    pub(crate) group: String,
    pub(crate) handler: String,
    pub(crate) mode: Mode,
    /// `None` but under [`Mode::Deduplicated`].
    pub(crate) level: Option<Level>,
    pub(crate) store: &'static str,
    pub(crate) retention: Retention,
    pub(crate) identity: String,
    pub(crate) on_missing: OnMissing,
    pub(crate) on_conflict: OnConflict,
    pub(crate) lease: Duration,
    pub(crate) handler_timeout: Option<Duration>,
    /// What the store's check warned of, and what was accepted although it forbids a start.
    pub(crate) findings: Vec<String>,
}

impl Once {
    #[cfg_attr(not(feature = "kafka"), allow(dead_code))]
    pub(crate) fn described(&self) -> Described {
        let shared = &self.shared;
        let config = &shared.config;
        Described {
            group: shared.scope.group().to_owned(),
            handler: shared.scope.handler().to_owned(),
            mode: config.mode,
            level: self.level(),
            store: shared.store.describe().store,
            retention: shared.store.retention(),
            identity: format!("{:?}", config.identify),
            on_missing: config.on_missing,
            on_conflict: config.on_conflict,
            lease: config.lease,
            handler_timeout: config.handler_timeout,
            findings: shared.report.findings().iter().map(ToString::to_string).collect(),
        }
    }
}
