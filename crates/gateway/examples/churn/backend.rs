//! Every instance at once: one server on all loopback addresses, which answers with the address it was reached at.

use std::net::TcpListener;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Starts it; the port.
pub fn start() -> std::io::Result<u16> {
    let socket = TcpListener::bind("0.0.0.0:0")?;
    socket.set_nonblocking(true)?;
    let port = socket.local_addr()?.port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let socket = tokio::net::TcpListener::from_std(socket).expect("a listener");
            loop {
                if let Ok((stream, _)) = socket.accept().await {
                    tokio::task::spawn_local(serve(stream));
                }
            }
        });
    });
    Ok(port)
}

/// Requests have no body and come one at a time.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let at = stream.local_addr()?.ip().to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{at}", at.len());
    let mut head = [0; 2_048];
    while stream.read(&mut head).await? > 0 {
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}
