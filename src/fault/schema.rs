// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The JSON schema of scenario files, for editors: made of the same table of keys that the parser reads.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, TOP, WHEN};

/// The schema (draft 2020-12), `docs/scenario.schema.json`. What it accepts may
/// still be refused: what contradicts itself is for `wtblk scenario check`.
pub fn schema() -> Value {
    let mut whole = table(TOP);
    if let Value::Object(map) = &mut whole {
        map.insert(
            "$schema".into(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        map.insert("title".into(), json!("wtblk scenario"));
        let mut when = table(WHEN);
        if let Value::Object(map) = &mut when {
            map.insert("minProperties".into(), json!(1));
        }
        map.insert("$defs".into(), json!({ "when": when }));
    }
    whole
}

fn table(keys: &[Key]) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut value = kind(&key.kind);
        if let Value::Object(map) = &mut value {
            map.insert("description".into(), json!(key.about));
        }
        properties.insert(key.name.into(), value);
    }
    let required: Vec<&str> = keys.iter().filter(|k| k.required).map(|k| k.name).collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn kind(of: &Kind) -> Value {
    match of {
        Kind::Text => json!({ "type": "string" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer(min, max) => {
            json!({ "type": "integer", "minimum": min, "maximum": max })
        }
        Kind::Share => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 }),
        Kind::Words(words) => json!({ "enum": words }),
        Kind::Form(pattern) => json!({ "type": "string", "pattern": pattern }),
        Kind::List(item) => json!({ "type": "array", "items": kind(item), "minItems": 1 }),
        Kind::Table(keys) => table(keys),
        Kind::Either(kinds) => json!({ "anyOf": kinds.iter().map(kind).collect::<Vec<_>>() }),
        Kind::Trigger => json!({ "$ref": "#/$defs/when" }),
    }
}
