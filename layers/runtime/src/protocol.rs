//! What the node orders and the keeper reports, one JSON object a line over the node's standard input and output.
//! The keeper outlives the node process, and after an upgrade may be older than it: fields are only ever added.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{Epoch, Incarnation, InstanceId, ServiceName, VersionName};
use serde::{Deserialize, Serialize};

/// The protocol's version; a node refuses a keeper with another one.
pub const VERSION: u32 = 1;
/// The exit code of a node process that cannot start and would not start the next time either; it has said why.
pub const CANNOT_START: i32 = 78;
/// The longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 4 << 20;

/// How a process is started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment added to the keeper's own.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: PathBuf,
    /// Rotate the log at this size, in bytes.
    pub log_max_bytes: u64,
    /// Keep this many rotated logs.
    pub log_keep: u32,
}

/// What the keeper remembers about an instance for the next node process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tag {
    /// Its service.
    pub service: ServiceName,
    /// Its version, where the service has versions.
    pub version: Option<VersionName>,
    /// Its index within the service or version.
    pub index: u32,
    /// The port it was given.
    pub port: u16,
    /// Of the definition it runs, see [`crate::plan::Instance::fingerprint`].
    pub fingerprint: u64,
    /// In a cluster: the newest restart that had been agreed on when it was started.
    #[serde(default)]
    pub generation: u64,
    /// How often it has been started again.
    pub restarts: u32,
    /// The epoch whose `onPromote` it has answered.
    pub promoted: Option<Epoch>,
    /// It has been ready since its start: after a restart of the node process it need not prove that first.
    pub ready: bool,
}

/// Node to keeper.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Start a process.
    Start {
        /// Which instance.
        id: InstanceId,
        /// This start.
        incarnation: Incarnation,
        /// How.
        spec: ProcessSpec,
        /// Remembered.
        tag: Tag,
    },
    /// Ask the tree to stop, kill it after `grace_ms`.
    Stop {
        /// Which instance.
        id: InstanceId,
        /// Which start; an order for another one is ignored.
        incarnation: Incarnation,
        /// From the request to the kill, in milliseconds.
        grace_ms: u64,
    },
    /// Kill the tree at once.
    Kill {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
    },
    /// Kill the tree at this moment unless another deadline comes first: the lease of a primary.
    Deadline {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
        /// On the clock since boot, in milliseconds; `None` lifts it.
        at_boot_ms: Option<u64>,
        /// The store has no other voter than this node: while its process is gone nobody can choose another primary, so
        /// the keeper may give the next process time to come back before it ends this one.
        #[serde(default)]
        sole_voter: bool,
    },
    /// Replace what is remembered.
    Remember {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
        /// The new tag.
        tag: Tag,
    },
    /// The end of this start has been dealt with.
    Forget {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
    },
    /// The node serves: print `line` on standard output and `hints` on standard error, once in the keeper's life.
    Ready {
        /// The line, for programs.
        line: String,
        /// What to try, for people.
        hints: Vec<String>,
    },
    /// The node's controller is at work; said at least every two seconds. A node that falls silent is started anew.
    Alive,
    /// Everything is stopped: end what is left and exit.
    Shutdown,
}

/// Keeper to node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// The first line a node process gets.
    Hello {
        /// [`VERSION`] of the keeper.
        version: u32,
        /// The keeper's process id.
        keeper_pid: u32,
        /// How many node processes there have been, this one included.
        node_starts: u32,
        /// How the previous one ended.
        previous_exit: Option<String>,
        /// The beginning of the tree marker of everything the keeper starts.
        tree_prefix: String,
        /// The API's sockets.
        api: Vec<String>,
        /// The socket for other nodes, in a cluster; a keeper that is older has none.
        #[serde(default)]
        peers: Vec<String>,
        /// The gateway's sockets: for each configured address, the exported sockets.
        gateway: Vec<Vec<String>>,
        /// Every instance the keeper holds or whose end nobody has dealt with.
        inventory: Vec<Held>,
    },
    /// A process was started.
    Started {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
        /// Its process id.
        pid: u32,
    },
    /// A process ended, or could not be started.
    Exited {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
        /// How.
        exit: Exit,
    },
    /// A tree is still there seconds after it was killed.
    Unkillable {
        /// Which instance.
        id: InstanceId,
        /// Which start.
        incarnation: Incarnation,
        /// What was tried.
        message: String,
    },
    /// The operator or the service manager wants everything stopped.
    StopRequested,
    /// The operator wants the configuration read again.
    ReloadRequested,
}

/// The end of a process and of everything it started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exit {
    /// Who ended it.
    pub by: ExitBy,
    /// The exit code, if it had one.
    pub code: Option<i32>,
    /// The status in words: `exit code 1`, `signal 9 (KILL)`, or why it could not be started.
    pub status: String,
    /// Processes it left behind, which were ended.
    pub orphans: usize,
}

/// Who ended a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitBy {
    /// It ended by itself, or somebody outside ended it.
    Itself,
    /// It never started.
    NotStarted,
    /// It followed a request to stop.
    Stop,
    /// It did not follow one within its grace period and was killed.
    Grace,
    /// It was killed on order.
    Kill,
    /// It was a primary whose deadline passed.
    Deadline,
}

/// An instance in the keeper's hands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Which instance.
    pub id: InstanceId,
    /// Which start.
    pub incarnation: Incarnation,
    /// Its process id; 0 before it started.
    pub pid: u32,
    /// When it was started, in milliseconds since the Unix epoch.
    pub started_unix_ms: i64,
    /// What was remembered.
    pub tag: Tag,
    /// It is being stopped.
    pub stopping: bool,
    /// It has ended, and the node process that should have heard of it was gone.
    pub exit: Option<Exit>,
}
