//! What stands behind the proxies, and what holds idle connections before them: each a process of its own, started by the
//! bench as a hidden verb of this program. The backend must cost less than any proxy, so it knows no more of HTTP than a
//! well-behaved proxy sends: no chunks, no pipelining.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// `bench-backend BYTES`: answers every request with so many bytes, until its input ends.
pub fn serve(bytes: usize) -> Result<()> {
    std::thread::spawn(|| {
        end_of_input();
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("listening {}", listener.local_addr()?);
        let answer: Rc<[u8]> = answer(bytes).into();
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(connection(stream, answer.clone()));
        }
    })
}

/// `bench-idle ADDRESS COUNT`: opens so many connections, sends one request on each, keeps them until its input ends.
pub fn idle(address: SocketAddr, count: usize) -> Result<()> {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        open.push(ask_once(address).with_context(|| format!("connection {number} of {count}"))?);
    }
    println!("open {count}");
    end_of_input();
    Ok(())
}

fn ask_once(address: SocketAddr) -> Result<Blocking> {
    let mut stream = Blocking::connect(address)?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let (mut buffer, mut filled) = ([0; 4096], 0);
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        ensure!(count > 0, "closed after {filled} bytes of the answer");
        filled += count;
        let text = &buffer[..filled];
        if let Some(head) = head_length(text)
            && filled >= head + content_length(&text[..head])
        {
            ensure!(text.starts_with(b"HTTP/1.1 200"), "answered {}", String::from_utf8_lossy(&text[..head]));
            return Ok(stream);
        }
    }
}

fn end_of_input() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn answer(bytes: usize) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
    answer.extend((0..bytes).map(|index| if (index + 1) % 64 == 0 { b'\n' } else { b'x' }));
    answer
}

async fn connection(mut stream: TcpStream, answer: Rc<[u8]>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut filled) = (vec![0; 16 * 1024], 0);
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let Some(head) = head_length(&buffer[..filled]) else { continue };
        let whole = head + if buffer.starts_with(b"GET ") { 0 } else { content_length(&buffer[..head]) };
        let mut seen = filled;
        while seen < whole {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                count => seen += count,
            }
        }
        filled = 0;
        stream.write_all(&answer).await?;
    }
}

fn head_length(text: &[u8]) -> Option<usize> {
    text.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn content_length(head: &[u8]) -> usize {
    let name = b"content-length:";
    head.split(|&byte| byte == b'\n')
        .filter(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))
        .find_map(|line| std::str::from_utf8(&line[name.len()..]).ok()?.trim().parse().ok())
        .unwrap_or(0)
}
