//! The smallest proxy on Pingora with the duties of the others: kept connections, bounds on time, X-Forwarded-For, a
//! request id. Built by `cargo xtask bench gateway --peer pingora`, never part of the product.

use async_trait::async_trait;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session};
use std::time::Duration;

struct Proxy {
    backend: String,
    next: std::sync::atomic::AtomicU64,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();
    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora_core::Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.backend.as_str(), false, String::new());
        peer.options.connection_timeout = Some(Duration::from_secs(1));
        peer.options.read_timeout = Some(Duration::from_secs(5));
        peer.options.idle_timeout = Some(Duration::from_secs(75));
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _: &mut (),
    ) -> pingora_core::Result<()> {
        if let Some(address) = session.client_addr().and_then(|address| address.as_inet()) {
            request.insert_header("X-Forwarded-For", address.ip().to_string())?;
        }
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        request.insert_header("X-Request-Id", format!("{id:032x}"))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (listen, backend) = (&arguments[1], &arguments[2]);
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1024, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proxy = Proxy { backend: backend.clone(), next: 0.into() };
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}
