//! The examples: whole events in CloudEvents' structured JSON form, at least one of each type, only ever added.

use serde_json::{Map, Value, json};
use vidlog_events::{EncodedRecord, Envelope, EventType, MAX_ID, catalogue, decode};

use crate::folder;

#[test]
fn every_event_type_has_an_example_and_no_other_has() {
    let mut types: Vec<_> = catalogue().iter().map(|event_type| event_type.name).collect();
    types.sort_unstable();
    assert_eq!(folder::names("examples"), types);
    for event_type in catalogue() {
        assert!(!examples(&event_type).is_empty(), "schemas/examples/{} is empty", event_type.name);
    }
}

#[test]
fn every_example_is_what_its_schema_says() {
    for event_type in catalogue() {
        let validator = jsonschema::validator_for(&(event_type.schema)().to_value()).unwrap();
        for (file, example) in examples(&event_type) {
            let errors: Vec<_> =
                validator.iter_errors(&example["data"]).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{file}: {errors:#?}");
        }
    }
}

#[test]
fn every_example_decodes_and_encodes_back_to_itself() {
    for event_type in catalogue() {
        for (file, example) in examples(&event_type) {
            let envelope = read(&event_type, &example).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(envelope.event.type_name(), event_type.name, "{file}");
            let record = envelope.encode().unwrap();
            assert_eq!(record.stream, event_type.stream, "{file}");
            assert_eq!(example["subject"], record.key, "{file}: the subject is the key");
            assert_eq!(structured(&record), example, "{file}");
        }
    }
}

#[test]
fn an_id_out_of_bounds_is_neither_valid_nor_read() {
    for event_type in catalogue() {
        let validator = jsonschema::validator_for(&(event_type.schema)().to_value()).unwrap();
        for (file, example) in examples(&event_type) {
            let ids = example["data"].as_object().unwrap().keys().filter(|name| name.ends_with("_id"));
            for (name, id) in ids.flat_map(|name| [(name, 0), (name, -1), (name, MAX_ID + 1)]) {
                let mut example = example.clone();
                example["data"][name] = json!(id);
                assert!(!validator.is_valid(&example["data"]), "{file}: {name} {id}");
                assert!(read(&event_type, &example).is_err(), "{file}: {name} {id}");
            }
        }
    }
}

/// Every example of a type, with its file.
fn examples(event_type: &EventType) -> Vec<(String, Value)> {
    let files = folder::names(&format!("examples/{}", event_type.name));
    let files = files.iter().map(|file| format!("examples/{}/{file}", event_type.name));
    files.map(|file| (file.clone(), folder::json(&file))).collect()
}

/// Decodes an example as if it came from its topic.
fn read(event_type: &EventType, example: &Value) -> Result<Envelope, vidlog_events::DecodeError> {
    let header = |name: &str| {
        let attribute = name.strip_prefix("ce_").unwrap_or("datacontenttype");
        example[attribute].as_str().map(str::as_bytes)
    };
    decode(event_type.stream, header, &serde_json::to_vec(&example["data"]).unwrap())
}

/// A record in structured form: its headers as attributes, beside its value.
fn structured(record: &EncodedRecord) -> Value {
    let mut event = Map::new();
    for (header, value) in &record.headers {
        let attribute = header.strip_prefix("ce_").unwrap_or("datacontenttype");
        event.insert(attribute.to_owned(), json!(value));
    }
    event.insert("data".to_owned(), serde_json::from_slice(&record.value).unwrap());
    Value::Object(event)
}
