//! The PROXY protocol, versions 1 and 2 (HAProxy's specification of 2020): who the client is behind another proxy.
//! Read before anything else of a connection, written before anything else to an instance. Strict: what is doubtful
//! ends the connection. Deliberately absent: type-length-values, which are read over.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;
/// Most bytes behind version 2's header that are read over.
const LONGEST_BODY: usize = 4_096;

/// What an instance is told first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Reads exactly the header. `None`: the connection is the proxy's own (`LOCAL`, `UNKNOWN`).
///
/// # Errors
/// `InvalidData` for anything else than a header, else the stream's.
pub(crate) async fn read(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut first = [0; 12];
    stream.read_exact(&mut first).await?;
    if first == *SIGNATURE {
        return read_v2(stream).await;
    }
    let mut line = first.to_vec();
    if !line.starts_with(b"PROXY ") {
        return Err(invalid("no PROXY header"));
    }
    let mut ahead = [0; LONGEST_LINE];
    while line.last() != Some(&b'\n') {
        // Nothing behind the line may be taken: it is somebody else's to read.
        let seen = stream.peek(&mut ahead[..LONGEST_LINE - line.len()]).await?;
        let take = memchr::memchr(b'\n', &ahead[..seen]).map_or(seen, |at| at + 1);
        if take == 0 {
            return Err(if seen == 0 && line.len() < LONGEST_LINE {
                io::ErrorKind::UnexpectedEof.into()
            } else {
                invalid("a line too long")
            });
        }
        let had = line.len();
        line.resize(had + take, 0);
        stream.read_exact(&mut line[had..]).await?;
    }
    parse_v1(&line)
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`.
fn parse_v1(line: &[u8]) -> io::Result<Option<SocketAddr>> {
    let line = line.strip_suffix(b"\r\n").ok_or(invalid("a line without its end"))?;
    let line = std::str::from_utf8(line).map_err(|_| invalid("no text"))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let mut address = || words.next().and_then(|word| word.parse::<IpAddr>().ok()).ok_or(invalid("an address"));
    let (source, destination) = (address()?, address()?);
    let port = |word: Option<&str>| {
        let word = word.filter(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()));
        word.and_then(|word| word.parse::<u16>().ok()).ok_or(invalid("a port"))
    };
    let source_port = port(words.next())?;
    port(words.next())?;
    let fits = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    if !fits || words.next().is_some() {
        return Err(invalid("a family that is not its addresses'"));
    }
    Ok(Some(SocketAddr::new(source, source_port)))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let [version_command, family, ..] = header;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if length > LONGEST_BODY {
        return Err(invalid("a body too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    parse_v2(version_command, family, &body)
}

fn parse_v2(version_command: u8, family: u8, body: &[u8]) -> io::Result<Option<SocketAddr>> {
    match version_command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(invalid("an unknown version or command")),
    }
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match (family, body.len()) {
        (0x11, 12..) => {
            let source: [u8; 4] = body[..4].try_into().expect("four bytes");
            Ok(Some((Ipv4Addr::from(source), port(8)).into()))
        }
        (0x21, 36..) => {
            let source: [u8; 16] = body[..16].try_into().expect("sixteen bytes");
            Ok(Some((Ipv6Addr::from(source), port(32)).into()))
        }
        (0x11 | 0x21, _) => Err(invalid("a body too short")),
        // Datagrams, Unix sockets and what came later: the receiver uses the real endpoint.
        _ => Ok(None),
    }
}

/// The header for a connection from `source` to `destination`. Families that differ become IPv6.
pub(crate) fn header(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let both_v4 = source.is_ipv4() && destination.is_ipv4();
    let wide = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    match version {
        ProxyVersion::V1 => {
            let (from, to) = (source.port(), destination.port());
            if both_v4 {
                format!("PROXY TCP4 {} {} {from} {to}\r\n", source.ip(), destination.ip()).into_bytes()
            } else {
                format!("PROXY TCP6 {} {} {from} {to}\r\n", wide(source), wide(destination)).into_bytes()
            }
        }
        ProxyVersion::V2 => {
            let mut out = SIGNATURE.to_vec();
            out.push(0x21);
            if let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) {
                out.extend_from_slice(&[0x11, 0, 12]);
                out.extend_from_slice(&from.octets());
                out.extend_from_slice(&to.octets());
            } else {
                out.extend_from_slice(&[0x21, 0, 36]);
                out.extend_from_slice(&wide(source).octets());
                out.extend_from_slice(&wide(destination).octets());
            }
            out.extend_from_slice(&source.port().to_be_bytes());
            out.extend_from_slice(&destination.port().to_be_bytes());
            out
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::{ProxyVersion, header, parse_v1, parse_v2};

    #[test]
    fn lines() {
        for (line, want) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", Some("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", Some("[2001:db8::1]:1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        ] {
            assert_eq!(
                parse_v1(line.as_bytes()).unwrap().map(|address| address.to_string()).as_deref(),
                want,
                "{line}"
            );
        }
        for line in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n",
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY \r\n",
        ] {
            assert!(parse_v1(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (source, destination) in [("1.2.3.4:5", "6.7.8.9:10"), ("[2001:db8::1]:5", "6.7.8.9:10")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let line = header(ProxyVersion::V1, source, destination);
            assert_eq!(parse_v1(&line).unwrap(), Some(source));
            let binary = header(ProxyVersion::V2, source, destination);
            assert_eq!(usize::from(u16::from_be_bytes([binary[14], binary[15]])), binary.len() - 16);
            assert_eq!(parse_v2(binary[12], binary[13], &binary[16..]).unwrap(), Some(source));
        }
        assert_eq!(parse_v2(0x20, 0, &[]).unwrap(), None, "LOCAL");
        assert_eq!(parse_v2(0x21, 0, &[1, 2]).unwrap(), None, "unspecified");
        assert!(parse_v2(0x21, 0x11, &[0; 11]).is_err());
        assert!(parse_v2(0x31, 0x11, &[0; 12]).is_err());
    }
}
