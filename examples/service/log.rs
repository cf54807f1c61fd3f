//! Where the log goes.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// To the file, or to standard error.
pub fn start(file: Option<&Path>) -> Result<(), String> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("hapax=info,service=info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    match file {
        None => subscriber.with_writer(std::io::stderr).init(),
        Some(path) => {
            let file = File::options().append(true).create(true).open(path);
            let file = file.map_err(|e| format!("--log {}: {e}; choose another file", path.display()))?;
            subscriber.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
    }
    Ok(())
}
