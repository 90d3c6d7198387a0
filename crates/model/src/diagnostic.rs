//! Mistakes in a configuration: where, what, and the cure, gathered so that all are shown at once.
//! Rendering is text only; colour belongs to the command line.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A position in one of the [`Sources`]. Two places always compare equal: a configuration that was only
/// re-indented has not changed, and equality of configuration values is what decides a roll-out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Index into [`Sources`].
    pub file: u16,
    /// One-based line; 0 means "the file as a whole".
    pub line: u32,
    /// One-based column, in characters.
    pub column: u32,
}

impl PartialEq for Place {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

/// The files a configuration was read from, for naming places and quoting lines.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<(PathBuf, String)>,
}

impl Sources {
    /// Adds a file's text and returns its index.
    pub fn add(&mut self, path: &Path, text: String) -> u16 {
        self.files.push((path.to_owned(), text));
        u16::try_from(self.files.len() - 1).expect("the include limit keeps the count of files small")
    }

    /// The path of file `index`.
    pub fn path(&self, index: u16) -> &Path {
        &self.files[usize::from(index)].0
    }

    /// The text of file `index`.
    pub fn text(&self, index: u16) -> &str {
        &self.files[usize::from(index)].1
    }

    /// True when `path` has been added.
    pub fn contains(&self, path: &Path) -> bool {
        self.files.iter().any(|(known, _)| known == path)
    }

    fn line(&self, place: Place) -> Option<&str> {
        let index = usize::try_from(place.line).ok()?.checked_sub(1)?;
        self.files.get(usize::from(place.file))?.1.lines().nth(index)
    }
}

/// How bad a diagnostic is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is accepted, and probably not what was meant.
    Warning,
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Refused, or only suspicious.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What is wrong, naming the subject.
    pub message: String,
    /// What to do about it.
    pub cure: String,
}

/// All mistakes of one reading, in order of discovery.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// The mistakes found so far.
    pub list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Records a mistake that refuses the configuration.
    pub fn error(&mut self, place: Place, message: impl Into<String>, cure: impl Into<String>) {
        self.push(Severity::Error, place, message.into(), cure.into());
    }

    /// Records something suspicious that does not refuse it.
    pub fn warning(&mut self, place: Place, message: impl Into<String>, cure: impl Into<String>) {
        self.push(Severity::Warning, place, message.into(), cure.into());
    }

    /// Adds what another reading found.
    pub fn append(&mut self, other: Self) {
        self.list.extend(other.list);
    }

    /// What is said already at this place is not said twice, as when a list has the same mistake in several items.
    fn push(&mut self, severity: Severity, place: Place, message: String, cure: String) {
        let at = |place: &Place| (place.file, place.line, place.column);
        if self.list.iter().any(|known| at(&known.place) == at(&place) && known.message == message) {
            return;
        }
        self.list.push(Diagnostic { severity, place, message, cure });
    }

    /// How many of `severity` there are.
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|diagnostic| diagnostic.severity == severity).count()
    }

    /// True when nothing refuses the configuration.
    pub fn is_ok(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// Every mistake as `file:line:column: error: …`, the quoted line with a caret, and the cure; sorted by place.
    pub fn render(&self, sources: &Sources) -> String {
        let mut sorted: Vec<&Diagnostic> = self.list.iter().collect();
        sorted.sort_by_key(|diagnostic| (diagnostic.place.file, diagnostic.place.line, diagnostic.place.column));
        let mut text = String::new();
        for diagnostic in sorted {
            render_one(&mut text, diagnostic, sources);
        }
        text
    }
}

fn render_one(text: &mut String, diagnostic: &Diagnostic, sources: &Sources) {
    let Diagnostic { severity, place, message, cure } = diagnostic;
    let severity = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let path = sources.path(place.file).display();
    // Writing into a String cannot fail.
    if place.line == 0 {
        let _ = writeln!(text, "{path}: {severity}: {message}");
    } else {
        let _ = writeln!(text, "{path}:{}:{}: {severity}: {message}", place.line, place.column);
    }
    if let Some(line) = sources.line(*place) {
        let number = place.line.to_string();
        let caret = " ".repeat(place.column.saturating_sub(1) as usize);
        let shown: String = line.chars().take(160).collect();
        let _ = writeln!(text, "  {number} | {shown}");
        if place.column <= 160 {
            let _ = writeln!(text, "  {} | {caret}^", " ".repeat(number.len()));
        }
    }
    if !cure.is_empty() {
        let _ = writeln!(text, "  cure: {cure}");
    }
    text.push('\n');
}

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 4 && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
