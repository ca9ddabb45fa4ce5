//! `schemas/asyncapi.yaml`, which is written by hand, against the code.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use uuid::Uuid;
use vidlog_events::{
    Envelope, Event, PARTITIONS, Personal, Stream, Topics, UserEvent, UserId, UserRegistered, catalogue,
};

use crate::folder;

/// The namespace that a channel's address is compared in.
const NAMESPACE: &str = "{namespace}";

#[test]
fn there_is_one_channel_a_stream() {
    let document = document();
    assert_eq!(keys(&document["channels"]), Stream::ALL.map(|stream| stream.name().to_owned()).into());
    for stream in Stream::ALL {
        let channel = &document["channels"][stream.name()];
        assert_eq!(channel["address"], Topics::new(NAMESPACE).name(stream));
        let topic = &follow(&document, &channel["bindings"])["kafka"];
        assert_eq!(topic["partitions"], PARTITIONS);
        for (setting, value) in Topics::SETTINGS {
            assert_eq!(text(&topic["topicConfiguration"][setting]), value, "{stream}: {setting}");
        }
        let appended = &document["operations"][format!("append-{stream}")];
        assert_eq!(follow(&document, &appended["channel"]), channel);
    }
}

#[test]
fn a_channel_has_the_events_of_its_stream() {
    let document = document();
    for stream in Stream::ALL {
        let types = catalogue().into_iter().filter(|event_type| event_type.stream == stream);
        let types: BTreeSet<_> = types.map(|event_type| event_type.name.to_owned()).collect();
        let messages = &document["channels"][stream.name()]["messages"];
        assert_eq!(keys(messages), types, "{stream}");
        for name in types {
            let message = follow(&document, &messages[&name]);
            assert_eq!(message["name"], name);
            assert_eq!(message["payload"]["$ref"], format!("events/{name}.schema.json"));
            assert!(folder::path(message["payload"]["$ref"].as_str().unwrap()).exists(), "{name}");
        }
    }
    let types = catalogue().into_iter().map(|event_type| event_type.name.to_owned()).collect();
    assert_eq!(keys(&document["components"]["messages"]), types);
}

#[test]
fn the_headers_are_those_that_are_written() {
    let schema = &document()["components"]["schemas"]["headers"];
    let required = schema["required"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(headers(None), required, "those of every event");
    assert_eq!(headers(Some("x")), keys(&schema["properties"]), "those of an event with all there can be");
}

/// The headers of an event whose extensions have a value, or are not there.
fn headers(extension: Option<&str>) -> BTreeSet<String> {
    let user_id = UserId::new(1).unwrap();
    let registered = UserRegistered { user_id, name: Personal::new("Ada".to_owned()) };
    let envelope = Envelope {
        id: Uuid::nil(),
        source: "/test".to_owned(),
        time_ms: 0,
        traceparent: extension.map(str::to_owned),
        correlation_id: extension.map(str::to_owned),
        causation_id: extension.map(str::to_owned),
        event: Event::User(UserEvent::UserRegistered(registered)),
    };
    envelope.encode().unwrap().headers.into_iter().map(|(name, _)| name.to_owned()).collect()
}

fn document() -> Value {
    serde_saphyr::from_str(&fs::read_to_string(folder::path("asyncapi.yaml")).unwrap()).unwrap()
}

/// What a reference within the document refers to.
fn follow<'a>(document: &'a Value, reference: &Value) -> &'a Value {
    let pointer = reference["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    document.pointer(pointer.expect("a reference within the document")).expect("what it refers to")
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().expect("an object").keys().cloned().collect()
}

/// A setting as Kafka writes it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
