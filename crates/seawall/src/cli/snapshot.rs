//! `seawall snapshot`: the key-value store and the streams as a file. Saving asks a node; checking and restoring need none.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use node::offline::{self, Saved, SavedError, SavedMember};

use super::client::Client;
use super::{Failure, Outcome};

/// Longest time to save a store.
const PATIENCE: Duration = Duration::from_secs(600);
/// How a compressed file begins (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Said wherever somebody might count on them.
const NOT_IN_IT: &str = "not in it: logs, certificates, the machines' own files";

/// What `snapshot` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Save the key-value store and all streams, as they are now, to FILE
    Save {
        /// The file; it must not exist.
        file: PathBuf,
        /// Replace FILE if it exists
        #[arg(long)]
        force: bool,
    },
    /// Check FILE to its last bit, and say what it holds
    Verify {
        /// A file that was saved, or an archive of `GET /v1/snapshot`.
        file: PathBuf,
    },
    /// Make a new data directory that a node starts from with what FILE holds
    Restore {
        /// A file that was saved, or an archive of `GET /v1/snapshot`.
        file: PathBuf,
        /// The new node's data directory; it must be empty, or not exist
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

/// Runs the verb. `client` is made only to ask a node.
pub fn run(client: impl FnOnce() -> Result<Client, Failure>, arguments: &Arguments) -> Outcome {
    let mut out = io::stdout().lock();
    match &arguments.verb {
        Verb::Save { file, force } => {
            let saved = save(&client()?, file, *force)?;
            writeln!(out, "saved {}", file.display())?;
            describe(&mut out, &saved)?;
        }
        Verb::Verify { file } => {
            let saved = offline::verify(&Unpacked::of(file, file)?.file).map_err(failure)?;
            writeln!(out, "{}: whole", file.display())?;
            describe(&mut out, &saved)?;
        }
        Verb::Restore { file, data_dir } => {
            let saved = offline::restore(&Unpacked::of(file, data_dir)?.file, data_dir).map_err(failure)?;
            writeln!(out, "restored {} into {}", file.display(), data_dir.display())?;
            describe(&mut out, &saved)?;
            writeln!(
                out,
                "next: `seawall up FILE --data-dir {}`. Alone, or as a cluster's first node: start it before the others, \
                 each of which begins with an empty data directory and is let in. The nodes that this was saved from \
                 are no members of it and must not be started beside it",
                data_dir.display()
            )?;
        }
    }
    Ok(())
}

fn save(client: &Client, file: &Path, force: bool) -> Result<Saved, Failure> {
    if !force && file.exists() {
        return Err(Failure::bad_input(anyhow!("{} exists; --force replaces it", file.display())));
    }
    let body = client.download("/api/v1/snapshot", PATIENCE)?.into_body().into_reader();
    let name = file.file_name().ok_or_else(|| Failure::bad_input(anyhow!("{} names no file", file.display())))?;
    let mut fresh_name = name.to_owned();
    fresh_name.push(".new");
    let fresh = file.with_file_name(fresh_name);
    let saved = receive(body, &fresh).and_then(|()| {
        let saved = offline::verify(&fresh).map_err(failure)?;
        std::fs::rename(&fresh, file).with_context(|| file.display().to_string())?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        platform::file::sync_directory(folder).with_context(|| folder.display().to_string())?;
        Ok(saved)
    });
    if saved.is_err() {
        // Half a snapshot is none.
        let _ = std::fs::remove_file(&fresh);
    }
    saved
}

/// It may hold secrets of services: nobody else reads it.
fn receive(mut body: impl io::Read, fresh: &Path) -> Result<(), Failure> {
    let mut file: File = platform::identity::create_private(fresh)
        .with_context(|| fresh.display().to_string())
        .map_err(Failure::failed)?;
    let mut bytes = vec![0; 256 * 1024];
    loop {
        let read = body.read(&mut bytes).context("the node broke off; nothing was saved").map_err(Failure::failed)?;
        if read == 0 {
            break;
        }
        file.write_all(&bytes[..read]).with_context(|| fresh.display().to_string())?;
    }
    file.sync_all().with_context(|| fresh.display().to_string())?;
    Ok(())
}

/// A saved file as it is, or what an archive has in it, which is gone afterwards.
struct Unpacked {
    file: PathBuf,
    is_ours: bool,
}

impl Unpacked {
    /// What is unpacked goes beside `place`.
    fn of(file: &Path, place: &Path) -> Result<Self, Failure> {
        let mut begin = [0; 2];
        let opened = File::open(file).and_then(|mut opened| opened.read_exact(&mut begin));
        // What cannot be read, or is no archive, is judged by whoever wants it.
        if opened.is_err() || begin != GZIP {
            return Ok(Self { file: file.to_owned(), is_ours: false });
        }
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(".unpacked");
        let unpacked = Self { file: place.with_file_name(name), is_ours: true };
        let mut to: File = platform::identity::create_private(&unpacked.file)
            .with_context(|| unpacked.file.display().to_string())
            .map_err(Failure::failed)?;
        unpack(file, &mut to).with_context(|| file.display().to_string()).map_err(Failure::failed)?;
        Ok(unpacked)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if self.is_ours {
            // Ignored: the next one is written over it.
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

/// Takes the state out of what `GET /v1/snapshot` answers.
fn unpack(archive: &Path, to: &mut File) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(archive)?));
    for entry in archive.entries().context("it is compressed, but no archive")? {
        let mut entry = entry.context("the archive breaks off")?;
        if entry.path()?.as_os_str() == "state.bin" {
            io::copy(&mut entry, to).context("the archive breaks off")?;
            return Ok(());
        }
    }
    Err(anyhow!("an archive without `state.bin`: no snapshot"))
}

fn failure(error: SavedError) -> Failure {
    match &error {
        SavedError::NotEmpty { .. } => Failure::bad_input(error),
        SavedError::Other(offline::OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Failure::bad_input(error)
        }
        _ => Failure::failed(error),
    }
}

fn describe(out: &mut impl Write, saved: &Saved) -> io::Result<()> {
    let from = match (&saved.cluster, &saved.node) {
        (Some(cluster), Some(node)) => format!("cluster {cluster}, saved from {node}"),
        _ => "a machine by itself".to_owned(),
    };
    writeln!(out, "  of        {from}")?;
    if let Some(at) = saved.at_ms.and_then(|at| jiff::Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()) {
        writeln!(out, "  made      {at}")?;
    }
    writeln!(out, "  store     {}", saved.store_id)?;
    writeln!(out, "  revision  {}", saved.revision)?;
    writeln!(out, "  keys      {}, leases {}", saved.keys, saved.leases)?;
    match saved.streams {
        Some(streams) => writeln!(out, "  streams   {streams}, with {} entries", saved.entries)?,
        None => writeln!(out, "  streams   none: it was saved by a version that left them out")?,
    }
    writeln!(out, "  bytes     {}", saved.bytes)?;
    writeln!(out, "  log       up to index {}, term {}", saved.last.0, saved.last.1)?;
    let member = |member: &SavedMember| {
        let votes = if member.voter { "" } else { ", without a vote" };
        format!("{} ({}{votes})", member.name, member.address)
    };
    let members: Vec<String> = saved.members.iter().filter(|member| !member.name.is_empty()).map(member).collect();
    if !members.is_empty() {
        writeln!(out, "  members   {}", members.join(", "))?;
    }
    writeln!(out, "  {NOT_IN_IT}")
}
