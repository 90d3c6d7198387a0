//! Before anything runs: the data directory made and locked, strays of a killed keeper ended, the sockets bound.
//! All of it can fail in ways an operator must understand at once, so every error says what, where and what to do.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// On a data directory that was used before, an address that is taken is waited for so long: what a keeper that was killed ran
/// is on its way out, and may be in a flush.
const LEFT_OVER: Duration = Duration::from_secs(3);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// What the keeper is started with.
#[derive(Debug)]
pub struct Options {
    /// Where state and logs are kept.
    pub data_dir: PathBuf,
    /// The API's address.
    pub api: SocketAddr,
    /// The gateway's addresses.
    pub gateway: Vec<SocketAddr>,
    /// The address for other nodes, in a cluster.
    pub peers: Option<SocketAddr>,
    /// The gateway's worker threads, each of which gets a socket of its own where the system supports it.
    pub workers: usize,
    /// How long an orderly stop may take at most.
    pub stop_patience: Duration,
    /// The arguments that make this same binary the node process.
    pub node_arguments: Vec<String>,
}

/// What kept the keeper from starting. Nothing was changed, nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({what}): {reason}{hint}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// API, gateway or other nodes.
        what: &'static str,
        /// The system's reason.
        reason: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {reason}{hint}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Another Seawall uses the data directory.
    #[error(
        "the data directory {path} is in use by another Seawall{owner}; stop that one, or give this one its own --data-dir"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// ` (pid N)` where it is known.
        owner: String,
    },
    /// The node process cannot start; it has said why.
    #[error("the node cannot start; the reason stands above")]
    Node,
    /// The operating system refused something basic.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
}

/// What the keeper stands on.
#[derive(Debug)]
pub struct Ground {
    /// Where state and logs are kept.
    pub data_dir: PathBuf,
    /// The API's sockets.
    pub api: Vec<TcpListener>,
    /// The socket for other nodes, in a cluster.
    pub peers: Vec<TcpListener>,
    /// The gateway's sockets, per address.
    pub gateway: Vec<Vec<TcpListener>>,
    /// How long an orderly stop may take at most.
    pub stop_patience: Duration,
    /// The arguments of the node process.
    pub node_arguments: Vec<String>,
    /// The beginning of the tree marker of everything this keeper starts; the same after a restart on the same directory.
    pub tree_prefix: String,
    /// Held for life.
    _lock: File,
}

/// Prepares everything that must exist before the first process is started.
pub fn prepare(options: Options) -> Result<Ground, StartError> {
    let Options { data_dir, api, gateway, peers, workers, stop_patience, node_arguments } = options;
    let data_error = |reason: io::Error| {
        let hint = hint_for(&reason);
        StartError::DataDir { path: data_dir.clone(), reason, hint }
    };
    platform::file::create_private_directory(&data_dir).map_err(data_error)?;
    std::fs::create_dir_all(data_dir.join("logs")).map_err(data_error)?;
    let lock = lock(&data_dir)?;
    platform::process::adopt_descendants()
        .map_err(|reason| StartError::System { what: "claiming what instances leave behind", reason })?;
    let until = Instant::now() + if data_dir.join(MARK).exists() { LEFT_OVER } else { Duration::ZERO };
    let tree_prefix = tree_prefix(&data_dir).map_err(data_error)?;
    platform::process::kill_strays(&tree_prefix);
    let bind = |address, what, workers| {
        let mut bound = platform::socket::bind(address, workers);
        while bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) && Instant::now() < until {
            std::thread::sleep(TRY_AGAIN);
            bound = platform::socket::bind(address, workers);
        }
        bound.map_err(|reason| {
            let hint = match reason.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another program has this port: stop it, or change `listen` (port 0 picks a free one)"
                }
                io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: use a higher one",
                io::ErrorKind::AddrNotAvailable => "; no network interface of this machine has this address",
                _ => "",
            };
            StartError::Listen { address, what, reason, hint }
        })
    };
    let api = bind(api, "the API", 1)?;
    let peers = peers.map(|address| bind(address, "other nodes", 1)).transpose()?.unwrap_or_default();
    let gateway = gateway.into_iter().map(|address| bind(address, "the gateway", workers)).collect::<Result<_, _>>()?;
    Ok(Ground { data_dir, api, peers, gateway, stop_patience, node_arguments, tree_prefix, _lock: lock })
}

/// The file of [`tree_prefix`].
const MARK: &str = "keeper.id";

/// What marks the processes of this data directory: random, so that a directory made anew at the same path never claims
/// what belonged to the old one.
fn tree_prefix(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join(MARK);
    match std::fs::read_to_string(&path) {
        Ok(known) if known.len() > 16 => return Ok(known),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let fresh = format!("{:x}-{:x}:", since.as_nanos(), std::process::id());
    std::fs::write(&path, &fresh)?;
    Ok(fresh)
}

fn hint_for(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; it must be writable for this user: change its owner, or give another --data-dir"
        }
        io::ErrorKind::StorageFull => "; the disk is full: free some space",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "; a file stands where the directory should be",
        _ => "",
    }
}

/// One keeper for a data directory: two would fight over instances, log files and the store. Also held by whoever changes
/// one while nothing may run on it, until the file is dropped.
///
/// # Errors
/// A Seawall runs on it, or it cannot be written.
pub fn lock(data_dir: &Path) -> Result<File, StartError> {
    let path = data_dir.join("keeper.lock");
    let error = |reason: io::Error| {
        let hint = hint_for(&reason);
        StartError::DataDir { path: data_dir.to_owned(), reason, hint }
    };
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let owner =
                std::fs::read_to_string(data_dir.join("keeper.pid")).map(|pid| format!(" (pid {})", pid.trim()));
            return Err(StartError::Locked { path: data_dir.to_owned(), owner: owner.unwrap_or_default() });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(error(source)),
    }
    // The lock file proves that the directory can be written before anything is promised. The pid stands in a file
    // of its own because Windows forbids reading a locked one.
    file.write_all(b"locked by a running seawall\n").map_err(error)?;
    std::fs::write(data_dir.join("keeper.pid"), format!("{}\n", std::process::id())).map_err(error)?;
    Ok(file)
}
