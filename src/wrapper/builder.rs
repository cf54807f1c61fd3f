//! How an [`Once`] is configured and started.

use std::fmt;
use std::time::Duration;

use super::Once;
use super::shared::Shared;
use crate::identity::{FingerprintBy, Identify, IdentityConfigError, OnMissing, Scope, position};
use crate::retry::Retry;
use crate::store::{DedupStore, Finding, Report, StoreError};

/// When a message counts as handled. The default is [`Deduplicated`](Self::Deduplicated).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Mode {
    /// Claimed before the handler runs, settled after it. Never lost. Handled once, except that an effect may repeat
    /// as the store's level says: **L1** with a durable SQL store, **L0** with Redis or memory; **L3** where the handler
    /// hands [`Claim::idempotency_key`](crate::Claim::idempotency_key) to a resource that honours it.
    #[default]
    Deduplicated,
    /// Settled as succeeded before the handler runs, one message at a time. No effect is repeated, as far as the store
    /// remembers (a durable SQL store always, Redis and memory as **L0** says); but whatever fails, panics, times out or
    /// crashes is lost, and below every level, since all of those lose nothing.
    AtMostOnce,
    /// Nothing is remembered and the store is never asked: every delivery is handled, and retried in place. Never
    /// lost; effects repeat with every redelivery and every re-produced copy. Below **L0**.
    AtLeastOnce,
}

/// What happens to a message whose identity was used by one that said something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnConflict {
    /// An error, so that somebody looks at it. The default.
    #[default]
    Stop,
    /// Counted, and skipped: it is never handled.
    Skip,
    /// Counted, and handled without being remembered: every copy of it is handled.
    Handle,
}

/// Configures an [`Once`]; made by [`Once::builder`].
#[derive(Debug)]
#[must_use = "nothing is built before `build`"]
pub struct OnceBuilder {
    pub(super) store: Box<dyn DedupStore>,
    scope: Option<Result<Scope, IdentityConfigError>>,
    create_schema: bool,
    accept_unsafe: bool,
    config: Settings,
}

/// What is configured, but for store and scope.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) identify: Box<dyn Identify>,
    pub(super) fingerprint: FingerprintBy,
    pub(super) on_missing: OnMissing,
    pub(super) on_conflict: OnConflict,
    pub(super) mode: Mode,
    pub(super) lease: Duration,
    pub(super) handler_timeout: Option<Duration>,
    pub(super) retry: Retry,
    pub(super) keep_results: Option<usize>,
    pub(super) wait_in_flight: Duration,
    pub(super) store_patience: Duration,
    pub(super) stop_batches: bool,
}

/// The shortest lease accepted: a lease has to outlast several calls to the store.
pub const MIN_LEASE: Duration = Duration::from_secs(1);

/// Setters that the builders of this crate have alike. `$at` names the field that has them; without one, the builder has.
macro_rules! setters {
    (
        $(in $at:ident;)?
        $(#[$scope:meta])* scope;
        $(#[$identify:meta])* identify;
        $(#[$missing:meta])* on_missing;
        $(#[$schema:meta])* without_schema_creation;
        $(#[$accept:meta])* accept_unsafe_settings;
    ) => {
        /// Sets where identities are unique: consumer group and handler. This or [`in_scope`](Self::in_scope) is needed.
        $(#[$scope])*
        pub fn scope(mut self, group: impl Into<String>, handler: impl Into<String>) -> Self {
            self.scope = Some(Scope::new(group, handler));
            self
        }

        /// Sets where identities are unique, with all that a [`Scope`] can say: tenant, secret, across topics.
        pub fn in_scope(mut self, scope: Scope) -> Self {
            self.scope = Some(Ok(scope));
            self
        }

        $(#[$identify])*
        pub fn identify(mut self, identify: impl Identify + 'static) -> Self {
            self $(.$at)? .identify = Box::new(identify);
            self
        }

        /// Sets what of a message tells a duplicate from a conflict. Default: the payload.
        pub fn fingerprint(mut self, by: FingerprintBy) -> Self {
            self $(.$at)? .fingerprint = by;
            self
        }

        /// Sets what happens to a message without a usable identity. Default: [`OnMissing::Reject`].
        $(#[$missing])*
        pub fn on_missing(mut self, policy: OnMissing) -> Self {
            self $(.$at)? .on_missing = policy;
            self
        }

        /// Sets what happens to a message whose identity was used by one that said something else. Default: [`OnConflict::Stop`].
        pub fn on_conflict(mut self, policy: OnConflict) -> Self {
            self $(.$at)? .on_conflict = policy;
            self
        }

        $(#[$schema])*
        pub const fn without_schema_creation(mut self) -> Self {
            self.create_schema = false;
            self
        }

        $(#[$accept])*
        pub const fn accept_unsafe_settings(mut self) -> Self {
            self.accept_unsafe = true;
            self
        }
    };
}
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use setters;

impl OnceBuilder {
    pub(super) fn new(store: Box<dyn DedupStore>) -> Self {
        Self {
            store,
            scope: None,
            create_schema: true,
            accept_unsafe: false,
            config: Settings {
                identify: Box::new(position()),
                fingerprint: FingerprintBy::default(),
                on_missing: OnMissing::default(),
                on_conflict: OnConflict::default(),
                mode: Mode::default(),
                lease: Duration::from_secs(60),
                handler_timeout: None,
                retry: Retry::default(),
                keep_results: None,
                wait_in_flight: Duration::from_secs(120),
                store_patience: Duration::from_secs(10),
                stop_batches: false,
            },
        }
    }

    setters! {
        in config;
        scope;
        /// Sets what makes two messages the same. Default: [`position`], which tells redelivery from new messages and
        /// takes every re-produced copy for a new one.
        identify;
        on_missing;
        /// Does not create what the store needs; it must be there. Default: what is missing is created.
        without_schema_creation;
        /// Starts even if the store's check finds settings that break its promises. They are logged, and readable from
        /// [`Once::report`]. Default: refuse.
        accept_unsafe_settings;
    }

    /// Sets when a message counts as handled, and so the guarantee. Default: [`Mode::Deduplicated`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.config.mode = mode;
        self
    }

    /// Sets how long a claim lasts unless it is renewed, which happens each third of it while the handler runs. Default:
    /// 60 s; at least [`MIN_LEASE`].
    ///
    /// A crashed member's messages wait this long. A member that is paused for longer may be overtaken.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// Sets how long a handler may take: then it is dropped, and the attempt has failed. Default: as long as it likes.
    ///
    /// Only a handler that awaits can be dropped; one that blocks its thread cannot.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.config.handler_timeout = Some(timeout);
        self
    }

    /// Sets how often and when a failed message is tried again. Default: [`Retry::default`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.config.retry = retry;
        self
    }

    /// Keeps what handlers return, up to `max_bytes` for each message, and gives it to duplicates. Default: not kept.
    ///
    /// Results stand in the store in the clear, for as long as it remembers the message.
    pub fn keep_results(mut self, max_bytes: usize) -> Self {
        self.config.keep_results = Some(max_bytes);
        self
    }

    /// Sets how long [`Once::handle`] and its like wait for a message that somebody else is handling. Default: 120 s.
    ///
    /// Keep it below `max.poll.interval.ms`, with what a handler takes.
    pub fn wait_in_flight(mut self, longest: Duration) -> Self {
        self.config.wait_in_flight = longest;
        self
    }

    /// Sets for how long a store that cannot be reached is asked again before [`Once::handle`] and its like give up.
    /// Default: 10 s. They fail closed: without the store's answer no handler runs.
    ///
    /// What runs under [`Once::each`] asks until it is stopped.
    pub fn store_patience(mut self, longest: Duration) -> Self {
        self.config.store_patience = longest;
        self
    }

    /// Makes [`Once::handle_batch`] keep the order: a message that cannot be finished ends the batch, and those after it are not
    /// begun. Default: the others go on.
    pub fn stop_batches_at_failure(mut self) -> Self {
        self.config.stop_batches = true;
        self
    }

    /// Checks the settings, prepares the store and looks for unsafe settings in it.
    ///
    /// Warnings are logged with `tracing` and readable from [`Once::report`]. Under [`Mode::AtLeastOnce`] the store is not asked.
    ///
    /// # Errors
    ///
    /// [`BuildError`]. Retryable only where the store could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: building again does what is left.
    pub async fn build(self) -> Result<Once, BuildError> {
        let scope = scoped(self.scope, &*self.config.identify, &self.config.fingerprint)?;
        self.config.validate()?;
        let mut report = Report::new();
        if self.config.mode != Mode::AtLeastOnce {
            if self.create_schema {
                self.store.ensure_schema().await?;
            }
            report = self.store.check().await?;
        }
        judge(&report, self.accept_unsafe)?;
        let shared = Shared::new(self.store, scope, self.config, report)?;
        tracing::debug!(
            store = shared.store.describe().store,
            level = %shared.store.describe().level,
            mode = ?shared.config.mode,
            owner = %shared.terms.owner,
            "built"
        );
        Ok(Once::of(shared))
    }
}

/// Logs what a check found, and refuses what forbids a start.
pub(crate) fn judge(report: &Report, accept: bool) -> Result<(), BuildError> {
    for finding in report.warnings() {
        tracing::warn!(setting = finding.setting, "{finding}");
    }
    let errors: Vec<Finding> = report.errors().cloned().collect();
    if accept {
        for finding in &errors {
            tracing::error!(setting = finding.setting, "accepted: {finding}");
        }
    } else if !errors.is_empty() {
        return Err(BuildError::Unsafe(Findings(errors)));
    }
    Ok(())
}

impl Settings {
    fn validate(&self) -> Result<(), BuildError> {
        if self.lease < MIN_LEASE {
            let cure = format!("Set at least {MIN_LEASE:?}.");
            return Err(BuildError::setting("lease", format!("{:?} is too short.", self.lease), cure));
        }
        some_time(self.handler_timeout)
    }
}

/// The scope, where that, identity and fingerprint are in order.
pub(crate) fn scoped(
    scope: Option<Result<Scope, IdentityConfigError>>,
    identify: &dyn Identify,
    fingerprint: &FingerprintBy,
) -> Result<Scope, BuildError> {
    let scope = scope.ok_or(BuildError::NoScope)?.map_err(BuildError::Identity)?;
    identify.validate().map_err(BuildError::Identity)?;
    fingerprint.validate().map_err(BuildError::Identity)?;
    Ok(scope)
}

/// Refuses a time in which no handler ends.
pub(crate) fn some_time(handler_timeout: Option<Duration>) -> Result<(), BuildError> {
    if handler_timeout == Some(Duration::ZERO) {
        let cure = "Set the time that a handler may take, or leave it out.";
        return Err(BuildError::setting("handler_timeout", "zero would drop every handler.", cure));
    }
    Ok(())
}

/// Why an [`Once`] could not be built. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Nothing says where identities are unique. Not retryable.
    #[error("no scope: say `.scope(group, handler)`, so that no other application's messages are taken for this one's")]
    NoScope,
    /// Scope, identity or fingerprint are misconfigured. Not retryable.
    #[error(transparent)]
    Identity(IdentityConfigError),
    /// A setting is out of bounds. Not retryable.
    #[error("{setting}: {problem} {cure}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do.
        cure: String,
    },
    /// The store has settings that break its promises. Not retryable.
    #[error("the store is not safe to use: {0}")]
    Unsafe(Findings),
    /// The store could not be prepared or checked. Retryable if [`StoreError::is_retryable`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gave no random number for the owner. Not retryable.
    #[error("no random number from the system: {0}")]
    Random(String),
}

impl BuildError {
    /// Whether building the same again may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::NoScope | Self::Identity(_) | Self::Setting { .. } | Self::Unsafe(_) | Self::Random(_) => false,
        }
    }

    pub(crate) fn setting(setting: &'static str, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Setting { setting, problem: problem.into(), cure: cure.into() }
    }
}

/// The findings that forbade a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, finding) in self.0.iter().enumerate() {
            write!(f, "{}{finding}", if at == 0 { "" } else { " " })?;
        }
        f.write_str(" Mend it, or say `.accept_unsafe_settings()`.")
    }
}
