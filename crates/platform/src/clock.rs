//! The clock of stop deadlines: it counts suspend, so a machine that slept wakes up with its deadlines passed.

use std::time::Duration;

/// Time since the machine started, suspend included. The same for all processes of the machine.
pub fn since_boot() -> Duration {
    imp::since_boot()
}

#[cfg(target_os = "linux")]
mod imp {
    use super::Duration;

    pub fn since_boot() -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod imp {
    use super::Duration;

    pub fn since_boot() -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}

#[cfg(windows)]
mod imp {
    use super::Duration;

    pub fn since_boot() -> Duration {
        // SAFETY: takes no pointer and cannot fail. GetTickCount64 includes time spent asleep.
        Duration::from_millis(unsafe { windows_sys::Win32::System::SystemInformation::GetTickCount64() })
    }
}
