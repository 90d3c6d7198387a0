//! `seawall schema`: the JSON Schema, and the reference page made from it.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;

use super::Outcome;

/// What `schema` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the reference page (Markdown) instead
    #[arg(long)]
    markdown: bool,
}

/// Prints the schema or the page.
pub fn run(arguments: &Arguments) -> Outcome {
    let schema = model::config::schema::schema();
    if arguments.markdown {
        write!(std::io::stdout(), "{}", markdown(&schema))?;
    } else {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&schema)?)?;
    }
    Ok(())
}

fn markdown(schema: &Value) -> String {
    let mut page = String::from(
        "# Configuration reference\n\nMade from `seawall schema --markdown`; `seawall check FILE` reports every mistake with file, line and cure.\n\
         Durations are written `500ms`, `2s`, `1m30s`. Relative paths are relative to the file they stand in.\n",
    );
    let mut names = vec!["Config".to_owned()];
    let mut at = 0;
    while at < names.len() {
        let name = names[at].clone();
        at += 1;
        let record = &schema["$defs"][&name];
        // Writing into a String cannot fail.
        let _ = write!(
            page,
            "\n## {name}\n\n{}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n",
            text(&record["description"])
        );
        let required: Vec<&str> =
            record["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (key, property) in record["properties"].as_object().into_iter().flatten() {
            let kind = kind(property, &mut names);
            let default = match &property["default"] {
                Value::Null if required.contains(&key.as_str()) => "required".to_owned(),
                Value::Null => "none".to_owned(),
                Value::String(text) => format!("`{text}`"),
                other => format!("`{other}`"),
            };
            let _ = writeln!(
                page,
                "| `{key}` | {kind} | {default} | {} |",
                text(&property["description"]).replace('|', "\\|")
            );
        }
    }
    page
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace('\n', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A property's type in words; records it names are added to the page.
fn kind(property: &Value, names: &mut Vec<String>) -> String {
    if let Some(reference) = property["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default().to_owned();
        if !names.contains(&name) {
            names.push(name.clone());
        }
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(words) = property["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    if let Some(forms) = property["oneOf"].as_array() {
        let form = |form: &Value| match form["type"].as_str() {
            Some("string") => "word".to_owned(),
            Some("array") => "list".to_owned(),
            _ => kind(form, names),
        };
        return forms.iter().map(form).collect::<Vec<_>>().join(" or ");
    }
    match property["type"].as_str() {
        Some("array") => format!("list of {}", kind(&property["items"], names)),
        Some("object") => format!("map of {}", kind(&property["additionalProperties"], names)),
        Some("integer") => "whole number".to_owned(),
        Some("number") => "number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("string") if property["pattern"].as_str().is_some_and(|pattern| pattern.contains("ms")) => {
            "duration".to_owned()
        }
        _ => "text".to_owned(),
    }
}
