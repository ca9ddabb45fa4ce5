//! The `OpenAPI` document: generated from the code, committed and served.

use std::{collections::HashSet, path::Path};

use serde_json::Value;
use vidlog_contract::Code;

use crate::app::App;

#[test]
fn committed_document_matches_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/openapi.json");
    let generated = vidlog_standalone::openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&file, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == generated,
        "schemas/openapi.json is out of date; run the tests with UPDATE_SCHEMAS=1"
    );
}

#[test]
fn operation_ids_are_unique_and_responses_described() {
    let document = serde_json::to_value(vidlog_standalone::openapi()).unwrap();
    let mut names = HashSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name), "{method} {path} repeats the operation id {name}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let response = resolve(&document, response);
                let description = response["description"].as_str().unwrap_or_default();
                assert!(!description.is_empty(), "{status} of {method} {path} has no description");
            }
        }
    }
    assert_eq!(names.len(), 18);
}

#[test]
fn every_status_code_is_documented() {
    let document = serde_json::to_value(vidlog_standalone::openapi()).unwrap();
    let description =
        &document["components"]["schemas"]["Status"]["properties"]["status_code"]["description"];
    for code in Code::ALL {
        assert!(description.as_str().unwrap().contains(&code.number().to_string()), "{code:?}");
    }
}

#[tokio::test]
async fn document_and_swagger_ui_are_served() {
    let app = App::start().await;
    let document = app.http.get(app.url("/openapi.json")).send().await.unwrap();
    assert_eq!(document.status(), 200);
    let document: Value = serde_json::from_str(&document.text().await.unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 18, "{:?}", paths.keys());
    let page = app.http.get(app.url("/docs/")).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.text().await.unwrap().contains("swagger-ui"));
}

/// Resolves a part of the document that may be a reference.
fn resolve<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
    part["$ref"].as_str().map_or(part, |reference| {
        document
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{reference} does not exist"))
    })
}
