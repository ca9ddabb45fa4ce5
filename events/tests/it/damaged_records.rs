//! Records that no writer of this system wrote: decoding returns an event or an error, never panics.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Map, Value};
use vidlog_events::{DecodeError, Envelope, MAX_ID, Stream, catalogue, decode};

use crate::records::{encoded_envelopes, header_bytes};

/// Occurs in every text of a payload, and in no message of a decoder.
const PERSONAL: &str = "Zoë🎬";

/// A record: headers by name, and a value.
#[derive(Clone, Debug)]
struct Record {
    stream: Stream,
    headers: BTreeMap<String, Vec<u8>>,
    value: Vec<u8>,
}

/// One damage to the bytes of a record.
#[derive(Clone, Debug)]
enum Damage {
    Replace(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Truncate(Index),
    /// Repeats a part of the bytes.
    Repeat(Index, Index),
}

proptest! {
    #[test]
    fn arbitrary_record_is_an_event_or_an_error(record in arbitrary_records()) {
        _ = check(&record)?;
    }

    #[test]
    fn arbitrary_json_is_an_event_or_an_error(record in json_records()) {
        let decoded = check(&record)?;
        if let Err(error @ DecodeError::Payload { .. }) = decoded {
            prop_assert!(!error.to_string().contains(PERSONAL), "{error}");
        }
    }

    #[test]
    fn damaged_record_is_an_event_or_an_error(
        mut record in written_records(),
        damages in vec((any::<Index>(), damages()), 1..4),
    ) {
        for (place, damage) in damages {
            // The value, or one of the headers.
            let place = place.index(record.headers.len() + 1);
            damage.apply(record.headers.values_mut().nth(place).unwrap_or(&mut record.value));
        }
        _ = check(&record)?;
    }

    #[test]
    fn any_time_of_rfc_3339_is_an_event_or_an_error(mut record in written_records(), time in times()) {
        record.headers.insert("ce_time".to_owned(), time.into_bytes());
        _ = check(&record)?;
    }
}

/// Decodes a record. A decoded event must survive being encoded and decoded again.
fn check(record: &Record) -> Result<Result<Envelope, DecodeError>, TestCaseError> {
    let decoded = decode(record.stream, |name| record.headers.get(name).map(Vec::as_slice), &record.value);
    if let Ok(envelope) = &decoded {
        let encoded = envelope.encode().unwrap();
        let again = decode(encoded.stream, |name| header_bytes(&encoded, name), &encoded.value);
        prop_assert_eq!(again.as_ref(), Ok(envelope));
    }
    Ok(decoded)
}

fn written_records() -> impl Strategy<Value = Record> {
    encoded_envelopes().prop_map(|encoded| Record {
        stream: encoded.stream,
        headers: encoded
            .headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .collect(),
        value: encoded.value,
    })
}

/// Records with arbitrary bytes everywhere, but with the type of an event more often than chance allows.
fn arbitrary_records() -> impl Strategy<Value = Record> {
    let (stream, names) = (prop::sample::select(Stream::ALL.as_slice()), header_names());
    (stream, vec((names, header_values()), 0..12), vec(any::<u8>(), 0..200))
        .prop_map(|(stream, headers, value)| Record { stream, headers: headers.into_iter().collect(), value })
}

fn header_names() -> impl Strategy<Value = String> {
    const ATTRIBUTES: [&str; 7] =
        ["ce_id", "ce_type", "ce_source", "ce_time", "ce_traceparent", "ce_correlationid", "x"];
    prop::sample::select(ATTRIBUTES.as_slice()).prop_map(str::to_owned)
}

fn header_values() -> impl Strategy<Value = Vec<u8>> {
    let types: Vec<_> = catalogue().iter().map(|event_type| event_type.name.as_bytes().to_vec()).collect();
    prop_oneof![
        vec(any::<u8>(), 0..60),
        prop::sample::select(types),
        any::<u128>().prop_map(|id| uuid::Uuid::from_u128(id).to_string().into_bytes()),
        times().prop_map(String::into_bytes),
    ]
}

/// Records with valid headers and any JSON, mostly with the properties of events.
fn json_records() -> impl Strategy<Value = Record> {
    (written_records(), any::<Index>(), json()).prop_map(|(mut record, event_type, payload)| {
        let types = catalogue();
        let event_type = event_type.get(&types);
        record.stream = event_type.stream;
        record.headers.insert("ce_type".to_owned(), event_type.name.as_bytes().to_vec());
        record.value = payload.to_string().into_bytes();
        record
    })
}

fn json() -> impl Strategy<Value = Value> {
    const EDGES: [i64; 7] = [0, 1, -1, MAX_ID, MAX_ID + 1, i64::MAX, i64::MIN];
    let scalar = prop_oneof![
        prop::sample::select(EDGES.as_slice()).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,8}".prop_map(|text| Value::from(format!("{PERSONAL}{text}"))),
        Just(Value::Null),
    ];
    scalar.prop_recursive(4, 32, 8, |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::from),
            4 => vec((properties(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// The properties of all events, from their schemas.
fn properties() -> impl Strategy<Value = String> {
    let mut names = vec!["unknown".to_owned()];
    for event_type in catalogue() {
        let schema = (event_type.schema)();
        let properties = schema.get("properties").and_then(Value::as_object);
        names.extend(properties.into_iter().flat_map(Map::keys).cloned());
    }
    prop::sample::select(names)
}

/// Times of any year, offset and precision; some exist on no calendar.
fn times() -> impl Strategy<Value = String> {
    let year = prop_oneof![Just(0), Just(9999), 0..10_000];
    let date = (year, 1..=13_u8, prop_oneof![Just(1), Just(31), 1..=32_u8]);
    let time = (0..=24_u8, 0..=60_u8, 0..=60_u8, "(\\.[0-9]{1,12})?");
    let offset = prop_oneof![Just("Z".to_owned()), "[+-](0[0-9]|1[0-9]|2[0-4]):[0-6][0-9]"];
    (date, time, offset).prop_map(|((year, month, day), (hour, minute, second, fraction), offset)| {
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{offset}")
    })
}

fn damages() -> impl Strategy<Value = Damage> {
    // Bytes that mean something in JSON, headers and UTF-8, and any other.
    let bytes = || prop_oneof![prop::sample::select(b"{}[]\",:\\0e-. \0\xff\xc3".as_slice()), any::<u8>()];
    prop_oneof![
        (any::<Index>(), bytes()).prop_map(|(at, byte)| Damage::Replace(at, byte)),
        (any::<Index>(), bytes()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        any::<Index>().prop_map(Damage::Remove),
        any::<Index>().prop_map(Damage::Truncate),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        let place = |index: Index| index.index(bytes.len() + 1);
        match self {
            Self::Insert(at, byte) => bytes.insert(place(at), byte),
            Self::Truncate(at) => bytes.truncate(place(at)),
            Self::Repeat(from, to) => {
                let (from, to) = (place(from).min(place(to)), place(from).max(place(to)));
                bytes.extend_from_within(from..to);
            }
            Self::Replace(..) | Self::Remove(_) if bytes.is_empty() => {}
            Self::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Self::Remove(at) => _ = bytes.remove(at.index(bytes.len())),
        }
    }
}
