//! FULL compatibility of two versions of a payload's schema: readers of either read what writers of the other wrote.
//!
//! A reader passes over properties that it does not know, so an optional property may come and go. Everything else
//! stays as it is: what is required, and what a property may hold. That is stricter than it would have to be, and
//! simple enough to be right.

use serde_json::{Map, Value};

/// Keywords that only people read.
const PROSE: [&str; 5] = ["title", "description", "examples", "deprecated", "$comment"];
/// How deep schemas may refer to each other: one that refers to itself would not end.
const MAX_DEPTH: usize = 32;

/// What keeps readers of either version from reading the other's events: where, and what changed.
pub(crate) fn breaking_changes(older: &Value, newer: &Value) -> Vec<String> {
    let mut changes = Vec::new();
    compare("", &normal(older), &normal(newer), &mut changes);
    changes
}

/// A schema without what only people read, its references replaced by what they refer to.
pub(crate) fn without_prose(schema: &Value) -> Value {
    normal(schema)
}

fn normal(schema: &Value) -> Value {
    let mut normal = normalise(schema, &schema["$defs"], 0);
    if let Value::Object(keywords) = &mut normal {
        keywords.remove("$defs");
    }
    normal
}

fn normalise(schema: &Value, definitions: &Value, depth: usize) -> Value {
    assert!(depth < MAX_DEPTH, "a schema refers to itself");
    match schema {
        Value::Object(keywords) => {
            let mut all = Map::new();
            if let Some(reference) = keywords.get("$ref") {
                let name = reference.as_str().and_then(|reference| reference.strip_prefix("#/$defs/"));
                let target = &definitions[name.expect("a reference within the schema")];
                let target = normalise(target, definitions, depth + 1);
                all.extend(target.as_object().expect("a schema").clone());
            }
            for (keyword, value) in keywords.iter().filter(|(keyword, _)| *keyword != "$ref") {
                if keyword == "properties" {
                    // Its keys are names of ours, not keywords.
                    let properties = value.as_object().expect("properties");
                    let properties = properties
                        .iter()
                        .map(|(name, property)| (name.clone(), normalise(property, definitions, depth + 1)));
                    all.insert(keyword.clone(), properties.collect());
                } else if keyword != "$defs" && !PROSE.contains(&keyword.as_str()) {
                    all.insert(keyword.clone(), normalise(value, definitions, depth + 1));
                }
            }
            Value::Object(all)
        }
        Value::Array(values) => values.iter().map(|value| normalise(value, definitions, depth + 1)).collect(),
        other => other.clone(),
    }
}

fn compare(at: &str, older: &Value, newer: &Value, changes: &mut Vec<String>) {
    let (Some(older), Some(newer)) = (older.as_object(), newer.as_object()) else {
        if older != newer {
            changes.push(format!("{at}: {older} became {newer}"));
        }
        return;
    };
    let mut keywords: Vec<_> = older.keys().chain(newer.keys()).collect();
    keywords.sort();
    keywords.dedup();
    for keyword in keywords {
        let (before, after) = (keyword_of(older, keyword), keyword_of(newer, keyword));
        match keyword.as_str() {
            "properties" => compare_properties(at, &before, &after, changes),
            "items" => compare(&format!("{at}[]"), &before, &after, changes),
            // Names of values, in an order that means nothing.
            "required" | "enum" if sorted(&before) == sorted(&after) => {}
            _ if before == after => {}
            _ => changes.push(format!("{at}: {keyword} was {before}, and became {after}")),
        }
    }
}

/// Properties that only one version has are optional there, or `required` would differ.
fn compare_properties(at: &str, older: &Value, newer: &Value, changes: &mut Vec<String>) {
    let (Some(older), Some(newer)) = (older.as_object(), newer.as_object()) else {
        return;
    };
    for (name, before) in older {
        if let Some(after) = newer.get(name) {
            compare(&format!("{at}.{name}"), before, after, changes);
        }
    }
}

fn keyword_of(schema: &Map<String, Value>, keyword: &str) -> Value {
    schema.get(keyword).cloned().unwrap_or_default()
}

fn sorted(names: &Value) -> Vec<String> {
    let mut names: Vec<_> = names.as_array().into_iter().flatten().map(Value::to_string).collect();
    names.sort();
    names
}

mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "title": "Event",
            "type": "object",
            "properties": {
                "id": {"description": "Whose.", "$ref": "#/$defs/Id"},
                "title": {"type": "string", "x-personal": true},
                "state": {"enum": ["on", "off"]},
                "note": {"type": ["string", "null"]},
                "place": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["id", "title", "state"],
            "$defs": {"Id": {"type": "integer", "minimum": 1}},
        })
    }

    /// What is told of a change, whichever of the two versions came first.
    fn told(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut changed = schema();
        change(&mut changed);
        let changes = breaking_changes(&schema(), &changed);
        assert_eq!(changes.len(), breaking_changes(&changed, &schema()).len(), "it is symmetric");
        changes
    }

    fn remove(schema: &mut Value, name: &str) {
        schema.as_object_mut().unwrap().remove(name);
    }

    #[test]
    fn the_same_schema_is_compatible() {
        assert_eq!(told(|_| ()), [""; 0]);
    }

    #[test]
    fn an_optional_property_may_come_and_go() {
        assert_eq!(told(|schema| schema["properties"]["colour"] = json!({"type": "string"})), [""; 0]);
        assert_eq!(told(|schema| remove(&mut schema["properties"], "note")), [""; 0]);
    }

    #[test]
    fn prose_and_the_order_of_names_may_change() {
        let changes = told(|schema| {
            schema["title"] = json!("Renamed");
            schema["properties"]["id"]["description"] = json!("In other words.");
            schema["required"] = json!(["state", "title", "id"]);
            schema["properties"]["state"]["enum"] = json!(["off", "on"]);
        });
        assert_eq!(changes, [""; 0]);
    }

    #[test]
    fn a_definition_may_be_written_out() {
        let changes = told(|schema| {
            schema["properties"]["id"] = json!({"type": "integer", "minimum": 1});
            remove(schema, "$defs");
        });
        assert_eq!(changes, [""; 0]);
    }

    #[test]
    fn a_required_property_can_t_come_or_go() {
        let added = told(|schema| {
            schema["properties"]["colour"] = json!({"type": "string"});
            schema["required"] = json!(["id", "title", "state", "colour"]);
        });
        assert_eq!(added.len(), 1);
        let removed = told(|schema| {
            remove(&mut schema["properties"], "title");
            schema["required"] = json!(["id", "state"]);
        });
        assert_eq!(removed.len(), 1);
    }

    #[test]
    fn a_property_can_t_become_required_or_optional() {
        let required = told(|schema| schema["required"] = json!(["id", "title", "state", "note"]));
        let optional = told(|schema| schema["required"] = json!(["id", "title"]));
        assert_eq!((required.len(), optional.len()), (1, 1));
        assert_eq!(told(|schema| remove(schema, "required")).len(), 1);
    }

    #[test]
    fn a_property_can_t_change_its_type() {
        let changes = told(|schema| schema["properties"]["title"]["type"] = json!("integer"));
        assert_eq!(changes, [r#".title: type was "string", and became "integer""#]);
        assert_eq!(told(|schema| schema["properties"]["note"]["type"] = json!("string")).len(), 1);
    }

    #[test]
    fn a_property_can_t_be_narrowed_or_widened() {
        assert_eq!(told(|schema| schema["properties"]["title"]["maxLength"] = json!(10)).len(), 1);
        assert_eq!(told(|schema| schema["$defs"]["Id"]["minimum"] = json!(0)).len(), 1);
        assert_eq!(told(|schema| schema["additionalProperties"] = json!(false)).len(), 1);
    }

    #[test]
    fn the_values_of_an_enum_can_t_change() {
        assert_eq!(told(|schema| schema["properties"]["state"]["enum"] = json!(["on"])).len(), 1);
        assert_eq!(told(|schema| schema["properties"]["state"]["enum"] = json!(["on", "off", "x"])).len(), 1);
    }

    #[test]
    fn what_is_nested_is_held_to_the_same() {
        let place = |schema: &mut Value, change: fn(&mut Value)| change(&mut schema["properties"]["place"]);
        let added =
            told(|schema| place(schema, |place| place["properties"]["y"] = json!({"type": "integer"})));
        assert_eq!(added, [""; 0]);
        let narrowed = told(|schema| place(schema, |place| place["properties"]["x"]["type"] = json!("null")));
        assert_eq!(narrowed, [r#".place.x: type was "integer", and became "null""#]);
        let items = told(|schema| schema["properties"]["tags"]["items"]["type"] = json!("integer"));
        assert_eq!(items, [r#".tags[]: type was "string", and became "integer""#]);
    }

    #[test]
    fn what_is_about_a_person_stays_so() {
        assert_eq!(told(|schema| remove(&mut schema["properties"]["title"], "x-personal")).len(), 1);
    }
}
