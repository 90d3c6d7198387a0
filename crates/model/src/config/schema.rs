//! The configuration's JSON Schema, made from the same descriptions that decode it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Config;
use super::decode::Decode;

/// The JSON Schema (draft 2020-12) of the configuration file.
pub fn schema() -> Value {
    let mut definitions: BTreeMap<String, Value> = BTreeMap::new();
    let root = Config::schema(&mut definitions);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Seawall configuration",
        "$ref": root["$ref"],
        "$defs": definitions,
    })
}
