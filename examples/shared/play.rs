//! How a demonstration begins and ends: the flags, a folder, the exit code; and how it notices that nothing goes on.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Runs it, or shows the help. The exit code is 0 if all was well, 1 if not, and 2 if nothing could be started.
pub async fn play<Args, Run>(
    args: Result<Option<Args>, String>,
    help: impl FnOnce() -> String,
    prepare: impl AsyncFnOnce(Args) -> Result<Run, String>,
    go: impl AsyncFnOnce(Run) -> Result<bool, String>,
) -> ExitCode {
    let args = match args {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{}", help());
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return refused(&wrong),
    };
    let run = match prepare(args).await {
        Ok(run) => run,
        Err(wrong) => return refused(&wrong),
    };
    match go(run).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(wrong) => {
            println!("FAILED {wrong}");
            ExitCode::FAILURE
        }
    }
}

/// Something is wrong before anything has begun.
fn refused(wrong: &str) -> ExitCode {
    eprintln!("{wrong}");
    ExitCode::from(2)
}

/// A temporary folder, removed with what is returned.
pub fn folder(prefix: &str) -> Result<tempfile::TempDir, String> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir();
    folder.map_err(|e| format!("no temporary folder: {e}; set TMPDIR to a folder that can be written"))
}

/// A number that tells this run from others in the same database.
pub fn run_number() -> i64 {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(micros).unwrap_or(0)
}

/// Notices that nothing changes any more.
pub struct Still<T> {
    seen: Option<T>,
    since: Instant,
}

impl<T: PartialEq> Still<T> {
    pub fn new() -> Self {
        Self { seen: None, since: Instant::now() }
    }

    /// Takes how it is now, and says whether it has been so for longer than this.
    pub fn is_so_for(&mut self, now: T, longest: Duration) -> bool {
        if self.seen.as_ref() != Some(&now) {
            (self.seen, self.since) = (Some(now), Instant::now());
        }
        self.since.elapsed() > longest
    }
}
