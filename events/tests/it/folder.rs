//! The files under `schemas/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// What makes the committed schemas anew.
pub(crate) const REGENERATE: &str = "UPDATE_SCHEMAS=1 cargo test -p vidlog-events what_the_code_says";

/// A file or folder under `schemas/`.
pub(crate) fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas").join(below)
}

/// The names in a folder under `schemas/`, sorted; none if there is no such folder.
pub(crate) fn names(below: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path(below)) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A JSON file under `schemas/`.
pub(crate) fn json(below: &str) -> Value {
    let text = fs::read_to_string(path(below)).unwrap_or_else(|error| panic!("schemas/{below}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("schemas/{below}: {error}"))
}

/// Writes a JSON file under `schemas/`.
pub(crate) fn write_json(below: &str, value: &Value) {
    let file = path(below);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, serde_json::to_string_pretty(value).unwrap() + "\n").unwrap();
}
