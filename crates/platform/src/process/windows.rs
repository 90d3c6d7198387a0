//! Process trees on Windows: a job object for each tree, and one around the keeper that ends everything when its last
//! handle closes. A process is started suspended and put into its job before it runs, so none of its children escapes.

use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle, RawHandle};

use windows_sys::Win32::Foundation::{CloseHandle, FILETIME, HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Console::{
    AllocConsole, CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent, GetConsoleProcessList, GetConsoleWindow, GetStdHandle,
    STD_ERROR_HANDLE, STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, SetStdHandle,
};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, JOBOBJECT_BASIC_PROCESS_ID_LIST,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectBasicProcessIdList, JobObjectExtendedLimitInformation,
    QueryInformationJobObject, SetInformationJobObject, TerminateJobObject,
};
use windows_sys::Win32::System::ProcessStatus::{GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CREATE_SUSPENDED, GetCurrentProcess, GetProcessTimes, OpenProcess, OpenThread,
    PROCESS_QUERY_LIMITED_INFORMATION, ResumeThread, THREAD_SUSPEND_RESUME,
};
use windows_sys::Win32::UI::WindowsAndMessaging::{SW_HIDE, ShowWindow};

use super::{Command, Duration, ExitStatus, Pipes, io};

pub const MAX_PIPE_THREADS: usize = 4096;

/// The exit code of what was killed; `taskkill /f` uses the same.
const KILLED: u32 = 1;
/// Members of a job that are listed at a time. More still count as leftovers; they are killed by job, not by this list.
const LISTED: usize = 1024;

/// The first process of a tree, in a job of its own.
#[derive(Debug)]
pub struct Root {
    child: tokio::process::Child,
    job: Job,
}

impl Root {
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        // Its own group: Ctrl+Break can then be sent to it alone, and Ctrl+C at the console reaches only the keeper.
        command.creation_flags(CREATE_SUSPENDED | CREATE_NEW_PROCESS_GROUP);
        let job = Job::new()?;
        let mut child = command.spawn()?;
        let handle = child.raw_handle().ok_or_else(|| io::Error::other("the process has no handle"))?;
        let started = job.add(handle.cast()).and_then(|()| resume(child.id().unwrap_or(0)));
        if let Err(error) = started {
            // Ignored: it never ran, and closing its job ends it as well.
            let _ = child.start_kill();
            return Err(error);
        }
        Ok(Self { child, job })
    }

    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    pub fn pipes(&mut self) -> Pipes {
        (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take())
    }

    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    pub fn kill(&mut self) -> io::Result<()> {
        // SAFETY: a live job handle.
        if unsafe { TerminateJobObject(self.job.raw(), KILLED) } == 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Living members of the job besides the root, which has ended.
    pub fn leftovers(&self, root: u32, _marker: &str) -> Vec<u32> {
        let mut members = self.job.members();
        members.retain(|pid| *pid != root);
        members
    }
}

/// A job object whose processes end when it is dropped.
#[derive(Debug)]
struct Job(OwnedHandle);

impl Job {
    fn new() -> io::Result<Self> {
        // SAFETY: no attributes, no name: an unnamed job whose handle nobody inherits.
        let handle = unsafe { CreateJobObjectW(std::ptr::null(), std::ptr::null()) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle was made by the call above and belongs to nobody else.
        let job = Self(unsafe { OwnedHandle::from_raw_handle(handle as RawHandle) });
        // SAFETY: the structure is plain data, and zero means no limit.
        let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { std::mem::zeroed() };
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        // SAFETY: a live job and a structure of the class and size passed.
        let limited = unsafe {
            SetInformationJobObject(
                job.raw(),
                JobObjectExtendedLimitInformation,
                (&raw const limits).cast(),
                size_in_bytes(&limits),
            )
        };
        if limited == 0 { Err(io::Error::last_os_error()) } else { Ok(job) }
    }

    fn raw(&self) -> HANDLE {
        self.0.as_raw_handle().cast()
    }

    fn add(&self, process: HANDLE) -> io::Result<()> {
        // SAFETY: both handles are live.
        if unsafe { AssignProcessToJobObject(self.raw(), process) } == 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn members(&self) -> Vec<u32> {
        // A header of two 32-bit counts, then the ids: one word and `LISTED` words.
        let mut buffer = vec![0_usize; 1 + LISTED];
        let bytes = u32::try_from(size_of_val(buffer.as_slice())).expect("a fixed size");
        let list = buffer.as_mut_ptr().cast::<JOBOBJECT_BASIC_PROCESS_ID_LIST>();
        // SAFETY: the buffer has the size passed and the alignment of the structure. When more processes are in the job
        // than fit, the call fails and yet fills what fits.
        let count = unsafe {
            QueryInformationJobObject(
                self.raw(),
                JobObjectBasicProcessIdList,
                list.cast(),
                bytes,
                std::ptr::null_mut(),
            );
            (*list).NumberOfProcessIdsInList as usize
        };
        buffer[1..].iter().take(count).filter_map(|pid| u32::try_from(*pid).ok()).collect()
    }
}

fn size_in_bytes<T>(value: &T) -> u32 {
    u32::try_from(size_of_val(value)).expect("a small structure")
}

/// Lets a process run that was started suspended: its only thread is found in the system's list of threads.
fn resume(pid: u32) -> io::Result<()> {
    // SAFETY: no pointers; the snapshot is checked and closed by its owner.
    let snapshot = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0) };
    if snapshot == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was made by the call above and belongs to nobody else.
    let snapshot = unsafe { OwnedHandle::from_raw_handle(snapshot as RawHandle) };
    // SAFETY: the structure is plain data; its size is filled in before its first use.
    let mut entry: THREADENTRY32 = unsafe { std::mem::zeroed() };
    entry.dwSize = size_in_bytes(&entry);
    let mut resumed = false;
    // SAFETY: a live snapshot and a structure that says its size.
    let mut more = unsafe { Thread32First(snapshot.as_raw_handle().cast(), &raw mut entry) };
    while more != 0 {
        if entry.th32OwnerProcessID == pid {
            // SAFETY: the thread's handle is checked and closed; the thread cannot end while it is suspended.
            unsafe {
                let thread = OpenThread(THREAD_SUSPEND_RESUME, 0, entry.th32ThreadID);
                if thread.is_null() {
                    return Err(io::Error::last_os_error());
                }
                resumed |= ResumeThread(thread) != u32::MAX;
                CloseHandle(thread);
            }
        }
        // SAFETY: as above.
        more = unsafe { Thread32Next(snapshot.as_raw_handle().cast(), &raw mut entry) };
    }
    if resumed { Ok(()) } else { Err(io::Error::other("the process was started but cannot be let run")) }
}

pub fn terminate(root: u32) -> io::Result<()> {
    // SAFETY: no pointers; the group id is the pid of a process started with CREATE_NEW_PROCESS_GROUP.
    if unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, root) } == 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

pub fn reap(_root: u32) {}

/// Jobs leave no strays: what a killed keeper ran has ended with its job.
pub fn kill_marked(_prefix: &str) -> usize {
    0
}

/// The job of [`adopt_descendants`] ends every process in it, whatever state it is in.
pub fn wakes_with_parent(_: &mut Command) {}

pub fn adopt_descendants() -> io::Result<()> {
    ensure_console();
    let job = Job::new()?;
    // SAFETY: takes nothing; returns a pseudo-handle that needs no closing.
    job.add(unsafe { GetCurrentProcess() })?;
    // Deliberately never closed: the system does it when this process ends, and that ends every process in the job.
    std::mem::forget(job);
    Ok(())
}

/// Ctrl+Break reaches only processes that share a console with the sender. A service, or a process started detached,
/// has none: it gets one of its own, hidden. Without one a stop is a kill after the grace period.
fn ensure_console() {
    let mut first = 0;
    // SAFETY: the list has room for the one entry promised; the other calls take no pointers, and a missing console,
    // window or handle is answered with null.
    unsafe {
        if GetConsoleProcessList(&raw mut first, 1) != 0 {
            return;
        }
        let names = [STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, STD_ERROR_HANDLE];
        let before = names.map(|name| GetStdHandle(name));
        if AllocConsole() == 0 {
            return;
        }
        // A new console may take the standard handles over; they stay what whoever started this process gave it.
        for (name, handle) in names.into_iter().zip(before) {
            SetStdHandle(name, handle);
        }
        let window = GetConsoleWindow();
        if !window.is_null() {
            ShowWindow(window, SW_HIDE);
        }
    }
}

pub fn resident_bytes(pid: u32) -> Option<u64> {
    // SAFETY: the handle is checked and closed; the counters are a zeroed structure of the size passed.
    unsafe {
        let process = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid);
        if process.is_null() {
            return None;
        }
        let mut counters: PROCESS_MEMORY_COUNTERS = std::mem::zeroed();
        let size = size_in_bytes(&counters);
        let known = GetProcessMemoryInfo(process, &raw mut counters, size);
        CloseHandle(process);
        (known != 0).then_some(counters.WorkingSetSize as u64)
    }
}

pub fn cpu_time(pid: u32) -> Option<Duration> {
    let zero = FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 };
    let (mut created, mut ended, mut kernel, mut user) = (zero, zero, zero, zero);
    // SAFETY: the handle is checked and closed; all four times are valid to write to.
    let known = unsafe {
        let process = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid);
        if process.is_null() {
            return None;
        }
        let known = GetProcessTimes(process, &raw mut created, &raw mut ended, &raw mut kernel, &raw mut user);
        CloseHandle(process);
        known
    };
    let of = |time: FILETIME| (u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime)) * 100;
    (known != 0).then(|| Duration::from_nanos(of(kernel) + of(user)))
}

pub fn describe_exit(status: ExitStatus) -> String {
    let Some(code) = status.code() else { return "an unknown status".into() };
    let meaning = match code.cast_unsigned() {
        0xC000_0005 => " (access violation)",
        0xC000_0017 => " (no memory)",
        0xC000_00FD => " (stack overflow)",
        0xC000_0135 => " (a DLL is missing)",
        0xC000_013A => " (Ctrl+C or Ctrl+Break)",
        0xC000_0409 => " (aborted)",
        large if large >= 0x8000_0000 => "",
        _ => return format!("exit code {code}"),
    };
    format!("exit code {code:#X}{meaning}")
}
