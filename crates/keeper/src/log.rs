//! The log of one instance: what it writes to its standard output and error, each line with the time, rotated by size.
//! A line: `2026-01-31T09:30:00.000001Z order-service-0 out text`. A log that cannot be written is never a reason to stop.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::say;
use model::InstanceId;

/// A longer line is cut into pieces of this many bytes.
pub const MAX_LINE: usize = 16 * 1024;

/// Where a line comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// The keeper itself, about the instance.
    Seawall,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
            Self::Seawall => "seawall",
        }
    }
}

/// The open log.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    instance: InstanceId,
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    keep: u32,
    partial: [Vec<u8>; 2],
    complained: bool,
}

/// The path of the newest log of `instance`; rotated ones have `.1`, `.2` … behind it, `.1` the youngest.
pub fn path(folder: &Path, instance: &InstanceId) -> PathBuf {
    folder.join(format!("{instance}.log"))
}

impl LogFile {
    /// Opens the log of `instance` in `folder` for appending.
    pub fn open(folder: &Path, instance: &InstanceId, max_bytes: u64, keep: u32) -> Self {
        let path = path(folder, instance);
        let mut log = Self {
            path,
            instance: instance.clone(),
            file: None,
            size: 0,
            max_bytes,
            keep,
            partial: Default::default(),
            complained: false,
        };
        let opened = fs::create_dir_all(folder).and_then(|()| log.reopen());
        log.complain(opened);
        log
    }

    fn reopen(&mut self) -> std::io::Result<()> {
        let file = File::options().create(true).append(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes raw output; whole lines are written, the rest waits for its end.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let index = usize::from(stream == Stream::Err);
        let mut pending = std::mem::take(&mut self.partial[index]);
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_slice();
        let mut lines = Vec::with_capacity(bytes.len() + 256);
        while let Some(end) =
            rest.iter().position(|byte| *byte == b'\n').or((rest.len() >= MAX_LINE).then_some(MAX_LINE))
        {
            let end = end.min(MAX_LINE);
            self.format(&mut lines, stream, &rest[..end]);
            rest = &rest[end + usize::from(rest[end..].first() == Some(&b'\n'))..];
        }
        self.partial[index] = rest.to_vec();
        self.append(&lines);
    }

    /// Writes what waits for the end of its line.
    pub fn flush(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.partial[usize::from(stream == Stream::Err)]);
        if !rest.is_empty() {
            self.line(stream, &rest);
        }
    }

    /// Writes one line.
    pub fn line(&mut self, stream: Stream, text: &[u8]) {
        let mut line = Vec::new();
        self.format(&mut line, stream, text);
        self.append(&line);
    }

    fn format(&self, into: &mut Vec<u8>, stream: Stream, text: &[u8]) {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        // Writing into a Vec cannot fail.
        let _ = write!(into, "{:.6} {} {} ", jiff::Timestamp::now(), self.instance, stream.name());
        into.extend_from_slice(text);
        into.push(b'\n');
    }

    fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.size + lines.len() as u64 > self.max_bytes && self.size > 0 {
            let rotated = self.rotate();
            self.complain(rotated);
        }
        let Some(file) = &mut self.file else { return };
        let written = file.write_all(lines);
        self.size += lines.len() as u64;
        self.complain(written);
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.file = None;
        let numbered = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
            return self.reopen();
        }
        // Out of the way first: where somebody keeps the file open so that it cannot be renamed (Windows), nothing else
        // moves either, and the next line tries again.
        let full = numbered(0);
        // One that is left from an attempt that got no further goes first.
        if !full.exists() {
            fs::rename(&self.path, &full)?;
        }
        for number in (1..self.keep).rev() {
            if numbered(number).exists() {
                fs::rename(numbered(number), numbered(number + 1))?;
            }
        }
        fs::rename(full, numbered(1))?;
        self.reopen()
    }

    /// Says once that lines are being lost; a full disk must not turn into a flood of its own.
    fn complain(&mut self, result: std::io::Result<()>) {
        match result {
            Ok(()) => self.complained = false,
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    say(&format!(
                        "seawall: lines of {} are being lost: cannot write {}: {error}",
                        self.instance,
                        self.path.display()
                    ));
                }
                if self.file.is_none() {
                    // Ignored: the complaint above covers it, and the next line tries again.
                    let _ = self.reopen();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LogFile, MAX_LINE, Stream, path};

    fn log(max: u64, keep: u32) -> (tempfile::TempDir, LogFile) {
        let folder = tempfile::tempdir().unwrap();
        let log = LogFile::open(folder.path(), &"a-0".into(), max, keep);
        (folder, log)
    }

    #[test]
    fn lines_are_stamped_and_pieces_are_joined() {
        let (folder, mut log) = log(1 << 20, 1);
        log.write(Stream::Out, b"one\r\ntw");
        log.write(Stream::Err, b"other\n");
        log.write(Stream::Out, b"o\nrest");
        log.flush(Stream::Out);
        let text = std::fs::read_to_string(path(folder.path(), &"a-0".into())).unwrap();
        let tails: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(tails, ["a-0 out one", "a-0 err other", "a-0 out two", "a-0 out rest"]);
        assert!(text.starts_with("20") && text[..27].ends_with('Z'), "{text}");
    }

    #[test]
    fn an_endless_line_is_cut_and_files_are_rotated_within_the_bound() {
        let (folder, mut log) = log(64 * 1024, 2);
        for _ in 0..64 {
            log.write(Stream::Out, &vec![b'x'; MAX_LINE]);
        }
        let sizes: Vec<u64> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 3, "the newest and two kept");
        assert!(sizes.iter().all(|size| *size <= 64 * 1024), "{sizes:?}");
    }
}
