//! Which threads come first when there is more to do than processors: those that decide and renew leases, before those
//! that carry requests. A node under load that does not answer its peers would lose its leases, and with them its primaries.

use std::io;

/// The calling thread, and those it starts from now on, are scheduled before ordinary ones.
///
/// # Errors
/// The operating system does not let this process: on Linux it takes `CAP_SYS_NICE` or a limit (`LimitNICE=` of systemd).
/// Nothing has changed then, and all goes on as well as the machine allows.
pub fn outrank() -> io::Result<()> {
    imp::set(true)
}

/// The calling thread is an ordinary one, whoever started it.
pub fn rank_and_file() {
    // Nobody is refused less than there is.
    let _ = imp::set(false);
}

#[cfg(unix)]
mod imp {
    use super::io;

    /// Enough to be chosen at once, not so much that others starve: about three times the share of an ordinary one.
    const NICE: i32 = -5;

    pub fn set(first: bool) -> io::Result<()> {
        // On Linux this is the thread's alone; elsewhere it would be the process's.
        if cfg!(target_os = "linux") {
            rustix::process::setpriority_process(None, if first { NICE } else { 0 })?;
        }
        Ok(())
    }
}

#[cfg(windows)]
mod imp {
    use windows_sys::Win32::System::Threading::{
        GetCurrentThread, SetThreadPriority, THREAD_PRIORITY_ABOVE_NORMAL, THREAD_PRIORITY_NORMAL,
    };

    use super::io;

    pub fn set(first: bool) -> io::Result<()> {
        let priority = if first { THREAD_PRIORITY_ABOVE_NORMAL } else { THREAD_PRIORITY_NORMAL };
        // SAFETY: the handle is a constant that means the calling thread, and needs not be closed.
        match unsafe { SetThreadPriority(GetCurrentThread(), priority) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_comes_first_or_says_why_not() {
        std::thread::spawn(|| match super::outrank() {
            Ok(()) => super::rank_and_file(),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}"),
        })
        .join()
        .unwrap();
    }
}
