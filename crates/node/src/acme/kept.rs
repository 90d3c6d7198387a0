//! What is kept of an authority: the account's key, and each certificate with its key. The only place that knows where.
//! Under the data directory, one folder for each directory URL, for the owner's eyes only. A file is replaced as a whole:
//! whenever the process is killed, either the old one is there or the new one, and a certificate never without its key.

use std::io;
use std::path::{Path, PathBuf};

use gateway::tls::Certificate;
use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};

/// The account's file.
const ACCOUNT: &str = "account.json";
/// The format of the account's file.
const VERSION: u32 = 1;

/// The files of one authority.
#[derive(Clone, Debug)]
pub struct Kept {
    folder: PathBuf,
    directory: String,
}

/// The account as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AccountFile {
    version: u32,
    directory: String,
    /// Its URL.
    account: String,
    /// PKCS#8, base64url.
    key: String,
    contacts: Vec<String>,
}

/// The account as the client of the protocol wants it.
#[derive(Serialize, Deserialize)]
struct Credentials {
    id: String,
    key_pkcs8: String,
    directory: String,
}

impl Kept {
    /// Where the files of `directory` are; nothing is read or made yet.
    pub fn new(data_dir: &Path, directory: &str) -> Self {
        Self { folder: data_dir.join("acme").join(file_name(directory)), directory: directory.to_owned() }
    }

    /// The account and the contacts it was told, if there is one.
    pub fn account(&self) -> Option<(AccountCredentials, Vec<String>)> {
        let path = self.folder.join(ACCOUNT);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the account cannot be read; a new one is made");
                return None;
            }
        };
        let read = serde_json::from_str::<AccountFile>(&text).ok().filter(|file| {
            // Of another directory: two URLs that look the same as a name.
            file.version == VERSION && file.directory == self.directory
        });
        let credentials = read.and_then(|file| {
            let parts = Credentials { id: file.account, key_pkcs8: file.key, directory: file.directory };
            let credentials = serde_json::from_value(serde_json::to_value(parts).ok()?).ok()?;
            Some((credentials, file.contacts))
        });
        if credentials.is_none() {
            tracing::warn!(path = %path.display(), "the account is not in a format that is known; a new one is made");
        }
        credentials
    }

    /// Keeps an account.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn keep_account(&self, credentials: &AccountCredentials, contacts: &[String]) -> io::Result<()> {
        let parts: Credentials = serde_json::from_value(serde_json::to_value(credentials)?)?;
        let file = AccountFile {
            version: VERSION,
            directory: parts.directory,
            account: parts.id,
            key: parts.key_pkcs8,
            contacts: contacts.to_vec(),
        };
        self.replace(ACCOUNT.to_owned(), serde_json::to_string_pretty(&file)?).await
    }

    /// The authority does not know the account any more.
    ///
    /// # Errors
    /// The operating system's.
    pub fn forget_account(&self) -> io::Result<()> {
        match std::fs::remove_file(self.folder.join(ACCOUNT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The certificate that was ordered for exactly these names, if there is one that can be used.
    pub fn certificate(&self, domains: &[String]) -> Option<Certificate> {
        let path = self.folder.join(certificate_name(domains));
        let pem = std::fs::read(&path).ok()?;
        match Certificate::read(&pem, &pem) {
            Ok(certificate) if is_for(&certificate, domains) => Some(certificate),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a kept certificate cannot be used; a new one is ordered");
                None
            }
        }
    }

    /// Keeps a key with its chain, in one file.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn keep_certificate(&self, domains: &[String], pem: String) -> io::Result<()> {
        self.replace(certificate_name(domains), pem).await
    }

    /// Not on the control plane's thread: a slow disk must not hold up anybody's lease.
    async fn replace(&self, name: String, contents: String) -> io::Result<()> {
        let folder = self.folder.clone();
        let write = move || {
            platform::file::create_private_directory(&folder)?;
            platform::identity::replace_private(&folder.join(name), contents.as_bytes())
        };
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Whether a certificate is for all these names; an authority may have added some.
pub fn is_for(certificate: &Certificate, domains: &[String]) -> bool {
    domains.iter().all(|domain| certificate.names.contains(domain))
}

fn certificate_name(domains: &[String]) -> String {
    let mut sorted = domains.to_vec();
    sorted.sort();
    format!("{}.pem", file_name(&sorted.join(",")))
}

/// A text as the name of a file, on every system: what it begins with, for people, and a hash of all of it.
fn file_name(text: &str) -> String {
    const SHOWN: usize = 60;
    let text = text.trim_start_matches("https://");
    let fits = |letter: char| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' };
    let shown: String = text.chars().take(SHOWN).map(fits).collect();
    // FNV-1a. What is read is compared with what was asked for, so that equal names do no harm.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{shown}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::{Kept, file_name};

    /// Version 1 as it was written once; the key is this test's own.
    const VERSION_1: &str = r#"{
  "version": 1,
  "directory": "https://acme.example/directory",
  "account": "https://acme.example/account/1",
  "key": "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgJVWC_QzOTCS5vtsJp2IG-UDc8cdDfeoKtxSZxaznM-mhRANCAAQenCPoGgPFTdPJ7VLLKt56RxPlYT1wNXnHc54PEyBg3LxKaH0-sJkX0mL8LyPEdsfL_Oz4TxHkWLJGrXVtNhfH",
  "contacts": [
    "mailto:ops@shop.example"
  ]
}"#;

    fn now(work: impl Future<Output = std::io::Result<()>>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work).unwrap();
    }

    #[test]
    fn an_account_of_version_1_is_read_and_written_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path(), "https://acme.example/directory");
        assert!(kept.account().is_none());
        std::fs::create_dir_all(&kept.folder).unwrap();
        let path = kept.folder.join("account.json");
        std::fs::write(&path, VERSION_1).unwrap();
        let (credentials, contacts) = kept.account().unwrap();
        assert_eq!(contacts, ["mailto:ops@shop.example"]);
        now(kept.keep_account(&credentials, &contacts));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), VERSION_1);
        for other in [
            VERSION_1.replace("\"version\": 1", "\"version\": 2"),
            VERSION_1.replace("directory\",\n", "other\",\n"),
            VERSION_1[..40].to_owned(),
        ] {
            std::fs::write(&path, other).unwrap();
            assert!(kept.account().is_none());
        }
        kept.forget_account().unwrap();
        kept.forget_account().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_certificate_is_found_by_its_names_in_any_order_and_nothing_half_written_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path(), "https://acme.example/directory");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let made = rcgen::generate_simple_self_signed(names(&["a.example", "b.example"])).unwrap();
        let pem = made.signing_key.serialize_pem() + &made.cert.pem();
        now(kept.keep_certificate(&names(&["a.example", "b.example"]), pem.clone()));
        let found = kept.certificate(&names(&["b.example", "a.example"])).unwrap();
        assert_eq!(found.names, ["a.example", "b.example"]);
        assert!(kept.certificate(&names(&["a.example"])).is_none());
        // Killed while the next one was written.
        let files = || std::fs::read_dir(&kept.folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        std::fs::write(files()[0].with_extension("new"), &pem[..pem.len() / 2]).unwrap();
        assert!(kept.certificate(&names(&["a.example", "b.example"])).is_some());
        now(kept.keep_certificate(&names(&["a.example", "b.example"]), pem));
        assert_eq!(files().len(), 1);
    }

    #[test]
    fn names_of_files_are_plain_and_bounded() {
        let name = file_name("https://acme-v02.api.letsencrypt.org/directory");
        assert!(name.starts_with("acme-v02.api.letsencrypt.org-directory-"), "{name}");
        assert!(file_name(&"a.example,".repeat(100)).len() < 80);
        assert_ne!(file_name("https://a/b"), file_name("https://a-b"));
    }
}
