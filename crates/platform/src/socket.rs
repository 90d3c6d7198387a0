//! Listening sockets that outlive the process that serves them: bound by the keeper, handed to each node process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::process::Command;

/// Connections that may wait, fully opened, while no process accepts them; the system caps it (`net.core.somaxconn`).
pub const BACKLOG: i32 = 4096;

/// Binds `address` for `workers` accepting threads: one socket each where the system spreads connections over them
/// (Linux, `SO_REUSEPORT`), one socket in all elsewhere. Port 0 becomes one free port for all.
///
/// # Errors
/// `AddrInUse` when anybody, another Seawall included, has the port.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    // First without sharing: a port that a stranger listens on must be an error, not a silent share.
    let exclusive = open(address, false)?;
    exclusive.bind(&address.into())?;
    let bound = exclusive.local_addr()?.as_socket().expect("a socket bound to an IP address has one");
    if !imp::SPREADS || workers <= 1 {
        exclusive.listen(BACKLOG)?;
        return Ok(vec![exclusive.into()]);
    }
    drop(exclusive);
    let share = |_| {
        let socket = open(bound, true)?;
        socket.bind(&bound.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..workers).map(share).collect()
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    imp::prepare(&socket, shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether nobody has `port`, on loopback or on any address. Binds without listening, which would make the firewall of
/// Windows ask the user.
pub fn is_free(port: u16) -> bool {
    [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED].into_iter().all(|ip| {
        let address = SocketAddr::from((ip, port));
        open(address, false).and_then(|socket| socket.bind(&address.into())).is_ok()
    })
}

/// Lets the process that `command` starts, and no other, inherit `listeners`.
pub fn inherit(command: &mut Command, listeners: &[TcpListener]) {
    imp::inherit(command, listeners);
}

/// A text by which process `pid`, started with [`inherit`], takes `listener` over.
///
/// # Errors
/// The operating system's.
pub fn export(listener: &TcpListener, pid: u32) -> io::Result<String> {
    imp::export(listener, pid)
}

/// Takes over a socket that the parent process exported to this one. Each text may be used once.
///
/// # Errors
/// `InvalidInput` for a text that names no listening socket of this process.
pub fn import(exported: &str) -> io::Result<TcpListener> {
    imp::import(exported)
}

#[cfg(unix)]
mod imp {
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};

    use super::{Command, Socket, TcpListener, io};

    pub const SPREADS: bool = cfg!(target_os = "linux");

    pub fn prepare(socket: &Socket, shared: bool) -> io::Result<()> {
        // Addresses of closed connections in TIME_WAIT must not keep a restarted keeper from its port.
        socket.set_reuse_address(true)?;
        if shared {
            socket.set_reuse_port(true)?;
        }
        Ok(())
    }

    pub fn inherit(command: &mut Command, listeners: &[TcpListener]) {
        let fds: Vec<RawFd> = listeners.iter().map(AsRawFd::as_raw_fd).collect();
        let keep_open = move || {
            for fd in &fds {
                // SAFETY: the keeper owns the listeners for its whole life, so the descriptor is open in this copy of it.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the hook makes system calls only: no allocation, no lock.
        unsafe { command.pre_exec(keep_open) };
    }

    pub fn export(listener: &TcpListener, _pid: u32) -> io::Result<String> {
        Ok(listener.as_raw_fd().to_string())
    }

    pub fn import(exported: &str) -> io::Result<TcpListener> {
        let fd: RawFd = exported.parse().ok().filter(|fd| *fd > 2).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the keeper names descriptors that it left open for this process alone, each once, so nobody else owns it.
        let listener = unsafe { TcpListener::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
        listener.local_addr()?;
        Ok(listener)
    }
}

#[cfg(windows)]
mod imp {
    use std::fmt::Write as _;
    use std::os::windows::io::{AsRawSocket, FromRawSocket, RawSocket};

    use windows_sys::Win32::Networking::WinSock::{
        FROM_PROTOCOL_INFO, INVALID_SOCKET, SO_EXCLUSIVEADDRUSE, SOCKET, SOL_SOCKET, WSA_FLAG_NO_HANDLE_INHERIT,
        WSA_FLAG_OVERLAPPED, WSADuplicateSocketW, WSAPROTOCOL_INFOW, WSASocketW, setsockopt,
    };

    use super::{Command, Socket, TcpListener, io};

    pub const SPREADS: bool = false;

    pub fn prepare(socket: &Socket, _shared: bool) -> io::Result<()> {
        let exclusive: i32 = 1;
        // SAFETY: a valid socket, and a pointer to four readable bytes.
        let set = unsafe {
            setsockopt(
                socket.as_raw_socket() as SOCKET,
                SOL_SOCKET,
                SO_EXCLUSIVEADDRUSE,
                (&raw const exclusive).cast(),
                4,
            )
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sockets are duplicated into the process by name instead: see [`export`].
    pub fn inherit(_command: &mut Command, _listeners: &[TcpListener]) {}

    pub fn export(listener: &TcpListener, pid: u32) -> io::Result<String> {
        // SAFETY: the structure is plain data, zero is a valid value of it, and the call fills it.
        let mut info: WSAPROTOCOL_INFOW = unsafe { std::mem::zeroed() };
        // SAFETY: a valid socket and a pointer to a structure of the right type.
        if unsafe { WSADuplicateSocketW(listener.as_raw_socket() as SOCKET, pid, &raw mut info) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let size = size_of::<WSAPROTOCOL_INFOW>();
        // SAFETY: the structure is plain data without padding that matters; its bytes are read only.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const info).cast::<u8>(), size) };
        let mut text = String::with_capacity(size * 2);
        for byte in bytes {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }

    pub fn import(exported: &str) -> io::Result<TcpListener> {
        let size = size_of::<WSAPROTOCOL_INFOW>();
        let bytes: Option<Vec<u8>> = (0..exported.len() / 2)
            .map(|index| u8::from_str_radix(exported.get(index * 2..index * 2 + 2)?, 16).ok())
            .collect();
        let bytes = bytes.filter(|bytes| bytes.len() == size).ok_or(io::ErrorKind::InvalidInput)?;
        // Binding any socket first makes std initialise Winsock for this process.
        drop(std::net::UdpSocket::bind("127.0.0.1:0")?);
        // SAFETY: the text has exactly the structure's size, and any bytes are a valid value of plain data.
        let info: WSAPROTOCOL_INFOW = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        // SAFETY: the structure is valid for the call; a wrong one is answered with INVALID_SOCKET.
        let socket = unsafe {
            WSASocketW(
                FROM_PROTOCOL_INFO,
                FROM_PROTOCOL_INFO,
                FROM_PROTOCOL_INFO,
                &raw const info,
                0,
                WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT,
            )
        };
        if socket == INVALID_SOCKET {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the socket was made by the call above and belongs to nobody else.
        Ok(unsafe { TcpListener::from_raw_socket(socket as RawSocket) })
    }
}

#[cfg(test)]
mod tests {
    use super::{bind, is_free};

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        assert!(!is_free(port));
    }

    #[test]
    fn a_taken_port_is_an_error_even_between_sharers() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        assert!(first.iter().all(|socket| socket.local_addr().unwrap() == address));
        let second = bind(address, 2).unwrap_err();
        assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    }
}
