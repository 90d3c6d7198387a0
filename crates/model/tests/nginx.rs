//! What an operator is told of nginx' blocks that have no counterpart: by name, line and column of their file.
//! That the others do what nginx does is tested through the gateway.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use model::config::{Decode as _, Loaded, decode_effective, load};

fn loaded(text: &str) -> Loaded {
    let main = "include: { nginx: [n.conf] }\nservices: { own: { command: [a] } }\n";
    load(Path::new("shop.yaml"), &mut |path| Ok(if path.ends_with("shop.yaml") { main } else { text }.to_owned()))
}

fn refused(text: &str) -> String {
    let loaded = loaded(text);
    assert!(loaded.config.is_none(), "this was meant to be refused: {text}");
    loaded.diagnostics.render(&loaded.sources)
}

#[test]
fn what_has_no_counterpart_is_refused_by_name_line_and_column() {
    let with = |line: &str| format!("upstream b {{ server h:1; server i:1; }}\n{line}\n");
    for (line, column, said) in [
        ("server { listen 80; }", "2:1", "`server` has no counterpart"),
        ("upstream own { server h; }", "2:10", "there is a service `own` already"),
        ("upstream c { ip_hash; server h; }", "2:14", "`ip_hash` has no counterpart"),
        ("upstream c { server h max_conns=many; }", "2:23", "`max_conns=many` of a server"),
        ("upstream c { server h weight=x; }", "2:23", "`weight=x` of a server"),
        ("upstream c { server h; server i max_fails=3; }", "2:24", "for all servers of an upstream"),
        ("upstream c { }", "2:1", "an upstream without a server"),
        ("upstream c { server 127.0.0.1:99999; }", "2:21", "`127.0.0.1:99999` is no host with a port"),
        ("upstream c { server 127.0.0.1:; }", "2:21", "is no host with a port"),
        ("upstream c { server http://x; }", "2:21", "is no host with a port"),
        ("upstream c { server ::1; }", "2:21", "is no host with a port"),
        ("upstream c { server unix:/tmp/x; }", "2:21", "`unix:` has no counterpart"),
        ("location / { root /x; }", "2:14", "`root` has no counterpart"),
        ("location / { proxy_pass http://c; }", "2:25", "there is no upstream `c`"),
        ("location / { proxy_pass http://$host; }", "2:25", "`http://$host` has no counterpart"),
        ("location / { proxy_pass https://b; }", "2:25", "`https://b` has no counterpart"),
        ("location @x { proxy_pass http://b; }", "2:1", "`location @x` has no counterpart"),
        ("location ~ ( { proxy_pass http://b; }", "2:1", "is no regular expression"),
        ("location / { proxy_pass http://b; proxy_next_upstream http_501; }", "2:55", "`http_501` is no word"),
        ("location / { proxy_pass http://b; proxy_set_header X $cookie_a; }", "2:54", "`$cookie_a` has no counterpart"),
        ("location / { proxy_pass http://b; limit_req zone=z; }", "2:35", "there is no zone `z`"),
        ("limit_req_zone $uri zone=z:1m rate=1r/s;", "2:16", "`$uri` has no counterpart"),
        ("limit_req_zone $remote_addr zone=z:1m rate=1r/h;", "2:39", "whole requests a second"),
        ("location / { proxy_pass http://b }", "2:34", "without `;`"),
        ("location / { proxy_pass http://b;", "2:12", "a block that does not end"),
        ("}", "2:1", "closes nothing"),
        ("location \"/ {", "2:10", "a quote that does not end"),
    ] {
        let report = refused(&with(line));
        assert!(report.contains(said) && report.contains(&format!("n.conf:{column}")), "{line}: {report}");
    }
    let two = "limit_req_zone $remote_addr zone=z:1m rate=1r/s;\nlocation /a { proxy_pass http://b; limit_req zone=z; }\nlocation /b { proxy_pass http://b; }";
    assert!(refused(&with(two)).contains("others lead to `b` as well"));
}

/// The source document's fragment as it stands.
#[test]
fn the_source_documents_fragment_is_read_and_survives_being_written() {
    let loaded = loaded(
        "upstream backend_region {
    server 192.168.1.10:8080 weight=5;   # one
    server 192.168.2.10:8080 weight=3;   # two
    server 10.0.1.100:8080 backup;        # three
}

location / {
    proxy_pass http://backend_region;
    proxy_next_upstream error timeout;
}
",
    );
    let config = loaded.config.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render(&loaded.sources)));
    let service = &config.services[&"backend-region".into()];
    assert_eq!(service.endpoints, ["192.168.1.10:8080", "192.168.2.10:8080", "10.0.1.100:8080"]);
    let options = &service.endpoint_options;
    assert_eq!((options["192.168.1.10:8080"].weight, options["10.0.1.100:8080"].backup), (5, true));
    assert_eq!(decode_effective(&config.encode().to_string()).unwrap(), config);
}
