//! The peer: the newest etcd, built from its published modules with Go, because distributions carry old ones.
//! Beside it the little of its protocol that the load needs. Deliberately absent: TLS, authentication, transactions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;

/// The peer's version.
const VERSION: &str = "3.7.3";
/// Its server as a program: the published module is a library.
const MAIN: &str = "package main\n\nimport (\n\t\"os\"\n\n\t\"go.etcd.io/etcd/server/v3/etcdmain\"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n";

/// Where to write a key: a unary call.
pub const PUT: &str = "/etcdserverpb.KV/Put";
/// Where to read one.
pub const RANGE: &str = "/etcdserverpb.KV/Range";

/// The program, built if it is not there yet, and what to call it.
pub fn built(place: &Path) -> Result<(PathBuf, String)> {
    let folder = place.join(format!("etcd-{VERSION}"));
    let program = folder.join("etcd");
    if !program.exists() {
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("main.go"), MAIN)?;
        fs::write(
            folder.join("go.mod"),
            format!("module etcd\n\ngo 1.26\n\nrequire go.etcd.io/etcd/server/v3 v{VERSION}\n"),
        )?;
        for arguments in [&["mod", "tidy"][..], &["build", "-o", "etcd", "."]] {
            let mut go = Command::new("go");
            run(go.args(arguments).current_dir(&folder))
                .context("etcd is built with Go: install it, https://go.dev/dl")?;
        }
    }
    Ok((program, format!("etcd {VERSION}")))
}

/// A put of `value` at `key`, as gRPC sends it.
pub fn put(key: &str, value: &[u8]) -> Vec<u8> {
    framed(&[(1, key.as_bytes()), (2, value)])
}

/// A linearizable read of `key`.
pub fn range(key: &str) -> Vec<u8> {
    framed(&[(1, key.as_bytes())])
}

/// A message of byte fields behind gRPC's prefix: not compressed, and its length.
fn framed(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; 5];
    for (number, value) in fields {
        message.push(number << 3 | 2);
        let mut length = value.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(value);
    }
    let length = (message.len() - 5) as u32;
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::put;

    #[test]
    fn a_put_is_what_protobuf_and_grpc_say() {
        let long = put("k", &[7; 300]);
        assert_eq!(long[..5], [0, 0, 0, 1, 50]);
        assert_eq!(long[5..11], [0x0a, 1, b'k', 0x12, 0xac, 2]);
        assert_eq!(long.len(), 5 + 3 + 3 + 300);
    }
}
