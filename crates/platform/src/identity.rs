//! Who is at the other end of a loopback connection, and files that only their owner reads.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

/// True when the process at the other end of the loopback TCP connection `local` <- `peer` runs as this process's user
/// (or as root, who could be anybody anyway). False when it cannot be known.
pub fn peer_is_same_user(local: SocketAddr, peer: SocketAddr) -> bool {
    local.ip().is_loopback() && peer.ip().is_loopback() && imp::peer_is_same_user(local, peer)
}

/// Writes `contents` to `path` so that only the owner can read it, replacing what was there.
///
/// # Errors
/// The operating system's.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    create_private(path)?.write_all(contents)
}

/// Makes a file that only its owner can read, in place of one that may be there.
///
/// # Errors
/// The operating system's.
pub fn create_private(path: &Path) -> io::Result<File> {
    // A fresh file: permissions of an existing one would survive the open.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    imp::create_private(path)
}

/// The same, so that whoever reads `path` finds what was there before or all of `contents`, also after the process or the
/// machine has died. What is written meanwhile stands beside it, with the extension `new`.
///
/// # Errors
/// The operating system's; then what was there before still is.
pub fn replace_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    write_private(&fresh, contents)?;
    // For writing: Windows flushes nothing through a handle that only reads.
    File::options().write(true).open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, path)?;
    path.parent().map_or(Ok(()), crate::file::sync_directory)
}

/// The machine's name, if it can be known.
pub fn host_name() -> Option<String> {
    imp::host_name()
}

#[cfg(unix)]
mod imp {
    use std::net::{IpAddr, SocketAddr};
    use std::os::unix::fs::OpenOptionsExt;

    use super::{File, Path, io};

    pub fn peer_is_same_user(local: SocketAddr, peer: SocketAddr) -> bool {
        let own = rustix::process::geteuid().as_raw();
        // The peer's own socket has the two addresses the other way round.
        owner_of(peer, local).is_some_and(|uid| uid == own || uid == 0)
    }

    #[cfg(target_os = "linux")]
    fn owner_of(local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        crate::sock_diag::owner(local, remote).unwrap_or_else(|_| owner(local, remote))
    }

    #[cfg(not(target_os = "linux"))]
    fn owner_of(local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        owner(local, remote)
    }

    /// `TCP_ESTABLISHED` as `/proc/net/tcp` writes it.
    const ESTABLISHED: &str = "01";

    /// The user that owns the connected TCP socket `local` -> `remote`, from the kernel's table.
    fn owner(local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        let table = if local.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        let (local, remote) = (hexadecimal(local), hexadecimal(remote));
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let mut fields = line.split_whitespace();
            let same = fields.nth(1)? == local && fields.next()? == remote;
            // Only an open socket names its owner: the kernel shows user 0 for one that was closed already, and
            // whoever sends a request and closes at once would pass for root.
            let open = fields.next()? == ESTABLISHED;
            // After the state: queues, timer, retransmits, then the user.
            (same && open).then(|| fields.nth(3)?.parse().ok()).flatten()
        })
    }

    /// An address as `/proc/net/tcp` writes it: 32-bit words in the machine's byte order.
    fn hexadecimal(address: SocketAddr) -> String {
        let octets = match address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let ip: String = words.map(|word| format!("{word:08X}")).collect();
        format!("{ip}:{:04X}", address.port())
    }

    pub fn create_private(path: &Path) -> io::Result<File> {
        File::options().write(true).create_new(true).mode(0o600).open(path)
    }

    pub fn host_name() -> Option<String> {
        let name = rustix::system::uname();
        name.nodename().to_str().ok().map(str::to_owned)
    }
}

#[cfg(windows)]
mod imp {
    use std::net::SocketAddr;
    use std::os::windows::ffi::OsStrExt as _;
    use std::os::windows::io::{FromRawHandle as _, RawHandle};

    use windows_sys::Win32::Foundation::{
        CloseHandle, ERROR_INSUFFICIENT_BUFFER, GENERIC_WRITE, HANDLE, INVALID_HANDLE_VALUE, LocalFree, NO_ERROR,
    };
    use windows_sys::Win32::NetworkManagement::IpHelper::{
        GetExtendedTcpTable, MIB_TCP_STATE_ESTAB, MIB_TCP6ROW_OWNER_PID, MIB_TCPROW_OWNER_PID,
        TCP_TABLE_OWNER_PID_CONNECTIONS,
    };
    use windows_sys::Win32::Networking::WinSock::{AF_INET, AF_INET6};
    use windows_sys::Win32::Security::Authorization::{
        ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
    };
    use windows_sys::Win32::Security::{
        EqualSid, GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
    };
    use windows_sys::Win32::Storage::FileSystem::{CREATE_NEW, CreateFileW, FILE_ATTRIBUTE_NORMAL, FILE_SHARE_READ};
    use windows_sys::Win32::System::Threading::{
        GetCurrentProcess, OpenProcess, OpenProcessToken, PROCESS_QUERY_LIMITED_INFORMATION,
    };

    use super::{File, Path, io};

    pub fn peer_is_same_user(local: SocketAddr, peer: SocketAddr) -> bool {
        let Some(pid) = owner(peer, local) else { return false };
        // SAFETY: GetCurrentProcess returns a pseudo-handle that needs no closing; the opened handle is checked and closed.
        unsafe {
            let process = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid);
            if process.is_null() {
                return false;
            }
            let (own, theirs) = (user(GetCurrentProcess()), user(process));
            CloseHandle(process);
            let (Some(own), Some(theirs)) = (own, theirs) else { return false };
            let sid = |buffer: &Vec<u64>| (*buffer.as_ptr().cast::<TOKEN_USER>()).User.Sid;
            EqualSid(sid(&own), sid(&theirs)) != 0
        }
    }

    /// The TOKEN_USER of a process, in a buffer aligned for it.
    unsafe fn user(process: HANDLE) -> Option<Vec<u64>> {
        let mut token: HANDLE = std::ptr::null_mut();
        // SAFETY: the caller passes a live process handle; the token is closed below.
        if unsafe { OpenProcessToken(process, TOKEN_QUERY, &raw mut token) } == 0 {
            return None;
        }
        let mut buffer = vec![0_u64; 64];
        let mut length = 0;
        // SAFETY: the buffer has the size passed; the token is live and closed once.
        let known = unsafe {
            let known = GetTokenInformation(token, TokenUser, buffer.as_mut_ptr().cast(), 512, &raw mut length);
            CloseHandle(token);
            known
        };
        (known != 0).then_some(buffer)
    }

    /// The process that owns the connected TCP socket `local` -> `remote`, from the system's table.
    fn owner(local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        // As on Linux, a socket that was closed already names nobody.
        let open = |state: u32| state == MIB_TCP_STATE_ESTAB.cast_unsigned();
        let same_port = |port: u16, in_row: u32| u32::from(port.to_be()) == in_row & 0xffff;
        match (local, remote) {
            (SocketAddr::V4(local), SocketAddr::V4(remote)) => {
                let table = table(AF_INET)?;
                // SAFETY: the system filled the buffer with a table of this kind.
                let rows: &[MIB_TCPROW_OWNER_PID] = unsafe { rows(&table) };
                let same = |ip: std::net::Ipv4Addr, in_row: u32| u32::from_ne_bytes(ip.octets()) == in_row;
                let row = rows.iter().find(|row| {
                    open(row.dwState)
                        && same(*local.ip(), row.dwLocalAddr)
                        && same(*remote.ip(), row.dwRemoteAddr)
                        && same_port(local.port(), row.dwLocalPort)
                        && same_port(remote.port(), row.dwRemotePort)
                });
                row.map(|row| row.dwOwningPid)
            }
            (SocketAddr::V6(local), SocketAddr::V6(remote)) => {
                let table = table(AF_INET6)?;
                // SAFETY: the system filled the buffer with a table of this kind.
                let rows: &[MIB_TCP6ROW_OWNER_PID] = unsafe { rows(&table) };
                let row = rows.iter().find(|row| {
                    open(row.dwState)
                        && local.ip().octets() == row.ucLocalAddr
                        && remote.ip().octets() == row.ucRemoteAddr
                        && same_port(local.port(), row.dwLocalPort)
                        && same_port(remote.port(), row.dwRemotePort)
                });
                row.map(|row| row.dwOwningPid)
            }
            _ => None,
        }
    }

    /// The system's table of connections with their owners: a 32-bit count, then the rows.
    fn table(family: u16) -> Option<Vec<u32>> {
        let mut words = 1 << 14;
        // It may grow between two calls; a machine with more connections than this has another problem.
        while words <= 1 << 24 {
            let mut buffer = vec![0_u32; words];
            let mut size = u32::try_from(words * 4).ok()?;
            let table = buffer.as_mut_ptr().cast();
            // SAFETY: the buffer has the size passed and the alignment of the table.
            let result = unsafe {
                GetExtendedTcpTable(table, &raw mut size, 0, u32::from(family), TCP_TABLE_OWNER_PID_CONNECTIONS, 0)
            };
            match result {
                NO_ERROR => return Some(buffer),
                ERROR_INSUFFICIENT_BUFFER => words *= 4,
                _ => return None,
            }
        }
        None
    }

    /// The rows of a table that [`table`] returned.
    ///
    /// # Safety
    /// `Row` must be the plain 32-bit aligned structure of the table's family.
    unsafe fn rows<Row>(table: &[u32]) -> &[Row] {
        let fit = (table.len() - 1) * 4 / size_of::<Row>();
        let count = (table[0] as usize).min(fit);
        // SAFETY: the rows begin behind the count, and no more are taken than the buffer holds.
        unsafe { std::slice::from_raw_parts(table[1..].as_ptr().cast(), count) }
    }

    /// Nobody but the owner, the system and administrators, whatever the folder would pass on.
    const OWNER_ONLY: &str = "D:P(A;;FA;;;OW)(A;;FA;;;SY)(A;;FA;;;BA)";

    pub fn create_private(path: &Path) -> io::Result<File> {
        let wide = |text: &std::ffi::OsStr| text.encode_wide().chain([0]).collect::<Vec<u16>>();
        let (path, rules) = (wide(path.as_os_str()), wide(OWNER_ONLY.as_ref()));
        let mut descriptor: PSECURITY_DESCRIPTOR = std::ptr::null_mut();
        // SAFETY: both strings end with a zero and outlive the calls; the descriptor is freed after its only use, and the
        // file's handle is checked and belongs to nobody else.
        unsafe {
            if ConvertStringSecurityDescriptorToSecurityDescriptorW(
                rules.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                std::ptr::null_mut(),
            ) == 0
            {
                return Err(io::Error::last_os_error());
            }
            let attributes = SECURITY_ATTRIBUTES {
                nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).expect("a small structure"),
                lpSecurityDescriptor: descriptor,
                bInheritHandle: 0,
            };
            let file = CreateFileW(
                path.as_ptr(),
                GENERIC_WRITE,
                FILE_SHARE_READ,
                &raw const attributes,
                CREATE_NEW,
                FILE_ATTRIBUTE_NORMAL,
                std::ptr::null_mut(),
            );
            let error = io::Error::last_os_error();
            LocalFree(descriptor);
            if file == INVALID_HANDLE_VALUE { Err(error) } else { Ok(File::from_raw_handle(file as RawHandle)) }
        }
    }

    pub fn host_name() -> Option<String> {
        std::env::var("COMPUTERNAME").ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::{peer_is_same_user, replace_private, write_private};

    fn knows_itself_at(address: &str) {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, peer) = listener.accept().unwrap();
        // A peer is asked about once it has sent something; some systems know the owner of a socket only then.
        client.write_all(b"?").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        assert!(peer_is_same_user(accepted.local_addr().unwrap(), peer));
        let stranger = std::net::SocketAddr::new(peer.ip(), 1);
        assert!(!peer_is_same_user(accepted.local_addr().unwrap(), stranger));
    }

    #[test]
    fn a_connection_from_this_process_is_the_same_user() {
        knows_itself_at("127.0.0.1:0");
    }

    #[test]
    fn a_connection_over_ipv6_is_the_same_user() {
        // A machine without IPv6 has nothing to check.
        if std::net::TcpListener::bind("[::1]:0").is_ok() {
            knows_itself_at("[::1]:0");
        }
    }

    #[test]
    fn a_private_file_replaces_what_was_there_and_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "of somebody else, and longer").unwrap();
        write_private(&path, b"secret").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
        std::fs::write(path.with_extension("new"), "of a process that was killed").unwrap();
        replace_private(&path, b"another").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_connection_that_its_owner_has_closed_names_nobody() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        drop(client);
        assert!(!peer_is_same_user(accepted.local_addr().unwrap(), peer));
    }
}
