//! A handler whose messages are remembered by the windows of their partitions, wherever those are kept.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::handling::{Drive, Few, Handed, Needs};
use super::memory::MemoryWindows;
use super::plain::Plain;
use super::windows::Windows;
use crate::wrapper::Described;
use crate::wrapper::drive::{Ended, Nobody, Records};

/// Where the windows of partitions are kept: [`MemoryWindows`] (level L0), or `StoredWindows` (level L1). Sealed.
pub trait KeepWindows: Keep {}

/// Public so that it can stand in bounds, and out of reach.
pub trait Keep: Clone + Send + Sync + 'static {
    /// Remembers the messages of one member.
    type Keeper: Records;

    /// For another member.
    fn keeper(&self) -> Arc<Self::Keeper>;

    /// What says where partitions go on.
    fn windows_of(keeper: &Arc<Self::Keeper>) -> Arc<dyn Windows>;

    /// Level and store, for the start-up report.
    fn describe(&self) -> String;

    /// What it is set to, if it outlives the process.
    fn described(&self) -> Option<Described>;
}

/// A handler whose messages are remembered by windows: what a consumer runs. Made by [`Plain::windows`].
pub struct InWindows<D, W: KeepWindows = MemoryWindows> {
    inner: Arc<D>,
    windows: W,
    keeper: Arc<W::Keeper>,
}

impl<D, W: KeepWindows + fmt::Debug> fmt::Debug for InWindows<D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InWindows").field("windows", &self.windows).finish_non_exhaustive()
    }
}

impl<D, W: KeepWindows> Clone for InWindows<D, W> {
    /// For another member.
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), windows: self.windows.clone(), keeper: self.windows.keeper() }
    }
}

impl<F> Plain<F> {
    /// Remembers which offsets are finished, in one window for each partition: in this process's memory ([`MemoryWindows`], level L0), or in one
    /// row of a database (`StoredWindows`, level L1).
    ///
    /// No message of a partition is handled again because it was delivered again: after a rebalance, a lost commit, or an
    /// offset that was set back, which the window overrules and the log names. What was produced again is new.
    ///
    /// In memory that holds while the process lives. A message in another member's hand is waited for,
    /// attempts are counted over all members that share `windows`, and what was given up stays so. After a restart of the process everything that
    /// Kafka delivers is new.
    ///
    /// ```no_run
    /// use hapax::consumer::{Consumer, MemoryWindows, Message, plain, shutdown_signal};
    /// use rdkafka::ClientConfig;
    ///
    /// # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut kafka = ClientConfig::new();
    /// kafka.set("bootstrap.servers", "localhost:9092").set("group.id", "counters");
    /// let windows = MemoryWindows::new();
    /// let handler = plain(async |message: Message| Ok::<_, String>(drop(message))).windows(&windows);
    /// Consumer::new(kafka).topics(["clicks"]).run(handler, shutdown_signal()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn windows<W: KeepWindows>(self, windows: &W) -> InWindows<Self, W> {
        InWindows { inner: Arc::new(self), windows: windows.clone(), keeper: windows.keeper() }
    }
}

impl<D: Drive<Records = Nobody>, W: KeepWindows> Drive for InWindows<D, W> {
    type Records = W::Keeper;

    fn records(&self) -> &W::Keeper {
        &self.keeper
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn describe(&self) -> String {
        self.windows.describe()
    }

    fn described(&self) -> Option<Described> {
        self.windows.described()
    }

    fn windows(&self) -> Option<Arc<dyn Windows>> {
        Some(W::windows_of(&self.keeper))
    }

    fn run(this: Arc<Self>, messages: Few<Handed>) -> impl Future<Output = Few<Ended>> + Send + 'static {
        D::run(Arc::clone(&this.inner), messages)
    }
}
