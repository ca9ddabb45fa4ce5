//! The committed schema of every event type, and its history.
//!
//! `schemas/events/<event>.schema.json` is what the code says now. `schemas/events/history/<event>/NNNN.schema.json`
//! is every version that was ever committed, only ever added: the newest says what the code says, but for prose.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vidlog_events::{EventType, catalogue};

use crate::{
    compatibility::{breaking_changes, without_prose},
    folder::{self, REGENERATE},
};

/// The fields with data about people: all that masking and erasure have to reach.
const PERSONAL: [(&str, &str); 4] = [
    ("comment-posted", "text"),
    ("message-sent", "content"),
    ("user-registered", "name"),
    ("video-uploaded", "title"),
];

#[test]
fn the_committed_schemas_are_what_the_code_says() {
    for event_type in catalogue() {
        let generated = schema(&event_type);
        let (file, newest) = (file(event_type.name), versions(event_type.name).pop());
        let is_new_version = newest.as_ref().map(without_prose) != Some(without_prose(&generated));
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            folder::write_json(&file, &generated);
            if is_new_version {
                let number = folder::names(&history(event_type.name)).len() + 1;
                folder::write_json(
                    &format!("{}/{number:04}.schema.json", history(event_type.name)),
                    &generated,
                );
            }
            continue;
        }
        assert!(folder::path(&file).exists(), "schemas/{file} is missing; run `{REGENERATE}` and commit it");
        assert!(
            folder::json(&file) == generated,
            "schemas/{file} is not what the code says; run `{REGENERATE}` and commit what changed"
        );
        assert!(
            !is_new_version,
            "the history of {} lacks the schema that the code says; run `{REGENERATE}` and commit it",
            event_type.name
        );
    }
}

#[test]
fn the_committed_schemas_are_those_of_the_catalogue() {
    let types: BTreeSet<_> = catalogue().into_iter().map(|event_type| event_type.name.to_owned()).collect();
    let committed = folder::names("events");
    let committed: BTreeSet<_> =
        committed.iter().filter_map(|name| name.strip_suffix(".schema.json")).collect();
    assert_eq!(committed, types.iter().map(String::as_str).collect());
    let known: BTreeSet<_> = folder::names("events/history").into_iter().collect();
    assert!(known.is_subset(&types), "an event type never goes: the log has its events for ever; {known:?}");
}

#[test]
fn every_version_of_a_schema_is_compatible_with_every_other() {
    for event_type in catalogue() {
        let mut versions = versions(event_type.name);
        versions.push(schema(&event_type));
        for (number, newer) in versions.iter().enumerate() {
            for (earlier, older) in versions[..number].iter().enumerate() {
                let changes = breaking_changes(older, newer);
                let (name, earlier, number) = (event_type.name, earlier + 1, number + 1);
                assert!(
                    changes.is_empty(),
                    "{name}: version {number} breaks version {earlier}: {changes:#?}"
                );
            }
        }
    }
}

#[test]
fn history_is_numbered_without_a_gap() {
    for event_type in catalogue() {
        let names = folder::names(&history(event_type.name));
        let expected: Vec<_> = (1..=names.len()).map(|number| format!("{number:04}.schema.json")).collect();
        assert_eq!(names, expected, "{}", event_type.name);
    }
}

#[test]
fn a_schema_is_json_schema_2020_12_and_says_what_it_is() {
    for event_type in catalogue() {
        let schema = schema(&event_type);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["$id"], format!("urn:vidlog:schemas:events:{}", event_type.name));
        assert!(schema["title"].is_string() && schema["description"].is_string(), "{}", event_type.name);
        jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{}: {error}", event_type.name));
        let fields = schema["properties"].as_object().unwrap();
        let undescribed: Vec<_> =
            fields.iter().filter(|(_, field)| !field["description"].is_string()).collect();
        assert!(undescribed.is_empty(), "{}: {undescribed:?}", event_type.name);
    }
}

#[test]
fn event_types_are_named_apart() {
    let names: BTreeSet<_> = catalogue().into_iter().map(|event_type| event_type.name).collect();
    assert_eq!(names.len(), catalogue().len());
}

#[test]
fn fields_about_people_are_marked() {
    let mut marked = BTreeSet::new();
    for event_type in catalogue() {
        let schema = schema(&event_type);
        let fields = schema["properties"].as_object().unwrap();
        let personal = fields.iter().filter(|(_, field)| field["x-personal"] == json!(true));
        marked.extend(personal.map(|(name, _)| (event_type.name, name.clone())));
    }
    let expected = PERSONAL.map(|(event, field)| (event, field.to_owned()));
    assert_eq!(marked, expected.into(), "a field about a person is a Personal<T>, and is named here");
}

fn schema(event_type: &EventType) -> Value {
    (event_type.schema)().to_value()
}

fn file(name: &str) -> String {
    format!("events/{name}.schema.json")
}

fn history(name: &str) -> String {
    format!("events/history/{name}")
}

/// Every version of a schema, the oldest first.
fn versions(name: &str) -> Vec<Value> {
    let folder = history(name);
    folder::names(&folder).iter().map(|version| folder::json(&format!("{folder}/{version}"))).collect()
}
