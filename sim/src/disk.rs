//! A disk in memory that forgets like a real one: what was written and not flushed is lost, kept or torn when the power
//! goes, sector by sector and in any order; so are names of files until their directory is flushed.
//! Behind the seam `data_raft::Disk`. Deliberately absent: when the power goes (`faults.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_raft::{Disk, DiskFile, FileLock};

use crate::chance::Chance;
use crate::plants::Plant;
use crate::trace::Trace;

/// The unit that is written whole or not, unless it is torn.
const SECTOR: usize = 512;

/// One node's disk. Clones share it.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    place: u64,
    chance: Chance,
    trace: Trace,
    plant: Option<Plant>,
    files: BTreeMap<u64, File>,
    next_file: u64,
    /// Names as programs see them, and as they are on the medium.
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    locked: BTreeSet<PathBuf>,
    /// The machine is without power: nothing works any more.
    dead: bool,
    /// The power goes at this operation from now.
    fuse: Option<u64>,
    /// The next flush fails.
    flush_fails: bool,
    /// Writes that need room fail.
    full: bool,
}

#[derive(Debug, Default)]
struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(place: usize, chance: Chance, trace: Trace, plant: Option<Plant>) -> Self {
        Self(Arc::new(Mutex::new(State {
            place: place as u64,
            chance,
            trace,
            plant,
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            locked: BTreeSet::new(),
            dead: false,
            fuse: None,
            flush_fails: false,
            full: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes after so many operations from now.
    pub fn lose_power_after(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// Whether the power has gone.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// The next flush fails, for good as far as what it was to flush is concerned.
    pub fn fail_next_flush(&self) {
        self.state().flush_fails = true;
    }

    /// Flushes work, and there is room.
    pub fn mend(&self) {
        let mut state = self.state();
        (state.flush_fails, state.full) = (false, false);
    }

    /// There is no room any more, or there is again.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// The power goes: what was not flushed has its fate.
    pub fn lose_power(&self) {
        self.state().lose_power();
    }

    /// The machine has power again; its processes are gone.
    pub fn power_on(&self) {
        let mut state = self.state();
        (state.dead, state.fuse, state.flush_fails, state.full) = (false, None, false, false);
        state.locked.clear();
    }

    /// Flips one bit of a file whose name begins like this, if there is one; which, and where.
    pub fn flip_a_bit(&self, prefix: &str) -> Option<(PathBuf, usize)> {
        let mut state = self.state();
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let names: Vec<PathBuf> = state.names.keys().filter(|path| named(path)).cloned().collect();
        if names.is_empty() {
            return None;
        }
        let path = state.chance.one_of(&names).clone();
        let inode = *state.names.get(&path)?;
        // Zeros behind the end of a log mean nothing to anybody: bits that carry something are wanted.
        let content = &state.files.get(&inode)?.content;
        let end = content.iter().rposition(|byte| *byte != 0)? + 1;
        let place = usize::try_from(state.chance.below(end as u64)).ok()?;
        let bit = state.chance.below(8);
        let file = state.files.get_mut(&inode)?;
        file.content[place] ^= 1 << bit;
        if let Some(byte) = file.durable.get_mut(place) {
            *byte = file.content[place];
        }
        Some((path, place))
    }

    /// An empty medium in place of this one.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.files.clear();
        state.names.clear();
        state.durable_names.clear();
        state.locked.clear();
    }
}

impl State {
    /// Before every operation that changes something.
    fn operate(&mut self) -> io::Result<()> {
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                self.fuse = None;
                self.trace.mark("power lost at an operation", [self.place, 0, 0, 0]);
                self.lose_power();
            } else {
                *fuse -= 1;
            }
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn lose_power(&mut self) {
        if std::mem::replace(&mut self.dead, true) {
            return;
        }
        let changed: Vec<PathBuf> = self
            .names
            .keys()
            .chain(self.durable_names.keys())
            .filter(|path| self.names.get(*path) != self.durable_names.get(*path))
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for path in changed {
            if self.chance.percent(50) {
                match self.names.get(&path) {
                    Some(file) => self.durable_names.insert(path, *file),
                    None => self.durable_names.remove(&path),
                };
            }
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
        let mut fates = [0; 3];
        for file in self.files.values_mut() {
            file.lose_power(&self.chance, &mut fates);
        }
        self.trace.mark("sectors kept, lost, torn", [self.place, fates[0], fates[1], fates[2]]);
    }

    fn file(&mut self, inode: u64) -> io::Result<&mut File> {
        self.files.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl File {
    fn lose_power(&mut self, chance: &Chance, fates: &mut [u64; 3]) {
        // What was written without being flushed may count or not, in its length too.
        if self.content.len() != self.durable.len() && chance.percent(50) {
            self.durable.resize(self.content.len(), 0);
        }
        for sector in std::mem::take(&mut self.dirty) {
            let begin = sector * SECTOR;
            let end = (begin + SECTOR).min(self.durable.len()).min(self.content.len());
            if begin >= end {
                continue;
            }
            match chance.below(5) {
                0 | 1 => {
                    self.durable[begin..end].copy_from_slice(&self.content[begin..end]);
                    fates[0] += 1;
                }
                2 | 3 => fates[1] += 1,
                _ => {
                    let torn = begin + usize::try_from(chance.below((end - begin) as u64)).unwrap_or_default();
                    self.durable[begin..torn].copy_from_slice(&self.content[begin..torn]);
                    fates[2] += 1;
                }
            }
        }
        self.content = self.durable.clone();
    }

    fn flush(&mut self) {
        self.durable.resize(self.content.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let begin = (sector * SECTOR).min(self.content.len());
            let end = (begin + SECTOR).min(self.content.len());
            self.durable[begin..end].copy_from_slice(&self.content[begin..end]);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.content.len() {
            self.content.resize(end, 0);
        }
        self.content[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }

    fn resize(&mut self, length: usize) {
        let before = self.content.len();
        self.content.resize(length, 0);
        let (low, high) = (before.min(length), before.max(length));
        if low < high && length > before {
            self.dirty.extend(low / SECTOR..=(high - 1) / SECTOR);
        }
    }
}

impl Disk for SimDisk {
    fn create_directory(&self, _directory: &Path) -> io::Result<()> {
        self.state().alive()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        let inside = state.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.alive()?;
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None if create => {
                state.operate()?;
                let inode = state.next_file;
                state.next_file += 1;
                state.files.insert(inode, File::default());
                state.names.insert(path.to_path_buf(), inode);
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let is_superblock = path.file_name().is_some_and(|name| name == "superblock");
        Ok(Box::new(SimFile { disk: self.clone(), inode, is_superblock }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        if state.plant == Some(Plant::SkippedDirectorySync) {
            return Ok(());
        }
        let inside = |path: &PathBuf| path.parent() == Some(directory);
        let names: Vec<_> =
            state.names.iter().filter(|(path, _)| inside(path)).map(|(path, inode)| (path.clone(), *inode)).collect();
        state.durable_names.retain(|path, _| !inside(path));
        state.durable_names.extend(names);
        Ok(())
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        let inode = state.next_file;
        state.next_file += 1;
        let mut file = File::default();
        file.write(content, 0);
        state.files.insert(inode, file);
        state.names.insert(path.to_path_buf(), inode);
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        let mut state = self.state();
        state.alive()?;
        if !state.locked.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_path_buf() }))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl FileLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    is_superblock: bool,
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.alive()?;
        let content = &state.file(self.inode)?.content;
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let length = buffer.len().min(content.len() - begin);
        buffer[..length].copy_from_slice(&content[begin..begin + length]);
        Ok(length)
    }

    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let full = state.full;
        let file = state.file(self.inode)?;
        if full && offset + buffer.len() > file.content.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write(buffer, offset);
        Ok(())
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let full = state.full;
        let file = state.file(self.inode)?;
        if full && length > file.content.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.resize(length);
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        state.file(self.inode)?.resize(length);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        if std::mem::take(&mut state.flush_fails) {
            let place = state.place;
            state.trace.mark("a flush fails", [place, 0, 0, 0]);
            let chance = state.chance.clone();
            let file = state.file(self.inode)?;
            // As operating systems do: the pages count as clean from now on, whether they were written or not.
            file.dirty.retain(|_| chance.percent(50));
            file.flush();
            return Err(io::Error::other("input/output error"));
        }
        let skipped = match state.plant {
            Some(Plant::AckBeforeSync) => !self.is_superblock,
            Some(Plant::VoteBeforeSync) => self.is_superblock,
            _ => false,
        };
        if skipped {
            return Ok(());
        }
        let place = state.place;
        let file = state.file(self.inode)?;
        let sectors = file.dirty.len() as u64;
        file.flush();
        state.trace.mark("flush", [place, self.inode, sectors, 0]);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.alive()?;
        Ok(state.file(self.inode)?.content.len() as u64)
    }
}
