//! What the gateway itself adds to a switch: requests are held, a primary is told, the time until answers arrive is
//! measured. `switch [CLIENTS]`; the instance answers at once, so the figure is wake-up, release pace and one hop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::{
    Action, Endpoint, Endpoints, Gateway, HoldPolicy, Listener, Metrics, Options, Policy, Readiness, Route, Selection,
    Table, Target,
};
use model::Epoch;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let clients: usize = std::env::args().nth(1).map_or(Ok(1), |clients| clients.parse())?;
    let instance = TcpListener::bind("127.0.0.1:0")?;
    let address = instance.local_addr()?;
    std::thread::spawn(move || {
        instance.incoming().flatten().for_each(|stream| drop(std::thread::spawn(|| answer(stream))))
    });
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let table = Table::new(metrics.clone());
    let service = table.service(&"s".into());
    let target = Target { service: "s".into(), version: None };
    let route = Route {
        name: "all".into(),
        series: None,
        hosts: Vec::new(),
        matches: Vec::new(),
        action: Action::Forward(target),
        timeout: None,
        retry: None,
        policy: Policy::default(),
    };
    table.set_routes(vec![route])?;
    let id = "s-1".into();
    let told = Endpoints {
        endpoints: vec![Endpoint { id, address, version: None, readiness: Readiness::Ready, weight: 1, local: true }],
        hold: Some(HoldPolicy { max_wait: Duration::from_secs(60), max_requests: 10_000 }),
        ..Endpoints::default()
    };
    let socket = TcpListener::bind("127.0.0.1:0")?;
    let listen = socket.local_addr()?;
    let (signals, _unheard) = tokio::sync::mpsc::channel(16);
    let listeners = vec![Listener { address: listen, sockets: vec![socket], manner: Arc::default() }];
    let _gateway = Gateway::start(Options::default(), listeners, table, metrics, signals)?;
    let mut streams = (0..clients).map(|_| TcpStream::connect(listen)).collect::<Result<Vec<_>, _>>()?;
    for epoch in 1..=20 {
        service.set_endpoints(Endpoints { selection: Selection::Primary(None), ..told.clone() })?;
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
        }
        while service.held() < clients {
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        let selection = Selection::Primary(Some(("s-1".into(), Epoch(epoch))));
        service.set_endpoints(Endpoints { selection, ..told.clone() })?;
        let mut first = None;
        for stream in &mut streams {
            let count = stream.read(&mut [0; 1_024])?;
            assert!(count > 0, "closed instead of answered");
            first.get_or_insert_with(|| begun.elapsed());
        }
        println!("first {:?} last {:?}", first.unwrap_or_default(), begun.elapsed());
    }
    Ok(())
}

fn answer(mut stream: TcpStream) {
    let mut head = [0; 4_096];
    while stream.read(&mut head).is_ok_and(|count| count > 0) {
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}
