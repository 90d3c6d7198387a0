//! Whose a TCP socket of this machine is: Linux answers for one connection by netlink (`sock_diag(7)`), in the same few
//! microseconds however many there are. Deliberately absent: reading `/proc/net/tcp`, which grows with all connections
//! of the machine (`identity.rs` does it where this is not to be had), and any other system.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `SOCK_DIAG_BY_FAMILY`, as request and answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `TCP_ESTABLISHED`.
const ESTABLISHED: u8 = 1;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2` and `struct inet_diag_msg`: where the socket's addresses stand, and how long they are.
const REQUEST_BYTES: usize = 56;
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;
/// Ports and addresses of `struct inet_diag_sockid`, without interface and cookie.
const ENDS: usize = 36;
const ANSWER_BYTES: usize = 72;
const USER_IN_ANSWER: usize = 64;

/// The user that owns the connected TCP socket `local` -> `remote`; `None` if no open connection has these ends.
///
/// # Errors
/// The kernel does not answer such questions here.
pub fn owner(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let request = request(local, remote);
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(SOCK_DIAG),
    )?;
    // An unconnected netlink socket speaks to the kernel, which has answered when `send` returns.
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    read(&answer[..length], &request[HEADER + ID_IN_REQUEST..][..ENDS])
}

fn request(local: SocketAddr, remote: SocketAddr) -> [u8; HEADER + REQUEST_BYTES] {
    let mut request = [0; HEADER + REQUEST_BYTES];
    request[..4].copy_from_slice(&((HEADER + REQUEST_BYTES) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    let body = &mut request[HEADER..];
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    body[0] = family.as_raw() as u8;
    body[1] = TCP;
    // Any state: whoever has closed his end is told from whoever was never there by the answer's state.
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    let id = &mut body[ID_IN_REQUEST..];
    id[0..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    for (place, address) in [(4, local.ip()), (20, remote.ip())] {
        match address {
            IpAddr::V4(ip) => id[place..place + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => id[place..place + 16].copy_from_slice(&ip.octets()),
        }
    }
    // The interface is any; the cookie is `INET_DIAG_NOCOOKIE`.
    id[40..48].fill(0xff);
    request
}

/// The user in an answer about the socket with these ends.
fn read(answer: &[u8], ends: &[u8]) -> io::Result<Option<u32>> {
    let body = answer.get(HEADER..).unwrap_or_default();
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    if kind == Some(BY_FAMILY) && body.len() >= ANSWER_BYTES {
        let is_it = body[1] == ESTABLISHED && body[ID_IN_ANSWER..][..ENDS] == *ends;
        let user = &body[USER_IN_ANSWER..][..4];
        return Ok(is_it.then(|| u32::from_ne_bytes([user[0], user[1], user[2], user[3]])));
    }
    // Else it is an error's number, negative: no such socket is an answer, too.
    let code = body.get(..4).map_or(0, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
    let error = io::Error::from_raw_os_error(-code);
    if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

    use super::owner;

    #[test]
    fn a_connection_is_its_users_and_a_closed_one_nobodys() {
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 has nothing to check.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let listening = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(listening).unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();
            client.write_all(b"?").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
            assert_eq!(owner(peer, listening).unwrap(), Some(own));
            assert_eq!(owner(listening, peer).unwrap(), Some(own), "the other end is a socket, too");
            let stranger = SocketAddr::new(peer.ip(), 1);
            assert_eq!(owner(stranger, listening).unwrap(), None);
            assert_eq!(owner(listening, stranger).unwrap(), None, "a listening socket is no connection");
            client.shutdown(Shutdown::Both).unwrap();
            drop(client);
            assert_eq!(owner(peer, listening).unwrap(), None);
        }
    }
}
