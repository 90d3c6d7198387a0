//! Every seed of the fuzz targets and everything they ever found, through the same functions that are fuzzed, on the
//! stable toolchain. Seeds lie in `fuzz/seeds/TARGET`, one input a file; what fuzzing found begins with `found-`.
#![allow(clippy::unwrap_used)]

mod targets;

use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seed = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
    };
    files.map(seed).collect()
}

#[test]
fn every_seed_and_every_past_finding_holds() {
    for (target, run) in targets::ALL {
        let seeds = seeds(target);
        assert!(seeds.len() >= 10, "{target}: {} seeds", seeds.len());
        for (name, bytes) in seeds {
            eprintln!("{target}/{name}");
            run(&bytes);
            // Cut short, and with something behind it.
            run(&bytes[..bytes.len() / 2]);
            run(&[&bytes[..], b"\xc0\x0c or a == b"].concat());
        }
    }
}

proptest! {
    /// A little of what the fuzzer does, for everybody who runs the tests.
    #[test]
    fn bent_seeds_hold(
        target in 0..targets::ALL.len(), seed in any::<usize>(), bends in vec((any::<usize>(), any::<u8>()), 1..4)
    ) {
        let (name, run) = targets::ALL[target];
        let seeds = seeds(name);
        let mut bytes = seeds[seed % seeds.len()].1.clone();
        for (at, byte) in bends {
            let length = bytes.len().max(1);
            if let Some(bent) = bytes.get_mut(at % length) {
                *bent = byte;
            }
        }
        run(&bytes);
    }
}
