//! The access log: one JSON line a request in `access.log` under the data directory, rotated by size.
//! Fed through a bounded channel that drops and counts: a slow disk never slows a request.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use gateway::AccessRecord;
use serde_json::json;
use tokio::sync::mpsc;

/// Records that may wait for the disk.
const QUEUE: usize = 16_384;
/// The file is rotated at this size; one older file is kept.
const MAX_BYTES: u64 = 64 << 20;

/// Starts the writer and returns where records go.
///
/// # Errors
/// The file cannot be opened, or no thread started.
pub fn start(data_dir: &Path) -> std::io::Result<mpsc::Sender<AccessRecord>> {
    let path = data_dir.join("access.log");
    let mut file = open(&path)?;
    let (sender, mut records) = mpsc::channel::<AccessRecord>(QUEUE);
    std::thread::Builder::new().name("access-log".into()).spawn(move || {
        let mut complained = false;
        while let Some(record) = records.blocking_recv() {
            let written = write(&mut file, &path, &record, records.is_empty());
            if let Err(error) = written
                && !std::mem::replace(&mut complained, true)
            {
                tracing::error!(path = %path.display(), %error, "access log lines are being lost");
            }
        }
    })?;
    Ok(sender)
}

fn open(path: &Path) -> std::io::Result<(BufWriter<File>, u64)> {
    let file = File::options().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((BufWriter::new(file), size))
}

fn write(file: &mut (BufWriter<File>, u64), path: &Path, record: &AccessRecord, last: bool) -> std::io::Result<()> {
    let mut line = line(record);
    line.push('\n');
    if file.1 + line.len() as u64 > MAX_BYTES {
        file.0.flush()?;
        let old: PathBuf = path.with_extension("log.1");
        match fs::rename(path, &old) {
            Ok(()) => *file = open(path)?,
            // Somebody keeps it open so that it cannot be renamed (Windows): better a longer file than lost lines.
            Err(error) if file.1 > 4 * MAX_BYTES => return Err(error),
            Err(_) => {}
        }
    }
    file.0.write_all(line.as_bytes())?;
    file.1 += line.len() as u64;
    if last {
        file.0.flush()?;
    }
    Ok(())
}

fn line(record: &AccessRecord) -> String {
    let at = jiff::Timestamp::try_from(record.at).map_or_else(|_| observe::now(), |at| format!("{at:.6}"));
    json!({
        "at": at,
        "client": record.client.to_string(),
        "method": record.method,
        "path": record.path,
        "host": record.host,
        "status": record.status,
        "reason": record.reason,
        "service": record.service,
        "instance": record.instance,
        "duration_ms": record.duration.as_secs_f64() * 1000.0,
        "bytes": record.bytes,
        "trace_id": record.trace_id,
        "request_id": record.request_id,
    })
    .to_string()
}
