//! The gateway alone, for side-by-side measurements: `proxy LISTEN UPSTREAM [WORKERS]`.
//! Everything on the walk is as in production (routes, balance, metrics); only the control plane is missing.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use gateway::{
    Action, Endpoint, Endpoints, Gateway, Listener, Match, Metrics, Options, PathMatch, Policy, Readiness, Route,
    Table, Target,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, rest @ ..] = &arguments[..] else {
        return Err("usage: proxy LISTEN UPSTREAM [WORKERS]".into());
    };
    let workers = rest.first().map_or(Ok(1), |workers| workers.parse())?;
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let table = Table::new(metrics.clone());
    let service = table.service(&"bench".into());
    service.set_endpoints(Endpoints { endpoints: vec![endpoint(upstream.parse()?)], ..Endpoints::default() })?;
    table.set_routes(vec![Route {
        name: "all".into(),
        series: None,
        hosts: Vec::new(),
        matches: vec![Match { path: Some(PathMatch::Prefix("/".into())), ..Match::default() }],
        action: Action::Forward(Target { service: "bench".into(), version: None }),
        timeout: None,
        retry: None,
        policy: Policy::default(),
    }])?;
    let (signals, _unheard) = tokio::sync::mpsc::channel(16);
    let listeners =
        vec![Listener { address: listen.parse()?, sockets: vec![TcpListener::bind(listen)?], manner: Arc::default() }];
    let _gateway = Gateway::start(Options { workers, ..Options::default() }, listeners, table, metrics, signals)?;
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { id: "bench-1".into(), address, version: None, readiness: Readiness::Ready, weight: 1, local: true }
}
