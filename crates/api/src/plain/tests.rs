//! What is plainly a request of one key, and how its answer is written.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use data::MAX_VALUE_BYTES;

use super::{Judged, judge, written};

/// The key, the length of the value, and where the next request begins; `None` if it is for hyper.
fn check(text: &str, expected: Option<(&str, Option<usize>)>) {
    match (judge(text.as_bytes()), expected) {
        (Judged::Plain(asked), Some((key, value))) => {
            assert_eq!(&text[asked.key], key, "{text:?}");
            assert_eq!(asked.value.map(|value| value.len()), value, "{text:?}");
            assert_eq!(asked.end, text.find("\r\n\r\n").unwrap() + 4 + value.unwrap_or(0), "{text:?}");
        }
        (Judged::Other, None) => {}
        (judged, expected) => panic!("{text:?} is {judged:?}, not {expected:?}"),
    }
}

#[test]
fn only_whole_requests_of_one_key_are_plain() {
    let get = |path: &str, rest: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n");
    let put = |rest: &str| format!("PUT /api/v1/kv/a HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n");
    check(&get("/api/v1/kv/a/b", "Accept: */*\r\n"), Some(("a/b", None)));
    check(&get("/api/v1/kv/a", "content-length: 0\r\n"), Some(("a", None)));
    check(&get("/api/v1/kv/a", "Connection: Keep-Alive\r\n"), Some(("a", None)));
    check(&put("Content-Length: 5\r\n"), Some(("a", Some(5))));
    check(&put(""), Some(("a", Some(0))));
    check(&put(&format!("Content-Length: {MAX_VALUE_BYTES}\r\n")), Some(("a", Some(MAX_VALUE_BYTES))));
    check(&put(&format!("Content-Length: {}\r\n", MAX_VALUE_BYTES + 1)), None);
    for path in [
        "/api/v1/kv/",
        "/api/v1/kv",
        "/api/v1/kv/a?",
        "/api/v1/kv/a%2f",
        "/api/v1/kv/\"",
        "/api/v1/kv/é",
        "/api/v1/kv/a#b",
    ] {
        check(&get(path, ""), None);
    }
    for other in [
        "Host: localhost\r\n",
        "Content-Length: 1\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "no field\r\n",
        " folded\r\n",
    ] {
        check(&get("/api/v1/kv/a", other), None);
    }
    check(&get("/api/v1/kv/a", &"x: y\r\n".repeat(40)), None);
    check("GET /api/v1/kv/a HTTP/1.0\r\nHost: localhost\r\n\r\n", None);
    check("GET /api/v1/kv/a HTTP/1.1\r\n\r\n", None);
    check("DELETE /api/v1/kv/a HTTP/1.1\r\nHost: localhost\r\n\r\n", None);
    check("GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n", None);
}

#[test]
fn a_part_of_a_plain_request_is_waited_for_and_a_part_of_another_is_not() {
    let whole = "PUT /api/v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n";
    for length in 0..whole.len() {
        assert_eq!(judge(&whole.as_bytes()[..length]), Judged::Begun, "{length}");
    }
    for other in ["P\0", "POST", "GET /v", "HEAD", "\r\n", "get"] {
        assert_eq!(judge(other.as_bytes()), Judged::Other, "{other:?}");
    }
    let endless = format!("GET /api/v1/kv/{}", "a".repeat(super::MAX_HEAD_BYTES));
    assert_eq!(judge(endless.as_bytes()), Judged::Other);
    let next = format!("{whole}12345GET /api/v1/kv/b HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let Judged::Plain(first) = judge(next.as_bytes()) else { panic!("{next} is not plain") };
    let Judged::Plain(second) = judge(&next.as_bytes()[first.end..]) else { panic!("what follows is not plain") };
    assert_eq!(&next[first.end..][second.key], "b");
}

#[tokio::test]
async fn an_answer_has_its_length_and_its_date() {
    let mut answer = Response::new(Body::from("ab"));
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer.headers_mut().insert("seawall-revision", HeaderValue::from(7));
    let text = String::from_utf8(written(answer).await.unwrap()).unwrap();
    let (begin, rest) = text.split_once("date: ").unwrap();
    assert_eq!(begin, "HTTP/1.1 404 Not Found\r\nseawall-revision: 7\r\ncontent-length: 2\r\n");
    let (date, rest) = rest.split_once("\r\n").unwrap();
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    assert_eq!(rest, "\r\nab");
}
