//! Being told to stop or to read the configuration again.

use std::io;

/// What the operating system asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// SIGTERM, SIGINT, Ctrl+C, Ctrl+Break, console closed or shut down.
    Stop,
    /// SIGHUP; never sent on Windows.
    Reload,
}

/// The stream of requests to this process. Taking it replaces the default of dying at once.
pub struct Requests(imp::Requests);

impl Requests {
    /// Starts listening. Needs a running tokio runtime with I/O.
    ///
    /// # Errors
    /// The operating system's.
    pub fn listen() -> io::Result<Self> {
        imp::Requests::listen().map(Self)
    }

    /// The next request.
    pub async fn next(&mut self) -> Request {
        self.0.next().await
    }
}

/// Ignores what a terminal's Ctrl+C and hang-up send to the whole foreground group: the keeper decides when the node stops.
///
/// # Errors
/// The operating system's.
pub fn leave_to_keeper() -> io::Result<()> {
    imp::leave_to_keeper()
}

#[cfg(unix)]
mod imp {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    use super::{Request, io};

    pub struct Requests {
        terminate: Signal,
        interrupt: Signal,
        hangup: Signal,
    }

    impl Requests {
        pub fn listen() -> io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
            })
        }

        pub async fn next(&mut self) -> Request {
            tokio::select! {
                _ = self.terminate.recv() => Request::Stop,
                _ = self.interrupt.recv() => Request::Stop,
                _ = self.hangup.recv() => Request::Reload,
            }
        }
    }

    pub fn leave_to_keeper() -> io::Result<()> {
        // Registering a handler and dropping its stream leaves the signal caught and unread.
        drop(signal(SignalKind::interrupt())?);
        drop(signal(SignalKind::terminate())?);
        drop(signal(SignalKind::hangup())?);
        Ok(())
    }
}

#[cfg(windows)]
mod imp {
    use tokio::signal::windows::{
        CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
    };

    use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, SetConsoleCtrlHandler};

    use super::{Request, io};

    pub struct Requests {
        c: CtrlC,
        r#break: CtrlBreak,
        close: CtrlClose,
        shutdown: CtrlShutdown,
    }

    impl Requests {
        pub fn listen() -> io::Result<Self> {
            Ok(Self { c: ctrl_c()?, r#break: ctrl_break()?, close: ctrl_close()?, shutdown: ctrl_shutdown()? })
        }

        pub async fn next(&mut self) -> Request {
            tokio::select! {
                _ = self.c.recv() => {}
                _ = self.r#break.recv() => {}
                _ = self.close.recv() => {}
                _ = self.shutdown.recv() => {}
            }
            Request::Stop
        }
    }

    pub fn leave_to_keeper() -> io::Result<()> {
        // SAFETY: the handler is a plain function that lives as long as the process and takes no pointers.
        if unsafe { SetConsoleCtrlHandler(Some(stay), 1) } == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A handler that returns "dealt with" and does nothing. When the console closes, returning would end this process at
    /// once; staying leaves the keeper the seconds that the system grants.
    unsafe extern "system" fn stay(event: u32) -> i32 {
        if !matches!(event, CTRL_C_EVENT | CTRL_BREAK_EVENT) {
            loop {
                std::thread::park();
            }
        }
        1
    }
}
