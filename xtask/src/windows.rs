//! `cargo xtask windows`: builds the whole workspace for Windows and proves under Wine that `seawall.exe` does what it does
//! on Linux: starts, routes, restarts, promotes, hands its sockets over, and leaves nothing behind.
//! The compiler is Debian's, which brings the standard library's source, so that no prebuilt target is needed.
//! What Wine cannot prove is listed in `docs/reference/windows.md`.

mod proofs;
pub mod wine;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{root, run};

/// What a fresh Debian lacks.
const PACKAGES: [&str; 6] = ["bsdutils", "cargo-web", "gcc-mingw-w64-x86-64", "rust-web-src", "rustc-web", "wine64"];
const TARGET: &str = "x86_64-pc-windows-gnu";
/// The profile in the workspace's `Cargo.toml` and the name of its output folder.
const PROFILE: &str = "windows";

/// Tests beside the code that touch the system: files, sockets, processes that are killed in the middle of a write.
const TESTS: [&str; 11] = [
    "--package=platform",
    "--package=keeper",
    "--package=observe",
    "--package=data-raft",
    "--lib",
    "--test=durability",
    "--test=golden",
    "--test=kill",
    "--",
    "--test-threads=2",
    // Wine's table of IPv6 connections names no processes.
    "--skip=over_ipv6",
];

/// The one function of `bcryptprimitives.dll` that Rust's standard library calls, for Wines that do not have it yet.
const RANDOM_STUB: &str = "#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) {
    return SystemFunction036(data, (ULONG)size);
}
";

/// Where the program is, once it has been built.
pub fn program() -> PathBuf {
    target().join(TARGET).join(PROFILE).join("seawall.exe")
}

fn target() -> PathBuf {
    root().join("target/windows")
}

/// Installs what is missing, builds, proves.
pub fn windows(root: &Path) -> Result<()> {
    if !install()? {
        return Ok(());
    }
    let target = target();
    let begun = Instant::now();
    done("building every crate", cargo(root, &target, "build").arg("--workspace"))?;
    done("building the tests", cargo(root, &target, "test").arg("--no-run").args(TESTS))?;
    let built = begun.elapsed();
    let programs = target.join(TARGET).join(PROFILE);
    make_random_stub(&target, &programs)?;
    let begun = Instant::now();
    let wine = wine::Wine::start(&target, &programs)?;
    done("running the tests", wine.environment(cargo(root, &target, "test").args(TESTS)))?;
    proofs::all(&wine, root, &target, &programs.join("seawall.exe"))?;
    eprintln!("windows: built in {} s, proved in {} s", built.as_secs(), begun.elapsed().as_secs());
    Ok(())
}

/// Runs a command that would be too long to show.
fn done(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("windows: {what}");
    let status = command.status().with_context(|| format!("{what}: cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "{what}: {status}");
    Ok(())
}

/// True when everything is there. Where it cannot be installed that is an error under CI and a skip elsewhere.
fn install() -> Result<bool> {
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let apt =
        |arguments: &[&str]| run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"));
    let installed = apt(&["update"])
        .and_then(|()| apt(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat()));
    match installed {
        Ok(()) => Ok(true),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("windows: SKIPPED, nothing was built: {} cannot be installed: {error:#}", missing.join(" "));
            Ok(false)
        }
        Err(error) => Err(error.context(format!("installing {}", missing.join(" ")))),
    }
}

fn is_installed(package: &str) -> bool {
    let asked = Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    asked.is_ok_and(|answer| answer.stdout == b"installed")
}

/// Cargo for Windows. A warning is an error, because code that only Windows leaves unused is a mistake.
fn cargo(root: &Path, target: &Path, verb: &str) -> Command {
    let mut cargo = Command::new("/usr/bin/cargo");
    // This process was started by another cargo with another compiler, and none of its settings may leak in.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name != "CARGO_HOME" && (name.starts_with("CARGO") || name.starts_with("RUST")) || name == "LD_LIBRARY_PATH"
        {
            cargo.env_remove(name.as_ref());
        }
    }
    cargo.args([verb, "--quiet", "--locked", "--profile", PROFILE, "--target", TARGET]);
    cargo.args(["-Z", "build-std=std,panic_unwind,test", "-Z", "warnings", "--config", "build.warnings='deny'"]);
    cargo.arg("--target-dir").arg(target).current_dir(root);
    cargo.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", wine::LOADER);
    // The distribution's compiler is a stable one; building the standard library needs this.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc");
    cargo
}

fn make_random_stub(target: &Path, programs: &Path) -> Result<()> {
    let source = target.join("bcryptprimitives.c");
    std::fs::write(&source, RANDOM_STUB).with_context(|| format!("writing {}", source.display()))?;
    let mut compiler = Command::new("x86_64-w64-mingw32-gcc");
    let library = programs.join("bcryptprimitives.dll");
    compiler.args(["-shared", "-O1", "-o"]).arg(&library).arg(&source).arg("-ladvapi32");
    run(&mut compiler)?;
    // Tests are programs of their own, in a folder of their own.
    std::fs::copy(&library, programs.join("deps").join("bcryptprimitives.dll"))?;
    Ok(())
}

/// The example that the README starts with, on free ports and with its state in `folder`, and one service more: a batch file
/// that starts its program as a child, so that the tree is more than its root.
fn shop(root: &Path, folder: &Path) -> Result<PathBuf> {
    let example = root.join("examples/shop/seawall.yaml");
    let mut text = std::fs::read_to_string(&example).with_context(|| format!("reading {}", example.display()))?;
    // Wine delivers no Ctrl+Break, so instances end by the end of their grace period: make it short.
    let grace = "labels: { app: shop }\n    terminationGracePeriodSeconds: 1\n";
    for (written, wanted) in [
        ("dataDir: ../../target/shop-data", "dataDir: data"),
        ("127.0.0.1:8500", "127.0.0.1:0"),
        ("127.0.0.1:8080", "127.0.0.1:0"),
        ("labels: { app: shop }\n", grace),
        ("\nservices:\n", &format!("\nservices:\n{BATCH_SERVICE}")),
    ] {
        ensure!(text.contains(written), "{} has no `{written}` any more", example.display());
        text = text.replace(written, wanted);
    }
    let Some(folder) = folder.to_str() else { bail!("{} is not UTF-8", folder.display()) };
    let file = Path::new(folder).join("seawall.yaml");
    std::fs::write(&file, text)?;
    std::fs::write(Path::new(folder).join("batch.cmd"), "@echo off\r\nseawall.exe demo-service --name batch\r\n")?;
    Ok(file)
}

/// `./batch` is found as `batch.cmd`, `seawall` is the running binary, and `PATH` leads the batch file to it.
const BATCH_SERVICE: &str = r#"  batch:
    command: ["./batch"]
    replicas: 1
    terminationGracePeriodSeconds: 1
    readinessProbe: { exec: { command: ["seawall", "--version"] }, periodSeconds: 1, timeoutSeconds: 5 }
    livenessProbe: { httpGet: { path: /health }, initialDelaySeconds: 2, periodSeconds: 1, failureThreshold: 5 }

"#;
