//! Threads of our own, for what may not move between threads: handlers that borrow a transaction, whose futures cannot be shown to be `Send`.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tracing::{error, warn};

/// Threads that poll handlers, at most. Each polls any number of them side by side.
const THREADS: usize = 4;

/// A batch, from where it is awaited on.
type Local = Pin<Box<dyn Future<Output = ()>>>;
/// Makes a batch's future where it is to be polled.
type Job = Box<dyn FnOnce() -> Local + Send>;

/// Threads that poll what may not move between threads, from the first call on. They end with the last of what they poll, once nobody can
/// give them more.
#[derive(Debug)]
pub(crate) struct Threads {
    most: usize,
    workers: OnceLock<Vec<Worker>>,
}

impl Default for Threads {
    fn default() -> Self {
        Self::few(THREADS)
    }
}

#[derive(Debug)]
struct Worker {
    jobs: mpsc::UnboundedSender<Job>,
    /// Batches that it has in hand.
    load: Arc<AtomicUsize>,
}

impl Threads {
    /// So many at most, and no more than there are processors.
    pub(crate) const fn few(most: usize) -> Self {
        Self { most, workers: OnceLock::new() }
    }

    fn start(most: usize) -> Vec<Worker> {
        let runtime = Handle::current();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(most);
        (0..threads).filter_map(|_| Worker::start(runtime.clone())).collect()
    }

    /// Polls on the thread that has the least to do. What nobody waits for any more is dropped where it waits. To be called within the runtime
    /// that it is to belong to.
    pub(crate) fn run<T, Fut>(&self, make: impl FnOnce() -> Fut + Send + 'static) -> oneshot::Receiver<T>
    where
        T: Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (mut answer, answered) = oneshot::channel();
        let job = move || {
            let running = async move {
                let value = tokio::select! {
                    biased;
                    () = answer.closed() => return,
                    value = make() => value,
                };
                let _ = answer.send(value);
            };
            Box::pin(running) as Local
        };
        self.give(Box::new(job));
        answered
    }

    /// The threads; none if none could be started: then it is tried again the next time.
    fn workers(&self) -> &[Worker] {
        if let Some(workers) = self.workers.get() {
            return workers;
        }
        let started = Self::start(self.most);
        // Threads that another caller was quicker to start are as good: these end, having nothing to do.
        if started.is_empty() { &[] } else { self.workers.get_or_init(|| started) }
    }

    fn give(&self, job: Job) {
        let workers = self.workers();
        match workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed)) {
            Some(worker) => {
                worker.load.fetch_add(1, Ordering::Relaxed);
                if worker.jobs.send(job).is_err() {
                    warn!("a thread that runs handlers is gone");
                }
            }
            None => error!("no thread could be started that runs handlers"),
        }
    }
}

impl Worker {
    fn start(runtime: Handle) -> Option<Self> {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let own = Arc::clone(&load);
        let work = move || work(&runtime, waiting, &own);
        match std::thread::Builder::new().name("hapax-handle".into()).spawn(work) {
            Ok(_) => Some(Self { jobs, load }),
            Err(error) => {
                warn!(%error, "a thread that runs handlers could not be started");
                None
            }
        }
    }
}

/// Polls batches until nobody can give one any more and none is left.
fn work(runtime: &Handle, mut jobs: mpsc::UnboundedReceiver<Job>, load: &Arc<AtomicUsize>) {
    // What is dropped here may belong to the runtime.
    let _inside = runtime.enter();
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async {
        while let Some(job) = jobs.recv().await {
            let load = Done(Arc::clone(load));
            tokio::task::spawn_local(async move {
                job().await;
                drop(load);
            });
        }
    }));
    runtime.block_on(local);
}

/// Counts a batch as gone, however it went.
struct Done(Arc<AtomicUsize>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
