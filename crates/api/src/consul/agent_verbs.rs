//! `/v1/agent`: what operators do to a node through Consul's clients. Deliberately absent: stopping it, joining, its log
//! (`docs/reference/consul-compatibility.md` says what does that instead).

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use discovery::acl::{Access, Kind, Scalar};
use discovery::writing;
use serde_json::{Map, Value, json};

use super::ask::Ask;
use super::own_if_agent;
use super::reply::{Answer, Trouble, done, fresh, json as reply_json};
use crate::Context;

/// Has the files of service definitions read again. What is wrong with them is in the log; they are then as before.
pub async fn reload(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require(Kind::Agent, context.discovery.node(), Access::Write)?;
    context.consul.reload.notify_one();
    Ok(done())
}

/// A machine whose Seawall has gone: it is taken out of the catalog with all that is on it.
pub async fn force_leave(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    ask.require_in(Scalar::Operator, Access::Write)?;
    fresh(&context, &ask).await?;
    let ops = {
        let catalog = context.discovery.read();
        let known =
            catalog.find_node(&name).filter(|known| catalog.node(known).is_some_and(|(node, _)| node.record.agent));
        let Some(known) = known else {
            return Err(Trouble::failed(format!("agent: No node found with name '{name}'")));
        };
        own_if_agent(&catalog, known)?;
        writing::remove_node(known)?
    };
    context.discovery.change(ops).await?;
    Ok(done())
}

/// The node's gauges; with `format=prometheus` everything as `/metrics` has it.
pub async fn metrics(State(context): State<Context>, ask: Ask) -> Response {
    if let Err(refused) = ask.require(Kind::Agent, context.discovery.node(), Access::Read) {
        return refused.into_response();
    }
    if ask.get("format") == Some("prometheus") {
        return crate::metrics(State(context)).await;
    }
    let text = match crate::metrics_text(&context) {
        Ok(text) => text,
        Err(error) => return Trouble::failed(error).into_response(),
    };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string();
    let value = json!({ "Timestamp": now, "Gauges": gauges(&text), "Points": [], "Counters": [], "Samples": [] });
    reply_json(&ask, &value)
}

/// The gauges of a text in the format of OpenMetrics.
fn gauges(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut of_gauge = None;
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            of_gauge = declared.strip_suffix(" gauge");
            continue;
        }
        let Some(name) = of_gauge.filter(|_| !line.starts_with('#')) else { continue };
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => match rest.rsplit_once("} ") {
                Some((labels, value)) => (labels_of(labels), value),
                None => continue,
            },
            None => (Map::new(), rest.trim_start()),
        };
        if let Some(value) = value.split(' ').next().and_then(|value| value.parse::<f64>().ok()) {
            found.push(json!({ "Name": name, "Value": value, "Labels": labels }));
        }
    }
    found
}

/// `a="b",c="d"`, with `\"`, `\\` and `\n` for what would end them.
fn labels_of(text: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut escaped = false;
        let mut end = after.len();
        for (at, c) in after.char_indices() {
            match (escaped, c) {
                (true, 'n') => value.push('\n'),
                (true, other) => value.push(other),
                (false, '\\') => {}
                (false, '"') => {
                    end = at + 1;
                    break;
                }
                (false, other) => value.push(other),
            }
            escaped = !escaped && c == '\\';
        }
        labels.insert(name.trim_start_matches(',').to_owned(), value.into());
        rest = &after[end..];
    }
    labels
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::gauges;

    #[test]
    fn gauges_are_read_with_their_labels_and_nothing_else_is() {
        let text =
            "# HELP a A.\n# TYPE a gauge\na{x=\"1\",y=\"b\\\"},c\"} 1.5\na 2\n# TYPE b counter\nb_total 3\n# EOF\n";
        let expected = json!([
            { "Name": "a", "Value": 1.5, "Labels": { "x": "1", "y": "b\"},c" } },
            { "Name": "a", "Value": 2.0, "Labels": {} },
        ]);
        assert_eq!(json!(gauges(text)), expected);
    }
}
