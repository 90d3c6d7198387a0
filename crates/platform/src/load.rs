//! How much this machine has to do: its load, and how busy its processors are between two looks.
//! Deliberately absent: when to look, and what is too much.

/// Processors' time since the machine started, in any unit.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    busy: u64,
    all: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Linux: programs that ran or wanted to, on average over a minute. Windows has no such figure: processors that were
    /// busy.
    pub load: f64,
    /// The part of all processors' time in which they were busy, since the look before; 0 at the first.
    pub cpu: f64,
}

/// Looks from time to time.
#[derive(Debug, Default)]
pub struct Sampler {
    last: Option<Times>,
}

impl Sampler {
    /// What happened since the look before. What the system does not tell is zero.
    pub fn measure(&mut self) -> Measured {
        let now = imp::times();
        let cpu = match (self.last, now) {
            (Some(last), Some(now)) if now.all > last.all => {
                let busy = now.busy.saturating_sub(last.busy) as f64;
                (busy / (now.all - last.all) as f64).clamp(0.0, 1.0)
            }
            _ => 0.0,
        };
        self.last = now;
        let processors = || std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Measured { load: imp::average().unwrap_or_else(|| cpu * processors()), cpu }
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use super::Times;

    pub fn average() -> Option<f64> {
        std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
    }

    /// `proc(5)`: user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    pub fn times() -> Option<Times> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let first = text.lines().next()?.strip_prefix("cpu")?;
        let parts: Vec<u64> = first.split_whitespace().take(8).map_while(|part| part.parse().ok()).collect();
        let all = parts.iter().sum();
        let idle = parts.get(3)? + parts.get(4).copied().unwrap_or(0);
        Some(Times { busy: all - idle, all })
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod imp {
    use super::Times;

    pub fn average() -> Option<f64> {
        None
    }

    pub fn times() -> Option<Times> {
        None
    }
}

#[cfg(windows)]
mod imp {
    use windows_sys::Win32::Foundation::FILETIME;
    use windows_sys::Win32::System::Threading::GetSystemTimes;

    use super::Times;

    pub fn average() -> Option<f64> {
        None
    }

    pub fn times() -> Option<Times> {
        let zero = FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 };
        let (mut idle, mut kernel, mut user) = (zero, zero, zero);
        // SAFETY: three places to write to, each alive through the call.
        let worked = unsafe { GetSystemTimes(&mut idle, &mut kernel, &mut user) };
        let whole = |time: FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
        // The kernel's time has the idle one in it.
        let all = whole(kernel) + whole(user);
        (worked != 0).then(|| Times { busy: all.saturating_sub(whole(idle)), all })
    }
}

#[cfg(test)]
mod tests {
    use super::Sampler;

    #[test]
    fn a_busy_thread_is_seen() {
        let mut sampler = Sampler::default();
        assert_eq!(sampler.measure().cpu.to_bits(), 0, "the first look has nothing before it");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut seen = 0.0;
        while seen <= 0.0 && std::time::Instant::now() < until {
            std::hint::black_box((0..10_000_000_u64).fold(0, u64::wrapping_add));
            seen = sampler.measure().cpu;
        }
        assert!(seen > 0.0 && seen <= 1.0, "{seen}");
    }
}
