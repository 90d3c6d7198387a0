//! A panic where the log is written or applied ends the process: a replica that skipped something must not go on.

/// Aborts the process if dropped by a panic.
pub(crate) struct AbortOnPanic {
    /// What was going on, for the log.
    pub doing: &'static str,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        // In a simulated world many others are in this process, and the panic is told by name.
        if std::thread::panicking() && !crate::surroundings::is_simulated() {
            tracing::error!(doing = self.doing, "panicked: aborting the process");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AbortOnPanic;

    const CHILD: &str = "SEAWALL_TEST_ABORT_CHILD";

    #[test]
    fn a_panic_under_the_guard_ends_the_process_though_the_thread_would_have_caught_it() {
        if std::env::var_os(CHILD).is_some() {
            let _ = std::thread::spawn(|| {
                let _guard = AbortOnPanic { doing: "testing" };
                panic!("as a bug in apply would");
            })
            .join();
            std::process::exit(0);
        }
        let name = "abort::tests::a_panic_under_the_guard_ends_the_process_though_the_thread_would_have_caught_it";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let status = child.args(["--exact", name]).env(CHILD, "1").output().unwrap().status;
        assert!(!status.success(), "the child went on after the panic");
    }
}
