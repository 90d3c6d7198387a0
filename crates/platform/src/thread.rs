//! What a thread is worth to the scheduler beside the others of this process and machine.
//! Deliberately absent: priorities above the usual, which need rights that a service should not have.

/// Has the calling thread, for as long as it lives, be let in sooner once it has something to do while others use the
/// processors: it does little at a time, and somebody waits for it. It gets no greater share than before, and what it starts
/// is as usual. A system that does not know of this leaves the thread as it was.
pub fn answer_soon() {
    imp::answer_soon();
}

/// Has the calling thread, for as long as it lives, and what it starts, take the processor after those that have not called
/// this, where they compete for one: work that is much and may take longer must not make wait what is little and urgent. It
/// still gets a share of a processor that is always busy. A system that refuses leaves the thread as it was.
pub fn give_way() {
    imp::give_way();
}

#[cfg(target_os = "linux")]
mod imp {
    /// A tenth of the weight of a usual thread. With less, others that are always busy could keep one from its heartbeats for so
    /// long that its group elects.
    const NICE: i32 = 10;
    /// What the scheduler lets a thread have at a time, in nanoseconds; the usual is about ten times that. Whoever wakes up with
    /// less than the one that runs need not wait for its time to be up (Linux 6.12 and later; before, it is not looked at).
    const SLICE_NS: u64 = 200_000;
    /// `SCHED_NORMAL`: whoever was given another policy keeps it.
    const NORMAL: u32 = 0;
    /// `SCHED_BATCH`.
    const BATCH: u32 = 3;
    /// `SCHED_FLAG_RESET_ON_FORK`: threads and processes that are started from here are as usual.
    const RESET_ON_FORK: u64 = 1;

    /// `struct sched_attr`, version 0.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }

    /// Its size.
    const BYTES: u32 = 48;

    pub fn give_way() {
        // On Linux this is about one thread, not about its process. Whoever gives way more stays so; a sandbox may refuse.
        if rustix::process::getpriority_process(None).is_ok_and(|nice| nice < NICE) {
            let _ = rustix::process::setpriority_process(None, NICE);
        }
        // Whoever wakes up takes the processor from nobody that has it.
        if let Some(mut attributes) = attributes().filter(|attributes| attributes.policy == NORMAL) {
            attributes.policy = BATCH;
            // SAFETY: the system reads as many bytes as there are, and keeps no reference.
            let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        }
    }

    pub fn answer_soon() {
        let Some(mut attributes) = attributes() else { return };
        // To start others as usual would take from them what this process was given.
        if attributes.policy != NORMAL || attributes.nice < 0 {
            return;
        }
        attributes.runtime = SLICE_NS;
        attributes.flags = RESET_ON_FORK;
        // SAFETY: the system reads as many bytes as there are, and keeps no reference.
        let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }

    /// Of the calling thread.
    fn attributes() -> Option<Attributes> {
        let mut attributes = Attributes::default();
        // SAFETY: the system writes no more than so many bytes, which is what is there.
        let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, BYTES, 0) };
        (got == 0).then_some(attributes)
    }

    #[cfg(test)]
    mod tests {
        use super::{Attributes, BATCH, BYTES, NICE, NORMAL, SLICE_NS, attributes};

        #[test]
        fn who_answers_soon_keeps_its_share_and_starts_others_as_usual() {
            assert_eq!(size_of::<Attributes>(), BYTES as usize);
            let started = std::thread::spawn(|| {
                let before = attributes().unwrap();
                super::answer_soon();
                let after = attributes().unwrap();
                assert_eq!((after.nice, after.policy), (before.nice, before.policy));
                // A system that knows of slices says what they are.
                if before.runtime != 0 && before.nice >= 0 {
                    assert_eq!(after.runtime, SLICE_NS);
                    let started = std::thread::spawn(|| attributes().unwrap().runtime).join().unwrap();
                    assert_eq!(started, before.runtime);
                }
            });
            started.join().unwrap();
        }

        #[test]
        fn who_gives_way_does_so_alone() {
            let of = |attributes: Attributes| (attributes.nice, attributes.policy);
            let before = of(attributes().unwrap());
            let gave_way = std::thread::spawn(move || {
                super::give_way();
                of(attributes().unwrap())
            });
            let policy = if before.1 == NORMAL { BATCH } else { before.1 };
            assert_eq!(gave_way.join().unwrap(), (before.0.max(NICE), policy));
            assert_eq!(of(attributes().unwrap()), before);
        }
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod imp {
    pub fn answer_soon() {}

    /// Elsewhere a priority is that of the whole process.
    pub fn give_way() {}
}

#[cfg(windows)]
mod imp {
    use windows_sys::Win32::System::Threading::{GetCurrentThread, SetThreadPriority, THREAD_PRIORITY_BELOW_NORMAL};

    /// Windows by itself prefers whoever has waited.
    pub fn answer_soon() {}

    pub fn give_way() {
        // SAFETY: the handle that stands for the calling thread is always valid, and is not closed.
        let _ = unsafe { SetThreadPriority(GetCurrentThread(), THREAD_PRIORITY_BELOW_NORMAL) };
    }
}
