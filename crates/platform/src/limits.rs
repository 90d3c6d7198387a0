//! How many files and connections this process may have open.

/// Where the system sets no bound, and an upper one of what is promised.
const MANY: usize = 1 << 20;

/// Raises this process's own bound as far as it may without more rights; how many it may have open now. Programs that it
/// starts from now on inherit that.
pub fn raise_open_files() -> usize {
    imp::raise_open_files().min(MANY)
}

#[cfg(unix)]
mod imp {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::MANY;

    pub fn raise_open_files() -> usize {
        let limits = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limits.maximum, ..limits };
        // A system may refuse, for reasons of its own: then it stays as it was.
        let now = if setrlimit(Resource::Nofile, raised).is_ok() { limits.maximum } else { limits.current };
        now.and_then(|now| usize::try_from(now).ok()).unwrap_or(MANY)
    }
}

#[cfg(windows)]
mod imp {
    /// Sockets and files are bounded by memory alone.
    pub fn raise_open_files() -> usize {
        super::MANY
    }
}
