//! Reading a file and what it includes into one [`Config`], with every mistake of all files at once.

use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};

use super::decode::{Decode, Places};
use super::foreign::{Target, Tool};
use super::yaml::{self, Kind, Node};
use super::{Config, FilePath, Foreign, Include, Rules, validate};
use crate::diagnostic::{Diagnostics, Place, Severity, Sources};

/// The most files one configuration may be made of.
pub const MAX_FILES: usize = 256;

/// The result of reading a configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The files, for naming places.
    pub sources: Sources,
    /// Everything found wrong or suspicious.
    pub diagnostics: Diagnostics,
    /// The configuration; present exactly when nothing refuses it.
    pub config: Option<Config>,
    /// What could be read of one that is refused.
    draft: Option<Config>,
    /// Folders that the files name and that must exist: see [`Loaded::check_folders`].
    folders: Vec<(Place, String, PathBuf)>,
}

impl Loaded {
    /// Refuses a configuration that names a folder which does not exist. A step of its own, as only the caller can look:
    /// there is no file access here.
    pub fn check_folders(&mut self, is_folder: impl Fn(&Path) -> bool) {
        for (place, subject, folder) in self.folders.drain(..) {
            if !is_folder(&folder) {
                let message = format!("{subject}: there is no folder {}", folder.display());
                self.diagnostics.error(place, message, "create it, or correct the path; it is relative to this file");
            }
        }
        self.settle();
    }

    /// Has somebody who can look at this machine look for more mistakes, also in a configuration that has some already.
    pub fn check_with(&mut self, check: impl FnOnce(&Config, &mut Diagnostics)) {
        if let Some(config) = self.config.as_ref().or(self.draft.as_ref()) {
            check(config, &mut self.diagnostics);
        }
        self.settle();
    }

    fn settle(&mut self) {
        if !self.diagnostics.is_ok() {
            self.draft = self.config.take().or(self.draft.take());
        }
    }
}

/// Reads `path` and everything it includes through `read`. `read` gets paths as written, joined to the including file's folder.
pub fn load(path: &Path, read: &mut dyn FnMut(&Path) -> io::Result<String>) -> Loaded {
    let mut loader =
        Loader { sources: Sources::default(), diagnostics: Diagnostics::default(), folders: Vec::new(), read };
    let mut config = loader.file(path, None);
    if let Some(main) = &mut config {
        loader.includes(path, main);
        validate::check(main, &mut loader.diagnostics);
    }
    let Loader { sources, diagnostics, folders, .. } = loader;
    let mut loaded = Loaded { sources, diagnostics, config, draft: None, folders };
    loaded.settle();
    loaded
}

/// How messages call the configuration that is in force.
pub const IN_FORCE: &str = "the configuration in force";

/// Reads a configuration that [`Decode::encode`] wrote; it was checked before it was written. Nothing in it has a place.
///
/// # Errors
/// The mistakes as text: the file was damaged, or written by a newer version.
pub fn decode_effective(text: &str) -> Result<Config, String> {
    let mut diagnostics = Diagnostics::default();
    let mut sources = Sources::default();
    let file = sources.add(Path::new(IN_FORCE), text.to_owned());
    let node = yaml::parse(text, file, &mut diagnostics).map(Node::without_places);
    let config = node.and_then(|node| Config::decode(&node, &mut diagnostics));
    config.ok_or_else(|| diagnostics.render(&sources))
}

/// Reads another tool's file over the configuration in force, as that of `include` would have been read beside it. What an
/// earlier file of the same kind said of the same is replaced, everything else stays.
pub fn load_over(in_force: &Config, whose: Foreign, path: &Path, text: String) -> Loaded {
    let (mut sources, mut diagnostics) = (Sources::default(), Diagnostics::default());
    // What is in force has nothing but its name, at the index that its places have.
    let before = sources.add(Path::new(IN_FORCE), String::new());
    let file = sources.add(path, text.clone());
    let mut config = in_force.clone();
    let too_large = text.len() > yaml::MAX_BYTES;
    if too_large {
        let message = format!("{} has {} bytes; the limit is {}", path.display(), text.len(), yaml::MAX_BYTES);
        diagnostics.error(Place { file, line: 0, column: 0 }, message, "leave out what no service needs");
    } else {
        let mut target =
            Target { config: &mut config, diagnostics: &mut diagnostics, sources: &sources, replaced: None };
        target.put_over(whose, &text, file);
        validate::check_rules(&config, &mut diagnostics);
        if config.cluster.is_some() && config.gateway != in_force.gateway {
            let cure = "put the file under `include` in each machine's own";
            let message = "what a gateway bears is each machine's own in a cluster";
            diagnostics.error(Place { file, line: 0, column: 0 }, message, cure);
        }
    }
    // Of what was in force before, only what cannot stay beside the file is news.
    diagnostics.list.retain(|it| it.severity == Severity::Error || it.place.file != before);
    let mut loaded = Loaded { sources, diagnostics, config: Some(config), draft: None, folders: Vec::new() };
    loaded.settle();
    loaded
}

struct Loader<'r> {
    sources: Sources,
    diagnostics: Diagnostics,
    folders: Vec<(Place, String, PathBuf)>,
    read: &'r mut dyn FnMut(&Path) -> io::Result<String>,
}

impl Loader<'_> {
    fn file(&mut self, path: &Path, included_at: Option<Place>) -> Option<Config> {
        let text = match (self.read)(path) {
            Ok(text) => text,
            Err(error) => {
                let place = included_at.unwrap_or_else(|| Place {
                    file: self.sources.add(path, String::new()),
                    line: 0,
                    column: 0,
                });
                let message = format!("cannot read {}: {error}", path.display());
                self.diagnostics.error(place, message, "check the path and its permissions");
                return None;
            }
        };
        let file = self.sources.add(path, text);
        let node = yaml::parse(self.sources.text(file), file, &mut self.diagnostics)?;
        if matches!(node.kind, Kind::Null) {
            let place = Place { file, line: 0, column: 0 };
            self.diagnostics.error(
                place,
                "the file is empty",
                "start with `services:`; `seawall schema` and docs/reference/config.md list every key",
            );
            return None;
        }
        if included_at.is_some() {
            self.refuse_node_keys(&node);
        }
        let mut config = Config::decode(&node, &mut self.diagnostics)?;
        if config.node.data_dir.is_empty() {
            let place = config.node.at.field("dataDir");
            self.diagnostics.error(place, "`dataDir` is empty", "name a folder, or leave `dataDir` out");
        }
        resolve_paths(&mut config, path);
        for (name, service) in &config.services {
            if let Some(folder) = service.working_dir.as_ref().filter(|_| service.at.has("workingDir")) {
                let place = service.at.field("workingDir");
                self.folders.push((place, format!("service `{name}`, workingDir"), PathBuf::from(folder)));
            }
        }
        Some(config)
    }

    /// An included file may not move this machine's listeners or its data.
    fn refuse_node_keys(&mut self, node: &Node) {
        let places = Places::of(node);
        for key in ["node", "api", "discovery", "dns", "gateway"] {
            if places.has(key) {
                let message = format!("`{key}` in an included file");
                self.diagnostics.error(
                    places.field(key),
                    message,
                    "included files hold `services`, `routes`, `notify` and `include`; move it to the main file",
                );
            }
        }
    }

    fn includes(&mut self, main_path: &Path, main: &mut Config) {
        let mut rules = Vec::new();
        let mut queue = queue_of(main_path, main, &mut rules);
        while let Some((path, place)) = queue.pop() {
            if self.sources.contains(&path) {
                self.diagnostics.error(
                    place,
                    format!("{} is included twice or includes itself", path.display()),
                    "include each file once",
                );
                continue;
            }
            if queue.len() >= MAX_FILES {
                self.diagnostics.error(place, format!("more than {MAX_FILES} files"), "merge some of them");
                return;
            }
            let Some(included) = self.file(&path, Some(place)) else { continue };
            queue.extend(queue_of(&path, &included, &mut rules));
            self.merge(main, included);
        }
        // Now all services are known.
        for (folder, rules) in rules.iter().take(MAX_FILES) {
            if let Some(file) = &rules.consul {
                let path = joined(folder, &file.path);
                main.discovery.definitions.push(FilePath { path, at: file.at });
            }
            for (file, tool) in rules.files() {
                self.rules(main, &folder.join(&file.path), file.at, tool);
            }
            // Upstreams are services that others may name.
            let texts = self.texts(folder, &rules.nginx);
            self.target(main).put_nginx(&texts);
            if let Some(istio) = &rules.istio {
                let texts = self.texts(folder, &istio.0.files);
                self.target(main).put_istio(&istio.0.hosts, &texts);
            }
        }
    }

    /// Puts the rules of another tool's file in force.
    fn rules(&mut self, main: &mut Config, path: &Path, place: Place, tool: Tool<'_>) {
        let Some(file) = self.rules_file(path, place) else { return };
        let text = self.sources.text(file).to_owned();
        self.target(main).put(tool, &text, file);
    }

    fn target<'t>(&'t mut self, config: &'t mut Config) -> Target<'t> {
        Target { config, diagnostics: &mut self.diagnostics, sources: &self.sources, replaced: None }
    }

    /// The texts of several files of another tool that are read together.
    fn texts(&mut self, folder: &Path, files: &[FilePath]) -> Vec<(u16, String)> {
        let files = files.iter().take(MAX_FILES);
        let read: Vec<u16> = files.filter_map(|file| self.rules_file(&folder.join(&file.path), file.at)).collect();
        read.into_iter().map(|file| (file, self.sources.text(file).to_owned())).collect()
    }

    /// Reads another tool's file.
    fn rules_file(&mut self, path: &Path, place: Place) -> Option<u16> {
        if self.sources.contains(path) {
            self.diagnostics.error(place, format!("{} is read twice", path.display()), "name each file once");
            return None;
        }
        match (self.read)(path) {
            Ok(text) if text.len() > yaml::MAX_BYTES => {
                let message = format!("{} has {} bytes; the limit is {}", path.display(), text.len(), yaml::MAX_BYTES);
                self.diagnostics.error(place, message, "leave out what no service needs");
                None
            }
            Ok(text) => Some(self.sources.add(path, text)),
            Err(error) => {
                let message = format!("cannot read {}: {error}", path.display());
                self.diagnostics.error(place, message, "check the path and its permissions");
                None
            }
        }
    }

    fn merge(&mut self, main: &mut Config, included: Config) {
        for (name, service) in included.services {
            let place = service.at.whole;
            match main.services.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(service);
                }
                Entry::Occupied(entry) => {
                    let message = format!("service `{}` is defined twice", entry.key());
                    self.diagnostics.error(place, message, "rename or remove one of the two");
                }
            }
        }
        main.routes.extend(included.routes);
        main.notify.extend(included.notify);
    }
}

/// Through its components, so that `./data` does not leave a `.` in every message.
fn joined(folder: &Path, written: &str) -> String {
    folder.join(written).components().collect::<PathBuf>().to_string_lossy().into_owned()
}

/// Relative paths are relative to the file they stand in; from here on they are relative to the process.
fn resolve_paths(config: &mut Config, file: &Path) {
    let folder = file.parent().unwrap_or(Path::new(""));
    let join = |written: &str| joined(folder, written);
    config.discovery.definitions.iter_mut().for_each(|file| file.path = join(&file.path));
    let feeds = &mut config.discovery.feeds;
    let files = feeds.prometheus.iter_mut().chain(feeds.nginx.as_mut().map(|nginx| &mut nginx.file));
    files.for_each(|file| file.path = join(&file.path));
    config.node.data_dir = join(&config.node.data_dir);
    if let Some(cluster) = &mut config.cluster {
        cluster.tls.dir = join(&cluster.tls.dir);
    }
    for page in config.gateway.error_pages.values_mut() {
        page.path = join(&page.path);
    }
    for tls in config.gateway.listen.iter_mut().filter_map(|listen| listen.0.tls.as_mut()) {
        for certificate in &mut tls.certificates {
            let files = [&mut certificate.cert_file, &mut certificate.key_file];
            files.into_iter().flatten().for_each(|path| *path = join(path));
        }
        if let Some(auth) = &mut tls.client_auth {
            auth.ca_file = join(&auth.ca_file);
        }
    }
    if let Some(acme) = &mut config.gateway.acme {
        let hmac = acme.external_account.as_mut().map(|account| &mut account.hmac_key_file);
        acme.ca_file.iter_mut().chain(hmac).for_each(|path| *path = join(path));
    }
    for service in config.services.values_mut() {
        // Where nothing is run there is no folder to run it in.
        if service.endpoints.is_empty() || service.working_dir.is_some() {
            service.working_dir = Some(join(service.working_dir.as_deref().unwrap_or("")));
        }
        if let Some(tls) = &mut service.tls {
            let files = [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file];
            files.into_iter().flatten().for_each(|path| *path = join(path));
        }
    }
}

/// The files that `config` includes, the last one first; rules of other tools go to `rules`, with their folder.
fn queue_of(path: &Path, config: &Config, rules: &mut Vec<(PathBuf, Rules)>) -> Vec<(PathBuf, Place)> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = |include: &Include| match include {
        Include::File(file) => Some((folder.join(&file.path), file.at)),
        Include::Rules(found) => {
            rules.push((folder.to_owned(), (**found).clone()));
            None
        }
    };
    let mut files: Vec<_> = config.include.0.iter().filter_map(file).collect();
    files.reverse();
    files
}
