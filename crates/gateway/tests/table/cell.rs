//! One cell: a gateway, a client and an instance are brought into a state, something happens, and what each of them
//! sees is compared with the table's line. Everything is on real sockets, step by step, in one thread; what is asked
//! afterwards is answered by `rest.rs`.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use gateway::{AccessRecord, Endpoints, HoldPolicy, Options};
use tokio::sync::mpsc::Receiver;

use crate::callers::{Caller, Got, HALF, Http1, Http2};
use crate::common::{PATIENCE, Rig, endpoint, eventually, find, ok};
use crate::rest::{AGAIN, Rest};
use crate::table::{Client, Event, Instance, Line, Protocol, State};

/// A bound that a cell is about. Others are far away, so that a slow machine does not run into them.
const SHORT: Duration = Duration::from_millis(300);
/// The length of a POST, of its first half, and of an answer.
const LENGTH: usize = 10;
const WHOLE: &str = "0123456789";
/// More than sockets take.
const FLOOD: usize = 64 << 20;
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Who takes part.
struct Cell {
    line: Line,
    rig: Rig,
    listener: TcpListener,
    caller: Who,
    /// The instance's side of the connection the request is on.
    wire: Option<TcpStream>,
    records: Receiver<AccessRecord>,
    /// What the instance has left to say, were nothing to happen.
    left_to_say: &'static str,
}

enum Who {
    Http1(Http1),
    Http2(Http2),
}

impl Who {
    fn caller(&mut self) -> &mut dyn Caller {
        match self {
            Self::Http1(caller) => caller,
            Self::Http2(caller) => caller,
        }
    }

    fn http1(&mut self) -> &mut Http1 {
        match self {
            Self::Http1(caller) => caller,
            Self::Http2(_) => panic!("a cell of HTTP/1.1"),
        }
    }
}

/// Brings a cell about and compares.
pub fn run(line: &Line) {
    let mut cell = Cell::new(line.clone());
    cell.reach();
    if line.event == Event::DrainBegins {
        return cell.drain();
    }
    cell.happen();
    let rest = cell.answer_the_rest();
    cell.check_client();
    // Before the instance looks: what it has not read may be what somebody waits for.
    cell.check_record();
    cell.check_instance(&rest);
    cell.check_afterwards(&rest);
}

impl Cell {
    fn new(line: Line) -> Self {
        let (sender, records) = tokio::sync::mpsc::channel(64);
        let mut options = Options { workers: 1, access_log: Some(sender), ..Options::default() };
        // The end of a client's stream means that it is gone: what else it may mean has its own tests.
        options.half_close_grace = Duration::ZERO;
        if line.event == Event::ClientStalls {
            (options.stall_timeout, options.header_timeout, options.tunnel_idle_timeout) = (SHORT, SHORT, SHORT);
            if matches!(line.state, State::Open | State::Answered) {
                options.idle_timeout = SHORT;
            }
        }
        if line.event == Event::InstanceNeverReads {
            options.tunnel_idle_timeout = 2 * SHORT;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let told = match line.state {
            State::Held => nobody(),
            _ => somebody(&listener),
        };
        let timeout = matches!(line.event, Event::DeadlinePasses | Event::AnswerHuge | Event::InstanceNeverReads);
        let rig = Rig::with(options, told, timeout.then_some(2 * SHORT));
        let caller = match line.protocol {
            Protocol::Http1 => Who::Http1(Http1::new(rig.address)),
            Protocol::Http2 => Who::Http2(Http2::new(rig.address)),
        };
        Self { line, rig, listener, caller, wire: None, records, left_to_say: "" }
    }

    /// Brings everybody into the cell's state.
    fn reach(&mut self) {
        let floods = matches!(self.line.event, Event::InstanceNeverReads | Event::InstanceNeverReadsAndClientLeaves);
        let length = if floods { FLOOD } else { LENGTH };
        let state = self.line.state;
        match state {
            State::Open => {
                return eventually("the connection counts", || self.rig.gateway.as_ref().unwrap().connections() == 1);
            }
            State::HalfHead => return self.caller.http1().send("GET /a HTTP/1.1\r\nHo"),
            State::Head | State::Interim | State::HalfAnswerHead | State::HalfAnswer | State::Answered => {
                self.caller.caller().ask("/a", None);
            }
            State::PostHead | State::HalfBody | State::Body => self.caller.caller().ask("/a", Some(length)),
            State::Held => {
                self.caller.caller().ask("/a", None);
                return eventually("the request is held", || self.rig.service.held() == 1);
            }
            State::Tunnel => self
                .caller
                .http1()
                .send("GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        }
        self.accept();
        self.hear(b"\r\n\r\n");
        self.left_to_say = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789";
        match state {
            State::HalfBody => self.half_body(),
            State::Body => {
                self.half_body();
                self.caller.caller().body(b"56789");
                self.hear(b"56789");
            }
            State::Interim => {
                self.say("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
                self.caller.caller().interim();
            }
            State::HalfAnswerHead => self.say_some("HTTP/1.1 200 OK\r\nContent-Le"),
            State::HalfAnswer => self.half_answer(),
            State::Answered => {
                self.say(&ok(WHOLE));
                assert_eq!(self.caller.caller().end(), whole(WHOLE));
                eventually("it is over", || self.rig.service.in_flight(&"s-0".into()) == 0);
            }
            State::Tunnel => {
                self.say(SWITCHED);
                assert!(self.caller.http1().bytes(SWITCHED.len()).starts_with(b"HTTP/1.1 101 "));
                self.echo();
                self.caller.http1().owe(FLOOD);
            }
            _ => {}
        }
    }

    fn half_body(&mut self) {
        self.caller.caller().body(HALF.as_bytes());
        self.hear(HALF.as_bytes());
    }

    fn half_answer(&mut self) {
        let length = match self.line.event {
            Event::AnswerHuge => u64::from(u32::MAX) + 1,
            Event::ClientStalls => FLOOD as u64,
            _ => LENGTH as u64,
        };
        self.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{HALF}"));
        self.left_to_say = "56789";
        self.caller.caller().half();
    }

    /// A byte each way through the tunnel.
    fn echo(&mut self) {
        self.caller.http1().send("up");
        self.hear(b"up");
        self.say("down");
        assert_eq!(self.caller.http1().bytes(4), b"down");
    }

    fn end_tunnel(&mut self) {
        if self.line.client != Client::Left {
            self.caller.caller().fin();
        }
        self.wire = None;
    }

    fn accept(&mut self) {
        self.listener.set_nonblocking(true).unwrap();
        eventually("the instance is asked", || {
            self.wire = self.listener.accept().ok().map(|(stream, _)| stream);
            self.wire.is_some()
        });
        let wire = self.wire.as_ref().unwrap();
        wire.set_nonblocking(false).unwrap();
        wire.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Waits for bytes that end so.
    fn hear(&mut self, end: &[u8]) {
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(end) {
            assert_eq!(self.wire.as_mut().unwrap().read(&mut byte).unwrap(), 1, "heard {}", heard.escape_ascii());
            heard.push(byte[0]);
        }
    }

    fn say(&mut self, bytes: &str) {
        self.wire.as_mut().unwrap().write_all(bytes.as_bytes()).unwrap();
    }

    fn say_some(&mut self, some: &str) {
        self.say(some);
        self.left_to_say = self.left_to_say.strip_prefix(some).unwrap();
    }

    /// An answer that the instance begins, or goes on with where it stands.
    fn answer(&mut self, length: u64, body: &str) {
        let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        match self.line.state {
            State::HalfAnswer => self.say(body),
            State::HalfAnswerHead => self.say(whole.strip_prefix("HTTP/1.1 200 OK\r\nContent-Le").unwrap()),
            _ => self.say(&whole),
        }
    }

    fn happen(&mut self) {
        match self.line.event {
            Event::ClientFin => {
                self.caller.caller().fin();
                if self.line.state == State::Tunnel {
                    // One direction: it is the instance that ends the other.
                    let wire = self.wire.as_mut().unwrap();
                    assert_eq!(wire.read(&mut [0]).unwrap(), 0);
                    wire.shutdown(Shutdown::Write).unwrap();
                }
            }
            Event::ClientRst => self.caller.caller().rst(),
            Event::ClientReset => {
                let Who::Http2(caller) = &mut self.caller else { panic!("of HTTP/2") };
                caller.reset();
            }
            Event::ClientStalls if self.line.state == State::HalfAnswer => self.flood_the_client(),
            // Time passes; who owes nothing has nothing to fear.
            Event::ClientStalls => std::thread::sleep(3 * SHORT),
            Event::InstanceFin => self.wire.as_ref().unwrap().shutdown(Shutdown::Write).unwrap(),
            Event::InstanceRst => {
                let wire = self.wire.take().unwrap();
                socket2::SockRef::from(&wire).set_linger(Some(Duration::ZERO)).unwrap();
            }
            Event::DeadlinePasses => std::thread::sleep(2 * SHORT),
            Event::InstanceGarbage => self.say("garbage\r\n\r\n"),
            Event::InterimStorm => self.say(&"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(20)),
            Event::AnswerTooLong if self.line.state == State::HalfAnswer => self.say("56789EVIL"),
            Event::AnswerTooLong => {
                self.answer(LENGTH as u64, "0123456789HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
            }
            Event::AnswerTooShort => {
                self.answer(LENGTH as u64, "567");
                self.wire.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
            }
            Event::AnswerHuge => self.answer(u64::from(u32::MAX) + 1, "567"),
            Event::InstanceNeverReads => self.caller.caller().flood(),
            Event::InstanceNeverReadsAndClientLeaves => {
                self.caller.caller().flood();
                self.caller.caller().rst();
            }
            Event::EndpointRemoved => self.rig.service.set_endpoints(nobody()).unwrap(),
            Event::DrainBegins => panic!("has a way of its own"),
        }
    }

    /// The instance answers with more than sockets take, and the client takes none of it.
    fn flood_the_client(&mut self) {
        let wire = self.wire.as_mut().unwrap();
        wire.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut sent = HALF.len();
        while sent < FLOOD {
            // Ends when the gateway has cut the client off and lets go of the instance.
            match wire.write(&[b'x'; 65_536]) {
                Ok(count) => sent += count,
                Err(error) => {
                    assert!(error.kind() != std::io::ErrorKind::WouldBlock, "the client is waited for without end");
                    return;
                }
            }
        }
        panic!("somebody took it all");
    }

    /// From here on the instance answers whatever else comes, on its old connection only if that is kept.
    fn answer_the_rest(&mut self) -> Rest {
        if self.line.client == Client::GoesOn {
            self.go_on();
        }
        let removed = self.line.event == Event::EndpointRemoved;
        if self.line.state == State::Held && matches!(self.line.client, Client::Left | Client::Closed) {
            eventually("the client is missed", || self.rig.service.held() == 0);
        }
        if self.line.state == State::Held || removed && self.line.client == Client::Again {
            self.rig.service.set_endpoints(somebody(&self.listener)).unwrap();
        }
        let kept = (self.line.instance == Instance::Kept).then(|| self.wire.take().unwrap());
        Rest::begin(self.listener.try_clone().unwrap(), kept)
    }

    /// The exchange takes the course it would have taken.
    fn go_on(&mut self) {
        match self.line.state {
            State::PostHead => {
                self.caller.caller().body(WHOLE.as_bytes());
                self.hear(WHOLE.as_bytes());
            }
            State::HalfBody => {
                self.caller.caller().body(b"56789");
                self.hear(b"56789");
            }
            State::Tunnel => return self.echo(),
            _ => {}
        }
        self.say(self.left_to_say);
        self.left_to_say = "";
    }

    fn check_client(&mut self) {
        let state = self.line.state;
        match self.line.client.clone() {
            Client::Left => {}
            Client::GoesOn if state == State::Tunnel => {}
            Client::GoesOn => assert_eq!(self.caller.caller().end(), whole(WHOLE)),
            Client::Again => {
                match state {
                    State::Open | State::Answered => self.caller.caller().ask("/b", None),
                    State::HalfHead => self.caller.http1().send("st: h\r\n\r\n"),
                    _ => {}
                }
                assert_eq!(self.caller.caller().end(), whole(AGAIN));
            }
            Client::Cut => {
                let got = self.caller.caller().end();
                // A stream's reset may overtake its head.
                let overtaken = got == Got::Closed && self.line.protocol == Protocol::Http2;
                assert!(got == Got::Cut || overtaken && state != State::HalfAnswer, "{got:?}");
            }
            Client::Closed => {
                assert_eq!(self.caller.caller().end(), Got::Closed);
            }
            Client::Answer { status, reason, keeps } => {
                let got = self.caller.caller().end();
                let Got::Whole { status: got_status, reason: got_reason, .. } = &got else { panic!("{got:?}") };
                assert_eq!((*got_status, got_reason.as_str()), (status, reason.as_str()));
                assert_eq!(!self.caller.caller().is_closed(), keeps, "whether the connection is kept");
            }
        }
    }

    fn check_instance(&mut self, rest: &Rest) {
        match self.line.instance {
            Instance::None => assert!(self.wire.is_none()),
            Instance::Ended => {
                let wire = self.wire.as_mut().unwrap();
                let mut sink = [0; 65_536];
                while let Ok(1..) = wire.read(&mut sink).inspect_err(|error| {
                    assert!(error.kind() != std::io::ErrorKind::WouldBlock, "its connection goes on");
                }) {}
            }
            Instance::Kept => assert_eq!(rest.accepted(), 0),
            Instance::Left => {}
        }
    }

    /// The record of `/a`, if there is to be one, and nothing else about it.
    fn check_record(&mut self) {
        let Some((status, reason)) = &self.line.record.clone() else { return };
        let until = Instant::now() + PATIENCE;
        let record = loop {
            match self.records.try_recv() {
                Ok(record) if record.path == "/a" => break record,
                Ok(_) => {}
                Err(_) => {
                    // A tunnel's comes with the end of both directions.
                    if self.line.state == State::Tunnel && self.line.instance == Instance::Left {
                        self.end_tunnel();
                    }
                    assert!(Instant::now() < until, "no record");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        assert_eq!((record.status, record.reason.unwrap_or("-")), (*status, reason.as_str()));
        let class = if *status == 0 { "aborted".to_owned() } else { format!("{}xx", status / 100) };
        let line = format!("seawall_gateway_requests_total{{service=\"s\",code=\"{class}\"}} ");
        let metrics = self.rig.metrics();
        assert!(metrics.lines().any(|found| found.starts_with(&line) && !found.ends_with(" 0")), "{line}: {metrics}");
    }

    /// Nothing is left of it, and the gateway serves.
    fn check_afterwards(mut self, rest: &Rest) {
        assert!(!self.records.try_recv().is_ok_and(|record| record.path == "/a"), "a second record");
        self.caller = Who::Http1(Http1::new(self.rig.address));
        self.wire = None;
        let service = &self.rig.service;
        eventually("no request is under way", || service.in_flight(&"s-0".into()) == 0);
        eventually("no request is held", || service.held() == 0);
        if self.line.event == Event::EndpointRemoved {
            service.set_endpoints(somebody(&self.listener)).unwrap();
        }
        let after = self.rig.get("/after");
        assert_eq!((after.status, after.text().as_str()), (200, AGAIN));
        if self.line.instance == Instance::Kept {
            assert_eq!(rest.accepted(), 0, "the instance's connection was not used again");
        }
        drop(self.caller);
        self.rig.expect_metric("connections 0");
        self.rig.expect_metric("held_requests{service=\"s\"} 0");
        self.rig.expect_metric("in_flight_requests{service=\"s\",instance=\"s-0\"} 0");
        self.rig.expect_metric("pool_connections{service=\"s\",instance=\"s-0\",state=\"busy\"} 0");
    }

    /// Draining waits for what is under way and for nothing else.
    fn drain(mut self) {
        let mut probe = Http1::new(self.rig.address);
        eventually("the probe counts", || self.rig.gateway.as_ref().unwrap().connections() == 2);
        let gateway = self.rig.gateway.take().unwrap();
        let drained = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(gateway.drain(PATIENCE))
        });
        // Its idle connection ends once draining has begun.
        assert_eq!(probe.end(), Got::Closed);
        let rest = self.answer_the_rest();
        self.check_client();
        if self.line.state == State::Tunnel {
            self.end_tunnel();
        }
        assert_eq!(drained.join().unwrap(), 0, "connections were left");
        self.check_instance(&rest);
        self.check_record();
        assert_eq!((self.rig.service.in_flight(&"s-0".into()), self.rig.service.held()), (0, 0));
    }
}

fn whole(body: &str) -> Got {
    Got::Whole { status: 200, reason: String::new(), body: body.to_owned() }
}

fn nobody() -> Endpoints {
    let hold = Some(HoldPolicy { max_wait: PATIENCE, max_requests: 10 });
    Endpoints { hold, ..Endpoints::default() }
}

fn somebody(listener: &TcpListener) -> Endpoints {
    Endpoints { endpoints: vec![endpoint("s-0", listener.local_addr().unwrap())], ..nobody() }
}

/// Whether some bytes hold a whole head.
pub fn has_head(bytes: &[u8]) -> bool {
    find(bytes, b"\r\n\r\n").is_some()
}
