//! An instance that is lost without a word: its machine is gone, no connection tells, and requests under way to it end as
//! soon as the control plane says so. Whoever hands over in good order finishes what it has.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Client, Conn, Instance, Rig, answer_all, endpoints_of, eventually, ok};
use gateway::{Balance, Endpoints, HoldPolicy, Options, Selection};
use model::Epoch;

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
/// Requests may take a minute, and nothing here takes long.
const SOON: Duration = Duration::from_secs(10);

/// Tells of each request, and what it does then is up to `then`.
fn telling(then: impl Fn(&mut Conn) + Send + Sync + 'static) -> (Instance, Receiver<()>) {
    let (arrived, arrivals) = mpsc::channel();
    let arrived = Mutex::new(arrived);
    let instance = Instance::start(move |mut conn| {
        while let Some(head) = conn.head() {
            conn.body(&head);
            arrived.lock().unwrap().send(()).unwrap();
            then(&mut conn);
        }
    });
    (instance, arrivals)
}

fn primary(instances: &[&Instance]) -> Endpoints {
    Endpoints {
        selection: Selection::Primary(Some(("s-0".into(), Epoch(1)))),
        hold: Some(HoldPolicy { max_wait: Duration::from_secs(60), max_requests: 100 }),
        ..endpoints_of(instances)
    }
}

fn rig(told: Endpoints) -> Rig {
    Rig::with(gateway::Options::default(), told, Some(Duration::from_secs(60)))
}

fn begin(rig: &Rig, arrivals: &Receiver<()>, request: &str) -> Client {
    let mut client = rig.client();
    client.send(request);
    arrivals.recv_timeout(common::PATIENCE).unwrap();
    client
}

#[test]
fn requests_to_a_primary_that_is_lost_end_at_once() {
    let (old, arrivals) = telling(|_| {});
    let new = Instance::answering("new");
    let mut told = primary(&[&old, &new]);
    let rig = rig(told.clone());
    // Some listen already when it is said, others have only begun.
    let (mut get, mut post) = (begin(&rig, &arrivals, GET), begin(&rig, &arrivals, POST));
    std::thread::sleep(Duration::from_millis(200));
    let (mut late_get, mut late_post) = (begin(&rig, &arrivals, GET), begin(&rig, &arrivals, POST));
    told.selection = Selection::Primary(None);
    rig.service.set_endpoints(told.clone()).unwrap();
    assert_eq!(rig.service.in_flight(&"s-0".into()), 4, "nobody is primary, and what is under way goes on");
    let lost = Instant::now();
    rig.service.end_requests(&["s-0".into()]);
    post.response().assert_reason(502, "instance-closed");
    late_post.response().assert_reason(502, "instance-closed");
    eventually("both wait", || rig.service.held() == 2);
    told.selection = Selection::Primary(Some(("s-1".into(), Epoch(2))));
    rig.service.set_endpoints(told).unwrap();
    assert_eq!((get.response().text(), late_get.response().text()), ("new".into(), "new".into()));
    assert!(lost.elapsed() < SOON, "{:?}", lost.elapsed());
    assert_eq!(rig.service.in_flight(&"s-0".into()), 0);
    assert!(arrivals.try_recv().is_err(), "nothing was sent to the old one again");
}

#[test]
fn an_old_primary_that_is_not_lost_finishes_what_it_has() {
    let (go, going) = mpsc::channel::<()>();
    let going = Mutex::new(going);
    let (old, arrivals) = telling(move |conn| {
        going.lock().unwrap().recv().unwrap();
        conn.send(ok("old"));
    });
    let new = Instance::answering("new");
    let mut told = primary(&[&old, &new]);
    let rig = rig(told.clone());
    let mut post = begin(&rig, &arrivals, POST);
    told.selection = Selection::Primary(Some(("s-1".into(), Epoch(2))));
    rig.service.set_endpoints(told).unwrap();
    // Another one that is lost, and one that nobody knows, change nothing about it.
    rig.service.end_requests(&["s-1".into(), "s-9".into()]);
    assert_eq!(rig.get("/").text(), "new");
    std::thread::sleep(Duration::from_millis(200));
    go.send(()).unwrap();
    assert_eq!(post.response().text(), "old");
}

#[test]
fn what_a_lost_instance_has_begun_to_answer_is_cut_and_the_rest_goes_to_others() {
    let (half, arrivals) = telling(|conn| assert!(conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")));
    let told = endpoints_of(&[&half]);
    let rig = rig(told.clone());
    let mut client = begin(&rig, &arrivals, GET);
    let (status, _) = client.head().unwrap();
    assert_eq!((status, client.bytes(4)), (200, b"half".to_vec()));
    let other = Instance::answering("other");
    let told = Endpoints { endpoints: endpoints_of(&[&half, &other]).endpoints.split_off(1), ..told };
    rig.service.set_endpoints(told).unwrap();
    let lost = Instant::now();
    rig.service.end_requests(&["s-0".into()]);
    client.assert_closed();
    assert!(lost.elapsed() < SOON, "{:?}", lost.elapsed());
    assert_eq!(rig.get("/").text(), "other");
}

/// Its successor may listen at the same address, and the connection to the old process tells nothing.
#[test]
fn connections_to_a_lost_process_are_not_used_for_the_next_one() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let instance = Instance::on(socket, |conn| answer_all(conn, "it"));
    let told = endpoints_of(&[&instance]);
    let rig = rig(told.clone());
    assert_eq!((rig.get("/").text(), rig.get("/").text()), ("it".into(), "it".into()));
    let before = instance.accepted();
    rig.service.set_endpoints(told.clone()).unwrap();
    rig.service.end_requests(&["s-0".into()]);
    let mut client = rig.client();
    for _ in 0..3 {
        client.send(POST);
        assert_eq!(client.response().text(), "it");
    }
    assert_eq!(instance.accepted(), before + 1, "one new connection, used again and again");
}

#[test]
fn a_tunnel_to_a_lost_instance_ends() {
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (instance, arrivals) = telling(move |conn| assert!(conn.send(switched)));
    let rig = rig(endpoints_of(&[&instance]));
    let upgrade = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut client = begin(&rig, &arrivals, upgrade);
    assert_eq!(client.head().unwrap().0, 101);
    rig.service.set_endpoints(Endpoints::default()).unwrap();
    let lost = Instant::now();
    rig.service.end_requests(&["s-0".into()]);
    client.assert_closed();
    assert!(lost.elapsed() < SOON, "{:?}", lost.elapsed());
}

/// More than a worker looks through in one go: none is forgotten.
#[test]
fn kept_connections_to_instances_that_are_gone_are_all_closed() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counting = || {
        let ended = ended.clone();
        Instance::start(move |conn| {
            answer_all(conn, "kept");
            ended.fetch_add(1, Ordering::SeqCst);
        })
    };
    let instances: Vec<Instance> = (0..70).map(|_| counting()).collect();
    let all: Vec<&Instance> = instances.iter().collect();
    let balance = Balance::RoundRobin;
    let options = Options { workers: 1, ..Options::default() };
    let rig = Rig::with(options, Endpoints { balance, ..endpoints_of(&all) }, None);
    let mut client = rig.client();
    for _ in &all {
        client.send(GET);
        assert_eq!(client.response().status, 200);
    }
    assert!(instances.iter().all(|instance| instance.accepted() == 1), "one kept to each");
    assert_eq!(ended.load(Ordering::SeqCst), 0);
    rig.service.set_endpoints(endpoints_of(&all[..1])).unwrap();
    eventually("the others are closed", || ended.load(Ordering::SeqCst) == all.len() - 1);
}
