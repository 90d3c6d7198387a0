//! Which file a command names: as a shell would find it, with the working directory and environment of the process to be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The name by which a command means the running binary itself, whatever `PATH` says.
const OWN_NAME: &str = "seawall";

/// Where `program` is. With a path in it, it is looked for from `working_dir`; a bare name in `PATH`, as `env` or else this
/// process has it. The bare name `seawall` is the running binary. On Windows `.exe`, `.com`, `.bat` and `.cmd` may be left
/// out, as at the prompt. What is not found is returned as far as it is known, so that starting it gives the system's error.
pub fn locate(program: &str, working_dir: &Path, env: &BTreeMap<String, String>) -> PathBuf {
    if program == OWN_NAME
        && let Ok(own) = own()
    {
        return own;
    }
    imp::locate(program, working_dir, env)
}

/// The running binary, also after its file was replaced or removed: what was started goes on as what it is.
///
/// # Errors
/// The operating system's.
pub fn own() -> std::io::Result<PathBuf> {
    imp::own()
}

#[cfg(unix)]
mod imp {
    use super::{BTreeMap, Path, PathBuf};

    pub fn own() -> std::io::Result<PathBuf> {
        let named = std::env::current_exe()?;
        if named.exists() {
            return Ok(named);
        }
        // Replaced or removed: the link still leads to the file itself. A child that follows it before `exec` is a copy
        // of this process, so it finds the same.
        let link = Path::new("/proc/self/exe");
        Ok(if link.exists() { link.to_owned() } else { named })
    }

    pub fn locate(program: &str, working_dir: &Path, _env: &BTreeMap<String, String>) -> PathBuf {
        // The system searches `PATH` for a bare name, the one of the process to be.
        if program.contains('/') { working_dir.join(program) } else { program.into() }
    }
}

#[cfg(windows)]
mod imp {
    use super::{BTreeMap, Path, PathBuf};

    pub fn own() -> std::io::Result<PathBuf> {
        std::env::current_exe()
    }

    /// What can be started without naming an interpreter, in the order of the prompt.
    const EXTENSIONS: [&str; 4] = ["com", "exe", "bat", "cmd"];

    pub fn locate(program: &str, working_dir: &Path, env: &BTreeMap<String, String>) -> PathBuf {
        if program.contains(['/', '\\', ':']) {
            let joined = working_dir.join(program);
            // Forward slashes and `.` are resolved here: a verbatim working directory would take them literally.
            let path = std::path::absolute(&joined).unwrap_or(joined);
            return complete(&path).unwrap_or(path);
        }
        let own = || std::env::var("PATH").unwrap_or_default();
        let given = env.iter().find(|(name, _)| name.eq_ignore_ascii_case("PATH")).map(|(_, value)| value.clone());
        let folders = given.unwrap_or_else(own);
        std::env::split_paths(&folders)
            .filter(|folder| folder.is_absolute())
            .find_map(|folder| complete(&folder.join(program)))
            .unwrap_or_else(|| program.into())
    }

    /// The file itself, or the first that exists with an extension added.
    fn complete(path: &Path) -> Option<PathBuf> {
        let startable =
            path.extension().is_some_and(|own| EXTENSIONS.iter().any(|known| own.eq_ignore_ascii_case(known)));
        if startable && path.is_file() {
            return Some(path.to_owned());
        }
        let with = |extension: &&str| {
            let mut name = path.as_os_str().to_owned();
            name.push(".");
            name.push(extension);
            PathBuf::from(name)
        };
        EXTENSIONS.iter().map(with).find(|path| path.is_file()).or_else(|| path.is_file().then(|| path.to_owned()))
    }

    #[cfg(test)]
    mod tests {
        use super::locate;

        #[test]
        fn extensions_may_be_left_out_and_slashes_go_either_way() {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("bin")).unwrap();
            for name in ["bin/run.cmd", "bin/v1.2.exe", "bin/both.exe", "bin/both.cmd"] {
                std::fs::write(folder.path().join(name), "").unwrap();
            }
            let bin = folder.path().join("bin");
            let none = Default::default();
            for (written, found) in [
                ("./bin/run", "run.cmd"),
                (".\\bin\\run", "run.cmd"),
                ("bin/v1.2", "v1.2.exe"),
                ("bin/both", "both.exe"),
                ("bin/both.cmd", "both.cmd"),
            ] {
                assert_eq!(locate(written, folder.path(), &none), bin.join(found), "{written}");
            }
            let env = [("Path".to_owned(), bin.display().to_string())].into();
            assert_eq!(locate("both", folder.path(), &env), bin.join("both.exe"));
            assert_eq!(locate("missing", folder.path(), &env).to_str(), Some("missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::locate;

    #[test]
    fn the_own_name_is_the_running_binary_and_a_path_counts_from_the_working_directory() {
        let folder = tempfile::tempdir().unwrap();
        let none = Default::default();
        assert_eq!(locate("seawall", folder.path(), &none), super::own().unwrap());
        assert_eq!(
            locate("./seawall", folder.path(), &none),
            std::path::absolute(folder.path().join("./seawall")).unwrap()
        );
        assert_eq!(locate("no-such-program", folder.path(), &none).to_str(), Some("no-such-program"));
    }
}
