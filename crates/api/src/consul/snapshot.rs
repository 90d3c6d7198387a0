//! The store as Consul's clients save it: a gzip'd tar of `meta.json`, `state.bin` and `SHA256SUMS`. The state is Seawall's own
//! snapshot, what `seawall snapshot save` writes; `seawall snapshot verify` and `restore` take the archive as it is. A tar says
//! how long a file is before its content, so the state is first written to a file beside the logs, which is gone afterwards.
//! Deliberately absent: restoring into a store that serves. Who has read what is no longer there could not be told.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use discovery::acl::{Access, Scalar};
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest::{Context as Sha256, SHA256};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::ask::Ask;
use super::misc::{Member, members};
use super::reply::{Answer, Trouble, with_headers};
use crate::Context;
use crate::snapshot::{Blocks, PATIENCE, WAITING, received, send};

/// Archives made at a time; a further one is refused.
static PLACE: Semaphore = Semaphore::const_new(1);
/// The state, until it is sent.
const SPOOL: &str = "snapshot-archive.new";
/// Bytes of the state that are compressed at a time.
const PIECE: usize = 256 << 10;
/// What a tar's parts are filled up to.
const TAR_BLOCK: usize = 512;

/// Saves everything that was acknowledged before.
pub async fn save(State(context): State<Context>, ask: Ask) -> Answer {
    ask.check(context.discovery.datacenter())?;
    // Everything is in it, secrets of tokens, too.
    ask.require_in(Scalar::Acl, Access::Write)?;
    let Ok(place) = PLACE.try_acquire() else {
        return Err(Trouble::new(
            StatusCode::TOO_MANY_REQUESTS,
            "a snapshot is being saved already; try again when it is complete",
        ));
    };
    let blocks = (context.save)().await?;
    let index = context.status.borrow().store.revision;
    let suffrage = |member: &Member| if member.voter { 0 } else { 1 };
    let server =
        |member: &Member| json!({ "Suffrage": suffrage(member), "ID": member.name, "Address": member.address });
    let servers = members(&context).iter().map(server).collect();
    let spool = context.logs.with_file_name(SPOOL);
    let archive = tokio::task::spawn_blocking(move || Archive::of(blocks, spool, index, &servers)).await;
    let archive = archive.map_err(|error| Trouble::failed(error.to_string()))?;
    let archive = archive.map_err(|error| Trouble::failed(format!("the snapshot cannot be written down: {error}")))?;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        send(Box::new(archive), sender, PATIENCE).await;
        drop(place);
    });
    let headers = [("content-type", "application/x-gzip"), ("cache-control", "no-store")];
    let response = (headers, Body::from_stream(received(receiver))).into_response();
    Ok(with_headers(&context, &ask, index, response))
}

/// Says how it is done instead.
pub async fn restore(ask: Ask) -> Response {
    if let Err(refused) = ask.require_in(Scalar::Acl, Access::Write) {
        return refused.into_response();
    }
    let text = "a snapshot is not restored into a store that serves: stop it, run `seawall snapshot restore FILE --data-dir DIR` \
                with a new directory, and start from there";
    Trouble::new(StatusCode::NOT_IMPLEMENTED, text).into_response()
}

/// A file that is gone with its owner.
struct Spool {
    path: PathBuf,
    file: File,
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Ignored: the next one is written over it.
        let _ = fs::remove_file(&self.path);
    }
}

enum Part {
    Head,
    State,
    Sums,
    End,
}

/// An archive, piece by piece.
struct Archive {
    next: Part,
    state: Spool,
    length: u64,
    meta: Vec<u8>,
    sums: Vec<u8>,
    out: GzEncoder<Vec<u8>>,
}

impl Archive {
    fn of(blocks: Blocks, path: PathBuf, index: u64, servers: &serde_json::Value) -> io::Result<Self> {
        let mut file = platform::identity::create_private(&path)?;
        let mut sum = Sha256::new(&SHA256);
        let mut length = 0;
        let written = blocks.into_iter().try_for_each(|block| {
            let block = block?;
            sum.update(&block);
            length += block.len() as u64;
            file.write_all(&block)
        });
        // Windows does not remove what is open.
        drop(file);
        let opened = written.and_then(|()| File::open(&path));
        let Ok(file) = opened else {
            let _ = fs::remove_file(&path);
            return Err(opened.expect_err("it is no file"));
        };
        let state = Spool { path, file };
        // Consul's `raft.SnapshotMeta`; the numbers of our consensus are inside the state.
        let meta = json!({
            "Version": 1, "ID": format!("seawall-{index}"), "Index": index, "Term": 1, "Peers": null,
            "Configuration": { "Servers": servers }, "ConfigurationIndex": 1, "Size": length,
        });
        let meta = serde_json::to_vec(&meta)?;
        let mut of_meta = Sha256::new(&SHA256);
        of_meta.update(&meta);
        let line = |sum: Sha256, name| format!("{}  {name}\n", hexadecimal(sum.finish().as_ref()));
        let sums = (line(of_meta, "meta.json") + &line(sum, "state.bin")).into_bytes();
        Ok(Self { next: Part::Head, state, length, meta, sums, out: GzEncoder::new(Vec::new(), Compression::fast()) })
    }

    fn header(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(length);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn fill_up(&mut self, length: u64) -> io::Result<()> {
        let over = usize::try_from(length % TAR_BLOCK as u64).unwrap_or(0);
        self.out.write_all(&[0; TAR_BLOCK][..(TAR_BLOCK - over) % TAR_BLOCK])
    }

    fn small(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.header(name, content.len() as u64)?;
        self.out.write_all(content)?;
        self.fill_up(content.len() as u64)
    }

    /// Writes some more; whether there is still more.
    fn go_on(&mut self) -> io::Result<bool> {
        match self.next {
            Part::Head => {
                let meta = std::mem::take(&mut self.meta);
                self.small("meta.json", &meta)?;
                self.header("state.bin", self.length)?;
                self.next = Part::State;
            }
            Part::State => {
                let mut piece = Vec::with_capacity(PIECE);
                (&self.state.file).take(PIECE as u64).read_to_end(&mut piece)?;
                self.out.write_all(&piece)?;
                if piece.len() < PIECE {
                    self.fill_up(self.length)?;
                    self.next = Part::Sums;
                }
            }
            Part::Sums => {
                let sums = std::mem::take(&mut self.sums);
                self.small("SHA256SUMS", &sums)?;
                self.out.write_all(&[0; 2 * TAR_BLOCK])?;
                self.out.try_finish()?;
                self.next = Part::End;
            }
            Part::End => return Ok(false),
        }
        Ok(true)
    }
}

impl Iterator for Archive {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.go_on() {
                Err(error) => return Some(Err(error)),
                Ok(false) => return None,
                Ok(true) if self.out.get_ref().is_empty() => {}
                Ok(true) => return Some(Ok(std::mem::take(self.out.get_mut()))),
            }
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::{Archive, PIECE};

    #[test]
    fn an_archive_is_what_tar_unpacks_and_leaves_no_file() {
        for length in [0, 1, 512, PIECE - 1, PIECE, 3 * PIECE + 7] {
            let folder = tempfile::tempdir().unwrap();
            let spool = folder.path().join("spool");
            let state: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let blocks: Vec<_> = state.chunks(1000).map(|block| Ok(block.to_vec())).collect();
            let archive = Archive::of(Box::new(blocks.into_iter()), spool, 7, &serde_json::json!([])).unwrap();
            let whole: Vec<u8> = archive.flat_map(|piece| piece.unwrap()).collect();
            assert_eq!(whole[..2], [0x1f, 0x8b]);
            let mut files = Vec::new();
            let mut unpacked = tar::Archive::new(flate2::read::GzDecoder::new(&whole[..]));
            for entry in unpacked.entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                files.push((entry.path().unwrap().display().to_string(), content));
            }
            let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["meta.json", "state.bin", "SHA256SUMS"]);
            assert!(files[1].1 == state, "{length} bytes");
            let meta: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
            assert_eq!(meta["Size"], length);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file between is gone");
        }
    }
}
