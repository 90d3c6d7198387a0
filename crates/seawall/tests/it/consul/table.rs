//! `docs/reference/consul-compatibility.md` says what is: each row is asked of a running node.

use crate::support::Seawall;

const TABLE: &str = include_str!("../../../../../docs/reference/consul-compatibility.md");

#[test]
fn every_row_of_the_compatibility_table_is_true() {
    let seawall = Seawall::up("");
    let mut rows = 0;
    for line in TABLE.lines().filter(|line| line.contains("| `/v1/")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (method, route, here, how) = (cells[1], cells[2].trim_matches('`'), cells[3], cells[4]);
        let path: String = route
            .split('/')
            .map(|part| if part.starts_with('{') { "none" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        let answer = seawall.api(method, &path, b"");
        // The API's own words for a path or a method that is none.
        let is_none = matches!(answer.status, 404 | 405)
            && (answer.text().contains("no such path") || answer.text().contains("does not have this method"));
        match here {
            "absent" => {
                assert!(is_none, "{method} {route} is there: {} {}", answer.status, answer.text());
                assert!(!how.is_empty(), "{method} {route}: why is it absent?");
            }
            "same" | "differs" => {
                assert!(!is_none, "{method} {route}: {} {}", answer.status, answer.text());
                assert!(here == "same" || !how.is_empty(), "{method} {route}: how does it differ?");
            }
            other => panic!("{method} {route}: {other}"),
        }
        rows += 1;
    }
    assert!(rows > 80, "{rows} rows");
    // And every route that there is has its row.
    let sources = [include_str!("../../../../api/src/consul.rs"), include_str!("../../../../api/src/consul/acl.rs")];
    let routes = sources.iter().flat_map(|source| source.split(".route(").skip(1));
    let quoted = routes.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    // What nobody knows under `/v1/acl` is no route.
    for route in quoted.filter(|route| *route != "/v1/acl/{*rest}") {
        let wild = |route: &str| {
            route.split('/').map(|part| if part.starts_with('{') { "*" } else { part }.to_owned()).collect::<Vec<_>>()
        };
        let plain = if route.trim_end_matches('/') == "/v1/kv" { "/v1/kv/{key}" } else { route };
        let known = TABLE.split('`').any(|text| text.starts_with("/v1/") && wild(text) == wild(plain));
        assert!(known, "{route} has no row");
    }
}
