//! `${name}` in commands and environments: which names there are, and their replacement.

use super::Checker;
use crate::diagnostic::{Place, nearest};

/// Variables that `command`, `env` and the commands of probes and hooks may use as `${name}`.
pub const VARIABLES: [&str; 5] = ["port", "address", "instance", "service", "index"];

impl Checker<'_> {
    /// Everything that makes up the process itself; probes and hooks are checked with the rest of them.
    pub(super) fn variables(&mut self) {
        let service = self.service;
        let versions = service.versions.values().map(|version| (&version.command, &version.env, &version.at));
        for (command, env, at) in std::iter::once((&service.command, &service.env, &service.at)).chain(versions) {
            self.known_variables(at.field("command"), "command", command);
            self.known_variables(at.field("env"), "env", env.values());
        }
    }

    pub(super) fn known_variables<'t>(
        &mut self,
        place: Place,
        field: &str,
        texts: impl IntoIterator<Item = &'t String>,
    ) {
        for text in texts {
            let Err(unknown) = expand(text, |_| Some(String::new())) else { continue };
            let cure = match nearest(&unknown, VARIABLES) {
                Some(near) => format!("did you mean `${{{near}}}`?"),
                None => format!(
                    "there are: {}; write `$${{` for a literal `${{`",
                    VARIABLES.map(|name| format!("${{{name}}}")).join(", ")
                ),
            };
            let message = format!("service `{}`, {field}: unknown variable `${{{unknown}}}`", self.name);
            self.diagnostics.error(place, message, cure);
        }
    }
}

/// Replaces `${name}` by `value(name)`; `$${` stays a literal `${`.
///
/// # Errors
/// The first name that is not one of [`VARIABLES`] or has no value.
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            expanded.push_str(&rest[..start - 1]);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.push_str(&rest[..start]);
        let Some(end) = rest[start..].find('}') else { return Err(rest[start + 2..].to_owned()) };
        let name = &rest[start + 2..start + end];
        let known = VARIABLES.contains(&name).then(|| value(name)).flatten();
        expanded.push_str(&known.ok_or_else(|| name.to_owned())?);
        rest = &rest[start + end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}
